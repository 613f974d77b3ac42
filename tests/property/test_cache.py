"""The feature cache for any number of clips, views and dimensions, any unit size and any order of writing."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cache.layout import ClipRecord, Identity, Status
from tests.unit.test_cache_store import identity, open_group, values, write

names = st.text(st.characters(codec="utf-8", exclude_characters="\x00/"), min_size=1, max_size=6)
plain = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False), names)
FIELDS = {
    "dataset": names,
    "modality": names,
    "backbone": names,
    "weights": names,
    "tap": names,
    "views": st.lists(names, max_size=3, unique=True).map(tuple),
    "view_seed": st.integers(0, 2**40),
    "settings": st.dictionaries(names, plain | st.lists(plain, max_size=2), max_size=3),
}


@settings(max_examples=12, deadline=None)
@given(
    clips=st.lists(names, min_size=1, max_size=12, unique=True),
    first=st.integers(1, 12),
    views=st.integers(1, 3),
    dim=st.integers(1, 5),
    unit=st.integers(1, 4),
    data=st.data(),
)
def test_a_cache_that_grew_gives_back_every_clip(
    clips: list[str], first: int, views: int, dim: int, unit: int, data: st.DataObject
) -> None:
    states = {c: data.draw(st.sampled_from([Status.PRESENT, Status.ABSENT, Status.FAILED])) for c in clips}
    view_names = tuple(f"v{i}" for i in range(views))
    with tempfile.TemporaryDirectory() as folder:
        for known in (clips[:first], clips):
            group = open_group(Path(folder), known, dim=dim, unit=unit, views=view_names)
            for number in data.draw(st.permutations(group.todo_units())):
                write(group, number, states)
        group = open_group(Path(folder), data.draw(st.permutations(clips)), dim=dim, unit=unit, views=view_names)
        assert group.todo_units() == group.damaged_units() == []
        table = group.load()
    assert sorted(table.clip_ids) == sorted(clips)
    assert {r.clip_id: r.status for r in table.records} == states
    features, present = table.select(clips)
    assert present.tolist() == [states[c] is Status.PRESENT for c in clips]
    expected = np.stack([values(c, views, dim) for c in clips])
    assert np.array_equal(features, np.where(present[:, None, None], expected, np.float16(0)))


@settings(max_examples=15, deadline=None)
@given(
    clips=st.lists(names, min_size=1, max_size=9, unique=True),
    unit=st.integers(1, 5),
    dtype=st.sampled_from(["float16", "float32"]),
    data=st.data(),
)
def test_any_values_of_either_type_come_back_bit_for_bit(
    clips: list[str], unit: int, dtype: str, data: st.DataObject
) -> None:
    """Also the largest, the smallest and negative zero; any selection, in any order, with repetitions."""
    width = int(dtype.removeprefix("float"))
    finite = st.floats(allow_nan=False, allow_infinity=False, width=16 if width == 16 else 32)
    features = data.draw(arrays(dtype, (len(clips), 2, 3), elements=finite))
    with tempfile.TemporaryDirectory() as folder:
        group = open_group(Path(folder), clips, unit=unit, settings={"dtype": dtype})
        for number in range(group.num_units):
            rows = slice(number * unit, (number + 1) * unit)
            records = [ClipRecord(c, Status.PRESENT) for c in clips[rows]]
            group.write_unit(number, features[rows], records)
        table = open_group(Path(folder), clips, unit=unit, settings={"dtype": dtype}).load()
        stored = np.asarray(zarr.open_group(str(group.path), mode="r")["features"])
    assert table.features.dtype == stored.dtype == np.dtype(dtype)
    assert table.features.tobytes() == stored.tobytes() == features.tobytes()
    asked = data.draw(st.lists(st.integers(0, len(clips) - 1), max_size=12))
    chosen, present = table.select([clips[i] for i in asked])
    assert chosen.tobytes() == features[asked].tobytes()
    assert present.all()


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Identity)])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_changed_field_changes_the_digest_and_the_folder(name: str, data: st.DataObject) -> None:
    before = identity(**{field: data.draw(strategy) for field, strategy in FIELDS.items()})
    after = dataclasses.replace(before, **{name: data.draw(FIELDS[name])})
    assume(after != before)
    assert after.digest != before.digest
    assert after.folder != before.folder


@given(FIELDS["settings"])
@settings(max_examples=30, deadline=None)
def test_the_order_of_settings_does_not_matter(chosen: dict[str, object]) -> None:
    backwards = dict(reversed(chosen.items()))
    assert identity(settings=backwards).digest == identity(settings=chosen).digest
