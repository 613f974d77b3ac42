"""What a sweep costs: ``python -m tests.bench.sweep [--work pipe-work] [--clips 10000] [--steps 50]``.

Runs per hour of SSMDG on the demo's cache (after ``pipe demo``), and on synthetic features of EPIC's size (clips x 3
modalities x 2304, 2048, 512; compact by ``pca:256`` and full), for stacks of 1 to 64, in one process; beside it one
process per run, as a shell loop would do it. Then the time per run that is not training: planning, stacking, looking
for what is there, writing and reading results. Training is counted in seconds of the processor, of one thread; the
shell loop in seconds of the processor of all its processes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cache.layout import ClipRecord, Identity, Status
from cache.store import FeatureTable
from pipeline.axes import Axes
from pipeline.bank import FeatureBank
from pipeline.compact import compact_bank, fitted_projections
from pipeline.datasets import DatasetRequest, load_dataset
from pipeline.extraction import ExtractSettings
from pipeline.plan import SweepSettings, plan_runs
from pipeline.process import configure_process
from pipeline.records import ResultStore
from pipeline.running import load_tables, plan_stacks
from pipeline.sweepfile import SweepFile
from pipeline.sweeps import plan_sweep
from pipeline.train import StackTrainer
from pipeline.types import Clip, Manifest, RunSpec

DIMS = {"video": 2304, "flow": 2048, "audio": 512}
VIEWS = ("clean0", "weak0", "weak1", "strong0", "strong1")
CLASSES, DOMAINS = 8, 3


def synthetic(clips: int) -> tuple[Manifest, dict[str, FeatureTable]]:
    """Features of EPIC's size: class and domain means and noise, float16."""
    rng = np.random.default_rng(0)
    labels, domains = rng.integers(CLASSES, size=clips), rng.integers(DOMAINS, size=clips)
    manifest = Manifest(
        dataset="synthetic",
        classes=tuple(f"c{k}" for k in range(CLASSES)),
        domains=tuple(f"D{k}" for k in range(DOMAINS)),
        clips=tuple(
            Clip(
                clip_id=f"clip{i}",
                domain=f"D{domains[i]}",
                label=f"c{labels[i]}",
                split=("train", "train", "train", "val", "test")[i % 5],
                group=f"v{i}",
                media={"video": Path(f"{i}.mp4")},
            )
            for i in range(clips)
        ),
        root=Path(),
    )
    tables = {}
    for modality, dim in DIMS.items():
        means = rng.standard_normal((CLASSES, dim), dtype=np.float32) + rng.standard_normal((1, dim), dtype=np.float32)
        values = np.empty((clips, len(VIEWS), dim), np.float16)
        for view in range(len(VIEWS)):
            values[:, view] = np.maximum(means[labels] + rng.standard_normal((clips, dim), dtype=np.float32), 0)
        identity = Identity("synthetic", modality, "none", "random:0", "pool", VIEWS, 0, {})
        ids = tuple(c.clip_id for c in manifest.clips)
        tables[modality] = FeatureTable(
            identity, modality, ids, values, tuple(ClipRecord(i, Status.PRESENT) for i in ids)
        )
    return manifest, tables


def specs(
    manifest: Manifest, tables: dict[str, FeatureTable], runs: int, steps: int, projection: str
) -> Sequence[RunSpec]:
    """So many SSMDG runs that share a stack: seeds of one target."""
    settings = SweepSettings(
        methods=("ssmdg",),
        targets=manifest.domains[:1],
        seeds=tuple(range(runs)),
        steps=steps,
        eval_every=steps,
        projection=projection,
    )
    return plan_runs(manifest, tables, settings)


def runs_per_hour(
    manifest: Manifest, tables: dict[str, FeatureTable], stacks: Sequence[int], steps: int, full: int, projection: str
) -> None:
    """Print a line per stack size: a run of ``full`` steps and one evaluation, extrapolated from ``steps`` steps."""
    bank = FeatureBank.from_tables(manifest, tables, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        base = None
        for size in stacks:
            runs = specs(manifest, tables, size, steps, projection)
            features = compact_bank(bank, fitted_projections(runs, manifest, bank, Path(folder)), runs)
            trainer = StackTrainer(runs, manifest, features)
            start = time.process_time()
            trainer.train(lambda _: None)
            spent = time.process_time() - start
            short = StackTrainer([replace(r, steps=1, eval_every=1) for r in runs], manifest, features)
            start = time.process_time()
            short.train(lambda _: None)
            once = time.process_time() - start
            per_step = max(spent - once, 1e-9) / (steps - 1)
            seconds = (per_step * full + once) / size
            base = base or seconds
            print(
                f"| {manifest.dataset}, {projection} | {size} | {per_step / size * 1e3:.1f} | {3600 / seconds:.0f} "
                f"| {base / seconds:.2f} |"
            )


def shell_loop(work: Path, steps: int, runs: int) -> float:
    """Seconds per run of one process per run, the features of the demo."""
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "cache"):
            (Path(folder) / name).symlink_to((work / name).resolve(), target_is_directory=True)
        for seed in range(runs):
            axes = [f"seed={seed}", "method=ssmdg", "target=cartoon", f"steps={steps}", f"eval_every={steps}"]
            start = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-m", "pipeline", "sweep", "--dataset", "demo", "--work", folder, *axes],
                check=True,
                capture_output=True,
            )
            end = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
    return statistics.median(spent)


def overhead(manifest: Manifest, tables: dict[str, FeatureTable], runs: int) -> None:
    """Print milliseconds per run of everything around training."""
    axes = Axes({"methods": ("erm", "fixmatch", "ssmdg"), "labels": ("5", "10"), "seeds": tuple(range(runs // 18))})
    sweep = SweepFile("overhead", axes=axes)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        marks = [time.perf_counter()]
        planned, _ = plan_sweep(sweep, manifest, tables, tuple(tables))
        marks.append(time.perf_counter())
        store = ResultStore(results)
        missing = store.missing(planned)
        marks.append(time.perf_counter())
        plan_stacks(missing, manifest, tables, results, 1, "cpu")
        marks.append(time.perf_counter())
        bank = FeatureBank.from_tables(manifest, tables, torch.device("cpu"))
        one = StackTrainer([replace(planned[0], steps=100, eval_every=10)], manifest, bank).train(lambda _: None)[0]
        marks.append(time.perf_counter())
        for spec in planned:
            store.write(replace(one, spec=spec))
        marks.append(time.perf_counter())
        for spec in planned:
            store.read(spec)
        marks.append(time.perf_counter())
    parts = dict(zip(("plan", "missing", "stack", "", "write", "read"), np.diff(marks), strict=True))
    parts.pop("")
    each = ", ".join(f"{name} {spent / len(planned) * 1e3:.2f}" for name, spent in parts.items())
    print(
        f"\n{len(planned)} runs, milliseconds per run: {each}; together {sum(parts.values()) / len(planned) * 1e3:.2f}"
    )


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("pipe-work"))
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--full", type=int, default=400, help="Steps of the run that is extrapolated to.")
    parser.add_argument("--stacks", default="1,4,16,64")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    stacks = [int(n) for n in options.stacks.split(",")]
    demo = load_dataset("demo", DatasetRequest(work=options.work))
    tables = load_tables(demo, ExtractSettings(), options.work / "cache")
    print("| features | runs in a stack | ms per run and step | runs per hour | against a stack of one |")
    print("| --- | --- | --- | --- | --- |")
    runs_per_hour(demo, tables, stacks, options.steps, options.full, "none")
    large, features = synthetic(options.clips)
    runs_per_hour(large, features, stacks, options.steps, options.full, "pca:256")
    runs_per_hour(large, features, [n for n in stacks if n <= 4], options.steps, options.full, "none")
    seconds = shell_loop(options.work, options.full, 3)
    print(f"| demo, one process per run | 1 | - | {3600 / seconds:.0f} | - |")
    overhead(demo, tables, 720)


if __name__ == "__main__":
    configure_process()
    main()
