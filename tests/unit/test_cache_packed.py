"""The packed copy: the same values in one mapped file, refused when its group has changed or it is damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cache.layout import CacheError, Status
from cache.packed import check_packed, open_packed, pack, packed_path
from tests.unit.cache_groups import CLIPS, UNIT, chunk, fill, flip, make_group, reopen


def test_a_packed_copy_is_the_group_in_one_file_of_safetensors(tmp_path: Path) -> None:
    group = make_group(tmp_path, grown=3)
    path = pack(group)
    assert path == packed_path(group.path) == group.path.with_suffix(".safetensors")
    table, packed = group.load(), open_packed(path, group)
    again = packed.table()
    assert again.features.tobytes() == table.features.tobytes()
    assert (again.clip_ids, again.records, again.digest, again.identity) == (
        table.clip_ids,
        table.records,
        table.digest,
        table.identity,
    )
    assert not packed.features.flags.writeable
    plain = load_file(path)
    assert plain["features"].tobytes() == table.features.tobytes()
    assert plain["status"].tolist() == [r.status for r in table.records]
    assert check_packed(packed)
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix == ".tmp") == []


def test_a_copy_of_an_earlier_state_is_refused(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    path = pack(group)
    group.forget_unit(0)
    with pytest.raises(CacheError, match="earlier state"):
        open_packed(path, reopen(group))
    fill(group, states={CLIPS[0]: Status.FAILED})
    with pytest.raises(CacheError, match="earlier state"):
        open_packed(path, reopen(group))
    open_packed(path)  # without its source it can be read
    group.forget_unit(0)
    fill(group)  # made anew with the same values: times differ, the digest does not
    assert open_packed(path, reopen(group)).digest == group.digest()
    other = make_group(tmp_path, weights="random:1")
    for commit in [p for g in (group, other) for p in (g.path / "commits").iterdir()]:
        os.utime(commit, (1, 1))
    path = pack(group)
    with pytest.raises(CacheError, match="earlier state"):
        open_packed(path, other)


def test_damage_is_found(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    path = pack(group)
    good = path.read_bytes()
    flip(path, len(good) - len(CLIPS) - 5)
    assert not check_packed(open_packed(path))
    for content, reason in ((good[:-1], "bytes where"), (b"", "header"), (good[:40], ""), (b"\xff" * 99, "header")):
        path.write_bytes(content)
        with pytest.raises(CacheError, match=f"{reason}.*pack the group again"):
            open_packed(path)
    path.write_bytes(good.replace(b"pipe-cache-1", b"pipe-cache-9"))
    with pytest.raises(CacheError, match="pipe-cache-9"):
        open_packed(path)
    path.write_bytes(good)
    row = open_packed(path).features[1]  # absent
    assert np.isnan(row).all()
    flip(path, good.index(row.tobytes()) + 1, 6)  # a NaN becomes 1.5
    assert not check_packed(open_packed(path))


def test_unfinished_or_damaged_groups_are_not_packed(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    group.forget_unit(2)
    with pytest.raises(CacheError, match=r"1 of 3 units .*not finished"):
        pack(group)
    fill(group)
    # A chunk with a right checksum that is not the one that was committed.
    chunk(group, 1, 0).write_bytes(chunk(group, 0, 0).read_bytes())
    with pytest.raises(CacheError, match=r"unit 1 .*differs from its commit"):
        pack(group)
    assert not packed_path(group.path).exists()
    assert list(group.path.parent.glob(".*.tmp")) == []


def test_a_big_copy_opens_in_a_blink(tmp_path: Path) -> None:
    clips = [f"clip {i}" for i in range(3000)]
    group = make_group(tmp_path, clips, {}, dim=2, unit=1000)
    path = pack(group)
    start = time.process_time()
    packed = open_packed(path, group)
    assert packed.features[2999, 2, 1] == group.load().features[2999, 2, 1]
    assert time.process_time() - start < 1.0  # it takes 3 ms; the rest is for busy machines
    assert UNIT < 1000
