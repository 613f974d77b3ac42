"""Metrics as functions of predictions, labels and masks; one value per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def accuracy(predicted: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Share of correct predictions in ``mask``, all ``(runs, clips)``; returns ``(runs,)``, NaN for an empty mask."""
    hit = (predicted == labels) & mask
    return hit.sum(-1) / mask.sum(-1)


def class_mean_accuracy(predicted: Tensor, labels: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Mean over the classes that occur of the share of their clips predicted correctly, ``(runs,)``."""
    members = torch.nn.functional.one_hot(labels, classes).bool() & mask[..., None]
    hits = (members & (predicted == labels)[..., None]).sum(1)
    counts = members.sum(1)
    recall = hits / counts.clamp(min=1)
    return (recall * (counts > 0)).sum(-1) / (counts > 0).sum(-1)


def pseudo_label_quality(labels: Tensor, accepted: Tensor, truth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage and precision of pseudo-labels; all inputs ``(runs, clips)``.

    Returns:
        Share of the clips in ``mask`` that are accepted, and share of the accepted that are right (NaN if none), each
        ``(runs,)``.
    """
    used = accepted & mask
    return used.sum(-1) / mask.sum(-1), (used & (labels == truth)).sum(-1) / used.sum(-1)


def group_counts(groups: Tensor, mask: Tensor, number: int) -> Tensor:
    """Number of clips of every group in ``mask``.

    Args:
        groups: ``(runs, clips)`` int64; values outside the mask are not looked at.
        mask: ``(runs, clips)`` bool.
        number: of groups.

    Returns:
        ``(runs, number)`` int64.
    """
    counts = torch.zeros(groups.shape[0], number, dtype=torch.int64, device=groups.device)
    return counts.scatter_add_(1, torch.where(mask, groups, 0), mask.long())


def confusion_matrix(predicted: Tensor, labels: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Clips in ``mask`` per true and predicted class; the inputs are ``(runs, clips)``.

    Returns:
        ``(runs, classes, classes)`` int64, rows are true classes.
    """
    return group_counts(labels * classes + predicted, mask, classes**2).view(-1, classes, classes)


def quality_per_class(
    labels: Tensor, accepted: Tensor, truth: Tensor, mask: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Coverage and precision of pseudo-labels per class; the inputs are ``(runs, clips)``.

    Both add up to those of all classes: coverage by the number of clips, precision by that of accepted pseudo-labels.

    Returns:
        Of the clips in ``mask`` that are of a class in truth, the share that is accepted; of the accepted ones that are
        pseudo-labeled as this class, the share that is of it. Each ``(runs, classes)``, NaN where there are none.
    """
    used = accepted & mask
    coverage = group_counts(truth, used, classes) / group_counts(truth, mask, classes)
    right = group_counts(labels, used & (labels == truth), classes)
    return coverage, right / group_counts(labels, used, classes)


def quality_per_domain(
    labels: Tensor, accepted: Tensor, truth: Tensor, mask: Tensor, domain: Tensor, domains: int
) -> tuple[Tensor, Tensor]:
    """Coverage and precision of pseudo-labels per domain; the inputs are ``(runs, clips)``.

    Returns:
        What ``pseudo_label_quality`` does, for the clips of every domain: each ``(runs, domains)``, NaN where there are
        none.
    """
    used = accepted & mask
    number = group_counts(domain, used, domains)
    right = group_counts(domain, used & (labels == truth), domains)
    return number / group_counts(domain, mask, domains), right / number


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one evaluation of a stack; NaN where a number is not defined."""

    confusion: Tensor  # (runs, classes, classes) int64 on the target, rows are true classes
    values: dict[str, Tensor] = field(default_factory=dict)  # per curve (runs,)
    # Quantities per group of clips, with the curves they go to: per run a name for each group, and (runs, groups).
    grouped: list[tuple[Sequence[Sequence[str]], Tensor]] = field(default_factory=list)

    def rows(self) -> list[dict[str, float]]:
        """Value of every curve, one dict per run."""
        found: list[dict[str, float]] = [{} for _ in self.confusion]
        for name, value in self.values.items():
            for row, number in zip(found, value.tolist(), strict=True):
                row[name] = number
        for names, values in self.grouped:
            for row, own, numbers in zip(found, names, values.tolist(), strict=True):
                row.update(zip(own, numbers, strict=True))
        return found
