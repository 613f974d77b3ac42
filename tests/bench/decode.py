"""Clips per second of our reader beside the libraries used directly: ``python -m tests.bench.decode [--device cuda]``.

A clip is 32 frames, every second one, from a random start: the frames of exactly these numbers, at the file's own
size, from opening the file to pixels in memory. All take turns in one process, on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from pipeline.decode import DECODERS, VideoReader
from pipeline.decode import scan as scan_module
from pipeline.process import configure_process

MEDIA = Path(__file__).resolve().parents[3] / "shared" / "media"
NUM_FRAMES, STRIDE = 32, 2

Run = Callable[[Path, list[int]], object]


def write_long(path: Path, size: tuple[int, int] = (1920, 1080), num_frames: int = 300) -> Path:
    """A 1080p video with a key frame every 250 frames, as x264 makes them by default."""
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height + 200, width + 400, 3), dtype=np.uint8)
    scene = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30, options={"preset": "veryfast", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for index in range(num_frames):
            x, y = index * 3 % 380, round(90 + 80 * np.sin(index / 9))
            picture = scene[y : y + height, x : x + width].copy()
            centre = (round(width / 2 + width / 3 * np.cos(index / 7)), height // 2)
            cv2.circle(picture, centre, height // 8, (255, 40, index % 255), -1)
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def plain_pyav(path: Path, wanted: list[int]) -> object:
    """Frame-exact by a table of timestamps, as one writes it with PyAV: one pass over the packets, seek, decode."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        pts = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
        targets = {pts[i] for i in wanted}
        container.seek(min(targets), stream=stream)
        frames = []
        for frame in container.decode(stream):
            if frame.pts in targets:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == len(targets):
                break
    return np.stack(frames)


def plain_torchcodec(device: str) -> Run:
    """torchcodec in exact mode."""
    from torchcodec.decoders import VideoDecoder

    def run(path: Path, wanted: list[int]) -> object:
        decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, device=device)
        frames = decoder.get_frames_at(wanted).data
        if device != "cpu":
            torch.cuda.synchronize()
        return frames

    return run


def plain_decord(path: Path, wanted: list[int]) -> object:
    """decord on one thread."""
    import decord

    return decord.VideoReader(str(path), num_threads=1).get_batch(wanted).asnumpy()


def ours(name: str, device: str, *, scanned: bool) -> Run:
    """Our reader; ``scanned``: an earlier clip of the same file has left its scan."""

    def run(path: Path, wanted: list[int]) -> object:
        if not scanned:
            scan_module._scans.clear()
        with VideoReader(path, decoder=name, device=device) as reader:
            frames = reader.read_tensor(wanted) if device != "cpu" else reader.read(wanted)
        if device != "cpu":
            torch.cuda.synchronize()
        return frames

    return run


def subjects(device: str) -> dict[str, Run]:
    """What takes turns: the libraries alone, and our reader with each."""
    here = {name for name, decoder in DECODERS.items() if not decoder.why_not()}
    found: dict[str, Run] = {"PyAV alone": plain_pyav}
    if "torchcodec" in here:
        found["torchcodec alone"] = plain_torchcodec("cpu")
    if "decord" in here:
        found["decord alone"] = plain_decord
    if device != "cpu":
        found["torchcodec alone, GPU"] = plain_torchcodec(device)
    for name in DECODERS:
        if name in here and (device != "cpu" or not name.endswith("cuda")):
            found[f"ours, {name}"] = ours(name, device if name.endswith("cuda") else "cpu", scanned=False)
    found["ours, pyav, file known"] = ours("pyav", "cpu", scanned=True)
    found["ours, auto, file known"] = ours("auto", device, scanned=True)
    return found


def measure(path: Path, runs: dict[str, Run], turns: int) -> dict[str, tuple[float, float]]:
    """Median CPU and wall milliseconds per clip; every turn all of them read the same frames."""
    with VideoReader(path) as reader:
        count = reader.num_frames
    rng = np.random.default_rng(1)
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        start = int(rng.integers(0, count - NUM_FRAMES * STRIDE))
        wanted = list(range(start, start + NUM_FRAMES * STRIDE, STRIDE))
        for name, run in runs.items():
            try:
                before = time.process_time(), time.perf_counter()
                run(path, wanted)
                after = time.process_time(), time.perf_counter()
            except Exception:  # a library that cannot read the file at all
                after = before = (0.0, 0.0)
                cpu[name].append(float("nan"))
                continue
            if turn:  # the first one warms up
                cpu[name].append((after[0] - before[0]) * 1e3)
                wall[name].append((after[1] - before[1]) * 1e3)
    return {name: (_median(cpu[name]), _median(wall[name])) for name in runs}


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values and not np.isnan(values).any() else float("nan")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = subjects(options.device)
    with tempfile.TemporaryDirectory() as folder:
        files = [MEDIA / name for name in ("v_GGSY1Qvo990.mp4", "v_ZNVhz7ctTq0.mp4", "arm_wrestling.mp4", "test.avi")]
        files.append(write_long(Path(folder) / "long_gop_1080p.mp4"))
        found = {path.name: measure(path, runs, options.turns) for path in files if path.is_file()}
    print(f"| ms of CPU per clip (clips per second) | {' | '.join(found)} |")
    print("| --- |" + " ---: |" * len(found))
    for name in runs:
        cells = [
            f"{cpu:.1f} ({1e3 / wall:.1f})" if cpu == cpu else "fails"
            for cpu, wall in (f[name] for f in found.values())
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    configure_process()
    main()
