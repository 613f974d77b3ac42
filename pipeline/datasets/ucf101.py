"""UCF-101: actions in videos of the web, with published optical flow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.datasets.layouts import refuse_faults, short_name
from pipeline.datasets.lists import Disk, Row, find_lists, read_rows
from pipeline.datasets.source import DatasetRequest, chosen_options, required_root
from pipeline.errors import ManifestError, nearest
from pipeline.types import Clip, Manifest

TITLE = "UCF-101: 101 actions, three splits"
PUBLISHED = (
    "The videos and the lists (ucfTrainTestlist) are published at https://www.crcv.ucf.edu/data/UCF101.php, TV-L1 flow "
    "(tvl1_flow) and frames (jpegs_256) with https://github.com/feichtenhofer/twostreamfusion"
)
LAYOUT = """\
ucfTrainTestlist/classInd.txt, trainlist0{1,2,3}.txt, testlist0{1,2,3}.txt
UCF-101/{class}/v_{class}_g{group}_c{clip}.avi
tvl1_flow/{u,v}/v_{class}_g{group}_c{clip}/frame000001.jpg ..., for flow=stored
jpegs_256/v_{class}_g{group}_c{clip}/frame000001.jpg ..., for frames=jpegs
the lists may also lie in the root itself, in splits/ or lists/
"""
NOTE = (
    "UCF-101: about half of the classes have sound, the others none. The clips of one group are cut from one video; "
    "the published lists keep groups whole. flow=stored reads the published TV-L1 flow, flow=computed computes flow "
    "from the frames: the two give different features."
)
OPTIONS: Mapping[str, Sequence[str]] = {
    "split": ("1", "2", "3"),
    "flow": ("stored", "computed"),
    "frames": ("video", "jpegs"),
}

LIST_FOLDERS = ("ucfTrainTestlist", ".", "splits", "lists")
RATE_HZ = 25.0
_FILE = re.compile(r"([A-Za-z0-9]+)/(v_([A-Za-z0-9]+)_g(\d\d)_c(\d\d))\.avi", re.ASCII)
_SUFFIXES = {"split": "split{}", "flow": "{}-flow", "frames": "{}"}  # of the data set's name, by option


def load_ucf101(request: DatasetRequest) -> Manifest:
    """List the clips of one split's training list, then of its test list, in the order of their lines.

    Classes have the order and the spelling of classInd.txt; other spellings that differ in case alone are understood,
    in the lists and on the disk. A group is a class and its group number. Media may be missing; extraction says so clip
    by clip.

    Args:
        request: ``root`` is the folder that ``LAYOUT`` starts from; for ``options`` see ``OPTIONS``.

    Raises:
        UsageError: no root, no lists, or an option that is not offered.
        ManifestError: lists that are no UTF-8 text, or faulty lines; all of these are listed.
    """
    options = chosen_options("ucf101", OPTIONS, request.options)
    root = required_root("ucf101", request, PUBLISHED)
    changed = [_SUFFIXES[key].format(value) for key, value in options.items() if value != OPTIONS[key][0]]
    name = short_name(request, "-".join(["ucf101", *changed]))
    lists = {split: f"{split}list0{options['split']}.txt" for split in ("train", "test")}
    paths = find_lists("ucf101", root, LIST_FOLDERS, ["classInd.txt", *lists.values()], PUBLISHED)
    classes = _classes(paths["classInd.txt"])
    disk = Disk(root)
    clips: list[Clip] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    for split, file in lists.items():
        for row in read_rows(paths[file], comma=False):
            try:
                clip = _clip(row, split, classes, disk, options)
                if clip.clip_id in seen:
                    raise ManifestError(f"{clip.clip_id} stands in {seen[clip.clip_id]} already; remove one of them")
                seen[clip.clip_id] = row.place
                clips.append(clip)
            except ManifestError as error:
                problems.append(f"{row.place}: {error}")
    refuse_faults(problems, len(clips) + len(problems), str(paths["classInd.txt"].parent))
    return Manifest(name, tuple(classes.values()), ("ucf101",), tuple(clips), root)


def _classes(path: Path) -> dict[str, str]:
    """Class names in the order of their numbers, by the name in lower case.

    Raises:
        ManifestError: faulty lines, or numbers that are not 1, 2, 3, ... in this order.
    """
    classes: dict[str, str] = {}
    problems: list[str] = []
    rows = read_rows(path, comma=False)
    for position, row in enumerate(rows, 1):
        if len(row.values) != 2:
            problems.append(f"{row.place}: {len(row.values)} values where a class number and a class name belong")
        elif row.values[0] != str(position):
            problems.append(f"{row.place}: class number {row.values[0][:80]!r}; number {position} belongs here")
        elif row.values[1].casefold() in classes:
            problems.append(f"{row.place}: class {row.values[1]!r} stands there twice; remove one of them")
        else:
            classes[row.values[1].casefold()] = row.values[1]
    refuse_faults(problems, len(rows), str(path.parent))
    return classes


def _clip(row: Row, split: str, classes: Mapping[str, str], disk: Disk, options: Mapping[str, str]) -> Clip:
    """Check a line and name its media."""
    label, file, stem = _read(row, split, classes)
    clip_id = f"v_{label}{stem[len('v_') + len(label) :]}"
    avi = disk.first([f"UCF-101/{file}"])
    media = {"video": avi}
    if options["frames"] == "jpegs":
        media["video"] = disk.first([f"jpegs_256/{stem}"])
        if avi.exists():  # the sound; without the videos there is none
            media["audio"] = avi
    if options["flow"] == "stored":
        media["flow"] = disk.first([f"tvl1_flow/u/{stem}"])
    folders = options["frames"] == "jpegs" or options["flow"] == "stored"
    return Clip(
        clip_id=clip_id,
        domain="ucf101",
        label=label,
        split=split,
        group=clip_id.rpartition("_")[0].removeprefix("v_"),
        media=media,
        rate_hz=RATE_HZ if folders else None,
    )


def _read(row: Row, split: str, classes: Mapping[str, str]) -> tuple[str, str, str]:
    """Class, path as it is listed, and file stem of a line."""
    file, *numbers = row.values
    if len(numbers) != (1 if split == "train" else 0):
        belongs = "a path and a class number belong" if split == "train" else "a path alone belongs"
        raise ManifestError(f"{len(row.values)} values where {belongs}")
    match = _FILE.fullmatch(file)
    if match is None:
        raise ManifestError(
            f"{file[:80]!r} is no path {{class}}/v_{{class}}_g{{group}}_c{{clip}}.avi, for example "
            "Archery/v_Archery_g01_c01.avi"
        )
    for name in (match[1], match[3]):
        if name.casefold() not in classes:
            raise ManifestError(
                f"class {name!r} of {file} is not in classInd.txt.{nearest(name, list(classes.values()))}"
            )
    if match[1].casefold() != match[3].casefold():
        raise ManifestError(f"folder {match[1]!r} of {file} contradicts the file name")
    label = classes[match[1].casefold()]
    position = list(classes).index(match[1].casefold()) + 1
    if numbers and numbers[0] != str(position):
        raise ManifestError(f"class number {numbers[0][:80]!r} of {file}; {label} has number {position}")
    return label, file, match[2]
