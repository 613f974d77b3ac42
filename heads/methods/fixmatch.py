"""FixMatch (Sohn et al. 2020) on multimodal features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from heads.losses import PseudoLabels, add_up, cross_entropy
from heads.method import Method, Recipe
from heads.network import FUSED, Labeled, Outputs, Unlabeled
from heads.randomness import RunStreams


def consistency(outputs: Outputs, unlabeled: Unlabeled, pseudo: PseudoLabels) -> dict[str, Tensor]:
    """Cross-entropy of every head against the pseudo-labels: the sum over accepted clips divided by the batch size.

    Returns:
        Terms ``consistency/<head>``, each ``(runs,)``; a modality's clips without it count nothing.
    """
    terms = {}
    for head, logits in outputs.logits.items():
        mask = pseudo.accepted & unlabeled.present[head] if head != FUSED else pseudo.accepted
        share = mask.to(logits.dtype).mean(-1)
        terms[f"consistency/{head}"] = cross_entropy(logits, pseudo.labels, mask) * share
    return terms


class FixMatch(Method):
    """Labeled cross-entropy, and cross-entropy of the strong view against confident pseudo-labels of the weak view."""

    uses_unlabeled = True

    def losses(
        self, labeled: Labeled, unlabeled: Unlabeled | None, streams: RunStreams | None, step: int
    ) -> dict[str, Tensor]:
        """Terms ``labeled/<head>`` and ``consistency/<head>`` (sum over confident clips divided by the batch size)."""
        if unlabeled is None:
            raise ValueError("FixMatch needs an unlabeled batch")
        terms = self.supervised(labeled, streams, step)[1]
        with torch.no_grad():
            weak = self.forward_pass(unlabeled.weak, unlabeled.present, streams, step, "weak")
        pseudo = self.pseudo_labels(weak.logits, unlabeled.present)
        strong = self.forward_pass(unlabeled.strong, unlabeled.present, streams, step, "strong")
        return {**terms, **consistency(strong, unlabeled, pseudo)}

    def objectives(self, terms: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """One objective: labeled terms plus ``weight_consistency`` times the consistency terms."""
        weight = self.hparam("weight_consistency")
        return (add_up([v * weight if k.startswith("consistency/") else v for k, v in terms.items()]),)

    @torch.no_grad()
    def pseudo_labels(self, logits: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> PseudoLabels:
        """Accept a clip when the fused confidence is >= threshold."""
        confidence, labels = torch.softmax(logits[FUSED], -1).max(-1)
        accepted = confidence >= self.hparam("threshold")[:, None]
        return PseudoLabels(labels, {"accepted": accepted})


RECIPE = Recipe(
    title="FixMatch",
    source="Sohn et al. 2020, arXiv 2001.07685, eq. 4",
    variant="pseudo-label from the fused weak prediction; cross-entropy of the fused and all unimodal heads on the "
    "strong view, summed over confident clips and divided by the batch size; labeled clips are not pseudo-labeled",
    build=FixMatch,
    hparams={"threshold": 0.95, "weight_consistency": 1.0},
)
