"""Gradient surgery between two objectives, per run, in two backward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _dot(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor | float:
    """Inner product per run over all parameters, ``(runs,)``; a missing gradient counts as zero."""
    total: Tensor | float = 0.0
    for left, right in zip(a, b, strict=True):
        if left is not None and right is not None:
            total = total + (left * right).flatten(1).sum(1)
    return total


def pcgrad_coefficients(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Weights ``(runs,)`` of two gradients in PCGrad's merged gradient ``a g1 + b g2`` (Yu et al. 2020, algorithm 1).

    Where ``g1.g2 < 0`` each gradient loses its component along the other's original, then both are averaged; as in
    SSMDG's release the squared norms carry 1e-8. Elsewhere both weights are 1/2.
    """
    dot = torch.as_tensor(_dot(first, second))
    conflict = dot.clamp(max=0)
    norm_first, norm_second = torch.as_tensor(_dot(first, first)), torch.as_tensor(_dot(second, second))
    return (1 - conflict / (norm_first + 1e-8)) / 2, (1 - conflict / (norm_second + 1e-8)) / 2


def pcgrad(first: Tensor, second: Tensor, parameters: Sequence[Tensor]) -> None:
    """Set ``.grad`` of every parameter to the merged gradient of two objectives.

    A run in which only one objective is positive gets that objective's plain gradient, not halved (SSMDG's release).
    An objective that is not a number counts as positive, so that the run visibly diverges instead of dropping it.

    Args:
        first: ``(runs,)`` objective of the labeled batch.
        second: ``(runs,)`` objective of the unlabeled batch.
        parameters: all trainable tensors, each with a leading ``runs`` axis.
    """
    gradients_first = torch.autograd.grad(first.sum(), parameters, retain_graph=True, allow_unused=True)
    gradients_second = torch.autograd.grad(second.sum(), parameters, allow_unused=True)
    a, b = pcgrad_coefficients(gradients_first, gradients_second)
    has_first, has_second = ~(first <= 0), ~(second <= 0)
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    a = torch.where(has_first, torch.where(has_second, a, one), zero)
    b = torch.where(has_second, torch.where(has_first, b, one), zero)
    for parameter, g1, g2 in zip(parameters, gradients_first, gradients_second, strict=True):
        axes = (-1,) + (1,) * (parameter.dim() - 1)
        merged: Tensor | None = None
        if g1 is not None:
            merged = g1 * a.view(axes)
        if g2 is not None:
            merged = g2 * b.view(axes) if merged is None else merged.addcmul_(g2, b.view(axes))
        parameter.grad = torch.zeros_like(parameter) if merged is None else merged
