"""MM and Balanced MM: mixup of embeddings before fusion ("Mixup Helps Understanding Multimodal Video Better",
arXiv 2510.10986).

Degree ``g`` of a modality: its mixed embedding is ``(1 - g) z_i + g z_j`` with one partner ``j`` per clip for all
modalities, a random permutation of the batch. The label is mixed with ``g_y``: the loss is
``(1 - g_y) CE(y_i) + g_y CE(y_j)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heads.losses import masked_mean
from heads.randomness import RunStreams

MIXINGS = ("none", "mm", "bmm")
# Hyperparameters of each kind; texts are choices (``heads.method.CHOICES``).
MIXING_HPARAMS: Mapping[str, Mapping[str, float | str]] = {
    "none": {},
    "mm": {"mix_alpha": 0.2},
    "bmm": {
        "mix_alpha": 1.0,
        "mix_warmup_epochs": 5.0,
        "mix_ratio_form": "excess",
        "mix_label_degree": "max",
        "mix_max_degree": 1.0,
    },
}
SCORE_UNITS = 2**32  # a score is a sum of probabilities in these units: sums of integers do not round
BELOW_ONE = 1 - 2**-24  # the largest float32 less than 1
SCORE_ROWS = 64  # clips per pass of scoring; fixed, so that a run's scores do not depend on the stack's largest set


@dataclass(frozen=True)
class Mixed:
    """Embeddings of a mixed batch and what its labels are."""

    embeddings: Mapping[str, Tensor]  # per modality (runs, batch, dim)
    partner: Tensor  # (runs, batch) int64
    label_degree: Tensor  # (runs, batch) in [0, 1], share of the partner's label


def soft_cross_entropy(logits: Tensor, labels: Tensor, mixed: Mixed, mask: Tensor) -> Tensor:
    """Cross-entropy against labels mixed with the partner's, mean over ``mask``; ``(runs,)`` (their eq. 3).

    Args:
        logits: ``(runs, batch, classes)`` of the mixed embeddings.
        labels: ``(runs, batch)`` int64, before mixing.
        mixed: partners and degrees.
        mask: ``(runs, batch)`` bool.
    """
    log_probs = -torch.log_softmax(logits, -1)
    own = log_probs.gather(-1, labels[..., None])[..., 0]
    other = log_probs.gather(-1, labels.gather(1, mixed.partner)[..., None])[..., 0]
    return masked_mean(own * (1 - mixed.label_degree) + other * mixed.label_degree, mask)


class Mixer(nn.Module):
    """Mixing of a stack: hyperparameters per run, and for B-MM the degrees found after the last epoch.

    Args:
        kind: ``mm`` or ``bmm``.
        modalities: in fusion order.
        hparams: per name a tensor ``(runs,)``; a choice is the position of its value.
    """

    degrees: Tensor  # (runs, modalities), B-MM's g of each modality
    epochs: Tensor  # (runs,) epochs scored so far

    def __init__(self, kind: str, modalities: Sequence[str], hparams: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.kind, self.modalities = kind, tuple(modalities)
        self.alphas: list[float] = hparams["mix_alpha"].tolist()  # on the host: Beta draws are made there
        runs = len(self.alphas)
        for name in MIXING_HPARAMS[kind]:
            self.register_buffer(name, hparams[name].clone(), persistent=False)
        self.register_buffer("degrees", torch.zeros(runs, len(self.modalities)))
        self.register_buffer("epochs", torch.zeros(runs))

    @property
    def needs_scores(self) -> bool:
        """Whether the labeled set is scored after every epoch."""
        return self.kind == "bmm"

    def mix(
        self,
        embeddings: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        allowed: Tensor,
        streams: RunStreams,
        step: int,
        place: str,
    ) -> Mixed:
        """Mix a batch.

        MM leaves a pair alone whose clips do not have the same modalities; B-MM mixes a modality that both have.

        Args:
            embeddings: per modality ``(runs, batch, dim)``.
            present: per modality ``(runs, batch)`` bool.
            allowed: ``(runs, batch)`` bool; a pair is mixed only if both its clips are allowed.
            streams: random streams of the stack.
            step: training step.
            place: name of this batch; two batches of one step draw independently.
        """
        size = allowed.shape[1]
        partner = streams.permutation(step, f"{place}/partner", size)
        pair = allowed & allowed.gather(1, partner)
        both = {m: here & here.gather(1, partner) for m, here in present.items()}
        if self.kind == "mm":
            for here in present.values():
                pair = pair & (here == here.gather(1, partner))
            one = 1 - streams.beta(step, f"{place}/lambda", self.alphas)
            degrees = one[:, None].expand(-1, len(self.modalities))
        else:
            degrees = self.degrees
        of_clip = [degrees[:, k, None] * (pair & both[m]) for k, m in enumerate(self.modalities)]
        mixed = {}
        for g, name in zip(of_clip, self.modalities, strict=True):
            z = embeddings[name]
            g = g[..., None].to(z.dtype)
            mixed[name] = z * (1 - g) + z.gather(1, partner[..., None].expand_as(z)) * g
        return Mixed(mixed, partner, self._label_degree(of_clip, pair))

    def _label_degree(self, of_clip: Sequence[Tensor], pair: Tensor) -> Tensor:
        """Share of the partner's label: the largest degree of the pair, or the mean over its mixed modalities."""
        largest, total = of_clip[0], of_clip[0]
        number = (of_clip[0] > 0).to(total.dtype)
        for g in of_clip[1:]:
            largest = torch.maximum(largest, g)
            total = total + g
            number = number + (g > 0)
        if self.kind == "mm":
            return largest
        by_mean = (self.get_buffer("mix_label_degree") > 0)[:, None]
        return torch.where(by_mean, total / number.clamp(min=1), largest) * pair

    @torch.no_grad()
    def end_epoch(self, scores: Tensor, counts: Tensor, ended: Tensor) -> None:
        """Set the degrees of the next epoch from the discrepancy of the modalities (their eq. 5 to 8).

        ``rho_m`` is modality m's mean score over the mean of the others' (for two modalities the ratio); a modality
        with ``rho_m < 1`` is mixed with ``tanh(alpha (1 / rho_m - 1))`` (``excess``) or ``tanh(alpha / rho_m)``
        (``raw``, as OGM-GE uses tanh, which jumps at balance), at most ``max_degree``.

        Args:
            scores: ``(runs, modalities)`` int64, sums over the labeled clips that have the modality of the probability
                of the true class with all other modalities masked, in 1/``SCORE_UNITS``.
            counts: ``(runs, modalities)`` int64, numbers of those clips.
            ended: ``(runs,)`` bool, runs whose epoch has just ended; the others stay as they are.
        """
        mean = scores.double() / SCORE_UNITS / counts.clamp(min=1)
        known = counts > 0
        # Not the total less the modality's own: of equal scores that may be more than the sum of the others.
        apart = 1 - torch.eye(len(self.modalities), dtype=mean.dtype, device=mean.device)
        others = ((mean * known)[:, None, :] * apart).sum(2)
        number = known.sum(1, keepdim=True) - known.long()
        inverse = others / number.clamp(min=1) / mean.clamp(min=1e-12)
        weak = known & (number > 0) & (inverse > 1)
        raw = (self.get_buffer("mix_ratio_form") > 0)[:, None]
        argument = torch.where(raw, inverse, inverse - 1) * self.get_buffer("mix_alpha").double()[:, None]
        limit = self.get_buffer("mix_max_degree").double()[:, None]
        degrees = torch.minimum(torch.tanh(argument), limit).clamp(max=BELOW_ONE) * weak
        epochs = self.epochs + ended
        warm = epochs >= self.get_buffer("mix_warmup_epochs")
        degrees = (degrees * warm[:, None]).to(self.degrees)
        self.degrees.copy_(torch.where(ended[:, None], degrees, self.degrees))
        self.epochs.copy_(epochs)
