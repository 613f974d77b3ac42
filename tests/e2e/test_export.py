"""Runs become models: in a fresh process and another folder they give the numbers of their evaluation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cache.store import FeatureTable
from pipeline import bundling, cli, headexport, measuring
from pipeline.bank import FeatureBank
from pipeline.bundle import FILES, load_bundle
from pipeline.bundling import choose_filler, choose_run, export_bundle
from pipeline.calibration import fold_numbers
from pipeline.compact import compact_bank, fitted_projections
from pipeline.datasets.demo import DemoSpec
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings
from pipeline.headexport import Checked
from pipeline.headmodel import HeadModel
from pipeline.measuring import Examples
from pipeline.plan import SweepSettings
from pipeline.records import ResultStore
from pipeline.stack import run_split
from pipeline.study import evaluate_missing, load_features, train_heads
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunResult
from pipeline.weights import load_weights
from pipeline.workspace import DatasetOptions, Workspace, open_dataset
from tests.e2e.conftest import pipe

# What a user with arrays does: no data set, no cache, no backbone.
PREDICT = """
import sys
import torch
from safetensors.torch import load_file, save_file
from pipeline.bundle import load_bundle
torch.set_num_threads(1)
found = {}
for name in sys.argv[3:]:
    bundle = load_bundle(f"{sys.argv[1]}/{name}")
    given = load_file(f"{sys.argv[1]}/{name}.in")
    features = {m: given[m] for m in bundle.head.modalities}
    present = {m: given[f"{m}_present"].bool() for m in bundle.head.modalities}
    said = bundle.head(features, present, "zero")
    own = bundle.head(features, present)
    found |= {f"{name}/logits": said.logits, f"{name}/probs": own.probs}
    assert "cache.store" not in sys.modules
save_file(found, sys.argv[2])
"""


class Demo:
    """A copy of the demo's work with a few more runs."""

    def __init__(self, folder: Path) -> None:
        self.work = Workspace(folder, workers=1)
        self.manifest = open_dataset(DatasetOptions("demo", demo=DemoSpec(clips_per_class=4)), self.work)
        self.settings = ExtractSettings()
        self.tables = load_features(self.manifest, self.settings, self.work)

    def train(self, method: str, **changes: Any) -> RunResult:
        sweep = SweepSettings((method,), ("cartoon",), (0,), labels="1", steps=20, eval_every=10, **changes)
        (result,), _ = train_heads(self.manifest, self.tables, self.settings, sweep, self.work)
        return result

    def run(self, method: str) -> RunResult:
        """The demo's own run."""
        found, _ = ResultStore(self.work.results("demo")).read_known()
        (result,) = [r for r in found if (r.spec.method, r.spec.target, r.spec.steps) == (method, "cartoon", 60)]
        return result

    def export(self, result: RunResult, folder: Path, **changes: Any) -> Path:
        return export_bundle(result, self.manifest, self.settings, self.work, folder, **changes).folder


@pytest.fixture(scope="module")
def demo(demo_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Demo:
    copy = tmp_path_factory.mktemp("export") / "work"
    shutil.copytree(demo_run[0], copy)
    return Demo(copy)


def evaluated(demo: Demo, result: RunResult) -> tuple[torch.Tensor, list[int]]:
    """Logits of the run's own evaluation on its target clips, and which these are."""
    spec, results = result.spec, demo.work.results("demo")
    bank = FeatureBank.from_tables(demo.manifest, demo.tables, torch.device("cpu"))
    projections = fitted_projections([spec], demo.manifest, bank, results / "projections")
    trainer = StackTrainer([spec], demo.manifest, compact_bank(bank, projections, [spec]))
    trainer.method.load_state_dict(load_weights({spec.run_id: ResultStore(results).weights_path(spec.run_id)}))
    clips = trainer._evaluation_sets()["target"]
    logits, _ = trainer._predict(clips.rows, trainer.data.clean)
    return logits["fused"][0], clips.rows[0].tolist()


def clean_features(
    manifest: Manifest, tables: dict[str, FeatureTable], positions: list[int]
) -> dict[str, torch.Tensor]:
    """Cached clean features of clips, as arrays."""
    found = {}
    for modality, table in tables.items():
        values, present = table.select([manifest.clips[i].clip_id for i in positions])
        found[modality] = torch.from_numpy(values[:, 0].copy())
        found[f"{modality}_present"] = torch.from_numpy(present).byte()
    return found


def test_a_fresh_process_predicts_what_evaluation_did(demo: Demo, tmp_path: Path) -> None:
    runs = {
        "ssmdg": demo.run("ssmdg"),
        "erm": demo.run("erm"),
        "ssmdg-compact": demo.train("ssmdg", projection="pca:16"),
        "erm-compact": demo.train("erm", projection="pca:16", hparams={"fusion": "sum"}),
    }
    elsewhere = tmp_path / "elsewhere"
    wanted = {}
    for name, result in runs.items():
        shutil.copytree(demo.export(result, tmp_path / "here" / name), elsewhere / name)
        wanted[name], positions = evaluated(demo, result)
        given = clean_features(demo.manifest, demo.tables, positions)
        assert not all(given[f"{m}_present"].all() for m in demo.tables)  # some clip lacks sound
        save_file(given, elsewhere / f"{name}.in")
        labels = torch.tensor(demo.manifest.label_indices())[positions]
    arguments = [sys.executable, "-c", PREDICT, str(elsewhere), str(tmp_path / "out"), *runs]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out")
    for name, result in runs.items():
        logits = found[f"{name}/logits"]
        torch.testing.assert_close(logits, wanted[name], rtol=0, atol=1e-5)
        hits = (logits.argmax(1) == labels).sum()
        assert float(hits / len(labels)) == result.metrics["target/fused"]
        bundle = load_bundle(elsewhere / name)
        spec = bundle.spec
        assert spec.training.target_accuracy == result.metrics["target/fused"]
        right = (found[f"{name}/probs"].argmax(1) == labels).double().mean()
        assert spec.target.subsets["video+flow+audio"].accuracy == pytest.approx(float(right))
        assert (spec.filler.name == "translate") == name.startswith("ssmdg")
        assert [f.width for f in spec.modalities] == ([16] * 3 if "compact" in name else [160, 160, 160])


def test_a_run_becomes_a_folder_by_its_command(demo: Demo, tmp_path: Path) -> None:
    result, folder = demo.run("ssmdg"), tmp_path / "model"
    done = pipe("export", result.spec.run_id[:12], folder, "--dataset", "demo", "--work", demo.work.folder)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    for part in ("SSMDG on demo", "Filler translate", "synthetic", f"Written: {folder}"):
        assert part in done.stdout
    again = demo.export(result, tmp_path / "again")
    for name in FILES:
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    spec = json.loads((folder / "bundle.json").read_text())
    assert spec["run"] == result.spec.to_json()
    assert spec["features"]["clip_seconds"] == pytest.approx(2.5, abs=0.5)
    assert spec["modalities"][0]["settings"]["input"]["num_frames"] == 16
    # Twelve held-back clips fit no temperature, and that is said.
    assert {t["value"] for t in spec["calibration"]["fused"].values()} == {1.0}
    assert "probabilities are not calibrated" in spec["calibration"]["fitted_on"]
    card = (folder / "README.md").read_text()
    for part in ("synthetic", "probabilities are not calibrated", "| video+flow+audio |", "## Licences", "cartoon"):
        assert part in card
    assert str(demo.work.folder) not in card + (folder / "bundle.json").read_text()


def test_the_head_is_exported_too_where_that_is_asked_for(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(cli, "configure_process", lambda: None)
    for name in ("export_onnx", "export_program"):
        monkeypatch.setattr(headexport, name, lambda bundle, path: written.append(path) or Checked(3e-7, 64))
    folder, options = tmp_path / "model", ["--dataset", "demo", "--work", str(demo.work.folder), "--filler", "mean"]
    call = ["export", demo.run("ssmdg").spec.run_id, str(folder), *options]
    files = [tmp_path / "head.onnx", tmp_path / "head.pt2"]
    said = CliRunner().invoke(cli.app, [*call, "--onnx", str(files[0]), "--torch-export", str(files[1])])
    assert said.exit_code == 0, said.output
    assert written == files
    assert load_bundle(folder).head.filler == "mean"
    again = CliRunner().invoke(cli.app, call)
    assert (again.exit_code, "holds a bundle" in again.output) == (2, True)
    assert CliRunner().invoke(cli.app, [*call, "--force"]).exit_code == 0
    wrong = CliRunner().invoke(cli.app, [*call, "--force", "--onnx", str(tmp_path / "head.txt")])
    assert (wrong.exit_code, "must end in .onnx" in wrong.output) == (2, True)


def test_figures_per_subset_are_those_of_eval(demo: Demo, tmp_path: Path) -> None:
    result = demo.run("ssmdg")
    found = load_bundle(demo.export(result, tmp_path / "model", filler="mean")).spec
    assert found.filler.reason == "named at the export"
    rows = evaluate_missing(demo.manifest, [result], demo.settings, "all", ["mean"], None, demo.work)
    for row in rows[result.spec.run_id]:
        measured = found.target.subsets["+".join(row.kept)]
        assert (measured.clips, measured.accuracy) == (row.clips, pytest.approx(row.accuracy))


def test_held_back_source_clips_fit_the_temperatures_and_are_measured_without_their_own_fold(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "FEWEST_CLIPS", 6)
    result = demo.run("erm")
    bundle = load_bundle(demo.export(result, tmp_path / "model", filler="mean"))
    bank = FeatureBank.from_tables(demo.manifest, demo.tables, torch.device("cpu"))
    held_back = run_split(result.spec, demo.manifest, bank).val
    clips = [demo.manifest.clips[i] for i in held_back]
    assert {clip.domain for clip in clips} == set(result.spec.sources)
    given = clean_features(demo.manifest, demo.tables, list(held_back))
    examples = Examples(
        tuple(clip.clip_id for clip in clips),
        {m: given[m] for m in demo.tables},
        {m: given[f"{m}_present"].bool() for m in demo.tables},
        torch.tensor(demo.manifest.label_indices())[list(held_back)],
    )
    head = HeadModel(bundle.head.plan)
    head.load_tensors(bundle.head.tensors())
    outcome = measuring.run_model(head, examples, "mean")
    fused, alone = measuring.fitted(outcome)
    spec = bundle.spec
    assert spec.calibration.fused == {"+".join(kept): t for kept, t in fused.items()}
    assert spec.calibration.alone == alone
    crossed = measuring.held_out(fused, alone, outcome, fold_numbers(examples.clip_ids))
    wanted = measuring.measure(outcome, crossed, spec.threshold, spec.held_back.part)
    assert spec.held_back == wanted
    assert (
        measuring.measure(outcome, measuring.constant(fused, alone, examples), spec.threshold, spec.held_back.part)
        != wanted
    )


def test_the_target_decides_nothing(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the target's labels all wrong, filler, temperatures and weights are the same."""
    monkeypatch.setattr(measuring, "FEWEST_CLIPS", 6)
    monkeypatch.setattr(bundling, "FEWEST_CLIPS", 6)
    result = demo.run("erm")
    honest = load_bundle(demo.export(result, tmp_path / "honest"))
    assert honest.spec.filler.reason.startswith("most accurate over the subsets of modalities on 12 held-back source")
    assert len({t.value for t in honest.spec.calibration.fused.values()}) > 1
    real = bundling._examples

    def turned(manifest: Manifest, bank: FeatureBank, positions: tuple[int, ...]) -> Examples:
        found = real(manifest, bank, positions)
        of_target = manifest.clips[positions[0]].domain == "cartoon"
        return replace(found, labels=(found.labels + 1) % len(manifest.classes)) if of_target else found

    monkeypatch.setattr(bundling, "_examples", turned)
    monkeypatch.setattr(bundling, "ALLOWED_DIFFERENCE", 1.0)
    other = load_bundle(demo.export(result, tmp_path / "other"))
    assert other.spec.target != honest.spec.target
    assert any("the run's record has a target accuracy" in note for note in other.spec.notes)
    for part in ("filler", "calibration", "held_back", "threshold"):
        assert getattr(other.spec, part) == getattr(honest.spec, part)
    assert (tmp_path / "other" / "head.safetensors").read_bytes() == (
        tmp_path / "honest" / "head.safetensors"
    ).read_bytes()


def test_the_best_filler_on_held_back_clips_is_taken(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(demo.export(demo.run("erm"), tmp_path / "model"))
    head, some = bundle.head, Examples(tuple("abcdefghij" * 2), {}, {}, torch.zeros(20, dtype=torch.int64))
    figures = {"zero": 0.5, "mean": 0.7, "prototype": 0.7, "renormalise": 0.6}
    monkeypatch.setattr(bundling, "filler_accuracies", lambda head, examples: figures)
    assert choose_filler(head, some).name == "mean"
    assert choose_filler(head, replace(some, labels=some.labels[:19])).name == "zero"
    assert choose_filler(head, some, "renormalise").name == "renormalise"
    with pytest.raises(UsageError, match="'translate' is not a filler of this model"):
        choose_filler(head, some, "translate")


def test_runs_that_cannot_be_exported_are_refused(demo: Demo, tmp_path: Path) -> None:
    classical = demo.train("ncm")
    with pytest.raises(UsageError, match=r"is 'ncm', which is fitted at once and keeps no weights"):
        choose_run("demo", classical.spec.run_id[:8], demo.work)
    with pytest.raises(UsageError, match=r"names \d+ runs .*; a bundle holds one"):
        choose_run("demo", "all", demo.work)
    with pytest.raises(UsageError, match="has an id that starts with 'zz'"):
        choose_run("demo", "zz", demo.work)
    bare = demo.run("fixmatch")
    record = ResultStore(demo.work.results("demo")).weights_path(bare.spec.run_id)
    record.rename(record.with_suffix(".away"))
    with pytest.raises(UsageError, match="has no weights in"):
        demo.export(bare, tmp_path / "model")
    record.with_suffix(".away").rename(record)
    wrong = replace(bare, metrics={**bare.metrics, "target/fused": 0.99})
    with pytest.raises(UsageError, match=r"has a target accuracy of 0\.9900 in its record, and its weights give"):
        demo.export(wrong, tmp_path / "model")
    assert not (tmp_path / "model").exists()
