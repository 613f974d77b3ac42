"""What the adapters of published lists share: finding the files, their rows with line numbers, media on the disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ManifestError, UsageError


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a list."""

    file: str  # the list's name
    line: int  # counted from 1
    values: tuple[str, ...]  # without white space around them

    @property
    def place(self) -> str:
        """Where the row stands, for messages."""
        return f"{self.file} line {self.line}"


def find_lists(
    dataset: str, root: Path, folders: Sequence[str], files: Sequence[str], published: str
) -> dict[str, Path]:
    """Paths of the lists of a data set, all of them in the folder that has most.

    Args:
        dataset: its name, for messages.
        root: the data set's folder.
        folders: where the lists may lie, relative to the root; ``.`` is the root itself.
        files: names of the lists.
        published: where they are published.

    Raises:
        UsageError: a list is missing; says what was looked for where.
    """
    there = {folder: sum((root / folder / file).is_file() for file in files) for folder in folders}
    best = max(folders, key=lambda folder: there[folder])
    here = root / best
    missing = [file for file in files if not (here / file).is_file()]
    if missing:
        places = f"--root {root}; looked in {', '.join(f'{folder}/' for folder in folders)}"
        where = f"{here}, where the other lists are" if there[best] else places
        raise UsageError(f"{dataset}: {', '.join(missing)} not found in {where}. {published}")
    return {file: here / file for file in files}


def read_rows(path: Path, comma: bool = True) -> list[Row]:
    """Rows of a list that are not blank.

    Args:
        path: UTF-8 with or without a byte-order mark, any line ending.
        comma: commas separate the values; otherwise white space does.

    Raises:
        ManifestError: no UTF-8 text, not readable, or nothing in it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror})") from None
    rows = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        values = [value.strip() for value in line.split(",")] if comma else line.split()
        if any(values):
            rows.append(Row(path.name, number, tuple(values)))
    if not rows:
        raise ManifestError(f"{path} is empty; download it again")
    return rows


class Disk:
    """What lies below a folder, whatever the case of the names; every folder is listed once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listings: dict[Path, dict[str, str]] = {}

    def first(self, candidates: Sequence[str]) -> Path:
        """The first of the relative paths that is there, else the first of them as it is written."""
        found = (self._find(candidate) for candidate in candidates)
        return next((path for path in found if path is not None), self._root / candidates[0])

    def _find(self, relative: str) -> Path | None:
        path = self._root
        for part in relative.split("/"):
            names = self._names(path)
            name = names.get(part) or names.get(part.casefold())
            if name is None:
                return None
            path = path / name
        return path

    def _names(self, folder: Path) -> dict[str, str]:
        if folder not in self._listings:
            try:
                listed = sorted(path.name for path in folder.iterdir())
            except OSError:  # not there, no folder, or not readable: opening a clip says which
                listed = []
            names = {name: name for name in listed}
            for name in listed:
                names.setdefault(name.casefold(), name)
            self._listings[folder] = names
        return self._listings[folder]
