"""Labeled only: empirical risk minimisation on the labeled clips, plain, mixed (MM, B-MM), or with all labels."""

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
        return self.supervised(labeled, streams, step)[1]


RECIPE = Recipe(
    title="Labeled only (ERM)",
    source="empirical risk minimisation",
    variant="cross-entropy of the fused and all unimodal heads on the labeled clips of all sources together",
    build=LabeledOnly,
    hparams={},
)

SUPERVISED = Recipe(
    title="Fully supervised (upper bound)",
    source="empirical risk minimisation",
    variant="as labeled only, on the labels of all source training clips, whatever the budget",
    build=LabeledOnly,
    hparams={},
    all_labels=True,
)

MM = Recipe(
    title="MM",
    source="arXiv 2510.10986, eq. 3",
    variant="labeled only, with mixup of the embeddings of all modalities before fusion; unimodal heads unmixed",
    build=LabeledOnly,
    hparams={"mixing": "mm"},
)

BMM = Recipe(
    title="B-MM",
    source="arXiv 2510.10986, eq. 5 to 8",
    variant="labeled only, with mixup of the weaker modalities' embeddings, by how weak they were in the last epoch; "
    "unimodal heads unmixed",
    build=LabeledOnly,
    hparams={"mixing": "bmm"},
)
