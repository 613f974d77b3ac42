"""Results on disk, the rules that pick an evaluation, and the metrics worked out by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.evaluate import accuracy, class_mean_accuracy, pseudo_label_quality
from pipeline.records import ResultStore
from pipeline.select import SELECTION, selected
from tests.unit.test_types import run_result, run_spec

CURVES: dict[str, list[float | None]] = {
    "step": [50, 100, 150, 200],
    "target/fused": [0.2, 0.8, 0.7, 0.6],
    "val/fused": [0.5, 0.9, 0.9, None],
    "loss/labeled/fused": [1.0, 0.5, 0.4, 0.3],
}


def test_a_written_result_is_read_back_and_no_longer_missing(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    specs = [run_spec(split_seed=seed) for seed in range(3)]
    assert store.missing(specs) == specs
    assert store.read_known()[0] == []
    results = [run_result(spec=specs[1]), run_result(spec=specs[2], status="diverged", metrics={})]
    for result in results:
        store.write(result)
    assert store.missing(specs) == specs[:1]
    assert store.read(specs[2]) == results[1]
    assert sorted(store.read_known()[0], key=lambda r: r.spec.split_seed) == results
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_a_result_that_was_being_written_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(tmp_path)

    def power_cut(descriptor: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="power cut"):
        store.write(run_result())
    assert store.missing([run_spec()]) == [run_spec()]
    assert store.read_known()[0] == []


def test_a_result_with_a_number_json_does_not_know_is_not_written(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write(run_result(metrics={"target/fused": float("nan")}))
    assert store.read_known()[0] == []


WHOLE = json.dumps(run_result().to_json())


@pytest.mark.parametrize(
    "text",
    ["", WHOLE[:200], "[]", "null", "{}", json.dumps({**json.loads(WHOLE), "colour": 1}), '{"spec": {"dataset": "x"}}'],
    ids=["empty", "cut off", "a list", "null", "no spec", "a field too many", "fields missing"],
)
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str) -> None:
    path = ResultStore(tmp_path).path(run_spec().run_id)
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"{run_spec().run_id}.json is not a result .*; move it away and run again"):
        ResultStore(tmp_path).read(run_spec())


@pytest.mark.parametrize(("rule", "step"), [("last", 200), ("source-val", 150), ("oracle", 100)])
def test_the_rules_pick_these_evaluations(rule: str, step: int) -> None:
    """Source validation ties at steps 100 and 150, and the later one counts."""
    values = selected(CURVES, rule)
    assert values.pop("selected_step") == step
    position = CURVES["step"].index(step)
    assert values == {name: series[position] for name, series in CURVES.items() if name != "step"}
    assert rule in SELECTION


@pytest.mark.parametrize("series", [None, [], [None, None, None, None]])
def test_a_rule_without_its_curve_says_so(series: list[float | None] | None) -> None:
    curves = {name: values for name, values in CURVES.items() if name != "val/fused"}
    if series is not None:
        curves["val/fused"] = series
    with pytest.raises(UsageError, match="'source-val' needs the curve 'val/fused', which has no values"):
        selected(curves, "source-val")


def test_a_rule_that_picks_zero_accuracy_is_no_missing_curve() -> None:
    assert selected({"step": [1, 2], "val/fused": [0.0, None]}, "source-val")["selected_step"] == 1


def test_an_unknown_rule_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"'source_val' is not a selection rule. Did you mean 'source-val'\?"):
        selected(CURVES, "source_val")


LABELS = torch.tensor([[0, 0, 0, 1, 2], [1, 1, 2, 2, 2]])
PREDICTED = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 2, 0, 0]])
EVERYONE = torch.ones(2, 5, dtype=torch.bool)
SOME = torch.tensor([[True, False, True, True, False], [False, False, False, False, False]])


def close(found: Tensor, expected: list[float]) -> bool:
    return torch.allclose(found, torch.tensor(expected), equal_nan=True)


def test_accuracy_by_hand() -> None:
    assert close(accuracy(PREDICTED, LABELS, EVERYONE), [3 / 5, 2 / 5])
    assert close(accuracy(PREDICTED, LABELS, SOME), [2 / 3, float("nan")])


def test_class_mean_accuracy_by_hand() -> None:
    # run 0: class 0 has 2 of 3, class 1 has 1 of 1, class 2 has 0 of 1; run 1: class 1 has 1 of 2, class 2 1 of 3
    assert close(class_mean_accuracy(PREDICTED, LABELS, EVERYONE, 3), [(2 / 3 + 1) / 3, (1 / 2 + 1 / 3) / 2])
    # only clips in the mask count: run 0 keeps class 0 with 1 of 2 and class 1 with 1 of 1
    assert close(class_mean_accuracy(PREDICTED, LABELS, SOME, 3), [(1 / 2 + 1) / 2, float("nan")])
    # a class that never occurs does not count
    assert close(class_mean_accuracy(PREDICTED, LABELS, EVERYONE, 9), [(2 / 3 + 1) / 3, (1 / 2 + 1 / 3) / 2])


def test_pseudo_label_quality_by_hand() -> None:
    accepted = torch.tensor([[True, True, True, False, False], [False] * 5])
    coverage, precision = pseudo_label_quality(PREDICTED, accepted, LABELS, EVERYONE)
    assert close(coverage, [3 / 5, 0])
    assert close(precision, [2 / 3, float("nan")])
    coverage, precision = pseudo_label_quality(PREDICTED, accepted, LABELS, SOME)
    assert close(coverage, [2 / 3, float("nan")])
    assert close(precision, [1 / 2, float("nan")])
