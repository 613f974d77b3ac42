"""The values of a run: what its identity depends on, and that a record on disk gives the same value back."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.types import RunResult, RunSpec, View, ViewSpec


def run_spec(**changes: Any) -> RunSpec:
    spec = RunSpec(
        dataset="small",
        manifest_digest="ab12",
        classes=("spin", "wave"),
        sources=("kitchen", "yard"),
        target="studio",
        modalities=("video", "audio"),
        features={m: {"backbone": f"tiny-{m}", "weights": "random:0", "digest": "cd34"} for m in ("video", "audio")},
        budget="5",
        method="fixmatch",
        hparams={"adapter": "residual", "fused_hidden": 512, "learning_rate": 1e-3, "threshold": 0.95},
        split_seed=1,
        init_seed=2,
        steps=400,
        batch_labeled=32,
        batch_unlabeled=64,
        eval_every=50,
    )
    return dataclasses.replace(spec, **changes)


def run_result(**changes: Any) -> RunResult:
    result = RunResult(
        spec=run_spec(),
        metrics={"selected_step": 100, "target/fused": 0.1 + 0.2, "pseudo/accepted/precision": None},
        curves={"step": [50, 100], "target/fused": [0.25, 0.1 + 0.2], "pseudo/accepted/precision": [None, None]},
        selection="last",
        environment={"torch": "2.13", "threads": 1, "stack": 4},
        seconds=1.5,
        notes=("kitchen/wave has 3 training clips for a budget of 5",),
    )
    return dataclasses.replace(result, **changes)


CHANGES: dict[str, Any] = {
    "dataset": "smaller",
    "manifest_digest": "ab13",
    "classes": ("wave", "spin"),
    "sources": ("yard", "kitchen"),
    "target": "cellar",
    "modalities": ("audio", "video"),
    "features": {"video": {"backbone": "tiny-video", "weights": "random:0", "digest": "cd35"}},
    "budget": "5%",
    "method": "erm",
    "hparams": {"adapter": "residual", "fused_hidden": 512, "learning_rate": 1e-3, "threshold": 0.951},
    "split_seed": 2,
    "init_seed": 3,
    "steps": 401,
    "batch_labeled": 33,
    "batch_unlabeled": 65,
    "eval_every": 51,
    "protocol": "paper",
    "target_part": "test",
    "selection": "oracle",
    "projection": "pca:256",
    "precision": "bfloat16",
    "patience": 3,
    "unlabeled_domains": ("yard",),
    "labeled_ids": ("a", "b"),
    "folds": 3,
    "fold": 1,
    "version": "0.2",
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RunSpec)])
def test_every_field_of_a_run_is_in_its_id(name: str) -> None:
    base = run_spec(folds=5) if name == "fold" else run_spec()
    assert dataclasses.replace(base, **{name: CHANGES[name]}).run_id != base.run_id


@pytest.mark.parametrize(("folds", "fold"), [(1, -1), (0, 0), (5, 5), (5, -2)])
def test_folds_that_are_none_are_refused(folds: int, fold: int) -> None:
    with pytest.raises(UsageError, match="there must be 2 folds or more"):
        run_spec(folds=folds, fold=fold)


def test_a_run_id_is_a_safe_file_name_and_ignores_the_order_of_hyperparameters() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", run_spec().run_id)
    reordered = dict(reversed(run_spec().hparams.items()))
    assert run_spec(hparams=reordered).run_id == run_spec().run_id


def test_a_spec_comes_back_from_json_unchanged() -> None:
    plain = json.loads(json.dumps(run_spec().to_json()))
    again = RunSpec.from_json(plain)
    assert again == run_spec()
    assert again.run_id == run_spec().run_id
    assert isinstance(again.hparams["fused_hidden"], int)


@pytest.mark.parametrize("result", [run_result(), run_result(status="diverged", metrics={}, notes=())])
def test_a_result_comes_back_from_json_unchanged(result: RunResult) -> None:
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["run_id"] == result.spec.run_id
    assert plain["schema"] == 1
    assert RunResult.from_json(plain) == result


def test_a_target_is_never_a_source() -> None:
    with pytest.raises(UsageError, match="target 'yard' is also a source"):
        run_spec(target="yard")


@pytest.mark.parametrize("name", ["steps", "batch_labeled", "batch_unlabeled", "eval_every"])
def test_sizes_are_at_least_one(name: str) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        run_spec(**{name: 0})


def test_views_stand_in_the_order_clean_weak_strong() -> None:
    assert [view.name for view in ViewSpec(weak=2, strong=1).views()] == ["clean0", "weak0", "weak1", "strong0"]
    assert View("strong", 3).name == "strong3"


@pytest.mark.parametrize("counts", [{"clean": 2}, {"clean": 0}, {"weak": 0}, {"strong": 0}, {"weak": 1, "strong": 2}])
def test_impossible_numbers_of_views_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="views: "):
        ViewSpec(**counts)
