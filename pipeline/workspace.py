"""Where a user's work lies, and how data sets are opened and checked: without PyTorch, so it starts at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.console import progress
from pipeline.datacheck import DatasetCheck, check_dataset
from pipeline.datasets import DATASETS, DatasetRequest, load_dataset
from pipeline.datasets.demo import DemoSpec
from pipeline.process import default_workers
from pipeline.types import Manifest


@dataclass(frozen=True)
class Workspace:
    """Where everything of a user's work lies, and how much of the machine it may take."""

    folder: Path
    workers: int = field(default_factory=default_workers)
    cache_root: str = ""  # folder or address of all feature caches; empty: in the workspace

    @property
    def cache(self) -> Path | str:
        """Root of all feature caches: a folder, or an address such as ``s3://bucket/caches``."""
        if "://" in self.cache_root:
            return self.cache_root
        return Path(self.cache_root) if self.cache_root else self.folder / "cache"

    @property
    def shared_cache(self) -> Path | str:
        """The same for processes that may run elsewhere: folders as absolute paths."""
        return self.cache if isinstance(self.cache, str) else self.cache.resolve()

    def results(self, dataset: str) -> Path:
        """Folder of a data set's results."""
        return self.folder / "results" / dataset

    def report(self, dataset: str) -> Path:
        """Folder of a data set's report."""
        return self.folder / "report" / dataset


@dataclass(frozen=True)
class DatasetOptions:
    """How the user named a data set."""

    dataset: str
    root: Path | None = None
    name: str | None = None
    outside: bool = False
    demo: DemoSpec | None = None  # what to make; None: what is there, or the default
    options: Mapping[str, str] = field(default_factory=dict)  # choices that the data set offers


def open_dataset(options: DatasetOptions, work: Workspace) -> Manifest:
    """Read or make a data set, with a progress bar for one that is made."""
    with progress(f"data set {options.dataset}") as bar:
        request = DatasetRequest(
            work=work.folder,
            root=options.root,
            name=options.name,
            outside=options.outside,
            workers=work.workers,
            progress=bar.update,
            demo=options.demo,
            options=options.options,
        )
        return load_dataset(options.dataset, request)


def check_data(manifest: Manifest, dataset: str, deep: bool, work: Workspace) -> DatasetCheck:
    """Look at every file of a data set, with a progress bar."""
    known = DATASETS.get(dataset)
    with progress(f"files of {manifest.dataset}") as bar:
        bar.start(len(manifest.clips))
        published, layout = (known.published, known.layout) if known else ("", "")
        return check_dataset(manifest, published, layout, deep, work.workers, bar.advance)
