"""Data sets: a name or a manifest's path becomes a Manifest. One file and one line each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.datasets import crema_d, epic, hac, kinetics_sounds, ucf101
from pipeline.datasets.demo import recorded_spec, write_demo
from pipeline.datasets.manifest import read_manifest
from pipeline.datasets.source import Dataset, DatasetRequest, chosen_options
from pipeline.errors import UsageError, nearest
from pipeline.types import Manifest

__all__ = ["DATASETS", "Dataset", "DatasetRequest", "load_dataset"]


def load_demo(request: DatasetRequest) -> Manifest:
    """Make the embedded synthetic data set below the workspace, or find it there."""
    folder = request.work / "data" / "demo"
    path = write_demo(folder, request.demo or recorded_spec(folder), workers=request.workers, progress=request.progress)
    return read_manifest(path, name="demo")


DEMO_NOTE = (
    "The demo data are synthetic: rendered scenes and synthesised sounds, made once from a seed. They show that "
    "everything works and how methods behave under known shifts; they do not rank methods on real video."
)

DATASETS: dict[str, Dataset] = {
    "demo": Dataset("embedded synthetic demo", load_demo, note=DEMO_NOTE),
    "epic": Dataset(epic.TITLE, epic.load_epic, epic.PUBLISHED, epic.LAYOUT, epic.NOTE, epic.OPTIONS, "ssmdg"),
    "hac": Dataset(hac.TITLE, hac.load_hac, hac.PUBLISHED, hac.LAYOUT, hac.NOTE, hac.OPTIONS, "ssmdg"),
    "crema-d": Dataset(
        crema_d.TITLE, crema_d.load_crema_d, crema_d.PUBLISHED, crema_d.LAYOUT, crema_d.NOTE, crema_d.OPTIONS, "bmm"
    ),
    "kinetics-sounds": Dataset(
        kinetics_sounds.TITLE,
        kinetics_sounds.load_kinetics_sounds,
        kinetics_sounds.PUBLISHED,
        kinetics_sounds.LAYOUT,
        kinetics_sounds.NOTE,
        kinetics_sounds.OPTIONS,
        "bmm",
    ),
    "ucf101": Dataset(
        ucf101.TITLE, ucf101.load_ucf101, ucf101.PUBLISHED, ucf101.LAYOUT, ucf101.NOTE, ucf101.OPTIONS, "bmm"
    ),
}


def load_dataset(dataset: str, request: DatasetRequest) -> Manifest:
    """Return the manifest of a data set known by name, or of a manifest (CSV or parquet) at a path.

    Raises:
        UsageError: neither a known name nor an existing file.
        ManifestError: a manifest with faults; all of them are listed.
    """
    if dataset in DATASETS:
        chosen_options(dataset, DATASETS[dataset].options, request.options)
        manifest = DATASETS[dataset].load(request)
        return replace(manifest, notes=(DATASETS[dataset].note, *manifest.notes))
    if request.options:
        raise UsageError(f"--data-option is for data sets known by name: {', '.join(DATASETS)}")
    path = Path(dataset).expanduser()
    if path.is_file():
        return read_manifest(path, request.root, request.name, request.outside)
    if path.suffix or len(path.parts) > 1:
        raise UsageError(
            f"--dataset {dataset}: there is no such file; give the path of a manifest (CSV or parquet), which "
            "`pipe data init DIR` writes from a tree of folders"
        )
    raise UsageError(
        f"{dataset!r} is not a data set.{nearest(dataset, DATASETS)} "
        f"Allowed: {', '.join(DATASETS)}, or the path of a manifest (CSV or parquet)"
    )
