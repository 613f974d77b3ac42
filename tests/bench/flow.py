"""What optical flow costs: ``python -m tests.bench.flow [--device cuda] [--pairs 64] [--turns 5] [--distances 4]``.

First table: frame pairs per second of every method of ``FLOW_METHODS``, from uint8 RGB frames to 8-bit levels, on real
frames at 128 x 171 and 256 x 341; methods take turns, medians. On a CPU there is one thread and seconds are those of
the processor; on a GPU those of the clock with the queue emptied. RAFT has random weights: they cost the same. Second
table (on a CPU): how far methods are from OpenCV's TV-L1 on real video. Methods that are not installed are left out;
``uv pip install opencv-contrib-python-headless`` brings OpenCV's TV-L1.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from extractors.loading import random_weights
from extractors.optical_flow import FLOW_METHODS, compute_flow, flow_network, quantise
from pipeline.decode import open_frames
from pipeline.process import configure_process

MEDIA = Path(__file__).resolve().parents[2].parent / "shared" / "media"
VIDEOS = ("v_GGSY1Qvo990.mp4", "v_ZNVhz7ctTq0.mp4", "arm_wrestling.mp4", "test.avi")
SIZES = ((128, 171), (256, 341))
ORACLE = "tvl1-opencv"


def real_frames(video: str, pairs: int, short_side: int | None) -> tuple[Tensor, Tensor]:
    """Frames spread over a video and those after them, uint8 (pairs, height, width, 3)."""
    with open_frames(MEDIA / video) as reader:
        first = np.linspace(0, reader.num_frames - 2, pairs + 2).astype(int)[1:-1]
        frames = [reader.read([int(i), int(i) + 1]) for i in first]
    if short_side is not None:
        scale = short_side / min(frames[0].shape[1:3])
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        frames = [np.stack([cv2.resize(f, None, fx=scale, fy=scale, interpolation=way) for f in two]) for two in frames]
    both = torch.from_numpy(np.stack(frames))
    return both[:, 0].contiguous(), both[:, 1].contiguous()


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: of the processor on a CPU (one thread), of the clock with the queue emptied on a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def speeds(names: Sequence[str], device: torch.device, pairs: int, turns: int) -> None:
    """Print the table of speeds."""
    print("\n| method | size | seconds per pair | pairs per second | against DIS medium | against OpenCV's TV-L1 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for height, width in SIZES:
        picked = [t.to(device) for t in real_frames("v_ZNVhz7ctTq0.mp4", pairs, height)]
        assert picked[0].shape[1:3] == (height, width)
        networks = {
            name: flow_network(name, random_weights(0), device) for name in names if FLOW_METHODS[name].needs_weights
        }
        ways = {n: functools.partial(compute_flow, *picked, n, network=networks.get(n)) for n in names}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(turns + 1):
            for name, run in ways.items():
                spent = seconds(run, device)
                if turn:  # the first turn warms up
                    found[name].append(spent / pairs)
        middle = {name: statistics.median(values) for name, values in found.items()}
        for name, spent in middle.items():
            ratios = [f"{middle[to] / spent:.3g}" if to in middle else "" for to in ("dis-medium", ORACLE)]
            print(f"| {name} | {height} x {width} | {spent:.4f} | {1 / spent:.3g} | {' | '.join(ratios)} |", flush=True)


def distances(names: Sequence[str], pairs: int) -> None:
    """Print the table of end-point differences to OpenCV's TV-L1."""
    columns = ["video", "size", "method", "mean difference, px", "its median pair", "95th percentile", "equal levels"]
    print(f"\n| {' | '.join([*columns, 'mean flow, px'])} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for video in VIDEOS:
        for short_side in (None, 256):
            a, b = real_frames(video, pairs, short_side)
            theirs = FLOW_METHODS[ORACLE].compute(a, b, None)
            for name in names:
                flow = FLOW_METHODS[name].compute(a, b, None)
                apart = (flow - theirs).norm(dim=1)
                share = (quantise(flow) == quantise(theirs)).float().mean()
                print(
                    f"| {video} | {a.shape[1]} x {a.shape[2]} | {name} | {apart.mean():.4f} "
                    f"| {apart.mean((1, 2)).median():.4f} | {np.quantile(apart.numpy(), 0.95):.4f} | {share:.1%} "
                    f"| {theirs.norm(dim=1).mean():.2f} |",
                    flush=True,
                )


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default=",".join(n for n, method in FLOW_METHODS.items() if not method.missing()))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, help="of a call; default: 2 on a CPU, 64 on a GPU")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--distances", type=int, default=4, help="pairs per video of the second table; 0: leave it out")
    options = parser.parse_args()
    device = torch.device(options.device)
    names = options.names.split(",")
    if device.type == "cpu":
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
    speeds(names, device, options.pairs or (2 if device.type == "cpu" else 64), options.turns)
    if options.distances and not FLOW_METHODS[ORACLE].missing():
        compared = [n for n in names if not FLOW_METHODS[n].needs_weights and n != ORACLE]
        distances(compared, options.distances)


if __name__ == "__main__":
    configure_process()
    main()
