"""kill -9 and Ctrl-C in extraction and training: the next call goes on and ends with the undisturbed numbers.

Making the demo's data is interrupted in tests/unit/test_demo_data.py.
"""

from __future__ import annotations

import os
import random
import shutil
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


def test_killed_again_and_again_it_ends_with_the_same_numbers(demo_run: tuple[Path, str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(demo_run[0] / "data", work / "data")
    interrupt(work, lambda: files(work, "cache/demo/*.zarr/commits/*.json") >= 1, signal.SIGKILL)
    assert files(work, "cache/demo/*.zarr/commits/*.json") < 9
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


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_at_random_moments_an_extraction_ends_as_an_undisturbed_one(
    demo_run: tuple[Path, str], tmp_path: Path, workers: int
) -> None:
    """67 kills for each number of workers, 200 in all: of the whole group, or of the parent alone."""
    undisturbed, draw = features(demo_run[0]), random.Random(workers)
    manifest = demo_run[0] / "data" / "demo" / "manifest.csv"
    call = command("extract", "--dataset", str(manifest), "--work", str(tmp_path), "--workers", str(workers))
    kills = ends = 0
    while kills < 67 or not ends:
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            assert process.wait(timeout=draw.uniform(2.0, 9.0) if kills < 67 else 300.0) == 0
        except subprocess.TimeoutExpired:
            kills += 1
            if draw.random() < 0.5:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            continue
        ends += 1
        assert features(tmp_path) == undisturbed
        for path in (tmp_path / "cache" / "demo").glob("*.zarr"):
            group = FeatureGroup(path)
            assert not group.damaged_units()
            assert len({*group.clip_ids} - {""}) == sum(clip_id != "" for clip_id in group.clip_ids) == 72
        shutil.rmtree(tmp_path / "cache")
