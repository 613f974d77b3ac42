"""The contract of a training method on a stack of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from heads.losses import PseudoLabels, add_up, cross_entropy
from heads.mixing import SCORE_UNITS, Mixer, soft_cross_entropy
from heads.network import FUSED, Dropout, HeadNetwork, HeadShape, Labeled, Outputs, Unlabeled
from heads.optimiser import SCHEDULES
from heads.randomness import RunStreams

# Hyperparameters that are a choice between names; a tensor of one holds positions in this list.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "mix_ratio_form": ("excess", "raw"),
    "mix_label_degree": ("max", "mean"),
    "schedule": SCHEDULES,
}


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
        self.mixer = None if shape.mixing == "none" else Mixer(shape.mixing, shape.modalities, hparams)
        self.hparam_names = tuple(hparams)
        # Known on the host before training: what no run of the stack wants is not computed at all.
        self.common = {k: v[0].item() for k, v in hparams.items() if len(v) and bool((v == v[0]).all())}
        for name, values in hparams.items():
            self.register_buffer(f"hparam_{name}", values.clone(), persistent=False)

    def hparam(self, name: str) -> Tensor:
        """Values of a hyperparameter, ``(runs,)``."""
        return self.get_buffer(f"hparam_{name}")

    def dropout(self, streams: RunStreams | None, step: int, place: str) -> Dropout | None:
        """Dropout of a forward pass: probability ``(runs,)`` per modality and for the fused head; ``None`` for none."""
        if streams is None:
            return None
        rates = {}
        for name in (*self.shape.modalities, FUSED):
            own = f"dropout_{name}"
            hparam = own if own in self.hparam_names else "dropout_embedding"
            if self.common.get(hparam) != 0:
                rates[name] = self.hparam(hparam)
        return Dropout(rates, streams, step, place)

    def forward_pass(
        self,
        x: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        streams: RunStreams | None,
        step: int,
        place: str,
        fused: bool = True,
    ) -> Outputs:
        """Run the network as in training.

        Args:
            x: per modality ``(runs, batch, dim)``.
            present: per modality ``(runs, batch)`` bool.
            streams: random streams for dropout; ``None`` switches it off.
            step: training step.
            place: name of this pass.
            fused: whether the fused prediction is wanted.
        """
        gate = None if self.common.get("unimodal_gradient") == 1 else self.hparam("unimodal_gradient")
        return self.network(x, present, self.dropout(streams, step, place), gate, fused)  # type: ignore[no-any-return]

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

    def supervised(self, labeled: Labeled, streams: RunStreams | None, step: int) -> tuple[Outputs, dict[str, Tensor]]:
        """Cross-entropy of the fused head and of every unimodal head on a labeled batch, means over the batch.

        A clip without a modality does not count in that modality's mean (SSMDG, arXiv 2602.22917: sum of all). Where
        the runs mix, the fused prediction and its label are those of the mixed embeddings.
        """
        mixes = self.mixer is not None and streams is not None
        out = self.forward_pass(labeled.x, labeled.present, streams, step, "labeled", fused=not mixes)
        everyone = torch.ones_like(labeled.y, dtype=torch.bool)
        fused = self.fused_loss(out, labeled.y, everyone, labeled.present, streams, step, "labeled", mixes)
        terms = {f"labeled/{FUSED}": fused}
        for name in self.shape.modalities:
            terms[f"labeled/{name}"] = cross_entropy(out.logits[name], labeled.y, labeled.present[name])
        return out, terms

    def fused_loss(
        self,
        out: Outputs,
        labels: Tensor,
        mask: Tensor,
        present: Mapping[str, Tensor],
        streams: RunStreams | None,
        step: int,
        place: str,
        mixes: bool,
    ) -> Tensor:
        """Cross-entropy of the fused prediction over ``mask``, ``(runs,)``; with ``mixes`` of mixed embeddings."""
        if not mixes or self.mixer is None or streams is None:
            return cross_entropy(out.logits[FUSED], labels, mask)
        mixed = self.mixer.mix(out.embeddings, present, mask, streams, step, f"{place}/mix")
        # The fused layer's mask is that of the unmixed pass: where nothing is mixed, nothing is different.
        logits = self.network.fuse(mixed.embeddings, self.dropout(streams, step, place))
        return soft_cross_entropy(logits, labels, mixed, mask)

    @torch.no_grad()
    def modality_scores(
        self, x: Mapping[str, Tensor], present: Mapping[str, Tensor], y: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score each modality with the others masked to zero (B-MM, arXiv 2510.10986, eq. 5).

        Args:
            x: per modality ``(runs, clips, dim)``.
            present: per modality ``(runs, clips)`` bool.
            y: ``(runs, clips)`` int64.
            mask: ``(runs, clips)`` bool, clips that count.

        Returns:
            Sums over the clips that have the modality of the probability of the true class, in 1/``SCORE_UNITS``, and
            the number of those clips; both ``(runs, modalities)`` int64.
        """
        embeddings = self.network.embed(x, present)
        sums, counts = [], []
        for name in self.shape.modalities:
            only = {m: z if m == name else torch.zeros_like(z) for m, z in embeddings.items()}
            probs = torch.softmax(self.network.fuse(only), -1).gather(-1, y[..., None])[..., 0]
            here = present[name] & mask
            sums.append(((probs.double() * SCORE_UNITS).long() * here).sum(1))
            counts.append(here.sum(1))
        return torch.stack(sums, 1), torch.stack(counts, 1)

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
    hparams: Mapping[str, float | str]  # the method's own hyperparameters and their defaults
    paper: Mapping[str, float | str] = field(default_factory=dict)  # what ``--variant paper`` sets: as the release does
    fewest_modalities: int = 1
    all_labels: bool = False  # trains on the labels of all source training clips: an upper bound


# Hyperparameters that every method has; the values are those of SSMDG's release except the learning rate, which is
# ten times higher because only small heads are trained here.
SHARED_HPARAMS: Mapping[str, float | str] = {
    "learning_rate": 1e-3,
    "weight_decay": 1e-3,
    "schedule": "constant",
    "warmup_steps": 0.0,
    "dropout_embedding": 0.5,
    "dropout_audio": 0.0,
    "dropout_fused": 0.5,
    "unimodal_gradient": 1.0,  # 0: unimodal heads only watch, the embedding learns from the fused loss alone
}
