"""SSMDG: semi-supervised multimodal domain generalisation (arXiv 2602.22917), complete loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from heads.gradients import pcgrad
from heads.layers import initialise, unit
from heads.losses import (
    PseudoLabels,
    add_up,
    alignment_terms,
    consensus_pseudo_labels,
    cross_entropy,
    generalised_cross_entropy,
    masked_mean,
    prototype_distances,
    translation_terms,
)
from heads.method import Method, Recipe
from heads.network import FUSED, HeadShape, Labeled, Outputs, Unlabeled
from heads.prototypes import Prototypes
from heads.randomness import RunStreams
from heads.translators import build_translators, pair_name


class SSMDG(Method):
    """Consensus pseudo-labels, noise-tolerant loss on unsupported ones, prototypes, translators, PCGrad.

    Differences to the authors' release, on purpose, each a hyperparameter: prototypes of a (domain, class) that no
    labeled clip has reached yet take no part in the losses (there they are random unit vectors that attract features;
    ``unseen_prototypes`` 1); prototypes and translators see the embedding before dropout, as they do at test time
    (there after it; ``distances_after_dropout`` 1). A clip without a modality takes part with what it has.
    Pseudo-labels come from the pass that is trained, with its dropout, as in the release: the weak logits also carry a
    loss.
    """

    uses_unlabeled = True

    def __init__(self, shape: HeadShape, hparams: Mapping[str, Tensor], seeds: Sequence[int]) -> None:
        super().__init__(shape, hparams, seeds)
        dims = self.network.embedding_dims
        self.translators = build_translators(self.runs, dims, shape.translator_hidden)
        initialise(self.translators, seeds, "translators")
        self.prototypes = Prototypes(self.runs, shape.domains, shape.classes, dims)
        self.prototypes.initialise(seeds)

    def losses(
        self, labeled: Labeled, unlabeled: Unlabeled | None, streams: RunStreams | None, step: int
    ) -> dict[str, Tensor]:
        """All terms of the paper's objective, unweighted; the prototypes move before the unlabeled pass."""
        if unlabeled is None:
            raise ValueError("SSMDG needs an unlabeled batch")
        out, terms = self.supervised(labeled, streams, step)
        self.prototypes.update(self._points(out), labeled.present, labeled.y, labeled.domain)
        # Weak and strong views in one pass: half as many kernels, and no layer looks across the batch.
        size = unlabeled.domain.shape[1]
        both = self.forward_pass(
            {m: torch.cat([unlabeled.weak[m], unlabeled.strong[m]], 1) for m in self.shape.modalities},
            {m: torch.cat([here, here], 1) for m, here in unlabeled.present.items()},
            streams,
            step,
            "unlabeled",
        )
        weak, strong = both.rows(slice(0, size)), both.rows(slice(size, None))
        pseudo = self.pseudo_labels(weak.logits, unlabeled.present)
        everyone = torch.ones_like(pseudo.accepted)
        q = self.hparam("gce_q")
        for head in strong.logits:
            here = unlabeled.present.get(head, everyone)
            accepted, rest = pseudo.accepted & here, pseudo.masks["nonconsensus"] & here
            if head == FUSED:
                terms[f"consensus/{head}"] = self._fused_consensus(strong, unlabeled, pseudo, streams, step)
            else:
                terms[f"consensus/{head}"] = cross_entropy(strong.logits[head], pseudo.labels, accepted)
            for view, outputs in (("weak", weak), ("strong", strong)):
                terms[f"gce/{head}/{view}"] = generalised_cross_entropy(outputs.logits[head], pseudo.labels, rest, q)
        terms["prototype"] = self._alignment(strong, unlabeled, pseudo)
        terms["translation/weak"], terms["translation/strong"] = self._translation(
            both, unlabeled, pseudo, streams, step
        )
        return terms

    def objectives(self, terms: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Two objectives: labeled cross-entropy, and the weighted sum of everything unlabeled."""
        weights = {
            "consensus": self.hparam("weight_consensus"),
            "gce": self.hparam("weight_gce"),
            "prototype": self.hparam("weight_prototype"),
            "translation": self.hparam("weight_translation"),
        }
        labeled = add_up(v for k, v in terms.items() if k.startswith("labeled/"))
        unlabeled = add_up(v * weights[k.split("/")[0]] for k, v in terms.items() if not k.startswith("labeled/"))
        return labeled, unlabeled

    def combine(self, objectives: tuple[Tensor, ...]) -> None:
        """PCGrad between the labeled and the unlabeled objective, over all parameters of each run."""
        pcgrad(objectives[0], objectives[1], list(self.parameters()))

    def pseudo_labels(self, logits: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> PseudoLabels:
        """Consensus of the fused and at least one unimodal prediction, both confident."""
        return consensus_pseudo_labels(logits, present, self.hparam("threshold"))

    def _points(self, out: Outputs) -> Mapping[str, Tensor]:
        """The embeddings that prototypes and translators see."""
        after = self.common.get("distances_after_dropout")
        if after is not None:
            return out.embeddings if after else out.plain
        chosen = (self.hparam("distances_after_dropout") > 0)[:, None, None]
        return {m: torch.where(chosen, out.embeddings[m], out.plain[m]) for m in self.shape.modalities}

    def _fused_consensus(
        self, strong: Outputs, unlabeled: Unlabeled, pseudo: PseudoLabels, streams: RunStreams | None, step: int
    ) -> Tensor:
        """Cross-entropy of the fused strong prediction on consensus clips, of runs that want it on mixed embeddings."""
        common = 0.0 if self.mixer is None or streams is None else self.common.get("mix_unlabeled")
        inputs = (strong, pseudo.labels, pseudo.accepted, unlabeled.present, streams, step, "consensus")
        if common is not None:
            return self.fused_loss(*inputs, mixes=bool(common))
        wanted = self.hparam("mix_unlabeled") > 0
        return torch.where(wanted, self.fused_loss(*inputs, mixes=True), self.fused_loss(*inputs, mixes=False))

    def _known(self, modality: str, labels: Tensor) -> Tensor:
        """Which prototypes of each clip's class take part: ``(runs, batch, domains)`` bool."""
        rows = torch.arange(self.runs, device=labels.device)[:, None]
        reached = self.prototypes.counts(modality)[rows, :, labels] > 0
        return reached | (self.hparam("unseen_prototypes") > 0)[:, None, None]

    def _alignment(self, strong: Outputs, unlabeled: Unlabeled, pseudo: PseudoLabels) -> Tensor:
        """Mean over modalities, consensus clips and domains of the distance to the class prototype."""
        values, weights = [], []
        points = self._points(strong)
        for name in self.shape.modalities:
            distances = prototype_distances(points[name], self.prototypes.vectors(name), pseudo.labels)
            mask = pseudo.accepted & unlabeled.present[name]
            terms, weight = alignment_terms(distances, self._known(name, pseudo.labels), mask)
            values.append(terms)
            weights.append(weight)
        return masked_mean(torch.cat(values, -1), torch.cat(weights, -1))

    def _translation(
        self, both: Outputs, unlabeled: Unlabeled, pseudo: PseudoLabels, streams: RunStreams | None, step: int
    ) -> tuple[Tensor, Tensor]:
        """Mean over ordered pairs and consensus clips of the translation's distance to the target prototype.

        Args:
            both: outputs of the weak views, then of the strong views.
            unlabeled: the batch.
            pseudo: its pseudo-labels.
            streams: random streams for dropout, ``None`` switches it off.
            step: training step.

        Returns:
            The loss of the weak and of the strong views, each ``(runs,)``.
        """
        size = unlabeled.domain.shape[1]
        labels = torch.cat([pseudo.labels, pseudo.labels], 1)
        values: tuple[list[Tensor], list[Tensor]] = ([], [])
        weights: list[Tensor] = []
        points = self._points(both)
        for source in self.shape.modalities:
            start = unit(points[source])
            mask = pseudo.accepted & unlabeled.present[source]
            for target in self.shape.modalities:
                if source == target:
                    continue
                name = pair_name(source, target)
                translated = self.translators[name](start, self.hparam("dropout_translator"), streams, step, name)
                distances = prototype_distances(translated, self.prototypes.vectors(target), labels)
                known = self._known(target, pseudo.labels)
                for part, found in ((slice(0, size), values[0]), (slice(size, None), values[1])):
                    terms, weight = translation_terms(distances[:, part], known, unlabeled.domain, mask)
                    found.append(terms)
                weights.append(weight)
        weight = torch.cat(weights, -1)
        return masked_mean(torch.cat(values[0], -1), weight), masked_mean(torch.cat(values[1], -1), weight)


RECIPE = Recipe(
    title="SSMDG",
    source="arXiv 2602.22917 (CVPR 2026)",
    variant="complete loss; prototypes that no labeled clip has reached take no part, and distances are taken before "
    "dropout",
    build=SSMDG,
    hparams={
        "threshold": 0.95,
        "weight_consensus": 1.0,
        "weight_gce": 0.1,
        "gce_q": 0.7,
        "weight_prototype": 0.01,
        "weight_translation": 0.01,
        "dropout_translator": 0.5,
        "unseen_prototypes": 0.0,
        "distances_after_dropout": 0.0,
        "mix_unlabeled": 0.0,  # with mixing: whether the consensus batch is mixed too
    },
    fewest_modalities=2,
    paper={"unseen_prototypes": 1.0, "distances_after_dropout": 1.0},
)
