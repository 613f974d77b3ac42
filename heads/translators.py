"""Cross-modal translators: one network per ordered pair of modalities (SSMDG, arXiv 2602.22917)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from heads.layers import StackedLinear, dropout
from heads.randomness import RunStreams


class Translator(nn.Module):
    """Linear, ReLU, Linear, ReLU, Dropout, Linear: an embedding of one modality to one of another.

    The hidden size is padded to a multiple of 8 with units that stay at zero: the paper's 1028 makes matrix products
    and the optimiser's vectors ragged.
    """

    def __init__(self, runs: int, source_dim: int, hidden: int, target_dim: int) -> None:
        super().__init__()
        dead = -hidden % 8
        padded = hidden + dead
        self.first = StackedLinear(runs, source_dim, padded, dead_out=dead)
        self.second = StackedLinear(runs, padded, padded, dead_in=dead, dead_out=dead)
        self.last = StackedLinear(runs, padded, target_dim, dead_in=dead)

    def forward(
        self, z: Tensor, probability: Tensor | None, streams: RunStreams | None, step: int, place: str
    ) -> Tensor:
        """Map ``(runs, batch, source_dim)`` to ``(runs, batch, target_dim)``; no dropout without its probability."""
        h = self.second(self.first(z).relu()).relu()
        if streams is not None and probability is not None:
            h = dropout(h, probability, streams, step, place)
        return self.last(h)  # type: ignore[no-any-return]


def pair_name(source: str, target: str) -> str:
    """Name of the translator from one modality to another."""
    return f"{source}_to_{target}"


def build_translators(runs: int, dims: Mapping[str, int], hidden: int) -> nn.ModuleDict:
    """Return a translator for every ordered pair of modalities, keyed by ``pair_name``."""
    return nn.ModuleDict(
        {
            pair_name(source, target): Translator(runs, dims[source], hidden, dims[target])
            for source in dims
            for target in dims
            if source != target
        }
    )
