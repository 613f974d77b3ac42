"""The scikit-learn estimators: scikit-learn's own checks, and what is particular to several modalities."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, dok_array
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import pipeline
from heads.fillers import FILLERS
from heads.methods import METHODS
from heads.network import FUSED
from pipeline import array_training
from pipeline.array_input import read_domains, read_labels
from pipeline.estimator import FewLabelClassifier, InputError, SSMDGClassifier, leave_one_domain_out, take_rows
from pipeline.train import StackTrainer
from pipeline.types import Manifest

CLASSES = ("wave", "spin", "drop")
DIMS = {"video": 24, "hand.sensor": 12, "audio": 9}
BRISK: dict[str, Any] = {"steps": 30, "hparams": {"learning_rate": 0.02}}
SHORT: dict[str, Any] = {"steps": 12, "hparams": {"learning_rate": 0.05}}

Data = tuple[dict[str, NDArray[np.float64]], NDArray[np.object_], NDArray[np.int64]]


def make(rows: int = 150, seed: int = 0, signal: float = 1.0) -> Data:
    """Features with a signal of the class in every modality, a shift of the domain, and noise."""
    world, rng = np.random.default_rng(99), np.random.default_rng(seed)
    labels, domain = rng.integers(3, size=rows), rng.integers(3, size=rows)
    X = {
        name: signal * world.normal(size=(3, dim))[labels]
        + 0.7 * world.normal(size=(3, dim))[domain]
        + 1.5 * rng.normal(size=(rows, dim))
        for name, dim in DIMS.items()
    }
    return X, np.array(CLASSES, dtype=object)[labels], domain


def few(y: NDArray[np.object_], number: int = 8) -> NDArray[np.object_]:
    """The first labels of every class, -1 elsewhere."""
    found = np.full(len(y), -1, dtype=object)
    for name in CLASSES:
        found[np.flatnonzero(y == name)[:number]] = name
    return found


def numpy_position() -> bytes:
    """State of numpy's global generator."""
    return pickle.dumps(np.random.get_state())  # noqa: NPY002 - that nobody moves it is what is tested


@pytest.fixture(scope="module")
def data() -> Data:
    return make()


@pytest.fixture(scope="module")
def fitted(data: Data) -> SSMDGClassifier:
    X, y, domain = data
    return SSMDGClassifier(steps=60, hparams={"learning_rate": 0.01}, random_state=0).fit(X, few(y), domain)


# Estimators for which -1 is no class at all: scikit-learn leaves its own ones out of this part of the check by name.
EXPECTED_FAILURES = {"check_classifiers_classes": "-1 is a row without a label, and the check takes it for a class"}


@parametrize_with_checks([SSMDGClassifier(**SHORT)], expected_failed_checks=lambda estimator: EXPECTED_FAILURES)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_scikit_learn_checks_of_every_method(method: str) -> None:
    estimator = FewLabelClassifier(method, steps=80, hparams={"learning_rate": 0.02})
    estimator_checks.check_estimator(estimator, expected_failed_checks=EXPECTED_FAILURES, on_skip=None)


def test_the_check_that_fails_passes_with_the_labels_of_semi_supervised_classifiers() -> None:
    estimator_checks.check_classifiers_classes("SelfTrainingClassifier", SSMDGClassifier(**SHORT))


def test_few_labels_of_three_modalities_are_learned(data: Data) -> None:
    X, y, domain = data
    other, truth, _ = make(200, seed=1)
    estimator = SSMDGClassifier(steps=150, random_state=0).fit(X, few(y), domain)
    assert estimator.score(other, truth) > 0.8  # chance is 0.33
    assert estimator.modalities_ == tuple(DIMS)
    assert list(estimator.classes_) == sorted(CLASSES)
    assert estimator.n_iter_ == 150
    assert estimator.domains_ == tuple(dict.fromkeys(domain.tolist()))
    assert estimator.method_ == "ssmdg"
    assert estimator.notes_ == ()
    probs = estimator.predict_proba(other)
    assert probs.shape == (200, 3)
    assert probs.dtype == np.float64
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-12)
    assert (estimator.predict(other) == estimator.classes_[probs.argmax(1)]).all()


def test_two_dimensional_data_are_learned_by_defaults() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=120)
    X = np.array([[0.0, 0.0], [2.5, -2.5]])[y] + rng.normal(size=(120, 2))
    labels = np.where(np.arange(120) < 12, y, -1)
    estimator = SSMDGClassifier(random_state=0).fit(X, labels)
    assert estimator.score(X, y) > 0.9  # the best any rule can do is 0.96
    assert estimator.method_ == "fixmatch"
    assert "two modalities" in estimator.notes_[0]


def test_rows_without_labels_are_used(data: Data) -> None:
    X, y, domain = data
    settings: dict[str, Any] = {"steps": 60, "hparams": {"learning_rate": 0.01}, "random_state": 0}
    labels = few(y, 4)
    erm = FewLabelClassifier("erm", **settings).fit(X, labels, domain).predict_proba(X)
    ssmdg = FewLabelClassifier("ssmdg", **settings).fit(X, labels, domain).predict_proba(X)
    assert np.abs(erm - ssmdg).max() > 0.05
    # The same labels, other rows without any: only a method that looks at them changes. All else is held still.
    moved = {
        name: np.where((labels == -1)[:, None], x.mean(0) + (x - x.mean(0)) * [[-1.0]], x) for name, x in X.items()
    }
    again = FewLabelClassifier("ssmdg", **settings).fit(moved, labels, domain).predict_proba(X)
    assert np.abs(again - ssmdg).max() > 0.01


def test_no_label_of_a_row_without_one_is_read(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, domain = data
    labels = few(y)
    rows = {f"{i}" for i in np.flatnonzero(labels == -1)}
    settings: dict[str, Any] = {**SHORT, "random_state": 0}
    before = {m: FewLabelClassifier(m, **settings).fit(X, labels, domain).predict_proba(X) for m in ("erm", "ssmdg")}
    seen = 0

    def other_labels(dataset: str, names: Any, domains: Any, clips: Any, root: Path) -> Manifest:
        nonlocal seen
        seen += sum(clip.clip_id in rows for clip in clips)
        changed = tuple(replace(c, label=names[-1]) if c.clip_id in rows else c for c in clips)
        assert changed != clips
        return Manifest(dataset, names, domains, changed, root)

    monkeypatch.setattr(array_training, "Manifest", other_labels)
    for method, probs in before.items():
        np.testing.assert_array_equal(
            FewLabelClassifier(method, **settings).fit(X, labels, domain).predict_proba(X), probs
        )
    assert seen == 2 * len(rows)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_table(method: str, data: Data) -> None:
    X, y, domain = data
    labels = y if METHODS[method].all_labels else few(y)
    estimator = FewLabelClassifier(method, steps=5, random_state=0).fit(X, labels, domain)
    assert estimator.method_ == method
    assert np.isfinite(estimator.predict_proba(X)).all()


def test_predictions_are_those_of_the_trainer(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, domain = data
    trainers = []

    class Kept(StackTrainer):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            trainers.append(self)

    monkeypatch.setattr(array_training, "StackTrainer", Kept)
    estimator = SSMDGClassifier(**BRISK, random_state=0).fit(X, few(y), domain)
    trainer = trainers[0]
    assert not trainer.data.splits[0].test
    logits, _ = trainer._predict(torch.arange(len(y))[None], trainer.data.clean)
    expected = torch.softmax(logits[FUSED][0], -1).numpy()
    np.testing.assert_allclose(estimator.predict_proba(X), expected, atol=1e-5)
    assert expected.std() > 0.1


def test_rows_do_not_depend_on_their_batch(fitted: SSMDGClassifier) -> None:
    X, _, _ = make(1100, seed=3)  # more than a block of predictions
    X["audio"][::3] = np.nan
    X["video"][1::3] = np.nan
    whole = fitted.predict_proba(X)
    order = np.random.default_rng(0).permutation(1100)
    np.testing.assert_allclose(fitted.predict_proba(take_rows(X, order)), whole[order], rtol=1e-9, atol=1e-12)
    for row in (0, 1, 2, 1023, 1024, 1099):
        np.testing.assert_allclose(fitted.predict_proba(take_rows(X, [row]))[0], whole[row], rtol=1e-9, atol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_leaves_everything_as_it_was(data: Data) -> None:
    X, y, domain = data
    copies = {name: x.copy() for name, x in X.items()}
    threads, torch_state, numpy_state = torch.get_num_threads(), torch.get_rng_state(), numpy_position()
    first = SSMDGClassifier(**SHORT, random_state=3).fit(X, few(y), domain)
    FewLabelClassifier("erm", **SHORT, random_state=8).fit(X, few(y))
    torch.rand(5)
    torch.set_rng_state(torch_state)
    second = SSMDGClassifier(**SHORT, random_state=3).fit(X, few(y), domain)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    other = SSMDGClassifier(**SHORT, random_state=4).fit(X, few(y), domain)
    assert (first.predict_proba(X) != other.predict_proba(X)).any()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert numpy_position() == numpy_state
    for name, x in X.items():
        np.testing.assert_array_equal(x, copies[name])


def test_a_random_state_moves_on_and_none_differs(data: Data) -> None:
    X, y, _ = data
    labels = few(y)
    brisk: dict[str, Any] = {"steps": 3}

    def fit(state: Any) -> NDArray[np.float64]:
        return FewLabelClassifier("erm", **brisk, random_state=state).fit(X, labels).predict_proba(X)

    state = np.random.RandomState(0)
    first, second = fit(state), fit(state)
    assert (first != second).any()
    np.testing.assert_array_equal(fit(np.random.RandomState(0)), first)
    np.testing.assert_array_equal(fit(0), first)
    assert (fit(None) != fit(None)).any()


def test_copies_and_pickles_predict_the_same(fitted: SSMDGClassifier, data: Data, tmp_path: Path) -> None:
    X, _, _ = data
    X = {**X, "audio": np.full_like(X["audio"], np.nan)}
    expected = fitted.predict_proba(X)
    joblib.dump(fitted, tmp_path / "estimator")
    loaded = [pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted), joblib.load(tmp_path / "estimator", "r")]
    for other in loaded:
        np.testing.assert_array_equal(other.predict_proba(X), expected)
        assert other.notes_ == fitted.notes_
    state = fitted._heads.__getstate__()
    assert set(state) == {"spec", "dims", "arrays"}
    assert all(type(value) is np.ndarray for value in state["arrays"].values())
    json.dumps([state["spec"], state["dims"]])
    unfitted = clone(fitted)
    assert unfitted.get_params() == fitted.get_params()
    assert "method" not in unfitted.get_params()
    with pytest.raises(NotFittedError):
        unfitted.predict(X)


# Missing modalities


def test_rows_of_nan_and_absent_keys_are_the_same(fitted: SSMDGClassifier) -> None:
    X, y, _ = make(200, seed=1)
    gone = {**X, "video": np.full_like(X["video"], np.nan)}
    absent = {name: x for name, x in X.items() if name != "video"}
    expected = fitted.predict_proba(gone)
    np.testing.assert_array_equal(fitted.predict_proba(absent), expected)
    np.testing.assert_array_equal(fitted.predict_proba(dict(reversed(absent.items()))), expected)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-9)
    complete = fitted.predict_proba(X)
    assert np.abs(complete - expected).max() > 0.1
    # What is left still tells the classes apart, and rows that lack nothing are not touched by the others.
    assert fitted.score(gone, y) > 0.5
    some = {**X, "video": np.where(np.arange(200)[:, None] < 90, np.nan, X["video"])}
    mixed = fitted.predict_proba(some)
    np.testing.assert_allclose(mixed[90:], complete[90:], rtol=1e-9)
    np.testing.assert_allclose(mixed[:90], expected[:90], rtol=1e-9)


def test_fillers(data: Data) -> None:
    X, y, domain = data
    settings: dict[str, Any] = {"steps": 20, "random_state": 0, "hparams": {"learning_rate": 0.02}}
    estimator = SSMDGClassifier(**settings, filler="finetuned").fit(X, few(y), domain)
    audio = {"audio": X["audio"]}
    found = {}
    for name in FILLERS:
        found[name] = estimator.set_params(filler=name).predict_proba(audio)
        np.testing.assert_allclose(found[name].sum(1), 1, rtol=1e-6)
        np.testing.assert_array_equal(estimator.predict_proba(X), estimator.set_params(filler="zero").predict_proba(X))
    different = [np.abs(found[a] - found[b]).max() > 1e-6 for a in found for b in found if a < b]
    assert all(different)
    np.testing.assert_array_equal(estimator.set_params(filler="auto").predict_proba(audio), found["translate"])
    # Rows that have everything are fused, whatever the others of the batch get.
    half = {**X, "video": np.where(np.arange(150)[:, None] < 75, np.nan, X["video"])}
    complete = estimator.predict_proba(X)
    np.testing.assert_allclose(
        estimator.set_params(filler="renormalise").predict_proba(half)[75:], complete[75:], rtol=1e-9
    )
    plain = SSMDGClassifier(**settings).fit(X, few(y), domain)
    with pytest.raises(InputError, match=r"filler 'finetuned'.*fit again"):
        plain.set_params(filler="finetuned").predict(audio)
    erm = FewLabelClassifier("erm", **settings).fit(X, few(y), domain)
    zero = erm.predict_proba(audio)
    np.testing.assert_array_equal(erm.set_params(filler="zero").predict_proba(audio), zero)
    with pytest.raises(InputError, match="the fitted erm has zero, mean, prototype, renormalise"):
        erm.set_params(filler="translate").predict(audio)


def test_missing_rows_in_training(data: Data) -> None:
    X, y, domain = data
    rng = np.random.default_rng(0)
    holes = {name: np.where((rng.random(150) < 0.3)[:, None], np.nan, x) for name, x in X.items()}
    rows = ~np.all([np.isnan(x).all(1) for x in holes.values()], axis=0)
    estimator = SSMDGClassifier(steps=60, hparams={"learning_rate": 0.01}, random_state=0)
    estimator.fit(take_rows(holes, rows), few(y)[rows], domain[rows])
    assert estimator.score(X, y) > 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: {**X, "audio": np.where(np.arange(9) < 2, np.nan, X["audio"])}, "audio is NaN in part in rows 0, 1"),
        (
            lambda X: dict.fromkeys(X, np.full((5, 3), np.nan)),
            "5 of 5 rows have no modality at all .rows 0, 1, 2, 3, 4",
        ),
        (lambda X: {**X, "audio": X["audio"][:-1]}, "different numbers of rows: video 150, hand.sensor 150, audio 149"),
        (lambda X: {**X, "audio": np.full_like(X["audio"], np.inf)}, "audio contains infinity"),
        (lambda X: {**X, "audio": np.full_like(X["audio"], np.nan)}, "no row has the modality audio"),
        (lambda X: {**X, 3: X["audio"]}, "named 3; names of modalities are text"),
        (lambda X: {**X, "audio": X["audio"][None, None]}, r"\(1, 1, 150, 9\); it must be \(rows, dim\)"),
        (lambda X: {**X, "audio": X["audio"][:, 0]}, "Expected 2D array"),
        (lambda X: {**X, "audio": X["audio"] + 1j}, "Complex data not supported"),
        (lambda X: {}, "X is an empty dict"),
        (lambda X: {**X, "audio": np.repeat(X["audio"][:, None], 4, 1)}, "4 views .audio 4.*odd"),
        (
            lambda X: {m: np.repeat(x[:, None], v, 1) for (m, x), v in zip(X.items(), (3, 5, 3), strict=True)},
            "different numbers of views: video 3, hand.sensor 5, audio 3",
        ),
    ],
)
def test_arrays_that_are_refused(change: Any, message: str, data: Data) -> None:
    X, y, domain = data
    with pytest.raises(ValueError, match=message):
        SSMDGClassifier(**BRISK).fit(change(X), few(y), domain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: {"radar": X["audio"]}, "'radar' is not a modality of this estimator.*video, hand.sensor, audio"),
        (lambda X: {"audio": X["audio"][:, :5]}, "audio has 5 features; in fit it had 9"),
        (lambda X: {"audio": np.full((4, 9), np.nan)}, "4 of 4 rows have no modality at all"),
        (lambda X: X["audio"], "X is a ndarray, and fit was given a dict with video, hand.sensor, audio"),
        (lambda X: csr_array(X["audio"]), "such a dict"),
    ],
)
def test_predictions_that_are_refused(change: Any, message: str, fitted: SSMDGClassifier, data: Data) -> None:
    with pytest.raises(InputError, match=message):
        fitted.predict(change(data[0]))


def test_sparse_arrays_are_refused(data: Data) -> None:
    for kind in (csr_array, dok_array):  # the latter is a dict
        with pytest.raises(TypeError, match=r"[Ss]parse"):
            SSMDGClassifier(**BRISK).fit(kind(data[0]["audio"]), few(data[1]))
        with pytest.raises(TypeError, match=r"[Ss]parse"):
            SSMDGClassifier(**BRISK).fit({"audio": kind(data[0]["audio"])}, few(data[1]))


def test_the_kind_of_input_may_change_with_the_next_fit(data: Data) -> None:
    X, y, _ = data
    estimator = SSMDGClassifier(steps=2, random_state=0).fit(X["audio"], few(y))
    assert estimator.n_features_in_ == 9
    assert estimator.modalities_ == ("features",)
    with pytest.raises(InputError, match="X is a dict, and fit was given a plain array"):
        estimator.predict(X)
    estimator.fit(X, few(y))
    assert not hasattr(estimator, "n_features_in_")
    estimator.predict(X)


# Views


def test_views_are_read_in_their_order(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, domain = data
    banks = []

    class Kept(StackTrainer):
        def __init__(self, specs: Any, manifest: Any, bank: Any) -> None:
            super().__init__(specs, manifest, bank)
            banks.append(bank)

    monkeypatch.setattr(array_training, "StackTrainer", Kept)
    shifts = np.array([0.0, 1.0, 2.0, 10.0, 20.0])[None, :, None]
    views = {name: x[:, None] + shifts for name, x in X.items()}
    views["audio"] = X["audio"]  # of which none are there
    estimator = SSMDGClassifier(**BRISK, random_state=0).fit(views, few(y), domain)
    bank = banks[0]
    assert bank.views == ("clean0", "weak0", "weak1", "strong0", "strong1")
    video = bank.features["video"].double().numpy() * X["video"].std(0) + X["video"].mean(0)
    np.testing.assert_allclose(video, views["video"], atol=1e-5)
    assert bank.features["video"].dtype == torch.float32
    # Predictions read the clean view alone.
    np.testing.assert_array_equal(estimator.predict_proba(views), estimator.predict_proba(X))
    assert (estimator.predict_proba({**views, "video": views["video"][:, 3:]}) != estimator.predict_proba(X)).any()


def test_views_far_off_do_not_overflow(data: Data) -> None:
    X, y, domain = data
    views = {name: np.repeat(x[:, None], 3, 1) for name, x in X.items()}
    views["video"][5, 1:] = 1e60  # more standard deviations than float32 can hold
    estimator = FewLabelClassifier("fixmatch", **SHORT, random_state=0).fit(views, few(y), domain)
    assert np.isfinite(estimator.predict_proba(views)).all()


def test_surrogate_views() -> None:
    clean = np.random.default_rng(0).normal(size=(4000, 6))
    views = array_training.Surrogates(2, 0.1, 0.5, 0.25).draw(clean, 7, "video")
    assert views.shape == (4000, 5, 6)
    assert views.dtype == np.float32
    np.testing.assert_array_equal(views[:, 0], clean.astype(np.float32))
    assert (views[:, 1:3] - clean[:, None]).std() == pytest.approx(0.1, rel=0.03)
    strong = views[:, 3:]
    assert (strong == 0).mean() == pytest.approx(0.25, rel=0.05)
    assert (strong - clean[:, None])[strong != 0].std() == pytest.approx(0.5, rel=0.03)
    drawn = [views[:, k] - clean for k in range(1, 5)]
    for a in range(4):
        for b in range(a):
            assert abs(np.corrcoef(drawn[a].ravel(), drawn[b].ravel())[0, 1]) < 0.3
    same = array_training.Surrogates(2, 0.1, 0.5, 0.25)
    np.testing.assert_array_equal(same.draw(clean, 7, "video"), views)
    assert (same.draw(clean, 8, "video")[:, 1:] != views[:, 1:]).any()
    assert (same.draw(clean, 7, "audio")[:, 1:] != views[:, 1:]).any()


# Numbers of every kind


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_types_of_features_agree(dtype: Any, data: Data) -> None:
    X, y, domain = data
    whole = {name: np.round(x * 16) for name, x in X.items()}  # numbers that every type holds
    estimators = [
        FewLabelClassifier("erm", **BRISK, random_state=0).fit(take, few(y), domain)
        for take in (whole, {name: x.astype(dtype) for name, x in whole.items()})
    ]
    np.testing.assert_allclose(estimators[0].predict_proba(whole), estimators[1].predict_proba(whole), atol=1e-6)


def test_features_outside_float16_and_far_from_zero_keep_their_information(data: Data) -> None:
    """Large means, tiny and huge scales change nothing: features are standardised in float64 first."""
    X, y, domain = data
    plain = FewLabelClassifier("erm", **BRISK, random_state=0).fit(X, few(y), domain).predict_proba(X)
    for factor, offset, tolerance in ((1e9, 0.0, 1e-5), (1e-12, 0.0, 1e-5), (1.0, 1e7, 1e-4), (1e200, 0.0, 1e-5)):
        moved = {name: x * factor + offset for name, x in X.items()}
        found = FewLabelClassifier("erm", **BRISK, random_state=0).fit(moved, few(y), domain).predict_proba(moved)
        np.testing.assert_allclose(found, plain, atol=tolerance)


def test_features_that_carry_nothing(data: Data) -> None:
    X, y, domain = data
    padded = {name: np.column_stack([x, np.full(len(x), 0.1), np.zeros(len(x))]) for name, x in X.items()}
    estimator = FewLabelClassifier("erm", **BRISK, random_state=0).fit(padded, few(y), domain)
    expected = estimator.predict_proba(padded)
    for x in padded.values():
        x[:, -2:] = 1e30  # a constant of training says nothing at prediction either
    np.testing.assert_array_equal(estimator.predict_proba(padded), expected)
    X = {name: x * 1e300 for name, x in X.items()}  # far off: stops, and no number overflows
    assert np.isfinite(estimator.predict_proba({m: np.column_stack([x, x[:, :2]]) for m, x in X.items()})).all()


# Labels and domains


@pytest.mark.parametrize(
    ("y", "classes", "codes"),
    [
        (np.array([7, -1, 3, 7]), [3, 7], [1, -1, 0, 1]),
        (np.array([7.0, -1.0, 3.0]), [3, 7], [1, -1, 0]),
        (np.array([7, 255, 3], dtype=np.uint8), [3, 7, 255], [1, 2, 0]),
        ([True, False, True], [False, True], [1, 0, 1]),
        (["b", -1, "a"], ["a", "b"], [1, -1, 0]),
        (["b", -1, "a", None, ""], ["a", "b"], [1, -1, 0, -1, -1]),
        (np.array(["b", "", "a"]), ["a", "b"], [1, -1, 0]),
        (np.array(["b", np.nan, "a", -1], dtype=object), ["a", "b"], [1, -1, 0, -1]),
        (pd.Series(["b", None, "a"]), ["a", "b"], [1, -1, 0]),
        (pd.Series(["b", pd.NA, "a"], dtype="string"), ["a", "b"], [1, -1, 0]),
        (pd.Series(["b", None, "a"], dtype="category"), ["a", "b"], [1, -1, 0]),
    ],
)
def test_labels(y: Any, classes: list[Any], codes: list[int]) -> None:
    found, positions = read_labels(y, len(codes))
    assert found.tolist() == classes
    assert positions.tolist() == codes


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array(["a", -1, "b"]), "holds the text '-1'.*dtype=object"),
        ([-1, -1, -1], "none of the 3 rows has a label"),
        ([1, -1, 1], "y has 1 class, 1, and 1 rows without a label"),
        (np.array(["a", 1, "b"], dtype=object), "are of the types int, str, which have no order"),
        ([0.5, 0.25, 1.0], "[Uu]nknown label type"),
        ([0, 1], "y has 2 labels and X has 3 rows"),
        ([0, np.nan, 1], "contains NaN"),
        ([[0, 1], [1, 0], [0, 0]], "1d array"),
        (None, "y is None"),
    ],
)
def test_labels_that_are_refused(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(y, 3)


def test_a_column_of_labels_is_taken_with_a_warning() -> None:
    with pytest.warns(DataConversionWarning):
        assert read_labels(np.array([[1], [0]]), 2)[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("domain", "names"),
    [
        (["b", "a", "b"], ("b", "a")),
        (np.array([3, 1, 3]), (3, 1)),
        ([("x", 1), ("x", 2), ("x", 1)], (("x", 1), ("x", 2))),
        (pd.Series(["b", "a", "b"], index=[5, 6, 7], dtype="category"), ("b", "a")),
    ],
)
def test_domains(domain: Any, names: tuple[Any, ...]) -> None:
    found, positions = read_domains(domain, 3)
    assert found == names
    assert positions.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (["a"], "1 values and X has 3 rows"),
        (["a", None, "a"], "row 1 of X has no domain"),
        ([[1], [1], [2]], "hashable"),
    ],
)
def test_domains_that_are_refused(domain: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_domains(domain, 3)


def test_domains_change_what_is_learned_and_their_names_do_not(data: Data) -> None:
    X, y, domain = data
    one = SSMDGClassifier(**SHORT, random_state=0).fit(X, few(y)).predict_proba(X)
    three = SSMDGClassifier(**SHORT, random_state=0).fit(X, few(y), domain).predict_proba(X)
    named = SSMDGClassifier(**SHORT, random_state=0).fit(X, few(y), np.array(["a", "b", "c"])[domain]).predict_proba(X)
    assert (one != three).any()
    np.testing.assert_array_equal(three, named)


def test_names_of_modalities_are_free(data: Data) -> None:
    """Names that modules, hyperparameters or other modalities of the heads have do no harm."""
    X, y, domain = data
    plain = SSMDGClassifier(steps=4, random_state=0).fit({"a": X["video"], "b": X["audio"]}, few(y), domain)
    expected = plain.predict_proba({"a": X["video"], "b": X["audio"]})
    for first, second in (
        ("fused", "embedding"),
        ("m1", "m0"),
        ("", "keys"),
        ("hand.sensor", "übung 1"),
        ("t", "fused"),
    ):
        renamed = {first: X["video"], second: X["audio"]}
        estimator = SSMDGClassifier(steps=4, random_state=0).fit(renamed, few(y), domain)
        np.testing.assert_array_equal(estimator.predict_proba(renamed), expected)
    # The name that a hyperparameter knows keeps its meaning.
    heard = {"a": X["video"], "audio": X["audio"]}
    estimator = SSMDGClassifier(steps=4, random_state=0).fit(heard, few(y), domain)
    assert (estimator.predict_proba(heard) != expected).any()


def test_labels_of_all_rows(data: Data) -> None:
    X, y, domain = data
    estimator = SSMDGClassifier(**BRISK, random_state=0).fit(X, y, domain)
    assert "took the 150 labeled rows as unlabeled ones too" in estimator.notes_[0]
    assert estimator.score(X, y) > 0.9
    assert FewLabelClassifier("erm", steps=2).fit(X, y, domain).notes_ == ()


def test_the_upper_bound_refuses_rows_without_labels(data: Data) -> None:
    X, y, domain = data
    with pytest.raises(InputError, match="trains on the labels of all rows, and 126 of 150"):
        FewLabelClassifier("supervised", **BRISK).fit(X, few(y), domain)


def test_score_leaves_rows_without_a_label_out(fitted: SSMDGClassifier, data: Data) -> None:
    X, y, _ = data
    predicted = fitted.predict(X)
    hits = predicted == y
    assert fitted.score(X, y) == hits.mean()
    labels = few(y)
    assert fitted.score(X, labels) == hits[labels != -1].mean()
    weight = np.linspace(0, 1, 150)
    assert fitted.score(X, y, weight) == pytest.approx(np.average(hits, weights=weight))
    longer = np.array([f"{name} it" for name in predicted], dtype=object)
    assert fitted.score(X, longer) == 0
    with pytest.raises(InputError, match="no accuracy"):
        fitted.score(X, np.full(150, -1))
    with pytest.raises(InputError, match="y has 149 labels and X has 150 rows"):
        fitted.score(X, y[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ssmgd"}, "'ssmgd' is not a method. Did you mean 'ssmdg'"),
        ({"filler": "nought"}, "is not a filler"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"hparams": {"treshold": 0.9}}, "Did you mean 'threshold'"),
        ({"hparams": {"dropout_embedding": 1.0}}, "at least 0 and less than 1"),
        ({"hparams": ["threshold"]}, "give a dict"),
        ({"n_views": 0}, "n_views is 0"),
        ({"weak_noise": -1}, "weak_noise is -1"),
        ({"strong_noise": float("nan")}, "strong_noise is nan"),
        ({"strong_dropout": 1.0}, "strong_dropout is 1.0"),
        ({"device": "tpu"}, "'tpu' is not a device"),
        ({"hparams": {"learning_rate": 1e38}}, "training diverged"),
    ],
)
def test_parameters_that_are_refused(settings: dict[str, Any], message: str, data: Data) -> None:
    X, y, domain = data
    with pytest.raises(InputError, match=message):
        FewLabelClassifier(**{"steps": 5, **settings}).fit(X, few(y), domain)


# Inside scikit-learn


def test_pipelines_grids_and_cross_validation(data: Data) -> None:
    X, y, domain = data
    plain = np.concatenate(list(X.values()), 1)
    estimator = FewLabelClassifier("fixmatch", **BRISK, random_state=0)
    scores = cross_val_score(estimator, plain, y, groups=domain, cv=GroupKFold(3), params={"domain": domain})
    assert scores.mean() > 0.6
    piped = make_pipeline(StandardScaler(), estimator)
    piped.fit(plain, y, fewlabelclassifier__domain=domain)
    assert piped.score(plain, y) > 0.9
    grid = GridSearchCV(piped, {"fewlabelclassifier__method": ["erm", "fixmatch"]}, cv=2).fit(plain, y)
    assert grid.best_score_ > 0.6
    frame = pd.DataFrame(plain, columns=[f"f{k}" for k in range(plain.shape[1])])
    framed = estimator.fit(frame, y)
    assert list(framed.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        framed.predict(frame.rename(columns={"f0": "g0"}))


def test_leaving_one_domain_out(data: Data) -> None:
    X, y, domain = data
    X = {**X, "audio": pd.DataFrame(X["audio"])}
    seen = []
    for training, test in leave_one_domain_out(domain):
        assert not set(domain[training]) & set(domain[test])
        seen.append(int(domain[test][0]))
        estimator = FewLabelClassifier("erm", **BRISK, random_state=0)
        estimator.fit(take_rows(X, training), few(y[training]), domain[training])
        assert estimator.score(take_rows(X, test), y[test]) > 0.6
    assert seen == list(dict.fromkeys(domain.tolist()))
    with pytest.raises(InputError, match="leaves nothing to train on"):
        next(leave_one_domain_out(["a", "a"]))


def test_the_names_in_the_package_cost_nothing_until_they_are_used() -> None:
    code = "import sys, pipeline; assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert pipeline.SSMDGClassifier is SSMDGClassifier
    assert pipeline.FewLabelClassifier is FewLabelClassifier
