"""Kept weights, early stopping, half precision, optimisers, compact features: the same alone and in a stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pipeline.train
from heads.methods import METHODS
from heads.optimiser import OPTIMISERS, StackedOptimiser
from heads.randomness import RunStreams
from pipeline.bank import FeatureBank
from pipeline.compact import compact_bank, compact_dims, fitted_projections, projection_digests
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings
from pipeline.hparams import head_shape, rate, stacked_hparams
from pipeline.plan import SweepSettings, plan_runs
from pipeline.projection import CompactBank
from pipeline.records import ResultStore
from pipeline.running import StackTask, load_tables, run_stack, stack_dims, stack_runs
from pipeline.stack import run_split
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunResult, RunSpec
from tests.contract.conftest import make_spec
from tests.unit.test_missing import Place, write_cache

ROOM = 2**40  # bytes: never the reason to part two runs

every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def nothing(amount: int) -> None:
    """Progress that nobody watches."""


def train(
    specs: Sequence[RunSpec], manifest: Manifest, bank: FeatureBank | CompactBank
) -> tuple[StackTrainer, list[RunResult]]:
    stack = StackTrainer(specs, manifest, bank)
    return stack, stack.train(nothing)


def record(result: RunResult) -> RunResult:
    """Without what is measured by the clock or describes the stack."""
    return replace(result, seconds=0.0, environment={})


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def state_of(stack: StackTrainer, run: int) -> dict[str, Tensor]:
    """Parameters and buffers of a run as they are now."""
    return {name: value[run] for name, value in stack.method.state_dict().items()}


def check_alone(
    specs: Sequence[RunSpec], manifest: Manifest, bank: FeatureBank | CompactBank, runs: Sequence[int] | None = None
) -> tuple[StackTrainer, list[RunResult]]:
    """Train a stack, and some of its runs alone: record, kept weights and final state are the same bits."""
    stack, together = train(specs, manifest, bank)
    for run in range(len(specs)) if runs is None else runs:
        single, (alone,) = train([specs[run]], manifest, bank)
        assert record(alone) == record(together[run]), run
        assert same(single.weights(0), stack.weights(run)), run
        # A run that has stopped goes on beside runs that have not; then the kept weights are what counts.
        if not any(spec.patience for spec in specs):
            assert same(state_of(single, 0), state_of(stack, run)), run
    assert len({tuple(result.curves["loss/labeled/fused"]) for result in together}) == len(together)
    return stack, together


# Kept weights


def evaluated(spec: RunSpec, weights: Mapping[str, Tensor], manifest: Manifest, bank: FeatureBank) -> dict[str, object]:
    """What a fresh trainer measures with these weights."""
    fresh = StackTrainer([spec], manifest, bank)
    fresh.method.load_state_dict({name: value[None] for name, value in weights.items()})
    values = fresh._evaluate(fresh._evaluation_sets()).rows()[0]
    return {name: None if value != value else value for name, value in values.items()}


def test_kept_weights_are_those_of_the_selected_evaluation(manifest: Manifest, bank: FeatureBank) -> None:
    early = 0
    for method in ("erm", "bmm", "freematch", "ssmdg"):
        rules = ("last", "source-val", "oracle", "source-val")
        specs = [
            make_spec(
                manifest,
                bank,
                method,
                target=manifest.domains[seed % 3],
                seed=seed,
                selection=rule,
                steps=16,
                eval_every=2,
                hparams={"learning_rate": 0.03},
            )
            for seed, rule in enumerate(rules)
        ]
        stack, results = train(specs, manifest, bank)
        for run, (spec, result) in enumerate(zip(specs, results, strict=True)):
            weights = stack.weights(run)
            found = evaluated(spec, weights, manifest, bank)
            assert found == {k: v for k, v in result.metrics.items() if k != "selected_step" and "loss/" not in k}
            assert {name.split("/")[0] for name in found} >= {"target", "val", "val_class_mean"}
            is_last = result.metrics["selected_step"] == spec.steps
            assert same(weights, state_of(stack, run)) == is_last
            early += not is_last
            if spec.selection == "last":
                assert is_last
    assert early > 2  # otherwise the last weights would have passed for the selected ones


@every_method
def test_a_stack_that_selects_the_last_evaluation_keeps_its_final_state(
    manifest: Manifest, bank: FeatureBank, method: str
) -> None:
    stack, _ = train([make_spec(manifest, bank, method, seed=seed, steps=3) for seed in (0, 1)], manifest, bank)
    for run in (0, 1):
        weights = stack.weights(run)
        assert same(weights, state_of(stack, run))
        assert all(value.device.type == "cpu" and value.is_contiguous() for value in weights.values())
        assert weights.keys() >= {name for name, _ in stack.method.named_parameters()}
    assert not same(stack.weights(0), stack.weights(1))


# Early stopping


def impatient(manifest: Manifest, bank: FeatureBank, method: str, patience: int = 3) -> list[RunSpec]:
    """Runs that stop at different evaluations; with a learning rate of 0 a run never becomes better."""
    rates = (0.0, 1e-2, 3e-2)
    return [
        make_spec(
            manifest,
            bank,
            method,
            target=manifest.domains[seed % 3],
            seed=seed,
            steps=30,
            eval_every=2,
            patience=patience,
            selection="source-val" if seed == 2 else "last",
            hparams={"learning_rate": learning_rate},
        )
        for seed, learning_rate in enumerate(rates)
    ]


def stops_after(validation: Sequence[float | None], patience: int) -> int:
    """Evaluations of a run that stops when so many in a row were not better than the best before them."""
    best, waited = -1.0, 0
    for count, value in enumerate(validation, 1):
        best, waited = (value, 0) if value is not None and value > best else (best, waited + 1)
        if waited == patience:
            return count
    return len(validation)


@pytest.mark.parametrize("method", ["erm", "bmm", "ssmdg"])
def test_a_run_stops_by_itself_and_its_numbers_are_those_of_the_run_alone(
    manifest: Manifest, bank: FeatureBank, method: str
) -> None:
    specs = impatient(manifest, bank, method)
    stack, results = check_alone(specs, manifest, bank)
    lengths = [len(result.curves["step"]) for result in results]
    assert lengths[0] == 1 + 3
    assert max(lengths) > lengths[0]
    patient, whole = train([replace(spec, patience=0) for spec in specs], manifest, bank)
    for run, (spec, cut, long) in enumerate(zip(specs, results, whole, strict=True)):
        assert len(long.curves["step"]) == 15
        assert lengths[run] == stops_after(long.curves["val/fused"], spec.patience)
        assert cut.curves == {name: series[: lengths[run]] for name, series in long.curves.items()}
        assert cut.metrics["selected_step"] <= cut.curves["step"][-1] == 2 * lengths[run]
        assert evaluated(spec, stack.weights(run), manifest, bank).items() <= cut.metrics.items()
    if method == "ssmdg":  # its prototypes move at a learning rate of 0, too
        assert not same(stack.weights(0), patient.weights(0))


def test_the_weights_of_a_stopped_run_are_those_of_its_last_evaluation(manifest: Manifest, bank: FeatureBank) -> None:
    specs = [replace(spec, selection="last") for spec in impatient(manifest, bank, "ssmdg")[:2]]
    stack, results = train(specs, manifest, bank)
    for run, (spec, result) in enumerate(zip(specs, results, strict=True)):
        short = replace(spec, patience=0, steps=2 * len(result.curves["step"]))
        single, _ = train([short], manifest, bank)
        assert same(stack.weights(run), state_of(single, 0))


@pytest.mark.parametrize("patience", [1, 2, 15])
def test_all_steps_are_reported_whether_they_are_done_or_not(
    manifest: Manifest, bank: FeatureBank, patience: int
) -> None:
    specs = impatient(manifest, bank, "erm", patience)[:1]
    reported: list[int] = []
    (result,) = StackTrainer(specs, manifest, bank).train(reported.append)
    assert len(result.curves["step"]) == min(1 + patience, 15)
    assert sum(reported) == 30
    assert reported.count(1) == 2 * len(result.curves["step"])


def without_validation(manifest: Manifest, bank: FeatureBank) -> tuple[Manifest, FeatureBank]:
    """Only the studio, on which runs are tested, has clips outside training."""
    rows = [i for i, clip in enumerate(manifest.clips) if clip.split == "train" or clip.domain == "studio"]
    part = {m: x[rows] for m, x in bank.features.items()}, {m: here[rows] for m, here in bank.present.items()}
    return replace(manifest, clips=tuple(manifest.clips[i] for i in rows)), FeatureBank(*part, bank.views)


def test_patience_without_validation_clips_is_refused_before_training(manifest: Manifest, bank: FeatureBank) -> None:
    manifest, bank = without_validation(manifest, bank)
    spec = make_spec(manifest, bank, "erm", patience=2)
    with pytest.raises(UsageError, match="early stopping needs validation clips, and the sources kitchen, yard have"):
        StackTrainer([spec], manifest, bank)
    assert run_split(replace(spec, method="ncm"), manifest, bank).test  # is fitted at once: nothing to stop
    _, (result,) = train([replace(spec, patience=0)], manifest, bank)
    assert result.status == "finished"


def test_patience_is_a_number_of_evaluations(manifest: Manifest, bank: FeatureBank) -> None:
    with pytest.raises(UsageError, match="patience is -1; it must be 0"):
        make_spec(manifest, bank, "erm", patience=-1)


# Going on after a kill


class Stopped(Exception):
    """Stands for a kill."""


def stop_at(step: int) -> Callable[[int], None]:
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        if done == step:
            raise Stopped

    return advance


OPTIONS: dict[str, dict[str, object]] = {
    "source-val": {"selection": "source-val"},
    "patience": {"patience": 2},
    "patience and source-val": {"patience": 2, "selection": "source-val"},
    "bfloat16": {"precision": "bfloat16"},
    "sgd and cosine": {"hparams": {"optimizer": "sgd", "schedule": "cosine", "warmup_steps": 4.0}},
}


@pytest.mark.parametrize(
    ("method", "option"),
    [*(("ssmdg", name) for name in OPTIONS), ("freematch", "source-val"), ("bmm", "patience and source-val")],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    manifest: Manifest, bank: FeatureBank, method: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is patience, the first run has stopped before the kill, and at least one goes on after it."""
    monkeypatch.setattr(pipeline.train, "CHECKPOINT_SECONDS", -1.0)
    changes = {"steps": 14, "eval_every": 2, **OPTIONS[option]}
    own = changes.pop("hparams", {})
    assert isinstance(own, Mapping)
    specs = [
        make_spec(manifest, bank, method, target, seed, hparams={**own, "learning_rate": learning_rate}, **changes)
        for seed, (target, learning_rate) in enumerate([("studio", 0.0), ("yard", 0.01), ("kitchen", 0.03)])
    ]
    whole, expected = train(specs, manifest, bank)
    checkpoint = tmp_path / "stack.safetensors"
    with pytest.raises(Stopped):
        StackTrainer(specs, manifest, bank).train(stop_at(7), checkpoint)
    resumed, reported = StackTrainer(specs, manifest, bank), []
    results = resumed.train(reported.append, checkpoint)
    assert reported[0] == 6
    assert sum(reported) == 14
    assert [record(r) for r in results] == [record(r) for r in expected]
    for run in range(len(specs)):
        assert same(resumed.weights(run), whole.weights(run))
        assert same(state_of(resumed, run), state_of(whole, run))
    lengths = [len(r.curves["step"]) for r in results]
    if "patience" in changes:
        assert lengths[0] == 3 < max(lengths)
    else:
        assert lengths == [7, 7, 7]


def test_a_stack_that_has_stopped_altogether_is_not_trained_again(
    manifest: Manifest, bank: FeatureBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.train, "CHECKPOINT_SECONDS", -1.0)
    specs = impatient(manifest, bank, "erm", 1)[:1]
    checkpoint = tmp_path / "stack.safetensors"
    first = StackTrainer(specs, manifest, bank)
    expected = first.train(nothing, checkpoint)
    again, reported = StackTrainer(specs, manifest, bank), []
    results = again.train(reported.append, checkpoint)
    assert reported == [4, 26]
    assert [record(r) for r in results] == [record(r) for r in expected]
    assert same(again.weights(0), first.weights(0))


# Half precision


@every_method
def test_in_half_precision_a_run_is_the_same_alone_and_in_a_stack(
    manifest: Manifest, bank: FeatureBank, method: str
) -> None:
    changes = {"steps": 8, "eval_every": 4, "precision": "bfloat16"}
    own = {"threshold": 0.6} if "threshold" in METHODS[method].hparams else {}
    specs = [
        make_spec(manifest, bank, method, **changes),
        make_spec(manifest, bank, method, "yard", 1, hparams={"learning_rate": 3e-3, **own}, **changes),
        make_spec(manifest, bank, method, "kitchen", 2, budget="5", **changes),
    ]
    stack, half = check_alone(specs, manifest, bank)
    _, single = train([replace(spec, precision="float32") for spec in specs], manifest, bank)
    for run, (one, two) in enumerate(zip(half, single, strict=True)):
        assert one.status == "finished"
        losses = [name for name in one.curves if name.startswith("loss/")]
        assert losses == [name for name in two.curves if name.startswith("loss/")]
        assert any(one.curves[name] != two.curves[name] for name in losses)
        assert one.curves["loss/labeled/fused"] == pytest.approx(two.curves["loss/labeled/fused"], rel=0.05)
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in stack.weights(run).values())


@pytest.mark.parametrize("method", ["erm", "fixmatch"])
def test_half_precision_trains_as_well(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    found: dict[str, list[float]] = {}
    for precision in ("float32", "bfloat16"):
        specs = [
            make_spec(
                manifest,
                bank,
                method,
                target=target,
                seed=seed,
                steps=60,
                eval_every=20,
                precision=precision,
                hparams={"learning_rate": 3e-3},
            )
            for seed, target in enumerate(manifest.domains)
        ]
        _, results = train(specs, manifest, bank)
        for result in results:
            losses = result.curves["loss/labeled/fused"]
            assert losses[-1] < losses[0]
        found[precision] = [result.metrics["target/fused"] for result in results]
    means = [sum(values) / len(values) for values in found.values()]
    assert means[0] == pytest.approx(means[1], abs=0.08)
    assert min(means) > 0.45  # chance is a third


# Optimisers and schedules


@pytest.mark.parametrize(("method", "optimizer"), [*(("fixmatch", kind) for kind in OPTIMISERS), ("ogm-ge", "adam")])
def test_every_optimiser_and_schedule_is_the_same_alone_and_in_a_stack(
    manifest: Manifest, bank: FeatureBank, method: str, optimizer: str
) -> None:
    changes = [
        {},
        {"schedule": "cosine"},
        {"schedule": "linear", "warmup_steps": 3.0},
        {"warmup_steps": 5.0, "weight_decay": 0.1},
        {"schedule": "cosine", "warmup_steps": 4.0, "learning_rate": 3e-3},
        *([{"momentum": 0.0}, {"momentum": 0.5, "schedule": "linear"}] if optimizer == "sgd" else []),
    ]
    specs = [
        make_spec(manifest, bank, method, steps=12, eval_every=4, hparams={"optimizer": optimizer, **change})
        for change in changes
    ]
    check_alone(specs, manifest, bank)


def test_optimisers_differ(manifest: Manifest, bank: FeatureBank) -> None:
    specs = [
        make_spec(manifest, bank, "erm", steps=6, hparams={"optimizer": kind, "weight_decay": 0.1})
        for kind in OPTIMISERS
    ]
    losses = [train([spec], manifest, bank)[1][0].curves["loss/labeled/fused"][-1] for spec in specs]
    assert len(set(losses)) == len(OPTIMISERS)


# Switches


SWITCHES: dict[str, dict[str, float | str]] = {
    "unseen prototypes": {"unseen_prototypes": 1.0},
    "distances after dropout": {"distances_after_dropout": 1.0},
    "mixed consensus": {"mix_unlabeled": 1.0},
    "a gate of 0": {"unimodal_gradient": 0.0},
    "a gate of 0.3": {"unimodal_gradient": 0.3},
    "no fused dropout": {"dropout_fused": 0.0},
    "no translator dropout": {"dropout_translator": 0.0},
}


@pytest.mark.parametrize(
    "switch",
    [
        *SWITCHES.values(),
        {"dropout_audio": 0.3},
        {"dropout_embedding": 0.0},
    ],
    ids=[*SWITCHES, "audio dropout", "no embedding dropout"],
)
def test_a_run_does_not_feel_that_its_neighbour_has_another_switch(
    manifest: Manifest, bank: FeatureBank, switch: dict[str, float | str]
) -> None:
    mixing = {"mixing": "mm"} if "mix_unlabeled" in switch else {}
    specs = [
        make_spec(manifest, bank, steps=7, hparams=mixing),
        make_spec(manifest, bank, seed=1, steps=7, hparams={**mixing, **switch}),
    ]
    check_alone(specs, manifest, bank)


# Many runs


def many(manifest: Manifest, bank: FeatureBank) -> list[RunSpec]:
    """64 SSMDG runs that differ in all that may differ inside a stack."""
    budgets = ("1", "3", "5", "30%")
    return [
        make_spec(
            manifest,
            bank,
            target=manifest.domains[i % 3],
            seed=i,
            budget=budgets[i % 4],
            target_part="all" if i % 5 else "test",
            steps=8,
            eval_every=4,
            hparams={
                "learning_rate": 1e-3 * (1 + i % 5),
                "weight_decay": 1e-3 * (i % 2),
                "threshold": 0.4 + 0.01 * (i % 7),
                "weight_consensus": 1.0 + i % 3,
                "weight_gce": 0.1 * (i % 3),
                "weight_prototype": 0.01 * (1 + i % 2),
                "weight_translation": 0.01 * (i % 4),
                "gce_q": 0.5 + 0.1 * (i % 3),
            },
        )
        for i in range(64)
    ]


def test_64_runs_in_one_stack_are_64_runs_alone(manifest: Manifest, bank: FeatureBank) -> None:
    specs = many(manifest, bank)
    assert len(bank.features) == 3
    assert [len(s.specs) for s in stack_runs(specs, lambda spec: bank.dims, 1, ROOM)] == [64]
    stack, results = check_alone(specs, manifest, bank, runs=(0, 13, 22, 37, 50, 63))
    assert all(result.status == "finished" for result in results)
    used = [sum(result.curves["pseudo/accepted/coverage"]) > 0 for result in results]
    assert sum(used) > 32  # otherwise most runs would have trained on labeled clips alone
    for value in dict(stack.method.named_parameters()).values():
        assert len({tuple(row.flatten().tolist()) for row in value}) > 32


def test_in_double_precision_a_stack_of_64_agrees_with_every_run_alone(manifest: Manifest, bank: FeatureBank) -> None:
    specs = many(manifest, bank)
    stack = StackTrainer(specs, manifest, bank)
    assert stack.unlabeled_sampler is not None
    labeled, unlabeled = stack.sampler.block(0, 2), stack.unlabeled_sampler.block(0, 2)
    batches = []
    for step in range(2):
        first = stack.data.labeled(*(torch.from_numpy(part[step]) for part in labeled))
        second = stack.data.unlabeled(*(torch.from_numpy(part[step]) for part in unlabeled))
        batches.append((cut(first, slice(None)), cut(second, slice(None))))
    terms, state = two_steps(specs, bank, batches)
    assert all(value.dtype == torch.float64 for value in state.values())
    for run in range(0, 64, 5):
        mine = slice(run, run + 1)
        own_terms, own_state = two_steps(specs[mine], bank, [(cut(a, mine), cut(b, mine)) for a, b in batches])
        for one, two in ((own_terms, terms), (own_state, state)):
            assert one.keys() == two.keys()
            for name, value in one.items():
                torch.testing.assert_close(value[0], two[name][run], rtol=1e-9, atol=1e-9, msg=f"{name} of run {run}")


def cut(batch: object, runs: slice) -> object:
    """A batch of some runs, its features in double precision."""

    def part(value: object) -> object:
        if isinstance(value, Tensor):
            return value[runs].double() if value.is_floating_point() else value[runs]
        return {name: part(x) for name, x in value.items()}  # type: ignore[attr-defined]

    return type(batch)(**{name: part(value) for name, value in vars(batch).items()})


def two_steps(
    specs: Sequence[RunSpec], bank: FeatureBank, batches: Sequence[tuple]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loss terms of two training steps, and the parameters and prototypes after them, in double precision."""
    seeds = [spec.init_seed for spec in specs]
    method = METHODS["ssmdg"].build(head_shape(specs[0], bank.dims), stacked_hparams(specs), seeds).double()
    optimiser = StackedOptimiser("adamw", list(method.parameters()), [rate(spec) for spec in specs])
    streams = RunStreams(seeds, torch.device("cpu"))
    found = {}
    for step, (labeled, unlabeled) in enumerate(batches):
        terms = method.losses(labeled, unlabeled, streams, step)
        method.combine(method.objectives(terms))
        optimiser.step(step)
        found |= {f"{name}/{step}": value.detach() for name, value in terms.items()}
    return found, method.state_dict()


# Compact features


def flattened(manifest: Manifest, bank: FeatureBank) -> FeatureBank:
    """In kitchen and yard three of the seven audio features are constant: projections of their clips are of rank 4."""
    rows = [i for i, clip in enumerate(manifest.clips) if clip.domain != "studio"]
    audio = bank.features["audio"].clone()
    audio[rows, :, 4:] = 0.5
    audio *= bank.present["audio"][:, None, None]
    return replace(bank, features={**bank.features, "audio": audio})


@pytest.mark.parametrize(("method", "projection"), [("erm", "pca:5"), ("erm", "pca-white:5"), ("ssmdg", "pca:5")])
def test_runs_with_different_projections_are_the_same_alone_and_in_a_stack(
    manifest: Manifest, bank: FeatureBank, method: str, projection: str, tmp_path: Path
) -> None:
    changes = {"projection": projection, "steps": 8, "eval_every": 4}
    specs = [
        make_spec(manifest, bank, method, target, seed, budget=budget, **changes)
        for target, seed, budget in (("studio", 0, "3"), ("yard", 1, "3"), ("kitchen", 2, "5"), ("studio", 3, "5"))
    ]
    projections = fitted_projections(specs, manifest, bank, tmp_path)
    assert len(projections) == len({spec.sources for spec in specs}) == 3
    assert len({p["video"].digest for p in projections.values()}) == 3
    assert len(stack_runs(specs, stack_dims(bank, projections), 1, ROOM)) == 1
    features = compact_bank(bank, projections, specs)
    assert dict(features.dims) == dict.fromkeys(bank.features, 5)
    stack, together = train(specs, manifest, features)
    for run, spec in enumerate(specs):
        # Alone a run has one set of features; in the stack the fourth shares the first's.
        single, (alone,) = train([spec], manifest, compact_bank(bank, projections, [spec]))
        assert record(alone) == record(together[run])
        assert same(single.weights(0), stack.weights(run))


def test_compact_features_of_a_stack_are_each_runs_own(manifest: Manifest, bank: FeatureBank, tmp_path: Path) -> None:
    specs = [make_spec(manifest, bank, "erm", target, projection="pca:5") for target in ("studio", "yard")]
    projections = fitted_projections(specs, manifest, bank, tmp_path)
    stack = StackTrainer(specs, manifest, compact_bank(bank, projections, specs))
    clips = torch.tensor([[3, 40, 80], [3, 40, 80]])
    x, present = stack.data.take(clips, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    for run, spec in enumerate(specs):
        for modality, features in bank.features.items():
            found = projections[spec.sources][modality]
            values = (features[clips[run], [0, 1, 2]].float() - found.mean) * found.scale @ found.matrix
            expected = values.half().float() * present[modality][run][:, None]
            torch.testing.assert_close(x[modality][run], expected, rtol=1e-3, atol=1e-3)
    assert not torch.equal(x["video"][0], x["video"][1])


def test_a_run_that_is_not_compact_trains_on_features_of_full_size(
    manifest: Manifest, bank: FeatureBank, tmp_path: Path
) -> None:
    specs = [make_spec(manifest, bank, "erm")]
    assert fitted_projections(specs, manifest, bank, tmp_path) == {}
    assert compact_bank(bank, {}, specs) is bank
    assert compact_dims(bank, {}, specs[0]) == bank.dims
    assert list(tmp_path.iterdir()) == []


def test_runs_whose_projections_have_different_ranks_are_never_stacked(
    manifest: Manifest, bank: FeatureBank, tmp_path: Path
) -> None:
    bank = flattened(manifest, bank)
    specs = [
        make_spec(manifest, bank, method, target, seed, projection="pca:6")
        for method in ("erm", "ssmdg")
        for target in manifest.domains
        for seed in (0, 1)
    ]
    projections = fitted_projections(specs, manifest, bank, tmp_path)
    widths = {spec.run_id: compact_dims(bank, projections, spec) for spec in specs}
    assert {dict(found)["audio"] for found in widths.values()} == {4, 6}
    stacks = [list(s.specs) for s in stack_runs(specs, stack_dims(bank, projections), 1, ROOM)]
    assert sorted(len(stack) for stack in stacks) == [2, 2, 4, 4]
    assert sorted(spec.run_id for stack in stacks for spec in stack) == sorted(spec.run_id for spec in specs)
    for stack in stacks:
        (width,) = {widths[spec.run_id] for spec in stack}
        assert compact_bank(bank, projections, stack).dims == width


def test_runs_are_stacked_if_and_only_if_they_share_what_a_stack_has_once(
    manifest: Manifest, bank: FeatureBank
) -> None:
    base = make_spec(manifest, bank, "fixmatch")
    hparams: list[dict[str, float | str]] = [
        {"learning_rate": 0.1},
        {"schedule": "cosine"},
        {"warmup_steps": 3.0},
        {"threshold": 0.7},
        {"weight_consistency": 2.0},
        {"dropout_fused": 0.0},
    ]
    together = [
        base,
        *(make_spec(manifest, bank, "fixmatch", hparams=change) for change in hparams),
        replace(base, target="yard", sources=("kitchen", "studio")),
        replace(base, split_seed=1),
        replace(base, init_seed=1),
        replace(base, budget="5"),
        replace(base, selection="oracle"),
        replace(base, target_part="test"),
    ]
    structure: list[dict[str, float | str]] = [
        {"optimizer": "sgd"},
        {"adapter": "none"},
        {"fusion": "sum"},
        {"mixing": "mm"},
        {"fused_hidden": 5},
    ]
    apart = [
        *(make_spec(manifest, bank, "fixmatch", hparams=change) for change in structure),
        make_spec(manifest, bank, "pseudolabel"),
        replace(base, steps=31),
        replace(base, eval_every=13),
        replace(base, batch_labeled=8),
        replace(base, batch_unlabeled=12),
        replace(base, projection="pca:5"),
        replace(base, projection="pca-white:5"),
        replace(base, precision="bfloat16"),
        replace(base, patience=1),
        replace(base, sources=("kitchen",)),
    ]
    stacks = [list(s.specs) for s in stack_runs([*apart, *together], lambda spec: bank.dims, 1, ROOM)]
    assert sorted(len(stack) for stack in stacks) == [1] * len(apart) + [len(together)]
    assert max(stacks, key=len) == together


def task(
    specs: Sequence[RunSpec], manifest: Manifest, settings: ExtractSettings, root: Path, results: str, **changes: bool
) -> StackTask:
    """A stack for a worker; everything lies in one folder."""
    folder = root / results
    places = {"cache": root / "cache", "results": folder, "projections": folder / "projections"}
    return StackTask(tuple(specs), manifest, settings, **places, **changes)  # type: ignore[arg-type]


def test_the_record_of_a_compact_run_says_what_it_trained_on(
    manifest: Manifest, bank: FeatureBank, tmp_path: Path
) -> None:
    """From cached features to files: two targets in one stack, and each of them alone in another folder."""
    bank = flattened(manifest, bank)
    settings = write_cache(manifest, bank, tmp_path / "cache")
    tables = load_tables(manifest, settings, tmp_path / "cache")
    sweep = SweepSettings(
        methods=("fixmatch",),
        seeds=(0, 1),
        labels="3",
        steps=4,
        eval_every=2,
        batch_labeled=6,
        batch_unlabeled=8,
        projection="pca:4",
        hparams={"threshold": 0.4},
    )
    specs = plan_runs(manifest, tables, sweep)
    assert {spec.projection for spec in specs} == {"pca:4"}
    assert len(specs) == 6
    for spec in specs:
        assert run_stack(task([spec], manifest, settings, tmp_path, "alone"), nothing) == 0
    run_stack(task(specs, manifest, settings, tmp_path, "together"), nothing)
    alone, together = ResultStore(tmp_path / "alone"), ResultStore(tmp_path / "together")
    projections = fitted_projections(specs, manifest, bank, tmp_path / "together" / "projections")
    files = [{p.name for p in (store.folder / "projections").iterdir()} for store in (alone, together)]
    assert files[0] == files[1]
    assert len(files[0]) == 9
    for spec in specs:
        result = together.read(spec)
        assert record(result) == record(alone.read(spec))
        weights = [load_file(store.weights_path(spec.run_id)) for store in (alone, together)]
        assert same(*weights)
        own_projections = projections[spec.sources]
        for modality, found in own_projections.items():
            dim = bank.features[modality].shape[-1]
            note = (
                f"{modality}: pca:4 leaves 4 of {dim} values and {found.variance_kept:.1%} of the variance of the "
                f"training clips of {', '.join(spec.sources)}"
            )
            assert note in result.notes
            assert result.environment[f"projection_{modality}"] == found.digest
        assert projection_digests(spec, projections).items() <= alone.read(spec).environment.items()
        assert len({found.digest for found in own_projections.values()}) == 3
        assert weights[0]["network.adapters.audio.reduce.weight"].shape[0] == 4
    assert not (tmp_path / "together" / "checkpoints").exists()


def test_weights_are_kept_for_finished_runs_and_only_if_they_are_wanted(
    manifest: Manifest, bank: FeatureBank, tmp_path: Path
) -> None:
    settings = write_cache(manifest, bank, tmp_path / "cache")
    tables = load_tables(manifest, settings, tmp_path / "cache")
    given = SweepSettings(methods=("erm",), targets=("studio",), seeds=(0,), steps=3, labels="3", eval_every=2)
    (sound,) = plan_runs(manifest, tables, given)
    (broken,) = plan_runs(manifest, tables, replace(given, hparams={"learning_rate": 1e38}))
    store = ResultStore(tmp_path / "results")
    assert run_stack(task([sound, broken], manifest, settings, tmp_path, "results"), nothing) == 1
    assert [p.name for p in (store.folder / "weights").iterdir()] == [f"{sound.run_id}.safetensors"]
    assert len(store.read_known()[0]) == 2
    run_stack(task([sound], manifest, settings, tmp_path, "other", keep_weights=False), nothing)
    assert not (tmp_path / "other" / "weights").exists()
    assert record(ResultStore(tmp_path / "other").read(sound)) == record(store.read(sound))


def test_a_run_that_its_folds_select_may_stop_early(manifest: Manifest, bank: FeatureBank, tmp_path: Path) -> None:
    settings = write_cache(manifest, bank, tmp_path / "cache")
    place = Place(manifest, settings, tmp_path / "cache", tmp_path / "results")
    changes = {"steps": 24, "eval_every": 2, "hparams": {"learning_rate": 0.01}, "targets": ("studio", "yard")}
    runs = place.train(methods=("erm",), selection="label-honest", folds=3, patience=2, **changes)
    for run in runs:
        assert run.status == "finished"
        assert run.metrics["selected_step"] in run.curves["step"]
