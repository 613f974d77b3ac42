"""Kinetics-Sounds: the 31 classes of Kinetics-400 that can be seen and heard."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.layouts import refuse_faults, short_name
from pipeline.datasets.lists import Row, find_lists, read_rows
from pipeline.datasets.source import DatasetRequest, chosen_options, required_root
from pipeline.errors import ManifestError
from pipeline.types import Clip, Manifest

TITLE = "Kinetics-Sounds: 31 Kinetics-400 classes that can be seen and heard"
PUBLISHED = (
    "The clips are a part of Kinetics-400, https://github.com/cvdfoundation/kinetics-dataset; the lists my_train.txt "
    "and my_test.txt come with the code of OGM-GE, https://github.com/GeWu-Lab/OGM-GE_CVPR2022 (data/KineticSound)"
)
LAYOUT = """\
my_train.txt, my_test.txt
classes.txt beside the lists, where wanted: 31 class names, the line is the class number + 1
{train,val,test}/{class name}/{name}.mp4 or {train,val,test}/{name}.mp4
without such folders: {class name}/{name}.mp4 or {name}.mp4
{name} is {youtube id}_{start}_{end} with 6 digits each, or {youtube id}_{start}
the lists may also lie in splits/, lists/ or kinetics_sounds/
"""
NOTE = (
    "Kinetics-Sounds: the published lists number the classes and do not name them. Names come from classes.txt beside "
    "the lists; without it from the folders, where every one of the 31 classes has one; otherwise the classes are "
    "class-00 to class-30. Machines that shall share results need the same names: give them the same classes.txt. "
    "No video is in both lists."
)
OPTIONS: Mapping[str, Sequence[str]] = {}

LISTS = {"train": "my_train.txt", "test": "my_test.txt"}
LIST_FOLDERS = (".", "splits", "lists", "kinetics_sounds")
NUM_CLASSES = 31
NUMBERED = tuple(f"class-{number:02d}" for number in range(NUM_CLASSES))
# Folders of the two lists' clips, the likeliest first: the test list is made of Kinetics' validation part.
_FOLDERS = {"train": ("train", "val", "test"), "test": ("val", "test", "train")}
_NAME = re.compile(r"([A-Za-z0-9_-]{11})_(\d{6})_(\d{6})|([A-Za-z0-9_-]{11})_(\d{1,6})", re.ASCII)
_NUMBER = re.compile(r"\d{1,6}", re.ASCII)


@dataclass(frozen=True)
class _Listed:
    """A row of a list."""

    name: str  # as it stands there: the clip id
    video: str  # YouTube id
    start_seconds: int
    seconds: int
    number: int  # of the class
    split: str

    def files(self) -> tuple[str, str]:
        """Names that the file may have: with start and end, with the start alone; the listed one first."""
        times = f"{self.video}_{self.start_seconds:06d}_{self.start_seconds + self.seconds:06d}"
        forms = (times, f"{self.video}_{self.start_seconds}")
        first, second = forms if self.name == times else (self.name, times)
        return f"{first}.mp4", f"{second}.mp4"


@dataclass(frozen=True)
class _Found:
    """A file on the disk, by its folders."""

    folder: str  # train, val, test, or nothing
    class_folder: str  # or nothing
    file: str

    @property
    def path(self) -> str:
        """Relative to the root."""
        return "/".join(part for part in (self.folder, self.class_folder, self.file) if part)


def load_kinetics_sounds(request: DatasetRequest) -> Manifest:
    """List the clips of my_train.txt, then of my_test.txt, in the order of their lines.

    A clip is a whole file, sound included; its id is the listed name and its group the video it is cut from. Media may
    be missing; extraction says so clip by clip.

    Args:
        request: ``root`` is the folder that ``LAYOUT`` starts from.

    Raises:
        UsageError: no root, no lists, or an option: none is offered.
        ManifestError: lists that are no UTF-8 text, faulty lines, or files in folders of another class; all of these
            are listed.
    """
    chosen_options("kinetics-sounds", OPTIONS, request.options)
    root = required_root("kinetics-sounds", request, PUBLISHED)
    name = short_name(request, "kinetics-sounds")
    paths = find_lists("kinetics-sounds", root, LIST_FOLDERS, list(LISTS.values()), PUBLISHED)
    lists = paths["my_train.txt"].parent
    listed = _listed(paths, str(lists))
    found = _search(root, listed)
    folders = _class_folders(listed, found)
    classes = _classes(lists / "classes.txt", folders)
    homes = _homes(listed, found)
    clips = tuple(
        Clip(
            clip_id=row.name,
            domain="kinetics-sounds",
            label=classes[row.number],
            split=row.split,
            group=row.video,
            media={"video": root / (places[0].path if places else f"{homes[row.split, row.number]}/{row.files()[0]}")},
        )
        for row, places in zip(listed, found, strict=True)
    )
    notes = (_fallback_note(len(folders)),) if classes == NUMBERED else ()
    return Manifest(name, classes, ("kinetics-sounds",), clips, root, notes)


def _listed(paths: Mapping[str, Path], what: str) -> list[_Listed]:
    """All rows of both lists."""
    listed: list[_Listed] = []
    problems: list[str] = []
    seen: dict[tuple[str, int], str] = {}
    for split, file in LISTS.items():
        for row in read_rows(paths[file]):
            try:
                entry = _read(row, split)
                key = (entry.video, entry.start_seconds)
                if key in seen:
                    raise ManifestError(
                        f"the clip of {entry.video} at {entry.start_seconds} s stands in {seen[key]} already; remove "
                        "one of them"
                    )
                seen[key] = row.place
                listed.append(entry)
            except ManifestError as error:
                problems.append(f"{row.place}: {error}")
    refuse_faults(problems, len(listed) + len(problems), what)
    return listed


def _read(row: Row, split: str) -> _Listed:
    """Check a line."""
    if len(row.values) != 3:
        raise ManifestError(f"{len(row.values)} values where a name, the seconds and a class number belong")
    name, seconds, number = row.values
    match = _NAME.fullmatch(name)
    if match is None:
        raise ManifestError(
            f"{name[:80]!r} is no name {{youtube id}}_{{start}}_{{end}} or {{youtube id}}_{{start}}, for example "
            "-00nar1nEPc_000033_000043 or -00nar1nEPc_33; a YouTube id has 11 characters"
        )
    if _NUMBER.fullmatch(seconds) is None or int(seconds) == 0:
        raise ManifestError(f"{seconds[:80]!r} is no length of {name}; write whole seconds, for example 10")
    start = int(match[2] or match[5])
    if match[3] and int(match[3]) - start != int(seconds):
        raise ManifestError(f"{name} goes from {start} s to {int(match[3])} s, its length is given as {seconds} s")
    if _NUMBER.fullmatch(number) is None or int(number) >= NUM_CLASSES:
        raise ManifestError(f"class {number[:80]!r} of {name} is none; classes: 0 to {NUM_CLASSES - 1}")
    return _Listed(name, match[1] or match[4], start, int(seconds), int(number), split)


def _search(root: Path, listed: Sequence[_Listed]) -> list[list[_Found]]:
    """Where the file of every row lies, the likeliest place first; every folder is listed once."""
    wanted = {file for row in listed for file in row.files()}
    places: dict[str, list[_Found]] = defaultdict(list)
    for place in _walk(root):
        if place.file in wanted:
            places[place.file].append(place)
    found: list[list[_Found]] = []
    for row in listed:
        order = _FOLDERS[row.split]
        mine = [place for file in row.files() for place in places.get(file, ())]
        found.append(sorted(mine, key=lambda place: order.index(place.folder) if place.folder else len(order)))
    return found


def _walk(root: Path) -> Iterator[_Found]:
    """All files in the places that the layout allows."""
    files, folders = _entries(root)
    yield from (_Found("", "", file) for file in files)
    parts = [folder for folder in folders if folder in _FOLDERS["train"]]
    for part in parts or [""]:
        inside, classes = _entries(root / part)
        if part:
            yield from (_Found(part, "", file) for file in inside)
        for name in classes:
            yield from (_Found(part, name, file) for file in _entries(root / part / name)[0])


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the mp4 files and of the folders in a folder, sorted."""
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".mp4"):
                    files.append(entry.name)
                elif not entry.name.startswith(".") and entry.is_dir():
                    folders.append(entry.name)
    except OSError:  # not readable: opening a clip says why
        return [], []
    return sorted(files), sorted(folders)


def _class_name(folder: str) -> str:
    """The class that a folder is named after; some copies have ``_`` for a space."""
    return folder.replace("_", " ").strip()


def _class_folders(listed: Sequence[_Listed], found: Sequence[Sequence[_Found]]) -> dict[int, str]:
    """Class number -> name of the folder its files lie in, for classes with such a folder.

    Raises:
        ManifestError: files of a class in folders of different names, or of two classes in one.
    """
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    example: dict[tuple[int, str], str] = {}
    for row, places in zip(listed, found, strict=True):
        for place in places:
            if place.class_folder:
                name = _class_name(place.class_folder)
                counts[row.number][name] += 1
                example.setdefault((row.number, name), place.path)
    best = {number: names.most_common(1)[0][0] for number, names in sorted(counts.items())}
    problems = [
        f"class {number}: {names[best[number]]} files lie in folders {best[number]!r}, {count} in {name!r} "
        f"({example[number, name]})"
        for number, names in sorted(counts.items())
        for name, count in sorted(names.items())
        if name != best[number]
    ]
    owners: dict[str, int] = {}
    for number, name in best.items():
        if name in owners:
            problems.append(
                f"classes {owners[name]} and {number} both lie in folders {name!r} ({example[number, name]})"
            )
        owners.setdefault(name, number)
    if problems:
        raise ManifestError(
            "\n  ".join(
                [
                    "kinetics-sounds: folders contradict the lists' class numbers; move the files into folders of "
                    "their classes, or all files into train/ and val/ without such folders:",
                    *problems,
                ]
            )
        )
    return best


def _classes(listing: Path, folders: Mapping[int, str]) -> tuple[str, ...]:
    """Class names from ``classes.txt``, from the folders if every class has one, or numbered.

    Raises:
        ManifestError: ``classes.txt`` has not one name for every class, or contradicts the folders.
    """
    if not listing.is_file():
        return tuple(folders[number] for number in range(NUM_CLASSES)) if len(folders) == NUM_CLASSES else NUMBERED
    names = tuple(_class_name(" ".join(row.values)) for row in read_rows(listing, comma=False))
    if len(names) != NUM_CLASSES or len(set(names)) != NUM_CLASSES:
        raise ManifestError(
            f"{listing} has {len(names)} names, {len(set(names))} of them different; write one class name a line, for "
            f"the class numbers 0 to {NUM_CLASSES - 1}"
        )
    wrong = [
        f"class {number} is {names[number]!r} there, its files lie in folders {folder!r}"
        for number, folder in folders.items()
        if folder != names[number]
    ]
    if wrong:
        raise ManifestError("\n  ".join([f"{listing} contradicts the folders:", *wrong]))
    return names


def _fallback_note(named: int) -> str:
    """That the classes have no names here, and why."""
    return (
        f"kinetics-sounds: classes are named class-00 to class-30, because {named} of {NUM_CLASSES} classes have a "
        "folder of their own here and no classes.txt lies beside the lists"
    )


def _homes(listed: Sequence[_Listed], found: Sequence[Sequence[_Found]]) -> dict[tuple[str, int], str]:
    """(split, class number) -> folder, relative to the root, in which a missing file belongs."""
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    classes: dict[int, Counter[str]] = defaultdict(Counter)
    for row, places in zip(listed, found, strict=True):
        if places:
            parts[row.split][places[0].folder] += 1
            classes[row.number][places[0].class_folder] += 1
    homes: dict[tuple[str, int], str] = {}
    for split, order in _FOLDERS.items():
        part = parts[split].most_common(1)[0][0] if parts[split] else order[0]
        for number in range(NUM_CLASSES):
            folder = classes[number].most_common(1)[0][0] if classes[number] else ""
            homes[split, number] = "/".join(name for name in (part, folder) if name) or "."
    return homes
