"""What stands in for a modality that is missing at test time.

The literature means different things by "missing modality"; here every filler has its name. Fillers act on embeddings
without dropout; nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from heads.layers import unit
from heads.network import HeadNetwork
from heads.translators import pair_name

FILLERS: Mapping[str, str] = {
    "zero": "a zero embedding before fusion",
    "mean": "the modality's mean embedding over the source training clips",
    "prototype": "the prototypes weighted by what the present modalities predict, at the modality's mean length",
    "translate": "mean of the translations of all present modalities, each at the modality's mean length",
    "translate-raw": "mean of the translations as they come: trained towards unit vectors, so directions, not lengths",
    "finetuned": "mean of the translations after fine-tuning the translators on embeddings that are not normalised",
    "renormalise": "no fusion: the mean of the present modalities' own predictions",
}


@dataclass(frozen=True)
class FillerState:
    """What fillers know of a stack from its source training clips; all without a gradient."""

    mean: Mapping[str, Tensor]  # per modality (runs, dim), mean embedding
    length: Mapping[str, Tensor]  # per modality (runs,), mean L2 norm of an embedding
    prototypes: Mapping[str, Tensor]  # per modality (runs, classes, dim); zero for a class never seen
    translators: nn.ModuleDict = field(default_factory=nn.ModuleDict)  # keyed by ``pair_name``; empty: none trained
    finetuned: nn.ModuleDict = field(default_factory=nn.ModuleDict)  # the same after fine-tuning

    def fillers(self) -> list[str]:
        """Names of the fillers that this stack has."""
        without = set() if len(self.translators) else {"translate", "translate-raw"}
        without |= set() if len(self.finetuned) else {"finetuned"}
        return [name for name in FILLERS if name not in without]


@torch.no_grad()
def predict_missing(
    network: HeadNetwork, x: Mapping[str, Tensor], present: Mapping[str, Tensor], filler: str, state: FillerState
) -> Tensor:
    """Class probabilities ``(runs, batch, classes)`` where some modalities are missing.

    Args:
        network: the trained heads.
        x: per modality ``(runs, batch, dim)`` normalised features; what stands where ``present`` is not set is ignored.
        present: per modality ``(runs, batch)`` bool.
        filler: a key of ``FILLERS``.
        state: of the same stack.
    """
    embeddings = network.embed(x, present)
    alone = {m: torch.softmax(logits, -1) for m, logits in network.alone(embeddings).items()}
    votes = _mean_of_present(alone, present)
    if filler == "renormalise":
        return votes
    filled = {}
    for name in network.modalities:
        substitute = _substitute(name, filler, embeddings, present, votes, state)
        filled[name] = torch.where(present[name][..., None], embeddings[name], substitute)
    return torch.softmax(network.fuse(filled), -1)


def _substitute(
    name: str,
    filler: str,
    embeddings: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    votes: Tensor,
    state: FillerState,
) -> Tensor:
    """Embedding ``(runs, batch, dim)`` for modality ``name`` where it is missing."""
    own = embeddings[name]
    if filler == "zero":
        return torch.zeros_like(own)
    if filler == "mean":
        return state.mean[name][:, None].expand_as(own)
    length = state.length[name][:, None, None]
    if filler == "prototype":
        return unit(torch.bmm(votes, state.prototypes[name])) * length
    translators = state.finetuned if filler == "finetuned" else state.translators
    found = {}
    for source in embeddings:
        if source == name:
            continue
        start = embeddings[source] if filler == "finetuned" else unit(embeddings[source])
        translated = translators[pair_name(source, name)](start, None, None, 0, "")
        found[source] = unit(translated) * length if filler == "translate" else translated
    return _mean_of_present(found, present)


def _mean_of_present(values: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """Mean over the modalities that are present, ``(runs, batch, n)``; zero where none is."""
    total: Tensor | None = None
    number: Tensor | None = None
    for name, value in values.items():
        here = present[name][..., None].to(value.dtype)
        total = value * here if total is None else total + value * here
        number = here if number is None else number + here
    if total is None or number is None:
        raise ValueError("a substitute needs at least one other modality")
    return total / number.clamp(min=1)
