"""Several processes that write one group, and storage that fails: nothing is lost, mixed or half there."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zarr

import cache.places
from cache.layout import CacheError, ClipRecord, Status
from cache.leases import LeaseLost, Leases
from cache.places import LocalPlace
from cache.store import FeatureGroup, UnitTaken
from tests.unit.test_cache_store import CLIPS, DIM, UNIT, VIEWS, chunk, filled, identity, open_group, values, write

MANY = tuple(f"clip{i:03d}" for i in range(90))


def unit_of(group: FeatureGroup, unit: int, shift: float = 0.0) -> tuple[np.ndarray, list[ClipRecord]]:
    clips = group.unit_clips(unit)
    return np.stack([values(c) for c in clips]) + np.float16(shift), [ClipRecord(c, Status.PRESENT) for c in clips]


def extract(root: Path, clips: tuple[str, ...], pause: float = 0.0) -> None:
    """The loop of one of many processes: whatever is free, then whatever others hold, until nothing is left."""
    group = open_group(root, clips)
    with Leases(group.place, beat_seconds=0.1, stale_seconds=2.0) as leases:
        while todo := group.todo_units():
            lease = leases.wait_for_any([f"{unit:06d}" for unit in todo], 1.0)
            if lease is None:
                continue
            with lease:
                unit = int(lease.name)
                if group.commit_of(unit) is None:
                    time.sleep(pause)
                    group.write_unit(unit, *unit_of(group, unit), lease=lease)


def content(group: Path) -> dict[str, bytes]:
    """Every file of a group but what says who works on it."""
    files = {str(p.relative_to(group)): p.read_bytes() for p in group.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if not name.startswith(("leases/", ".tmp/"))}


def context() -> multiprocessing.context.ForkServerContext:
    """Processes that start within milliseconds, from a server that has imported what they need."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([__name__])
    return made


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = context().Process(target=target, args=arguments)
    process.start()
    return process


def finish(workers: Sequence[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


def kill_until_done(root: Path, workers: int, kills: int, seed: int) -> int:
    """Run workers and kill one of them at a random moment, again and again; the number of kills."""
    rng, done, pause = random.Random(seed), 0, 0.02 * workers
    running = [start(extract, root, MANY, pause) for _ in range(workers)]
    while done < kills:
        time.sleep(rng.uniform(0.0, 0.15))
        victim = rng.randrange(workers)
        if not running[victim].is_alive():  # everything is extracted
            break
        running[victim].kill()
        running[victim].join()
        done += running[victim].exitcode == -signal.SIGKILL
        running[victim] = start(extract, root, MANY, pause)
    finish(running)
    return done


def check_equal(root: Path, undisturbed: Path) -> None:
    group, wanted = open_group(root, MANY), open_group(undisturbed, MANY)
    assert group.damaged_units() == group.todo_units() == []
    assert content(group.path) == content(wanted.path)


def test_processes_share_a_group_and_kills_leave_no_trace(tmp_path: Path) -> None:
    extract(tmp_path / "alone", MANY)
    assert kill_until_done(tmp_path / "shared", workers=3, kills=20, seed=1) >= 3
    check_equal(tmp_path / "shared", tmp_path / "alone")


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_two_hundred_kills_leave_no_trace(tmp_path: Path, workers: int) -> None:
    extract(tmp_path / "alone", MANY)
    kills = 0
    while kills < 200:
        shutil.rmtree(tmp_path / "shared", ignore_errors=True)
        kills += kill_until_done(tmp_path / "shared", workers, 200 - kills, seed=kills)
        check_equal(tmp_path / "shared", tmp_path / "alone")


def grow_in_steps(root: Path, first: int) -> None:
    for last in range(first, len(MANY) + 1, 7):
        open_group(root, MANY[:last])
    extract(root, MANY)


def test_processes_that_make_and_grow_one_group_at_once(tmp_path: Path) -> None:
    finish([start(grow_in_steps, tmp_path, first) for first in (1, 4, 6)])
    group = open_group(tmp_path, MANY)
    ids = [c for c in group.clip_ids if c]
    assert sorted(ids) == sorted(MANY)
    assert group.damaged_units() == group.todo_units() == []
    assert np.array_equal(group.load().select(MANY)[0], np.stack([values(c) for c in MANY]))
    plain = zarr.open_group(str(group.path), mode="r")
    assert tuple(str(c) for c in np.asarray(plain["clip_id"])) == group.clip_ids


def write_rows(path: Path, parity: int) -> None:
    array = zarr.open_array(str(path), mode="r+")
    for row in range(parity, array.shape[0], 2):
        array[row] = row + 1


def test_zarr_loses_rows_that_two_processes_write_into_one_chunk(tmp_path: Path) -> None:
    """zarr-python#3682: a row is written by reading its chunk, changing it and writing that. Ours are whole units."""
    rows = 400
    zarr.create_array(str(tmp_path / "rows"), shape=(rows, 4), chunks=(100, 4), dtype="float32", fill_value=0)
    finish([start(write_rows, tmp_path / "rows", parity) for parity in (0, 1)])
    stored = np.asarray(zarr.open_array(str(tmp_path / "rows"), mode="r")[:])
    lost = int((stored[:, 0] != np.arange(rows) + 1).sum())
    finish([start(extract, tmp_path / "ours", MANY) for _ in range(2)])
    table = open_group(tmp_path / "ours", MANY).load()
    assert np.array_equal(table.features, np.stack([values(c) for c in MANY]))
    if not lost:
        pytest.skip("this version of zarr lost no row here")
    assert lost > rows // 100


def test_a_lost_lease_stops_a_writer_before_its_first_chunk(tmp_path: Path) -> None:
    group = open_group(tmp_path)
    with Leases(group.place, beats=False) as leases:
        lease = leases.claim("000000")
        assert lease is not None
        (group.path / "leases" / "000000.000001.lease").unlink()
        with pytest.raises(LeaseLost):
            group.write_unit(0, *unit_of(group, 0), lease=lease)
    assert not chunk(group, 0).exists()
    assert group.todo_units() == [0, 1, 2]


class LostAfter:
    """A lease that is there for a number of checks."""

    def __init__(self, checks: int) -> None:
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise LeaseLost("taken over")


def test_a_lost_lease_stops_a_writer_before_its_commit(tmp_path: Path) -> None:
    group = open_group(tmp_path)
    with pytest.raises(LeaseLost):
        group.write_unit(0, *unit_of(group, 0), lease=LostAfter(1))
    assert chunk(group, 0).exists()
    assert group.todo_units() == [0, 1, 2]
    group.write_unit(0, *unit_of(group, 0, 1.0), lease=LostAfter(100))
    assert group.todo_units() == [1, 2]
    assert group.damaged_units() == []


def test_the_first_commit_wins(tmp_path: Path) -> None:
    group = filled(tmp_path)
    before = content(group.path)
    group.write_unit(0, *unit_of(group, 0), lease=LostAfter(100))
    with pytest.raises(UnitTaken, match=r"unit 0 of .* was committed by another process, with other features"):
        group.write_unit(0, *unit_of(group, 0, 1.0), lease=LostAfter(100))
    features, records = unit_of(group, 0)
    features[1] = np.nan
    with pytest.raises(UnitTaken):
        group.write_unit(0, features, [records[0], ClipRecord(records[1].clip_id, Status.FAILED)], lease=LostAfter(100))
    assert content(group.path) == before


def test_a_unit_of_other_clips_is_todo(tmp_path: Path) -> None:
    """Should two processes grow a group past each other, no features are taken for another clip's."""
    group = filled(tmp_path)
    commits = group.path / "commits"
    shutil.copy(commits / "000001.json", commits / "000000.json")
    assert group.todo_units() == [0]
    assert np.isnan(group.load().features[:2]).all()
    assert sorted(group.records()) == ["c", "d", "e"]
    write(group, 0)
    assert group.damaged_units() == group.todo_units() == []


def test_the_unit_of_who_came_first_counts(tmp_path: Path) -> None:
    """A group half made by a process with units of another size."""
    path = open_group(tmp_path, unit=UNIT + 1).path
    (path / "clips.json").unlink()
    (path / "status" / "zarr.json").unlink()
    group = filled(tmp_path)
    assert group.unit == UNIT + 1
    assert np.array_equal(group.load().features, np.stack([values(c) for c in CLIPS]))


def test_another_dtype_of_the_arrays_is_refused(tmp_path: Path) -> None:
    path = open_group(tmp_path).path
    text = (path / "features" / "zarr.json").read_text()
    (path / "features" / "zarr.json").write_text(text.replace("float16", "float32"))
    with pytest.raises(
        CacheError, match="features are float32 in units of 2 clips, the rest of the group says float16"
    ):
        FeatureGroup(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("this user may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no room."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return path


def test_a_full_disk_while_a_group_is_made(small_disk: Path) -> None:
    ballast = fill(small_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        open_group(small_disk)
    assert caught.value.filename
    ballast.unlink()
    assert np.array_equal(filled(small_disk).load().features, np.stack([values(c) for c in CLIPS]))


def test_a_full_disk_while_units_are_written(small_disk: Path) -> None:
    group = open_group(small_disk)
    with Leases(group.place, beats=False) as leases, leases.claim("000000") as lease:  # type: ignore[union-attr]
        write(group, 1)
        before = content(group.path)
        ballast = fill(small_disk)
        with pytest.raises(OSError, match="No space left"):
            group.write_unit(0, *unit_of(group, 0), lease=lease)
        with pytest.raises(OSError, match="No space left"):
            leases.claim("000002")
        leases.beat()
        assert leases.beat_error is None, "a heartbeat needs no new block"
        assert lease is not None
        lease.check()
        assert group.todo_units() == [0, 2]
        assert group.damaged_units() == []
        assert before.items() <= content(group.path).items()
        ballast.unlink()
        group.write_unit(0, *unit_of(group, 0), lease=lease)
    write(group, 2)
    assert np.array_equal(group.load().features, np.stack([values(c) for c in CLIPS]))


def test_a_read_only_folder_is_read_and_not_written(small_disk: Path) -> None:
    group = open_group(small_disk)
    write(group, 0)
    leases = Leases(group.place, beats=False)
    lease = leases.claim("000001")
    assert lease is not None
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    again = open_group(small_disk)
    assert again.todo_units() == [1, 2]
    assert again.load().digest == group.digest()
    for act in (
        lambda: write(group, 1),
        lambda: group.write_unit(1, *unit_of(group, 1), lease=lease),
        lambda: open_group(small_disk, (*CLIPS, "f")),
        lambda: open_group(small_disk, settings={"size": 1}),
        lambda: Leases(group.place, beats=False).claim("000002"),
        lambda: leases.claim("000002"),
    ):
        with pytest.raises(OSError, match="Read-only file system") as caught:
            act()
        assert str(small_disk) in str(caught.value.filename)
    leases.beat()
    assert leases.beat_error is not None
    lease.release()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert leases.claim("000001") is not None, "what could not be given back is taken anew"
    assert filled(small_disk).todo_units() == []


def test_a_mount_that_vanishes(small_disk: Path) -> None:
    group = open_group(small_disk)
    write(group, 0)
    with Leases(group.place, beats=False) as leases:
        lease = leases.claim("000001")
        assert lease is not None
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
        try:
            for act in (
                lambda: write(group, 1),
                lambda: group.write_unit(1, *unit_of(group, 1), lease=lease),
                lambda: leases.claim("000002"),
                lease.check,
            ):
                with pytest.raises(CacheError, match=r"is not there .any more.; .*mount it again"):
                    act()
            leases.beat()
            assert leases.beat_error is not None
            assert list(small_disk.iterdir()) == [], "nothing is written under the mount"
        finally:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small_disk)], check=True)


FAULTS = [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.ESTALE]


@pytest.mark.parametrize("code", FAULTS)
def test_storage_that_fails_at_any_write_leaves_a_valid_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Every write of making, growing, claiming and writing a unit fails once; the next attempt goes on."""
    real, count = cache.places._write_file, [0]

    def failing(path: Path, data: bytes, durable: bool) -> None:
        count[0] -= path.parent.is_dir()  # otherwise the folder is made first
        if count[0] == 0 and path.parent.is_dir():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(descriptor, data[: len(data) // 2])
            os.close(descriptor)
            raise OSError(code, os.strerror(code), str(path))
        real(path, data, durable)

    def work(root: Path) -> None:
        for clips in (CLIPS, (*CLIPS, "f")):
            group = open_group(root, clips)
            with Leases(group.place, beats=False) as leases:
                for unit in group.todo_units():
                    with leases.claim(f"{unit:06d}") as lease:  # type: ignore[union-attr]
                        group.write_unit(unit, *unit_of(group, unit), lease=lease)

    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(cache.places, "_write_file", failing)
    work(tmp_path / "sound")
    writes = -count[0]
    wanted = content(open_group(tmp_path / "sound", (*CLIPS, "f")).path)
    for at in range(1, writes + 1, 2 if code == errno.ENOSPC else 7):
        root = tmp_path / str(at)
        count[0] = at
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            work(root)
        assert caught.value.errno == code
        count[0] = 0
        path = root / identity().folder
        if (path / "clips.json").exists():
            assert FeatureGroup(path).damaged_units() == []
            FeatureGroup(path).load()
        work(root)
        assert content(path) == wanted
        shutil.rmtree(root)


def test_float32_on_request(tmp_path: Path) -> None:
    group = open_group(tmp_path, ("a", "b"), settings={"dtype": "float32"})
    features = np.full((2, len(VIEWS), DIM), 1e30, dtype=np.float32)
    features[1] = np.pi
    with pytest.raises(CacheError, match=r"got float16 .*, expected float32"):
        group.write_unit(0, np.ones_like(features, np.float16), [ClipRecord(c, Status.PRESENT) for c in "ab"])
    group.write_unit(0, features, [ClipRecord(c, Status.PRESENT) for c in "ab"])
    table = FeatureGroup(group.path).load()
    assert table.features.dtype == np.float32
    assert np.array_equal(table.features, features)
    assert group.damaged_units() == []
    plain = zarr.open_group(str(group.path), mode="r")
    assert np.array_equal(np.asarray(plain["features"]), features)
    assert open_group(tmp_path, ("a", "b")).path != group.path


def test_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="float16 or float32, not 'float64'"):
        open_group(tmp_path, settings={"dtype": "float64"})
    assert list(tmp_path.rglob("*.json")) == []


def test_what_leaves_float16_is_named(tmp_path: Path) -> None:
    group = open_group(tmp_path)
    with np.errstate(over="ignore"):
        features = np.stack([values("a"), values("b") * np.float16(1000) * np.float16(1000)])
    with pytest.raises(CacheError, match=r"not finite \('b'\)"):
        group.write_unit(0, features, [ClipRecord(c, Status.PRESENT) for c in "ab"])


def test_files_of_writers_that_were_killed_go_with_the_next(tmp_path: Path) -> None:
    group = open_group(tmp_path)
    folder = group.path / ".tmp"
    left = folder / ".features-c-0-0-0~0123456789abcdef.tmp"
    other = folder / ".features-c-1-0-0~0123456789abcdef.tmp"
    for path in (left, other):
        path.write_bytes(b"half")
    write(group, 0)
    assert sorted(folder.iterdir()) == [other], "another unit's writer may be alive"
    assert isinstance(group.place, LocalPlace)
