"""kill -9 and Ctrl-C in every stage: the next call goes on and ends with the numbers of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cache.store import FeatureGroup
from tests.e2e.conftest import DEMO, command, pipe
from tests.e2e.test_demo import results

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def files(work: Path, pattern: str) -> int:
    return len(list(work.glob(pattern)))


def interrupt(work: Path, reached: Callable[[], bool], how: signal.Signals) -> str:
    """Start the demo, wait until a stage has got somewhere, stop it, and see that no process stays behind."""
    process = subprocess.Popen(
        command(*DEMO, "--work", str(work)),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, f"the demo ended before the stage was reached: {process.stderr.read()}"
        assert time.monotonic() < deadline, "the stage was never reached"
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "workers outlived their parent"
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    return errors


def features(work: Path) -> dict[str, str]:
    """Digest of every modality's features and states."""
    return {p.name.split("-")[0]: FeatureGroup(p).digest() for p in (work / "cache" / "demo").glob("*.zarr")}


def test_killed_in_every_stage_it_ends_with_the_same_numbers(demo_run: tuple[Path, str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    interrupt(work, lambda: files(work, "data/demo/*/*/*.mp4") >= 10, signal.SIGKILL)
    assert not (work / "data" / "demo" / "manifest.csv").exists()
    interrupt(work, lambda: files(work, "cache/demo/*.zarr/commits/*.json") >= 1, signal.SIGKILL)
    assert files(work, "cache/demo/*.zarr/commits/*.json") < 9
    interrupt(work, lambda: files(work, "results/demo/.lock") >= 1, signal.SIGKILL)
    message = interrupt(work, lambda: files(work, "results/demo/*.json") >= 1, signal.SIGINT)
    assert "the same command goes on from here" in message
    assert "Traceback" not in message
    there = results(work)
    pipe(*DEMO, "--work", work)
    assert features(work) == features(demo_run[0])
    undisturbed = results(demo_run[0])
    assert results(work) == undisturbed
    assert all(undisturbed[run] == result for run, result in there.items())


def test_two_processes_share_an_extraction_and_one_of_them_is_killed(
    demo_run: tuple[Path, str], tmp_path: Path
) -> None:
    manifest = demo_run[0] / "data" / "demo" / "manifest.csv"
    arguments = ["extract", "--dataset", str(manifest), "--work", str(tmp_path), "--workers", "1"]
    both = [
        subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    deadline = time.monotonic() + 120
    while not files(tmp_path, "cache/demo/*.zarr/commits/*.json") and time.monotonic() < deadline:
        time.sleep(0.02)
    both[0].kill()
    both[0].communicate()
    said, _ = both[1].communicate(timeout=240)
    assert both[1].returncode == 0
    assert "clips in" in said
    for path in (demo_run[0] / "cache" / "demo").glob("*.zarr"):
        mine = FeatureGroup(tmp_path / "cache" / "demo" / path.name)
        assert mine.digest() == FeatureGroup(path).digest()
        assert not mine.damaged_units()
        assert not list((mine.path / "leases").glob("unit-*"))
