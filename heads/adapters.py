"""Small trainable map from a frozen feature to the embedding that every head uses.

On frozen pooled features a prototype or balance term has nothing to move unless something trainable stands before the
embedding; the same adapter stands there for every method.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heads.layers import StackedLayerNorm, StackedLinear


class Identity(nn.Module):
    """The embedding is the frozen feature."""

    def __init__(self, runs: int, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, z: Tensor) -> Tensor:
        """Return ``(runs, batch, dim)`` unchanged."""
        return z


class Scale(nn.Module):
    """Multiply by a trainable vector that starts at one."""

    def __init__(self, runs: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.scale = nn.Parameter(torch.ones(runs, 1, dim))

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(runs, batch, dim)`` to the same shape."""
        return z * self.scale


class Residual(nn.Module):
    """``z + W2 relu(W1 LN(z))`` with ``W2`` zero at the start, so training starts from the frozen feature."""

    def __init__(self, runs: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        hidden = min(256, dim)
        self.norm = StackedLayerNorm(runs, dim)
        self.reduce = StackedLinear(runs, dim, hidden)
        self.expand_weight = nn.Parameter(torch.zeros(runs, hidden, dim))

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(runs, batch, dim)`` to the same shape."""
        return torch.baddbmm(z, self.reduce(self.norm(z)).relu(), self.expand_weight)


ADAPTERS: dict[str, type[Identity] | type[Scale] | type[Residual]] = {
    "none": Identity,
    "scale": Scale,
    "residual": Residual,
}
