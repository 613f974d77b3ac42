"""One mp4 file: H.264 video and AAC sound, the same bytes for the same input."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.errors import PipeError

VIDEO_ENCODERS: dict[str, dict[str, str]] = {
    # With x264's macroblock tree the bytes of a file were seen to depend on what ran before in the process, at widths
    # that are no multiple of 128 pixels.
    "libx264": {"crf": "23", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"},
    "libopenh264": {"threads": "1"},
}
GOP_FRAMES = 32  # longest distance of two key frames
AUDIO_BITS_PER_SECOND = 64_000


def video_encoder() -> str:
    """Return the name of the H.264 encoder to use.

    Raises:
        PipeError: there is no H.264 or no AAC encoder.
    """
    have = [name for name in VIDEO_ENCODERS if _can_encode(name)]
    if not have or not _can_encode("aac"):
        missing = "AAC" if have else "H.264"
        raise PipeError(
            f"the installed PyAV {av.__version__} has no {missing} encoder (looked for "
            f"{', '.join(VIDEO_ENCODERS)} and aac); install the PyAV wheel from PyPI, which brings them: "
            "pip install --force-reinstall av"
        )
    return have[0]


def _can_encode(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:  # what PyAV's UnknownCodecError is
        return False
    return True


def encode(
    path: Path, frames: NDArray[np.uint8], rate_hz: int, sound: NDArray[np.float32] | None, audio_rate_hz: int
) -> None:
    """Write an mp4 file with its index in front.

    Args:
        path: where to write; an old file is replaced.
        frames: ``(frames, size, size, 3)`` RGB with an even side.
        rate_hz: frames per second.
        sound: ``(samples,)`` in -1..1; None writes a file without a sound track.
        audio_rate_hz: samples per second.
    """
    encoder = video_encoder()
    # Without bitexact the file would carry the time and the versions of the libraries.
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        video = cast(VideoStream, container.add_stream(encoder, rate=rate_hz, options=VIDEO_ENCODERS[encoder]))
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.gop_size = GOP_FRAMES
        video.codec_context.flags |= Flags.bitexact
        if sound is not None:
            audio = container.add_stream("aac", rate=audio_rate_hz, layout="mono")
            audio.bit_rate = AUDIO_BITS_PER_SECOND
            audio.codec_context.flags |= Flags.bitexact
        for i, picture in enumerate(frames):
            # OpenCV's conversion is several times cheaper here than setting up a scaler for each file.
            frame = av.VideoFrame.from_ndarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, rate_hz)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            wave = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            wave.sample_rate, wave.pts, wave.time_base = audio_rate_hz, 0, Fraction(1, audio_rate_hz)
            container.mux(audio.encode(wave))
            container.mux(audio.encode(None))
