"""Missing modalities on trained runs: what fillers know, what moves, what is counted, and what is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

import pipeline.missing
from cache.layout import CacheError, ClipRecord, Status
from cache.store import FeatureGroup
from heads.fillers import FILLERS, FillerState
from heads.methods import METHODS
from pipeline.bank import FeatureBank
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings
from pipeline.missing import Finetuning, MissingEvaluation, MissingRow, evaluate_runs, kept_subsets, write_missing
from pipeline.plan import SweepSettings, plan_runs
from pipeline.records import ResultStore
from pipeline.running import load_tables, run_missing
from pipeline.show import missing_table, out, show_missing
from pipeline.stack import StackData
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunResult, RunSpec, digest
from tests.contract import conftest as contract
from tests.contract.conftest import make_spec
from tests.unit.test_types import run_result, run_spec

Vector = NDArray[np.float64]

manifest, bank = contract.manifest, contract.bank

FULL = ("video", "flow", "audio")
SUBSETS = [
    FULL,
    ("video", "flow"),
    ("video", "audio"),
    ("flow", "audio"),
    ("video",),
    ("flow",),
    ("audio",),
]
ALWAYS = ["zero", "mean", "prototype", "renormalise"]


def nothing(amount: int) -> None:
    """Progress that nobody watches."""


def train(specs: Sequence[RunSpec], manifest: Manifest, bank: FeatureBank) -> tuple[StackTrainer, list[RunResult]]:
    stack = StackTrainer(specs, manifest, bank)
    return stack, stack.train(nothing)


def weights_of(stack: StackTrainer, runs: Sequence[int]) -> dict[str, Tensor]:
    """Selected weights of some runs as ``load_weights`` gives them."""
    states = [stack.weights(run) for run in runs]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def runs_of(manifest: Manifest, bank: FeatureBank, method: str, steps: int = 6) -> list[RunSpec]:
    """Three runs with different seeds, sources, target parts and selection rules."""
    sizes = {"steps": steps, "eval_every": 2}
    return [
        make_spec(manifest, bank, method, **sizes),
        make_spec(manifest, bank, method, "yard", 1, selection="source-val", hparams={"learning_rate": 0.03}, **sizes),
        make_spec(manifest, bank, method, "kitchen", 2, target_part="test", budget="5", **sizes),
    ]


@dataclass(frozen=True)
class Trained:
    """A trained stack and how to evaluate it."""

    specs: list[RunSpec]
    manifest: Manifest
    bank: FeatureBank
    stack: StackTrainer
    results: list[RunResult]

    def evaluation(
        self,
        finetuning: Finetuning | None = None,
        runs: Sequence[int] | None = None,
        manifest: Manifest | None = None,
        bank: FeatureBank | None = None,
    ) -> MissingEvaluation:
        chosen = list(range(len(self.specs))) if runs is None else list(runs)
        specs = [self.specs[run] for run in chosen]
        weights = weights_of(self.stack, chosen)
        return MissingEvaluation(specs, manifest or self.manifest, bank or self.bank, weights, finetuning)


def trained(manifest: Manifest, bank: FeatureBank, method: str, steps: int = 6) -> Trained:
    specs = runs_of(manifest, bank, method, steps)
    return Trained(specs, manifest, bank, *train(specs, manifest, bank))


def source_clips(spec: RunSpec, manifest: Manifest) -> list[int]:
    return [i for i, c in enumerate(manifest.clips) if c.domain in spec.sources and c.split == "train"]


def target_clips(spec: RunSpec, manifest: Manifest) -> list[int]:
    parts = ("test",) if spec.target_part == "test" else ("train", "test")
    return [i for i, c in enumerate(manifest.clips) if c.domain == spec.target and c.split in parts]


def embeddings(evaluation: MissingEvaluation, run: int, modality: str, rows: Sequence[int]) -> tuple[list[int], Vector]:
    """Clips of ``rows`` that have the modality, and their embeddings, all by hand: scaling and residual adapter."""
    data = evaluation.data
    features, here = data.bank.features[modality], data.bank.present[modality]
    pool = [i for i in source_clips(data.specs[run], data.manifest) if here[i]]
    training = features[pool, 0].double().numpy()
    own = [i for i in rows if here[i]]
    z = (features[own, 0].double().numpy() - training.mean(0)) / training.std(0)
    adapter = evaluation.method.network.adapters[modality]
    values = {name: value[run].double().numpy() for name, value in adapter.state_dict().items()}
    centred = z - z.mean(1, keepdims=True)
    h = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * values["norm.weight"] + values["norm.bias"]
    h = np.maximum(h @ values["reduce.weight"] + values["reduce.bias"], 0)
    return own, z + h @ values["expand_weight"]


def directed(x: Vector) -> Vector:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def tensors_of(state: FillerState) -> dict[str, Tensor]:
    """All that fillers know."""
    parts = {"mean": state.mean, "length": state.length, "prototypes": state.prototypes}
    named = {f"{part}/{m}": value for part, values in parts.items() for m, value in values.items()}
    for part, modules in (("translators", state.translators), ("finetuned", state.finetuned)):
        named |= {f"{part}/{name}": value for name, value in modules.state_dict().items()}
    return named


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def test_subsets() -> None:
    assert kept_subsets(FULL, "all") == SUBSETS
    assert kept_subsets(["audio"], "all") == [("audio",)]
    assert kept_subsets(FULL, "audio") == [FULL, ("video", "flow")]
    assert kept_subsets(FULL, "audio,video") == kept_subsets(FULL, " video , audio,") == [FULL, ("flow",)]
    assert kept_subsets(FULL, "") == [FULL]


def test_subsets_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'vidoe' is not a modality of these runs. Did you mean 'video'\? Allowed: "):
        kept_subsets(FULL, "audio,vidoe")
    with pytest.raises(UsageError, match="'flow' is not a modality of these runs"):
        kept_subsets(("video", "audio"), "flow")
    with pytest.raises(UsageError, match=r"that is every modality of these runs \(video, audio\); leave one"):
        kept_subsets(("video", "audio"), "video,audio")
    with pytest.raises(UsageError, match="leave one"):
        kept_subsets(("video",), "video")


@pytest.mark.parametrize("method", ["erm", "ssmdg"])
def test_statistics_are_means_over_the_source_training_clips(
    manifest: Manifest, bank: FeatureBank, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = trained(manifest, bank, method)
    absent = 0
    for rows in (512, 7):  # also a block at a time, with a rest
        monkeypatch.setattr(pipeline.missing, "ROWS", rows)
        evaluation = runs.evaluation()
        for run, spec in enumerate(runs.specs):
            for modality in FULL:
                clips, z = embeddings(evaluation, run, modality, source_clips(spec, manifest))
                absent += len(source_clips(spec, manifest)) - len(clips)
                found = evaluation.state
                np.testing.assert_allclose(found.mean[modality][run].numpy(), z.mean(0), rtol=1e-4, atol=1e-5)
                length = np.linalg.norm(z, axis=1).mean()
                assert found.length[modality][run].item() == pytest.approx(length, rel=1e-5)
    assert absent > 0


def test_prototypes_are_the_methods_own_where_a_labeled_clip_has_reached_them(
    manifest: Manifest, bank: FeatureBank
) -> None:
    """After one step with two clips some classes of a domain, and some classes altogether, are still unseen."""
    sizes = {"steps": 1, "eval_every": 1, "batch_labeled": 2}
    specs = [
        make_spec(manifest, bank, target=target, seed=seed, **sizes) for seed, target in enumerate(manifest.domains)
    ]
    stack, _ = train(specs, manifest, bank)
    state = MissingEvaluation(specs, manifest, bank, weights_of(stack, range(3))).state
    own = stack.method.prototypes
    reached = set()
    for run in range(len(specs)):
        for modality in FULL:
            for label in range(3):
                known = own.counts(modality)[run, :, label].numpy() > 0
                vectors = own.vectors(modality)[run, :, label].double().numpy()[known]
                expected = directed(vectors.sum(0))
                np.testing.assert_allclose(state.prototypes[modality][run, label].numpy(), expected, atol=1e-6)
                reached.add(int(known.sum()))
    assert {0, 1} <= reached


def test_prototypes_of_a_method_without_them_are_class_means_of_its_labeled_clips(
    manifest: Manifest, bank: FeatureBank
) -> None:
    runs = trained(manifest, bank, "erm")
    evaluation = runs.evaluation()
    for run in range(len(runs.specs)):
        labeled = evaluation.data.splits[run].labeled
        for modality in FULL:
            clips, z = embeddings(evaluation, run, modality, labeled)
            for label, name in enumerate(manifest.classes):
                rows = [k for k, i in enumerate(clips) if manifest.clips[i].label == name]
                expected = directed(directed(z[rows]).mean(0))
                found = evaluation.state.prototypes[modality][run, label].numpy()
                np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_class_that_no_labeled_clip_with_the_modality_has_gets_a_zero_prototype(
    manifest: Manifest, bank: FeatureBank
) -> None:
    spec = make_spec(manifest, bank, "erm", steps=2)
    waves = torch.tensor([clip.label == "wave" for clip in manifest.clips])
    mute = replace(bank, present={**bank.present, "audio": bank.present["audio"] & ~waves})
    mute = replace(mute, features={**bank.features, "audio": bank.features["audio"] * ~waves[:, None, None]})
    stack, _ = train([spec], manifest, mute)
    evaluation = MissingEvaluation([spec], manifest, mute, weights_of(stack, [0]))
    lengths = torch.linalg.vector_norm(evaluation.state.prototypes["audio"][0], dim=-1)
    assert lengths.tolist() == pytest.approx([0, 1, 1])
    rows = evaluation.rows(SUBSETS)[0]
    assert all(row.accuracy is not None and 0 <= row.accuracy <= 1 for row in rows)


@pytest.mark.parametrize("method", METHODS)
def test_with_everything_there_it_is_the_number_in_the_record(
    manifest: Manifest, bank: FeatureBank, method: str
) -> None:
    """And with one modality left, its own prediction is the record's of that modality."""
    runs = trained(manifest, bank, method)
    rows = runs.evaluation().rows(SUBSETS)
    for of_run, result in zip(rows, runs.results, strict=True):
        assert result.status == "finished"
        found = {(row.kept, row.filler): row for row in of_run}
        assert found[FULL, "zero"].accuracy == result.metrics["target/fused"]
        assert found[FULL, "zero"].class_mean == result.metrics["target_class_mean/fused"]
        for modality in FULL:
            assert found[(modality,), "renormalise"].accuracy == result.metrics[f"target/{modality}"]
        fillers = [*ALWAYS[:-1], *(["translate", "translate-raw"] if method == "ssmdg" else []), "renormalise"]
        assert [(row.kept, row.filler) for row in of_run] == [(kept, f) for kept in SUBSETS for f in fillers]


@pytest.mark.parametrize("method", ["erm", "ssmdg"])
def test_a_run_alone_gives_the_same_as_in_a_stack(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    runs = trained(manifest, bank, method)
    settings = Finetuning(5, batch=6)
    together = runs.evaluation(settings)
    rows = together.rows(SUBSETS)
    state = tensors_of(together.state)
    for run in range(len(runs.specs)):
        alone = runs.evaluation(settings, [run])
        assert alone.rows(SUBSETS)[0] == rows[run]
        assert same(tensors_of(alone.state), {name: value[run : run + 1] for name, value in state.items()})
    assert len({tuple(row.accuracy for row in of_run) for of_run in rows}) == len(rows)


def test_how_many_clips_go_through_at_once_changes_no_row(
    manifest: Manifest, bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = trained(manifest, bank, "ssmdg")
    whole = runs.evaluation().rows(SUBSETS)
    monkeypatch.setattr(pipeline.missing, "ROWS", 5)
    assert runs.evaluation().rows(SUBSETS) == whole


def with_noise(bank: FeatureBank, rows: Sequence[int]) -> FeatureBank:
    """The bank with noise instead of the features of some clips, where they have any."""
    generator = torch.Generator().manual_seed(0)
    features = {}
    for modality, values in bank.features.items():
        features[modality] = values.clone()
        drawn = torch.randn(len(rows), *values.shape[1:], generator=generator)
        features[modality][list(rows)] = drawn.half() * bank.present[modality][list(rows), None, None]
    return replace(bank, features=features)


@pytest.mark.parametrize("method", ["erm", "ssmdg"])
@pytest.mark.parametrize("what", ["features", "labels"])
def test_clips_of_the_target_change_nothing_that_fillers_know(
    manifest: Manifest, bank: FeatureBank, method: str, what: str
) -> None:
    runs = trained(manifest, bank, method)
    alone, settings = [0], Finetuning(3)
    rows = [i for i, clip in enumerate(manifest.clips) if clip.domain == runs.specs[0].target]
    wrong = {name: manifest.classes[(k + 1) % 3] for k, name in enumerate(manifest.classes)}
    clips = [replace(c, label=wrong[c.label]) if i in rows else c for i, c in enumerate(manifest.clips)]
    other: dict[str, object] = (
        {"bank": with_noise(bank, rows)} if what == "features" else {"manifest": replace(manifest, clips=tuple(clips))}
    )
    honest = runs.evaluation(settings, alone)
    changed = runs.evaluation(settings, alone, **other)  # type: ignore[arg-type]
    assert same(tensors_of(honest.state), tensors_of(changed.state))
    assert honest.rows(SUBSETS) != changed.rows(SUBSETS)


@pytest.mark.parametrize("part", ["labeled", "unlabeled", "val", "test"])
def test_of_all_labels_fillers_know_those_of_labeled_clips_alone(
    manifest: Manifest, bank: FeatureBank, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(StackData):
        """Every label of one part is wrong; the split is the honest one."""

        def __init__(self, *values: object) -> None:
            super().__init__(*values)  # type: ignore[arg-type]
            rows = list(getattr(self.splits[0], part))
            assert rows
            self.labels[rows] = (self.labels[rows] + 1) % 3

    runs = trained(manifest, bank, "erm")
    honest = tensors_of(runs.evaluation(Finetuning(3), [0]).state)
    monkeypatch.setattr(pipeline.missing, "StackData", Wrong)
    changed = tensors_of(runs.evaluation(Finetuning(3), [0]).state)
    assert same(honest, changed) == (part != "labeled")
    assert same(*({k: v for k, v in d.items() if "prototypes" not in k} for d in (honest, changed)))


def distances(evaluation: MissingEvaluation, translators: nn.ModuleDict, run: int) -> dict[str, float]:
    """Mean distance per pair over the source training clips that have both modalities, by hand but for the network."""
    rows = source_clips(evaluation.data.specs[run], evaluation.data.manifest)
    found = {}
    for source in FULL:
        for target in FULL:
            if source == target:
                continue
            clips, start = embeddings(evaluation, run, source, rows)
            others, goal = embeddings(evaluation, run, target, rows)
            both = sorted(set(clips) & set(others))
            single = torch.zeros(len(evaluation.seeds), len(both), start.shape[1])
            single[run] = torch.from_numpy(start[[clips.index(i) for i in both]]).float()
            made = translators[f"{source}_to_{target}"](single, None, None, 0, "")[run].detach().double().numpy()
            gaps = made - goal[[others.index(i) for i in both]]
            found[f"{source}_to_{target}"] = float(np.linalg.norm(gaps, axis=1).mean())
    return found


@pytest.mark.parametrize("method", ["erm", "ssmdg"])
def test_fine_tuning_brings_translations_nearer_and_moves_nothing_else(
    manifest: Manifest, bank: FeatureBank, method: str
) -> None:
    runs = trained(manifest, bank, method)
    before = runs.evaluation(Finetuning(0))
    after = runs.evaluation(Finetuning(40, learning_rate=3e-3))
    for run in range(len(runs.specs)):
        start, end = (distances(e, e.state.finetuned, run) for e in (before, after))
        for pair in start:
            assert end[pair] < 0.95 * start[pair], (run, pair)
    assert same(dict(after.method.state_dict()), weights_of(runs.stack, range(3)))
    fixed = [{k: v for k, v in tensors_of(e.state).items() if "finetuned" not in k} for e in (before, after)]
    assert same(*fixed)
    assert not same(before.state.finetuned.state_dict(), after.state.finetuned.state_dict())
    assert not any(p.requires_grad for m in (after.method, after.state.finetuned) for p in m.parameters())


def test_fine_tuning_starts_from_the_methods_own_translators(manifest: Manifest, bank: FeatureBank) -> None:
    state = trained(manifest, bank, "ssmdg").evaluation(Finetuning(0)).state
    assert len(state.translators) == 6
    assert same(state.finetuned.state_dict(), state.translators.state_dict())
    assert state.fillers() == list(FILLERS)


def test_a_method_without_translators_gets_them_by_fine_tuning(manifest: Manifest, bank: FeatureBank) -> None:
    runs = trained(manifest, bank, "erm")
    assert runs.evaluation().state.fillers() == ALWAYS
    state = runs.evaluation(Finetuning(2)).state
    assert state.fillers() == ["zero", "mean", "prototype", "finetuned", "renormalise"]
    first = [value[0] for value in state.finetuned.state_dict().values() if value[0].any()]
    second = [value[1] for value in state.finetuned.state_dict().values() if value[1].any()]
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("method", ["erm", "ssmdg"])
def test_fine_tuning_is_deterministic(manifest: Manifest, bank: FeatureBank, method: str) -> None:
    runs = trained(manifest, bank, method)
    one, two = (runs.evaluation(Finetuning(6)) for _ in range(2))
    assert same(tensors_of(one.state), tensors_of(two.state))
    assert one.rows(SUBSETS) == two.rows(SUBSETS)


def test_every_step_of_fine_tuning_is_reported(manifest: Manifest, bank: FeatureBank) -> None:
    runs = trained(manifest, bank, "erm")
    reported: list[int] = []
    weights = weights_of(runs.stack, range(3))
    MissingEvaluation(runs.specs, manifest, bank, weights, Finetuning(4), reported.append)
    assert reported == [1, 1, 1, 1]


def test_a_run_of_one_modality_can_be_evaluated_with_fine_tuning(manifest: Manifest, bank: FeatureBank) -> None:
    one = FeatureBank({"video": bank.features["video"]}, {"video": bank.present["video"]}, bank.views)
    spec = make_spec(manifest, one, "erm", steps=2)
    stack, results = train([spec], manifest, one)
    evaluation = MissingEvaluation([spec], manifest, one, weights_of(stack, [0]), Finetuning(2))
    (row,) = evaluation.rows(kept_subsets(["video"], "all"), ["zero"])[0]
    assert row.accuracy == results[0].metrics["target/fused"]


def test_a_row_counts_the_target_clips_that_have_something_left(manifest: Manifest, bank: FeatureBank) -> None:
    runs = trained(manifest, bank, "erm")
    for spec, of_run in zip(runs.specs, runs.evaluation().rows(SUBSETS), strict=True):
        clips = target_clips(spec, manifest)
        for row in of_run:
            some = [i for i in clips if any(bank.present[m][i] for m in row.kept)]
            assert row.clips == len(some), (spec.target, row.kept)
    first = [row.clips for row in runs.evaluation(None, [0]).rows(SUBSETS, ["zero"])[0]]
    assert len(set(first)) > 2
    assert min(first) < max(first) == len(target_clips(runs.specs[0], manifest))


def test_accuracies_are_over_those_clips(manifest: Manifest, bank: FeatureBank) -> None:
    """Taking a modality away is not having it: the same with a bank in which it is absent."""
    runs = trained(manifest, bank, "erm")
    evaluation = runs.evaluation()
    (rows,) = evaluation.rows([("video", "audio")], ["zero"])[:1]
    clips = torch.tensor(target_clips(runs.specs[0], manifest))
    x, present = evaluation.data.take(clips.expand(3, -1), torch.zeros(3, len(clips), dtype=torch.int64))
    present["flow"] = torch.zeros_like(present["flow"])
    predicted = evaluation.method.predict(x, present)["fused"][0].argmax(-1)
    some = present["video"][0] | present["audio"][0]
    labels = torch.tensor(manifest.label_indices())[clips]
    hits = (predicted == labels)[some]
    assert rows[0].accuracy == pytest.approx(hits.double().mean().item(), abs=1e-7)
    recalls = [hits[labels[some] == c].double().mean().item() for c in range(3)]
    assert rows[0].class_mean == pytest.approx(sum(recalls) / 3, abs=1e-7)
    assert rows[0].clips == int(some.sum())


def test_without_any_such_clip_there_is_no_accuracy(manifest: Manifest, bank: FeatureBank, tmp_path: Path) -> None:
    spec = make_spec(manifest, bank, "erm", steps=2)
    clips = target_clips(spec, manifest)
    here = bank.present["flow"].clone()
    here[clips] = False
    without = replace(
        bank,
        present={**bank.present, "flow": here},
        features={**bank.features, "flow": bank.features["flow"] * here[:, None, None]},
    )
    stack, _ = train([spec], manifest, without)
    evaluation = MissingEvaluation([spec], manifest, without, weights_of(stack, [0]))
    rows = evaluation.rows([("flow",), ("flow", "audio")], ["zero", "mean"])[0]
    assert [(row.accuracy, row.class_mean, row.clips) for row in rows[:2]] == [(None, None, 0)] * 2
    assert all(row.accuracy is not None and row.clips > 0 for row in rows[2:])
    path = write_missing(tmp_path, spec, rows, None, torch.device("cpu"))
    assert json.loads(path.read_text())["rows"][0]["accuracy"] is None


def test_the_record_says_what_its_rows_depend_on(tmp_path: Path) -> None:
    rows = [MissingRow(("video",), "zero", 0.1 + 0.2, 0.5, 7), MissingRow(FULL, "finetuned", None, None, 0)]
    settings = Finetuning(9, batch=3)
    spec = run_spec()
    path = write_missing(tmp_path / "missing", spec, rows, settings, torch.device("cpu"))
    assert path == tmp_path / "missing" / f"{spec.run_id}.json"
    plain = json.loads(path.read_text())
    assert (plain["schema"], plain["run_id"]) == (1, spec.run_id)
    assert [MissingRow(**{**row, "kept": tuple(row["kept"])}) for row in plain["rows"]] == rows
    assert plain["fillers"] == {name: FILLERS[name] for name in ("zero", "finetuned")}
    assert plain["finetuning"] == asdict(settings)
    assert plain["environment"]["torch"] == torch.__version__
    write_missing(tmp_path / "missing", spec, rows[:1], None, torch.device("cpu"))
    assert json.loads(path.read_text())["finetuning"] is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_table_is_the_mean_over_seeds_of_averages_over_targets() -> None:
    def row(accuracy: float | None) -> MissingRow:
        return MissingRow(("video",), "zero", accuracy, accuracy, 3)

    values = {("yard", 0): 0.2, ("hall", 0): 0.4, ("yard", 1): 0.4, ("hall", 1): 0.6, ("yard", 2): 0.9}
    runs = [run_result(spec=run_spec(target=t, split_seed=s, init_seed=s, sources=("a",))) for t, s in values]
    rows = {r.spec.run_id: [row(a)] for r, a in zip(runs, values.values(), strict=True)}
    (cell,) = missing_table(runs, rows).values()
    assert cell == pytest.approx((0.4, 0.1))  # the third seed has one target only
    assert missing_table(runs, {name: [row(None)] for name in rows}) == {}


@pytest.mark.parametrize(
    "width",
    [120, 80],
)
def test_the_table_says_of_every_row_what_was_present(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "width", width)
    run = run_result(spec=run_spec(method="ssmdg", modalities=FULL))
    rows = [MissingRow(kept, filler, 0.5, 0.5, 3) for kept in SUBSETS for filler in FILLERS]
    show_missing([run], {run.spec.run_id: rows})
    text = capsys.readouterr().out
    for kept in SUBSETS:
        assert re.search(rf"^ *{re.escape('+'.join(kept))} +50.0", text, re.M), kept


def write_cache(manifest: Manifest, bank: FeatureBank, folder: Path) -> ExtractSettings:
    """Keep a bank's features as ``pipe extract`` would; returns the settings under which they are found."""
    settings = ExtractSettings()
    ids = [clip.clip_id for clip in manifest.clips]
    for modality, values in bank.features.items():
        identity = settings.identity(manifest.dataset, modality)
        group = FeatureGroup.open_or_create(folder, identity, ids, values.shape[-1], 64, {})
        row = {clip_id: i for i, clip_id in enumerate(ids)}
        for unit in range(group.num_units):
            rows = [row[c] for c in group.unit_clips(unit)]
            here = bank.present[modality][rows]
            features = values[rows].numpy().copy()
            features[~here.numpy()] = np.nan
            states = [Status.PRESENT if p else Status.ABSENT for p in here]
            group.write_unit(unit, features, [ClipRecord(ids[i], s) for i, s in zip(rows, states, strict=True)])
    return settings


@dataclass(frozen=True)
class Place:
    """A cache and a folder of results."""

    manifest: Manifest
    settings: ExtractSettings
    cache: Path
    results: Path

    def train(self, modalities: Sequence[str] = FULL, **changes: object) -> list[RunResult]:
        """Runs of one seed that are tested on the studio; they are kept beside those that are there already."""
        given: dict[str, object] = {"targets": ("studio",), "seeds": (0,), "labels": "3", "steps": 3, "eval_every": 2}
        sweep = SweepSettings(**{**given, "batch_labeled": 6, "batch_unlabeled": 8, **changes})  # type: ignore[arg-type]
        settings = replace(self.settings, modalities=tuple(modalities))
        tables = load_tables(self.manifest, settings, self.cache)
        specs = plan_runs(self.manifest, tables, sweep)
        return run_missing(
            specs,
            self.manifest,
            tables,
            settings,
            self.cache,
            self.results,
            1,
            lambda *numbers: None,
            nothing,
            sweep.keep_weights,
        )

    def evaluate(
        self,
        runs: Sequence[RunResult],
        missing: str = "all",
        fillers: Sequence[str] = (),
        finetuning: Finetuning | None = None,
        advance: Callable[[int], None] = nothing,
        on_start: Callable[[int], None] = nothing,
    ) -> dict[str, list[MissingRow]]:
        specs = [run.spec for run in runs]
        where = (self.manifest, self.settings, self.cache, self.results)
        return evaluate_runs(specs, *where, missing, fillers, finetuning, on_start, advance)

    def weights(self, run: RunResult) -> Path:
        return ResultStore(self.results).weights_path(run.spec.run_id)


@pytest.fixture
def place(manifest: Manifest, bank: FeatureBank, tmp_path: Path) -> Place:
    return Place(manifest, write_cache(manifest, bank, tmp_path / "cache"), tmp_path / "cache", tmp_path / "results")


def test_runs_of_all_kinds_are_evaluated_in_one_go(place: Place) -> None:
    """Other modalities, compact features, half precision and early stopping, in as many stacks."""
    runs = [
        *place.train(methods=("erm", "ssmdg"), targets=("studio", "yard")),
        *place.train(("video", "audio"), methods=("erm",)),
        *place.train(methods=("erm",), projection="pca:5", targets=("studio", "yard")),
        *place.train(methods=("ssmdg",), precision="bfloat16", patience=1, selection="source-val"),
        *place.train(methods=("erm",), selection="label-honest", folds=2),
    ]
    assert len({run.spec.run_id for run in runs}) == len(runs) == 9
    expected: list[int] = []
    done: list[int] = []
    found = place.evaluate(runs, finetuning=Finetuning(2), on_start=expected.append, advance=done.append)
    assert found.keys() == {run.spec.run_id for run in runs}
    assert expected == [5 * (1 + 2)] == [sum(done)]
    for run in runs:
        rows = {(row.kept, row.filler): row for row in found[run.spec.run_id]}
        modalities = run.spec.modalities
        assert {kept for kept, _ in rows} == set(kept_subsets(modalities, "all"))
        assert ("translate" in {filler for _, filler in rows}) == (run.spec.method == "ssmdg")
        assert rows[modalities, "zero"].accuracy == run.metrics["target/fused"]
        plain = json.loads((place.results / "missing" / f"{run.spec.run_id}.json").read_text())
        assert plain["rows"] == [{**asdict(row), "kept": list(row.kept)} for row in found[run.spec.run_id]]
        assert plain["finetuning"]["steps"] == 2
    assert ResultStore(place.results).read_known()[0] == sorted(runs, key=lambda run: run.spec.run_id)


def test_chosen_fillers_and_modalities_are_evaluated_and_no_others(place: Place) -> None:
    (run,) = place.train(methods=("ssmdg",))
    (rows,) = place.evaluate([run], "audio,flow", ["translate", "zero"]).values()
    assert [(row.kept, row.filler) for row in rows] == [
        (kept, filler) for kept in (FULL, ("video",)) for filler in ("zero", "translate")
    ]


def test_taking_everything_away_is_refused_before_anything_is_read(place: Place) -> None:
    (run,) = place.train(methods=("erm",))
    place.weights(run).unlink()
    with pytest.raises(UsageError, match="leave one"):
        place.evaluate([run], "video,flow,audio")


@pytest.mark.parametrize("filler", ["translate", "finetuned"])
def test_a_filler_that_a_method_does_not_have_is_not_replaced_by_others(place: Place, filler: str) -> None:
    (run,) = place.train(methods=("erm",))
    try:
        (rows,) = place.evaluate([run], "all", [filler]).values()
    except UsageError:
        return
    assert {row.filler for row in rows} <= {filler}


def test_a_run_without_weights_is_named(place: Place) -> None:
    (run,) = place.train(methods=("erm",), keep_weights=False)
    with pytest.raises(UsageError, match=f"run {run.spec.run_id} has no weights in .*weights: it was trained without"):
        place.evaluate([run])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_weights_that_are_cut_off_are_named(place: Place, share: float) -> None:
    (run,) = place.train(methods=("erm",))
    path = place.weights(run)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UsageError, match=f"the weights .*{run.spec.run_id}.safetensors are damaged .* train it again"):
        place.evaluate([run])


@pytest.mark.parametrize("beside", [False, True])
def test_weights_that_something_else_wrote_are_named(place: Place, beside: bool) -> None:
    first, second = place.train(methods=("erm",), targets=("studio", "yard"))
    save_file({"weight": torch.zeros(3)}, place.weights(second))
    with pytest.raises(UsageError, match="weights"):
        place.evaluate([first, second] if beside else [second])


def test_a_result_of_an_earlier_version_keeps_its_id_or_is_skipped(place: Place) -> None:
    """Otherwise its weights are looked for under a name that no file has."""
    (run,) = place.train(methods=("erm",))
    path = ResultStore(place.results).path(run.spec.run_id)
    plain = json.loads(path.read_text())
    del plain["spec"]["folds"]  # as if that version had not known it
    plain["run_id"] = digest(plain["spec"])[:16]
    path.unlink()
    path.with_name(f"{plain['run_id']}.json").write_text(json.dumps(plain))
    known, skipped = ResultStore(place.results).read_known()
    assert [r.spec.run_id for r in known] == [plain["run_id"]] * len(known)
    assert len(known) + len(skipped) == 1


def test_features_that_are_not_those_of_the_run_are_refused(
    place: Place, bank: FeatureBank, manifest: Manifest
) -> None:
    (run,) = place.train(methods=("erm",))
    write_cache(manifest, with_noise(bank, [0]), place.cache)
    with pytest.raises(CacheError, match=f"video features are not those of run {run.spec.run_id}; they changed since"):
        place.evaluate([run])


def test_features_that_are_not_those_of_the_second_run_are_refused(
    place: Place, bank: FeatureBank, manifest: Manifest
) -> None:
    """Results of before and after a second extraction lie in one folder; the old ones cannot be evaluated."""
    (old,) = place.train(methods=("erm",))
    write_cache(manifest, with_noise(bank, target_clips(old.spec, manifest)), place.cache)
    (new,) = place.train(methods=("erm",))
    assert old.spec.run_id != new.spec.run_id
    with pytest.raises(CacheError):
        place.evaluate([new, old])


def test_a_data_set_that_is_not_that_of_the_run_is_refused(place: Place) -> None:
    (run,) = place.train(methods=("erm",))
    clips = [replace(c, label="wave") if c.domain == "studio" else c for c in place.manifest.clips]
    changed = replace(place, manifest=replace(place.manifest, clips=tuple(clips)))
    with pytest.raises(UsageError):
        changed.evaluate([run])
