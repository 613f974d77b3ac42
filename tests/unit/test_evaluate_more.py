"""Confusion matrices and pseudo-label quality per class, domain and modality, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads.losses import PseudoLabels
from heads.network import FUSED
from pipeline.bank import FeatureBank
from pipeline.evaluate import Evaluation, confusion_matrix, group_counts, quality_per_class, quality_per_domain
from pipeline.records import ResultStore
from pipeline.train import StackTrainer
from pipeline.types import Clip, Manifest, RunResult, RunSpec
from tests.contract.conftest import make_spec
from tests.unit.test_types import run_result

TRUTH = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 0, 0]])
PREDICTED = torch.tensor([[0, 1, 1, 1, 0, 2], [0, 0, 1, 2, 0, 1]])
EVERYONE = torch.ones(2, 6, dtype=torch.bool)
SOME = torch.tensor([[True, True, True, False, True, True], [False] * 6])
NAN = math.nan


def close(found: Tensor, expected: list[list[float]]) -> bool:
    return torch.allclose(found.double(), torch.tensor(expected).double(), equal_nan=True)


def test_group_counts_by_hand() -> None:
    groups = torch.tensor([[0, 0, 3, 3, 3, -1], [1, 1, 1, 1, 1, 1]])
    mask = torch.tensor([[True, True, True, False, True, False], [True, False, False, False, False, False]])
    assert group_counts(groups, mask, 4).tolist() == [[2, 0, 0, 2], [0, 1, 0, 0]]


def test_confusion_matrix_by_hand() -> None:
    assert confusion_matrix(PREDICTED, TRUTH, EVERYONE, 3).tolist() == [
        [[1, 1, 0], [0, 2, 0], [1, 0, 1]],
        [[2, 1, 0], [1, 1, 1], [0, 0, 0]],
    ]
    assert confusion_matrix(PREDICTED, TRUTH, SOME, 3).tolist() == [
        [[1, 1, 0], [0, 1, 0], [1, 0, 1]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]


# Run 0 accepts clips 0, 1, 2, 4: true classes 0 0 1 2, pseudo-labels 0 1 1 0. Run 1 accepts nothing.
ACCEPTED = torch.tensor([[True, True, True, False, True, False], [False] * 6])


def test_quality_per_class_by_hand() -> None:
    coverage, precision = quality_per_class(PREDICTED, ACCEPTED, TRUTH, EVERYONE, 4)
    # of the two clips of class 0 both are accepted, of class 1 and 2 one of two; no clip is of class 3
    assert close(coverage, [[1, 1 / 2, 1 / 2, NAN], [0, 0, NAN, NAN]])
    # pseudo-labels 0: clips 0 (right) and 4 (of class 2); pseudo-labels 1: clips 1 (of class 0) and 2 (right)
    assert close(precision, [[1 / 2, 1 / 2, NAN, NAN], [NAN] * 4])


def test_clips_outside_the_mask_do_not_count_per_class() -> None:
    mask = torch.tensor([[True, False, True, True, False, True], [True] * 6])
    coverage, precision = quality_per_class(PREDICTED, ACCEPTED, TRUTH, mask, 3)
    assert close(coverage, [[1, 1 / 2, 0], [0, 0, NAN]])
    assert close(precision, [[1, 1, NAN], [NAN] * 3])


def test_quality_per_domain_by_hand() -> None:
    domain = torch.tensor([[0, 0, 0, 1, 1, -1], [1, 1, 1, 1, 1, 1]])  # the padded clip is of no source
    mask = torch.tensor([[True] * 5 + [False], [True] * 6])
    coverage, precision = quality_per_domain(PREDICTED, ACCEPTED, TRUTH, mask, domain, 2)
    assert close(coverage, [[1, 1 / 2], [NAN, 0]])
    assert close(precision, [[2 / 3, 0], [NAN, NAN]])


def test_the_rows_of_an_evaluation_have_the_names_of_their_run() -> None:
    evaluation = Evaluation(torch.zeros(2, 3, 3), {"a": torch.tensor([1.0, 2.0])})
    evaluation.grouped.append(([["x", "y"], ["x", "z"]], torch.tensor([[3.0, 4.0], [5.0, 6.0]])))
    assert evaluation.rows() == [{"a": 1, "x": 3, "y": 4}, {"a": 2, "x": 5, "z": 6}]


CLASSES = ("left", "right")
POOL = 8  # training clips per class and domain; one of them is labeled


@pytest.fixture
def manifest() -> Manifest:
    clips = [
        Clip(f"{d}-{c}-{i}", d, c, "train" if i < POOL else "test", f"{d}-{c}-{i}", {"video": Path("x.mp4")})
        for d in ("kitchen", "yard", "studio")
        for c in CLASSES
        for i in range(POOL + 2)
    ]
    return Manifest("small", CLASSES, ("kitchen", "yard", "studio"), tuple(clips), Path())


@pytest.fixture
def bank(manifest: Manifest) -> FeatureBank:
    count = len(manifest.clips)
    generator = torch.Generator().manual_seed(3)
    x = {m: torch.randn(count, 5, 4, generator=generator).half() for m in ("video", "audio")}
    present = {"video": torch.ones(count, dtype=torch.bool), "audio": torch.arange(count) % 3 > 0}
    views = ("clean0", "weak0", "weak1", "strong0", "strong1")
    return FeatureBank({m: v * present[m][:, None, None] for m, v in x.items()}, present, views)


def spec(manifest: Manifest, bank: FeatureBank, **changes: object) -> RunSpec:
    values = {"budget": "1", "steps": 4, "eval_every": 2, "batch_labeled": 2, "batch_unlabeled": 4, **changes}
    return make_spec(manifest, bank, "fixmatch", **values)


class Scripted:
    """Predictions and pseudo-labels that are written down: functions of the clip's position alone."""

    def __init__(self, trainer: StackTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trainer = trainer
        self.predictions: dict[str, Callable[[Tensor], Tensor]] = {
            FUSED: lambda rows: (rows % 5 == 0).long(),
            "video": lambda rows: (rows % 2 == 0).long(),
            "audio": lambda rows: (rows % 3 == 1).long(),
        }
        self.masks: dict[str, Callable[[Tensor], Tensor]] = {
            "accepted": lambda rows: rows % 4 < 2,
            "other": lambda rows: rows % 7 == 6,
        }
        monkeypatch.setattr(trainer, "_train_block", lambda *block: {})
        monkeypatch.setattr(trainer, "_predict", self.predict)
        monkeypatch.setattr(trainer.method, "pseudo_labels", self.pseudo_labels)
        self.rows = torch.zeros(0)

    def predict(self, rows: Tensor, view: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        self.rows = rows
        logits = {name: torch.eye(2)[classes(rows)] for name, classes in self.predictions.items()}
        return logits, {m: here[rows] for m, here in self.trainer.data.bank.present.items()}

    def pseudo_labels(self, logits: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> PseudoLabels:
        return PseudoLabels(logits[FUSED].argmax(-1), {name: mask(self.rows) for name, mask in self.masks.items()})


def by_hand(scripted: Scripted, manifest: Manifest, bank: FeatureBank, run: int) -> dict[str, float | None]:
    """Every curve of pseudo-labels of one run, clip by clip."""
    split, sources = scripted.trainer.data.splits[run], scripted.trainer.specs[run].sources
    pool = list(split.unlabeled)
    predicted = {n: f(torch.arange(len(manifest.clips))).tolist() for n, f in scripted.predictions.items()}
    truth = manifest.label_indices()

    def share(part: list[int], whole: list[int]) -> float | None:
        return len(part) / len(whole) if whole else None

    def right(clips: list[int]) -> list[int]:
        return [i for i in clips if predicted[FUSED][i] == truth[i]]

    found: dict[str, float | None] = {}
    for name, mask in scripted.masks.items():
        used = [i for i in pool if bool(mask(torch.tensor(i)))]
        found[f"pseudo/{name}/coverage"] = share(used, pool)
        found[f"pseudo/{name}/precision"] = share(right(used), used)
        for k, label in enumerate(CLASSES):
            of_class, labeled_so = [i for i in pool if truth[i] == k], [i for i in used if predicted[FUSED][i] == k]
            found[f"pseudo/{name}/class/{label}/coverage"] = share([i for i in used if truth[i] == k], of_class)
            found[f"pseudo/{name}/class/{label}/precision"] = share(right(labeled_so), labeled_so)
        for domain in sources:
            mine = [i for i in pool if manifest.clips[i].domain == domain]
            found[f"pseudo/{name}/domain/{domain}/coverage"] = share([i for i in used if i in mine], mine)
            found[f"pseudo/{name}/domain/{domain}/precision"] = share(
                right([i for i in used if i in mine]), [i for i in used if i in mine]
            )
    used = [i for i in pool if bool(scripted.masks["accepted"](torch.tensor(i)))]
    for modality, here in bank.present.items():
        have, own = [i for i in pool if here[i]], predicted[modality]
        accepted = [i for i in used if here[i]]
        found[f"pseudo/agree/{modality}"] = share([i for i in accepted if own[i] == predicted[FUSED][i]], accepted)
        found[f"pseudo/right/{modality}"] = share([i for i in have if own[i] == truth[i]], have)
    return found


def test_the_trainer_records_the_quality_of_the_pool(
    manifest: Manifest, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs with other sources and pools of other sizes."""
    specs = [spec(manifest, bank), spec(manifest, bank, target="yard", budget="4", seed=1)]
    trainer = StackTrainer(specs, manifest, bank)
    scripted = Scripted(trainer, monkeypatch)
    results = trainer.train(lambda amount: None)
    assert len({len(split.unlabeled) for split in trainer.data.splits}) == 2
    for run, result in enumerate(results):
        pseudo = {name: curve for name, curve in result.curves.items() if name.startswith("pseudo/")}
        expected = by_hand(scripted, manifest, bank, run)
        assert pseudo.keys() == expected.keys()
        for name, value in expected.items():
            assert pseudo[name] == [pytest.approx(value)] * 2, name
        values = [v for v in expected.values() if v is not None]
        assert len(set(values)) > 6  # otherwise mixed-up curves would go unseen


def test_without_accepted_pseudo_labels_there_is_no_precision_and_no_agreement(
    manifest: Manifest, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = StackTrainer([spec(manifest, bank)], manifest, bank)
    scripted = Scripted(trainer, monkeypatch)
    scripted.masks = {"accepted": lambda rows: rows < 0}
    curves = trainer.train(lambda amount: None)[0].curves
    pseudo = {name: curve for name, curve in curves.items() if name.startswith("pseudo/")}
    undefined = {name for name, curve in pseudo.items() if curve == [None, None]}
    assert undefined == {n for n in pseudo if n.endswith("/precision") or n.startswith("pseudo/agree/")}
    assert all(curve == [0, 0] for name, curve in pseudo.items() if name.endswith("/coverage"))
    assert None not in pseudo["pseudo/right/video"]


def test_the_confusion_is_that_of_the_target_clips(
    manifest: Manifest, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [spec(manifest, bank), spec(manifest, bank, target="yard", target_part="test")]
    trainer = StackTrainer(specs, manifest, bank)
    scripted = Scripted(trainer, monkeypatch)
    results = trainer.train(lambda amount: None)
    truth = manifest.label_indices()
    predicted = scripted.predictions[FUSED](torch.arange(len(truth))).tolist()
    for result, split in zip(results, trainer.data.splits, strict=True):
        expected = [[sum((truth[i], predicted[i]) == (k, j) for i in split.test) for j in (0, 1)] for k in (0, 1)]
        assert result.confusion == tuple(map(tuple, expected))
    assert sum(map(sum, results[0].confusion)) == 20
    assert sum(map(sum, results[1].confusion)) == 4


def quarter(rows: Tensor) -> Tensor:
    """0 to 3, alike for all domains: a quarter of the target's 20 clips and of the 8 validation clips each."""
    return 2 * (rows % 2) + rows // 10 % 2


@pytest.mark.parametrize("selection", ["last", "source-val", "oracle"])
@pytest.mark.parametrize("best", [0, 1, 2, 3])
def test_the_confusion_is_that_of_the_selected_evaluation(
    manifest: Manifest, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch, selection: str, best: int
) -> None:
    """Before the best evaluation more and more clips are right, behind it fewer."""
    trainer = StackTrainer([spec(manifest, bank, steps=8, selection=selection)], manifest, bank)
    scripted = Scripted(trainer, monkeypatch)
    labels = torch.tensor(manifest.label_indices())

    def wrong_for_some(rows: Tensor) -> Tensor:
        number = trainer.progress.step // 2 - 1
        return torch.where(quarter(rows) < abs(number - best), 1 - labels[rows], labels[rows])

    scripted.predictions[FUSED] = wrong_for_some
    result = trainer.train(lambda amount: None)[0]
    expected = 3 if selection == "last" else best
    assert result.metrics["selected_step"] == 2 * (expected + 1)
    wrong = 5 * abs(expected - best)
    assert sum(result.confusion[k][1 - k] for k in (0, 1)) == wrong
    assert result.metrics["target/fused"] == pytest.approx(1 - wrong / 20)


def test_a_run_that_stopped_early_keeps_the_confusion_of_its_last_evaluation(
    manifest: Manifest, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run 0 has its best validation at once and stops after the second evaluation; run 1 goes on."""
    specs = [spec(manifest, bank, steps=8, patience=1), spec(manifest, bank, steps=8, patience=1, seed=1)]
    trainer = StackTrainer(specs, manifest, bank)
    scripted = Scripted(trainer, monkeypatch)
    labels = torch.tensor(manifest.label_indices())

    def script(rows: Tensor) -> Tensor:
        number = trainer.progress.step // 2 - 1
        wrong = torch.stack([quarter(rows[0]) < number, quarter(rows[1]) < 3 - number])
        return torch.where(wrong, 1 - labels[rows], labels[rows])

    scripted.predictions[FUSED] = script
    results = trainer.train(lambda amount: None)
    assert [len(r.curves["step"]) for r in results] == [2, 4]
    assert [sum(r.confusion[k][1 - k] for k in (0, 1)) for r in results] == [5, 0]


def test_one_evaluation_is_the_selected_one_whatever_the_rule(manifest: Manifest, bank: FeatureBank) -> None:
    rule = {"selection": "label-honest", "folds": 2, "steps": 2}
    result = StackTrainer([spec(manifest, bank, **rule)], manifest, bank).train(lambda amount: None)[0]
    assert sum(map(sum, result.confusion)) == 20


def test_a_run_that_diverged_has_no_confusion(manifest: Manifest, bank: FeatureBank) -> None:
    broken = spec(manifest, bank, hparams={"learning_rate": 1e38})
    result = StackTrainer([broken], manifest, bank).train(lambda amount: None)[0]
    assert (result.status, result.confusion) == ("diverged", ())


def test_a_result_without_a_confusion_can_still_be_read(tmp_path: Path) -> None:
    result = run_result()
    plain = result.to_json()
    del plain["confusion"]
    assert RunResult.from_json(plain) == result
    whole = replace(result, confusion=((3, 1), (0, 2)))
    store = ResultStore(tmp_path)
    store.write(whole)
    assert store.read(whole.spec) == whole
