"""Fusions of the modalities' embeddings into one prediction, each with what a modality says alone.

An *additive* fusion is a sum of one term per modality; the term is that modality's own prediction. The others come
with separate linear unimodal heads (``HeadNetwork``). An absent modality's embedding is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from heads.layers import StackedLinear

Embeddings = Mapping[str, Tensor]  # per modality (runs, batch, dim)
Drop = Callable[[Tensor], Tensor]  # dropout of a hidden layer, or nothing
Block = tuple[nn.Parameter, slice]  # a parameter (runs, in, out) and the rows of its input axis


class Fusion(nn.Module):
    """Contract of a fusion.

    Args:
        runs: number of runs.
        dims: embedding size per modality, in fusion order.
        classes: number of classes.
        hidden: size of the hidden layer, for fusions that have one.
    """

    additive = False
    fewest_modalities = 1

    def __init__(self, runs: int, dims: Mapping[str, int], classes: int, hidden: int) -> None:
        super().__init__()
        self.modalities = tuple(dims)

    def terms(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """Unimodal logits ``(runs, batch, classes)`` of an additive fusion."""
        raise TypeError(f"{type(self).__name__} is not additive; its unimodal predictions come from separate heads")

    def add(self, terms: Embeddings) -> Tensor:
        """Fused logits ``(runs, batch, classes)`` of an additive fusion from its ``terms``."""
        total = terms[self.modalities[0]]
        for name in self.modalities[1:]:
            total = total + terms[name]
        return total

    def forward(self, embeddings: Embeddings, drop: Drop) -> Tensor:
        """Fused logits ``(runs, batch, classes)``."""
        return self.add(self.terms(embeddings))

    def blocks(self, modality: str) -> list[Block]:
        """The weights that multiply this modality's embedding: what OGM-GE modulates beside the adapter."""
        raise TypeError(f"{type(self).__name__} does not define blocks()")


class _Rows:
    """Where each modality's embedding lies in the concatenation."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        self.rows: dict[str, slice] = {}
        start = 0
        for name, dim in dims.items():
            self.rows[name] = slice(start, start + dim)
            start += dim
        self.total = start


class Concat(Fusion):
    """Linear, ReLU, dropout, linear on the concatenation (SSMDG's fused classifier)."""

    def __init__(self, runs: int, dims: Mapping[str, int], classes: int, hidden: int) -> None:
        super().__init__(runs, dims, classes, hidden)
        self.place = _Rows(dims)
        self.first = StackedLinear(runs, self.place.total, hidden)
        self.last = StackedLinear(runs, hidden, classes)

    def forward(self, embeddings: Embeddings, drop: Drop) -> Tensor:
        """Fused logits ``(runs, batch, classes)``."""
        joined = torch.cat([embeddings[name] for name in self.modalities], -1)
        return self.last(drop(self.first(joined).relu()))  # type: ignore[no-any-return]

    def blocks(self, modality: str) -> list[Block]:
        """Rows of the first layer."""
        return [(self.first.weight, self.place.rows[modality])]


class ConcatLinear(Fusion):
    """One linear layer on the concatenation; a modality's term is its block of the product and an equal share of b."""

    additive = True

    def __init__(self, runs: int, dims: Mapping[str, int], classes: int, hidden: int) -> None:
        super().__init__(runs, dims, classes, hidden)
        self.place = _Rows(dims)
        self.linear = StackedLinear(runs, self.place.total, classes)

    def terms(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """``W_m h_m + b / M``."""
        share = self.linear.bias / len(self.modalities)
        return {
            name: torch.baddbmm(share, embeddings[name], self.linear.weight[:, self.place.rows[name]])
            for name in self.modalities
        }

    def blocks(self, modality: str) -> list[Block]:
        """Rows of the layer."""
        return [(self.linear.weight, self.place.rows[modality])]


class Sum(Fusion):
    """Sum of one linear layer per modality."""

    additive = True

    def __init__(self, runs: int, dims: Mapping[str, int], classes: int, hidden: int) -> None:
        super().__init__(runs, dims, classes, hidden)
        self.linear = nn.ModuleDict({name: StackedLinear(runs, dim, classes) for name, dim in dims.items()})

    def terms(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """``W_m h_m + b_m``."""
        return {name: self.linear[name](embeddings[name]) for name in self.modalities}

    def blocks(self, modality: str) -> list[Block]:
        """The modality's layer."""
        return [(self.linear[modality].get_parameter("weight"), slice(None))]


class Decision(Sum):
    """Mean of the unimodal logits."""

    def add(self, terms: Embeddings) -> Tensor:
        """Mean over the modalities."""
        return super().add(terms) / len(self.modalities)


class FiLM(Fusion):
    """Feature-wise linear modulation (Perez et al. 2018): ``W(gamma h + beta)``.

    ``h`` is the first modality's embedding in fusion order; ``gamma`` and ``beta`` are linear in the concatenation of
    the others.
    """

    fewest_modalities = 2

    def __init__(self, runs: int, dims: Mapping[str, int], classes: int, hidden: int) -> None:
        super().__init__(runs, dims, classes, hidden)
        self.base, *others = self.modalities
        self.place = _Rows({name: dims[name] for name in others})
        self.condition = StackedLinear(runs, self.place.total, 2 * dims[self.base])
        self.last = StackedLinear(runs, dims[self.base], classes)

    def forward(self, embeddings: Embeddings, drop: Drop) -> Tensor:
        """Fused logits ``(runs, batch, classes)``."""
        joined = torch.cat([embeddings[name] for name in self.place.rows], -1)
        gamma, beta = self.condition(joined).chunk(2, -1)
        return self.last(gamma * embeddings[self.base] + beta)  # type: ignore[no-any-return]

    def blocks(self, modality: str) -> list[Block]:
        """Rows of the condition; for the modulated modality the last layer."""
        if modality == self.base:
            return [(self.last.weight, slice(None))]
        return [(self.condition.weight, self.place.rows[modality])]


class BiGated(Fusion):
    """Gated in both directions (Kiela et al. 2018): ``W sum_{a != b} sigmoid(U_a h_a) * V_b h_b``."""

    fewest_modalities = 2

    def __init__(self, runs: int, dims: Mapping[str, int], classes: int, hidden: int) -> None:
        super().__init__(runs, dims, classes, hidden)
        self.gate = nn.ModuleDict({name: StackedLinear(runs, dim, hidden) for name, dim in dims.items()})
        self.value = nn.ModuleDict({name: StackedLinear(runs, dim, hidden) for name, dim in dims.items()})
        self.last = StackedLinear(runs, hidden, classes)

    def forward(self, embeddings: Embeddings, drop: Drop) -> Tensor:
        """Fused logits ``(runs, batch, classes)``."""
        # The sigmoid by its tanh: the former rounds the ragged end of a tensor in another way on a CPU.
        gates = {name: (self.gate[name](embeddings[name]) / 2).tanh() / 2 + 0.5 for name in self.modalities}
        values = {name: self.value[name](embeddings[name]) for name in self.modalities}
        pairs = [(a, b) for a in self.modalities for b in self.modalities if a != b]
        mixed = gates[pairs[0][0]] * values[pairs[0][1]]
        for a, b in pairs[1:]:
            mixed = mixed + gates[a] * values[b]
        return self.last(drop(mixed))  # type: ignore[no-any-return]

    def blocks(self, modality: str) -> list[Block]:
        """The modality's gate and value."""
        return [(layers[modality].get_parameter("weight"), slice(None)) for layers in (self.gate, self.value)]


FUSIONS: dict[str, type[Fusion]] = {
    "concat": Concat,
    "concat-linear": ConcatLinear,
    "sum": Sum,
    "decision": Decision,
    "film": FiLM,
    "bi-gated": BiGated,
}
