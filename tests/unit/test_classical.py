"""Classifiers of scikit-learn on cached features: what they are fitted on, what they may see, and what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import Tensor

from pipeline import classical
from pipeline.bank import FeatureBank
from pipeline.classical import CLASSICAL, fit_classical
from pipeline.errors import UsageError
from pipeline.evaluate import accuracy
from pipeline.hparams import resolve_hparams
from pipeline.projection import CompactBank
from pipeline.splits import Labels, make_split
from pipeline.train import StackTrainer
from pipeline.types import Clip, Manifest, PerClass, RunResult, RunSpec, Split

CLASSES = ("wave", "spin", "drop")
DOMAINS = ("kitchen", "yard", "studio")
DIMS = {"video": 13, "flow": 10, "audio": 7}
VIEWS = ("clean0", "weak0", "weak1", "strong0", "strong1")
CURVES = {f"{part}/{head}" for part in ("target", "val") for head in ("fused", *DIMS)} | {
    "step",
    "target_class_mean/fused",
    "val_class_mean/fused",
}

every_method = pytest.mark.parametrize("method", CLASSICAL)


@pytest.fixture
def manifest() -> Manifest:
    clips = [
        Clip(f"{d}-{c}-{i}", d, c, "train" if i < 9 else "test", f"{d}-{c}-{i}", {"video": Path("x.mp4")})
        for d in DOMAINS
        for c in CLASSES
        for i in range(15)
    ]
    return Manifest("small", CLASSES, DOMAINS, tuple(clips), Path())


@pytest.fixture
def bank(manifest: Manifest) -> FeatureBank:
    """Features with a weak class signal, a domain shift, noise between views, and missing modalities."""
    rng = np.random.default_rng(5)
    labels, domains = np.array(manifest.label_indices()), np.array(manifest.domain_indices())
    features, present = {}, {}
    for name, dim in DIMS.items():
        clean = rng.normal(size=(3, dim))[labels] * 0.7 + rng.normal(size=(3, dim))[domains]
        clean = clean + rng.normal(size=clean.shape) + 3
        strength = np.array([0, 0.5, 0.5, 0.8, 0.8])[None, :, None]
        views = clean[:, None] + strength * rng.normal(size=(len(labels), 5, dim))
        here = rng.random(len(labels)) > 0.15
        features[name] = torch.from_numpy((views * here[:, None, None]).astype(np.float16))
        present[name] = torch.from_numpy(here)
    return FeatureBank(features, present, VIEWS)


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.int64]]:
    """Every prediction that is evaluated, in the order of the curves."""
    seen: list[NDArray[np.int64]] = []

    def watch(predicted: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        seen.append(predicted[0].numpy())
        return accuracy(predicted, labels, mask)

    monkeypatch.setattr(classical, "accuracy", watch)
    return seen


def make_spec(manifest: Manifest, method: str, **changes: Any) -> RunSpec:
    seed, target = changes.pop("seed", 0), changes.pop("target", "studio")
    spec = RunSpec(
        dataset="small",
        manifest_digest=manifest.digest,
        classes=manifest.classes,
        sources=tuple(d for d in manifest.domains if d != target),
        target=target,
        modalities=tuple(DIMS),
        features={m: {"backbone": "none", "weights": "none", "digest": "0"} for m in DIMS},
        budget="3",
        method=method,
        hparams=resolve_hparams(method, tuple(DIMS.items()), changes.pop("hparams", {})),
        split_seed=seed,
        init_seed=seed,
        steps=30,
        batch_labeled=7,
        batch_unlabeled=11,
        eval_every=12,
    )
    return replace(spec, **changes)


def split_of(manifest: Manifest, bank: FeatureBank, spec: RunSpec) -> Split:
    budget = PerClass(int(spec.budget))
    return make_split(manifest, spec.sources, spec.target, Labels(budget, spec.split_seed), bank.usable(manifest))


def fit(specs: Sequence[RunSpec], manifest: Manifest, bank: FeatureBank | CompactBank) -> list[RunResult]:
    return fit_classical(specs, manifest, bank, lambda amount: None)


def record(result: RunResult) -> dict[str, Any]:
    """Without what is measured by the clock."""
    return replace(result, seconds=0.0).to_json()


def by_hand(bank: FeatureBank, split: Split, modality: str) -> NDArray[np.float64]:
    """Scaled features of one modality, ``(clips, views, dim)``."""
    x, here = bank.features[modality].numpy().astype(np.float64), bank.present[modality].numpy()
    pool = [i for i in (*split.labeled, *split.unlabeled) if here[i]]
    scaled: NDArray[np.float64] = (x - x[pool, 0].mean(0)) / x[pool, 0].std(0) * here[:, None, None]
    return scaled


def changed(bank: FeatureBank, modality: str, x: Tensor | None = None, here: Tensor | None = None) -> FeatureBank:
    """The same bank with other features or presence of one modality."""
    present = bank.present[modality] if here is None else here
    features = (bank.features[modality] if x is None else x) * present[:, None, None]
    return replace(bank, features={**bank.features, modality: features}, present={**bank.present, modality: present})


def kept(manifest: Manifest, bank: FeatureBank, keep: Callable[[Clip], bool]) -> tuple[Manifest, FeatureBank]:
    """Some of the clips."""
    rows = [i for i, clip in enumerate(manifest.clips) if keep(clip)]
    features = {m: x[rows] for m, x in bank.features.items()}
    present = {m: here[rows] for m, here in bank.present.items()}
    clips = tuple(manifest.clips[i] for i in rows)
    return replace(manifest, clips=clips), replace(bank, features=features, present=present)


@pytest.mark.parametrize(
    ("method", "hparams", "direct"),
    [
        ("logistic", {}, lambda clips: LogisticRegression(C=1.0, max_iter=10_000)),
        ("logistic", {"inverse_regularisation": 0.01}, lambda clips: LogisticRegression(C=0.01, max_iter=10_000)),
        ("ncm", {}, lambda clips: NearestCentroid()),
        ("knn", {}, lambda clips: KNeighborsClassifier(5, metric="cosine")),
        ("knn", {"neighbors": 1}, lambda clips: KNeighborsClassifier(1, metric="cosine")),
        ("knn", {"neighbors": 1000}, lambda clips: KNeighborsClassifier(clips, metric="cosine")),
    ],
)
def test_predictions_are_those_of_scikit_learn_on_rows_assembled_by_hand(
    manifest: Manifest,
    bank: FeatureBank,
    predictions: list[NDArray[np.int64]],
    method: str,
    hparams: Mapping[str, float],
    direct: Callable[[int], Any],
) -> None:
    spec = make_spec(manifest, method, hparams=hparams)
    split = split_of(manifest, bank, spec)
    result = fit([spec], manifest, bank)[0]
    labels = np.array(manifest.label_indices())
    scaled = {m: by_hand(bank, split, m) for m in DIMS}
    expected, values = [], {}
    fused: dict[str, NDArray[np.int64]] = {}
    for part, clips in (("target", list(split.test)), ("val", list(split.val))):
        for head in ("fused", *DIMS):
            x = np.concatenate([scaled[m] for m in DIMS], 2) if head == "fused" else scaled[head]
            here = np.ones(len(labels), dtype=bool) if head == "fused" else bank.present[head].numpy()
            labeled = [i for i in split.labeled if here[i]]
            rows = np.concatenate([x[i, [0, 1, 2]] for i in labeled])  # clean and weak views, no strong one
            model = direct(len(labeled)).fit(rows, np.repeat(labels[labeled], 3))
            predicted = model.predict(x[clips, 0])
            expected.append(predicted)
            values[f"{part}/{head}"] = (predicted == labels[clips])[here[clips]].mean()
            if head == "fused":
                fused[part] = predicted
                hits = [(predicted == k)[labels[clips] == k].mean() for k in range(3)]
                values[f"{part}_class_mean/fused"] = np.mean(hits)
    assert len(predictions) == len(expected)
    for seen, wanted in zip(predictions, expected, strict=True):
        assert np.array_equal(seen, wanted)
    assert result.metrics == pytest.approx({"selected_step": 30, **values}, abs=1e-6)
    pairs = list(zip(labels[list(split.test)], fused["target"], strict=True))
    assert result.confusion == tuple(tuple(pairs.count((k, j)) for j in range(3)) for k in range(3))
    assert 0.4 < values["val/fused"] < 1  # neither chance nor trivial, so that a wrong row would show
    assert len({len(split.test)} | {int(bank.present[m][list(split.test)].sum()) for m in DIMS}) > 1


@every_method
@pytest.mark.parametrize("part", ["labeled", "unlabeled", "val", "test"])
def test_only_labels_of_labeled_clips_reach_the_fit(
    manifest: Manifest,
    bank: FeatureBank,
    predictions: list[NDArray[np.int64]],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    part: str,
) -> None:
    spec = make_spec(manifest, method)
    split = split_of(manifest, bank, spec)
    honest = fit([spec], manifest, bank)[0]
    before = predictions.copy()
    predictions.clear()
    clips = list(manifest.clips)
    for i in getattr(split, part):  # every one of them becomes wrong
        clips[i] = replace(clips[i], label=CLASSES[(CLASSES.index(clips[i].label) + 1) % 3])
    # The draw of the labeled set is stratified by class; what is fitted to the drawn clips is the question here.
    monkeypatch.setattr(classical, "run_split", lambda *args: split)
    shuffled = fit([spec], replace(manifest, clips=tuple(clips)), bank)[0]
    same = all(np.array_equal(one, two) for one, two in zip(before, predictions, strict=True))
    assert same == (part != "labeled")
    assert (record(shuffled) == record(honest)) == (part == "unlabeled")


@every_method
def test_target_features_do_not_reach_the_fit(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    """Those of all clips of the domain, whatever their published split."""
    rows = torch.tensor([clip.domain == "studio" for clip in manifest.clips])
    generator = torch.Generator().manual_seed(0)
    noisy = bank
    for modality, x in bank.features.items():
        noise = 50 * torch.randn(x.shape, generator=generator).half()
        noisy = changed(noisy, modality, torch.where(rows[:, None, None], noise, x))
    spec = make_spec(manifest, method)
    one, two = (fit([spec], manifest, b)[0].metrics for b in (bank, noisy))
    assert {k: v for k, v in one.items() if k.startswith("val")} == {
        k: v for k, v in two.items() if k.startswith("val")
    }
    assert one["target/fused"] != two["target/fused"]


@every_method
def test_unlabeled_clips_count_in_the_scaling(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    spec = make_spec(manifest, method)
    x = bank.features["video"].clone()
    x[list(split_of(manifest, bank, spec).unlabeled), :, :4] *= 50
    one, two = (fit([spec], manifest, b)[0].metrics for b in (bank, changed(bank, "video", x)))
    assert one["val/video"] != two["val/video"]
    assert one["val/audio"] == two["val/audio"]


@every_method
def test_a_modality_that_no_labeled_clip_has_has_no_value(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    spec = make_spec(manifest, method)
    split = split_of(manifest, bank, spec)
    here = bank.present["flow"].clone()
    here[list(split.labeled)] = False
    bank = changed(bank, "flow", here=here)
    assert split_of(manifest, bank, spec).labeled == split.labeled
    result = fit([spec], manifest, bank)[0]
    assert {name for name, value in result.metrics.items() if value is None} == {"target/flow", "val/flow"}
    assert result.curves["target/flow"] == result.curves["val/flow"] == [None]
    assert result.curves.keys() == CURVES
    assert result.status == "finished"


@every_method
def test_a_modality_of_one_labeled_clip_is_fitted_to_it(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    spec = make_spec(manifest, method)
    split = split_of(manifest, bank, spec)
    only = next(i for i in split.labeled if bank.present["flow"][i])
    here = bank.present["flow"].clone()
    here[[i for i in split.labeled if i != only]] = False
    result = fit([spec], manifest, changed(bank, "flow", here=here))[0]
    tested = [i for i in split.test if here[i]]
    share = np.mean([manifest.clips[i].label == manifest.clips[only].label for i in tested])
    assert result.metrics["target/flow"] == pytest.approx(share)


@every_method
def test_a_modality_that_no_target_clip_has_has_no_value_there(
    manifest: Manifest, bank: FeatureBank, method: str
) -> None:
    here = bank.present["audio"] & torch.tensor([clip.domain != "studio" for clip in manifest.clips])
    result = fit([make_spec(manifest, method)], manifest, changed(bank, "audio", here=here))[0]
    assert {name for name, value in result.metrics.items() if value is None} == {"target/audio"}


@every_method
def test_a_modality_without_training_clips_is_refused(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    here = torch.tensor([clip.domain == "studio" for clip in manifest.clips])
    with pytest.raises(UsageError, match="no source training clip has audio features; leave audio out"):
        fit([make_spec(manifest, method)], manifest, changed(bank, "audio", here=here))


@every_method
def test_a_class_without_labeled_clips_is_never_predicted(
    manifest: Manifest, bank: FeatureBank, predictions: list[NDArray[np.int64]], method: str
) -> None:
    manifest, bank = kept(manifest, bank, lambda clip: clip.label != "spin" or clip.split == "test")
    result = fit([make_spec(manifest, method)], manifest, bank)[0]
    assert {k for predicted in predictions for k in predicted.tolist()} == {0, 2}
    assert result.notes == tuple(f"{d}/spin has 0 training clips for a budget of 3" for d in ("kitchen", "yard"))
    truth = np.array(manifest.label_indices())[list(split_of(manifest, bank, result.spec).val)]
    recalls = [(predictions[4] == k)[truth == k].mean() for k in (0, 2)]
    assert result.metrics["val_class_mean/fused"] == pytest.approx(sum(recalls) / 3)  # "spin" is never found


@every_method
def test_a_single_class_is_predicted_for_every_clip(
    manifest: Manifest, bank: FeatureBank, predictions: list[NDArray[np.int64]], method: str
) -> None:
    manifest, bank = kept(manifest, bank, lambda clip: clip.label == "spin" or clip.split == "test")
    result = fit([make_spec(manifest, method)], manifest, bank)[0]
    assert {k for predicted in predictions for k in predicted.tolist()} == {1}
    assert result.metrics["target_class_mean/fused"] == pytest.approx(1 / 3)


@every_method
def test_features_that_are_all_alike_give_the_most_frequent_class(
    manifest: Manifest, bank: FeatureBank, method: str
) -> None:
    """For example the embedding of silence."""
    manifest, bank = kept(manifest, bank, lambda c: c.label == "drop" or c.split == "test" or c.clip_id[-1] in "01")
    bank = changed(bank, "audio", torch.full_like(bank.features["audio"], 3.0), torch.ones(len(manifest.clips)).bool())
    result = fit([make_spec(manifest, method)], manifest, bank)[0]
    tested = [clip for clip in manifest.clips if clip.domain == "studio"]
    assert result.metrics["target/audio"] == pytest.approx(np.mean([clip.label == "drop" for clip in tested]))


@every_method
def test_a_feature_that_carries_nothing_is_no_reason_to_warn(
    manifest: Manifest, bank: FeatureBank, method: str
) -> None:
    x = bank.features["video"].clone()
    x[..., 2] = 7
    result = fit([make_spec(manifest, method)], manifest, changed(bank, "video", x))[0]
    assert result.notes == ()


@every_method
def test_the_record_has_what_a_trained_head_has(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    spec = make_spec(manifest, method)
    result = fit([spec], manifest, bank)[0]
    head = StackTrainer([make_spec(manifest, "erm", steps=2)], manifest, bank).train(lambda amount: None)[0]
    assert result.curves.keys() == {name for name in head.curves if not name.startswith("loss/")} == CURVES
    assert {len(series) for series in result.curves.values()} == {1}
    assert result.curves["step"] == [30]
    assert result.metrics.keys() == CURVES - {"step"} | {"selected_step"}
    assert result.metrics["selected_step"] == 30
    assert (result.spec, result.selection, result.status) == (spec, "last", "finished")
    assert (result.sizes, result.notes) == (head.sizes, head.notes)
    assert result.environment.keys() == {*head.environment, "scikit-learn"}
    assert (result.environment["stack"], str(result.environment["device"])[:3]) == (1, "cpu")
    assert result.seconds > 0
    assert RunResult.from_json(json.loads(json.dumps(result.to_json()))).to_json() == result.to_json()


@every_method
def test_every_selection_rule_picks_the_one_evaluation(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    specs = [make_spec(manifest, method, selection=rule) for rule in ("last", "source-val", "oracle")]
    results = fit(specs, manifest, bank)
    assert [result.selection for result in results] == ["last", "source-val", "oracle"]
    assert results[0].metrics == results[1].metrics == results[2].metrics


def test_the_target_can_be_its_test_part(manifest: Manifest, bank: FeatureBank) -> None:
    whole, part = fit([make_spec(manifest, "ncm"), make_spec(manifest, "ncm", target_part="test")], manifest, bank)
    usable = bank.usable(manifest)
    tested = [c for c in manifest.clips if c.clip_id in usable and c.domain == "studio"]
    assert whole.sizes["test"] == len(tested)
    assert part.sizes["test"] == sum(c.split == "test" for c in tested)
    assert {k: v for k, v in part.sizes.items() if k != "test"} == {k: v for k, v in whole.sizes.items() if k != "test"}
    assert part.metrics["val/fused"] == whole.metrics["val/fused"]


def test_without_validation_clips_there_are_no_such_curves(manifest: Manifest, bank: FeatureBank) -> None:
    manifest, bank = kept(manifest, bank, lambda clip: clip.split == "train" or clip.domain == "studio")
    result = fit([make_spec(manifest, "ncm")], manifest, bank)[0]
    assert result.curves.keys() == {name for name in CURVES if not name.startswith("val")}
    with pytest.raises(UsageError, match="'source-val' needs validation clips, and the sources kitchen, yard have"):
        fit([make_spec(manifest, "ncm", selection="source-val")], manifest, bank)


def test_a_run_does_not_depend_on_who_is_beside_it(manifest: Manifest, bank: FeatureBank) -> None:
    specs = [
        make_spec(manifest, method, seed=seed, target=target)
        for method in CLASSICAL
        for seed, target in ((0, "studio"), (1, "studio"), (0, "yard"))
    ]
    forward = [record(result) for result in fit(specs, manifest, bank)]
    backward = [record(result) for result in fit(specs[::-1], manifest, bank)]
    alone = [record(fit([spec], manifest, bank)[0]) for spec in specs]
    assert forward == backward[::-1] == alone
    assert [r["run_id"] for r in forward] == [spec.run_id for spec in specs]
    assert forward[0]["metrics"] != forward[1]["metrics"]


def test_progress_adds_up_to_the_steps_of_one_stack(manifest: Manifest, bank: FeatureBank) -> None:
    specs = [make_spec(manifest, "ncm", seed=seed, steps=7) for seed in range(3)]
    amounts: list[int] = []
    fit_classical(specs, manifest, bank, amounts.append)
    assert (len(amounts), sum(amounts)) == (3, 7)
    assert fit([], manifest, bank) == []


@every_method
def test_compact_features_are_taken_as_they_are(
    manifest: Manifest, bank: FeatureBank, predictions: list[NDArray[np.int64]], method: str
) -> None:
    """A run reads the set of its own sources, which is scaled already."""
    spec = make_spec(manifest, method)
    split = split_of(manifest, bank, spec)
    own = {m: torch.from_numpy(by_hand(bank, split, m)).half() for m in DIMS}
    sets = (("kitchen", "studio"), spec.sources)
    compact = CompactBank({m: torch.stack([x.flip(0) * 2, x]) for m, x in own.items()}, bank.present, VIEWS, sets)
    assert fit([spec], manifest, compact)[0].curves.keys() == CURVES
    labels = np.array(manifest.label_indices())
    x = np.concatenate([own[m].double().numpy() for m in DIMS], 2)
    model = CLASSICAL[method].build(CLASSICAL[method].hparams, len(split.labeled))
    rows = np.concatenate([x[i, :3] for i in split.labeled])
    model.fit(rows, np.repeat(labels[list(split.labeled)], 3))
    assert np.array_equal(predictions[0], model.predict(x[list(split.test), 0]))


def test_a_fit_that_stops_too_early_is_noted(
    manifest: Manifest, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classical, "ITERATIONS", 1)
    notes = fit([make_spec(manifest, "logistic")], manifest, bank)[0].notes
    assert len(notes) == 4
    assert notes[0].startswith("logistic of fused: lbfgs failed to converge")


@pytest.mark.parametrize(
    ("method", "name", "value", "allowed"),
    [
        ("knn", "neighbors", 0.0, "a whole number of at least 1"),
        ("knn", "neighbors", 2.5, "a whole number of at least 1"),
        ("logistic", "inverse_regularisation", 0.0, "more than 0"),
        ("logistic", "inverse_regularisation", -1.0, "more than 0"),
    ],
)
def test_a_hyperparameter_out_of_its_range_is_refused(
    manifest: Manifest, bank: FeatureBank, method: str, name: str, value: float, allowed: str
) -> None:
    with pytest.raises(UsageError, match=f"hyperparameter {name} is {value}; it must be {allowed}"):
        fit([make_spec(manifest, method, hparams={name: value})], manifest, bank)


def test_another_method_is_refused(manifest: Manifest, bank: FeatureBank) -> None:
    with pytest.raises(UsageError, match=r"'erm' is not a classical method\..* Allowed: logistic, ncm, knn"):
        fit([make_spec(manifest, "erm")], manifest, bank)


def test_the_table_says_what_it_is() -> None:
    for recipe in CLASSICAL.values():
        assert recipe.title
        assert recipe.source.startswith("scikit-learn ")
        assert recipe.variant
    assert "Euclidean" in CLASSICAL["ncm"].variant
    defaults = {name: dict(recipe.hparams) for name, recipe in CLASSICAL.items()}
    assert defaults == {"logistic": {"inverse_regularisation": 1.0}, "ncm": {}, "knn": {"neighbors": 5.0}}
