"""The network every method trains: adapters, unimodal heads and the fused head, for any set of modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from heads.adapters import ADAPTERS
from heads.layers import StackedLinear, dropout, initialise
from heads.randomness import RunStreams

FUSED = "fused"


@dataclass(frozen=True)
class HeadShape:
    """What runs must share to be stacked: everything that decides a parameter's shape."""

    dims: tuple[tuple[str, int], ...]  # (modality, feature dim) in fusion order
    classes: int
    domains: int  # number of source domains
    adapter: str  # a key of ADAPTERS
    fused_hidden: int
    translator_hidden: int

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modality names in fusion order."""
        return tuple(name for name, _ in self.dims)


@dataclass(frozen=True)
class Labeled:
    """A labeled batch of a stack: weak views."""

    x: Mapping[str, Tensor]  # per modality (runs, batch, dim) float
    present: Mapping[str, Tensor]  # per modality (runs, batch) bool
    y: Tensor  # (runs, batch) int64
    domain: Tensor  # (runs, batch) int64, position among the run's sources


@dataclass(frozen=True)
class Unlabeled:
    """An unlabeled batch of a stack: a weak and a strong view of the same clips. It has no label field on purpose."""

    weak: Mapping[str, Tensor]  # per modality (runs, batch, dim) float
    strong: Mapping[str, Tensor]  # per modality (runs, batch, dim) float
    present: Mapping[str, Tensor]  # per modality (runs, batch) bool
    domain: Tensor  # (runs, batch) int64


@dataclass(frozen=True)
class Outputs:
    """One forward pass."""

    embeddings: Mapping[str, Tensor]  # per modality (runs, batch, dim), after dropout, zero where absent
    logits: Mapping[str, Tensor]  # per modality and ``fused``: (runs, batch, classes)

    def rows(self, part: slice) -> Outputs:
        """The same for some of the batch."""
        return Outputs(
            {m: z[:, part] for m, z in self.embeddings.items()}, {h: x[:, part] for h, x in self.logits.items()}
        )


class HeadNetwork(nn.Module):
    """Adapter per modality, linear unimodal heads, and Linear-ReLU-Dropout-Linear on the concatenated embeddings.

    The embedding after dropout is at once the input of the unimodal head, the part of the fused vector, and what
    prototypes and translators see; one dropout mask per forward is shared by all of them (as in SSMDG's release).
    """

    def __init__(self, shape: HeadShape, runs: int) -> None:
        super().__init__()
        dims = dict(shape.dims)
        self.modalities = shape.modalities
        self.adapters = nn.ModuleDict({m: ADAPTERS[shape.adapter](runs, d) for m, d in dims.items()})
        self.unimodal = nn.ModuleDict({m: StackedLinear(runs, d, shape.classes) for m, d in dims.items()})
        self.fused_first = StackedLinear(runs, sum(dims.values()), shape.fused_hidden)
        self.fused_last = StackedLinear(runs, shape.fused_hidden, shape.classes)

    def initialise(self, seeds: Sequence[int]) -> None:
        """Draw all parameters from each run's seed."""
        initialise(self, seeds)

    def forward(
        self,
        x: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        rates: Mapping[str, Tensor] = MappingProxyType({}),
        streams: RunStreams | None = None,
        step: int = 0,
        place: str = "",
    ) -> Outputs:
        """Run the heads.

        Args:
            x: per modality ``(runs, batch, dim)`` normalised features.
            present: per modality ``(runs, batch)`` bool; an absent modality's embedding is zero.
            rates: dropout probabilities ``(runs,)`` per modality and for ``fused``; none for a name that is missing.
            streams: random streams of the stack; ``None`` switches dropout off.
            step: training step.
            place: name of this forward pass; two passes of one step draw different masks.
        """
        embeddings: dict[str, Tensor] = {}
        logits: dict[str, Tensor] = {}
        for name in self.modalities:
            z = self.adapters[name](x[name])
            if streams is not None and name in rates:
                z = dropout(z, rates[name], streams, step, f"{place}/{name}")
            embeddings[name] = z * present[name][..., None]
            logits[name] = self.unimodal[name](embeddings[name])
        h = self.fused_first(torch.cat([embeddings[name] for name in self.modalities], -1)).relu()
        if streams is not None and FUSED in rates:
            h = dropout(h, rates[FUSED], streams, step, f"{place}/{FUSED}")
        return Outputs(embeddings, {FUSED: self.fused_last(h), **logits})
