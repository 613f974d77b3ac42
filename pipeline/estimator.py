"""The methods as scikit-learn classifiers: arrays in, a fitted classifier out.

``FewLabelClassifier`` takes any method of ``pipe methods`` that is trained in steps; ``SSMDGClassifier`` is the same
with SSMDG. Rows are trained by ``pipeline.train.StackTrainer``, as everything else here is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from heads.fillers import FILLERS
from heads.methods import METHODS
from pipeline.array_input import (
    PLAIN,
    InputError,
    Modality,
    float_step,
    leave_one_domain_out,
    read_domains,
    read_labels,
    read_modalities,
    take_rows,
    without_label,
)
from pipeline.array_training import FittedHeads, Surrogates, TrainingSettings, inner_names, train_arrays
from pipeline.errors import UsageError, choose
from pipeline.extraction import resolve_device

__all__ = ["FewLabelClassifier", "InputError", "SSMDGClassifier", "leave_one_domain_out", "take_rows"]

AUTO = "auto"


class FewLabelClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier of multimodal features under few labels, several domains and missing modalities.

    X is a dict of modality -> array ``(rows, dim)`` or ``(rows, views, dim)``, or a plain array ``(rows, dim)``, which
    is one modality. With a dict, a row of NaN is a row that lacks the modality, and at prediction a modality may be
    left out altogether. View 0 is the clean one, on which everything is predicted; then come weak views, then as many
    strong ones, view i of both made from the same stretch. Without views, noise on the features stands in for them:
    that is weaker than augmented media.

    The labels y follow scikit-learn's semi-supervised classifiers: -1 is a row without a label; among texts, in a list
    or an array of objects, also None, NaN and the empty text.

    On one machine, device and number of threads the same rows and ``random_state`` give the same bits, whatever was
    fitted before. No global state is touched: neither torch's threads nor any generator of random numbers.

    Args:
        method: a key of ``heads.methods.METHODS``.
        steps: training steps.
        batch_size: rows of a labeled batch, and of an unlabeled one.
        hparams: hyperparameters that replace defaults, by the names of ``pipe methods``, for example
            ``{"learning_rate": 1e-2, "threshold": 0.9}``.
        filler: what stands in for a missing modality, a key of ``heads.fillers.FILLERS``; ``auto``: ``translate`` where
            the method trains translators, else ``zero``. It may be set after ``fit``, except ``finetuned``, which
            trains translators once more, alone, for as many steps.
        n_views: weak and strong views that are drawn where X has none.
        weak_noise: noise of a weak view, in standard deviations of the feature.
        strong_noise: likewise of a strong one.
        strong_dropout: share of the features that a strong view lacks.
        device: of the training, ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; predictions run on the CPU.
        random_state: seed of initial weights, batches, dropout and views; an int, a ``RandomState``, or ``None`` for
            another result every time.

    Attributes:
        classes_: class names ``(classes,)``, sorted.
        domains_: domains in the order of their first row.
        modalities_: names of the modalities, in fusion order, which is that of the dict.
        n_features_in_: columns of a plain array; only there.
        n_iter_: steps that were trained.
        method_: method that was trained: of one modality FixMatch in the place of SSMDG.
        notes_: what was done otherwise than asked, as sentences.
    """

    def __init__(
        self,
        method: str = "ssmdg",
        *,
        steps: int = 300,
        batch_size: int = 32,
        hparams: Mapping[str, float | str] | None = None,
        filler: str = AUTO,
        n_views: int = 2,
        weak_noise: float = 0.1,
        strong_noise: float = 0.5,
        strong_dropout: float = 0.2,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.method = method
        self.steps = steps
        self.batch_size = batch_size
        self.hparams = hparams
        self.filler = filler
        self.n_views = n_views
        self.weak_noise = weak_noise
        self.strong_noise = strong_noise
        self.strong_dropout = strong_dropout
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, domain: Any = None) -> Self:
        """Train on all rows, with and without labels.

        Args:
            X: dict of arrays, or one array.
            y: ``(rows,)`` labels.
            domain: ``(rows,)`` any hashable value: the site, camera or person a row comes from; ``None``: one domain.

        Raises:
            InputError: parameters or arrays that are not allowed; it is a ``ValueError``.
            TypeError: a sparse array.
        """
        settings = self._settings()
        modalities = self._read(X, reset=True)
        rows = len(next(iter(modalities.values())).present)
        self.classes_, labels = read_labels(y, rows)
        self.domains_, domains = read_domains(domain, rows)
        self.modalities_ = tuple(modalities)
        trained = train_arrays(modalities, labels, len(self.classes_), domains, settings)
        self._heads: FittedHeads = trained.heads
        self.method_, self.n_iter_, self.notes_ = trained.method, trained.steps, trained.notes
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities ``(rows, classes)`` in the order of ``classes_``.

        A row that has all modalities is predicted from all of them; for another the ``filler`` steps in.

        Raises:
            InputError: as ``fit``, and for a row without any modality.
            NotFittedError: before ``fit``.
        """
        check_is_fitted(self, "_heads")
        filler = self._filler(self._heads.fillers())
        given = self._read(X, reset=False)
        inner = inner_names(self.modalities_)
        rows = len(next(iter(given.values())).present)
        x, present = {}, {}
        for (name, inside), (_, dim) in zip(inner.items(), self._heads.dims, strict=True):
            modality = given.get(name)
            if modality is None:
                x[inside], present[inside] = np.zeros((rows, dim)), np.zeros(rows, dtype=bool)
                continue
            x[inside], present[inside] = modality.clean, modality.present
            if modality.clean.shape[1] != dim:
                raise InputError(f"{name} has {modality.clean.shape[1]} features; in fit it had {dim}")
        return self._heads.probs(x, present, filler)

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of every row, ``(rows,)``."""
        probs = self.predict_proba(X)
        found: NDArray[Any] = self.classes_[probs.argmax(1)]
        return found

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy over the rows that have a label; rows without one are left out.

        Args:
            X: as in ``fit``.
            y: ``(rows,)`` labels.
            sample_weight: ``(rows,)`` weights, ``None`` for equal ones.

        Raises:
            InputError: no row has a label.
        """
        labels, missing = without_label(y)
        if missing.all():
            raise InputError(f"none of the {len(missing)} rows has a label, so there is no accuracy")
        # All rows are predicted: a mask on X would hide rows that cannot be.
        predicted = self.predict(X)
        if len(predicted) != len(labels):
            raise InputError(f"y has {len(labels)} labels and X has {len(predicted)} rows; give one label per row")
        hits = (labels.astype(object) == predicted.astype(object))[~missing]
        return float(np.average(hits, weights=None if sample_weight is None else np.asarray(sample_weight)[~missing]))

    def _settings(self) -> TrainingSettings:
        """The parameters, checked."""
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.hparams is not None and not isinstance(self.hparams, Mapping):
            raise InputError(f"hparams is {self.hparams!r}; give a dict of names and values, or None")
        try:
            choose("method", self.method, METHODS)
            choose("filler", self.filler, (AUTO, *FILLERS))
            device = resolve_device(self.device)
        except UsageError as error:
            raise InputError(str(error)) from None
        return TrainingSettings(
            method=self.method,
            steps=int(self.steps),
            batch_size=int(self.batch_size),
            hparams=dict(self.hparams or {}),
            surrogates=Surrogates(self.n_views, self.weak_noise, self.strong_noise, self.strong_dropout),
            finetune=self.filler == "finetuned",
            device=device,
            seed=int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max)),
        )

    def _filler(self, known: list[str]) -> str:
        """The filler of a prediction."""
        if self.filler == AUTO:
            return "translate" if "translate" in known else "zero"
        if self.filler not in known and len(self.modalities_) > 1:
            raise InputError(
                f"filler {self.filler!r}: the fitted {self.method_} has {', '.join(known)}; set one of them, or fit "
                "again with this one"
            )
        return self.filler

    def _read(self, X: Any, reset: bool) -> dict[str, Modality]:
        """The modalities of X; ``reset`` in ``fit``."""
        if isinstance(X, Mapping) and not issparse(X):  # one kind of sparse array is a dict
            if not reset and hasattr(self, "n_features_in_"):
                raise InputError("X is a dict, and fit was given a plain array; give the same kind")
            if reset:  # of an earlier fit on a plain array
                for name in ("n_features_in_", "feature_names_in_"):
                    self.__dict__.pop(name, None)
            return read_modalities(X, () if reset else self.modalities_)
        if not reset and not hasattr(self, "n_features_in_"):
            names = ", ".join(self.modalities_)
            raise InputError(f"X is a {type(X).__name__}, and fit was given a dict with {names}; give such a dict")
        kind = getattr(X, "dtype", None)
        values = validate_data(self, X, reset=reset, dtype=np.float64)
        return {PLAIN: Modality(values[:, None], np.ones(len(values), dtype=bool), float_step(kind))}


class SSMDGClassifier(FewLabelClassifier):
    """``FewLabelClassifier`` with SSMDG (arXiv 2602.22917); its parameters and attributes are described there."""

    def __init__(
        self,
        *,
        steps: int = 300,
        batch_size: int = 32,
        hparams: Mapping[str, float | str] | None = None,
        filler: str = AUTO,
        n_views: int = 2,
        weak_noise: float = 0.1,
        strong_noise: float = 0.5,
        strong_dropout: float = 0.2,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            "ssmdg",
            steps=steps,
            batch_size=batch_size,
            hparams=hparams,
            filler=filler,
            n_views=n_views,
            weak_noise=weak_noise,
            strong_noise=strong_noise,
            strong_dropout=strong_dropout,
            device=device,
            random_state=random_state,
        )
