"""A report of as many runs as the largest published comparison has: ``python -m tests.bench.report [SHAPE]``.

Shapes: ``grid``, 20 methods x 5 budgets x 4 sets of modalities x 3 targets x seeds, with missing modalities of every
run and a map of 1,500 clips in three modalities; ``search``, one setting with over a thousand draws of
hyperparameters; ``cases``, an ablation of 40 cases in 5 budgets. Prints wall seconds, peak memory of the process (with
the runs themselves) and the size of every file.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.process import configure_process
from pipeline.reports import ReportInputs, write_report
from pipeline.types import RunResult, RunSpec

RUNS = 7402
CLASSES = ("put", "take", "open", "close", "wash", "cut", "mix", "pour")
DOMAINS = ("D1", "D2", "D3")
MODALITIES = (("video", "flow", "audio"), ("video", "audio"), ("video", "flow"), ("flow", "audio"))
BUDGETS = ("1", "2", "5", "10", "20")
METHODS = ("erm", "mm", "bmm", "ogm-ge", "pseudolabel", "fixmatch", "freematch", "ssmdg", "supervised")
METHODS += tuple(f"method-{i:02d}" for i in range(11))
FILLERS = ("zero", "mean", "prototype", "renormalise")
EVALUATIONS = 8


@dataclass(frozen=True)
class Row:
    """What a record of missing modalities holds of one subset and filler."""

    kept: tuple[str, ...]
    filler: str
    accuracy: float | None


@dataclass(frozen=True)
class Embedded:
    """What ``pipeline.embeddings`` gives of one run."""

    spec: RunSpec
    values: dict[str, NDArray[np.float32]]
    present: dict[str, NDArray[np.bool_]]
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    prototypes: dict[str, NDArray[np.float32]] | None
    domain_names: tuple[str, ...] = DOMAINS
    total: int = 9000
    seed: int = 0


def embedded(spec: RunSpec, clips: int = 1500) -> Embedded:
    """Embeddings of the sizes that SlowFast, SlowOnly and an audio ResNet have."""
    rng = np.random.default_rng(0)
    labels, domains = rng.integers(len(CLASSES), size=clips), rng.integers(len(DOMAINS), size=clips)
    values, prototypes = {}, {}
    for name, dim in zip(MODALITIES[0], (2304, 2048, 512), strict=True):
        centres = rng.normal(size=(len(DOMAINS), len(CLASSES), dim)) * 0.3 + rng.normal(size=(len(CLASSES), dim)) * 0.5
        values[name] = (centres[domains, labels] + rng.normal(size=(clips, dim))).astype(np.float32)
        prototypes[name] = centres[1:].astype(np.float32)
    present = {name: np.ones(clips, dtype=bool) for name in values}
    return Embedded(spec, values, present, labels, domains, prototypes)


def make_run(method: str, modalities: tuple[str, ...], budget: str, target: str, seed: int, **own: object) -> RunResult:
    """A finished run with the curves of a real one, drawn from its own seed."""
    draw = random.Random(f"{method} {modalities} {budget} {target} {seed} {own}")
    hparams = {f"weight_{i}": 0.1 * i for i in range(12)} | {"learning_rate": 1e-3, "fusion": "concat"} | own
    spec = RunSpec(
        dataset="kitchens",
        manifest_digest="0123abcd",
        classes=CLASSES,
        sources=tuple(domain for domain in DOMAINS if domain != target),
        target=target,
        modalities=modalities,
        features={m: {"backbone": f"{m}-net", "weights": "w", "digest": m * 8} for m in modalities},
        budget=budget,
        method=method,
        hparams=hparams,  # type: ignore[arg-type]
        split_seed=seed,
        init_seed=seed,
        steps=400,
        batch_labeled=32,
        batch_unlabeled=32,
        eval_every=50,
        version="0.1.0",
    )
    level = 0.3 + 0.1 * len(modalities) + 0.05 * BUDGETS.index(budget) + draw.uniform(-0.05, 0.05)

    def curve(height: float) -> list[float | None]:
        return [height * (0.5 + 0.5 * (i + 1) / EVALUATIONS) + draw.uniform(-0.01, 0.01) for i in range(EVALUATIONS)]

    curves: dict[str, list[float | None]] = {"step": [50.0 * (i + 1) for i in range(EVALUATIONS)]}
    for part in ("target", "val"):
        curves |= {f"{part}/{head}": curve(level - 0.05 * i) for i, head in enumerate(("fused", *modalities))}
        curves[f"{part}_class_mean/fused"] = curve(level)
    curves |= {f"loss/labeled/{head}": curve(1.0) for head in ("fused", *modalities)}
    if method not in ("erm", "mm", "bmm", "ogm-ge", "supervised"):
        for group in ("", *(f"class/{name}/" for name in CLASSES), *(f"domain/{name}/" for name in spec.sources)):
            curves |= {f"pseudo/accepted/{group}{kind}": curve(0.8) for kind in ("coverage", "precision")}
    metrics = {name: values[-1] for name, values in curves.items() if name != "step"} | {"selected_step": 400.0}
    counts = tuple(tuple(draw.randint(20, 60) if i == j else draw.randint(0, 9) for j in range(8)) for i in range(8))
    return RunResult(
        spec=spec,
        metrics=metrics,
        curves=curves,
        selection="last",
        environment={"torch": "2.13", "device": "cpu", "runs_in_stack": draw.randint(1, 60)},
        seconds=1.0,
        sizes={"labeled": 80, "unlabeled": 700, "val": 0, "test": 400},
        confusion=counts,
    )


def grid() -> Iterator[RunResult]:
    """Every method in every setting, with as many seeds as there are runs."""
    for seed in itertools.count():
        for cell in itertools.product(METHODS, MODALITIES, BUDGETS, DOMAINS):
            yield make_run(*cell, seed)


def search() -> Iterator[RunResult]:
    """One setting, and draws of two hyperparameters for one method."""
    yield from (make_run("erm", MODALITIES[0], "5", target, seed) for target in DOMAINS for seed in range(2))
    for draw in itertools.count():
        generator = random.Random(draw)
        own = {"learning_rate": 10 ** generator.uniform(-4, -2), "weight_0": generator.uniform(0, 1)}
        for target, seed in itertools.product(DOMAINS, range(2)):
            yield make_run("ssmdg", MODALITIES[0], "5", target, seed, **own)


def cases() -> Iterator[RunResult]:
    """One method with 40 settings of a hyperparameter in every budget."""
    for seed in itertools.count():
        for case, budget, target in itertools.product(range(40), BUDGETS, DOMAINS):
            yield make_run("ssmdg", MODALITIES[0], budget, target, seed, weight_consensus=float(case))


def missing_rows(result: RunResult) -> list[Row]:
    """Accuracies with every subset of a run's modalities."""
    names = result.spec.modalities
    subsets = [kept for size in range(len(names), 0, -1) for kept in itertools.combinations(names, size)]
    found = result.metrics["target/fused"] or 0.0
    return [Row(kept, filler, found * len(kept) / len(names)) for kept in subsets for filler in FILLERS]


SHAPES = {"grid": grid, "search": search, "cases": cases}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="grid", choices=SHAPES)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--output", type=Path, help="Folder that the report stays in.")
    chosen = parser.parse_args()
    configure_process()
    results = list(itertools.islice(SHAPES[chosen.shape](), chosen.runs))
    inputs = ReportInputs(results)
    if chosen.shape == "grid":
        rows = {result.spec.run_id: missing_rows(result) for result in results}
        inputs = replace(inputs, missing_rows=rows, embeddings=[embedded(results[0].spec)])
    elif chosen.shape == "cases":
        names = {r.spec.run_id: f"consensus weight {r.spec.hparams['weight_consensus']}" for r in results}
        inputs = replace(inputs, cases=names)
    print(f"{len(results)} runs made, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        paths = write_report(chosen.output or Path(name), inputs)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"report: {seconds:.1f} s, peak memory {peak:.2f} GiB")
        for path in paths.values():
            print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
