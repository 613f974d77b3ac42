"""Extraction of demo clips: ``python -m tests.bench.extraction``.

Milliseconds per clip by stage and modality, of one process and thread; then clips per second of whole extractions with
all processors, and the share of time that encoders wait for decoding, side by side with nothing decoded ahead.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from cache.places import place_of
from pipeline.datasets.demo import DemoSpec, write_demo
from pipeline.datasets.manifest import read_manifest
from pipeline.decoding import STAGES
from pipeline.extract import extract, open_groups
from pipeline.extraction import ExtractSettings
from pipeline.process import configure_process, default_workers
from pipeline.types import Manifest
from pipeline.units import UnitTask, extract_unit
from pipeline.workers import Progress

SETS = (("video", "flow", "audio"), ("video",), ("flow",), ("audio",))
TURNS = 3


def measure(manifest: Manifest, modalities: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Best milliseconds per clip of each stage over some turns."""
    settings = ExtractSettings(modalities=modalities, ahead=0)
    groups = open_groups(manifest, settings, folder)
    clips = {c.clip_id: c for c in manifest.clips}
    best = dict.fromkeys(STAGES, float("inf"))
    for _ in range(TURNS + 1):  # the first turn loads the backbones
        total = dict.fromkeys(STAGES, 0.0)
        for unit in range(next(iter(groups.values())).num_units):
            ids = next(iter(groups.values())).unit_clips(unit)
            task = UnitTask(
                place_of(folder), manifest.dataset, tuple(clips[i] for i in ids), dict.fromkeys(groups, unit), settings
            )
            for group in groups.values():
                group.forget_unit(unit)
            seconds = extract_unit(task, Progress(lambda amount: None))
            total = {stage: total[stage] + seconds[stage] for stage in STAGES}
        best = {stage: min(best[stage], total[stage] / len(clips) * 1e3) for stage in STAGES}
    return best


def overlap(manifest: Manifest, folder: Path) -> None:
    """Print clips per second and the share of time that encoders wait, of three ways that take turns."""
    workers = default_workers()
    ways = {
        f"{workers} workers, nothing ahead": (0, 0),
        f"{workers} workers, one clip ahead": (1, 0),
        f"{workers} decoders feed one encoder": (1, workers),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    waits: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(TURNS):
        for way, (depth, decoders) in ways.items():
            cache = folder / f"{turn}-{depth}-{decoders}"
            settings = ExtractSettings(ahead=depth)
            report = extract(manifest, settings, cache, workers, lambda _: None, lambda _: None, decoders)
            rates[way].append(report.new_clips / report.seconds)
            waits[way].append(report.stage_seconds["wait"] / (report.encoders * report.seconds))
    print("\n| way | clips per second | encoders wait for decoding |\n| --- | --- | --- |")
    for way in ways:
        print(f"| {way} | {statistics.median(rates[way]):.1f} | {statistics.median(waits[way]):.0%} |")


def main() -> None:
    """Measure and print Markdown tables."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        path = write_demo(Path(name) / "data", DemoSpec(clips_per_class=8), default_workers())
        manifest = read_manifest(path, name="demo")
        print("| modalities | " + " | ".join(STAGES) + " | sum |")
        print("| --- |" + " --- |" * (len(STAGES) + 1))
        for modalities in SETS:
            row = measure(manifest, modalities, Path(name) / "+".join(modalities))
            cells = " | ".join(f"{row[stage]:.1f}" for stage in STAGES)
            print(f"| {' + '.join(modalities)} | {cells} | {sum(row.values()):.1f} |")
        overlap(manifest, Path(name))


if __name__ == "__main__":
    configure_process()
    main()
