"""Your own data: a tree of folders becomes a manifest."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cache.layout import write_atomically
from pipeline.datasets.manifest import SPLITS
from pipeline.errors import UsageError, nearest

COLUMNS = ("clip_id", "path", "label", "domain", "split", "audio_path", "flow_path", "group")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".flv", ".m4v", ".mpg", ".mpeg")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a")  # of several beside one video the first is its sound
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
LAYOUTS = {3: "domain/split/class/clip", 2: "split/class/clip"}
FLOW_ENDS = ("_flow_x", "_flow_y")
OWN_FILES = ("manifest.csv", "manifest.parquet", "classes.txt")  # in the root: not media, and not worth a word

Skipped = dict[str, list[str]]  # reason -> what was skipped for it, relative to the root


@dataclass(frozen=True)
class _Found:
    """A file, or a folder of pictures, that can be a clip or a part of one."""

    path: PurePosixPath  # relative to the root
    real: Path  # without links
    is_folder: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of the folders it lies in."""
        return self.path.parts[:-1]

    @property
    def stem(self) -> str:
        """Its path without the suffix of a file."""
        return str(self.path if self.is_folder else self.path.with_suffix(""))


def scan_tree(root: Path, skipped: Skipped | None = None) -> list[dict[str, str]]:
    """Rows of a manifest for ``domain/split/class/clip``, or for ``split/class/clip`` of one domain.

    A split is train, val or test. A clip is a video, a sound file, or a folder of numbered pictures. Sound of the same
    name beside a video or a folder is its sound, ``<name>_flow_x`` and ``<name>_flow_y`` are its optical flow; a clip
    of sound or flow alone has an empty ``path``. Ids come from paths and do not depend on what else is there, unless
    two paths would give the same one: then both ids end in digits of the path's digest. Links are followed inside
    ``root``; clips that are one file share a group.

    Args:
        root: the folder.
        skipped: receives everything that is no clip, by reason.

    Returns:
        Rows with all of ``COLUMNS``, by path; paths are relative to ``root``.

    Raises:
        UsageError: no folder, no clip in it, or both layouts at once.
    """
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; give one with {LAYOUTS[3]} or {LAYOUTS[2]} below it")
    left_out: Skipped = {} if skipped is None else skipped
    media = sorted(_walk(root, left_out), key=lambda found: found.path)
    depth = _depth(media, root)
    placed = [found for found in media if _in_place(found, depth, left_out)]
    rows = _rows(placed, depth, root, left_out)
    for paths in left_out.values():
        paths.sort()
    if not rows:
        what = "; ".join(f"{len(paths)} x {reason} ({paths[0]})" for reason, paths in left_out.items())
        raise UsageError(
            f"{root} has no clip: expected {LAYOUTS[3]} or {LAYOUTS[2]} with split in {', '.join(SPLITS)}. "
            f"Found: {what or 'nothing'}"
        )
    return rows


def write_manifest(root: Path, path: Path, force: bool, skipped: Skipped | None = None) -> int:
    """Write the manifest of a tree of folders, all of it or nothing.

    Args:
        root: the folder, see ``scan_tree``.
        path: the CSV file.
        force: replace a file that is there.
        skipped: receives everything that is no clip, by reason.

    Returns:
        Number of clips.

    Raises:
        UsageError: the file is there, or cannot be written; or see ``scan_tree``.
    """
    path = path.expanduser()
    if path.is_dir() or (path.exists() and not force):
        raise UsageError(f"{path} is there already; give --force to replace a file, or another --output")
    rows = scan_tree(root, skipped)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomically(path, text.getvalue())
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror or error}); give another --output") from None
    return len(rows)


def _skip(skipped: Skipped, reason: str, path: PurePosixPath) -> None:
    skipped.setdefault(reason, []).append(str(path).encode(errors="replace").decode())


def _walk(root: Path, skipped: Skipped) -> Iterator[_Found]:
    """All media files and folders of pictures."""
    waiting = [(PurePosixPath(), root, frozenset((root,)))]
    while waiting:
        relative, folder, above = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            _skip(skipped, f"folder that cannot be listed ({error.strerror})", relative)
            continue
        if not entries and relative.parts:
            _skip(skipped, "empty folder", relative)
        files: list[_Found] = []
        for entry in entries:
            path = relative / entry.name
            real = _real(entry, folder, root)
            fault = _name_fault(path)
            if fault or isinstance(real, str):
                _skip(skipped, fault or str(real), path)
            elif entry.is_file():
                files.append(_Found(path, real))
            elif not entry.is_dir():
                _skip(skipped, "neither a file nor a folder", path)
            elif real in above:
                _skip(skipped, "link to a folder that it lies in", path)
            else:
                waiting.append((path, real, above | {real}))
        yield from _media(relative, folder, files, skipped)


def _real(entry: os.DirEntry[str], folder: Path, root: Path) -> Path | str:
    """Where an entry lies without links, or why it is skipped."""
    if not entry.is_symlink():
        return folder / entry.name
    try:
        real = Path(entry.path).resolve(strict=True)
    except (OSError, RuntimeError):
        return "link that leads nowhere, or where nothing may be read"
    return real if real.is_relative_to(root) else "link that leads out of the folder"


def _name_fault(path: PurePosixPath) -> str:
    """Why a name cannot stand in a manifest."""
    if path.name.startswith("."):
        return "hidden"
    if not path.name.strip():
        return "name of nothing but white space"
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return "name that is not UTF-8"
    return ""


def _media(relative: PurePosixPath, folder: Path, files: list[_Found], skipped: Skipped) -> Iterator[_Found]:
    """The media among a folder's files, or the folder itself if its files are numbered pictures."""
    by_kind: dict[str, list[_Found]] = {"media": [], "pictures": [], "others": []}
    for found in files:
        suffix = found.path.suffix.lower()
        is_media = suffix in VIDEO_SUFFIXES or suffix in SOUND_SUFFIXES
        by_kind["media" if is_media else "pictures" if suffix in PICTURE_SUFFIXES else "others"].append(found)
    media, pictures, others = by_kind.values()
    if pictures and not media:
        unnumbered = [found for found in pictures if not re.search(r"\d", found.path.stem)]
        if not unnumbered:
            yield _Found(relative, folder, is_folder=True)
        else:
            _skip(skipped, "folder with pictures without a number in their names", relative)
    else:
        others += pictures
        yield from media
    for found in others:
        if relative.parts or found.path.name not in OWN_FILES:
            _skip(skipped, f"other file ({found.path.suffix.lower() or 'no suffix'})", found.path)


def _depth(media: list[_Found], root: Path) -> int:
    """How many folders the clips lie in: 3 with domains, 2 without.

    Raises:
        UsageError: some clips lie in domain/split/class and some in split/class.
    """
    three = next((m for m in media if len(m.folders) == 3 and m.folders[1] in SPLITS), None)
    two = next((m for m in media if len(m.folders) == 2 and m.folders[0] in SPLITS), None)
    if three and two:
        raise UsageError(
            f"{root} mixes {LAYOUTS[3]} ({three.path}) with {LAYOUTS[2]} ({two.path}); move the clips of one of them"
        )
    if three or two:
        return 3 if three else 2
    return 3 if any(len(m.folders) == 3 for m in media) else 2


def _in_place(found: _Found, depth: int, skipped: Skipped) -> bool:
    """Whether a medium lies at the right depth in a known split."""
    if len(found.folders) != depth:
        _skip(skipped, f"wrong depth: {len(found.folders)} folders deep, {LAYOUTS[depth]} has {depth}", found.path)
        return False
    split = found.folders[-2]
    if split not in SPLITS:
        hint = nearest(split.lower(), SPLITS)
        _skip(skipped, f"split folder {split!r} is none of {', '.join(SPLITS)}.{hint}", found.path)
        return False
    return True


def _rows(placed: list[_Found], depth: int, root: Path, skipped: Skipped) -> list[dict[str, str]]:
    """One row per clip: what stands beside it under its name belongs to it."""
    sounds: dict[str, list[_Found]] = {}
    pictures: list[_Found] = []
    for found in placed:
        if found.path.suffix.lower() in SOUND_SUFFIXES and not found.is_folder:
            sounds.setdefault(found.stem, []).append(found)
        else:
            pictures.append(found)
    for beside in sounds.values():
        beside.sort(key=lambda sound: SOUND_SUFFIXES.index(sound.path.suffix.lower()))
    flows = _flows(pictures)
    shown = [m for m in pictures if m.stem[: -len(FLOW_ENDS[0])] not in flows or not m.stem.endswith(FLOW_ENDS)]
    stems = {found.stem for found in shown}
    flow_paths = {found.path for found in flows.values()}
    alone = [of_stem[0] for stem, of_stem in sounds.items() if stem not in stems]
    alone += [found for stem, found in flows.items() if stem not in stems and stem not in sounds]
    clips: list[tuple[_Found, str, dict[str, str]]] = []
    for found in shown + alone:
        stem = found.stem.removesuffix(FLOW_ENDS[0]) if found.path in flow_paths else found.stem
        row = {
            "path": _written(found.path) if found.stem in stems else "",
            "audio_path": _written(sounds[stem][0].path) if stem in sounds else "",
            "flow_path": _written(flows[stem].path) if stem in flows else "",
        }
        clips.append((found, stem, row))
    for beside in sounds.values():
        for other in beside[1:]:
            _skip(skipped, "second sound file of one clip", other.path)
    clips.sort(key=lambda clip: clip[0].path)
    ids = _ids({found.path: stem for found, stem, _ in clips})
    groups: dict[Path, str] = {}
    for found, _, row in clips:
        row["clip_id"] = ids[found.path]
        row["label"] = found.folders[-1].strip()
        row["split"] = found.folders[-2]
        row["domain"] = found.folders[0].strip() if depth == 3 else root.name.strip() or "domain"
        row["group"] = groups.setdefault(found.real, ids[found.path])
    return [{column: row[column] for column in COLUMNS} for _, _, row in clips]


def _flows(pictures: list[_Found]) -> Mapping[str, _Found]:
    """Horizontal flow by the stem of its clip, where both directions are there."""
    by_stem = {found.stem: found for found in pictures if found.stem.endswith(FLOW_ENDS) and not found.is_folder}
    flows = {}
    for stem, found in by_stem.items():
        clip = stem.removesuffix(FLOW_ENDS[0])
        other = by_stem.get(clip + FLOW_ENDS[1])
        if clip != stem and other is not None and other.path.suffix == found.path.suffix:
            flows[clip] = found
    return flows


def _written(path: PurePosixPath) -> str:
    """A path as a manifest's cell: white space at the ends of a cell is not part of it."""
    text = str(path)
    text = f"./{text}" if text != text.lstrip() else text
    return f"{text}/." if text != text.rstrip() else text


def _ids(stems: Mapping[PurePosixPath, str]) -> dict[PurePosixPath, str]:
    """A clip id of plain characters per path."""
    plain = {}
    changed = set()
    for path, stem in stems.items():
        composed = unicodedata.normalize("NFC", stem)
        plain[path] = re.sub(r"[^A-Za-z0-9._]+", "-", composed).strip("-.") or "clip"
        if plain[path] != composed.replace("/", "-"):
            changed.add(path)
    used = Counter(plain.values())
    return {
        path: _with_digest(name, path) if path in changed or used[name] > 1 else name for path, name in plain.items()
    }


def _with_digest(name: str, path: PurePosixPath) -> str:
    text = unicodedata.normalize("NFC", str(path))
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
