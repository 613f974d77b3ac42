"""What a model does on labelled clips: temperatures, accuracy and calibration by present modalities, trust levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.bundlespec import LevelCount, Measured, PartRecord, Temperature, joined
from pipeline.calibration import (
    BINS,
    FEWEST_CLIPS,
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    at_the_end,
    cross_fitted,
    expected_calibration_error,
    fit_temperature,
)
from pipeline.headmodel import HeadModel, removed
from pipeline.trust import LEVELS, judge

ROWS = 512  # clips per forward pass
Kept = tuple[str, ...]  # modalities in fusion order


@dataclass(frozen=True)
class Examples:
    """Labelled clips with their features, as the cache has them."""

    clip_ids: tuple[str, ...]
    features: Mapping[str, Tensor]  # per modality (clips, dim)
    present: Mapping[str, Tensor]  # per modality (clips,) bool; every clip has at least one
    labels: Tensor  # (clips,) int64


@dataclass(frozen=True)
class Outcome:
    """Uncalibrated logits of a model on examples, for every subset of modalities that a clip has."""

    examples: Examples
    fused: Mapping[Kept, Tensor]  # (clips, classes), NaN where the clip does not have all of the subset
    alone: Mapping[str, Tensor]  # per modality (clips, classes), NaN where the clip does not have it

    def having(self, kept: Kept) -> Tensor:
        """Which clips have all of these modalities, ``(clips,)`` bool."""
        return torch.stack([self.examples.present[m] for m in kept]).all(0)

    def with_some(self, kept: Sequence[str]) -> Tensor:
        """Which clips have at least one of these modalities, ``(clips,)`` bool."""
        return torch.stack([self.examples.present[m] for m in kept]).any(0)

    def probs(self, kept: Sequence[str], temperatures: Mapping[Kept, Tensor] | None) -> Tensor:
        """Fused probabilities ``(clips, classes)`` float64 with all modalities taken away but these.

        Args:
            kept: names.
            temperatures: per subset ``(clips,)``; ``None``: 1.

        Returns:
            NaN where a clip has none of them.
        """
        some = next(iter(self.fused.values()))
        found = torch.full(some.shape, torch.nan, dtype=torch.float64, device=some.device)
        for subset, logits in self.fused.items():
            if not set(subset) <= set(kept):
                continue
            others = [here for m, here in self.examples.present.items() if m in kept and m not in subset]
            exactly = self.having(subset) & ~torch.stack([*others, torch.zeros_like(self.having(subset))]).any(0)
            scale = 1.0 if temperatures is None else temperatures[subset][:, None]
            found = torch.where(exactly[:, None], torch.softmax(logits.double() / scale, 1), found)
        return found


@dataclass(frozen=True)
class Temperatures:
    """Temperature per clip of every prediction."""

    fused: Mapping[Kept, Tensor]  # per subset (clips,)
    alone: Mapping[str, Tensor]  # per modality (clips,)


def run_model(head: HeadModel, examples: Examples, filler: str) -> Outcome:
    """Predict examples with every subset of the modalities that each has.

    Args:
        head: a model whose temperatures are all 1.
        examples: the clips.
        filler: what stands in for modalities that were taken away.
    """
    classes = len(head.classes)
    device = examples.labels.device
    fused: dict[Kept, Tensor] = {}
    alone = {m: torch.full((len(examples.labels), classes), torch.nan, device=device) for m in head.modalities}
    for kept in head.plan.subsets:
        logits = torch.full((len(examples.labels), classes), torch.nan, device=device)
        having = torch.stack([examples.present[m] for m in kept]).all(0).nonzero()[:, 0]
        for rows in torch.split(having, ROWS):
            x = {m: values[rows] for m, values in examples.features.items()}
            here = removed({m: values[rows] for m, values in examples.present.items()}, kept)
            predicted = head(x, here, filler)
            logits[rows] = predicted.logits
            if len(kept) == 1:
                tiny = torch.finfo(torch.float32).tiny
                alone[kept[0]][rows] = predicted.alone[kept[0]].clamp_min(tiny).log()
        fused[kept] = logits
    return Outcome(examples, fused, alone)


def filler_accuracies(head: HeadModel, examples: Examples) -> dict[str, float]:
    """Mean accuracy over all proper subsets of modalities, per filler; empty without clips or with one modality.

    A subset's accuracy is over the clips that have one of its modalities; each subset counts the same.
    """
    subsets = head.plan.subsets[1:]
    if len(examples.labels) == 0:
        return {}
    found = {}
    for filler in head.fillers if subsets else ():
        outcome = run_model(head, examples, filler)
        values = []
        for kept in subsets:
            some = outcome.with_some(kept)
            if bool(some.any()):
                right = outcome.probs(kept, None)[some].argmax(1) == examples.labels[some]
                values.append(float(right.double().mean()))
        found[filler] = sum(values) / len(values)
    return found


def fitted(outcome: Outcome) -> tuple[dict[Kept, Temperature], dict[str, Temperature]]:
    """Temperature of the fused prediction per subset, and of every modality's own prediction."""
    labels = outcome.examples.labels
    fused = {kept: _fitted(x[outcome.having(kept)], labels[outcome.having(kept)]) for kept, x in outcome.fused.items()}
    alone = {m: _fitted(x[outcome.having((m,))], labels[outcome.having((m,))]) for m, x in outcome.alone.items()}
    return fused, alone


def _fitted(logits: Tensor, labels: Tensor) -> Temperature:
    clips = len(labels)
    if clips < FEWEST_CLIPS:
        return Temperature(1.0, clips, f"not fitted: {clips} clips, and fewer than {FEWEST_CLIPS} fix no temperature")
    value = fit_temperature(logits, labels)
    note = f"at the end of the range from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE}" if at_the_end(value) else ""
    return Temperature(value, clips, note)


def constant(fused: Mapping[Kept, Temperature], alone: Mapping[str, Temperature], examples: Examples) -> Temperatures:
    """The same temperatures for all clips."""
    ones = torch.ones(len(examples.labels), dtype=torch.float64, device=examples.labels.device)
    return Temperatures(
        {kept: ones * t.value for kept, t in fused.items()}, {m: ones * t.value for m, t in alone.items()}
    )


def held_out(
    fused: Mapping[Kept, Temperature], alone: Mapping[str, Temperature], outcome: Outcome, folds: Tensor
) -> Temperatures:
    """For every clip the temperatures fitted without its own fold, where there are enough clips to fit any.

    Args:
        fused: the temperatures of the model, per subset.
        alone: the same, per modality.
        outcome: of the model on the clips that these were fitted on.
        folds: ``(clips,)`` int64.
    """

    def of(logits: Tensor, having: Tensor, whole: Temperature) -> Tensor:
        if whole.clips < FEWEST_CLIPS:
            return torch.ones(len(folds), dtype=torch.float64, device=logits.device)
        found = cross_fitted(logits[having], outcome.examples.labels[having], folds[having])
        return found.to(logits.device)[folds]

    return Temperatures(
        {kept: of(x, outcome.having(kept), fused[kept]) for kept, x in outcome.fused.items()},
        {m: of(x, outcome.having((m,)), alone[m]) for m, x in outcome.alone.items()},
    )


def measure(outcome: Outcome, temperatures: Temperatures, threshold: float, part: str) -> PartRecord:
    """Accuracy, calibration and trust levels of a model's predictions.

    Args:
        outcome: the predictions.
        temperatures: of every clip.
        threshold: of trust levels.
        part: which clips these are, in words.
    """
    labels, full = outcome.examples.labels, next(iter(outcome.fused))
    subsets = {}
    for kept in outcome.fused:
        some = outcome.with_some(kept)
        before, after = outcome.probs(kept, None)[some], outcome.probs(kept, temperatures.fused)[some]
        subsets[joined(kept)] = _measured(before, after, labels[some])
    alone, own = {}, {}
    for name, logits in outcome.alone.items():
        own[name] = torch.softmax(logits.double() / temperatures.alone[name][:, None], 1)
        some = outcome.having((name,))
        alone[name] = _measured(torch.softmax(logits.double(), 1)[some], own[name][some], labels[some])
    probs = outcome.probs(full, temperatures.fused)
    levels = [trust.level for trust in judge(probs, own, outcome.examples.present, threshold)]
    right = (probs.argmax(1) == labels).tolist()
    counts: dict[str, LevelCount] = {}
    for level in LEVELS:
        hits = [hit for hit, found in zip(right, levels, strict=True) if found == level]
        share = len(hits) / len(levels) if levels else None
        counts[level] = LevelCount(len(hits), share, sum(hits) / len(hits) if hits else None)
    return PartRecord(part, subsets, alone, counts)


def _measured(before: Tensor, after: Tensor, labels: Tensor) -> Measured:
    clips = len(labels)
    accuracy = float((after.argmax(1) == labels).double().mean()) if clips else None
    errors = [expected_calibration_error(probs, labels, BINS) for probs in (before, after)]
    return Measured(clips, accuracy, errors[0], errors[1])
