"""Writes damaged and odd media, the same ones each time: ``python -m tests.damaged_media FOLDER``."""

from __future__ import annotations

import argparse
import os
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np

from tests import media_corpus as corpus

CUTS = (0.001, 0.02, 0.1, 0.35, 0.7, 0.95, 0.999)  # shares of a file that are kept
FLIPS = (1, 8, 64)  # bits that are flipped
_HTML = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"


@dataclass
class Sources:
    """Sound files that the damaged ones are made from; written when first asked for."""

    folder: Path
    made: dict[str, Path] = field(default_factory=dict)

    def get(self, name: str) -> Path:
        """Write a file of this name."""
        if name not in self.made:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.made[name] = _MAKERS[name](self.folder / name)
        return self.made[name]


def _video(codec: str, seconds: float = 1.0, **options: object) -> Callable[[Path], Path]:
    return lambda path: corpus.write_video(path, 30, codec=codec, sound_seconds=seconds, **options)  # type: ignore[arg-type]


def _sound(codec: str) -> Callable[[Path], Path]:
    sine = corpus.sine(2 * 22050, 22050)[None]
    return lambda path: corpus.write_sound(path, sine, 22050, codec=codec)


def _webm(path: Path) -> Path:
    quick = {"cpu-used": "8", "deadline": "realtime"}
    return corpus.write_video(path, 30, codec="libvpx-vp9", options=quick)


_MAKERS: dict[str, Callable[[Path], Path]] = {
    "front.mp4": _video("libx264", container_options={"movflags": "faststart"}),
    "back.mp4": _video("libx264"),
    "a.mkv": _video("libx264"),
    "a.avi": _video("mpeg4"),
    "a.ts": _video("mpeg2video"),
    "a.webm": _webm,
    "a.wav": _sound("pcm_s16le"),
    "a.mp3": _sound("libmp3lame"),
    "a.flac": _sound("flac"),
}


def _cut(sources: Sources, folder: Path) -> Iterator[Path]:
    """Truncated files."""
    for name in _MAKERS:
        path = sources.get(name)
        for share in CUTS:
            size = int(path.stat().st_size * share)
            yield corpus.cut_file(path, folder / f"cut-{share:g}-{name}", size)


def _flip(sources: Sources, folder: Path) -> Iterator[Path]:
    """Files with flipped bits, anywhere and in their headers."""
    for name in _MAKERS:
        data = np.frombuffer(sources.get(name).read_bytes(), np.uint8)
        for count in FLIPS:
            for where, end in (("head", min(512, len(data))), ("any", len(data))):
                rng = np.random.default_rng([count, end, *name.encode()])
                flipped = data.copy()
                flipped[rng.integers(0, end, count)] ^= (1 << rng.integers(0, 8, count)).astype(np.uint8)
                path = folder / f"flip-{count}-{where}-{name}"
                path.write_bytes(flipped.tobytes())
                yield path


def _disguised(sources: Sources, folder: Path) -> Iterator[Path]:
    """Files that are not what their names say."""
    for name, other in (("back.mp4", "avi"), ("a.mkv", "mp4"), ("a.wav", "mp4"), ("a.mp3", "wav"), ("a.avi", "webm")):
        path = folder / f"disguised-{name}.{other}"
        path.write_bytes(sources.get(name).read_bytes())
        yield path
    rng = np.random.default_rng(5)
    contents = {
        "empty.mp4": b"",
        "empty.wav": b"",
        "one-byte.mp4": b"\0",
        "text.mp4": b"No video today.\n" * 50,
        "page.mp4": _HTML * 20,
        "page.webm": _HTML,
        "script.mp4": b"#!/bin/sh\nexit 0\n",
        "list.mp4": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/none.ts\n",
        "concat.mp4": b"ffconcat version 1.0\nfile 'other.mp4'\n",
        "noise.mp4": rng.bytes(30_000),
        "noise.ts": rng.bytes(30_000),
        "zeros.mp4": bytes(30_000),
        "zeros.mkv": bytes(30_000),
        "ftyp.mp4": sources.get("back.mp4").read_bytes()[:32] + bytes(5000),
        "boxes.mp4": b"\0\0\0\x08free" * 4000,
        "picture.mp4": cv2.imencode(".jpg", corpus.picture(1))[1].tobytes(),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        yield folder / name


def _tracks(sources: Sources, folder: Path) -> Iterator[Path]:
    """Files with one track, and tracks without anything in them."""
    yield corpus.remux(sources.get("back.mp4"), folder / "sound-only.mp4", kind="audio")
    yield corpus.remux(sources.get("back.mp4"), folder / "video-only.mp4", kind="video")
    yield corpus.remux(sources.get("a.mkv"), folder / "sound-only.mkv", kind="audio")
    for suffix in ("mp4", "mkv", "avi"):
        path = folder / f"zero-length.{suffix}"
        with av.open(str(sources.get("back.mp4"))) as given, av.open(str(path), "w") as output:
            streams = {s.index: output.add_stream_from_template(s) for s in given.streams}
            for packet in given.demux(audio=0):  # the video track stays without frames
                if packet.dts is not None:
                    packet.stream = streams[packet.stream_index]
                    output.mux(packet)
        yield path
    with wave.open(str(folder / "no-samples.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    yield folder / "no-samples.wav"
    data = sources.get("front.mp4").read_bytes()
    (folder / "header-only.mp4").write_bytes(data[: data.find(b"mdat") + 4])
    yield folder / "header-only.mp4"
    (folder / "header-only.avi").write_bytes(sources.get("a.avi").read_bytes()[:2048])
    yield folder / "header-only.avi"


def _patched(source: Path, path: Path, after: bytes, offset: int, value: bytes) -> Path:
    """Overwrite bytes at an offset behind every occurrence of a mark."""
    data = bytearray(source.read_bytes())
    position = data.find(after)
    while position >= 0:
        begin = position + offset
        data[begin : begin + len(value)] = value
        position = data.find(after, begin + len(value))
    path.write_bytes(data)
    return path


def _headers(sources: Sources, folder: Path) -> Iterator[Path]:
    """Absurd lengths, rates and sizes in headers."""
    big, mp4 = b"\x7f\xff\xff\xff", sources.get("back.mp4")
    yield _patched(mp4, folder / "long-movie.mp4", b"mvhd", 20, big)
    yield _patched(mp4, folder / "long-media.mp4", b"mdhd", 20, big)
    yield _patched(mp4, folder / "fast-clock.mp4", b"mdhd", 16, big)
    yield _patched(mp4, folder / "no-clock.mp4", b"mdhd", 16, b"\0\0\0\0")
    yield _patched(mp4, folder / "slow-frames.mp4", b"stts", 16, big)
    yield _patched(mp4, folder / "still-frames.mp4", b"stts", 16, b"\0\0\0\0")
    yield _patched(mp4, folder / "many-frames.mp4", b"stsz", 12, b"\0\xff\xff\xff")
    yield _patched(mp4, folder / "huge.mp4", b"avc1", 28, b"\xff\xff\xff\xff")
    avi = sources.get("a.avi")
    yield _patched(avi, folder / "fast.avi", b"avih", 8, b"\0\0\0\0")
    yield _patched(avi, folder / "rate.avi", b"vids", 24, b"\xff\xff\xff\x7f")
    yield _patched(avi, folder / "huge.avi", b"avih", 40, b"\xff\xff\0\0\xff\xff\0\0")
    wav = sources.get("a.wav")
    yield _patched(wav, folder / "rate.wav", b"fmt ", 12, b"\xff\xff\xff\x7f")
    yield _patched(wav, folder / "no-rate.wav", b"fmt ", 12, b"\0\0\0\0")
    yield _patched(wav, folder / "channels.wav", b"fmt ", 10, b"\xff\xff")
    yield _patched(wav, folder / "long.wav", b"data", 4, b"\xf0\xff\xff\x7f")
    mkv = sources.get("a.mkv")
    yield _patched(mkv, folder / "long.mkv", b"\x44\x89\x88", 3, b"\x7f\xe0\0\0\0\0\0\0")
    yield _patched(mkv, folder / "clock.mkv", b"\x2a\xd7\xb1\x83", 4, b"\xff\xff\xff")


def _sizes(sources: Sources, folder: Path) -> Iterator[Path]:
    """The smallest and very large pictures."""
    yield corpus.write_video(folder / "1x1.avi", 6, size=(1, 1), codec="mjpeg", pixel_format="yuvj420p")
    yield corpus.write_video(folder / "2x2.mp4", 6, size=(2, 2), codec="mpeg4")
    yield corpus.write_video(folder / "8k.mp4", 3, size=(7680, 4320), codec="mpeg4")


def _pictures(sources: Sources, folder: Path) -> Iterator[Path]:
    """Folders of pictures: gaps, truncated and odd ones."""

    def write(name: str, numbers: range, suffix: str = "jpg") -> Path:
        target = folder / name
        target.mkdir()
        for number in numbers:
            cv2.imwrite(str(target / f"frame_{number:06d}.{suffix}"), corpus.picture(number)[:, :, ::-1])
        return target

    yield write("frames", range(1, 7))
    gap = write("frames-gap", range(1, 9))
    (gap / "frame_000004.jpg").unlink()
    yield gap
    for name, change in (
        ("frames-truncated", lambda data: data[: len(data) // 2]),
        ("frames-empty", lambda data: b""),
        ("frames-text", lambda data: _HTML),
        ("frames-flipped", lambda data: data[:300] + bytes([data[300] ^ 64]) + data[301:]),
    ):
        target = write(name, range(1, 7))
        middle = target / "frame_000004.jpg"
        middle.write_bytes(change(middle.read_bytes()))
        yield target
    mixed = write("frames-sizes", range(1, 7))
    cv2.imwrite(str(mixed / "frame_000004.jpg"), corpus.picture(4, (80, 48)))
    yield mixed
    twice = write("frames-twice", range(1, 4))
    cv2.imwrite(str(twice / "frame_2.jpg"), corpus.picture(2))
    yield twice
    (folder / "frames-none").mkdir()
    yield folder / "frames-none"


def _file_system(sources: Sources, folder: Path) -> Iterator[Path]:
    """What a file system can hold besides files."""
    (folder / "folder.mp4").mkdir()
    yield folder / "folder.mp4"
    (folder / "loop-a.mp4").symlink_to(folder / "loop-b.mp4")
    (folder / "loop-b.mp4").symlink_to(folder / "loop-a.mp4")
    yield folder / "loop-a.mp4"
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    yield folder / "dangling.mp4"
    forbidden = folder / "forbidden.mp4"
    forbidden.write_bytes(sources.get("back.mp4").read_bytes())
    forbidden.chmod(0)
    yield forbidden
    yield folder / "missing.mp4"
    yield folder / "back.mp4" / "inside-a-file.mp4"
    (folder / "back.mp4").write_bytes(sources.get("back.mp4").read_bytes())
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.mp4")
        yield folder / "pipe.mp4"


KINDS = (_cut, _flip, _disguised, _tracks, _headers, _sizes, _pictures, _file_system)


def write_damaged(folder: Path) -> list[Path]:
    """Write all of them, over 150; the same bytes in every run with the same FFmpeg.

    Returns:
        What to open, in a fixed order; some of it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = Sources(folder / "sources")
    return [path for kind in KINDS for path in kind(sources, folder)]


def main() -> None:
    """Write them and print their names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    paths = write_damaged(parser.parse_args().folder)
    print("\n".join(path.name for path in paths))
    print(f"{len(paths)} files and folders")


if __name__ == "__main__":
    main()
