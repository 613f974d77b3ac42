"""Data sets known by name, from the command line; the whole way of each is walked in tests/e2e/test_docs.py."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from pipeline.datasets import DATASETS
from tests.docs_run import DATASETS as WALKED
from tests.e2e.conftest import pipe


def test_every_data_set_has_a_miniature() -> None:
    assert set(WALKED) == set(DATASETS) - {"demo"}


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
