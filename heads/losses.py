"""Loss terms as pure functions: masked means over the batch, one value per run, shapes independent of the data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from heads.layers import at_least_single, unit


def add_up(terms: Iterable[Tensor]) -> Tensor:
    """Sum of terms ``(runs,)`` one after the other: the rounding must not depend on the number of runs."""
    return reduce(torch.add, terms)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` ``(runs, batch)`` over the elements where ``mask`` is set; 0 for a run with none.

    Masked-out values must be finite.
    """
    weight = mask.to(values.dtype)
    return (values * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` ``(runs, batch, classes)`` against ``labels`` ``(runs, batch)``.

    Returns ``(runs,)``: the mean over the clips in ``mask`` (not over the batch).
    """
    log_probs = torch.log_softmax(logits, -1)
    return masked_mean(-log_probs.gather(-1, labels[..., None])[..., 0], mask)


def generalised_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor, q: Tensor) -> Tensor:
    """Noise-tolerant loss ``(1 - p_y^q) / q`` (Zhang and Sabuncu 2018, eq. 6), mean over ``mask``.

    Args:
        logits: ``(runs, batch, classes)``.
        labels: ``(runs, batch)`` int64.
        mask: ``(runs, batch)`` bool.
        q: ``(runs,)`` in (0, 1]; towards 0 it becomes cross-entropy, 1 gives the mean absolute error.
    """
    log_probs = torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]
    exponent = q[:, None].to(logits.dtype)
    # As exp(q log p): the power of a float rounds differently at the ragged end of a tensor.
    powers = (log_probs.clamp(min=math.log(1e-8)) * exponent).exp()
    return masked_mean((1 - powers) / exponent, mask)


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of an unlabeled batch; all tensors ``(runs, batch)``, no gradient.

    ``masks["accepted"]`` are the clips used with cross-entropy (FixMatch's confident ones, SSMDG's consensus); a
    method may name more.
    """

    labels: Tensor  # argmax of the fused weak prediction, int64
    masks: Mapping[str, Tensor]  # by name, bool

    @property
    def accepted(self) -> Tensor:
        """Clips used with cross-entropy."""
        return self.masks["accepted"]


@torch.no_grad()
def consensus_pseudo_labels(
    logits: Mapping[str, Tensor], present: Mapping[str, Tensor], threshold: Tensor
) -> PseudoLabels:
    """Split the confident clips by whether a modality supports the fused prediction (SSMDG, arXiv 2602.22917).

    Consensus: fused confidence >= threshold and at least one present modality predicts the same class with its own
    confidence >= threshold. Non-consensus: confident, without such support. The rest is ignored.

    Args:
        logits: ``fused`` and one entry per modality, ``(runs, batch, classes)``, of the weak view.
        present: per modality ``(runs, batch)`` bool.
        threshold: ``(runs,)``.
    """
    limit = threshold[:, None]
    confidence, labels = torch.softmax(logits["fused"], -1).max(-1)
    confident = confidence >= limit
    supported = torch.zeros_like(confident)
    for name, here in present.items():
        own_confidence, own_labels = torch.softmax(logits[name], -1).max(-1)
        supported |= here & (own_labels == labels) & (own_confidence >= limit)
    masks = {"accepted": confident & supported, "nonconsensus": confident & ~supported}
    return PseudoLabels(labels, masks)


def prototype_distances(embedding: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    """Distance of each clip's unit embedding to the prototypes of its class in every domain.

    From inner products, ``|u - P|^2 = |u|^2 + |P|^2 - 2 u.P``, so that no ``(runs, batch, domains, dim)`` tensor is
    needed. ``|u|`` does not change with the embedding, so it carries no gradient.

    Args:
        embedding: ``(runs, batch, dim)``.
        prototypes: ``(runs, domains, classes, dim)``; no gradient flows into them.
        labels: ``(runs, batch)`` int64.

    Returns:
        ``(runs, batch, domains)`` L2 norms (not squared).
    """
    runs, domains, classes, dim = prototypes.shape
    u, fixed = unit(at_least_single(embedding)), prototypes.detach()
    with torch.autocast(u.device.type, enabled=False):  # near 0 the distance is a small difference of large numbers
        inner = torch.bmm(u, fixed.reshape(runs, domains * classes, dim).transpose(1, 2))
    inner = inner.view(runs, -1, domains, classes).gather(3, labels[:, :, None, None].expand(-1, -1, domains, 1))[
        ..., 0
    ]
    rows = torch.arange(runs, device=labels.device)[:, None]
    lengths = fixed.square().sum(-1)[rows, :, labels] + u.detach().square().sum(-1, keepdim=True)
    # The root has no gradient at 0; a distance below 1e-6 is not told from it in float32.
    return (lengths - 2 * inner).clamp(min=1e-12).sqrt()


def alignment_terms(distances: Tensor, known: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Terms of the prototype loss of one modality: every (clip, domain) pair is a term of its own.

    Args:
        distances: ``(runs, batch, domains)`` from ``prototype_distances``.
        known: ``(runs, batch, domains)`` bool, prototypes that take part.
        mask: ``(runs, batch)`` bool, clips that take part.

    Returns:
        Values and bool weights, both ``(runs, batch * domains)``; the loss is their masked mean over all modalities.
    """
    return distances.flatten(1), (known & mask[..., None]).flatten(1)


def translation_terms(distances: Tensor, known: Tensor, own_domain: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Terms of the translation loss of one ordered pair: own domain, and mean over the other domains.

    With two source domains this weighs like ``alignment_terms``; with more the other domains are averaged first.

    Args:
        distances: ``(runs, batch, domains)`` of the translated embedding to the target modality's prototypes.
        known: ``(runs, batch, domains)`` bool, prototypes that take part.
        own_domain: ``(runs, batch)`` int64, position of each clip's domain.
        mask: ``(runs, batch)`` bool, clips that take part.

    Returns:
        Values and bool weights, both ``(runs, batch * 2)``; a part without known prototypes has weight 0.
    """
    is_own = torch.nn.functional.one_hot(own_domain, distances.shape[-1]).bool()
    own, others = is_own & known, ~is_own & known
    values = torch.stack([masked_mean(distances, own), masked_mean(distances, others)], -1)
    exists = torch.stack([own.any(-1), others.any(-1)], -1) & mask[..., None]
    return values.flatten(1), exists.flatten(1)
