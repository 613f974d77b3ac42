"""What the adapters of published data sets share: where the parts lie below a root, and how faults are listed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.manifest import MOST_SHOWN, SAFE_NAME
from pipeline.datasets.source import DatasetRequest
from pipeline.errors import ManifestError, UsageError


@dataclass(frozen=True)
class Place:
    """Where one kind of media may lie: a folder, and the way from there to a clip's own path."""

    folder: Path
    template: str  # with names in braces, for example ``{split}/{domain}/{video}``

    def path(self, names: Mapping[str, str]) -> Path:
        """Path for the names of one clip."""
        return self.folder / self.template.format_map(names)


def best_place(places: Sequence[Place], samples: Iterable[Mapping[str, str]]) -> Place:
    """The place at which most samples lie, the first of equals; so the first one where none lies anywhere.

    Args:
        places: where a kind of media may lie, the documented place first.
        samples: names as for ``Place.path``; a few hundred at most, each is looked up at every place.
    """
    asked = list(samples)
    return max(places, key=lambda place: sum(_there(place.path(names)) for names in asked))


def split_folder(root: Path, inside: str, files: Sequence[str], layout: str, published: str) -> Path:
    """The folder of the split files: ``inside`` the root, or the root itself.

    Raises:
        ManifestError: not all the files lie in one of the two.
    """
    folder = max((root / inside, root), key=lambda place: sum((place / name).is_file() for name in files))
    missing = [name for name in files if not (folder / name).is_file()]
    if len(missing) == len(files):
        shown = "\n  ".join(layout.strip().splitlines())
        raise ManifestError(
            f"--root {root} holds no split file ({files[0]}, ...), neither in {inside}/ nor itself. "
            f"Expected below the root:\n  {shown}\n{published}"
        )
    if missing:
        raise ManifestError(
            f"{folder} lacks {len(missing)} of {len(files)} split files: {', '.join(missing)}; all are needed. "
            f"{published}"
        )
    return folder


def refuse_faults(problems: Sequence[str], total: int, what: str) -> None:
    """Report all faulty rows at once, the first ones in words.

    Raises:
        ManifestError: there is one.
    """
    if problems:
        more = [f"... and {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
        head = f"{what}: {len(problems)} faulty of {total} rows:"
        raise ManifestError("\n  ".join([head, *problems[:MOST_SHOWN], *more]))


def short_name(request: DatasetRequest, default: str) -> str:
    """Name of the data set in folder names and records.

    Raises:
        UsageError: the name that was asked for is none for a folder.
    """
    name = request.name or default
    if re.fullmatch(SAFE_NAME, name) is None:
        raise UsageError(f"--name {name!r} becomes a folder's name; use letters, digits, '.', '_' and '-' alone")
    return name


def _there(path: Path) -> bool:
    """Whether a path is a file, or a folder with anything in it."""
    try:
        return any(path.iterdir()) if path.is_dir() else path.exists()
    except OSError:
        return False
