"""What a stack writes about a run is what the run alone would have written, also beside runs of another kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from heads.methods import METHODS
from pipeline.bank import FeatureBank
from pipeline.errors import UsageError
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunResult, RunSpec
from tests.contract.conftest import make_spec


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def train(specs: list[RunSpec], manifest: Manifest, bank: FeatureBank) -> list[RunResult]:
    return StackTrainer(specs, manifest, bank).train(lambda amount: None)


def record(result: RunResult) -> RunResult:
    """Without what is measured by the clock or describes the stack."""
    return replace(result, seconds=0.0, environment={})


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_diverges_says_so_and_harms_no_other(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    sound = make_spec(manifest, bank, method)
    broken = make_spec(manifest, bank, method, seed=1, hparams={"learning_rate": 1e38})
    together = train([broken, sound], manifest, bank)
    assert (together[0].status, together[0].metrics) == ("diverged", {})
    assert together[1].status == "finished"
    assert [record(r) for r in together] == [record(train([s], manifest, bank)[0]) for s in (broken, sound)]


def test_a_run_without_validation_clips_is_recorded_alike_beside_one_that_has_some(
    manifest: Manifest, bank: FeatureBank
) -> None:
    """Only the studio has clips outside training, so runs that are tested there have nothing to validate on."""
    rows = [i for i, clip in enumerate(manifest.clips) if clip.split == "train" or clip.domain == "studio"]
    manifest = replace(manifest, clips=tuple(manifest.clips[i] for i in rows))
    bank = replace(
        bank,
        features={m: x[rows] for m, x in bank.features.items()},
        present={m: here[rows] for m, here in bank.present.items()},
    )
    specs = [make_spec(manifest, bank, "erm", target=target) for target in ("studio", "yard")]
    together = train(specs, manifest, bank)
    assert [record(r) for r in together] == [record(train([s], manifest, bank)[0]) for s in specs]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("selection", ["last", "source-val", "oracle"])
def test_the_whole_record_is_that_of_the_run_alone(
    manifest: Manifest, bank: FeatureBank, method: str, selection: str
) -> None:
    """Beside runs with other sources, pools and targets of other sizes, and another evaluation selected."""
    values = {"selection": selection, "eval_every": 6}
    specs = [
        make_spec(manifest, bank, method, **values),
        make_spec(manifest, bank, method, target="yard", seed=1, budget="5", target_part="test", **values),
        make_spec(manifest, bank, method, target="kitchen", seed=2, budget="30%", **values),
    ]
    together = train(specs, manifest, bank)
    assert [record(r) for r in together] == [record(train([s], manifest, bank)[0]) for s in specs]
    for result, spec in zip(together, specs, strict=True):
        assert sum(map(sum, result.confusion)) == result.sizes["test"]
        right = sum(result.confusion[k][k] for k in range(3)) / result.sizes["test"]
        assert result.metrics["target/fused"] == pytest.approx(right)
        named = {name.split("/")[3] for name in result.curves if "/domain/" in name}
        assert named in (set(), set(spec.sources))
        assert all(len(curve) == 5 for curve in result.curves.values())
        assert RunResult.from_json(result.to_json()) == result


@pytest.mark.parametrize("method", METHODS)
def test_the_quality_of_pseudo_labels_adds_up(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    """Coverage of all clips is the mean of the domains' and of the classes' coverages, weighted by their clips."""
    trainer = StackTrainer([make_spec(manifest, bank, method)], manifest, bank)
    curves = trainer.train(lambda amount: None)[0].curves
    masks = sorted({name.split("/")[1] for name in curves if name.endswith("/coverage")})
    assert bool(masks) == trainer.method.uses_unlabeled
    pool = [manifest.clips[i] for i in trainer.data.splits[0].unlabeled]
    for mask in masks:
        for kind in ("class", "domain"):
            prefix = f"pseudo/{mask}/{kind}/"
            counts = Counter(clip.label if kind == "class" else clip.domain for clip in pool)
            parts = [
                [number * (curves[f"{prefix}{name}/coverage"][k] or 0) for name, number in counts.items()]
                for k in range(3)
            ]
            total = [sum(of) / len(pool) for of in parts]
            assert curves[f"pseudo/{mask}/coverage"] == pytest.approx(total)
    agreeing = {name.split("/")[2] for name in curves if name.startswith(("pseudo/agree/", "pseudo/right/"))}
    assert agreeing == (set(bank.features) if masks else set())


@pytest.mark.parametrize("method", METHODS)
def test_how_often_a_run_is_evaluated_moves_no_parameter(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    often, once = (
        StackTrainer([make_spec(manifest, bank, method, steps=12, eval_every=n)], manifest, bank) for n in (1, 12)
    )
    results = [stack.train(lambda amount: None)[0] for stack in (often, once)]
    assert [len(r.curves["step"]) for r in results] == [12, 1]
    for name, value in often.method.state_dict().items():
        assert torch.equal(value, once.method.state_dict()[name]), name
    assert results[0].metrics["target/fused"] == results[1].metrics["target/fused"]


def test_source_val_without_validation_clips_is_refused_before_training(manifest: Manifest, bank: FeatureBank) -> None:
    only_training = [clip for clip in manifest.clips if clip.split == "train" or clip.domain == "studio"]
    positions = [manifest.clips.index(clip) for clip in only_training]
    small = replace(manifest, clips=tuple(only_training))
    part = FeatureBank(
        {m: x[positions] for m, x in bank.features.items()},
        {m: x[positions] for m, x in bank.present.items()},
        bank.views,
    )
    with pytest.raises(UsageError, match="needs validation clips"):
        StackTrainer([make_spec(small, part, "erm", selection="source-val")], small, part)
