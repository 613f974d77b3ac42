"""`pipe sweep` and what follows: the same numbers however the work is cut, and clear words when it cannot be done."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from tests.e2e.conftest import command, pipe

AXES = ("labels=1,2", "method=erm,ssmdg", "seed=0..1", "target=cartoon", "modalities=va,vfa", "steps=6", "eval_every=3")
RUNS = 16


def run(*arguments: str | Path, code: int = 0) -> str:
    """A command in this process, which has PyTorch loaded already; returns what it printed."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def work(demo_run: tuple[Path, str], tmp_path: Path) -> Path:
    """A workspace with the demo's data and features, and no results."""
    for name in ("data", "cache"):
        (tmp_path / name).symlink_to(demo_run[0] / name, target_is_directory=True)
    return tmp_path


def numbers(work: Path) -> dict[str, object]:
    """Everything of the results that must not depend on how the work was cut."""
    found = {}
    for path in (work / "results" / "demo").glob("*.json"):
        plain = json.loads(path.read_text())
        found[plain["run_id"]] = (plain["metrics"], plain["curves"], plain["status"], plain.get("confusion"))
    return found


@pytest.fixture(scope="module")
def whole(demo_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The sweep in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("data", "cache"):
        (folder / name).symlink_to(demo_run[0] / name, target_is_directory=True)
    text = run("sweep", "--dataset", "demo", "--work", folder, "--workers", "1", *AXES)
    assert f"{RUNS} runs: {RUNS} trained now, 0 were there already" in text
    found = numbers(folder)
    assert len(found) == RUNS
    return found


def test_other_stacks_give_the_same_numbers(work: Path, whole: dict[str, object]) -> None:
    run("sweep", "--dataset", "demo", "--work", work, "--workers", "1", "--stack", "1", *AXES)
    assert numbers(work) == whole


def test_pieces_add_up_and_only_what_is_missing_runs(work: Path, whole: dict[str, object]) -> None:
    common = ("sweep", "--dataset", "demo", "--work", work, "--workers", "1")
    part = [a if not a.startswith("labels") else "labels=2" for a in AXES]
    assert "8 runs: 8 trained now" in run(*common, *part)
    assert f"{RUNS} runs, 8 of them finished, 8 to train" in run(*common, *AXES, "--dry-run")
    assert f"{RUNS} runs: 8 trained now, 8 were there already" in run(*common, *AXES)
    assert f"{RUNS} runs: 0 trained now" in run(*common, *AXES)
    assert numbers(work) == whole


def test_a_kill_in_the_middle_loses_stacks_and_changes_nothing(work: Path, whole: dict[str, object]) -> None:
    arguments = ["sweep", "--dataset", "demo", "--work", str(work), "--workers", "1", "--stack", "2", *AXES]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while len(numbers(work)) < 4 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert set(numbers(work)) <= set(whole)
    run(*arguments)
    assert numbers(work) == whole


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs the extra [cluster]")
@pytest.mark.soak
def test_two_dask_workers_give_the_same_numbers(work: Path, whole: dict[str, object]) -> None:
    text = pipe("sweep", "--dataset", "demo", "--work", work, "--cluster", "local:2", *AXES).stdout
    assert f"{RUNS} runs: {RUNS} trained now" in text
    assert numbers(work) == whole


def test_a_file_its_report_and_the_queries(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "parts.toml"
    path.write_text(
        """
[sweep]
title = "What each part of SSMDG does"
source = "a test"
dataset = "demo"
not_built = ["Some Other Method"]

[run]
labels = "1"
steps = 6
eval_every = 3

[axes]
methods = ["erm", "ssmdg"]
targets = ["cartoon", "street"]
seeds = [0, 1]

[[cases]]
name = "all of it"

[[cases]]
name = "without prototypes"
methods = ["ssmdg"]
weight_prototype = 0.0

[[published]]
method = "ssmdg"
percent = 12.5
source = "nobody, table 0"
difference = "nothing is comparable"
"""
    )
    text = run("sweep", path, "--work", work, "--workers", "1")
    assert "12 runs: 12 trained now" in text
    assert "Some Other Method" in text
    run("report", "parts", "--work", work)
    folder = work / "report" / "demo" / "parts"
    for name in ("results.md", "report.html", "tables.tex"):
        page = (folder / name).read_text(encoding="utf-8")
        assert "What each part of SSMDG does" in page or name == "tables.tex"
        assert "12.5" in page
        assert "Some Other Method" in page
    assert "without prototypes" in (folder / "report.html").read_text(encoding="utf-8")
    (work / "results" / "demo" / "0000.json").write_text("{}")  # as of another version
    assert "1 files in" in run("report", "--dataset", "demo", "--work", work)
    refused = run("report", "part", "--dataset", "demo", "--work", work, code=2)
    assert "Did you mean 'parts'" in refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "demo"), "there is nothing to sweep"),
        (("labels=5",), "--dataset is missing"),
        (("--dataset", "demo", "metod=erm"), "neither a setting nor a hyperparameter. Did you mean 'method'"),
        (("--dataset", "demo", "threshhold=0.5"), "'threshhold' is neither a setting nor"),
        (("--dataset", "demo", "labels=5,5"), "axis labels names a value twice"),
        (("--dataset", "demo", "target=mars"), "'mars' is not a domain of demo"),
        (("--dataset", "demo", "nothing-here"), "there is no sweep file 'nothing-here'"),
        (("--dataset", "demo", "nothing.toml"), "configuration nothing.toml does not exist"),
        (("--dataset", "demo", "seed=0", "--cluster", "somewhere"), "--cluster somewhere: write tcp://HOST:PORT"),
        (("--dataset", "demo", "seed=0", "--view-seed", "7"), "there are no video features of demo"),
    ],
)
def test_what_cannot_be_swept_is_said(work: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in run("sweep", *arguments, "--work", work, code=2)
    assert not (work / "results").exists() or not numbers(work)


@pytest.mark.parametrize("trouble", ["results", "weights"])
def test_a_full_disk_is_said_and_nothing_is_lost(
    work: Path, whole: dict[str, object], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    arguments = ("sweep", "--dataset", "demo", "--work", work, "--workers", "1", "--stack", "2", *AXES)
    with monkeypatch.context() as patch:
        writes = []

        def full(descriptor: int) -> None:
            writes.append(descriptor)
            if len(writes) > 9:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr("cache.layout.os.fsync" if trouble == "results" else "pipeline.weights.os.fsync", full)
        text = run(*arguments, code=2)
    assert "error: the disk is full" in text
    assert "finished work is kept" in text
    kept = numbers(work)
    assert 0 < len(kept) < RUNS
    assert not list(work.rglob("*.tmp"))
    assert f"{RUNS - len(kept)} trained now, {len(kept)} were there already" in run(*arguments)
    assert numbers(work) == whole


def test_a_second_sweep_waits_its_turn(work: Path) -> None:
    from pipeline.locks import only_writer

    with only_writer(work / "results" / "demo", "training into"):
        done = subprocess.run(
            command("sweep", "--dataset", "demo", "--work", str(work), "seed=0", "steps=2", "labels=1"),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    assert "another pipe process is training into" in done.stderr


def test_the_same_from_a_notebook(work: Path) -> None:
    from pipeline import report, sweep

    axes = {"labels": 1, "method": ["erm"], "seed": range(2), "target": "cartoon", "steps": 3, "eval_every": 3}
    frame = sweep(dataset="demo", work=work, workers=1, name="mine", **axes)
    assert len(frame) == 2
    assert set(frame["method"]) == {"erm"}
    assert frame["target/fused"].between(0, 1).all()
    assert frame.attrs["sweep"] == "mine"
    again = report("mine", work=work)
    assert list(again["run_id"]) == list(frame["run_id"])
    assert Path(again.attrs["paths"]["report.html"]).exists()
