"""Gradient surgery between two objectives, per run, in two backward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heads.losses import add_up

Gradients = Sequence[Tensor | None]


def _square_norm(gradients: Gradients, wanted: Tensor) -> Tensor:
    """Squared L2 norm per run over all parameters, ``(runs,)``, without temporaries of the parameters' size.

    On a CPU runs that are not ``wanted`` ``(runs,)`` bool get 0: reading all gradients once more costs time.
    """
    if not wanted.is_cuda and not wanted.all():
        total = torch.zeros(wanted.shape, dtype=next((g.dtype for g in gradients if g is not None), None))
        for run in wanted.nonzero()[:, 0].tolist():
            norms = [torch.linalg.vector_norm(g[run]).square() for g in gradients if g is not None]
            total[run] = add_up(norms) if norms else 0.0
        return total
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1).square() for g in gradients if g is not None]
    return add_up(norms) if norms else torch.zeros(wanted.shape, device=wanted.device)


def _dot(first: Gradients, second: Gradients) -> Tensor | float:
    """Inner product per run over all parameters, ``(runs,)``; a missing gradient counts as zero.

    A product and a row sum: a batched matrix product needs no temporary, but its rounding depends on the runs' number.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return add_up([(a * b).flatten(1).sum(1) for a, b in pairs]) if pairs else 0.0


def pcgrad_coefficients(first: Gradients, second: Gradients, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weights ``(runs,)`` of two gradients in PCGrad's merged gradient ``a g1 + b g2`` (Yu et al. 2020, algorithm 1).

    Where ``g1.g2 < 0`` each gradient loses its component along the other's original, then both are averaged; as in
    SSMDG's release the squared norms carry 1e-8. Elsewhere both weights are 1/2.

    Args:
        first: gradients of one objective, each with a leading ``runs`` axis.
        second: of the other.
        share: what is given is this share of the true gradients, a power of two.
    """
    square = share**2
    conflict = torch.as_tensor(_dot(first, second)).clamp(max=0) / square
    wanted = ~(conflict == 0)  # also where the product is not a number
    a = (1 - conflict / (_square_norm(first, wanted) / square + 1e-8)) / 2
    b = (1 - conflict / (_square_norm(second, wanted) / square + 1e-8)) / 2
    return a, b


def _scale(gradients: Gradients, factor: Tensor) -> None:
    """Multiply by ``factor`` ``(runs,)`` in place; on a CPU runs whose factor is 1 are not touched if they are many."""
    changed = [] if factor.is_cuda else [(run, value) for run, value in enumerate(factor.tolist()) if value != 1]
    whole = factor.is_cuda or 2 * len(changed) > len(factor)
    for g in gradients:
        if g is None:
            continue
        if whole:
            g.mul_(factor.view((-1,) + (1,) * (g.dim() - 1)))
        for run, value in () if whole else changed:
            g[run].mul_(value)


def pcgrad(first: Tensor, second: Tensor, parameters: Sequence[Tensor]) -> None:
    """Set ``.grad`` of every parameter to the merged gradient of two objectives.

    A run in which only one objective is positive gets that objective's plain gradient, not halved (SSMDG's release).
    An objective that is not a number counts as positive, so that the run visibly diverges instead of dropping it.

    Args:
        first: ``(runs,)`` objective of the labeled batch.
        second: ``(runs,)`` objective of the unlabeled batch.
        parameters: all trainable tensors, each with a leading ``runs`` axis.
    """
    # Of half the objectives: without a conflict these are the merged gradient's parts, and no pass over them is needed.
    gradients_first = torch.autograd.grad((first / 2).sum(), parameters, retain_graph=True, allow_unused=True)
    gradients_second = torch.autograd.grad((second / 2).sum(), parameters, allow_unused=True)
    a, b = pcgrad_coefficients(gradients_first, gradients_second, share=0.5)
    has_first, has_second = ~(first <= 0), ~(second <= 0)
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    _scale(gradients_first, 2 * torch.where(has_first, torch.where(has_second, a, one), zero))
    _scale(gradients_second, 2 * torch.where(has_second, torch.where(has_first, b, one), zero))
    for parameter, g1, g2 in zip(parameters, gradients_first, gradients_second, strict=True):
        if g1 is not None and g2 is not None:
            parameter.grad = g1.add_(g2)
        elif g1 is not None:
            parameter.grad = g1
        else:
            parameter.grad = torch.zeros_like(parameter) if g2 is None else g2
