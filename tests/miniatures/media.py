"""Pictures, flow and sound that the miniatures are cut from: real files where they are, else synthesised ones."""

from __future__ import annotations

import wave
from functools import lru_cache
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode import open_frames, read_sound
from tests.media_corpus import picture

Pictures = NDArray[np.uint8]

SHARED_MEDIA = Path(__file__).resolve().parents[2].parent / "shared" / "media"
FILMS = ("v_GGSY1Qvo990.mp4", "v_ZNVhz7ctTq0.mp4", "arm_wrestling.mp4")
SOUNDS = ("v_GGSY1Qvo990.mp4", "v_ZNVhz7ctTq0.mp4", "FwVYUHKoLtQ_000034.wav")
SIZE = (112, 64)  # width, height
RATE_HZ = 16_000


@lru_cache(maxsize=4)
def film(number: int, num_frames: int) -> NDArray[np.uint8]:
    """`(num_frames, 64, 112, 3)` RGB pictures of one of three films, forwards and backwards where it is short."""
    path = SHARED_MEDIA / FILMS[number % len(FILMS)]
    if not path.is_file():
        return np.stack([picture(i + 5 * number, SIZE) for i in range(num_frames)])
    with open_frames(path) as reader:
        there = min(reader.num_frames, num_frames)
        frames = np.stack(
            [
                cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA)
                for first in range(0, there, 32)  # few at a time: these are large pictures
                for frame in reader.read(range(first, min(first + 32, there)))
            ]
        )
    back_and_forth = np.concatenate([frames, frames[::-1]])
    return np.asarray(np.resize(back_and_forth, (num_frames, *frames.shape[1:])), np.uint8)


def flow(frames: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """`(ceil(frames / step), 2, height, width)` u and v between every step-th frame and the one ``step`` later."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    last = len(grey) - 1
    motion = [dis.calc(grey[i], grey[min(i + step, last)], None) for i in range(0, len(grey), step)]
    scaled = np.clip(np.rint(np.stack(motion) * (127 / 20) + 128), 0, 255)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 3, 1, 2))


@lru_cache(maxsize=4)
def sound(number: int, seconds: float) -> NDArray[np.int16]:
    """`(seconds * 16000,)` mono samples of one of three sound tracks, repeated where it is short."""
    path = SHARED_MEDIA / SOUNDS[number % len(SOUNDS)]
    if path.is_file():
        samples = read_sound(path, RATE_HZ).samples
    else:
        time = np.arange(4 * RATE_HZ) / RATE_HZ
        samples = (0.4 * np.sin(2 * np.pi * (300 + 100 * number) * time * (1 + time))).astype(np.float32)
    return np.asarray(np.resize((samples * 32767).astype(np.int16), round(seconds * RATE_HZ)), np.int16)


def write_pictures(folder: Path, pictures: NDArray[np.uint8], first: int = 1) -> None:
    """Write ``frame_0000000001.jpg`` and on; RGB or grey."""
    folder.mkdir(parents=True)
    for number, image in enumerate(pictures, first):
        ready = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(".jpg", ready, [cv2.IMWRITE_JPEG_QUALITY, 80])
        assert done
        (folder / f"frame_{number:010d}.jpg").write_bytes(data.tobytes())


def write_wav(path: Path, samples: NDArray[np.int16]) -> None:
    """Write mono 16 bit samples at 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.tobytes())


def write_film(path: Path, pictures: Pictures, rate_hz: int = 24) -> None:
    """Encode RGB or grey pictures as an mp4 without sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate_hz, options={"preset": "ultrafast", "crf": "28"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in pictures:
            rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")))
        output.mux(stream.encode(None))
