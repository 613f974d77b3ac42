"""What the header of a media file says: length and tracks, without decoding anything."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from pipeline.decode.container import audio_stream, explain, file_size, media_errors, open_container, video_stream
from pipeline.errors import MediaAbsent, MediaFailed

# Containers that FFmpeg estimates the length of, from a bit rate or from the last timestamp it happens to find.
_ESTIMATED = ("mp3", "aac", "mpeg", "mpegts", "avi", "h264", "hevc", "m4v")
_MICROSECONDS = 1_000_000
_MOST_BOXES = 10_000  # of one level; more are no index but damage
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # of a stream that was written without going back to its header


@dataclass(frozen=True)
class MediaHeader:
    """Promises of a header; only decoding tells whether they are kept."""

    seconds: float | None  # None: it states no length
    exact: bool  # whether the length is stated, not estimated
    has_video: bool
    has_audio: bool


def read_header(path: Path) -> MediaHeader:
    """Read length and tracks of a media file, or return what was read before if the file has not changed.

    The boxes of MP4 and MOV and the chunks of WAV are read here, which takes a tenth of a millisecond; FFmpeg, which
    decodes the first frames of every file it opens, is asked about all others.

    Raises:
        MediaFailed: ``missing_file``, ``zero_bytes``, ``not_media``; ``truncated``, the file ends before what its
            header names.
    """
    size = file_size(path)
    return _header(path, size, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)  # many clips can lie in one long file
def _header(path: Path, size: int, _modified: int) -> MediaHeader:
    try:
        with path.open("rb") as file:
            head = file.read(12)
            found: MediaHeader | None = None
            if head[4:8] == b"ftyp":
                found = _mp4(file, size, path)
            elif head[:4] == b"RIFF" and head[8:12] == b"WAVE":
                found = _wave(file, size, path)
    except OSError as error:
        raise MediaFailed("not_media", f"{path.name} cannot be read: {explain(error)}") from error
    return found or _asked(path)


def _asked(path: Path) -> MediaHeader:
    """Length and tracks as FFmpeg finds them."""
    with open_container(path) as container, media_errors("not_media", f"{path.name}: reading its header"):
        exact = not any(name in _ESTIMATED for name in container.format.name.split(","))
        seconds = None if container.duration is None else container.duration / _MICROSECONDS
        found = MediaHeader(seconds, exact, has_video=False, has_audio=False)
        with suppress(MediaAbsent):
            video_stream(container, path)
            found = replace(found, has_video=True)
        with suppress(MediaAbsent):
            audio_stream(container, path)
            found = replace(found, has_audio=True)
    return found


def _boxes(file: BinaryIO, begin: int, end: int) -> list[tuple[bytes, int, int]]:
    """Kind, start of the content and end of every box between two positions of an MP4."""
    boxes: list[tuple[bytes, int, int]] = []
    while begin + 8 <= end and len(boxes) < _MOST_BOXES:
        file.seek(begin)
        head = file.read(16)
        length, kind, skip = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, skip = int.from_bytes(head[8:16], "big"), 16
        stop = end if length == 0 else begin + length
        if stop < begin + skip:
            break
        boxes.append((kind, begin + skip, stop))
        begin = stop
    return boxes


def _mp4(file: BinaryIO, size: int, path: Path) -> MediaHeader | None:
    """Length and tracks from the index of an MP4 or MOV; ``None``: ask FFmpeg.

    FFmpeg reads as many tracks as a cut off index still names, and media that end early only show when decoded.
    """
    top = _boxes(file, 0, size)
    for kind, _, end in top:
        if end > size and kind in (b"moov", b"mdat"):
            raise MediaFailed(
                "truncated", f"{path.name} ends at byte {size}; its {kind.decode()!r} should end at byte {end}"
            )
    index = next(((begin, end) for kind, begin, end in top if kind == b"moov"), None)
    if index is None:
        return None
    inside = _boxes(file, *index)
    overall = next((_time(file, begin) for kind, begin, _ in inside if kind == b"mvhd"), 0.0)
    if overall <= 0 or any(kind == b"mvex" for kind, _, _ in inside):  # fragments: their lengths are elsewhere
        return None
    kinds = {_track(file, begin, end) for kind, begin, end in inside if kind == b"trak"}
    if not kinds & {b"vide", b"soun"}:
        return None
    return MediaHeader(overall, exact=True, has_video=b"vide" in kinds, has_audio=b"soun" in kinds)


def _track(file: BinaryIO, begin: int, end: int) -> bytes:
    """What a track holds: ``vide``, ``soun`` or another handler's name."""
    for kind, media_begin, media_end in _boxes(file, begin, end):
        if kind == b"mdia":
            for inner, start, _ in _boxes(file, media_begin, media_end):
                if inner == b"hdlr":
                    file.seek(start + 8)
                    return file.read(4)
    return b""


def _time(file: BinaryIO, begin: int) -> float:
    """Seconds that a movie header states; 0: none."""
    file.seek(begin)
    data = file.read(32)
    if len(data) < 32:
        return 0.0
    if data[0] == 1:
        scale, length, unknown = data[20:24], data[24:32], b"\xff" * 8
    else:
        scale, length, unknown = data[12:16], data[16:20], b"\xff" * 4
    unit = int.from_bytes(scale, "big")
    return int.from_bytes(length, "big") / unit if unit and length != unknown else 0.0


def _wave(file: BinaryIO, size: int, path: Path) -> MediaHeader | None:
    """Length of a WAV file; ``None``: ask FFmpeg."""
    position, bytes_per_second = 12, 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(24)
        kind, length, begin = head[:4], int.from_bytes(head[4:8], "little"), position + 8
        if kind == b"fmt ":
            bytes_per_second = int.from_bytes(head[16:20], "little")
        if kind == b"data":
            if not bytes_per_second:
                return None
            there = (size - begin) / bytes_per_second
            promised = there if length in _UNKNOWN_SIZES else length / bytes_per_second
            missing = promised - there
            if missing > 0.5 or (missing > 0.1 and missing > 0.1 * promised):  # as when its samples are read
                raise MediaFailed(
                    "truncated", f"{path.name}: header states {promised:.2f} s of sound, {there:.2f} s are there"
                )
            return MediaHeader(min(promised, there), exact=True, has_video=False, has_audio=True)
        position = begin + length + length % 2
    return None
