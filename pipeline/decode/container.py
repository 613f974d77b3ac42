"""Opening media containers with PyAV, and turning what FFmpeg reports into reasons that are kept per clip."""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from pipeline.errors import MediaAbsent, MediaFailed

Facts = dict[str, str | int | float | bool]  # plain JSON values, kept per clip in the cache
MediaStream = TypeVar("MediaStream", VideoStream, AudioStream)

DECODER = f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"

# What PyAV raises: besides FFmpeg's errors its own, for example an IndexError where a damaged file grows a new track.
PYAV_ERRORS = (av.error.FFmpegError, ValueError, RuntimeError, IndexError)


def explain(error: BaseException) -> str:
    """Return FFmpeg's message without error number and path."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).rstrip(".")


class Closing(ABC):
    """Closed at the end of a ``with`` block."""

    @abstractmethod
    def close(self) -> None:
        """Release what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def media_errors(code: str, what: str) -> Iterator[None]:
    """Turn every exception that PyAV raises inside the block into ``MediaFailed(code, "<what>: <message>")``.

    Raises:
        MediaFailed: one of ``PYAV_ERRORS``.
    """
    try:
        yield
    except PYAV_ERRORS as error:
        raise MediaFailed(code, f"{what}: {explain(error)}") from error


def file_size(path: Path) -> int:
    """Return the size of a media file in bytes.

    Raises:
        MediaFailed: ``missing_file``, ``zero_bytes``; ``not_media`` for a folder or a file that may not be read.
    """
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MediaFailed("missing_file", f"{path.name} does not exist in {path.parent}") from None
    except OSError as error:
        raise MediaFailed("not_media", f"{path.name} cannot be read: {explain(error)}") from error
    if path.is_dir():
        raise MediaFailed("not_media", f"{path.name} is a folder; give a media file")
    if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for somebody to write into it
        raise MediaFailed("not_media", f"{path.name} is no file but a device or a pipe")
    if state.st_size == 0:
        raise MediaFailed("zero_bytes", f"{path.name} has 0 bytes")
    return state.st_size


def open_container(path: Path) -> InputContainer:
    """Open a media file for reading.

    Raises:
        MediaFailed: ``missing_file``, ``zero_bytes``, ``not_media``; ``truncated``, the index of an MP4 is cut off.
    """
    size = file_size(path)
    _check_index(path, size)
    with media_errors("not_media", f"{path.name} ({size} bytes) cannot be opened"):
        # Only local files: a playlist disguised as a video must not reach for the network. Tags in an odd text
        # encoding are no reason to reject a file.
        container = av.open(
            str(path.absolute()), "r", options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    if not container.streams:
        container.close()
        raise MediaFailed("not_media", f"{path.name} ({size} bytes) is a {container.format.name} without any track")
    return container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the first picture track that is not cover art, set to decode on one thread.

    Raises:
        MediaAbsent: ``no_video_stream``.
        MediaFailed: ``decode_error``, FFmpeg has no decoder for it.
    """
    for stream in container.streams.video:
        if not int(stream.disposition) & int(stream.disposition.attached_pic):
            return _on_one_thread(stream, path)
    tracks = ", ".join(stream.type for stream in container.streams)
    raise MediaAbsent("no_video_stream", f"{path.name} has no video track; its tracks: {tracks}")


def audio_stream(container: InputContainer, path: Path) -> AudioStream:
    """Return the first sound track, set to decode on one thread.

    Raises:
        MediaAbsent: ``no_audio_stream``.
        MediaFailed: ``decode_error``, FFmpeg has no decoder for it.
    """
    if container.streams.audio:
        return _on_one_thread(container.streams.audio[0], path)
    tracks = ", ".join(stream.type for stream in container.streams)
    raise MediaAbsent("no_audio_stream", f"{path.name} has no audio track; its tracks: {tracks}")


def _on_one_thread(stream: MediaStream, path: Path) -> MediaStream:
    """Workers are many; each decodes on one thread."""
    context = stream.codec_context
    if context is None:
        raise MediaFailed("decode_error", f"{path.name}: FFmpeg has no decoder for its {stream.type} track")
    context.thread_type = "NONE"
    context.thread_count = 1
    return stream


def read_only(container: InputContainer, stream: VideoStream | AudioStream) -> None:
    """Leave the packets of all other tracks unread."""
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all


def is_flush(packet: Packet[VideoStream] | Packet[AudioStream]) -> bool:
    """Whether this is the empty packet PyAV sends last to drain the decoder."""
    return packet.size == 0 and packet.dts is None and packet.pts is None


def tagged_seconds(stream: VideoStream | AudioStream) -> float | None:
    """Return the duration that Matroska files note per track as ``HH:MM:SS.fraction``, in seconds."""
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _check_index(path: Path, size: int) -> None:
    """Refuse an MP4 whose index is cut off or was never written.

    FFmpeg reads as many tracks as the index still names, and a track that is not among them would pass for absent.
    """
    with _reading(path) as file:
        position = 0
        while position + 8 <= size:
            file.seek(position)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if position == 0 and kind != b"ftyp":
                return
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            end = size if length == 0 else position + max(length, 8)
            if end > size:
                raise MediaFailed(
                    "truncated",
                    f"{path.name} ends at byte {size}, before its index: {kind.decode('latin-1')!r} ends at byte {end}",
                )
            if kind == b"moov":
                return
            position = end


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise MediaFailed("not_media", f"{path.name} cannot be read: {explain(error)}") from error


def riff_missing_share(path: Path, size: int) -> float:
    """Share of a WAV or AVI file that its own size field promises and that is not there, in [0, 1).

    Raises:
        MediaFailed: ``not_media``, the file cannot be read.
    """
    with _reading(path) as file:
        head = file.read(8)
    promised = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or promised in (0, 0xFFFFFFFF):  # a stream written without going back to its header
        return 0.0
    return max(0.0, 1 - size / (promised + 8))
