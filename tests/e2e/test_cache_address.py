"""A cache at an address, filled by a worker of a cluster that stands in another folder, and trained from."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.store import FeatureGroup, stored_groups
from tests.e2e.conftest import command

pytest.importorskip("s3fs", reason="pip install 'pipe-features[s3]'")
pytest.importorskip("distributed", reason="pip install 'pipe-features[cluster]'")
moto = pytest.importorskip("moto.server", reason="pip install 'pipe-features[test]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of moto and its libraries


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What a user of an object store has in the environment; the store is on loopback."""
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    own = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="features")
    yield {**os.environ, "PIPE_CACHE": "s3://features/all"}
    running.stop()


@pytest.mark.soak
def test_extract_by_a_cluster_and_train(
    demo_run: tuple[Path, str], tmp_path: Path, environment: dict[str, str]
) -> None:
    made, _ = demo_run
    shutil.copytree(made / "data", tmp_path / "here" / "data")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            command(*arguments, "--dataset", "demo", "--work", "here"),  # media paths are relative
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    own = ["--modalities", "audio", "--device", "auto"]
    assert "clips in" in run("extract", *own, "--cluster", "local:1")
    assert not (tmp_path / "here" / "cache").exists()
    (stored,) = stored_groups("s3://features/all", "demo")
    (local,) = [g for g in stored_groups(made / "cache", "demo") if g.identity.modality == "audio"]
    assert FeatureGroup(stored.place).digest() == FeatureGroup(local.place).digest()
    trained = run("train-heads", *own, "--method", "erm", "--labels", "1", "--seeds", "1", "--steps", "10")
    assert "3 runs, 3 of them trained now" in trained
