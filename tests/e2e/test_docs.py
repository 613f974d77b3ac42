"""Every command and Python block of README.md and docs/ runs, in little; the reference is what the code says.

The suite runs the tutorial and looks at the options of all other commands; `-m soak` runs all pages, in three minutes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs_run import DATASETS, PAGES, arguments, blocks, commands, parses
from tests.e2e.conftest import here


def run(pages: Sequence[str], demo: Path, folder: Path) -> list[dict[str, object]]:
    """What each command of some pages gave."""
    shutil.copytree(demo, folder / "pipe-work")
    call = [sys.executable, "-m", "tests.docs_run", *pages]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder, env=environment(), timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PIPE_WORK", "PIPE_CACHE")}
    return {**inherited, "PYTHONPATH": str(ROOT)}


def check(page: str, results: list[dict[str, object]]) -> None:
    mine = [result for result in results if result["page"] == page]
    assert len(mine) >= len(list(blocks(page))) > 0
    failed = [f"{r['command']}\n  exit code {r['code']}\n{r['said']}" for r in mine if r["code"] != 0]
    assert not failed, "\n".join(failed)


def test_the_tutorial_runs(demo_run: tuple[Path, str], tmp_path: Path) -> None:
    check("docs/tutorial.md", run(["docs/tutorial.md"], demo_run[0], tmp_path))


@pytest.mark.soak
def test_every_block_runs_and_every_data_set_is_trained_on(demo_run: tuple[Path, str], tmp_path: Path) -> None:
    results = run([], demo_run[0], tmp_path)
    for page in PAGES:
        if list(blocks(page)):
            check(page, results)
    for name in DATASETS:
        trained(tmp_path / "pipe-work" / "results" / name)


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page))])
def test_every_command_of_a_page_is_one(page: str) -> None:
    for language, text in blocks(page):
        for command in [] if language == "python" else commands(text):
            if " | " not in command and re.match(r"(uv run )?pipe ", command):
                words, _ = arguments(re.sub(r" (RUN|GROUP|3f2a)(?= |$)", " name", command))
                assert parses(words) == 0


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_in_its_published_layout_is_trained_on(name: str, tmp_path: Path) -> None:
    """With real media, from the command line to a record."""
    importlib.import_module(f"tests.miniatures.{name.replace('-', '_')}").write(tmp_path)
    where = ("--dataset", name, "--root", tmp_path, "--work", tmp_path / "work")
    modalities = {"crema-d": "video,audio", "kinetics-sounds": "video,audio", "ucf101": "video,flow"}
    own = ("--modalities", modalities.get(name, "video,flow,audio"), "--weak", "1", "--strong", "1")
    assert "every file is there" in here("data", "check", *where).stdout
    here("extract", *where, *own, "--backbones", "tiny", "--workers", "1")
    few = ("--labels", "1", "--seeds", "1", "--steps", "3", "--eval-every", "3", "--workers", "1")
    here("train-heads", *where, *own, "--backbones", "tiny", "--method", "erm", *few)
    (folder,) = (tmp_path / "work" / "results").iterdir()
    trained(folder)


def trained(folder: Path) -> None:
    """See that a folder has finished runs, with clips on both sides."""
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
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
