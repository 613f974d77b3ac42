"""EPIC-KITCHENS-55 with the three kitchens and eight verbs of MM-SADA."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.datasets.layouts import Place, best_place, refuse_faults, short_name, split_folder
from pipeline.datasets.pickles import read_frame
from pipeline.datasets.source import DatasetRequest, required_root
from pipeline.errors import ManifestError, nearest
from pipeline.types import Clip, Manifest

TITLE = "EPIC-Kitchens, MM-SADA splits: 3 kitchens, 8 verbs"
PUBLISHED = (
    "EPIC-KITCHENS-55 is published by the University of Bristol at "
    "https://data.bris.ac.uk/data/dataset/3h91syskeag572hl6tvuovwv4d, the splits and a script that downloads the "
    "frames and the flow at https://github.com/jonmun/MM-SADA_Domain_Adaptation_Splits. The sound is taken from the "
    "videos: ffmpeg -i P08_01.MP4 -vn -ac 1 -ar 16000 P08_01.wav"
)
LAYOUT = """\
MM-SADA_Domain_Adaptation_Splits/{D1,D2,D3}_{train,test}.pkl
rgb/{train,test}/{D1,D2,D3}/{video}/frame_0000000001.jpg ...
rgb/{train,test}/{D1,D2,D3}/{video}.wav
flow/{train,test}/{D1,D2,D3}/{video}/{u,v}/frame_0000000001.jpg ...
rgb/ and flow/ may also lie in MM-SADA_Domain_Adaptation_Splits/ or frames_rgb_flow/
(every downloaded {video}.tar is unpacked into a folder {video})
the sound may also be audio/{train,test}/{D1,D2,D3}/{video}.wav or audio/{video}.wav
the root may be the folder of the .pkl files itself
"""
NOTE = (
    "EPIC-Kitchens: D3's test part has 1 clip of 'mix' and 5 of 'pour', so a mean over its classes is noise there. "
    "2697 of the 10094 clips are shorter than one sampling window (64 frames, 32 of flow). No video is in both train "
    "and test."
)
OPTIONS: Mapping[str, Sequence[str]] = {}

SPLIT_FOLDER = "MM-SADA_Domain_Adaptation_Splits"
DOMAINS = {"D1": "P08", "D2": "P01", "D3": "P22"}  # domain -> participant, whose kitchen it is
SPLITS = ("train", "test")
CLASSES = ("take", "put", "open", "close", "wash", "cut", "mix", "pour")  # position = verb_class
_COLUMNS: dict[str, type] = {
    "uid": int,
    "participant_id": str,
    "video_id": str,
    "start_timestamp": str,
    "stop_timestamp": str,
    "start_frame": int,
    "stop_frame": int,
    "verb_class": int,
}
_TIMESTAMP = re.compile(r"(\d{1,3}):([0-5]\d):([0-5]\d(?:\.\d{1,9})?)", re.ASCII)


def load_epic(request: DatasetRequest) -> Manifest:
    """List the clips of MM-SADA's pickles: D1, D2, D3, each train then test, in the order of the rows.

    Frames are numbered ``start_frame`` to ``stop_frame - 1``; the published ones were taken at 60 a second from videos
    of 59.94, so a number is ``int(60 * seconds)``. Flow has half the rate: its first picture is
    ``ceil(start_frame / 2)`` and there are ``int((stop_frame - start_frame) / 2)``. The sound is the stretch between
    the time stamps of the whole video's. Media may be missing; extraction says so clip by clip.

    Args:
        request: ``root`` is the folder that ``LAYOUT`` starts from.

    Raises:
        UsageError: no root.
        ManifestError: split files are missing, damaged or refused, or rows are faulty; all of these are listed.
    """
    root = required_root("epic", request, PUBLISHED)
    name = short_name(request, "epic")
    parts = [(domain, split) for domain in DOMAINS for split in SPLITS]
    files = [f"{domain}_{split}.pkl" for domain, split in parts]
    folder = split_folder(root, SPLIT_FOLDER, files, LAYOUT, PUBLISHED)
    rows: list[tuple[dict[str, str], dict[str, Any]]] = []
    problems: list[str] = []
    for (domain, split), file in zip(parts, files, strict=True):
        for position, row in enumerate(_rows(folder / file)):
            try:
                _check(row, domain)
                rows.append(({"domain": domain, "split": split, "video": row["video_id"]}, row))
            except ManifestError as error:
                problems.append(f"{file} row {position}: {error}")
    refuse_faults(problems, len(rows) + len(problems), str(folder))
    places = _places(root, folder, [names for names, _ in rows])
    clips: list[Clip] = []
    for names, row in rows:
        try:
            clips.append(_clip(names, row, {key: place.path(names) for key, place in places.items()}))
        except ManifestError as error:
            problems.append(f"{names['domain']}_{names['split']}.pkl: {error}")
    refuse_faults(problems, len(rows), str(folder))
    return Manifest(name, CLASSES, tuple(DOMAINS), tuple(clips), root)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a split file, the columns that are needed alone."""
    columns = read_frame(path)
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        hints = "".join(nearest(name, columns) for name in missing)
        raise ManifestError(
            f"{path} lacks the column(s) {', '.join(missing)}.{hints} Found: {', '.join(columns) or 'nothing'}; "
            "is it a split file of MM-SADA?"
        )
    if not columns["uid"]:
        raise ManifestError(f"{path} has no rows; download it again")
    for values in zip(*(columns[name] for name in _COLUMNS), strict=True):
        yield dict(zip(_COLUMNS, values, strict=True))


def _check(row: Mapping[str, Any], domain: str) -> None:
    """Refuse values that are of another kind, and rows of another kitchen or another data set."""
    for name, kind in _COLUMNS.items():
        if type(row[name]) is not kind:
            wanted = "a whole number" if kind is int else "text"
            raise ManifestError(f"{name} is {row[name]!r}; it must be {wanted}")
    participant = DOMAINS[domain]
    if row["participant_id"] != participant:
        raise ManifestError(f"participant_id is {row['participant_id']!r}; {domain} is the kitchen of {participant}")
    if re.fullmatch(rf"{participant}_\d{{1,4}}", row["video_id"], re.ASCII) is None:
        raise ManifestError(
            f"video_id is {row['video_id']!r}; videos of {domain} are called {participant}_01 and so on"
        )
    if not 0 <= row["verb_class"] < len(CLASSES):
        known = ", ".join(f"{i} {name}" for i, name in enumerate(CLASSES))
        raise ManifestError(f"verb_class is {row['verb_class']}; classes: {known}")


def _clip(names: Mapping[str, str], row: Mapping[str, Any], media: Mapping[str, Path]) -> Clip:
    """Build one clip; the uid is MM-SADA's own, so the id stays when rows are added or moved."""
    start, stop = row["start_frame"], row["stop_frame"]
    first = math.ceil(start / 2)
    clip_id = f"{names['domain']}-{names['split']}-{row['uid']}"
    return Clip(
        clip_id=clip_id,
        domain=names["domain"],
        label=CLASSES[row["verb_class"]],
        split=names["split"],
        group=row["video_id"],
        media=media,
        start_seconds=_seconds(row, "start_timestamp", clip_id),
        end_seconds=_seconds(row, "stop_timestamp", clip_id),
        frame_numbers=(start, stop),
        flow_numbers=(first, first + int((stop - start) / 2)),
    )


def _seconds(row: Mapping[str, Any], column: str, clip_id: str) -> float:
    """Read HH:MM:SS.ss."""
    match = _TIMESTAMP.fullmatch(row[column])
    if match is None:
        raise ManifestError(
            f"clip {clip_id!r}: {column} is {row[column]!r}; write HH:MM:SS.ss, for example 00:01:02.50"
        )
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _places(root: Path, folder: Path, names: Sequence[Mapping[str, str]]) -> dict[str, Place]:
    """Where each kind of media lies: decided once for all videos, by where most of them are."""
    videos = {(n["domain"], n["split"], n["video"]): n for n in names}
    bases = list(dict.fromkeys((root, folder, root / "frames_rgb_flow")))
    own = "{split}/{domain}/{video}"
    offered = {
        "video": [Place(base / "rgb", own) for base in bases],
        "flow": [Place(base / "flow", own) for base in bases],
        "audio": [
            *(Place(base / "rgb", f"{own}.wav") for base in bases),
            *(Place(base / "audio", f"{own}.wav") for base in bases),
            *(Place(base / "audio", "{video}.wav") for base in bases),
        ],
    }
    return {key: best_place(places, videos.values()) for key, places in offered.items()}
