"""Writes odd and damaged media files for tests; every picture tells its own number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

RATE_HZ = 30
SIZE = (96, 64)  # width, height


def picture(index: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """`(height, width, 3)` a moving texture, so that every frame differs from its neighbours everywhere."""
    width, height = size
    texture = np.random.default_rng(7).integers(0, 256, (height // 8 + 20, width // 8 + 20, 3), dtype=np.uint8)
    shift = index % 17
    part = texture[shift : shift + height // 8 + 1, shift : shift + width // 8 + 1]
    image = np.kron(part, np.ones((8, 8, 1), np.uint8))[:height, :width]
    image = np.ascontiguousarray(image)
    image[:16, :16] = (255, 0, index * 4 % 256)  # the upper left corner is red
    return image


def write_video(
    path: Path,
    num_frames: int = 60,
    *,
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    timestamps: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    rotation: float | None = None,
    sound_seconds: float = 0.0,
) -> Path:
    """Encode a video at 30 frames/s, key frames every 12 frames, with a sine as sound if asked for."""
    with av.open(str(path), "w", options=dict(container_options or {})) as output:
        stream = output.add_stream(codec, rate=RATE_HZ, options={"g": "12", **(options or {})})
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, RATE_HZ)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        sound = output.add_stream("aac", rate=16000, layout="mono") if sound_seconds else None
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
            frame.pts = index if timestamps is None else timestamps[index]
            frame.time_base = Fraction(1, RATE_HZ)
            output.mux(stream.encode(frame))
            if sound is not None and index < sound_seconds * RATE_HZ:  # interleaved, as in real files
                step = 16000 // RATE_HZ
                samples = sine(step, 16000, start=index * step)
                output.mux(sound.encode(_sound_frame(samples[None], 16000, "mono", index * step)))
        output.mux(stream.encode(None))
        if sound is not None:
            output.mux(sound.encode(None))
    return path


def sine(
    num_samples: int, rate_hz: int, *, start: int = 0, hz: float = 440.0, peak: float = 0.5
) -> NDArray[np.float32]:
    """`(num_samples,)` a sine."""
    time = (start + np.arange(num_samples)) / rate_hz
    return (peak * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def _sound_frame(samples: NDArray[np.float32], rate_hz: int, layout: str, pts: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate = rate_hz
    frame.pts = pts
    frame.time_base = Fraction(1, rate_hz)
    return frame


def write_sound(
    path: Path,
    samples: NDArray[np.float32],
    rate_hz: int,
    *,
    codec: str = "pcm_s16le",
    layout: str = "mono",
    pause: tuple[int, int] | None = None,
) -> Path:
    """Encode `(channels, num_samples)` samples.

    Args:
        path: the file.
        samples: full scale -1..1.
        rate_hz: their rate.
        codec: FFmpeg's name of the encoder.
        layout: FFmpeg's name of the channel layout.
        pause: (position, length): from this sample on all timestamps are so much later.
    """
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate_hz, layout=layout)
        for start in range(0, samples.shape[1], 1024):
            later = pause[1] if pause and start >= pause[0] else 0
            block = samples[:, start : start + 1024]
            output.mux(stream.encode(_sound_frame(block, rate_hz, layout, start + later)))
        output.mux(stream.encode(None))
    return path


def remux(source: Path, path: Path, *, kind: str | None = None, options: Mapping[str, str] | None = None) -> Path:
    """Copy the packets of all tracks, or of the first one of a kind, into a new container."""
    with av.open(str(source)) as given, av.open(str(path), "w", options=dict(options or {})) as output:
        streams = {s.index: output.add_stream_from_template(s) for s in given.streams if kind in (None, s.type)}
        for packet in given.demux():
            if packet.dts is not None and packet.stream_index in streams:
                packet.stream = streams[packet.stream_index]
                output.mux(packet)
    return path


def cut_copy(source: Path, path: Path, first_frame: int, *, hide: bool, all_packets: bool = False) -> Path:
    """Cut a video at a frame without encoding it again, as ``ffmpeg -ss`` does.

    Args:
        source: a video of ``write_video``.
        path: the file.
        first_frame: the first frame to be shown; the packets start at the key frame before it.
        hide: an edit list hides the frames before the first; otherwise they are shown too.
        all_packets: the packets start at the beginning of the source.
    """
    options = {"avoid_negative_ts": "disabled"} if hide else {}
    with av.open(str(source)) as given, av.open(str(path), "w", options=options) as output:
        video = given.streams.video[0]
        offset = int(first_frame / RATE_HZ / video.time_base)
        packets = [packet for packet in given.demux(video) if packet.dts is not None]
        start = max(i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= offset)
        stream = output.add_stream_from_template(video)
        for packet in packets[0 if all_packets else start :]:
            packet.pts -= offset
            packet.dts -= offset
            packet.stream = stream
            output.mux(packet)
    return path


def cut_file(source: Path, path: Path, num_bytes: int) -> Path:
    """Keep the first bytes of a file."""
    path.write_bytes(source.read_bytes()[:num_bytes])
    return path


def damage_packet(source: Path, path: Path, number: int) -> Path:
    """Overwrite most of the first video track's packet with this number, in decoding order."""
    with av.open(str(source)) as given:
        packets = [packet for packet in given.demux(given.streams.video[0]) if packet.dts is not None]
        begin, size = packets[number].pos, packets[number].size
    data = bytearray(source.read_bytes())
    data[begin + size // 3 : begin + size] = np.random.default_rng(3).bytes(size - size // 3)
    path.write_bytes(data)
    return path


DAMAGE = ("hole", "random", "bit", "cut")  # ways of `damage_packets`


def packet_places(path: Path) -> list[tuple[int, int]]:
    """Position in the file and size of every packet of the first video track, in decoding order."""
    with av.open(str(path)) as given:
        return [(p.pos, p.size) for p in given.demux(given.streams.video[0]) if p.dts is not None and p.pos is not None]


def damage_packets(source: Path, path: Path, numbers: Sequence[int], how: str, seed: int = 0) -> Path:
    """Damage packets of the first video track, as disks and networks do.

    Args:
        source: a video file.
        path: the damaged copy.
        numbers: of the packets, in decoding order.
        how: ``hole``: zeros from the middle on; ``random``: other bytes from the first third on; ``bit``: one bit
            in the middle is flipped; ``cut``: the second half repeats the first.
        seed: of what is random.
    """
    rng = np.random.default_rng([seed, *numbers])
    data = bytearray(source.read_bytes())
    places = packet_places(source)
    for begin, size in (places[number] for number in numbers):
        middle, end = begin + size // 2, begin + size
        if how == "hole":
            data[middle:end] = bytes(end - middle)
        elif how == "random":
            data[begin + size // 3 : end] = rng.bytes(size - size // 3)
        elif how == "bit":
            data[middle] ^= 1 << int(rng.integers(8))
        else:
            data[middle:end] = data[begin : begin + end - middle]
    path.write_bytes(data)
    return path


def sequential_frames(path: Path) -> list[NDArray[np.uint8]]:
    """All frames as a plain loop over the file gives them: the truth that random access is compared with."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
