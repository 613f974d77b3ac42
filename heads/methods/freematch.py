"""FreeMatch (Wang et al. 2023, arXiv 2205.07246) on multimodal features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from heads.losses import PseudoLabels, add_up
from heads.method import Method, Recipe
from heads.methods.fixmatch import consistency
from heads.network import FUSED, HeadShape, Labeled, Unlabeled
from heads.randomness import RunStreams


def _sum_to_one(x: Tensor) -> Tensor:
    """``(runs, classes)`` divided by its sum; zeros stay zeros."""
    return x / x.sum(-1, keepdim=True).clamp(min=1e-12)


def _over(x: Tensor, histogram: Tensor) -> Tensor:
    """``x / histogram`` where a class occurs, else 0; both ``(runs, classes)``."""
    return torch.where(histogram > 0, x / histogram.clamp(min=1e-12), torch.zeros_like(x))


class FreeMatch(Method):
    """FixMatch with thresholds that follow the model's own confidence, and a fairness term.

    State, moving averages over batches with ``ema_decay``, all uniform at the start: the mean ``confidence``, the mean
    prediction ``expected``, and the ``histogram`` of pseudo-labels.
    """

    uses_unlabeled = True
    confidence: Tensor  # (runs,)
    expected: Tensor  # (runs, classes)
    histogram: Tensor  # (runs, classes)

    def __init__(self, shape: HeadShape, hparams: Mapping[str, Tensor], seeds: Sequence[int]) -> None:
        super().__init__(shape, hparams, seeds)
        uniform = 1 / shape.classes
        self.register_buffer("confidence", torch.full((self.runs,), uniform))
        self.register_buffer("expected", torch.full((self.runs, shape.classes), uniform))
        self.register_buffer("histogram", torch.full((self.runs, shape.classes), uniform))

    def losses(
        self, labeled: Labeled, unlabeled: Unlabeled | None, streams: RunStreams | None, step: int
    ) -> dict[str, Tensor]:
        """Terms ``labeled/<head>``, ``consistency/<head>`` and ``fairness``."""
        if unlabeled is None:
            raise ValueError("FreeMatch needs an unlabeled batch")
        terms = self.supervised(labeled, streams, step)[1]
        with torch.no_grad():
            weak = self.forward_pass(unlabeled.weak, unlabeled.present, streams, step, "weak")
        self._follow(weak.logits[FUSED])
        pseudo = self.pseudo_labels(weak.logits, unlabeled.present)
        strong = self.forward_pass(unlabeled.strong, unlabeled.present, streams, step, "strong")
        fairness = self._fairness(strong.logits[FUSED], pseudo.accepted)
        return {**terms, **consistency(strong, unlabeled, pseudo), "fairness": fairness}

    def objectives(self, terms: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """One objective: labeled terms, ``weight_consistency`` and ``weight_fairness`` times the others."""
        weights = {"consistency": self.hparam("weight_consistency"), "fairness": self.hparam("weight_fairness")}
        parts = [(v, weights.get(k.split("/")[0])) for k, v in terms.items()]
        return (add_up([v if weight is None else v * weight for v, weight in parts]),)

    @torch.no_grad()
    def pseudo_labels(self, logits: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> PseudoLabels:
        """Accept a clip when the fused confidence is >= the threshold of its class.

        The threshold is the mean confidence times the class's share of the largest mean prediction.
        """
        confidence, labels = torch.softmax(logits[FUSED], -1).max(-1)
        share = self.expected / self.expected.max(-1, keepdim=True).values.clamp(min=1e-12)
        threshold = self.confidence[:, None] * share
        return PseudoLabels(labels, {"accepted": confidence >= threshold.gather(1, labels)})

    @torch.no_grad()
    def _follow(self, logits: Tensor) -> None:
        """Move the averages by the weak predictions of a batch."""
        probs = torch.softmax(logits, -1)
        confidence, labels = probs.max(-1)
        share = torch.nn.functional.one_hot(labels, self.shape.classes).to(probs).mean(1)
        decay = self.hparam("ema_decay")
        self.confidence.copy_(self.confidence * decay + confidence.mean(1) * (1 - decay))
        self.expected.copy_(self.expected * decay[:, None] + probs.mean(1) * (1 - decay[:, None]))
        self.histogram.copy_(self.histogram * decay[:, None] + share * (1 - decay[:, None]))

    def _fairness(self, logits: Tensor, accepted: Tensor) -> Tensor:
        """Minus the cross-entropy of the mean strong prediction to the expected one, both over their histograms.

        Args:
            logits: ``(runs, batch, classes)`` fused logits of the strong view.
            accepted: ``(runs, batch)`` bool.

        Returns:
            ``(runs,)``, 0 for a run that accepts nothing.
        """
        probs = torch.softmax(logits, -1)
        weight = accepted.to(probs)[..., None]
        number = weight.sum(1).clamp(min=1)
        mean = (probs * weight).sum(1) / number
        predicted = torch.nn.functional.one_hot(probs.argmax(-1), self.shape.classes).to(probs)
        own = _sum_to_one(_over(mean, (predicted * weight).sum(1) / number))
        expected = _sum_to_one(_over(self.expected, self.histogram))
        # A class that no accepted clip is predicted as adds only a constant; it is left out.
        terms = torch.where(own > 0, expected * own.clamp(min=1e-12).log(), torch.zeros_like(own))
        return terms.sum(-1)


RECIPE = Recipe(
    title="FreeMatch",
    source="Wang et al. 2023, arXiv 2205.07246",
    variant="self-adaptive thresholds and fairness on the fused prediction; cross-entropy of the fused and all "
    "unimodal heads on the strong view, summed over accepted clips and divided by the batch size",
    build=FreeMatch,
    hparams={"ema_decay": 0.999, "weight_consistency": 1.0, "weight_fairness": 0.01},
)
