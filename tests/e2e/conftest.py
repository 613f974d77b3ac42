"""The command line as a user calls it, in processes of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from tests.in_process import extraction_in_process

# Small enough for seconds: 72 clips, 9 runs.
DEMO = ["demo", "--clips-per-class", "4", "--labels", "1", "--seeds", "1", "--steps", "60", "--workers", "2"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments]


def pipe(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and check its exit code."""
    done = subprocess.run(command(*map(str, arguments)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@dataclass(frozen=True)
class Said:
    """What a command printed."""

    stdout: str
    stderr: str


def here(*arguments: str | Path, code: int = 0) -> Said:
    """Run a command in this process, which has PyTorch loaded already, and check its exit code."""
    from pipeline.cli import app

    with extraction_in_process():
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == code, f"exit code {done.exit_code}\n{done.output}"
    return Said(done.stdout, done.stderr)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished small demo: its workspace and what it printed. Tests must not change it.

    The first of pytest's processes that needs it makes it; each has a copy of its own.
    """
    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine
    first, said, work = shared / "demo-of-all", shared / "demo-said.txt", mine / "demo"
    with FileLock(shared / "demo.lock"):
        if not said.exists():
            said.write_text(pipe(*DEMO, "--work", first).stdout)
    shutil.copytree(first, work)
    return work, said.read_text().replace(str(first), str(work))
