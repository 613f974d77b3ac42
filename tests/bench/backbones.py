"""What backbones cost: ``python -m tests.bench.backbones [--names a,b] [--device cuda] [--rows 1,8]``.

For each: the network's bare forward pass under inference mode in float32, the same through ``Encoder`` in float32 and
bfloat16, alternated, medians; the share of the machine's own GEMM speed in the same precision; how far bfloat16 moves
the embedding; the peak memory. On a CPU seconds are those of the processor, of one thread. torchvision's own ResNet-18
frame by frame stands beside ours, and PyTorchVideo's SlowFast where it is installed. Weights are random: they cost the
same.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from extractors.backbone import BACKBONES
from extractors.encoder import PRECISIONS, Backbone, Encoder
from extractors.loading import load_network, random_weights
from pipeline.process import configure_process

GEMM = 2048  # side of the matrices whose product is the peak


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: of the processor on a CPU (one thread), of the clock with the queue emptied on a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def gemm_peak(device: torch.device, dtype: torch.dtype, turns: int) -> float:
    """Operations per second of a large matrix product, best of ``turns``."""
    a = torch.randn(GEMM, GEMM, device=device, dtype=dtype)
    best = min(seconds(lambda: a @ a, device) for _ in range(turns + 2))
    return 2 * GEMM**3 / best


def others(backbone: Backbone, x: Tensor, device: torch.device) -> dict[str, Callable[[], object]]:
    """What a user could run instead, on the same input."""
    if backbone.name == "resnet18":
        import torchvision

        theirs = torchvision.models.resnet18().eval().to(device)
        theirs.fc = nn.Identity()
        frames = x.transpose(1, 2).flatten(0, 1)
        return {"torchvision": lambda: theirs(frames)}
    if backbone.name == "slowfast-r50-fair" and importlib.util.find_spec("pytorchvideo"):
        from pytorchvideo.models.hub import slowfast_r50  # type: ignore[import-not-found]

        video = slowfast_r50(pretrained=False).eval().to(device)
        at = torch.linspace(0, x.shape[2] - 1, x.shape[2] // 4).long().to(device)
        slow = x.index_select(2, at)
        return {"pytorchvideo": lambda: video([slow, x])}
    return {}


@torch.inference_mode()
def measure(backbone: Backbone, device: torch.device, rows: int, turns: int, peaks: dict[str, float]) -> None:
    """Print the lines of one backbone."""
    x = torch.randn(rows, *backbone.row_shape(), generator=torch.Generator().manual_seed(0)).to(device)
    bare = load_network(backbone, random_weights(0)).to(device)
    encoders = {
        p: Encoder(
            load_network(backbone, random_weights(0)), device, precision=p, rows=1 if device.type == "cpu" else None
        )
        for p in (PRECISIONS if backbone.bfloat16 else PRECISIONS[:1])
    }
    ways: dict[str, Callable[[], object]] = {"bare forward": lambda: bare(x)}
    ways |= {f"Encoder {p}": (lambda e=e: e(x)) for p, e in encoders.items()}  # type: ignore[misc]
    ways |= others(backbone, x, device)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, run in ways.items():
            spent = seconds(run, device)
            if turn:  # the first turn warms up
                found[name].append(spent)
    base = statistics.median(found["bare forward"])
    for name, values in found.items():
        middle = statistics.median(values)
        peak = peaks["bfloat16" if "bfloat16" in name else "float32"]
        share = backbone.gflops * 1e9 * rows / middle / peak
        print(
            f"| {backbone.name} | {rows} | {name} | {middle / rows * 1e3:.1f} | {rows / middle:.2f} "
            f"| {base / middle:.2f} | {share:.0%} |"
        )
    if len(encoders) == 2:
        exact, low = (encoders[p](x) for p in PRECISIONS)
        cosine = torch.cosine_similarity(exact, low).min()
        error = ((exact - low).norm(dim=1) / exact.norm(dim=1)).max()
        print(f"- {backbone.name}: bfloat16 against float32: cosine {cosine:.6f}, relative difference {error:.1e}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) / 2**30
    print(f"- {backbone.name}: peak memory so far {memory:.2f} GiB")


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default=",".join(b.name for b in BACKBONES.values() if not b.builtin))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", default="1")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    peaks = {p: gemm_peak(device, getattr(torch, p), options.turns) for p in PRECISIONS}
    print(", ".join(f"GEMM {name}: {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items()))
    print("\n| backbone | rows | way | ms per view | views/s | against bare | of GEMM |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.names.split(","):
        for rows in options.rows.split(","):
            measure(BACKBONES[name], device, int(rows), options.turns, peaks)


if __name__ == "__main__":
    configure_process()
    main()
