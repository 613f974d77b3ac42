"""Layers whose parameters and activations carry a leading ``runs`` axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.randomness import RunStreams, seed_from


class StackedLinear(nn.Module):
    """``runs`` independent linear layers as one batched matrix product.

    Args:
        runs: number of runs.
        in_features: size of the input.
        out_features: size of the output.
        dead_in: the last so many inputs are padding and always zero.
        dead_out: the last so many outputs are padding: they start at zero and nothing moves them.
    """

    def __init__(self, runs: int, in_features: int, out_features: int, dead_in: int = 0, dead_out: int = 0) -> None:
        super().__init__()
        self.live = (in_features - dead_in, out_features - dead_out)
        self.weight = nn.Parameter(torch.empty(runs, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(runs, 1, out_features))

    def initialise(self, run: int, generator: torch.Generator) -> None:
        """Draw one run's parameters as PyTorch's ``nn.Linear`` does: uniform in +-1/sqrt(in_features)."""
        inputs, outputs = self.live
        bound = 1 / math.sqrt(inputs)
        with torch.no_grad():
            for parameter, rows in ((self.weight, inputs), (self.bias, 1)):
                values = torch.rand(rows, outputs, generator=generator, dtype=torch.float64)
                parameter[run] = 0
                parameter[run, :rows, :outputs] = (values * 2 - 1) * bound

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(runs, batch, in)`` to ``(runs, batch, out)``."""
        return torch.baddbmm(self.bias, x, self.weight)


class StackedLayerNorm(nn.Module):
    """Layer normalisation over the last axis with a gain and an offset per run (eps 1e-5)."""

    def __init__(self, runs: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(runs, 1, features))
        self.bias = nn.Parameter(torch.zeros(runs, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(runs, batch, features)`` to the same shape."""
        return nn.functional.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


def initialise(module: nn.Module, seeds: Sequence[int], prefix: str = "") -> None:
    """Draw all linear layers of a stack; run ``r`` depends on ``seeds[r]`` and the layer's name and shape only."""
    for name, layer in module.named_modules():
        if isinstance(layer, StackedLinear):
            for run, seed in enumerate(seeds):
                generator = torch.Generator().manual_seed(seed_from("init", seed, prefix, name))
                layer.initialise(run, generator)


def dropout(x: Tensor, probability: Tensor, streams: RunStreams, step: int, place: str) -> Tensor:
    """Zero elements with each run's probability and scale the rest by 1/(1 - p).

    Args:
        x: ``(runs, batch, dim)``.
        probability: ``(runs,)`` in [0, 1).
        streams: the stack's random streams.
        step: training step.
        place: name of this dropout; two places draw independently.
    """
    p = probability[:, None, None].to(x.dtype)
    limit = (p * 65536 - 32768).clamp(max=32767).to(torch.int16)
    keep = streams.bits(step, place, *x.shape[1:]) >= limit
    return x * (keep / (1 - p))


def unit(x: Tensor) -> Tensor:
    """Return ``x`` divided by its L2 norm over the last axis; a zero vector stays zero and gets a bounded gradient."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 1e-12, norm, torch.ones_like(norm))


def at_least_single(x: Tensor) -> Tensor:
    """Return ``x``, from bfloat16 as float32: what follows must not be computed in eight bits of mantissa."""
    return x.float() if x.dtype == torch.bfloat16 else x
