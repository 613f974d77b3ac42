"""Missing modalities, methods and options of training by their commands, in a copy of the demo's work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from heads.fillers import FILLERS
from heads.methods import METHODS
from pipeline.classical import CLASSICAL
from tests.e2e.conftest import here

SUBSETS = ["video+flow+audio", "video+flow", "video+audio", "flow+audio", "video", "flow", "audio"]
BASE = ["zero", "mean", "prototype", "finetuned", "renormalise"]
WITH_TRANSLATORS = ["zero", "mean", "prototype", "translate", "translate-raw", "finetuned", "renormalise"]
SMALL = ["--labels", "1", "--seeds", "1", "--steps", "4", "--target", "cartoon", "--workers", "1"]


@pytest.fixture(scope="module")
def work(demo_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's work, to add to."""
    copy = tmp_path_factory.mktemp("eval") / "work"
    shutil.copytree(demo_run[0], copy)
    return copy


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for every column, wherever the tests run."""
    monkeypatch.setattr("pipeline.console.out._width", 120)


def runs(work: Path) -> dict[str, dict[str, Any]]:
    """Every result by run id."""
    return {path.stem: json.loads(path.read_text()) for path in (work / "results" / "demo").glob("*.json")}


def rows(work: Path, run_id: str) -> list[dict[str, Any]]:
    plain = json.loads((work / "results" / "demo" / "missing" / f"{run_id}.json").read_text())
    assert plain["run_id"] == run_id
    found: list[dict[str, Any]] = plain["rows"]
    return found


def tables(text: str) -> list[tuple[str, list[str], dict[str, list[str]]]]:
    """Title, fillers, and cells by present modalities, of every printed table."""
    found: list[tuple[str, list[str], dict[str, list[str]]]] = []
    title = ""
    for line in text.splitlines():
        words = line.split()
        if "missing modalities, %" in line:
            title = line
        elif words[:1] == ["present"]:
            found.append((title, words[1:], {}))
        elif words and words[0].split("+")[0] in ("video", "flow", "audio"):
            found[-1][2][words[0]] = words[1:]
    return found


def trained(work: Path, *options: str) -> dict[str, dict[str, Any]]:
    """The runs that a call of ``pipe train-heads`` adds."""
    before = runs(work).keys()
    text = here("train-heads", "--dataset", "demo", "--work", work, *SMALL, *options).stdout
    added = {run_id: plain for run_id, plain in runs(work).items() if run_id not in before}
    assert f"{len(added)} runs, {len(added)} of them trained now" in text
    return added


def test_every_run_is_evaluated_on_every_subset_with_every_filler(work: Path) -> None:
    options = ["--dataset", "demo", "--missing", "all", "--finetune-translators", "5", "--work", work]
    demo = runs(work)
    assert len(demo) == 9
    text = here("eval", "all", *options).stdout
    printed = tables(text)
    assert [title.split(" on ")[0] for title, _, _ in printed] == ["Labeled only (ERM)", "FixMatch", "SSMDG"]
    assert [fillers for _, fillers, _ in printed] == [BASE, BASE, WITH_TRANSLATORS]
    for _, fillers, cells in printed:
        assert list(cells) == SUBSETS
        for values in cells.values():
            assert len(values) == len(fillers)
            assert all(0 <= float(value) <= 100 for value in values)
    for name, meaning in FILLERS.items():
        assert f"{name}: {meaning}" in text
    written = {path.stem for path in (work / "results" / "demo" / "missing").iterdir()}
    assert written == demo.keys()
    for run_id, plain in demo.items():
        fillers = WITH_TRANSLATORS if plain["spec"]["method"] == "ssmdg" else BASE
        found = {("+".join(row["kept"]), row["filler"]): row["accuracy"] for row in rows(work, run_id)}
        assert list(found) == [(subset, filler) for subset in SUBSETS for filler in fillers]
        assert found[SUBSETS[0], "zero"] == plain["metrics"]["target/fused"]
    shown = printed[0][2]["video"][0]
    members = [run_id for run_id, plain in demo.items() if plain["spec"]["method"] == "erm"]
    values = [next(r["accuracy"] for r in rows(work, i) if r["kept"] == ["video"]) for i in members]
    assert shown == f"{100 * sum(values) / len(values):.1f}"


def test_compact_mixed_runs_are_trained_and_evaluated_without_sound(work: Path) -> None:
    options = ["--mixing", "bmm", "--set", "mix_warmup_epochs=1", "--project", "pca:32", "--fusion", "sum"]
    added = trained(work, "--method", "mm,bmm", *options)
    assert {plain["spec"]["method"] for plain in added.values()} == {"mm", "bmm"}
    for run_id, plain in added.items():
        spec = plain["spec"]
        assert (spec["projection"], spec["hparams"]["fusion"], spec["hparams"]["mixing"]) == ("pca:32", "sum", "bmm")
        assert spec["hparams"]["mix_warmup_epochs"] == 1
        assert (plain["status"], plain["curves"]["step"]) == ("finished", [4])
        notes = [note for note in plain["notes"] if "pca:32 leaves" in note]
        assert [note.split(":")[0] for note in notes] == ["video", "flow", "audio"]
        assert all(plain["environment"][f"projection_{m}"] for m in ("video", "flow", "audio"))
        assert (work / "results" / "demo" / "weights" / f"{run_id}.safetensors").is_file()
    names = [run_id[:10] for run_id in added]
    text = here("eval", *names, "--dataset", "demo", "--missing", "audio", "--fillers", "zero,mean", "--work", work)
    printed = tables(text.stdout)
    assert {title.split(" on ")[0].split(",")[0].split(" (")[0] for title, _, _ in printed} == {"MM", "B-MM"}
    for _, fillers, cells in printed:
        assert fillers == ["zero", "mean"]
        assert list(cells) == ["video+flow+audio", "video+flow"]
    for run_id, plain in added.items():
        found = rows(work, run_id)
        assert [row["kept"] for row in found[::2]] == [["video", "flow", "audio"], ["video", "flow"]]
        assert found[0]["accuracy"] == plain["metrics"]["target/fused"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zzzz"], "no finished run of trained heads has an id that starts with 'zzzz'; ids are the file names in "),
        (["all", "--fillers", "zero,transalte"], "'transalte' is not a filler. Did you mean 'translate'? Allowed: "),
        (["all", "--missing", "sound"], "'sound' is not a modality of these runs."),
    ],
)
def test_wrong_names_are_said_in_one_message(work: Path, arguments: list[str], message: str) -> None:
    done = here("eval", *arguments, "--dataset", "demo", "--work", work, code=2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert done.stdout == ""


def test_without_weights_there_is_nothing_to_evaluate(work: Path) -> None:
    (run_id,) = trained(work, "--method", "erm", "--no-keep-weights")
    assert not (work / "results" / "demo" / "weights" / f"{run_id}.safetensors").exists()
    done = here("eval", run_id, "--dataset", "demo", "--work", work, code=2)
    assert re.search(
        f"^error: run {run_id} has no weights in .*: it was trained without keeping them", done.stderr, re.M
    )
    assert not (work / "results" / "demo" / "missing" / f"{run_id}.json").exists()


def test_every_method_is_listed() -> None:
    text = here("methods").stdout
    listed = [line.split()[0] for line in text.splitlines() if re.match(r"  [a-z]", line)]
    assert listed == ["name", *METHODS, *CLASSICAL]
    assert "Trained heads all have: learning_rate=0.001" in text
    assert "fusion: concat, concat-linear, sum, decision, film, bi-gated" in text
