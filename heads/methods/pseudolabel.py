"""Pseudo-Label (Lee 2013) on multimodal features."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.method import Recipe
from heads.methods.fixmatch import FixMatch, consistency
from heads.network import Labeled, Unlabeled
from heads.randomness import RunStreams


class PseudoLabel(FixMatch):
    """Labeled cross-entropy, and cross-entropy of a weak view against its own confident prediction, ramped up."""

    def losses(
        self, labeled: Labeled, unlabeled: Unlabeled | None, streams: RunStreams | None, step: int
    ) -> dict[str, Tensor]:
        """Terms ``labeled/<head>`` and ``consistency/<head>``, the latter times ``min(1, step / ramp_steps)``."""
        if unlabeled is None:
            raise ValueError("PseudoLabel needs an unlabeled batch")
        terms = self.supervised(labeled, streams, step)[1]
        weak = self.forward_pass(unlabeled.weak, unlabeled.present, streams, step, "weak")
        pseudo = self.pseudo_labels({k: v.detach() for k, v in weak.logits.items()}, unlabeled.present)
        ramp = (float(step) / self.hparam("ramp_steps").clamp(min=1e-9)).clamp(max=1)
        ramp = torch.where(self.hparam("ramp_steps") > 0, ramp, torch.ones_like(ramp))
        return {**terms, **{name: value * ramp for name, value in consistency(weak, unlabeled, pseudo).items()}}


RECIPE = Recipe(
    title="PseudoLabel",
    source="Lee 2013",
    variant="the fused weak prediction, if its confidence is >= threshold, is the label of the same weak view for the "
    "fused and all unimodal heads, summed over confident clips and divided by the batch size; weight ramped up "
    "linearly over the first steps",
    build=PseudoLabel,
    hparams={"threshold": 0.95, "weight_consistency": 1.0, "ramp_steps": 160.0},
)
