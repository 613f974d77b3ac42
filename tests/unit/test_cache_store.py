"""The feature cache: what is read is what was written, and nothing that is missing or damaged passes for a value."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import cache.places
from cache.layout import CacheError, ClipRecord, Identity, Status
from cache.places import LocalPlace
from cache.store import FeatureGroup

VIEWS = ("clean0", "weak0")
DIM = 3
UNIT = 2
CLIPS = ("a", "b", "c", "d", "e")  # three units: ab, cd, e
FIRST_DIGEST = (
    "b8e5481e70f59433b5af90833f16bb993825469d24392732e5857efd164de98c"  # of these, as the first version wrote
)


def identity(**changes: object) -> Identity:
    values: dict[str, object] = {
        "dataset": "small",
        "modality": "video",
        "backbone": "tiny",
        "weights": "random:0",
        "tap": "pool",
        "views": VIEWS,
        "view_seed": 0,
        "settings": {"size": 64},
    }
    return Identity(**{**values, **changes})  # type: ignore[arg-type]


def open_group(root: Path, clips: Sequence[str] = CLIPS, *, dim: int = DIM, unit: int = UNIT, **changes: object):
    return FeatureGroup.open_or_create(root, identity(**changes), clips, dim, unit, {"zarr": zarr.__version__})


def values(clip_id: str, views: int = len(VIEWS), dim: int = DIM) -> NDArray[np.float16]:
    """Features ``(views, dim)`` that belong to a clip and to no other."""
    return np.random.default_rng(zlib.crc32(clip_id.encode())).normal(size=(views, dim)).astype(np.float16)


def write(group: FeatureGroup, unit: int, states: dict[str, Status] | None = None) -> None:
    """Write a unit; clips are present unless ``states`` says otherwise."""
    clips = group.unit_clips(unit)
    records = [ClipRecord(c, (states or {}).get(c, Status.PRESENT)) for c in clips]
    features = np.stack([values(c, len(group.identity.views), group.dim) for c in clips])
    features[[r.status is not Status.PRESENT for r in records]] = np.nan
    group.write_unit(unit, features, records)


def filled(root: Path, clips: Sequence[str] = CLIPS) -> FeatureGroup:
    group = open_group(root, clips)
    for unit in group.todo_units():
        write(group, unit)
    return group


def chunk(group: FeatureGroup, unit: int, view: int = 0) -> Path:
    return group.path / "features" / "c" / str(unit) / str(view) / "0"


def unit_bytes(group: FeatureGroup, unit: int) -> list[bytes]:
    """The chunks of a unit in all views, and its commit."""
    commit = group.path / "commits" / f"{unit:06d}.json"
    return [chunk(group, unit, view).read_bytes() for view in range(len(VIEWS))] + [commit.read_bytes()]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    filled(tmp_path)
    table = open_group(tmp_path).load()
    assert table.clip_ids == CLIPS
    assert table.features.dtype == np.float16
    assert np.array_equal(table.features, np.stack([values(c) for c in CLIPS]))
    assert table.identity == identity()
    asked = ("d", "a", "d")
    features, present = table.select(asked)
    assert np.array_equal(features, np.stack([values(c) for c in asked]))
    assert present.all()


def test_a_record_keeps_every_field(tmp_path: Path) -> None:
    group = open_group(tmp_path, ("a", "b"))
    records = [
        ClipRecord("a", Status.PRESENT, fingerprint="12ab", facts={"codec": "h264", "rate_hz": 29.97, "width": 320}),
        ClipRecord("b", Status.FAILED, "truncated", "frame 7 of 30 is missing"),
    ]
    group.write_unit(0, np.stack([values("a"), np.full((2, DIM), np.nan)]).astype(np.float16), records)
    assert open_group(tmp_path, ("a", "b")).load().records == tuple(records)


def test_the_four_states_stay_apart(tmp_path: Path) -> None:
    group = open_group(tmp_path)
    write(group, 0, {"b": Status.ABSENT})
    write(group, 1, {"c": Status.FAILED})
    table = group.load()
    assert [r.status for r in table.records] == [
        Status.PRESENT,
        Status.ABSENT,
        Status.FAILED,
        Status.PRESENT,
        Status.TODO,
    ]
    assert group.todo_units() == [2]
    features, present = table.select(["a", "b", "c", "d"])
    assert present.tolist() == [True, False, False, True]
    assert not features[~present].any()
    assert np.array_equal(features[present], np.stack([values("a"), values("d")]))


@pytest.mark.parametrize("state", [Status.ABSENT, Status.FAILED])
def test_a_unit_without_any_present_clip_is_finished_too(tmp_path: Path, state: Status) -> None:
    open_group(tmp_path)
    group = open_group(tmp_path)
    write(group, 1, {"c": state, "d": state})
    assert group.todo_units() == [0, 2]
    assert group.damaged_units() == []
    features, present = group.load().select(["c", "d"])
    assert not present.any()
    assert not features.any()


@pytest.mark.parametrize("clip_id", ["e", "never heard of"])
def test_selecting_a_clip_that_is_not_extracted_is_an_error(tmp_path: Path, clip_id: str) -> None:
    group = open_group(tmp_path)
    write(group, 0)
    with pytest.raises(CacheError, match=rf"1 of 3 clips have no video features.*'{clip_id}'.*pipe extract"):
        group.load().select(["a", clip_id, "b"])


def test_a_deleted_chunk_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    group = filled(tmp_path)
    chunk(group, 1, view=1).unlink()
    assert group.damaged_units() == [1]
    with pytest.raises(CacheError, match=r"c/1/1/0: the chunk is missing.*pipe extract"):
        group.load()


@pytest.mark.parametrize("position", [0, 7, -1])
def test_a_flipped_bit_is_found(tmp_path: Path, position: int) -> None:
    group = filled(tmp_path)
    raw = bytearray(chunk(group, 1).read_bytes())
    raw[position] ^= 1
    chunk(group, 1).write_bytes(raw)
    assert group.damaged_units() == [1]
    with pytest.raises(CacheError, match=r"the chunk (fails its crc32c|has \d+ bytes)"):
        group.load()


@pytest.mark.parametrize("length", [0, 3, 8, -1])
def test_a_cut_off_chunk_is_found(tmp_path: Path, length: int) -> None:
    group = filled(tmp_path)
    chunk(group, 2).write_bytes(chunk(group, 2).read_bytes()[:length])
    assert group.damaged_units() == [2]
    with pytest.raises(CacheError, match=r"the chunk (fails its crc32c|has \d+ bytes)"):
        group.load()


def test_a_chunk_of_another_unit_is_found(tmp_path: Path) -> None:
    """Its own checksum is right; only the commit knows that the values are not this unit's."""
    group = filled(tmp_path)
    chunk(group, 0).write_bytes(chunk(group, 1).read_bytes())
    assert group.damaged_units() == [0]


def test_writing_a_damaged_unit_again_heals_it(tmp_path: Path) -> None:
    group = filled(tmp_path)
    before = group.load()
    chunk(group, 1).unlink()
    write(group, 1)
    assert group.damaged_units() == []
    assert np.array_equal(group.load().features, before.features)
    assert group.digest() == before.digest


def test_a_unit_is_committed_after_its_features_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = open_group(tmp_path)
    real, seen = LocalPlace.create_exclusively, []

    def power_cut(place: LocalPlace, name: str, data: bytes, durable: bool = True) -> bool:
        assert durable
        if not name.startswith("commits/"):
            return real(place, name, data, durable)
        assert [chunk(group, 1, view).exists() for view in range(len(VIEWS))] == [True, True]
        seen.append(name)
        raise OSError("power cut")

    monkeypatch.setattr(LocalPlace, "create_exclusively", power_cut)
    with pytest.raises(OSError, match="power cut"):
        write(group, 1)
    assert seen == ["commits/000001.json"]
    monkeypatch.undo()
    again = open_group(tmp_path)
    assert again.todo_units() == [0, 1, 2]
    with pytest.raises(CacheError, match="2 of 2 clips"):
        again.load().select(["c", "d"])


def test_every_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = open_group(tmp_path)
    events: list[str] = []
    sync, link = os.fsync, os.link

    def synced(descriptor: int) -> None:
        events.append("fsync")
        sync(descriptor)

    def linked(source: Path, target: Path) -> None:
        link(source, target)  # fails at first, where a folder has to be made
        events.append(target.parts[len(group.path.parts)])

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    write(group, 0)
    assert events == ["fsync", "features", "fsync", "features", "fsync", "status", "fsync", "commits"]


def test_a_unit_that_is_being_rewritten_loses_its_old_commit_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = filled(tmp_path)

    def power_cut(path: Path, data: bytes, durable: bool) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(cache.places, "_write_file", power_cut)
    with pytest.raises(OSError, match="power cut"):
        write(group, 1)
    assert open_group(tmp_path).todo_units() == [1]


def test_new_clips_start_in_a_new_unit_and_leave_the_old_ones_alone(tmp_path: Path) -> None:
    group = filled(tmp_path)
    before = [unit_bytes(group, unit) for unit in range(3)]
    grown = open_group(tmp_path, (*CLIPS, "f", "g", "h"))
    assert grown.todo_units() == [3, 4]
    assert [grown.unit_clips(unit) for unit in range(5)] == [("a", "b"), ("c", "d"), ("e",), ("f", "g"), ("h",)]
    write(grown, 3)
    write(grown, 4)
    assert [unit_bytes(grown, unit) for unit in range(3)] == before
    table = open_group(tmp_path).load()
    assert table.clip_ids == (*CLIPS, "f", "g", "h")
    assert np.array_equal(table.features, np.stack([values(c) for c in table.clip_ids]))
    assert grown.damaged_units() == []


def test_the_order_of_the_manifest_does_not_matter(tmp_path: Path) -> None:
    group = filled(tmp_path)
    again = open_group(tmp_path, ("e", "c", "a", "d", "b"))
    assert again.clip_ids == group.clip_ids
    assert again.todo_units() == []
    assert again.digest() == group.digest()
    features, _ = again.load().select(["e", "a"])
    assert np.array_equal(features, np.stack([values("e"), values("a")]))


def test_a_clip_that_left_the_manifest_keeps_its_row(tmp_path: Path) -> None:
    filled(tmp_path)
    assert open_group(tmp_path, ("b",)).load().clip_ids == CLIPS


@pytest.mark.parametrize("last", ["features/zarr.json", "clip_id/c/3", "clips.json"])
def test_growth_that_was_interrupted_is_finished_by_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    group = filled(tmp_path)
    before = group.load()
    real = LocalPlace.write_atomically

    def power_cut(place: LocalPlace, name: str, data: bytes) -> None:
        real(place, name, data)
        if name == last:
            raise OSError("power cut")

    monkeypatch.setattr(LocalPlace, "write_atomically", power_cut)
    with pytest.raises(OSError, match="power cut"):
        open_group(tmp_path, (*CLIPS, "f"))
    monkeypatch.undo()
    again = FeatureGroup(group.path)
    assert again.load().digest == before.digest
    assert (again.clip_ids == CLIPS) is (last != "clips.json"), "who names the rows comes last"
    grown = open_group(tmp_path, (*CLIPS, "f"))
    assert grown.todo_units() == [3]
    write(grown, 3)
    assert np.array_equal(grown.load().features, np.stack([values(c) for c in (*CLIPS, "f")]))
    plain = zarr.open_group(str(group.path), mode="r")
    assert [str(c) for c in np.asarray(plain["clip_id"])] == [*CLIPS, "", "f"]


@pytest.mark.parametrize("moment", ["before clips.json", "before the commits"])
def test_a_group_that_was_half_made_is_made_anew(tmp_path: Path, moment: str) -> None:
    path = open_group(tmp_path).path
    (path / "clips.json").unlink()
    if moment == "before the commits":
        (path / "commits").rmdir()
    group = filled(tmp_path)
    assert np.array_equal(group.load().features, np.stack([values(c) for c in CLIPS]))


def test_a_changed_setting_is_another_folder(tmp_path: Path) -> None:
    first = filled(tmp_path)
    other = open_group(tmp_path, settings={"size": 65})
    assert other.path != first.path
    assert other.todo_units() == [0, 1, 2]
    assert first.todo_units() == []


def test_another_feature_dim_is_refused(tmp_path: Path) -> None:
    open_group(tmp_path)
    with pytest.raises(CacheError, match=r"dim 3, the backbone gives 4; delete that folder"):
        open_group(tmp_path, dim=4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_present_clip_has_finite_features(tmp_path: Path, bad: float) -> None:
    group = open_group(tmp_path)
    features = np.stack([values("a"), values("b")])
    features[1, 1, 2] = bad
    with pytest.raises(CacheError, match=r"unit 0 .* not finite"):
        group.write_unit(0, features, [ClipRecord("a", Status.PRESENT), ClipRecord("b", Status.PRESENT)])
    assert 0 in group.todo_units()


@pytest.mark.parametrize("clips", [("b", "a"), ("a",), ("a", "b", "c"), ("a", "x")])
def test_a_unit_takes_its_own_clips_only(tmp_path: Path, clips: tuple[str, ...]) -> None:
    group = open_group(tmp_path)
    with pytest.raises(CacheError, match="records are not those of its 2 clips"):
        group.write_unit(0, np.stack([values(c) for c in clips]), [ClipRecord(c, Status.PRESENT) for c in clips])


def test_a_newer_schema_is_named(tmp_path: Path) -> None:
    path = open_group(tmp_path).path
    listing = json.loads((path / "clips.json").read_text())
    (path / "clips.json").write_text(json.dumps({**listing, "schema": 2}))
    with pytest.raises(CacheError, match=r"has cache schema 2; this version reads schema 1"):
        open_group(tmp_path)


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    digests = [open_group(tmp_path).digest()]
    group = open_group(tmp_path)
    for step in (
        lambda: write(group, 0),
        lambda: write(group, 1),
        lambda: write(group, 1, {"c": Status.ABSENT}),
        lambda: write(group, 1, {"c": Status.FAILED}),
        lambda: group.write_unit(2, values("other")[None], [ClipRecord("e", Status.PRESENT)]),
        lambda: write(group, 2),
    ):
        step()
        digests.append(group.digest())
    assert len(set(digests)) == len(digests)


def test_the_digest_does_not_follow_the_clock_or_the_order_of_writing(tmp_path: Path) -> None:
    first = filled(tmp_path / "one")
    second = open_group(tmp_path / "two")
    for unit in (2, 0, 1):
        write(second, unit)
    for path in second.path.rglob("*"):
        os.utime(path, (1, 1))
    write(first, 1)
    assert first.digest() == second.digest() == second.load().digest


def test_other_programs_read_it_with_plain_zarr(tmp_path: Path) -> None:
    group = open_group(tmp_path)
    write(group, 0)
    write(group, 2, {"e": Status.ABSENT})
    plain = zarr.open_group(str(group.path), mode="r")
    features = np.asarray(plain["features"])
    assert features.shape == (5, len(VIEWS), DIM)
    assert np.array_equal(features[:2], np.stack([values("a"), values("b")]))
    assert np.isnan(features[2:]).all()  # todo and absent rows never look like values
    assert np.asarray(plain["status"]).tolist() == [Status.PRESENT, Status.PRESENT, Status.TODO, Status.TODO, 2]
    assert [str(c) for c in np.asarray(plain["clip_id"])] == list(CLIPS)
    assert plain.attrs["identity"] == identity().to_json()


def test_nothing_temporary_stays_behind(tmp_path: Path) -> None:
    group = filled(tmp_path)
    assert [p.name for p in group.path.rglob("*tmp*") if p.is_file()] == []
    assert list((group.path / "leases").iterdir()) == []


def test_a_commit_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    group = filled(tmp_path)
    path = group.path / "commits" / "000000.json"
    path.write_text(path.read_text()[:40])
    assert group.todo_units() == [0]
    assert 0 not in group.damaged_units()
    write(group, 0)
    assert group.todo_units() == []


def test_a_deleted_status_chunk_is_found(tmp_path: Path) -> None:
    group = filled(tmp_path)
    (group.path / "status" / "c" / "1").unlink()
    assert group.damaged_units() == [1]


def test_wrong_dtype_or_shape_is_refused_before_the_old_unit_goes(tmp_path: Path) -> None:
    group = filled(tmp_path)
    clips = group.unit_clips(0)
    records = [ClipRecord(c, Status.PRESENT) for c in clips]
    for features in (np.zeros((len(clips), len(VIEWS), DIM), np.float32), np.zeros((len(clips), 1, DIM), np.float16)):
        with pytest.raises(CacheError, match="expected float16"):
            group.write_unit(0, features, records)  # type: ignore[arg-type]
    assert group.todo_units() == []
    assert group.load().select([])[0].shape == (0, len(VIEWS), DIM)


def test_a_group_of_before_there_were_leases_stays_valid(tmp_path: Path) -> None:
    """The first version wrote these bytes but for the seals, and no folders of leases and unfinished files."""
    group = filled(tmp_path)
    before = group.load()
    for folder in ("leases", ".tmp"):
        shutil.rmtree(group.path / folder)
    for path in (group.path / "clips.json", *(group.path / "commits").iterdir()):
        plain = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in plain.items() if k != "seal"}))
    again = open_group(tmp_path)
    assert again.todo_units() == again.damaged_units() == []
    assert again.load().digest == before.digest == FIRST_DIGEST
    grown = open_group(tmp_path, (*CLIPS, "f"))
    write(grown, 3)
    assert grown.damaged_units() == []
