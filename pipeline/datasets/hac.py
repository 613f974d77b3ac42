"""HAC: seven actions of humans, animals and cartoon figures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.datasets.layouts import Place, best_place, refuse_faults, short_name, split_folder
from pipeline.datasets.source import DatasetRequest, required_root
from pipeline.errors import ManifestError
from pipeline.types import Clip, Manifest

TITLE = "HAC: 7 actions of humans, animals and cartoon figures"
PUBLISHED = (
    "HAC (videos, flow and sound) is published with SimMMDG at https://github.com/donghao51/SimMMDG, which names the "
    "address to download from; the lists HAC_{train,test}_only_{domain}.csv come with its code and that of "
    "https://github.com/lihongzhao99/SSMDG"
)
LAYOUT = """\
HAC_Splits/HAC_{train,test}_only_{human,animal,cartoon}.csv
HAC_Splits/{human,animal,cartoon}/videos/{name}.mp4
HAC_Splits/{human,animal,cartoon}/flow/{name}_flow_x.mp4, {name}_flow_y.mp4
HAC_Splits/{human,animal,cartoon}/audio/{name}.wav
the three folders of media may also lie in HAC/ or in the root itself, the lists in the root itself
"""
NOTE = (
    "HAC: 24 files are in both the training and the test list of human. With human as a source the test copies are "
    "left out of validation; with human as the whole target (train and test lists) they are counted twice. 10 of the "
    "176 animal test clips are cut from 3 videos that also gave training clips of animal."
)
OPTIONS: Mapping[str, Sequence[str]] = {}

SPLIT_FOLDER = "HAC_Splits"
DOMAINS = ("human", "animal", "cartoon")
SPLITS = ("train", "test")
# Position = number in the lists.
CLASSES = ("sleeping", "watching tv", "eating", "drinking", "swimming", "running", "opening door")
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f]")
_LONGEST_NAME = 200  # bytes; with _flow_x.mp4 it stays below what file systems take


def load_hac(request: DatasetRequest) -> Manifest:
    """List the clips of HAC's lists: human, animal, cartoon, each train then test, in the order of the lines.

    A clip is a whole file. Its id holds the list it stands in, because some names stand in two; its group does not,
    so that the two stay on one side of every split. Media may be missing; extraction says so clip by clip.

    Args:
        request: ``root`` is the folder that ``LAYOUT`` starts from.

    Raises:
        UsageError: no root.
        ManifestError: lists are missing or no UTF-8 text, or lines are faulty; all of these are listed.
    """
    root = required_root("hac", request, PUBLISHED)
    name = short_name(request, "hac")
    parts = [(domain, split) for domain in DOMAINS for split in SPLITS]
    files = [f"HAC_{split}_only_{domain}.csv" for domain, split in parts]
    folder = split_folder(root, SPLIT_FOLDER, files, LAYOUT, PUBLISHED)
    places = _places(root)
    clips: list[Clip] = []
    problems: list[str] = []
    for (domain, split), file in zip(parts, files, strict=True):
        rows, faults = _rows(folder / file)
        problems += [f"{file} {fault}" for fault in faults]
        for stem, label in rows:
            names = {"domain": domain, "stem": stem}
            clips.append(
                Clip(
                    clip_id=f"{domain}-{split}-{stem}",
                    domain=domain,
                    label=label,
                    split=split,
                    group=f"{domain}/{stem}",
                    media={key: place.path(names) for key, place in places.items()},
                )
            )
    refuse_faults(problems, len(clips) + len(problems), str(folder))
    return Manifest(name, CLASSES, DOMAINS, tuple(clips), root)


def _rows(path: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Names without suffix and labels of a list, and what is wrong with the other lines."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror})") from None
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    rows: list[tuple[str, str]] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            try:
                stem, label = _row([value.strip() for value in values])
                if stem in lines:
                    raise ManifestError(f"{stem}.mp4 stands in line {lines[stem]} already; remove one of them")
                lines[stem] = reader.line_num
                rows.append((stem, label))
            except ManifestError as error:
                problems.append(f"line {reader.line_num}: {error}")
    except csv.Error as error:
        raise ManifestError(f"{path} line {reader.line_num}: {error}; is a quotation mark left open?") from None
    if not rows and not problems:
        raise ManifestError(f"{path} is empty; download it again")
    return rows, problems


def _row(values: Sequence[str]) -> tuple[str, str]:
    """Name without suffix and label of a line."""
    if len(values) != 2:
        raise ManifestError(
            f"{len(values)} values where a file name and a class number belong; put a name that holds a comma in "
            "double quotes"
        )
    file, number = values
    if _NUMBER.fullmatch(number) is None or int(number) >= len(CLASSES):
        known = ", ".join(f"{i} {name}" for i, name in enumerate(CLASSES))
        raise ManifestError(f"class {number[:80]!r} of {file[:80]!r} is none; classes: {known}")
    stem = file[:-4]
    if not stem.strip() or file[-4:].lower() != ".mp4":
        raise ManifestError(f"{file[:80]!r} is no file name ending in .mp4")
    if _FORBIDDEN.search(file) or len(file.encode()) > _LONGEST_NAME:
        raise ManifestError(f"{file[:80]!r} is no plain file name of at most {_LONGEST_NAME} bytes")
    return stem, CLASSES[int(number)]


def _places(root: Path) -> dict[str, Place]:
    """Where each kind of media lies: decided once for all clips, by which folders are there."""
    bases = (root / SPLIT_FOLDER, root / "HAC", root)
    kinds = {
        "video": ("videos", "{stem}.mp4"),
        "flow": ("flow", "{stem}_flow_x.mp4"),
        "audio": ("audio", "{stem}.wav"),
    }
    places: dict[str, Place] = {}
    for key, (kind, own) in kinds.items():
        folders = [Place(base, f"{{domain}}/{kind}") for base in bases]
        best = best_place(folders, [{"domain": domain} for domain in DOMAINS])
        places[key] = Place(best.folder, f"{best.template}/{own}")
    return places
