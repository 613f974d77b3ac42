"""Confidence that can be believed: temperature scaling, and how far confidence and accuracy are apart.

Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 15  # of the expected calibration error, of equal width (as Guo et al.)
FOLDS = 5  # of a cross-fit
FEWEST_CLIPS = 20  # that a temperature is fitted on
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 100.0
_HALVINGS = 60  # of the range of log temperatures: to the last bit


def negative_log_likelihood(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean of ``-log softmax(logits / temperature)[label]`` over the clips, in float64.

    Args:
        logits: ``(clips, classes)``.
        labels: ``(clips,)`` int64.
        temperature: more than 0.
    """
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Temperature with the least negative log likelihood, from ``LEAST_TEMPERATURE`` to ``MOST_TEMPERATURE``.

    The likelihood is convex in one over the temperature, so the sign of its slope is halved down, in float64: the same
    clips in another order give the same answer up to rounding, and no start or step size has a say.

    Args:
        logits: ``(clips, classes)``, finite.
        labels: ``(clips,)`` int64.

    Raises:
        ValueError: there are no clips.
    """
    if len(labels) == 0:
        raise ValueError("a temperature needs clips to be fitted on")
    z = logits.double()
    z = z - z.max(1, keepdim=True).values
    own = z.gather(1, labels[:, None])[:, 0].mean()
    low, high = torch.tensor([LEAST_TEMPERATURE, MOST_TEMPERATURE], dtype=torch.float64).log().tolist()

    def too_cold(log_temperature: float) -> bool:
        """Whether the likelihood still grows with the temperature."""
        probs = torch.softmax(z * torch.tensor(-log_temperature, dtype=torch.float64).exp(), 1)
        return bool((probs * z).sum(1).mean() > own)

    if not too_cold(low):
        return LEAST_TEMPERATURE
    if too_cold(high):
        return MOST_TEMPERATURE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_cold(middle) else (low, middle)
    return float(torch.tensor((low + high) / 2, dtype=torch.float64).exp())


def expected_calibration_error(probs: Tensor, labels: Tensor, bins: int = BINS) -> float | None:
    """Mean distance of confidence and accuracy over bins of confidence, weighted by their clips; 0..1.

    ``sum_b |B_b| / n * |accuracy(B_b) - confidence(B_b)|`` over ``bins`` bins of equal width, ``B_b`` holding the
    clips whose confidence lies in ``((b - 1) / bins, b / bins]`` (Guo et al. 2017, eq. 3).

    Args:
        probs: ``(clips, classes)``.
        labels: ``(clips,)`` int64.
        bins: number of bins.

    Returns:
        The error; ``None`` without clips.
    """
    if len(labels) == 0:
        return None
    confidence, predicted = probs.double().max(1)
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = (predicted == labels).double() - confidence
    return float(torch.zeros(bins, dtype=torch.float64, device=gap.device).index_add_(0, place, gap).abs().sum()) / len(
        labels
    )


def fold_numbers(clip_ids: Sequence[str], folds: int = FOLDS) -> Tensor:
    """Fold of every clip, ``(clips,)`` int64: clips sorted by a digest of their ids and dealt out in turn.

    It depends on the ids alone, not on their order, and all folds differ by at most one clip.
    """
    order = sorted(range(len(clip_ids)), key=lambda i: (hashlib.sha256(clip_ids[i].encode()).digest(), clip_ids[i]))
    numbers = torch.empty(len(clip_ids), dtype=torch.int64)
    numbers[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(clip_ids)) % folds
    return numbers


def cross_fitted(logits: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    """Temperature for every fold, fitted on the clips of all other folds, ``(number of folds,)`` float64.

    A fold whose others are empty gets 1.

    Args:
        logits: ``(clips, classes)``.
        labels: ``(clips,)`` int64.
        folds: ``(clips,)`` int64, 0 to ``FOLDS - 1``.
    """
    found = torch.ones(FOLDS, dtype=torch.float64)
    for fold in range(FOLDS):
        others = folds != fold
        if bool(others.any()):
            found[fold] = fit_temperature(logits[others], labels[others])
    return found


def at_the_end(temperature: float) -> bool:
    """Whether a fitted temperature lies at an end of the range that is searched."""
    return temperature in (LEAST_TEMPERATURE, MOST_TEMPERATURE)
