"""Features -> lines: what the model says of a row, why there is nothing to say, and the mean over a file's windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.fillers import FILLERS
from pipeline.errors import UsageError, choose
from pipeline.headmodel import HeadModel
from pipeline.predictions import ModalityLine, PredictionLine
from pipeline.trust import LEVELS, Trust, judge

ROWS = 512  # of arrays, in one forward pass
NOTHING = "no_usable_track"
NOT_FINITE = "the model's probabilities are not numbers: its features or its weights are out of range"


@dataclass(frozen=True)
class Answers:
    """What a model says of a batch."""

    probs: NDArray[np.float64]  # (batch, classes), calibrated; NaN where no modality is present
    alone: Mapping[str, NDArray[np.float64]]  # per modality (batch, classes)
    present: Mapping[str, NDArray[np.bool_]]  # per modality (batch,)
    trust: Sequence[Trust]  # one per row


def answers(
    head: HeadModel,
    features: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    filler: str,
    threshold: float,
) -> Answers:
    """Ask the model.

    Args:
        head: the model, on any device.
        features: per modality ``(batch, dim)``, on the CPU; modalities may be left out.
        present: per modality ``(batch,)`` bool, of the same modalities.
        filler: what stands in for missing modalities.
        threshold: least confidence that a level of trust counts.
    """
    device = head.get_buffer("temperature").device
    here = {m: values.to(device) for m, values in present.items()}
    said = head({m: values.to(device) for m, values in features.items()}, here, filler)
    alone = {m: said.alone[m] for m in head.modalities if m in here}
    trust = judge(said.probs, alone, here, threshold)
    own = {m: values.double().cpu().numpy() for m, values in alone.items()}
    return Answers(said.probs.double().cpu().numpy(), own, {m: values.numpy() for m, values in present.items()}, trust)


def answered(line: PredictionLine, said: Answers, row: int, head: HeadModel, filler: str) -> PredictionLine:
    """Complete a line with the answer for a row that has at least one modality."""
    probs = said.probs[row].tolist()
    if not np.isfinite(said.probs[row]).all():
        return replace(line, code="not_finite", detail=NOT_FINITE)
    modalities = dict(line.modalities)
    for m, values in said.alone.items():
        if said.present[m][row]:
            own = int(values[row].argmax())
            modalities[m] = replace(modalities[m], label=head.classes[own], confidence=float(values[row, own]))
    missing = any(m not in said.present or not said.present[m][row] for m in head.modalities)
    return replace(
        line,
        status="ok",
        label=head.classes[int(np.argmax(probs))],
        probs=dict(zip(head.classes, probs, strict=True)),
        trust=said.trust[row].level,
        supports=said.trust[row].supports,
        contradicts=said.trust[row].contradicts,
        modalities=modalities,
        filler=filler if missing else None,
        filler_meaning=FILLERS[filler] if missing else None,
    )


def why_nothing(modalities: Mapping[str, ModalityLine]) -> tuple[str, str]:
    """Why there is no prediction: the one reason of all tracks, or that none of them is of use and why."""
    codes = {m.code for m in modalities.values()}
    if len(codes) == 1 and all(m.status == "failed" for m in modalities.values()):
        return codes.pop(), next(iter(modalities.values())).detail
    return NOTHING, "; ".join(f"{name}: {m.detail or m.code}" for name, m in modalities.items())


class Summary:
    """Mean over the windows of a file.

    Args:
        head: the model.
        count: how many windows there are.
    """

    def __init__(self, head: HeadModel, count: int) -> None:
        self.head, self.count, self.failed = head, count, 0
        self.total: NDArray[np.float64] = np.zeros(len(head.classes))
        self.trust: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.why: dict[str, ModalityLine] = {}  # the first reason per modality
        self.first_failed: PredictionLine | None = None
        self.filler: tuple[str | None, str | None] = (None, None)

    def add(self, line: PredictionLine) -> None:
        """Count a window."""
        for name, modality in line.modalities.items():
            self.used[name] += modality.used and line.status == "ok"
            if not modality.used:
                self.why.setdefault(name, modality)
        if line.status != "ok" or line.trust is None:
            self.failed += 1
            self.first_failed = self.first_failed or line
            return
        self.total += np.array([line.probs[name] for name in self.head.classes])
        self.trust[line.trust] += 1
        if line.filler is not None:
            self.filler = (line.filler, line.filler_meaning)

    def line(self, line: PredictionLine) -> PredictionLine:
        """Complete the line of the file."""
        line = replace(
            line,
            modalities={name: self._modality(name) for name in self.head.modalities},
            windows=self.count,
            windows_failed=self.failed,
        )
        good = self.count - self.failed
        if not good:
            first = self.first_failed
            return line if first is None else replace(line, code=first.code, detail=first.detail)
        probs = self.total / good
        return replace(
            line,
            status="ok",
            label=self.head.classes[int(probs.argmax())],
            probs=dict(zip(self.head.classes, probs.tolist(), strict=True)),
            filler=self.filler[0],
            filler_meaning=self.filler[1],
            trust_shares={level: self.trust[level] / good for level in LEVELS},
        )

    def _modality(self, name: str) -> ModalityLine:
        """In how many windows a modality was used, and why not in the first where it was not."""
        why, used = self.why.get(name), self.used[name]
        if why is None:
            return ModalityLine("present", True, windows_used=used)
        return replace(why, used=used > 0, measured={}, windows_used=used)


def predict_arrays(
    head: HeadModel, arrays: Mapping[str, NDArray[Any]], filler: str | None = None
) -> Iterator[PredictionLine]:
    """Yield the prediction for every row of arrays of features.

    Args:
        head: the model.
        arrays: per modality `(rows, dim)` floats; a row of NaN, and a modality that is left out, are missing.
        filler: what stands in for missing modalities; ``None``: the model's own.

    Raises:
        UsageError: arrays that the model cannot read, a row that is NaN or infinite in part, or an unknown filler.
    """
    rows = _checked_rows(head, arrays)
    filler = head.filler if filler is None else choose("filler of this model", filler, head.fillers)
    for start in range(0, rows, ROWS):
        part: dict[str, NDArray[np.float32]] = {}
        present: dict[str, NDArray[np.bool_]] = {}
        for name, values in arrays.items():
            part[name] = np.array(values[start : start + ROWS], np.float32)
            missing = np.asarray(np.isnan(part[name]).all(1))
            odd = np.flatnonzero(~np.isfinite(part[name]).all(1) & ~missing)
            if len(odd):
                raise UsageError(
                    f"row {start + int(odd[0])} of {name} is NaN or infinite in part; a missing row is NaN as a whole"
                )
            part[name][missing] = 0
            present[name] = ~missing
        tensors = {m: torch.from_numpy(values) for m, values in part.items()}
        here = {m: torch.from_numpy(values) for m, values in present.items()}
        said = answers(head, tensors, here, filler, head.threshold)
        for row in range(len(said.trust)):
            there = [m for m in present if present[m][row]]
            lines = {m: ModalityLine("present" if m in there else "absent", m in there) for m in head.modalities}
            line = PredictionLine(f"row {start + row}", "", "file", "failed", modalities=lines)
            if there:
                yield answered(line, said, row, head, filler)
            else:
                yield replace(line, code=NOTHING, detail="no modality of this row is given")


def _checked_rows(head: HeadModel, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Number of rows of arrays that a model can read.

    Raises:
        UsageError: an unknown modality, no array, another dim, or another number of rows.
    """
    for name, values in arrays.items():
        choose("modality of this model", name, head.modalities)
        if values.ndim != 2 or values.shape[1] != head.dims[name]:
            raise UsageError(f"{name} is {values.shape}; it must be (rows, {head.dims[name]})")
    counts = {name: len(values) for name, values in arrays.items()}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items()) or "no array"
        raise UsageError(f"arrays must have the same number of rows; there are {listed}")
    return next(iter(counts.values()))
