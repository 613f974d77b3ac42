"""Steps per second of head training for stacks of 1, 5, 15 and 45 runs: ``python -m tests.bench.heads``.

Features have the demo's sizes (three modalities of 160 values, 6 classes, 32 + 32 clips a step) and random content.
Stack sizes are measured in turns inside one process; a figure is the median over the turns.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch

from heads.methods import METHODS
from pipeline.bank import FeatureBank
from pipeline.hparams import resolve_hparams
from pipeline.process import configure_process
from pipeline.train import StackTrainer
from pipeline.types import Clip, Manifest, RunSpec

STACKS = (1, 5, 15, 45)
TURNS = 5
STEPS = 6
DIM = 160


def features() -> tuple[Manifest, FeatureBank]:
    """Random features of 3 domains x 6 classes x 40 clips x 5 views."""
    domains, classes = ("a", "b", "c"), tuple("uvwxyz")
    clips = tuple(
        Clip(f"{d}{c}{i}", d, c, "train" if i < 30 else "test", f"{d}{c}{i}", {"video": Path("none")})
        for d in domains
        for c in classes
        for i in range(40)
    )
    rng = np.random.default_rng(0)
    views = ("clean0", "weak0", "weak1", "strong0", "strong1")
    x = {
        m: torch.from_numpy(rng.normal(size=(len(clips), 5, DIM)).astype(np.float16))
        for m in ("video", "flow", "audio")
    }
    present = {m: torch.ones(len(clips), dtype=torch.bool) for m in x}
    return Manifest("bench", classes, domains, clips, Path()), FeatureBank(x, present, views)


def trainer(method: str, runs: int, manifest: Manifest, bank: FeatureBank) -> StackTrainer:
    """A stack of runs with different seeds."""
    specs = [
        RunSpec(
            dataset="bench",
            manifest_digest="",
            classes=manifest.classes,
            sources=("a", "b"),
            target="c",
            modalities=tuple(bank.features),
            features={},
            budget="5",
            method=method,
            hparams=resolve_hparams(method, bank.dims, {}),
            split_seed=seed,
            init_seed=seed,
            steps=10_000,
            batch_labeled=32,
            batch_unlabeled=32,
            eval_every=50,
        )
        for seed in range(runs)
    ]
    return StackTrainer(specs, manifest, bank)


def main() -> None:
    """Measure and print a Markdown table."""
    torch.set_num_threads(1)
    manifest, bank = features()
    print(
        "| method | stack | ms per step | ms per run and step | run-steps per second | per-run cost, stack of 1 = 1 |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for method in METHODS:
        stacks = {runs: trainer(method, runs, manifest, bank) for runs in STACKS}
        seconds: dict[int, list[float]] = {runs: [] for runs in STACKS}
        for turn in range(TURNS + 1):
            for runs, stack in stacks.items():
                start = time.perf_counter()
                stack._train_block(turn * STEPS, STEPS, lambda amount: None)
                if turn:  # the first turn warms up
                    seconds[runs].append((time.perf_counter() - start) / STEPS)
        single = statistics.median(seconds[1])
        for runs in STACKS:
            step = statistics.median(seconds[runs])
            print(
                f"| {method} | {runs} | {step * 1e3:.1f} | {step / runs * 1e3:.2f} | {runs / step:.0f} "
                f"| {step / runs / single:.2f} |"
            )


if __name__ == "__main__":
    configure_process()
    main()
