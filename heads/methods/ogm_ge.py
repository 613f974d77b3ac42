"""OGM-GE (Peng et al. 2022, arXiv 2203.15332): the dominant modality learns more slowly, with noise on the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from heads.losses import masked_mean
from heads.method import Method, Recipe
from heads.network import Labeled, Unlabeled
from heads.randomness import RunStreams


class OGMGE(Method):
    """Labeled only, with each modality's gradient scaled by how far it is ahead in the batch.

    Modulated are the modality's adapter and the weights of the fusion that read its embedding: the encoders, which
    the paper modulates, are frozen here.
    """

    def losses(
        self, labeled: Labeled, unlabeled: Unlabeled | None, streams: RunStreams | None, step: int
    ) -> dict[str, Tensor]:
        """Terms ``labeled/<head>``; keeps this step's factors for ``combine``."""
        out, terms = self.supervised(labeled, streams, step)
        self._factors = self.factors(out.logits, labeled)
        self._noise = (streams, step)
        return terms

    @torch.no_grad()
    def factors(self, logits: Mapping[str, Tensor], labeled: Labeled) -> dict[str, Tensor]:
        """Gradient factor ``(runs,)`` per modality: ``1 - tanh(alpha rho)`` where ``rho > 1``, else 1.

        ``rho`` is the modality's mean probability of the true class over the mean of the other modalities' (for two
        modalities their ratio).
        """
        names = self.shape.modalities
        scores = {
            m: masked_mean(torch.softmax(logits[m], -1).gather(-1, labeled.y[..., None])[..., 0], labeled.present[m])
            for m in names
        }
        alpha = self.hparam("ogm_alpha")
        found = {}
        for name in names:
            others = [scores[m] for m in names if m != name]
            mean = sum(others[1:], others[0]) / len(others) if others else scores[name]
            ratio = scores[name] / mean.clamp(min=1e-12)
            found[name] = torch.where(ratio > 1, 1 - torch.tanh(alpha * ratio), torch.ones_like(ratio))
        return found

    def combine(self, objectives: tuple[Tensor, ...]) -> None:
        """Backward, then modulation; GE noise has the standard deviation of the gradient before modulation."""
        super().combine(objectives)
        streams, step = self._noise
        for name, factor in self._factors.items():
            for number, gradient in enumerate(self._gradients(name)):
                axes = (-1,) + (1,) * (gradient.dim() - 1)
                noise = None
                if streams is not None and self.common.get("ogm_noise") != 0:
                    deviation = gradient.flatten(1).std(1, correction=0) * self.hparam("ogm_noise")
                    drawn = streams.normal(step, f"ogm/{name}/{number}", *gradient.shape[1:]).to(gradient)
                    noise = drawn * deviation.view(axes)
                gradient.mul_(factor.view(axes))
                if noise is not None:
                    gradient.add_(noise)

    def _gradients(self, modality: str) -> Iterator[Tensor]:
        """Gradients that belong to a modality; those of the fusion as views of its rows."""
        for parameter in self.network.adapters[modality].parameters():
            if parameter.grad is not None:
                yield parameter.grad
        for parameter, rows in self.network.fusion.blocks(modality):
            if parameter.grad is not None:
                yield parameter.grad[:, rows]


RECIPE = Recipe(
    title="OGM-GE",
    source="Peng et al. 2022, arXiv 2203.15332, as released",
    variant="labeled only; modulates each modality's adapter and its block of the fusion, as the encoders are frozen",
    build=OGMGE,
    hparams={"ogm_alpha": 0.3, "ogm_noise": 1.0},
)
