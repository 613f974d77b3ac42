"""Data sets: a name or a manifest's path becomes a Manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.datasets.demo import DemoSpec, recorded_spec, write_demo
from pipeline.datasets.manifest import read_manifest
from pipeline.errors import UsageError, nearest
from pipeline.types import Manifest

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DatasetRequest:
    """Where and how a data set is looked for."""

    work: Path  # workspace; data sets that are made are written below it
    root: Path | None = None  # folder of the media, where it is not the manifest's own
    name: str | None = None  # name that replaces the default one
    outside: bool = False  # allow media outside the root
    workers: int = 1  # processes, for data sets that are made
    progress: Progress | None = None  # called with (done, total) clips while a data set is made
    demo: DemoSpec | None = None  # what to make; None: what is there, or the default


def load_demo(request: DatasetRequest) -> Manifest:
    """Make the embedded synthetic data set below the workspace, or find it there."""
    folder = request.work / "data" / "demo"
    path = write_demo(folder, request.demo or recorded_spec(folder), workers=request.workers, progress=request.progress)
    return read_manifest(path, name="demo")


# What a reader of a data set's numbers must know, one sentence.
NOTES: dict[str, str] = {
    "demo": (
        "The demo data are synthetic: rendered scenes and synthesised sounds, made once from a seed. They show that "
        "everything works and how methods behave under known shifts; they do not rank methods on real video."
    )
}

DATASETS: dict[str, Callable[[DatasetRequest], Manifest]] = {"demo": load_demo}


def load_dataset(dataset: str, request: DatasetRequest) -> Manifest:
    """Return the manifest of a data set known by name, or of a CSV manifest at a path.

    Raises:
        UsageError: neither a known name nor an existing file.
        ManifestError: a manifest with faults; all of them are listed.
    """
    if dataset in DATASETS:
        return DATASETS[dataset](request)
    path = Path(dataset).expanduser()
    if path.is_file():
        return read_manifest(path, request.root, request.name, request.outside)
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"--dataset {dataset}: there is no such file; give the path of a CSV manifest")
    raise UsageError(
        f"{dataset!r} is not a data set.{nearest(dataset, DATASETS)} "
        f"Allowed: {', '.join(DATASETS)}, or the path of a CSV manifest"
    )
