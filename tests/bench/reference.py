"""One SSMDG training step written the plain way, for one model: what the stack of ``heads`` is measured against.

It follows the description of the authors' release (shared/METHOD.md I.4 and I.5): ``nn.Linear`` modules, boolean
indexing for masks, Python loops over samples with ``.item()``, weak and strong views in passes of their own, PCGrad
over flat vectors of all parameters, and PyTorch's default AdamW. Nothing here is meant to be fast. It gives the same
numbers as ``heads.methods.ssmdg`` where dropout is off and prototypes that no labeled clip has reached take part.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from heads.layers import StackedLinear
from heads.method import SHARED_HPARAMS
from heads.methods.ssmdg import RECIPE, SSMDG
from heads.network import FUSED, HeadShape, Labeled, Unlabeled
from heads.optimiser import Rate, StackedOptimiser

Views = Mapping[str, Tensor]  # per modality (batch, dim)


@dataclass(frozen=True)
class Batch:
    """Both batches of a step of one model."""

    labeled: Views
    y: Tensor  # (labeled batch,) int64
    labeled_domain: Tensor  # (labeled batch,) int64
    weak: Views
    strong: Views
    unlabeled_domain: Tensor  # (unlabeled batch,) int64


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of the loop."""

    threshold: float = 0.95
    weight_consensus: float = 1.0
    weight_gce: float = 0.1
    gce_q: float = 0.7
    weight_prototype: float = 0.01
    weight_translation: float = 0.01
    learning_rate: float = 1e-4
    weight_decay: float = 1e-3


@dataclass(frozen=True)
class Report:
    """What one step was."""

    terms: Mapping[str, float]  # unweighted loss terms by the names of ``heads.methods.ssmdg``; none for an empty mask
    consensus: int  # clips
    nonconsensus: int  # clips
    inner: float | None  # product of the two objectives' gradients, None where only one objective is positive


class ResidualAdapter(nn.Module):
    """``z + W2 relu(W1 LN(z))``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reduce = nn.Linear(dim, min(256, dim))
        self.expand = nn.Linear(min(256, dim), dim, bias=False)
        nn.init.zeros_(self.expand.weight)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(batch, dim)`` to the same shape."""
        return z + self.expand(functional.relu(self.reduce(self.norm(z))))


class ReferenceModel(nn.Module):
    """Unimodal heads, the fused classifier and one translator per ordered pair of modalities.

    Args:
        dims: feature dim per modality, in fusion order.
        classes: number of classes.
        adapter: ``none`` or ``residual``.
        fused_hidden: hidden size of the fused classifier.
        translator_hidden: hidden size of the translators.
        dropout: dropout of the fused classifier, of the translators and of every embedding but audio.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        classes: int,
        adapter: str,
        fused_hidden: int,
        translator_hidden: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.dims = dict(dims)
        self.adapters = nn.ModuleDict(
            {m: ResidualAdapter(d) if adapter == "residual" else nn.Identity() for m, d in dims.items()}
        )
        self.dropouts = nn.ModuleDict({m: nn.Dropout(0.0 if m == "audio" else dropout) for m in dims})
        self.heads = nn.ModuleDict({m: nn.Linear(d, classes) for m, d in dims.items()})
        self.fused = nn.Sequential(
            nn.Linear(sum(dims.values()), fused_hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(fused_hidden, classes),
        )
        self.translators = nn.ModuleDict(
            {
                f"{a}_to_{b}": nn.Sequential(
                    nn.Linear(dims[a], translator_hidden),
                    nn.ReLU(),
                    nn.Linear(translator_hidden, translator_hidden),
                    nn.ReLU(),
                    nn.Dropout(dropout),
                    nn.Linear(translator_hidden, dims[b]),
                )
                for a in dims
                for b in dims
                if a != b
            }
        )

    def forward(self, x: Views) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings per modality and logits per modality and ``fused``."""
        embeddings = {m: self.dropouts[m](self.adapters[m](x[m])) for m in self.dims}
        logits = {m: self.heads[m](embeddings[m]) for m in self.dims}
        logits[FUSED] = self.fused(torch.cat([embeddings[m] for m in self.dims], dim=1))
        return embeddings, logits


class PrototypeManager:
    """Class prototypes per modality and source domain, updated clip by clip."""

    def __init__(self, dims: Mapping[str, int], domains: int, classes: int) -> None:
        self.vectors = {m: functional.normalize(torch.randn(domains, classes, d), dim=-1) for m, d in dims.items()}
        self.counts = dict.fromkeys(((e, c) for e in range(domains) for c in range(classes)), 0)

    @torch.no_grad()
    def update(self, embeddings: Views, labels: Tensor, domains: Tensor) -> None:
        """Move the prototypes of every (domain, class) of a labeled batch."""
        cells: dict[tuple[int, int], list[int]] = {}
        for clip in range(len(labels)):
            cells.setdefault((int(domains[clip].item()), int(labels[clip].item())), []).append(clip)
        for (domain, label), clips in cells.items():
            earlier = self.counts[domain, label]
            for name, z in embeddings.items():
                directions = torch.stack([functional.normalize(z[clip], dim=0) for clip in clips])
                mean = functional.normalize(directions.mean(dim=0), dim=0)
                old = self.vectors[name][domain, label]
                self.vectors[name][domain, label] = functional.normalize((earlier * old + mean) / (earlier + 1), dim=0)
            self.counts[domain, label] = earlier + 1


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """``mean((1 - p_y^q) / q)``."""
    probs = functional.softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    return ((1 - probs.clamp(min=1e-8) ** q) / q).mean()


def prototype_loss(embeddings: Views, labels: Tensor, prototypes: PrototypeManager) -> Tensor:
    """Mean distance of every clip to its class's prototype in every domain, over the modalities."""
    losses = []
    for name, z in embeddings.items():
        for clip in range(len(labels)):
            direction = functional.normalize(z[clip], dim=0)
            for vectors in prototypes.vectors[name]:
                losses.append(torch.norm(direction - vectors[labels[clip].item()]))
    return torch.stack(losses).mean()


def translation_loss(
    model: ReferenceModel, embeddings: Views, labels: Tensor, domains: Tensor, prototypes: PrototypeManager
) -> Tensor:
    """Mean distance of every translated clip to the target modality's prototypes: own domain, and mean of the rest."""
    losses = []
    for source in model.dims:
        start = functional.normalize(embeddings[source], dim=1)
        for target in model.dims:
            if source == target:
                continue
            translated = functional.normalize(model.translators[f"{source}_to_{target}"](start), dim=1)
            for clip in range(len(labels)):
                own, others = None, []
                for domain, vectors in enumerate(prototypes.vectors[target]):
                    distance = torch.norm(translated[clip] - vectors[labels[clip].item()])
                    if domain == domains[clip].item():
                        own = distance
                    else:
                        others.append(distance)
                losses.append(own)
                losses.append(torch.stack(others).mean())
    return torch.stack(losses).mean()


def pcgrad(objectives: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> float:
    """Write PCGrad's merged gradient of two objectives into ``.grad``; returns the product of the two gradients."""
    gradients = []
    for objective in objectives:
        for parameter in parameters:
            parameter.grad = None
        objective.backward(retain_graph=True)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        gradients.append(torch.cat([part.flatten() for part in parts]))
    projected = copy.deepcopy(gradients)
    for own, vector in enumerate(projected):
        for other in (g for index, g in enumerate(gradients) if index != own):
            inner = torch.dot(vector, other)
            if inner < 0:
                vector -= inner / (other.norm() ** 2 + 1e-8) * other
    merged = torch.stack(projected).mean(dim=0)
    start = 0
    for parameter in parameters:
        parameter.grad = merged[start : start + parameter.numel()].view_as(parameter).clone()
        start += parameter.numel()
    return float(torch.dot(gradients[0], gradients[1]).item())


class ReferenceLoop:
    """Model, prototypes and optimiser of one run."""

    def __init__(self, model: ReferenceModel, prototypes: PrototypeManager, settings: Settings) -> None:
        self.model, self.prototypes, self.settings = model, prototypes, settings
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def step(self, batch: Batch) -> Report:
        """One training step."""
        settings = self.settings
        terms: dict[str, Tensor] = {}
        embeddings, logits = self.model(batch.labeled)
        for head, value in logits.items():
            terms[f"labeled/{head}"] = functional.cross_entropy(value, batch.y)
        self.prototypes.update(embeddings, batch.y, batch.labeled_domain)
        labeled = torch.stack(list(terms.values())).sum()

        weak, weak_logits = self.model(batch.weak)
        strong, strong_logits = self.model(batch.strong)
        consensus, nonconsensus, labels = self._pseudo_labels(weak_logits)
        unlabeled = torch.zeros_like(labeled)
        if consensus.any():
            for head, value in strong_logits.items():
                terms[f"consensus/{head}"] = functional.cross_entropy(value[consensus], labels[consensus])
                unlabeled = unlabeled + settings.weight_consensus * terms[f"consensus/{head}"]
        if nonconsensus.any():
            for head in strong_logits:
                for view, found in (("weak", weak_logits), ("strong", strong_logits)):
                    term = generalised_cross_entropy(found[head][nonconsensus], labels[nonconsensus], settings.gce_q)
                    terms[f"gce/{head}/{view}"] = term
                    unlabeled = unlabeled + settings.weight_gce * term
        if consensus.any():
            kept, domains = labels[consensus], batch.unlabeled_domain[consensus]
            chosen = {m: z[consensus] for m, z in strong.items()}
            terms["prototype"] = prototype_loss(chosen, kept, self.prototypes)
            unlabeled = unlabeled + settings.weight_prototype * terms["prototype"]
            for view, own in (("weak", weak), ("strong", strong)):
                part = {m: z[consensus] for m, z in own.items()}
                terms[f"translation/{view}"] = translation_loss(self.model, part, kept, domains, self.prototypes)
                unlabeled = unlabeled + settings.weight_translation * terms[f"translation/{view}"]

        objectives = [value for value in (labeled, unlabeled) if value.item() > 0]
        self.optimiser.zero_grad()
        inner = None
        if len(objectives) > 1:
            inner = pcgrad(objectives, list(self.model.parameters()))
        elif objectives:
            objectives[0].backward()
        self.optimiser.step()
        return Report(
            {name: float(value.item()) for name, value in terms.items()},
            int(consensus.sum().item()),
            int(nonconsensus.sum().item()),
            inner,
        )

    def _pseudo_labels(self, logits: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Consensus and non-consensus masks, and the labels, of a weak pass."""
        with torch.no_grad():
            confidence, labels = functional.softmax(logits[FUSED], dim=1).max(dim=1)
            confident = confidence >= self.settings.threshold
            supported = torch.zeros_like(confident)
            for name in self.model.dims:
                own_confidence, own_labels = functional.softmax(logits[name], dim=1).max(dim=1)
                supported |= (own_labels == labels) & (own_confidence >= self.settings.threshold)
        return confident & supported, confident & ~supported, labels


def build_stack(shape: HeadShape, seeds: Sequence[int], settings: Settings, dtype: torch.dtype) -> SSMDG:
    """A stack of ``heads.methods.ssmdg`` that does what the loop does: the release's reading of the method.

    Args:
        shape: what the runs share.
        seeds: one per run.
        settings: hyperparameters of the loop.
        dtype: of parameters and hyperparameters.
    """
    release = {"unseen_prototypes": 1.0, "distances_after_dropout": 1.0}
    values = {**SHARED_HPARAMS, **RECIPE.hparams, **release, **vars(settings)}
    numbers = {name: float(value) for name, value in values.items() if not isinstance(value, str)}
    hparams = {name: torch.full((len(seeds),), value, dtype=dtype) for name, value in numbers.items()}
    return SSMDG(shape, hparams, seeds).to(dtype)


def build_optimiser(method: SSMDG, settings: Settings) -> StackedOptimiser:
    """The stack's AdamW."""
    rate = Rate(settings.learning_rate, settings.weight_decay)
    return StackedOptimiser("adamw", list(method.parameters()), [rate] * method.runs)


def parameters_of(method: SSMDG, run: int) -> dict[str, Tensor]:
    """Parameters of one run of a stack under the names and in the layout of ``ReferenceModel``."""
    found: dict[str, Tensor] = {}

    def linear(name: str, layer: StackedLinear) -> None:
        rows, columns = layer.live  # the rest is padding
        found[f"{name}.weight"] = layer.weight[run, :rows, :columns].T
        found[f"{name}.bias"] = layer.bias[run, 0, :columns]

    network = method.network
    linear("fused.0", network.fusion.first)
    linear("fused.3", network.fusion.last)
    for name in method.shape.modalities:
        linear(f"heads.{name}", network.unimodal[name])
        adapter = network.adapters[name]
        if method.shape.adapter == "residual":
            found[f"adapters.{name}.norm.weight"] = adapter.norm.weight[run, 0]
            found[f"adapters.{name}.norm.bias"] = adapter.norm.bias[run, 0]
            linear(f"adapters.{name}.reduce", adapter.reduce)
            found[f"adapters.{name}.expand.weight"] = adapter.expand_weight[run].T
    for name, translator in method.translators.items():
        for position, layer in ((0, translator.first), (2, translator.second), (5, translator.last)):
            linear(f"translators.{name}.{position}", layer)
    return found


def reference_of(method: SSMDG, run: int, settings: Settings, dropout: float = 0.5) -> ReferenceLoop:
    """A plain loop that starts from the parameters and prototypes of one run of a stack."""
    shape = method.shape
    dims = dict(shape.dims)
    model = ReferenceModel(
        dims, shape.classes, shape.adapter, shape.fused_hidden, shape.translator_hidden, dropout=dropout
    )
    start = parameters_of(method, run)
    example = next(iter(start.values()))
    model.to(example).load_state_dict({name: value.detach().clone() for name, value in start.items()})
    prototypes = PrototypeManager(dims, shape.domains, shape.classes)
    prototypes.vectors = {m: method.prototypes.vectors(m)[run].clone() for m in dims}
    return ReferenceLoop(model, prototypes, settings)


def batch_of(labeled: Labeled, unlabeled: Unlabeled, run: int) -> Batch:
    """One run's part of the batches of a stack; every clip has every modality."""

    def views(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: value[run].contiguous() for m, value in x.items()}

    return Batch(
        views(labeled.x),
        labeled.y[run],
        labeled.domain[run],
        views(unlabeled.weak),
        views(unlabeled.strong),
        unlabeled.domain[run],
    )
