"""How far a prediction can be trusted: whether the modalities' own predictions bear it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pipeline.errors import UsageError

Level = Literal["consensus", "disagreement", "low"]
LEVELS: tuple[Level, ...] = get_args(Level)
DEFAULT_THRESHOLD = 0.8  # of calibrated confidence, where the method has no threshold of its own


@dataclass(frozen=True)
class Trust:
    """What stands behind one prediction."""

    level: Level
    supports: tuple[str, ...]  # present modalities that alone predict the same class, with at least the threshold
    contradicts: tuple[str, ...]  # present modalities that alone predict another class, with at least the threshold


def check_threshold(threshold: float) -> float:
    """Return a threshold of confidence that is a probability.

    Raises:
        UsageError: it is not.
    """
    if not 0.0 <= threshold <= 1.0:  # also refuses NaN
        raise UsageError(f"threshold is {threshold}; it must be a confidence from 0 to 1, for example 0.8")
    return threshold


@torch.no_grad()
def judge(probs: Tensor, alone: Mapping[str, Tensor], present: Mapping[str, Tensor], threshold: float) -> list[Trust]:
    """Judge the predictions of a batch, one row at a time.

    ``consensus``: the fused prediction has at least the threshold, and so has at least one present modality that
    predicts the same class alone. ``disagreement``: the fused prediction has at least the threshold and no present
    modality supports it so. ``low``: everything else, also a row without any modality, which has no prediction.

    In a model of a single modality, consensus can only mean that this modality's own head agrees with the fused one:
    the two share features and embedding, so it is weaker evidence than the agreement of two modalities.

    Args:
        probs: ``(batch, classes)`` calibrated probabilities of the fused prediction; NaN where there is none.
        alone: per modality ``(batch, classes)`` calibrated probabilities of its own prediction.
        present: per modality ``(batch,)`` bool; what stands in ``alone`` where it is not set is ignored.
        threshold: least confidence that counts, 0..1.

    Returns:
        One value per row; modalities are in the order of ``alone``.

    Raises:
        UsageError: the threshold is not a probability.
    """
    check_threshold(threshold)
    confidence, label = probs.max(-1)
    sure = (confidence >= threshold).tolist()  # NaN compares false
    same: dict[str, list[bool]] = {}
    other: dict[str, list[bool]] = {}
    for name, own in alone.items():
        own_confidence, own_label = own.max(-1)
        counts = (own_confidence >= threshold) & present[name] & ~probs.isnan().any(-1)
        same[name] = (counts & (own_label == label)).tolist()
        other[name] = (counts & (own_label != label)).tolist()
    found = []
    for row, is_sure in enumerate(sure):
        supports = tuple(name for name in alone if same[name][row])
        contradicts = tuple(name for name in alone if other[name][row])
        level: Level = "low" if not is_sure else "consensus" if supports else "disagreement"
        found.append(Trust(level, supports, contradicts))
    return found
