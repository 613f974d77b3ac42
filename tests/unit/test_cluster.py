"""Workers of a cluster: which device is theirs, and SLURM jobs, with scripts that stand for SLURM's commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.cluster import connect
from pipeline.errors import UsageError
from pipeline.extraction import pinned_device

SBATCH = """#!/bin/bash
[ "$1" = --test-only ] && exit 0
copy=$(mktemp -p {folder}); cp "${{!#}}" "$copy"; cp "${{!#}}" {folder}/script
setsid bash "$copy" > {folder}/said 2>&1 &
echo "Submitted batch job $!"
"""
SCRIPT = """
import pipeline.cluster
from pipeline.errors import UsageError

pipeline.cluster.QUEUE_SECONDS = {seconds}
if __name__ == "__main__":
    try:
        with pipeline.cluster.connect("slurm:1") as cluster:
            from pipeline.units import _worker_name

            print(cluster.workers, cluster.client.submit(_worker_name).result(timeout=30))
    except UsageError as error:
        print("UsageError", error)
"""
SCANCEL = """#!/bin/bash
for job in "$@"; do kill -- -"$job"; done 2>/dev/null
exit 0
"""


@pytest.mark.parametrize(
    ("seen", "name", "worker", "device"),
    [
        (4, "auto", "2", "cuda:2"),
        (4, "cuda", "SLURMCluster-5", "cuda:1"),
        (4, "auto", "tcp://10.0.0.1:4004", "cuda:0"),  # a port is no number of a worker
        (1, "auto", "7", "cuda:0"),
        (4, "cuda:3", "0", "cuda:3"),
        (4, "cpu", "1", "cpu"),
        (0, "auto", "1", "cpu"),
    ],
)
def test_workers_of_one_machine_take_different_gpus(
    seen: int, name: str, worker: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    assert pinned_device(name, worker) == device


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with commands that stand for SLURM's."""
    pytest.importorskip("dask_jobqueue", reason="pip install 'pipe-features[slurm]'")
    for name, text in {"sbatch": SBATCH.format(folder=tmp_path), "scancel": SCANCEL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def connected(slurm: Path, seconds: float = 60.0, **settings: str) -> str:
    """What a process says that connects to one job; of its own, for dask leaves sockets to the end of its process."""
    own = {f"DASK_JOBQUEUE__SLURM__{name.upper()}": value for name, value in settings.items()}
    environment = {**os.environ, **own, "PATH": f"{slurm}:{os.environ['PATH']}"}
    call = [sys.executable, "-c", SCRIPT.format(seconds=seconds)]
    return subprocess.run(call, capture_output=True, text=True, env=environment, timeout=120, check=False).stdout


def test_a_slurm_job_is_a_worker_and_ends_with_the_command(slurm: Path) -> None:
    said = connected(slurm, cores="2", memory="1GB", interface="lo", processes="1")
    assert said.split() == ["1", "SLURMCluster-0"]  # one task at a time, whatever the cores
    assert "#SBATCH --cpus-per-task=2" in (slurm / "script").read_text()
    assert "End worker" in (slurm / "said").read_text() or "Closing Nanny" in (slurm / "said").read_text()


def test_what_is_wrong_with_slurm_is_said(slurm: Path) -> None:
    assert re.search(r"slurm:1: .*cores.*jobqueue\.yaml", connected(slurm))
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    job = {"cores": "1", "memory": "1GB", "interface": "lo"}
    assert "slurm:1: SLURM refuses the job: invalid partition" in connected(slurm, **job)
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'Submitted batch job 7'\n")  # one that stays in the queue
    assert "slurm:1: no worker has come within 2 s" in connected(slurm, 2.0, **job)
    (slurm / "sbatch").unlink()
    assert "there is no sbatch on this machine" in connected(slurm, **job)


def test_another_address_is_refused() -> None:
    with pytest.raises(UsageError, match=r"write tcp://HOST:PORT .* slurm:N"), connect("slurm"):
        pass
