"""Labeled only: empirical risk minimisation on the labeled clips."""

from __future__ import annotations

from torch import Tensor

from heads.method import Method, Recipe
from heads.network import Labeled, Unlabeled
from heads.randomness import RunStreams


class LabeledOnly(Method):
    """Cross-entropy of the fused and the unimodal heads on labeled clips."""

    def losses(
        self, labeled: Labeled, unlabeled: Unlabeled | None, streams: RunStreams | None, step: int
    ) -> dict[str, Tensor]:
        """Terms ``labeled/<head>``."""
        return self.supervised(
            labeled, self.network(labeled.x, labeled.present, self.rates(), streams, step, "labeled")
        )


RECIPE = Recipe(
    title="Labeled only (ERM)",
    source="empirical risk minimisation",
    variant="cross-entropy of the fused and all unimodal heads on the labeled clips of all sources together",
    build=LabeledOnly,
    hparams={},
)
