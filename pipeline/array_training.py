"""Arrays in memory -> a trained run: the same training loop, with the rows of arrays as the clips of a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.fillers import FillerState, predict_missing
from heads.method import Method
from heads.methods import METHODS
from heads.network import FUSED
from heads.translators import build_translators
from pipeline.array_input import UNLABELED, InputError, Modality
from pipeline.bank import FeatureBank, Standardiser
from pipeline.errors import UsageError
from pipeline.hparams import head_shape, resolve_hparams, stacked_hparams
from pipeline.missing import Finetuning, MissingEvaluation
from pipeline.splits import named_generator
from pipeline.train import StackTrainer
from pipeline.types import MODALITIES, Clip, Manifest, RunSpec, ViewSpec

LARGEST = 1e6  # standard deviations; a value further off stops here, so that float32 holds every product of it
LEAST_HIDDEN = 64.0  # units of a hidden layer: dropout of two units, where two features come in, leaves nothing
BLOCK = 1024  # rows per forward pass of a prediction
Arrays = dict[str, NDArray[Any]]


def inner_names(modalities: Sequence[str]) -> dict[str, str]:
    """Names of the modalities inside the heads, by the user's; any text is a name for a user, not for a module.

    A name that hyperparameters know (``dropout_audio``) stays.
    """
    return {name: name if name in MODALITIES else f"m{k}" for k, name in enumerate(modalities)}


@dataclass(frozen=True)
class Surrogates:
    """Views of features that came without any: they stand in for augmented media, and are weaker.

    Noise is Gaussian, in standard deviations of the feature; a dropped feature has its mean.
    """

    pairs: int  # weak views, and as many strong ones
    weak_noise: float
    strong_noise: float
    strong_dropout: float  # share of the features of a strong view that are dropped

    def __post_init__(self) -> None:
        if not (isinstance(self.pairs, (int, np.integer)) and self.pairs >= 1):
            raise InputError(f"n_views is {self.pairs!r}; it must be a whole number of at least 1")
        for name in ("weak_noise", "strong_noise"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more standard deviations")
        if not 0 <= self.strong_dropout < 1:
            raise InputError(f"strong_dropout is {self.strong_dropout}; it must be at least 0 and less than 1")

    def draw(self, clean: NDArray[np.float64], seed: int, name: str) -> NDArray[np.float32]:
        """Clean, weak and strong views ``(rows, 1 + 2 pairs, dim)`` of standardised features ``(rows, dim)``."""
        views = np.empty((len(clean), 1 + 2 * self.pairs, clean.shape[1]), dtype=np.float32)
        views[:, 0] = clean
        for pair in range(self.pairs):
            generator = named_generator("surrogate", seed, name, pair)
            views[:, 1 + pair] = clean + self.weak_noise * generator.standard_normal(clean.shape)
            noisy = clean + self.strong_noise * generator.standard_normal(clean.shape)
            views[:, 1 + self.pairs + pair] = noisy * (generator.random(clean.shape) >= self.strong_dropout)
        return views


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of a modality's features; a feature that carries nothing is left out."""

    mean: NDArray[np.float64]  # (dim,)
    deviation: NDArray[np.float64]  # (dim,), infinite where nothing is carried

    @classmethod
    def fit(cls, modality: Modality) -> Scaling:
        """Of the clean view of the rows that have the modality, in float64 whatever came in."""
        x = modality.clean[modality.present]
        # In units of the largest value: squares of float64 features can overflow.
        unit = np.abs(x).max(0)
        unit[unit == 0] = 1.0
        mean, deviation = (x / unit).mean(0), (x / unit).std(0)
        # Below half a step of the features' own type there is only rounding: dropped, not blown up.
        carries = (x.max(0) > x.min(0)) & (deviation > modality.step / 2 * np.abs(mean))
        scaled = np.where(carries, deviation * unit, np.inf)
        scaled[scaled == 0] = np.inf
        return cls(mean * unit, scaled)

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standardise ``(..., dim)``."""
        with np.errstate(over="ignore"):
            scaled: NDArray[np.float64] = np.clip((x - self.mean) / self.deviation, -LARGEST, LARGEST)
        return scaled


@dataclass(frozen=True)
class TrainingSettings:
    """What an estimator asks of a run."""

    method: str
    steps: int
    batch_size: int
    hparams: Mapping[str, float | str]
    surrogates: Surrogates
    finetune: bool  # fine-tune translators after training, for the filler of that name
    device: str
    seed: int


@dataclass(frozen=True)
class Trained:
    """A trained run and what a user must know about it."""

    heads: FittedHeads
    method: str
    steps: int
    notes: tuple[str, ...]


class FittedHeads:
    """A trained run that predicts rows of arrays. What is pickled is names, numbers and arrays.

    Args:
        spec: the run.
        dims: (modality, feature dim) in fusion order.
        arrays: per name: ``scale/<modality>/mean`` and ``.../deviation`` ``(dim,)``, ``method/<tensor>``,
            ``filler/<statistic>/<modality>``, ``finetuned/<tensor>``.
    """

    def __init__(self, spec: RunSpec, dims: Sequence[tuple[str, int]], arrays: Arrays) -> None:
        self.spec, self.dims, self.arrays = spec, tuple(dims), arrays
        shape = head_shape(spec, dims)
        self.method: Method = METHODS[spec.method].build(shape, stacked_hparams([spec]), [spec.init_seed])
        self.method.load_state_dict(self._tensors("method/"))
        # In float64 a row's answer does not depend on the batch it stands in, but for the last digits of float64.
        self.method.double().requires_grad_(False)
        finetuned = nn.ModuleDict()
        tensors = self._tensors("finetuned/")
        if tensors:
            finetuned = build_translators(1, self.method.network.embedding_dims, shape.translator_hidden)
            finetuned.load_state_dict(tensors)
            finetuned.double().requires_grad_(False)
        mean, length, prototypes = (
            {m: x.double() for m, x in self._tensors(f"filler/{name}/").items()}
            for name in ("mean", "length", "prototypes")
        )
        translators = getattr(self.method, "translators", nn.ModuleDict())
        self.state = FillerState(mean, length, prototypes, translators, finetuned)

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        """Arrays under a prefix, as tensors of their own."""
        return {k.removeprefix(prefix): torch.tensor(v) for k, v in self.arrays.items() if k.startswith(prefix)}

    def __getstate__(self) -> dict[str, Any]:
        return {"spec": self.spec.to_json(), "dims": self.dims, "arrays": self.arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(RunSpec.from_json(state["spec"]), state["dims"], state["arrays"])  # type: ignore[misc]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names inside the heads, in fusion order."""
        return tuple(name for name, _ in self.dims)

    def fillers(self) -> list[str]:
        """Names of the fillers that can be used; with one modality a row that lacks it has nothing to go by."""
        return self.state.fillers() if len(self.dims) > 1 else ["zero"]

    @torch.no_grad()
    def probs(self, x: Arrays, present: Mapping[str, NDArray[np.bool_]], filler: str) -> NDArray[np.float64]:
        """Class probabilities ``(rows, classes)``.

        Args:
            x: per modality the clean view as it came in, ``(rows, dim)`` float64.
            present: per modality ``(rows,)`` bool.
            filler: what stands in for missing modalities; one of ``fillers()``.
        """
        blocks = []
        for start in range(0, len(next(iter(present.values()))), BLOCK):
            part = slice(start, start + BLOCK)
            here = {m: torch.from_numpy(present[m][part])[None] for m in self.modalities}
            values = {}
            for m in self.modalities:
                scaling = Scaling(self.arrays[f"scale/{m}/mean"], self.arrays[f"scale/{m}/deviation"])
                values[m] = torch.from_numpy(scaling(x[m][part]) * present[m][part][:, None])[None]
            complete = torch.stack(list(here.values())).all(0)
            found = torch.softmax(self.method.network(values, here).logits[FUSED], -1)
            if not complete.all():
                filled = predict_missing(self.method.network, values, here, filler, self.state)
                found = torch.where(complete[..., None], found, filled)
            blocks.append(found[0].numpy())
        return np.concatenate(blocks)


def train_arrays(
    modalities: Mapping[str, Modality],
    labels: NDArray[np.int64],
    classes: int,
    domains: NDArray[np.int64],
    settings: TrainingSettings,
) -> Trained:
    """Train one run on rows of arrays.

    Rows without a label are the unlabeled clips. A method that needs some, where every row has a label, gets the
    labeled rows a second time without their labels, as the authors' code of FixMatch adds them.

    Args:
        modalities: in fusion order.
        labels: ``(rows,)`` class per row, or ``UNLABELED``.
        classes: number of classes.
        domains: ``(rows,)`` from 0, each with a row.
        settings: what is asked for.

    Raises:
        InputError: a modality that no row has, views that do not fit together, a method, hyperparameter or device
            that is not there, or a training that diverged.
    """
    try:
        return _Training(modalities, labels, classes, domains, settings).run()
    except InputError:
        raise
    except UsageError as error:
        raise InputError(str(error)) from None


class _Training:
    """One call of ``train_arrays``."""

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        labels: NDArray[np.int64],
        classes: int,
        domains: NDArray[np.int64],
        settings: TrainingSettings,
    ) -> None:
        self.settings, self.classes, self.notes = settings, classes, list[str]()
        self.modalities = modalities
        for name, modality in modalities.items():
            if not modality.present.any():
                raise InputError(f"no row has the modality {name}; leave it out of X")
        self.method = self._method()
        self.labels, self.domains = labels, domains
        self.again = self._labeled_again()

    def _method(self) -> str:
        """The method that is trained: of one modality SSMDG has nothing to translate, and FixMatch is what is left."""
        wanted, only = self.settings.method, list(self.modalities)
        if wanted == "ssmdg" and len(only) == 1:
            self.notes.append(
                f"SSMDG needs two modalities and there is one, {only[0]}: fixmatch was trained, which is what is left "
                "of it without consensus, prototypes and translators"
            )
            return "fixmatch"
        return wanted

    def _labeled_again(self) -> NDArray[np.int64]:
        """Rows that also stand among the unlabeled ones."""
        recipe, unlabeled = METHODS[self.method], int((self.labels == UNLABELED).sum())
        if recipe.all_labels and unlabeled:
            raise InputError(
                f"method {self.method!r} trains on the labels of all rows, and {unlabeled} of {len(self.labels)} rows "
                "have none; leave them out, or use the method erm"
            )
        if unlabeled or not getattr(recipe.build, "uses_unlabeled", False):
            return np.empty(0, dtype=np.int64)
        self.notes.append(
            f"every row has a label: {self.method} took the {len(self.labels)} labeled rows as unlabeled ones too"
        )
        return np.arange(len(self.labels))

    def run(self) -> Trained:
        """Train and keep what predictions need."""
        inner = inner_names(list(self.modalities))
        scaling = {inner[name]: Scaling.fit(modality) for name, modality in self.modalities.items()}
        manifest, bank = self._manifest(), self._bank(inner, scaling)
        spec = self._spec(manifest, bank)
        trainer = StackTrainer([spec], manifest, bank)
        result = trainer.train(lambda amount: None)[0]
        if result.status != "finished":
            raise InputError("training diverged: a loss is not finite; use a smaller learning_rate in hparams")
        weights = trainer.weights(0)
        stacked = {name: value[None] for name, value in weights.items()}
        finetuning = Finetuning(self.settings.steps) if self.settings.finetune else None
        state = MissingEvaluation([spec], manifest, bank, stacked, finetuning).state
        arrays: Arrays = {f"method/{name}": value.numpy() for name, value in stacked.items()}
        arrays |= {f"finetuned/{k}": v.cpu().numpy() for k, v in state.finetuned.state_dict().items()}
        for name in bank.features:
            for kind, values in (("mean", state.mean), ("length", state.length), ("prototypes", state.prototypes)):
                arrays[f"filler/{kind}/{name}"] = values[name].cpu().numpy()
        arrays |= _composed(scaling, Standardiser(bank, [list(range(len(manifest.clips)))]))
        heads = FittedHeads(replace(spec, labeled_ids=()), bank.dims, arrays)
        return Trained(heads, self.method, trainer.progress.step, tuple(self.notes))

    def _manifest(self) -> Manifest:
        """Rows as training clips; a row without a label bears the first class's name, which no training reads."""
        rows = [(f"{i}", i) for i in range(len(self.labels))] + [(f"{i}-unlabeled", i) for i in self.again]
        names = tuple(map(str, range(self.classes)))
        domains = tuple(map(str, range(int(self.domains.max()) + 1)))
        clips = tuple(
            Clip(clip_id, domains[self.domains[i]], names[max(0, self.labels[i])], "train", clip_id, {"array": Path()})
            for clip_id, i in rows
        )
        return Manifest("arrays", names, domains, clips, Path())

    def _bank(self, inner: Mapping[str, str], scaling: Mapping[str, Scaling]) -> FeatureBank:
        """Standardised features with their views, float32 on the device."""
        pairs = self._pairs()
        surrogates = replace(self.settings.surrogates, pairs=pairs)
        features, present = {}, {}
        for name, modality in self.modalities.items():
            scale = scaling[inner[name]]
            if modality.values.shape[1] > 1:
                views = scale(modality.values).astype(np.float32)
            else:
                views = surrogates.draw(scale(modality.clean), self.settings.seed, inner[name])
            views[~modality.present] = 0
            rows = np.concatenate([np.arange(len(views)), self.again])
            features[inner[name]] = torch.from_numpy(views[rows]).to(self.settings.device)
            present[inner[name]] = torch.from_numpy(modality.present[rows]).to(self.settings.device)
        return FeatureBank(features, present, tuple(v.name for v in ViewSpec(weak=pairs, strong=pairs).views()))

    def _pairs(self) -> int:
        """Number of weak views, and of strong ones."""
        counts = {name: m.values.shape[1] for name, m in self.modalities.items() if m.values.shape[1] > 1}
        if not counts:
            return self.settings.surrogates.pairs
        told = ", ".join(f"{name} {number}" for name, number in counts.items())
        if len(set(counts.values())) > 1:
            raise InputError(f"the modalities have different numbers of views: {told}; give all the same views")
        number: int = next(iter(counts.values()))
        if number % 2 == 0:
            raise InputError(
                f"there are {number} views ({told}); the axis holds the clean view, then weak views, then as many "
                "strong ones, so their number is odd"
            )
        return number // 2

    def _hparams(self, dims: Sequence[tuple[str, int]]) -> dict[str, float | str]:
        """All hyperparameters; the hidden layers of narrow features are wider than the features."""
        own = self.settings.hparams
        found = resolve_hparams(self.method, dims, own)
        wider = {k: max(float(found[k]), LEAST_HIDDEN) for k in ("fused_hidden", "translator_hidden") if k not in own}
        return resolve_hparams(self.method, dims, {**wider, **own})

    def _spec(self, manifest: Manifest, bank: FeatureBank) -> RunSpec:
        labeled = tuple(manifest.clips[i].clip_id for i in np.flatnonzero(self.labels != UNLABELED))
        settings = self.settings
        return RunSpec(
            dataset=manifest.dataset,
            manifest_digest=manifest.digest,
            classes=manifest.classes,
            sources=manifest.domains,
            target="",
            modalities=tuple(bank.features),
            features={},
            budget="100%",
            method=self.method,
            hparams=self._hparams(bank.dims),
            split_seed=settings.seed,
            init_seed=settings.seed,
            steps=settings.steps,
            batch_labeled=settings.batch_size,
            batch_unlabeled=settings.batch_size,
            eval_every=settings.steps,
            labeled_ids=labeled,
            version=version("pipe-features"),
        )


def _composed(scaling: Mapping[str, Scaling], standardiser: Standardiser) -> Arrays:
    """The scaling of arrays and the trainer's own as one."""
    arrays: Arrays = {}
    for name, own in scaling.items():
        mean, scale = (t[name][0, 0].double().cpu().numpy() for t in (standardiser.mean, standardiser.scale))
        with np.errstate(divide="ignore", invalid="ignore"):
            deviation = np.where(scale > 0, own.deviation / scale, np.inf)
            arrays[f"scale/{name}/mean"] = np.where(scale > 0, own.mean + mean * own.deviation, own.mean)
        arrays[f"scale/{name}/deviation"] = deviation
    return arrays
