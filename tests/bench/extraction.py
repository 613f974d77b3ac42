"""Milliseconds per demo clip of extraction, by stage and modality: ``python -m tests.bench.extraction``.

One process, one thread, 60 clips over all domains and classes, everything in memory but the media files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from pipeline.datasets.demo import DemoSpec, write_demo
from pipeline.datasets.manifest import read_manifest
from pipeline.encode import STAGES, ExtractSettings
from pipeline.extract import UnitTask, extract_unit, open_groups
from pipeline.process import configure_process, default_workers
from pipeline.types import Manifest

SETS = (("video", "flow", "audio"), ("video",), ("flow",), ("audio",))
TURNS = 3


def measure(manifest: Manifest, modalities: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Best milliseconds per clip of each stage over some turns."""
    settings = ExtractSettings(modalities=modalities)
    groups = open_groups(manifest, settings, folder)
    clips = {c.clip_id: c for c in manifest.clips}
    best = dict.fromkeys(STAGES, float("inf"))
    for _ in range(TURNS + 1):  # the first turn loads the backbones
        total = dict.fromkeys(STAGES, 0.0)
        for unit in range(next(iter(groups.values())).num_units):
            ids = next(iter(groups.values())).unit_clips(unit)
            task = UnitTask(
                folder, manifest.dataset, tuple(clips[i] for i in ids), dict.fromkeys(groups, unit), settings
            )
            for stage, seconds in extract_unit(task, lambda amount: None).items():
                total[stage] += seconds
        best = {stage: min(best[stage], total[stage] / len(clips) * 1e3) for stage in STAGES}
    return best


def main() -> None:
    """Measure and print a Markdown table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        path = write_demo(Path(name) / "data", DemoSpec(clips_per_class=4), default_workers())
        manifest = read_manifest(path, name="demo")
        print("| modalities | " + " | ".join(STAGES) + " | sum |")
        print("| --- |" + " --- |" * (len(STAGES) + 1))
        for modalities in SETS:
            row = measure(manifest, modalities, Path(name) / "+".join(modalities))
            cells = " | ".join(f"{row[stage]:.1f}" for stage in STAGES)
            print(f"| {' + '.join(modalities)} | {cells} | {sum(row.values()):.1f} |")


if __name__ == "__main__":
    configure_process()
    main()
