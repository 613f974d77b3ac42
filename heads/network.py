"""The network every method trains: adapters, unimodal predictions and their fusion, for any set of modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heads.adapters import ADAPTERS
from heads.fusion import FUSIONS, Fusion
from heads.layers import StackedLinear, at_least_single, dropout, initialise
from heads.randomness import RunStreams

FUSED = "fused"


@dataclass(frozen=True)
class HeadShape:
    """What runs must share to be stacked: everything that decides a parameter's shape or what is computed."""

    dims: tuple[tuple[str, int], ...]  # (modality, feature dim) in fusion order
    classes: int
    domains: int  # number of source domains
    adapter: str  # a key of ADAPTERS
    fused_hidden: int
    translator_hidden: int
    fusion: str = "concat"  # a key of FUSIONS
    adapter_width: int = 256  # embedding size of the adapter ``project``
    mixing: str = "none"  # one of MIXINGS

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
    """One forward pass; an absent modality's embedding is zero."""

    plain: Mapping[str, Tensor]  # embeddings before dropout, per modality (runs, batch, dim)
    embeddings: Mapping[str, Tensor]  # the same after dropout: what the heads see
    logits: Mapping[str, Tensor]  # ``fused`` and per modality: (runs, batch, classes)

    def rows(self, part: slice) -> Outputs:
        """The same for some of the batch."""
        return Outputs(
            {m: z[:, part] for m, z in self.plain.items()},
            {m: z[:, part] for m, z in self.embeddings.items()},
            {h: x[:, part] for h, x in self.logits.items()},
        )


@dataclass(frozen=True)
class Dropout:
    """Dropout of one forward pass: every place draws its own mask."""

    rates: Mapping[str, Tensor]  # probabilities (runs,) per modality and ``fused``; no entry: none
    streams: RunStreams
    step: int
    place: str  # name of the pass; two passes of one step draw different masks

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Apply the dropout called ``name`` to ``(runs, batch, dim)``."""
        if name not in self.rates:
            return _keep(name, x)
        return dropout(x, self.rates[name], self.streams, self.step, f"{self.place}/{name}")


def _keep(name: str, x: Tensor) -> Tensor:
    """No dropout, in a node of its own: gradients are added up in the same order with dropout and without."""
    return x.view_as(x)


class HeadNetwork(nn.Module):
    """Adapter per modality, a prediction per modality, and their fusion.

    The embedding after dropout is at once what the unimodal head and the fusion see; one dropout mask per forward is
    shared by both (as in SSMDG's release). Additive fusions bring the unimodal predictions with them, for the others
    there is a linear head per modality.
    """

    def __init__(self, shape: HeadShape, runs: int) -> None:
        super().__init__()
        self.modalities = shape.modalities
        adapters = {m: ADAPTERS[shape.adapter](runs, d, shape.adapter_width) for m, d in shape.dims}
        self.adapters = nn.ModuleDict(adapters)
        self.embedding_dims = {m: adapter.dim for m, adapter in adapters.items()}
        self.fusion: Fusion = FUSIONS[shape.fusion](runs, self.embedding_dims, shape.classes, shape.fused_hidden)
        self.unimodal = nn.ModuleDict(
            {}
            if self.fusion.additive
            else {m: StackedLinear(runs, d, shape.classes) for m, d in self.embedding_dims.items()}
        )

    def initialise(self, seeds: Sequence[int]) -> None:
        """Draw all parameters from each run's seed."""
        initialise(self, seeds)

    def embed(self, x: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings before dropout: per modality ``(runs, batch, dim)``, zero where ``present`` is not set.

        Args:
            x: per modality ``(runs, batch, dim)`` normalised features.
            present: per modality ``(runs, batch)`` bool.
        """
        embeddings = {m: self.adapters[m](x[m]) for m in self.modalities}
        return {m: torch.where(present[m][..., None], z, torch.zeros_like(z)) for m, z in embeddings.items()}

    def fuse(self, embeddings: Mapping[str, Tensor], drop: Dropout | None = None) -> Tensor:
        """Fused logits ``(runs, batch, classes)`` of embeddings."""
        apply = drop or _keep
        # Of views, so that what a fusion reads twice is added up before it meets the gradients of the other heads.
        logits: Tensor = self.fusion({m: _keep(m, z) for m, z in embeddings.items()}, lambda h: apply(FUSED, h))
        return at_least_single(logits)

    def alone(self, embeddings: Mapping[str, Tensor], gate: Tensor | None = None) -> dict[str, Tensor]:
        """Unimodal logits ``(runs, batch, classes)``.

        Args:
            embeddings: per modality ``(runs, batch, dim)``.
            gate: ``(runs,)`` factor of the gradient that these predictions send into what they share with the fused
                prediction (embeddings; for additive fusions the terms themselves); ``None`` means 1 for all runs.
        """
        if self.fusion.additive:
            logits = {m: _gated(x, gate) for m, x in self.fusion.terms(embeddings).items()}
        else:
            logits = {m: self.unimodal[m](_gated(embeddings[m], gate)) for m in self.modalities}
        return {m: at_least_single(x) for m, x in logits.items()}

    def forward(
        self,
        x: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        drop: Dropout | None = None,
        gate: Tensor | None = None,
        fused: bool = True,
    ) -> Outputs:
        """Run the heads.

        Args:
            x: per modality ``(runs, batch, dim)`` normalised features.
            present: per modality ``(runs, batch)`` bool.
            drop: dropout of this pass; ``None`` for none.
            gate: see ``alone``.
            fused: whether the fused prediction is wanted.
        """
        apply = drop or _keep
        plain = self.embed(x, present)
        embeddings = {m: apply(m, z) for m, z in plain.items()}
        logits = {FUSED: self.fuse(embeddings, drop)} if fused else {}
        return Outputs(plain, embeddings, {**logits, **self.alone(embeddings, gate)})


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """Return ``x``; its gradient is multiplied by ``gate`` ``(runs,)``."""
    if gate is None:
        return x
    g = gate[:, None, None].to(x.dtype)
    return x * g + x.detach() * (1 - g)
