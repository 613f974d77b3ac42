"""Small trainable map from a frozen feature to the embedding that every head uses.

On frozen pooled features a prototype or balance term has nothing to move unless something trainable stands before the
embedding; the same adapter stands there for every method.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heads.layers import StackedLayerNorm, StackedLinear


class Adapter(nn.Module):
    """Contract of an adapter.

    Args:
        runs: number of runs.
        dim: feature size.
        width: embedding size of the adapters that change it.
    """

    def __init__(self, runs: int, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim  # of the embedding


class Identity(Adapter):
    """The embedding is the frozen feature."""

    def forward(self, z: Tensor) -> Tensor:
        """Return ``(runs, batch, dim)`` unchanged."""
        return z


class Scale(Adapter):
    """Multiply by a trainable vector that starts at one."""

    def __init__(self, runs: int, dim: int, width: int) -> None:
        super().__init__(runs, dim, width)
        self.scale = nn.Parameter(torch.ones(runs, 1, dim))

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(runs, batch, dim)`` to the same shape."""
        return z * self.scale


class Residual(Adapter):
    """``z + W2 relu(W1 LN(z))`` with ``W2`` zero at the start, so training starts from the frozen feature."""

    def __init__(self, runs: int, dim: int, width: int) -> None:
        super().__init__(runs, dim, width)
        hidden = min(256, dim)
        self.norm = StackedLayerNorm(runs, dim)
        self.reduce = StackedLinear(runs, dim, hidden)
        self.expand_weight = nn.Parameter(torch.zeros(runs, hidden, dim))

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(runs, batch, dim)`` to the same shape."""
        return torch.baddbmm(z, self.reduce(self.norm(z)).relu(), self.expand_weight)


class Project(Adapter):
    """``relu(LN(W z + b))``: every modality to one common width. The embedding's dropout follows it."""

    def __init__(self, runs: int, dim: int, width: int) -> None:
        super().__init__(runs, dim, width)
        self.dim = width
        self.linear = StackedLinear(runs, dim, width)
        self.norm = StackedLayerNorm(runs, width)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(runs, batch, dim)`` to ``(runs, batch, width)``."""
        return self.norm(self.linear(z)).relu()  # type: ignore[no-any-return]


ADAPTERS: dict[str, type[Adapter]] = {
    "none": Identity,
    "scale": Scale,
    "residual": Residual,
    "project": Project,
}
