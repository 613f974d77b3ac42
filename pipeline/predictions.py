"""One prediction as a record: what is written as JSON lines and CSV, and what tables are made from."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.trust import LEVELS

Status = Literal["ok", "failed"]
DIGITS = 6  # of a probability as it is written


@dataclass(frozen=True)
class ModalityLine:
    """What one modality had to say."""

    status: str  # present, absent, failed or degraded
    used: bool
    code: str = ""
    detail: str = ""
    label: str | None = None  # of its own prediction; None: it is not used
    confidence: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    windows_used: int | None = None  # of a summary: in how many windows it was used

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = {
            "status": self.status,
            "used": self.used,
            "code": self.code,
            "detail": self.detail,
            "label": self.label,
            "confidence": _rounded(self.confidence),
            "measured": dict(self.measured),
        }
        return plain if self.windows_used is None else {**plain, "windows_used": self.windows_used}


@dataclass(frozen=True)
class PredictionLine:
    """The prediction for a file, or for one window of it."""

    file: str
    clip_id: str  # of a manifest; else ""
    level: Literal["file", "window"]
    status: Status
    window: int | None = None  # number of the window, from 0
    start_seconds: float | None = None
    end_seconds: float | None = None  # None: to the end, and nobody looked where that is
    code: str = ""  # why there is no prediction, in a word
    detail: str = ""  # and in a sentence
    label: str | None = None
    probs: Mapping[str, float] = field(default_factory=dict)  # by class, calibrated; of a summary their mean
    trust: str | None = None  # one of ``LEVELS``; None: a summary of windows, or no prediction
    supports: tuple[str, ...] = ()
    contradicts: tuple[str, ...] = ()
    modalities: Mapping[str, ModalityLine] = field(default_factory=dict)
    filler: str | None = None  # what replaced missing modalities; None: nothing was missing
    filler_meaning: str | None = None
    windows: int | None = None  # of a summary: how many there are
    windows_failed: int | None = None  # and how many of them have no prediction
    trust_shares: Mapping[str, float] = field(default_factory=dict)  # of a summary: by level, of predicted windows
    true_label: str = ""  # where a manifest gives one
    settings: Mapping[str, Any] = field(default_factory=dict)  # thresholds that were used

    @property
    def confidence(self) -> float | None:
        """Probability of the label."""
        return None if self.label is None else self.probs[self.label]

    @property
    def missing(self) -> dict[str, ModalityLine]:
        """Modalities that the model did not see."""
        return {name: line for name, line in self.modalities.items() if not line.used}

    def to_json(self) -> dict[str, Any]:
        """Plain values without NaN, in a fixed order."""
        summary = self.windows is not None
        return {
            "file": self.file,
            "clip_id": self.clip_id or None,
            "level": self.level,
            "window": self.window,
            "start_seconds": _rounded(self.start_seconds),
            "end_seconds": _rounded(self.end_seconds),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "label": self.label,
            "confidence": _rounded(self.confidence),
            "probabilities": {name: _rounded(value) for name, value in self.probs.items()},
            "trust": self.trust,
            "supports": list(self.supports),
            "contradicts": list(self.contradicts),
            "modalities": {name: line.to_json() for name, line in self.modalities.items()},
            "filler": self.filler,
            "filler_meaning": self.filler_meaning,
            "windows": self.windows,
            "windows_failed": self.windows_failed,
            "trust_shares": {k: _rounded(v) for k, v in self.trust_shares.items()} if summary else None,
            "true_label": self.true_label or None,
            "settings": dict(self.settings),
        }

    def to_row(self, classes: Sequence[str], modalities: Sequence[str]) -> dict[str, Any]:
        """The same as one level of columns: ``None`` where there is nothing."""
        plain = self.to_json()
        own = ("probabilities", "supports", "contradicts", "modalities", "trust_shares", "settings")
        row = {name: value for name, value in plain.items() if name not in own}
        row["supports"], row["contradicts"] = ";".join(self.supports), ";".join(self.contradicts)
        shares = plain["trust_shares"] or {}
        row |= {f"trust_{level}": shares.get(level) for level in LEVELS}
        for name in modalities:
            line = self.modalities.get(name, ModalityLine("", False)).to_json()
            row |= {f"{name}_{key}": line[key] for key in ("status", "used", "code", "label", "confidence")}
            row |= {f"{name}_detail": line["detail"]}
        row |= dict(self.settings)
        return {**row, **{f"p_{name}": plain["probabilities"].get(name) for name in classes}}


def _rounded(value: float | None) -> float | None:
    """A number that JSON can hold, with so many digits that nobody misses more."""
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def json_line(line: PredictionLine) -> str:
    """One line of JSON, without its end."""
    return json.dumps(line.to_json(), allow_nan=False, ensure_ascii=False)


class CsvLines:
    """Predictions as CSV: a header, then a line each; texts that need it stand in quotes.

    Args:
        classes: of the model.
        modalities: of the model.
    """

    def __init__(self, classes: Sequence[str], modalities: Sequence[str]) -> None:
        self.classes, self.modalities = classes, modalities
        empty = PredictionLine("", "", "file", "failed", settings=dict.fromkeys(SETTINGS))
        self.columns = list(empty.to_row(classes, modalities))

    @property
    def header(self) -> str:
        """The first line, without its end."""
        return self._joined(self.columns)

    def line(self, line: PredictionLine) -> str:
        """One line, without its end."""
        row = line.to_row(self.classes, self.modalities)
        return self._joined(["" if row[name] is None else row[name] for name in self.columns])

    @staticmethod
    def _joined(values: Sequence[object]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(values)
        return text.getvalue()


SETTINGS = ("silence_dbfs", "black_level", "frozen_level", "keep_degraded", "threshold")
