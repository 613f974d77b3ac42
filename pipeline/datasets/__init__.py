"""Data sets: a name or a manifest's path becomes a Manifest."""

from __future__ import annotations

from pathlib import Path

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


DATASETS: dict[str, Dataset] = {
    "demo": Dataset(
        title="embedded synthetic demo",
        load=load_demo,
        note=(
            "The demo data are synthetic: rendered scenes and synthesised sounds, made once from a seed. They show "
            "that everything works and how methods behave under known shifts; they do not rank methods on real video."
        ),
    ),
}


def load_dataset(dataset: str, request: DatasetRequest) -> Manifest:
    """Return the manifest of a data set known by name, or of a CSV manifest at a path.

    Raises:
        UsageError: neither a known name nor an existing file.
        ManifestError: a manifest with faults; all of them are listed.
    """
    if dataset in DATASETS:
        chosen_options(dataset, DATASETS[dataset].options, request.options)
        return DATASETS[dataset].load(request)
    if request.options:
        raise UsageError(f"--data-option is for data sets known by name: {', '.join(DATASETS)}")
    path = Path(dataset).expanduser()
    if path.is_file():
        return read_manifest(path, request.root, request.name, request.outside)
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"--dataset {dataset}: there is no such file; give the path of a CSV manifest")
    raise UsageError(
        f"{dataset!r} is not a data set.{nearest(dataset, DATASETS)} "
        f"Allowed: {', '.join(DATASETS)}, or the path of a CSV manifest"
    )
