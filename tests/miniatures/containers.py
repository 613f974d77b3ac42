"""Writes short clips in the containers and codecs of the published data sets, with sound or without."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tests.miniatures.media import RATE_HZ, Pictures

BLOCK = 1152  # samples; a frame of MP3, more than one of AAC


def write_clip(
    path: Path,
    pictures: Pictures,
    rate_hz: int,
    codec: str,
    samples: NDArray[np.int16] | None = None,
    sound_codec: str = "aac",
) -> None:
    """Encode RGB pictures and, where given, mono sound at 16 kHz; the suffix says which container.

    Args:
        path: the file; its folder is made.
        pictures: `(frames, height, width, 3)`.
        rate_hz: of the pictures.
        codec: FFmpeg's name of the video encoder, for example ``flv`` (Sorenson), ``mpeg4``, ``libx264``.
        samples: the sound.
        sound_codec: FFmpeg's name of the sound's encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The encoder of MP3 starts before time 0; moving everything behind it would hold the first picture.
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"} if path.suffix == ".avi" else {}) as output:
        options = {"preset": "ultrafast", "crf": "28"} if codec == "libx264" else {"qscale": "6"}
        stream = output.add_stream(codec, rate=rate_hz, options=options)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        sound = output.add_stream(sound_codec, rate=RATE_HZ, layout="mono") if samples is not None else None
        position = 0
        for index, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate_hz)
            output.mux(stream.encode(frame))
            while sound is not None and samples is not None and position * rate_hz < (index + 1) * RATE_HZ:
                block = samples[position : position + BLOCK].astype(np.float32) / 32768
                if not block.size:
                    break
                heard = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
                heard.sample_rate, heard.pts, heard.time_base = RATE_HZ, position, Fraction(1, RATE_HZ)
                output.mux(sound.encode(heard))
                position += BLOCK
        output.mux(stream.encode(None))
        if sound is not None:
            output.mux(sound.encode(None))
