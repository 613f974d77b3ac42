"""Every command and Python block of README.md and docs/ runs, in little; the reference is what the code says."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs_run import DATASETS, PAGES, blocks


@pytest.fixture(scope="module")
def ran(demo_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    """The folder in which all pages were run, and what each command gave."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(demo_run[0], folder / "pipe-work")
    call = [sys.executable, "-m", "tests.docs_run"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder, env=environment(), timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


def environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PIPE_WORK", "PIPE_CACHE")}
    return {**inherited, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page))])
def test_every_block_of_a_page_runs(page: str, ran: tuple[Path, list[dict[str, object]]]) -> None:
    mine = [result for result in ran[1] if result["page"] == page]
    assert len(mine) >= len(list(blocks(page)))
    failed = [f"{r['command']}\n  exit code {r['code']}\n{r['said']}" for r in mine if r["code"] != 0]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_known_by_name_was_trained_on(name: str, ran: tuple[Path, list[dict[str, object]]]) -> None:
    """In its published layout and with real media, from the command line to a record."""
    folder, _ = ran
    records = [json.loads(path.read_text()) for path in (folder / "pipe-work" / "results" / name).glob("*.json")]
    finished = [record for record in records if record["status"] == "finished"]
    assert finished
    for record in finished:
        assert record["sizes"]["labeled"] > 0
        assert record["sizes"]["test"] > 0
        assert 0 <= record["metrics"]["target/fused"] <= 1


def test_the_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == module.reference(), "run `uv run python docs/make_reference.py`"
