"""What a user names to predict on: files, folders, manifests and a list on standard input, one clip at a time."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.manifest import read_clips
from pipeline.datasets.tree import PICTURE_SUFFIXES, SOUND_SUFFIXES, VIDEO_SUFFIXES
from pipeline.errors import UsageError
from pipeline.types import Clip

STANDARD_INPUT = "-"
MANIFEST_SUFFIXES = (".csv", ".parquet")
MEDIA_SUFFIXES = (*VIDEO_SUFFIXES, *SOUND_SUFFIXES, ".ts", ".3gp", ".ogv", ".mts", ".wmv", ".aac", ".opus")
FLOW_FOLDERS = ("u", "v", "flow_x", "flow_y")  # precomputed flow, which is no clip of its own
FLOW_FILES = ("_flow_x", "_flow_y")
WAIT_SECONDS = 0.2  # for a line of a list that somebody still writes
_CHUNK = 65536


@dataclass(frozen=True)
class MediaItem:
    """One clip to predict on."""

    name: str  # as the user named it, or found in a folder; any bytes are shown
    clip: Clip
    clip_id: str = ""  # where a manifest gives one
    label: str = ""  # its class, where it is known

    @classmethod
    def from_path(cls, path: str, rate_hz: float | None = None) -> MediaItem:
        """A media file or a folder of numbered pictures, whether it is there or not."""
        shown = printable(path)
        usable = path if "\0" not in path else shown  # no file has such a name: it will be missing
        return cls(shown, Clip(shown, "", "", "", "", {"video": Path(usable)}, rate_hz=rate_hz))


@dataclass(frozen=True)
class InputOptions:
    """How names are read."""

    root: Path | None = None  # of a manifest's media; None: its own folder
    outside: bool = False  # whether a manifest may name media outside its root
    rate_hz: float | None = None  # of folders of pictures, where no manifest says

    def __post_init__(self) -> None:
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise UsageError(f"--frame-rate is {self.rate_hz}; it must be more than 0 pictures a second")


def printable(text: str) -> str:
    """A name that can be written as UTF-8, with the bytes that cannot as ``\\xNN``, and without control characters."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def media_items(
    names: Sequence[str | Path], options: InputOptions, stdin: int | None = None
) -> Iterator[MediaItem | None]:
    """Yield clips in the order in which they are named; those of a folder by name, folders after files.

    A name that is not there is a clip too: its prediction says so. Manifests are read before anything is yielded.

    Args:
        names: files, folders of media, folders of numbered pictures, manifests, and ``-`` for a list of names, one a
            line, on standard input.
        options: how they are read.
        stdin: file descriptor of standard input; ``None`` where there is none to read.

    Yields:
        Clips, and ``None`` where the list on standard input has no further line yet.

    Raises:
        UsageError: nothing is named, ``-`` twice or without standard input, or a folder without any media.
        ManifestError: a manifest that cannot be read as one.
    """
    texts = [os.fspath(name) for name in names]
    if not texts:
        raise UsageError("nothing to predict on; name files, folders, a manifest, or - for a list on standard input")
    if texts.count(STANDARD_INPUT) > (0 if stdin is None else 1):
        allowed = "one - for it" if stdin is not None else "names themselves: - is for the command line"
        raise UsageError(f"standard input can be read once, by the command line; give {allowed}")
    manifests = {text: read_clips(Path(text), options.root, options.outside) for text in texts if _is_manifest(text)}
    return _items(texts, manifests, options, stdin)


def _items(
    texts: Sequence[str], manifests: dict[str, tuple[Clip, ...]], options: InputOptions, stdin: int | None
) -> Iterator[MediaItem | None]:
    for text in texts:
        if text in manifests:
            for clip in manifests[text]:
                path = next(iter(clip.media.values()))
                yield MediaItem(printable(str(path)), clip, printable(clip.clip_id), clip.label)
        elif text == STANDARD_INPUT and stdin is not None:
            for line in lines_of(stdin):
                if line is None:
                    yield None
                elif line.strip():
                    yield from _named(line, options)
        else:
            yield from _named(text, options)


def _is_manifest(text: str) -> bool:
    path = Path(text)
    return path.suffix.lower() in MANIFEST_SUFFIXES and not path.is_dir()


def _named(text: str, options: InputOptions) -> Iterator[MediaItem]:
    """The clips behind one name that is no manifest."""
    if "\0" in text or not Path(text).is_dir() or _holds_pictures(text):
        yield MediaItem.from_path(text, options.rate_hz)
        return
    found = False
    for path in _media_below(text):
        found = True
        yield MediaItem.from_path(path, options.rate_hz)
    if not found:
        raise UsageError(
            f"{printable(text)} holds no media; looked for files that end in {', '.join(MEDIA_SUFFIXES)} and for "
            "folders of numbered pictures"
        )


def _media_below(folder: str) -> Iterator[str]:
    """Media files and folders of pictures in a folder and all below it, without hidden ones and stored flow."""
    for at, folders, files in os.walk(folder):
        inner = sorted(name for name in folders if not name.startswith(".") and name not in FLOW_FOLDERS)
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a path object per file is slow in large folders
            if not name.startswith(".") and suffix.lower() in MEDIA_SUFFIXES and not stem.endswith(FLOW_FILES):
                yield str(Path(at, name))
        pictures = [name for name in inner if _holds_pictures(Path(at, name))]
        yield from (str(Path(at, name)) for name in pictures)
        folders[:] = [name for name in inner if name not in pictures]


def _holds_pictures(folder: str | Path) -> bool:
    """Whether a folder is a clip: it holds numbered pictures and no media file."""
    pictures = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = Path(entry.name).suffix.lower()
                if entry.name.startswith("."):
                    continue
                if suffix in MEDIA_SUFFIXES:
                    return False
                pictures = pictures or (suffix in PICTURE_SUFFIXES and any(c.isdigit() for c in entry.name))
    except OSError:
        return False
    return pictures


def lines_of(descriptor: int, wait_seconds: float = WAIT_SECONDS) -> Iterator[str | None]:
    """Yield the lines of a file descriptor as they come, and ``None`` after every wait without one.

    A list is often made by a program that is still at work; its first files need not wait for its last.
    """
    rest = b""
    while True:
        if sys.platform != "win32" and not select.select([descriptor], [], [], wait_seconds)[0]:
            yield None
            continue
        data = os.read(descriptor, _CHUNK)
        *lines, rest = (rest + data).split(b"\n")
        yield from (os.fsdecode(line.removesuffix(b"\r")) for line in lines)
        if not data:
            if rest:
                yield os.fsdecode(rest.removesuffix(b"\r"))
            return
