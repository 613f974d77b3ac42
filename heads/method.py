"""The contract of a training method on a stack of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heads.losses import PseudoLabels, add_up, cross_entropy
from heads.network import FUSED, HeadNetwork, HeadShape, Labeled, Outputs, Unlabeled
from heads.randomness import RunStreams


class Method(nn.Module):
    """A method: named loss terms of a batch, how they add up, and how pseudo-labels are made.

    Args:
        shape: what the runs share.
        hparams: per name a tensor ``(runs,)``; every hyperparameter may differ between the runs of a stack.
        seeds: initialisation seed of each run.
    """

    uses_unlabeled = False

    def __init__(self, shape: HeadShape, hparams: Mapping[str, Tensor], seeds: Sequence[int]) -> None:
        super().__init__()
        self.shape = shape
        self.runs = len(seeds)
        self.network = HeadNetwork(shape, self.runs)
        self.network.initialise(seeds)
        self.hparam_names = tuple(hparams)
        # Known on the host before training: dropout that no run of the stack has is not computed at all.
        self.without_dropout = {k for k, v in hparams.items() if k.startswith("dropout_") and not v.any()}
        for name, values in hparams.items():
            self.register_buffer(f"hparam_{name}", values.clone(), persistent=False)

    def hparam(self, name: str) -> Tensor:
        """Values of a hyperparameter, ``(runs,)``."""
        return self.get_buffer(f"hparam_{name}")

    def rates(self) -> dict[str, Tensor]:
        """Dropout probability ``(runs,)`` per modality and for the fused head, where some run has dropout there."""
        rates = {}
        for name in (*self.shape.modalities, FUSED):
            own = f"dropout_{name}"
            hparam = own if own in self.hparam_names else "dropout_embedding"
            if hparam not in self.without_dropout:
                rates[name] = self.hparam(hparam)
        return rates

    def losses(
        self, labeled: Labeled, unlabeled: Unlabeled | None, streams: RunStreams | None, step: int
    ) -> dict[str, Tensor]:
        """Unweighted loss terms by name, each ``(runs,)``.

        Args:
            labeled: labeled batch.
            unlabeled: unlabeled batch, ``None`` for methods with ``uses_unlabeled`` false.
            streams: random streams for dropout; ``None`` switches dropout off.
            step: training step.
        """
        raise TypeError(f"{type(self).__name__} does not define losses()")

    def objectives(self, terms: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Weighted sums of the terms that are minimised, each ``(runs,)``."""
        return (add_up(terms.values()),)

    def combine(self, objectives: tuple[Tensor, ...]) -> None:
        """Set the gradients of all parameters; overridden only for gradient surgery."""
        add_up(objectives).sum().backward()  # type: ignore[no-untyped-call]

    def supervised(self, labeled: Labeled, outputs: Outputs) -> dict[str, Tensor]:
        """Cross-entropy of the fused head and of every unimodal head on a labeled batch, means over the batch.

        A clip without a modality does not count in that modality's mean (SSMDG, arXiv 2602.22917: sum of all).
        """
        everyone = torch.ones_like(labeled.y, dtype=torch.bool)
        return {
            f"labeled/{head}": cross_entropy(logits, labeled.y, labeled.present.get(head, everyone))
            for head, logits in outputs.logits.items()
        }

    @torch.no_grad()
    def predict(self, x: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits ``(runs, batch, classes)`` of the fused head and every modality, without dropout."""
        return dict(self.network(x, present).logits)

    def pseudo_labels(self, logits: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> PseudoLabels | None:
        """Pseudo-labels from the logits of a weak view; ``None`` if the method makes none."""
        return None


@dataclass(frozen=True)
class Recipe:
    """A line of the methods' table."""

    title: str  # as it stands in tables
    source: str  # paper
    variant: str  # which reading of the paper this is, one sentence
    build: Callable[[HeadShape, Mapping[str, Tensor], Sequence[int]], Method]
    hparams: Mapping[str, float]  # the method's own hyperparameters and their defaults


# Hyperparameters that every method has; the values are those of SSMDG's release except the learning rate, which is
# ten times higher because only small heads are trained here.
SHARED_HPARAMS: Mapping[str, float] = {
    "learning_rate": 1e-3,
    "weight_decay": 1e-3,
    "dropout_embedding": 0.5,
    "dropout_audio": 0.0,
    "dropout_fused": 0.5,
}
