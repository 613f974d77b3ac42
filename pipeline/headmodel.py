"""One trained run as a model: features of a batch in, calibrated probabilities out; no axis of runs at its boundary."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from heads.fillers import FILLERS, FillerState, predict_missing
from heads.network import HeadNetwork, HeadShape
from heads.translators import build_translators
from pipeline.errors import UsageError, choose
from pipeline.trust import check_threshold

NEEDS_TRANSLATORS = ("translate", "translate-raw")
NEEDS_FINETUNING = ("finetuned",)  # no run keeps translators that were trained after it
STACKED = ("network.", "translators.")  # tensors that have an axis of runs inside the model, and none in a file
DTYPES: Mapping[str, torch.dtype] = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class HeadInput:
    """What a model reads of one modality."""

    modality: str
    dim: int  # of a feature, as its backbone gives it
    width: int  # of what the network reads: ``dim``, or the principal components that were kept
    dtype: str = "float16"  # a feature is rounded to it first, as the cache has stored it: a key of ``DTYPES``

    def __post_init__(self) -> None:
        choose("type of features", self.dtype, DTYPES)


@dataclass(frozen=True)
class HeadPlan:
    """Everything that decides the tensors of a model and what it computes from them."""

    classes: tuple[str, ...]
    inputs: tuple[HeadInput, ...]  # in fusion order
    shape: HeadShape  # of the network; its dims are the inputs' widths
    projected: bool  # features are projected onto principal components
    translators: bool  # the method has trained some
    filler: str  # what stands in for a missing modality unless a caller says otherwise
    threshold: float  # least calibrated confidence that a trust level counts

    def __post_init__(self) -> None:
        widths = tuple((i.modality, i.width) for i in self.inputs)
        if widths != self.shape.dims or len(self.classes) != self.shape.classes:
            raise ValueError(
                f"the network reads {self.shape.dims} and knows {self.shape.classes} classes; the inputs have {widths} "
                f"and there are {len(self.classes)} classes"
            )
        if not self.projected and any(i.dim != i.width for i in self.inputs):
            raise ValueError(f"without a projection the width of an input is its dim: {self.inputs}")
        choose("filler of this model", self.filler, self.fillers)
        check_threshold(self.threshold)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in fusion order."""
        return tuple(i.modality for i in self.inputs)

    @property
    def fillers(self) -> tuple[str, ...]:
        """Names of the fillers that the model can use."""
        without = {*NEEDS_FINETUNING, *(() if self.translators else NEEDS_TRANSLATORS)}
        return tuple(name for name in FILLERS if name not in without)

    @property
    def subsets(self) -> tuple[tuple[str, ...], ...]:
        """Every subset of modalities that a row can have, the full one first."""
        full = self.modalities
        return tuple(kept for size in range(len(full), 0, -1) for kept in combinations(full, size))


@dataclass(frozen=True)
class Prediction:
    """What a model says of a batch; NaN where nothing can be said, because no modality is present."""

    # (batch, classes) float32, not calibrated. All modalities present, or the filler ``zero``: as evaluation has them.
    # Else their softmax is what ``heads.fillers.predict_missing`` gives.
    logits: Tensor
    probs: Tensor  # (batch, classes) float32, calibrated
    alone: Mapping[str, Tensor]  # per modality (batch, classes) float32, calibrated; NaN where it is not present


class HeadModel(nn.Module):
    """A trained run, for prediction: scaling of features, network, fillers and temperatures.

    Rows do not depend on each other, and every row may lack other modalities.

    Args:
        plan: what the model is; its tensors are empty until they are loaded.
    """

    temperature: Tensor
    temperature_alone: Tensor

    def __init__(self, plan: HeadPlan) -> None:
        super().__init__()
        self.plan = plan
        self.modalities = plan.modalities  # in fusion order
        self.classes = plan.classes
        self.dims: dict[str, int] = {i.modality: i.dim for i in plan.inputs}  # of a feature, before any projection
        self.filler = plan.filler
        self.fillers = plan.fillers
        self.threshold = plan.threshold
        self.network = HeadNetwork(plan.shape, 1)
        sizes = self.network.embedding_dims
        hidden = plan.shape.translator_hidden
        self.translators = build_translators(1, sizes, hidden) if plan.translators else nn.ModuleDict()
        for i in plan.inputs:
            self.register_buffer(f"mean_{i.modality}", torch.empty(i.dim))
            self.register_buffer(f"scale_{i.modality}", torch.empty(i.dim))
            if plan.projected:
                self.register_buffer(f"matrix_{i.modality}", torch.empty(i.dim, i.width))
            self.register_buffer(f"filler_mean_{i.modality}", torch.empty(sizes[i.modality]))
            self.register_buffer(f"filler_length_{i.modality}", torch.empty(()))
            self.register_buffer(f"filler_prototypes_{i.modality}", torch.empty(plan.shape.classes, sizes[i.modality]))
        # Of the fused prediction per subset of modalities: bit k of the position is set where modality k is present.
        self.register_buffer("temperature", torch.ones(2 ** len(plan.inputs)), persistent=False)
        self.register_buffer("temperature_alone", torch.ones(len(plan.inputs)), persistent=False)
        self.requires_grad_(False).eval()

    def set_temperatures(self, fused: Mapping[tuple[str, ...], float], alone: Mapping[str, float]) -> None:
        """Set what the logits are divided by before the softmax.

        Args:
            fused: per subset of modalities in fusion order; a subset that is not named keeps 1.
            alone: per modality, of its own prediction.
        """
        for kept, value in fused.items():
            self.temperature[sum(1 << self.modalities.index(name) for name in kept)] = value
        for name, value in alone.items():
            self.temperature_alone[self.modalities.index(name)] = value

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what ``tensors`` gives."""
        state = self.state_dict()
        return {name: tuple(value.shape[1 if name.startswith(STACKED) else 0 :]) for name, value in state.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training left, without an axis of runs, on the CPU."""
        return {
            name: (value[0] if name.startswith(STACKED) else value).detach().cpu().contiguous()
            for name, value in self.state_dict().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` gave."""
        state = {name: value[None] if name.startswith(STACKED) else value for name, value in tensors.items()}
        self.load_state_dict(state)

    @torch.no_grad()
    def forward(
        self, features: Mapping[str, Tensor], present: Mapping[str, Tensor], filler: str | None = None
    ) -> Prediction:
        """Predict the classes of a batch.

        A value that is no finite number, where its modality is present, makes the row's answer NaN.

        Args:
            features: per modality ``(batch, dim)`` float16 or float32, as the backbones give them; a modality may be
                left out, then no row has it. What stands where ``present`` is not set is ignored.
            present: per modality ``(batch,)`` bool, of the same modalities; all on the model's device.
            filler: what stands in for missing modalities, one of ``fillers``; ``None``: the model's own. Rows that
                lack a modality are calibrated for the model's own filler only; with another their temperature is 1.

        Raises:
            UsageError: an unknown modality or filler, or features of another shape or type.
        """
        chosen = self.filler if filler is None else choose("filler of this model", filler, self.fillers)
        x, here = self._checked(features, present)
        rows = len(next(iter(here.values())))
        if rows == 1:  # a matrix times a vector is rounded in another way than the same row of a larger product
            x, here = ({m: value.repeat(2, *[1] * (value.ndim - 1)) for m, value in part.items()} for part in (x, here))
        found = self.compute(x, here, chosen)
        return Prediction(found.logits[:rows], found.probs[:rows], {m: own[:rows] for m, own in found.alone.items()})

    def _checked(
        self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All modalities' features and presence."""
        for name in {**features, **present}:
            choose("modality of this model", name, self.modalities)
            if name not in features or name not in present:
                raise UsageError(f"{name} must be in both features and present, or in neither; it is in one of them")
        if not features:
            raise UsageError(f"there are no features; give those of at least one of {', '.join(self.modalities)}")
        rows = next(iter(present.values()))
        x, here = {}, {}
        for name, dim in self.dims.items():
            if name not in features:
                x[name] = torch.zeros(len(rows), dim, device=rows.device)
                here[name] = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
                continue
            x[name], here[name] = features[name], present[name]
            if x[name].dtype not in DTYPES.values() or tuple(x[name].shape) != (len(rows), dim):
                raise UsageError(
                    f"{name} features are {tuple(x[name].shape)} {x[name].dtype}; they must be ({len(rows)}, {dim}) in "
                    "float16 or float32, from the backbone that the model was trained with"
                )
            if here[name].dtype != torch.bool or tuple(here[name].shape) != (len(rows),):
                raise UsageError(
                    f"presence of {name} is {tuple(here[name].shape)} {here[name].dtype}; it must be ({len(rows)},) "
                    "bool"
                )
        return x, here

    def compute(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor], filler: str) -> Prediction:
        """Do the work of ``forward`` for all modalities, without any check: what an exported graph holds."""
        x = {i.modality: self._normalised(i, features[i.modality])[None] for i in self.plan.inputs}
        here = {m: present[m][None] for m in self.modalities}
        embeddings = self.network.embed(x, here)
        some = functools.reduce(torch.logical_or, (present[m] for m in self.modalities))[:, None]
        complete = functools.reduce(torch.logical_and, (present[m] for m in self.modalities))[:, None]
        logits = self.network.fuse(embeddings)[0]
        if filler != "zero":  # which is what the network does by itself
            probs = predict_missing(self.network, x, here, filler, self._filler_state())[0]
            logits = torch.where(complete, logits, probs.clamp_min(torch.finfo(probs.dtype).tiny).log())
        temperature = self._temperature(present)[:, None]
        if filler != self.filler:
            temperature = torch.where(complete, temperature, torch.ones_like(temperature))
        nothing = torch.full_like(logits, torch.nan)
        alone = {}
        for position, (name, values) in enumerate(self.network.alone(embeddings).items()):
            own = torch.softmax(values[0] / self.temperature_alone[position], -1)
            alone[name] = torch.where(present[name][:, None], own, nothing)
        probs = torch.softmax(logits / temperature, -1)
        return Prediction(torch.where(some, logits, nothing), torch.where(some, probs, nothing), alone)

    def _normalised(self, wanted: HeadInput, x: Tensor) -> Tensor:
        """Features as the network reads them, ``(batch, width)`` float32; rows that are not present hold anything.

        The numbers are those of ``pipeline.bank.Standardiser`` or ``pipeline.projection.Projection``, whose result
        is stored as float16.
        """
        x = x.to(DTYPES[wanted.dtype]).float()
        x = (x - self.get_buffer(f"mean_{wanted.modality}")) * self.get_buffer(f"scale_{wanted.modality}")
        if self.plan.projected:
            limit = torch.finfo(torch.float16).max
            x = (x @ self.get_buffer(f"matrix_{wanted.modality}")).clamp(-limit, limit).half().float()
        return x

    def _temperature(self, present: Mapping[str, Tensor]) -> Tensor:
        """Temperature of the fused prediction of every row, ``(batch,)``."""
        bits = [present[name].long() << k for k, name in enumerate(self.modalities)]
        return self.temperature[functools.reduce(torch.add, bits)]

    def _filler_state(self) -> FillerState:
        """What fillers know, as a stack of one run."""
        known = {
            part: {m: self.get_buffer(f"filler_{part}_{m}")[None] for m in self.modalities}
            for part in ("mean", "length", "prototypes")
        }
        return FillerState(known["mean"], known["length"], known["prototypes"], self.translators)


def removed(present: Mapping[str, Tensor], kept: Sequence[str]) -> dict[str, Tensor]:
    """Presence of a batch with all modalities taken away but ``kept``."""
    return {m: here if m in kept else torch.zeros_like(here) for m, here in present.items()}
