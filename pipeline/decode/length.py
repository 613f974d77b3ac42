"""How long a file really is: counted from what is in it, never read from a header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.decode.container import audio_stream, is_flush, media_errors, open_container, read_only
from pipeline.decode.frames import FrameFolder
from pipeline.decode.scan import scan_video
from pipeline.errors import MediaError, MediaFailed


@dataclass(frozen=True)
class Length:
    """Length of a file, by one of its tracks."""

    seconds: float
    pieces: int  # frames, or packets of sound, that are really there


def media_length(path: Path, pictures: bool, rate_hz: float | None = None) -> Length | None:
    """Length of a file or of a folder of pictures.

    Frames are the scan's, which opening the frames uses again. Packets of sound are counted, none is decoded.

    Args:
        path: the file or folder.
        pictures: its frames decide where it has some that can be read; else, and otherwise, its sound.
        rate_hz: frame rate of a folder.

    Returns:
        ``None`` for a folder of pictures whose rate is not known.

    Raises:
        MediaAbsent, MediaFailed: it has neither; the reason is that of the track asked for.
    """
    if path.is_dir():
        with FrameFolder(path, min_frames=1) as folder:
            return None if rate_hz is None else Length(folder.num_frames / rate_hz, folder.num_frames)
    if not pictures:
        return _sound_length(path)
    try:
        return _frames_length(path)
    except MediaError as error:
        try:
            return _sound_length(path)
        except MediaError:
            raise error from None


def _frames_length(path: Path) -> Length:
    """From the first frame to the end of the last one, which is shown for the mean time of a frame."""
    times = scan_video(path).times
    frames = len(times)
    return Length(float(times[-1]) * frames / (frames - 1) if frames > 1 else 0.0, frames)


def _sound_length(path: Path) -> Length:
    """From the first packet's time to the end of the last one."""
    first: int | None = None
    behind = packets = 0
    with open_container(path) as container:
        stream = audio_stream(container, path)
        read_only(container, stream)
        with media_errors("truncated", f"{path.name} cannot be read to its end"):
            for packet in container.demux(stream):
                if is_flush(packet):
                    continue
                packets += 1
                if packet.pts is not None:
                    first = packet.pts if first is None else min(first, packet.pts)
                    behind = max(behind, packet.pts + (packet.duration or 0))
        unit = stream.time_base
    if first is None or unit is None:
        raise MediaFailed("no_samples", f"{path.name} has an audio track of {packets} packets without any time")
    return Length(float((behind - first) * unit), packets)
