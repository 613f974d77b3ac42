"""The only package that opens media files: frames, sound and precomputed flow, exact or with a reason why not."""

from __future__ import annotations

from pathlib import Path

from pipeline.decode.audio import Sound, read_sound
from pipeline.decode.decoders import AUTO, DECODERS, available_decoders, check_decoder
from pipeline.decode.flow import FlowReader, open_flow
from pipeline.decode.frames import FrameFolder, FrameReader
from pipeline.decode.resample import RESAMPLERS, check_resampler
from pipeline.decode.video import VideoReader

__all__ = [
    "AUTO",
    "DECODERS",
    "RESAMPLERS",
    "FlowReader",
    "FrameFolder",
    "FrameReader",
    "Sound",
    "VideoReader",
    "available_decoders",
    "check_decoder",
    "check_resampler",
    "open_flow",
    "open_frames",
    "read_sound",
]


def open_frames(
    path: Path,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    rate_hz: float | None = None,
    numbers: tuple[int, int] | None = None,
    *,
    decoder: str = AUTO,
    device: str = "cpu",
) -> FrameReader:
    """Open a clip's stretch of frames: a folder of numbered pictures, or a video file.

    Args:
        path: the folder or file.
        start_seconds: start of the stretch; ``None``: from the beginning.
        end_seconds: end of the stretch, exclusive; ``None``: to the end.
        rate_hz: frame rate of a folder; files carry their own.
        numbers: of a folder, the stretch as (first number, number behind the last) instead of times.
        decoder: of a file, a name of ``DECODERS``, or ``auto``: the best one here that can read it.
        device: where ``read_tensor`` of the reader puts the pixels, ``cpu`` or ``cuda:N``.

    Raises:
        MediaAbsent: ``no_video_stream``.
        MediaFailed: see ``VideoReader`` and ``FrameFolder``.
        UsageError: no such decoder here.
    """
    if path.is_dir():
        return FrameFolder(path, start_seconds, end_seconds, rate_hz, numbers=numbers, device=device)
    return VideoReader(path, start_seconds, end_seconds, decoder=decoder, device=device)
