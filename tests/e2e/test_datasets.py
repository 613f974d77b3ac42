"""Every data set known by name, in its published layout and with real media, from the command line to a record."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.datasets import DATASETS
from tests.e2e.conftest import pipe

MINIATURES = {
    "epic": "epic",
    "hac": "hac",
    "crema-d": "crema_d",
    "kinetics-sounds": "kinetics_sounds",
    "ucf101": "ucf101",
}
MODALITIES = {"crema-d": "video,audio", "kinetics-sounds": "video,audio", "ucf101": "video,flow"}


def run(*arguments: str) -> str:
    """A command in this process, which has PyTorch loaded already; returns what it printed."""
    done = CliRunner().invoke(app, [*arguments, "--workers", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_every_data_set_has_a_miniature() -> None:
    assert set(MINIATURES) == set(DATASETS) - {"demo"}


@pytest.mark.parametrize("name", MINIATURES)
def test_the_whole_way(name: str, tmp_path: Path) -> None:
    root, work = tmp_path / "data", tmp_path / "work"
    root.mkdir()
    importlib.import_module(f"tests.miniatures.{MINIATURES[name]}").write(root)
    where = ("--dataset", name, "--root", str(root), "--work", str(work))
    modalities = MODALITIES.get(name, "video,flow,audio")
    features = ("--modalities", modalities, "--weak", "1", "--strong", "1", "--backbones", "tiny")
    assert "every file is there" in run("data", "check", *where)
    run("extract", *where, *features)
    run(
        "train-heads",
        *where,
        *features,
        "--method",
        "erm",
        "--labels",
        "1",
        "--seeds",
        "1",
        "--steps",
        "3",
        "--eval-every",
        "3",
    )
    (folder,) = (work / "results").iterdir()
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert records
    for record in records:
        assert record["status"] == "finished"
        assert record["sizes"]["labeled"] > 0
        assert record["sizes"]["test"] > 0
        assert 0 <= record["metrics"]["target/fused"] <= 1


def test_a_data_set_that_is_half_there_is_said_and_exits_1(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    importlib.import_module("tests.miniatures.hac").write(root)
    gone = sorted((root / "HAC_Splits" / "animal" / "audio").iterdir())[0]
    gone.unlink()
    checked = pipe("data", "check", "--dataset", "hac", "--root", root, "--work", tmp_path / "work", code=1)
    assert gone.name in checked.stdout
    assert "github.com/donghao51/SimMMDG" in checked.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dataset", "hac"), "needs --root"),
        (("--dataset", "hac", "--root", "nowhere"), "is not a folder"),
        (
            ("--dataset", "ucf101", "--root", ".", "--data-option", "split=4"),
            "'4' is not a value of ucf101's option split",
        ),
        (("--dataset", "hca", "--root", "."), "Did you mean 'hac'?"),
    ],
)
def test_a_wrong_call_is_explained(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in pipe("data", "check", *options, "--work", tmp_path, code=2).stderr
