"""The cache in an object store, by its protocol: a real S3 server on loopback; and in fsspec's memory."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache.layout import CacheError, ClipRecord, Status
from cache.leases import LeaseLost, Leases
from cache.places import LocalPlace, Place, place_of
from cache.store import FeatureGroup, UnitTaken, stored_groups
from tests.unit.test_cache_store import CLIPS, DIM, identity, values

pytest.importorskip("s3fs", reason="pip install 'pipe-features[s3]'")
moto = pytest.importorskip("moto.server", reason="pip install 'pipe-features[test]'")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(boto|moto|werkzeug|s3fs|aio).*"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # sockets that servers leave open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
QUICK = {"config_kwargs": {"connect_timeout": 1, "read_timeout": 2, "retries": {"max_attempts": 0}}}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server with nothing in it."""
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def root(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of this test, found by what a user would have in the environment."""
    environment = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # of servers of other tests
    name = request.node.name.partition("[")[0].replace("_", "-")[:60].strip("-")
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/cache"


@pytest.fixture(params=["s3", "memory", "local"])
def any_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("root"))
    return f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path)


def group_at(root: str, clips: tuple[str, ...] = CLIPS, **options: object) -> FeatureGroup:
    return FeatureGroup.open_or_create(place_of(root, **options), identity(), clips, DIM, 2, {"zarr": zarr.__version__})


def unit_of(group: FeatureGroup, unit: int, shift: float = 0.0) -> tuple[np.ndarray, list[ClipRecord]]:
    clips = group.unit_clips(unit)
    return np.stack([values(c) for c in clips]) + np.float16(shift), [ClipRecord(c, Status.PRESENT) for c in clips]


def extract(root: str, clips: tuple[str, ...] = CLIPS, pause: float = 0.0) -> None:
    group = group_at(root, clips)
    with Leases(group.place, beat_seconds=0.2, stale_seconds=2.0) as leases:
        while todo := group.todo_units():
            lease = leases.wait_for_any([f"{unit:06d}" for unit in todo], 1.0)
            if lease is not None:
                with lease:
                    unit = int(lease.name)
                    if group.commit_of(unit) is None:
                        time.sleep(pause)
                        group.write_unit(unit, *unit_of(group, unit), lease=lease)


def content(place: Place, folder: str = "") -> dict[str, bytes]:
    """All files of a group but its leases."""
    found = {}
    for name in place.list(folder):
        at = f"{folder}/{name}" if folder else name
        if at == "leases":
            continue
        if place.exists(at):
            found[at] = place.read_bytes(at)
        else:
            found |= content(place, at)
    return found


def test_what_was_written_is_read_back(any_root: str, tmp_path: Path) -> None:
    extract(any_root)
    group = group_at(any_root, (*CLIPS, "f"))
    assert group.todo_units() == [3]
    extract(any_root, (*CLIPS, "f"))
    table = FeatureGroup(group.place).load()
    assert np.array_equal(table.features, np.stack([values(c) for c in (*CLIPS, "f")]))
    assert group.damaged_units() == []
    assert [g.identity for g in stored_groups(any_root, "small")] == [identity()]
    extract(str(tmp_path / "local"))
    extract(str(tmp_path / "local"), (*CLIPS, "f"))
    same = group_at(str(tmp_path / "local"), (*CLIPS, "f"))
    assert content(group.place) == content(same.place), "the same bytes wherever they lie"
    assert group.place.list("leases") == []


def test_other_programs_read_it_with_plain_zarr(any_root: str) -> None:
    extract(any_root)
    stored = zarr.open_group(group_at(any_root).place.zarr_store(), mode="r")
    assert np.array_equal(np.asarray(stored["features"]), np.stack([values(c) for c in CLIPS]))
    assert [str(c) for c in np.asarray(stored["clip_id"])] == list(CLIPS)


def test_missing_and_damaged_chunks_are_found(any_root: str) -> None:
    extract(any_root)
    group = group_at(any_root)
    data = group.place.read_bytes("features/c/0/1/0")
    group.place.write_atomically("features/c/0/1/0", data[:-1] + bytes([data[-1] ^ 1]))
    group.place.delete("features/c/1/0/0")
    assert group.damaged_units() == [0, 1]
    with pytest.raises(CacheError, match=r"damaged chunk|chunk fails its crc32c"):
        group.load()
    group.forget_unit(0)
    with pytest.raises(CacheError, match=r"chunk (of features )?is missing"):
        group.load()
    group.forget_unit(1)
    extract(any_root)
    assert group.damaged_units() == []


def create_together(start: threading.Barrier, place: Place, name: str, number: int) -> bool:
    start.wait()
    return place.create_exclusively(name, b"%d" % number)


def test_of_many_that_create_one_file_one_succeeds(any_root: str) -> None:
    place = place_of(any_root)
    place.make()
    for round_ in range(3):
        start = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(create_together, start, place, f"leases/a{round_}", i) for i in range(4)]
        won = [number for number, future in enumerate(done) if future.result()]
        assert len(won) == 1
        assert place.read_bytes(f"leases/a{round_}") == b"%d" % won[0]


def test_leases_and_first_commits(any_root: str) -> None:
    group = group_at(any_root)
    clock = [0.0]
    one = Leases(group.place, beats=False)
    two = Leases(group.place, beats=False, clock=lambda: clock[0])
    lease = one.claim("000000")
    assert lease is not None
    assert two.claim("000000") is None
    one.beat()
    clock[0] += 100
    assert two.claim("000000") is None
    clock[0] += 100
    successor = two.claim("000000")
    assert successor is not None
    with pytest.raises(LeaseLost):
        group.write_unit(0, *unit_of(group, 0), lease=lease)
    assert group.todo_units() == [0, 1, 2]
    group.write_unit(0, *unit_of(group, 0, 1.0), lease=successor)
    group.write_unit(0, *unit_of(group, 0, 1.0), lease=successor)
    with pytest.raises(UnitTaken):
        group.write_unit(0, *unit_of(group, 0), lease=successor)
    one.close()
    two.close()
    assert group.place.list("leases") == []


def test_a_process_that_is_killed_in_the_middle_costs_its_unit(root: str) -> None:
    context = multiprocessing.get_context("spawn")
    clips = tuple(f"clip{i:02d}" for i in range(16))
    group = group_at(root, clips)
    process = context.Process(target=extract, args=(root, clips, 0.1))
    process.start()
    deadline = time.monotonic() + 60
    while len(group.todo_units()) > 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert group.damaged_units() == []
    done = group.num_units - len(group.todo_units())
    assert done >= 2
    extract(root, clips)
    assert np.array_equal(group.load().features, np.stack([values(c) for c in clips]))


def test_a_server_that_vanishes_is_said(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    own.start()
    host, port = own.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    import boto3

    boto3.client("s3").create_bucket(Bucket="vanishes")
    where = "s3://vanishes/cache"
    group = group_at(where, **QUICK)
    leases = Leases(group.place, beats=False)
    lease = leases.claim("000000")
    assert lease is not None
    own.stop()
    for act in (
        lambda: group.write_unit(0, *unit_of(group, 0), lease=lease),
        lambda: group.load(),
        lambda: leases.claim("000001"),
        lambda: group_at(where, **QUICK),
        lambda: stored_groups(place_of(where, **QUICK), "small"),
    ):
        with pytest.raises(CacheError, match=r"s3://vanishes/cache.*is the server there"):
            act()
    leases.beat()
    assert leases.beat_error is not None
    lease.release()


def test_a_bucket_that_is_not_there_is_said(root: str) -> None:
    with pytest.raises(CacheError, match=r"s3://no-such-bucket/cache/.*bucket and credentials"):
        group_at("s3://no-such-bucket/cache")


def test_a_server_that_ignores_conditions_gets_one_writer_only(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old S3 servers take a put with If-None-Match for any other put."""
    from cache.remote import RemotePlace

    monkeypatch.setattr(RemotePlace, "create_exclusively", lambda self, name, data, durable=True: True)
    with pytest.raises(CacheError, match=r"only one process may write here"):
        Leases(place_of(f"{root}/other"))


def test_storage_without_exclusive_creation_gets_one_writer_only(tmp_path: Path) -> None:
    group = group_at(f"local://{tmp_path}", auto_mkdir=True)
    for unit in group.todo_units():
        group.write_unit(unit, *unit_of(group, unit))
    assert np.array_equal(group.load().features, np.stack([values(c) for c in CLIPS]))
    assert FeatureGroup(tmp_path / identity().folder).damaged_units() == []
    with pytest.raises(CacheError, match="only one process may write here"):
        Leases(group.place)


def test_addresses_that_nothing_opens_are_said() -> None:
    with pytest.raises(CacheError, match=r"nowhere://bucket cannot be opened .*pip install"):
        place_of("nowhere://bucket")


def test_a_place_travels_to_other_processes(root: str, tmp_path: Path) -> None:
    place = place_of(root, **QUICK)
    again = pickle.loads(pickle.dumps(place.child("a")))
    place.create_exclusively("a/b", b"1")
    assert again.read_bytes("b") == b"1"
    assert again.options == QUICK
    assert place_of(again) is again
    assert isinstance(place_of(f"file://{tmp_path}"), LocalPlace)


def test_a_remote_group_has_no_folder(root: str) -> None:
    with pytest.raises(CacheError, match="is not a local folder"):
        _ = group_at(root).path
