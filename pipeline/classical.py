"""Baselines without training steps: scikit-learn's classifiers on the cached features, on the splits of the heads."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.network import FUSED
from pipeline.bank import FeatureBank, Standardiser
from pipeline.environment import environment
from pipeline.errors import UsageError, choose
from pipeline.evaluate import accuracy, class_mean_accuracy, confusion_matrix
from pipeline.projection import CompactBank
from pipeline.select import selected
from pipeline.stack import run_split
from pipeline.types import Manifest, RunResult, RunSpec, Split
from pipeline.workers import Advance

ITERATIONS = 10_000  # at most, of logistic regression; a few hundred are usual


@dataclass(frozen=True)
class ClassicalRecipe:
    """A line of the table of classifiers that are fitted, not trained."""

    title: str  # as it stands in tables
    source: str  # whose implementation
    variant: str  # which reading of the name this is, one sentence
    hparams: Mapping[str, float]  # the classifier's own hyperparameters and their defaults
    build: Callable[[Mapping[str, float], int], Any]  # hyperparameters, labeled clips -> scikit-learn classifier


# scikit-learn is imported where it is used: reading the table must not cost its second of start-up.
def _logistic(hparams: Mapping[str, float], clips: int) -> Any:
    """Logistic regression; its solver draws no random numbers."""
    from sklearn.linear_model import LogisticRegression

    inverse = hparams["inverse_regularisation"]
    if not inverse > 0:
        raise UsageError(f"hyperparameter inverse_regularisation is {inverse}; it must be more than 0, for example 1")
    return LogisticRegression(C=inverse, max_iter=ITERATIONS)


def _ncm(hparams: Mapping[str, float], clips: int) -> Any:
    """Nearest class mean by Euclidean distance."""
    from sklearn.neighbors import NearestCentroid

    return NearestCentroid(metric="euclidean")


def _knn(hparams: Mapping[str, float], clips: int) -> Any:
    """Vote of the nearest rows by cosine distance; never of more rows than there are labeled clips."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbors = hparams["neighbors"]
    if not (neighbors >= 1 and neighbors == int(neighbors)):
        raise UsageError(f"hyperparameter neighbors is {neighbors}; it must be a whole number of at least 1")
    return KNeighborsClassifier(n_neighbors=min(int(neighbors), clips), metric="cosine")


CLASSICAL: dict[str, ClassicalRecipe] = {
    "logistic": ClassicalRecipe(
        title="Logistic regression",
        source="scikit-learn LogisticRegression",
        variant="multinomial, L2 penalty, on the clean and all weak views of the labeled clips; fused: all modalities' "
        "features side by side",
        hparams={"inverse_regularisation": 1.0},
        build=_logistic,
    ),
    "ncm": ClassicalRecipe(
        title="Nearest class mean",
        source="scikit-learn NearestCentroid",
        variant="Euclidean distance to the mean of a class over the clean and all weak views of its labeled clips; "
        "fused: all modalities' features side by side",
        hparams={},
        build=_ncm,
    ),
    "knn": ClassicalRecipe(
        title="k nearest neighbours",
        source="scikit-learn KNeighborsClassifier",
        variant="majority of the nearest rows by cosine distance, at most as many as there are labeled clips; the "
        "clean and every weak view of a labeled clip is a row; fused: all modalities' features side by side",
        hparams={"neighbors": 5.0},
        build=_knn,
    ),
}


def fit_classical(
    specs: Sequence[RunSpec], manifest: Manifest, bank: FeatureBank | CompactBank, advance: Advance
) -> list[RunResult]:
    """Fit and test one classifier on all modalities and one per modality, for every run.

    Splits, scaling, metrics and records are those of ``pipeline.train.StackTrainer``. Labels are read of labeled clips
    (to fit) and of target and validation clips (to test). These methods have no steps: there is one evaluation, at
    ``spec.steps``, and no curve of losses or pseudo-labels. Batch sizes, seeds of initialisation and patience have no
    meaning here. All is computed on the CPU, run by run, so a run's numbers depend neither on the device of the
    features nor on the other runs. Where the labeled clips are of one class, or alike in all features, the classifier
    predicts their most frequent class (the first of several).

    Args:
        specs: runs of methods in ``CLASSICAL``.
        manifest: the data set.
        bank: its features, of full size or compact, on any device.
        advance: called after every run; the amounts add up to the steps of the first spec, as those of a stack do.

    Raises:
        UsageError: unknown method, a hyperparameter out of its range, a split that cannot be made, validation clips
            that are needed and do not exist, or a modality that no source training clip has.
    """
    for spec in specs:
        choose("classical method", spec.method, CLASSICAL)
    bank = replace(
        bank,
        features={m: x.cpu() for m, x in bank.features.items()},
        present={m: here.cpu() for m, here in bank.present.items()},
    )
    splits = [run_split(spec, manifest, bank) for spec in specs]
    labels = torch.tensor(manifest.label_indices())
    results: list[RunResult] = []
    for run, (spec, split) in enumerate(zip(specs, splits, strict=True)):
        results.append(_fit_run(spec, split, labels, bank))
        advance(specs[0].steps * (run + 1) // len(specs) - specs[0].steps * run // len(specs))
    return results


class _Rows:
    """Scaled features of a run, a row per clip and view, absent modalities zero."""

    def __init__(self, bank: FeatureBank | CompactBank, spec: RunSpec, split: Split) -> None:
        self.bank = bank
        self.heads = (FUSED, *bank.features)
        self.clean = bank.view_positions("clean")
        self.fitted = [*self.clean, *bank.view_positions("weak")]
        self.own, self.standardise = 0, None
        if isinstance(bank, CompactBank):  # its features are scaled already
            self.own = bank.sets.index(spec.sources)
        else:
            self.standardise = Standardiser(bank, [(*split.labeled, *split.unlabeled)])

    def has(self, head: str, clips: Tensor) -> Tensor:
        """Which of the clips ``(clips,)`` a head can judge, ``(clips,)`` bool; the fused one judges all."""
        return torch.ones_like(clips, dtype=torch.bool) if head == FUSED else self.bank.present[head][clips]

    def matrix(self, head: str, clips: Tensor, views: Sequence[int]) -> NDArray[np.float64]:
        """What a head sees, ``(clips * views, dim)``, clip by clip."""
        rows, positions = clips.repeat_interleave(len(views)), torch.tensor(views).repeat(len(clips))
        parts = []
        for modality in self.bank.features if head == FUSED else (head,):
            features = self.bank.features[modality]
            if self.standardise is None:
                parts.append(features[self.own, rows, positions].float())
            else:
                here = self.bank.present[modality][rows]
                parts.append(self.standardise(modality, features[rows, positions][None], here[None])[0])
        values: NDArray[np.float64] = torch.cat(parts, -1).double().numpy()
        return values


def _fit_run(spec: RunSpec, split: Split, labels: Tensor, bank: FeatureBank | CompactBank) -> RunResult:
    """Fit and test all classifiers of a run."""
    start = time.perf_counter()
    rows = _Rows(bank, spec, split)
    models, notes = _fit_heads(spec, rows, torch.tensor(split.labeled), labels[list(split.labeled)])
    curves: dict[str, list[float | None]] = {"step": [spec.steps]}
    confusion: dict[str, Tensor] = {}
    for name, part in (("target", split.test), ("val", split.val)):
        if part:
            values, confusion[name] = _evaluate(models, rows, torch.tensor(part), labels[list(part)], len(spec.classes))
            for metric, value in values.items():
                curves[f"{name}{metric}"] = [value if math.isfinite(value) else None]
    return RunResult(
        spec=spec,
        metrics=selected(curves, spec.selection),
        curves=curves,
        selection=spec.selection,
        environment={**environment(torch.device("cpu"), 1), "scikit-learn": version("scikit-learn")},
        seconds=time.perf_counter() - start,
        notes=(*split.notes, *notes),
        sizes={part: len(getattr(split, part)) for part in ("labeled", "unlabeled", "val", "test")},
        confusion=tuple(tuple(row) for row in confusion["target"].tolist()),
    )


def _fit_heads(spec: RunSpec, rows: _Rows, clips: Tensor, y: Tensor) -> tuple[dict[str, Any], list[str]]:
    """Fitted classifier of every head, ``None`` for a modality that no labeled clip has; and what to know about them.

    Args:
        spec: the run.
        rows: its features.
        clips: labeled clips, ``(clips,)`` positions in the manifest.
        y: their labels, ``(clips,)``.
    """
    recipe = CLASSICAL[spec.method]
    hparams = {name: float(spec.hparams[name]) for name in recipe.hparams}
    models: dict[str, Any] = {}
    notes: list[str] = []
    for head in rows.heads:
        has = rows.has(head, clips)
        models[head] = None
        if has.any():
            x = rows.matrix(head, clips[has], rows.fitted)
            model = recipe.build(hparams, int(has.sum()))
            models[head], complaints = _fitted(model, x, y[has].repeat_interleave(len(rows.fitted)).numpy())
            notes += [f"{spec.method} of {head}: {complaint}" for complaint in complaints]
    return models, notes


def _fitted(model: Any, x: NDArray[np.float64], y: NDArray[np.int64]) -> tuple[Any, list[str]]:
    """A classifier fitted to rows ``(rows, dim)`` and labels ``(rows,)``, and what scikit-learn warned of."""
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning

    if (y == y[0]).all() or (x == x[0]).all():  # refused by scikit-learn, or nothing to tell classes apart by
        return DummyClassifier(strategy="most_frequent").fit(x, y), []
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings(record=True) as caught:
        # NearestCentroid also works out spreads, which only its shrinkage would use, and warns where they are zero.
        warnings.filterwarnings("ignore", "self.within_class_std_dev_", UserWarning)
        warnings.filterwarnings("always", category=ConvergenceWarning)
        model.fit(x, y)
    return model, [str(warning.message).splitlines()[0].rstrip(":") for warning in caught]


def _evaluate(
    models: Mapping[str, Any], rows: _Rows, clips: Tensor, labels: Tensor, classes: int
) -> tuple[dict[str, float], Tensor]:
    """Accuracies on the clean view of clips ``(clips,)``, NaN where there is no classifier or no clip for it.

    With them the confusion matrix of the fused classifier, ``(classes, classes)``, rows are true classes.
    """
    values: dict[str, float] = {}
    truth, predicted = labels[None], {}
    for head, model in models.items():
        values[f"/{head}"] = math.nan
        if model is not None:
            predicted[head] = torch.from_numpy(model.predict(rows.matrix(head, clips, rows.clean)))[None]
            values[f"/{head}"] = float(accuracy(predicted[head], truth, rows.has(head, clips)[None]))
    everyone = torch.ones_like(truth, dtype=torch.bool)
    values[f"_class_mean/{FUSED}"] = float(class_mean_accuracy(predicted[FUSED], truth, everyone, classes))
    return values, confusion_matrix(predicted[FUSED], truth, everyone, classes)[0]
