"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.reports.published import PublishedCell
from pipeline.types import RunResult, RunSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MapMethod = Literal["t-SNE", "UMAP"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One linear probe: a linear classifier on cached features, fitted and tested inside one domain."""

    modality: str  # or "all" for all modalities together
    domain: str
    train_n: int  # clips it was fitted on
    test_n: int  # clips it was tested on
    accuracy: float  # 0..1


@dataclass(frozen=True, slots=True)
class ModalityCount:
    """What became of one modality of all clips."""

    modality: str
    present: int
    absent: int  # the file is sound and has no such track
    failed: int  # damaged, empty or too short


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A track that is not used, and why."""

    clip_id: str
    modality: str
    status: Literal["absent", "failed"]
    reason: str


@dataclass(frozen=True, slots=True)
class ExtractionSummary:
    """What the extraction found."""

    counts: Sequence[ModalityCount]
    quarantined: Sequence[Quarantined] = ()


class MissingCell(Protocol):
    """Accuracy of one run had its target clips only some modalities, as ``pipeline.missing`` records it."""

    @property
    def kept(self) -> Sequence[str]:
        """Modalities that are not taken away, in fusion order."""

    @property
    def filler(self) -> str:
        """What stands in for the others."""

    @property
    def accuracy(self) -> float | None:
        """0..1; None where no target clip has any of the kept modalities."""


class EmbeddedRun(Protocol):
    """Learned embeddings of one run, as ``pipeline.embeddings`` computes them."""

    @property
    def spec(self) -> RunSpec:
        """The run."""

    @property
    def values(self) -> Mapping[str, NDArray[np.float32]]:
        """Per modality ``(clips, dim)``."""

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Per modality ``(clips,)``: which clips have it."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """``(clips,)`` positions in the run's classes."""

    @property
    def domains(self) -> NDArray[np.int64]:
        """``(clips,)`` positions in ``domain_names``."""

    @property
    def domain_names(self) -> tuple[str, ...]:
        """All domains of the data set."""

    @property
    def prototypes(self) -> Mapping[str, NDArray[np.float32]] | None:
        """Per modality ``(source domains, classes, dim)``, NaN where there is none yet; None: the method has none."""

    @property
    def total(self) -> int:
        """Clips that these were drawn from."""

    @property
    def seed(self) -> int:
        """Seed of that draw."""


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """Everything a report shows; only the results are needed."""

    results: Sequence[RunResult]
    probe: Sequence[Probe] = ()
    sample_pictures: Sequence[tuple[str, Sequence[tuple[str, bytes]]]] = ()  # (domain, [(class name, PNG bytes)])
    extraction: ExtractionSummary | None = None
    title: str = "Results"
    notes: Sequence[str] = ()  # plain sentences a reader must know, for example that the data are synthetic
    source: str = ""  # paper and table that the runs stand for; empty: none
    not_built: Sequence[str] = ()  # rows of that table whose methods are not in this package
    published: Sequence[PublishedCell] = ()  # numbers of others; each says which tables it stands in
    baseline: str = "erm"  # method of the paired differences
    cases: Mapping[str, str] = field(default_factory=dict)  # run id -> case, in the order in which cases are named
    missing_rows: Mapping[str, Sequence[MissingCell]] = field(default_factory=dict)  # run id -> missing modalities
    embeddings: Sequence[EmbeddedRun] = ()  # runs that are drawn as maps
    map_method: MapMethod = "t-SNE"
