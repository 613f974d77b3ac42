"""What a report is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.types import RunResult


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


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """Everything a report shows; only the results are needed."""

    results: Sequence[RunResult]
    probe: Sequence[Probe] = ()
    sample_pictures: Sequence[tuple[str, Sequence[tuple[str, bytes]]]] = ()  # (domain, [(class name, PNG bytes)])
    extraction: ExtractionSummary | None = None
    title: str = "Results"
    notes: Sequence[str] = ()  # plain sentences a reader must know, for example that the data are synthetic
