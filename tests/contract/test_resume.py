"""A stack that is stopped and started again gives the numbers of one that was never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import pipeline.train
from heads.methods import METHODS
from pipeline.bank import FeatureBank
from pipeline.train import StackTrainer
from pipeline.types import Manifest
from tests.contract.conftest import make_spec


class Stopped(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def checkpoint_at_every_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(pipeline.train, "CHECKPOINT_SECONDS", -1.0)


def trainer(manifest: Manifest, bank: FeatureBank, method: str = "ssmdg") -> StackTrainer:
    """Two runs with different targets and learning rates; 12 steps, evaluated after 5, 10 and 12."""
    sizes = {"steps": 12, "eval_every": 5}
    first = make_spec(manifest, bank, method, **sizes)
    second = make_spec(manifest, bank, method, target="yard", seed=1, hparams={"learning_rate": 3e-3}, **sizes)
    return StackTrainer([first, second], manifest, bank)


def state(stack: StackTrainer) -> dict[str, Tensor]:
    """Parameters, prototypes and optimiser moments."""
    return {**stack.method.state_dict(), **stack.optimiser.tensors()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def stop_at(step: int) -> Callable[[int], None]:
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        if done == step:
            raise Stopped

    return advance


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    manifest: Manifest, bank: FeatureBank, method: str, tmp_path: Path
) -> None:
    whole = trainer(manifest, bank, method)
    expected = whole.train(lambda amount: None)
    checkpoint = tmp_path / "stack.safetensors"
    with pytest.raises(Stopped):
        trainer(manifest, bank, method).train(stop_at(7), checkpoint)
    resumed, reported = trainer(manifest, bank, method), []
    results = resumed.train(reported.append, checkpoint)
    assert reported[0] == 5
    assert sum(reported) == 12
    assert [r.curves for r in results] == [r.curves for r in expected]
    assert [r.metrics for r in results] == [r.metrics for r in expected]
    assert [r.confusion for r in results] == [r.confusion for r in expected]
    assert same(state(resumed), state(whole))


@pytest.mark.parametrize("selection", ["source-val", "oracle"])
def test_what_was_selected_before_the_stop_is_still_in_the_record(
    manifest: Manifest, bank: FeatureBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str
) -> None:
    """Everything is right at the first evaluation and less so after the stop, so the first one is selected."""

    def fresh() -> StackTrainer:
        spec = make_spec(manifest, bank, "erm", steps=15, eval_every=5, selection=selection)
        stack = StackTrainer([spec], manifest, bank)
        labels = stack.data.labels

        def predict(rows: Tensor, view: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            wrong = rows % 5 < stack.progress.step // 5 - 1
            return {"fused": torch.eye(3)[torch.where(wrong, (labels[rows] + 1) % 3, labels[rows])]}, {}

        monkeypatch.setattr(stack, "_predict", predict)
        return stack

    expected = fresh().train(lambda amount: None)[0]
    assert expected.metrics["selected_step"] == 5
    assert expected.confusion == ((12, 0, 0), (0, 12, 0), (0, 0, 12))
    checkpoint = tmp_path / "stack.safetensors"
    with pytest.raises(Stopped):
        fresh().train(stop_at(7), checkpoint)
    resumed = fresh().train(lambda amount: None, checkpoint)[0]
    assert (resumed.metrics, resumed.curves) == (expected.metrics, expected.curves)
    assert resumed.confusion == expected.confusion


@pytest.fixture
def checkpoint(manifest: Manifest, bank: FeatureBank, tmp_path: Path) -> Path:
    path = tmp_path / "stack.safetensors"
    with pytest.raises(Stopped):
        trainer(manifest, bank).train(stop_at(7), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    return path


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_that_was_cut_off_is_ignored(
    manifest: Manifest, bank: FeatureBank, checkpoint: Path, share: float
) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(len(whole) * share)])
    start_over(manifest, bank, checkpoint)


def test_a_checkpoint_that_something_else_wrote_is_ignored(
    manifest: Manifest, bank: FeatureBank, checkpoint: Path
) -> None:
    save_file({"weight": torch.zeros(3)}, checkpoint)
    start_over(manifest, bank, checkpoint)


def test_a_checkpoint_of_an_earlier_version_is_ignored(manifest: Manifest, bank: FeatureBank, checkpoint: Path) -> None:
    """One without the confusion of the selected evaluations."""
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: value for name, value in load_file(checkpoint).items() if not name.startswith("progress/")}
    save_file(tensors, checkpoint, metadata)
    start_over(manifest, bank, checkpoint)


def start_over(manifest: Manifest, bank: FeatureBank, checkpoint: Path) -> None:
    """Train two steps: the first report shows that nothing was taken up."""
    reported: list[int] = []

    def advance(amount: int) -> None:
        reported.append(amount)
        if len(reported) == 2:
            raise Stopped

    fresh, untouched = trainer(manifest, bank), trainer(manifest, bank)
    with pytest.raises(Stopped):
        fresh.train(advance, checkpoint)
    with pytest.raises(Stopped):
        untouched.train(stop_at(2))
    assert reported == [1, 1]
    assert same(state(fresh), state(untouched))
