"""Class prototypes per modality and source domain (SSMDG, arXiv 2602.22917).

A prototype is a unit vector: the renormalised running mean, over batches, of the unit mean of unit embeddings of the
labeled clips of one (domain, class). Unlabeled clips never update it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from heads.layers import unit
from heads.randomness import seed_from


class Prototypes(nn.Module):
    """State of a stack: ``vectors`` ``(runs, domains, classes, dim)`` and ``counts`` ``(runs, domains, classes)``.

    ``counts`` holds the number of batches that have updated a cell. A cell never updated holds a random unit vector;
    whether it takes part in losses is the method's choice.
    """

    def __init__(self, runs: int, domains: int, classes: int, dims: Mapping[str, int]) -> None:
        super().__init__()
        self.modalities = tuple(dims)
        for name, dim in dims.items():
            self.register_buffer(f"vectors_{name}", torch.zeros(runs, domains, classes, dim))
            self.register_buffer(f"counts_{name}", torch.zeros(runs, domains, classes))

    def vectors(self, modality: str) -> Tensor:
        """Prototypes of one modality, ``(runs, domains, classes, dim)``."""
        return self.get_buffer(f"vectors_{modality}")

    def counts(self, modality: str) -> Tensor:
        """Number of updates of each cell, ``(runs, domains, classes)``."""
        return self.get_buffer(f"counts_{modality}")

    def initialise(self, seeds: Sequence[int]) -> None:
        """Fill every cell with a random unit vector drawn from each run's seed."""
        for name in self.modalities:
            vectors = self.vectors(name)
            for run, seed in enumerate(seeds):
                generator = torch.Generator().manual_seed(seed_from("prototype", seed, name))
                drawn = torch.randn(vectors.shape[1:], generator=generator, dtype=torch.float64)
                vectors[run] = unit(drawn).to(vectors)

    @torch.no_grad()
    def update(
        self, embeddings: Mapping[str, Tensor], present: Mapping[str, Tensor], labels: Tensor, domains: Tensor
    ) -> None:
        """Move the prototypes of every (domain, class) that occurs in a labeled batch.

        ``P <- n((k P + mu) / (k + 1))`` with ``mu`` the unit mean of the cell's unit embeddings and ``k`` the number
        of earlier updates.

        Args:
            embeddings: per modality ``(runs, batch, dim)``.
            present: per modality ``(runs, batch)`` bool; clips without the modality do not count.
            labels: ``(runs, batch)`` int64.
            domains: ``(runs, batch)`` int64, position among the source domains.
        """
        for name in self.modalities:
            vectors, counts = self.vectors(name), self.counts(name)
            num_domains, num_classes = vectors.shape[1:3]
            cell = domains * num_classes + labels
            members = nn.functional.one_hot(cell, num_domains * num_classes).to(vectors) * present[name][..., None]
            number = members.sum(1)  # (runs, cells)
            with torch.autocast(vectors.device.type, enabled=False):
                total = torch.bmm(members.transpose(1, 2), unit(embeddings[name].to(vectors)))
            mean = unit(total / number.clamp(min=1)[..., None]).view_as(vectors)
            seen = (mean != 0).any(-1)  # labeled clips of the cell, with embeddings that have a direction
            earlier = counts[..., None]
            moved = unit((earlier * vectors + mean) / (earlier + 1))
            vectors.copy_(torch.where(seen[..., None], moved, vectors))
            counts.add_(seen)
