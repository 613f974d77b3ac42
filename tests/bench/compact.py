"""What compact features cost in accuracy and save in time: ``python -m tests.bench.compact --work pipe-work``.

Needs the demo's extracted features. They are widened to the sizes of SlowFast, SlowOnly and the spectrogram ResNet
(2304, 2048, 512) by a random layer with ReLU drawn from a seed: real media, real domain shift, no pretrained network.
The same runs (SSMDG, every target, the same seeds) are trained on the wide features and on their projections; the
difference is paired run by run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pipeline.bank import FeatureBank
from pipeline.compact import compact_bank, fitted_projections, projection_notes
from pipeline.datasets import DatasetRequest, load_dataset
from pipeline.extraction import ExtractSettings
from pipeline.hparams import resolve_hparams
from pipeline.process import configure_process
from pipeline.reports.statistics import mean_and_standard_error
from pipeline.running import load_tables
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunSpec

WIDE = {"video": 2304, "flow": 2048, "audio": 512}
STACK = 5  # runs trained together


def widened(bank: FeatureBank) -> FeatureBank:
    """Features as a random layer with ReLU makes them from the demo's, the same for every clip and view."""
    features = {}
    for name, x in bank.features.items():
        values = x.float()
        rows = values[bank.present[name]][:, 0]
        values = (values - rows.mean(0)) / rows.std(0).clamp(min=1e-6)
        generator = torch.Generator().manual_seed(WIDE[name])
        weight = torch.randn(values.shape[-1], WIDE[name], generator=generator) / values.shape[-1] ** 0.5
        offset = torch.randn(WIDE[name], generator=generator) * 0.5
        wide = (values @ weight + offset).relu() * bank.present[name][:, None, None]
        features[name] = wide.half()
    return FeatureBank(features, bank.present, bank.views)


def specs(manifest: Manifest, bank: FeatureBank, projection: str, seeds: int, steps: int) -> list[RunSpec]:
    """Every target, every seed."""
    dims = [(m, d if projection == "none" else min(d, int(projection.split(":")[1]))) for m, d in bank.dims]
    return [
        RunSpec(
            dataset="demo-wide",
            manifest_digest=manifest.digest,
            classes=manifest.classes,
            sources=tuple(d for d in manifest.domains if d != target),
            target=target,
            modalities=tuple(bank.features),
            features={m: {"digest": "wide"} for m in bank.features},
            budget="5",
            method="ssmdg",
            hparams=resolve_hparams("ssmdg", dims, {}),
            split_seed=seed,
            init_seed=seed,
            steps=steps,
            batch_labeled=32,
            batch_unlabeled=32,
            eval_every=steps,
            projection=projection,
        )
        for target in manifest.domains
        for seed in range(seeds)
    ]


def main() -> None:
    """Train both and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("pipe-work"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--projections", default="none,pca:256,pca-white:256,pca:64")
    options = parser.parse_args()
    torch.set_num_threads(1)
    manifest = load_dataset("demo", DatasetRequest(work=options.work))
    tables = load_tables(manifest, ExtractSettings(), options.work / "cache")
    bank = widened(FeatureBank.from_tables(manifest, tables, torch.device("cpu")))
    found: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    notes: dict[str, tuple[str, ...]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for projection in options.projections.split(","):
            runs = specs(manifest, bank, projection, options.seeds, options.steps)
            projections = fitted_projections(runs, manifest, bank, Path(folder))
            notes[projection] = projection_notes(runs[0], projections)
            start = time.perf_counter()
            for first in range(0, len(runs), STACK):
                stack = runs[first : first + STACK]
                results = StackTrainer(stack, manifest, compact_bank(bank, projections, stack)).train(lambda _: None)
                found.setdefault(projection, []).extend(float(r.metrics["target/fused"] or 0) for r in results)
            seconds[projection] = (time.perf_counter() - start) / len(runs)
    base = options.projections.split(",")[0]
    print(f"| features | target accuracy, % | minus {base}, points, paired | won, tied, lost | s per run | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, values in found.items():
        pairs = [a - b for a, b in zip(values, found[base], strict=True)]
        mean, error = mean_and_standard_error(pairs)
        marks = "-" if name == base else f"{100 * mean:+.1f} ± {100 * (error or 0):.1f}"
        tally = f"{sum(p > 0 for p in pairs)}, {sum(p == 0 for p in pairs)}, {sum(p < 0 for p in pairs)}"
        print(
            f"| {name} | {100 * statistics.mean(values):.1f} | {marks} | {tally} | {seconds[name]:.1f} "
            f"| {seconds[base] / seconds[name]:.1f} |"
        )
    for lines in notes.values():
        for line in lines:
            print(f"- {line}")


if __name__ == "__main__":
    configure_process()
    main()
