"""Metrics as functions of predictions, labels and masks; one value per run."""

from __future__ import annotations

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
