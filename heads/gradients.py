"""Gradient surgery between two objectives, per run, in two backward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heads.losses import add_up

Gradients = Sequence[Tensor | None]


def _square_norm(gradients: Gradients) -> Tensor | float:
    """Squared L2 norm per run over all parameters, ``(runs,)``, without temporaries of the parameters' size."""
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1).square() for g in gradients if g is not None]
    return add_up(norms) if norms else 0.0


def _dot(first: Gradients, second: Gradients) -> Tensor | float:
    """Inner product per run over all parameters, ``(runs,)``; a missing gradient counts as zero.

    A product and a row sum: a batched matrix product needs no temporary, but its rounding depends on the runs' number.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return add_up([(a * b).flatten(1).sum(1) for a, b in pairs]) if pairs else 0.0


def pcgrad_coefficients(first: Gradients, second: Gradients) -> tuple[Tensor, Tensor]:
    """Weights ``(runs,)`` of two gradients in PCGrad's merged gradient ``a g1 + b g2`` (Yu et al. 2020, algorithm 1).

    Where ``g1.g2 < 0`` each gradient loses its component along the other's original, then both are averaged; as in
    SSMDG's release the squared norms carry 1e-8. Elsewhere both weights are 1/2.
    """
    conflict = torch.as_tensor(_dot(first, second)).clamp(max=0)
    a = (1 - conflict / (_square_norm(first) + 1e-8)) / 2
    b = (1 - conflict / (_square_norm(second) + 1e-8)) / 2
    return a, b


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
        if g1 is not None and g2 is not None:
            # Not addcmul: a fused multiply-add rounds differently at the ragged end of a tensor.
            parameter.grad = g1.mul_(a.view(axes)).add_(g2.mul_(b.view(axes)))
        elif g1 is not None:
            parameter.grad = g1.mul_(a.view(axes))
        else:
            parameter.grad = torch.zeros_like(parameter) if g2 is None else g2.mul_(b.view(axes))
