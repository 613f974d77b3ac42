"""The selection rule label-honest: folds inside the budget decide, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.bank import FeatureBank
from pipeline.compact import fitted_projections
from pipeline.plan import fold_curve, fold_runs
from pipeline.select import SELECTION
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunResult, RunSpec
from tests.contract.conftest import make_spec


def honest(manifest: Manifest, bank: FeatureBank, method: str = "erm", **changes: object) -> RunSpec:
    values = {"selection": "label-honest", "folds": 3, "steps": 12, "eval_every": 3, "budget": "3", **changes}
    return make_spec(manifest, bank, method, **values)


def results(spec: RunSpec, manifest: Manifest, bank: FeatureBank) -> tuple[list[RunResult], RunResult, StackTrainer]:
    """The folds, the run they select for, and its trainer."""
    torch.set_num_threads(1)
    folds = StackTrainer(fold_runs([spec])[spec.run_id], manifest, bank).train(lambda amount: None)
    trainer = StackTrainer([spec], manifest, bank, {spec.run_id: fold_curve(folds)})
    return folds, trainer.train(lambda amount: None)[0], trainer


@pytest.mark.parametrize("method", ["erm", "ssmdg"])
def test_the_selected_step_is_the_folds_best(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    folds, run, trainer = results(honest(manifest, bank, method), manifest, bank)
    assert len(folds) == 3
    means = [sum(fold.curves["val/fused"][k] for fold in folds) / 3 for k in range(4)]
    assert run.curves["folds/fused"] == pytest.approx(means)
    best = max(range(4), key=lambda k: (means[k], k))
    assert run.metrics["selected_step"] == run.curves["step"][best]
    assert run.metrics["target/fused"] == run.curves["target/fused"][best]
    plain = StackTrainer([replace(honest(manifest, bank, method), selection="last", folds=0)], manifest, bank)
    assert plain.train(lambda amount: None)[0].curves["target/fused"] == run.curves["target/fused"]
    assert trainer.weights(0).keys() == plain.weights(0).keys()


def test_no_label_outside_the_budget_moves_the_selection(manifest: Manifest, bank: FeatureBank) -> None:
    spec = honest(manifest, bank)
    folds, _, _ = results(spec, manifest, bank)
    trainer = StackTrainer(fold_runs([spec])[spec.run_id], manifest, bank)
    hidden = torch.arange(len(manifest.clips))
    labeled = torch.tensor(StackTrainer([spec], manifest, bank, {spec.run_id: [0.0] * 4}).data.splits[0].labeled)
    hidden = hidden[~torch.isin(hidden, labeled)]
    trainer.data.labels = trainer.data.labels.clone()
    trainer.data.labels[hidden] = (trainer.data.labels[hidden] + 1) % len(manifest.classes)
    shuffled = trainer.train(lambda amount: None)
    assert fold_curve(shuffled) == fold_curve(folds)


def test_a_run_whose_folds_all_diverged_is_a_result_and_no_crash(manifest: Manifest, bank: FeatureBank) -> None:
    spec = honest(manifest, bank)
    (result,) = StackTrainer([spec], manifest, bank, {spec.run_id: fold_curve([])}).train(lambda amount: None)
    assert result.status == "diverged"
    assert "every fold diverged, so no evaluation can be selected" in result.notes
    assert result.metrics == {}
    assert RunResult.from_json(result.to_json()) == result


def test_a_fold_that_diverged_is_left_out(manifest: Manifest, bank: FeatureBank) -> None:
    folds, _, _ = results(honest(manifest, bank), manifest, bank)
    lost = replace(folds[0], status="diverged", metrics={})
    expected = [sum(fold.curves["val/fused"][k] for fold in folds[1:]) / 2 for k in range(4)]
    assert fold_curve([lost, *folds[1:]]) == pytest.approx(expected)


def test_ties_go_to_the_later_evaluation() -> None:
    curves = {"step": [1, 2, 3, 4], "folds/fused": [0.5, 0.7, 0.7, None]}
    assert SELECTION["label-honest"](curves) == 2


def test_the_folds_of_a_run_train_on_the_runs_own_projection(
    manifest: Manifest, bank: FeatureBank, tmp_path: Path
) -> None:
    """Otherwise a fold's numbers would depend on which fold stands first in its stack."""
    spec = honest(manifest, bank, projection="pca:4")
    of_run = fitted_projections([spec], manifest, bank, tmp_path)
    for fold in fold_runs([spec])[spec.run_id]:
        of_fold = fitted_projections([fold], manifest, bank, tmp_path)
        assert {m: p.digest for m, p in of_fold[spec.sources].items()} == {
            m: p.digest for m, p in of_run[spec.sources].items()
        }
