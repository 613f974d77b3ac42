"""Any single bit of any file of a group may turn over: it is found, and mended without another digest.

Two bits of a file do no harm because what is read stays the same: the bit of a zstd frame's header that the format
leaves unused (byte 4, bit 4, of the chunks of ``status`` and ``clip_id``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.store import FeatureGroup
from cache.verify import verify
from tests.unit.cache_groups import CLIPS, fill, flip, make_group, reopen, restore, snapshot

HARMLESS = {("status", 4, 4), ("clip_id", 4, 4)}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> FeatureGroup:
    return make_group(tmp_path_factory.mktemp("cache"), CLIPS[:6], grown=3, dim=2)


def check(group: FeatureGroup, name: str, byte: int, bit: int) -> None:
    files, digest = snapshot(group.path), group.digest()
    try:
        flip(group.path / name, byte, bit)
        found = verify(group.path).findings
        kind = name.partition("/")[0]
        if "/c/" in name and (kind, byte, bit) in HARMLESS:
            assert not found
            table = reopen(group).load()
            assert table.digest == digest
            return
        assert found, f"{name}, byte {byte}, bit {bit}"
        assert verify(group.path, repair=True).sound
        mended = make_group(group.path.parent.parent, CLIPS[:6], grown=3, dim=2)
        assert mended.digest() == digest
        assert verify(group.path).findings == ()
        assert snapshot(group.path).keys() == files.keys()
    finally:
        restore(group.path, files)


@settings(max_examples=90, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_found_and_mended(group: FeatureGroup, data: st.DataObject) -> None:
    files = snapshot(group.path)
    name = data.draw(st.sampled_from(sorted(files)))
    byte = data.draw(st.integers(0, len(files[name]) - 1))
    check(group, name, byte, data.draw(st.integers(0, 7)))


def test_a_state_past_the_end_of_the_array(group: FeatureGroup) -> None:
    last = len(snapshot(group.path)["status/c/1"]) - 1  # one row of this unit is not in the array yet
    for bit in range(8):
        check(group, "status/c/1", last, bit)


@pytest.mark.parametrize("array", ["status", "clip_id"])
def test_the_head_of_a_compressed_chunk(group: FeatureGroup, array: str) -> None:
    for byte in range(4, 7):
        for bit in range(8):
            check(group, f"{array}/c/0", byte, bit)


@settings(max_examples=12, deadline=None)
@given(damage=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 19)), min_size=1, max_size=4))
def test_exactly_the_damaged_units_are_made_anew(damage: set[tuple[int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        group = make_group(Path(folder), CLIPS[:6], unit=2, dim=2)
        units = {}
        for unit, view, byte in damage:
            path = group.path / "features" / "c" / str(unit) / str(view) / "0"
            flip(path, byte % path.stat().st_size)
            units[unit] = True
        digest = group.digest()
        verify(group.path, repair=True)
        assert set(reopen(group).todo_units()) <= set(units)  # a bit may have been turned back by a second flip
        assert fill(reopen(group)).digest() == digest
        assert verify(group.path).findings == ()
