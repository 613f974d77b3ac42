"""Checking a group: every kind of damage is found, named and mended, and nothing sound is touched."""

from __future__ import annotations

import hashlib
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from cache.findings import CODES, VerifyReport
from cache.layout import Status
from cache.seal import is_intact, sealed
from cache.store import FeatureGroup
from cache.structure import _decompressed
from cache.verify import verify
from tests.unit.cache_groups import (
    CLIPS,
    DIM,
    STATES,
    UNIT,
    VIEWS,
    chunk,
    fill,
    flip,
    make_group,
    make_identity,
    record,
    reopen,
    replace_bytes,
    snapshot,
    values,
)

Damage = Callable[[FeatureGroup], object]


def codes(report: VerifyReport) -> list[tuple[str, int | None]]:
    return [(f.code, f.unit) for f in report.findings]


def with_checksum(features: np.ndarray) -> bytes:
    raw = features.astype("<f2").tobytes()
    return raw + google_crc32c.value(raw).to_bytes(4, "little")


def rewrite_chunk(group: FeatureGroup, unit: int, view: int, change: Callable[[np.ndarray], object]) -> None:
    """Change values in a chunk whose checksum is right afterwards."""
    path = chunk(group, unit, view)
    features = np.frombuffer(path.read_bytes()[:-4], "<f2").reshape(UNIT, DIM).copy()
    change(features)
    replace_bytes(path, with_checksum(features))


def rewrite_json(path: Path, change: Callable[[dict], object], seal: bool = True) -> None:  # type: ignore[type-arg]
    plain = json.loads(path.read_text())
    change(plain)
    plain = sealed(plain) if seal and "seal" in plain else plain
    replace_bytes(path, json.dumps(plain).encode())


def commit(group: FeatureGroup, unit: int) -> Path:
    return group.path / "commits" / f"{unit:06d}.json"


def recommit(group: FeatureGroup, unit: int) -> None:
    """Make a commit say the digest of what lies in the chunks."""
    present = [c not in STATES for c in group.unit_clips(unit)]
    raw = [np.frombuffer(chunk(group, unit, v).read_bytes()[:-4], "<f2").reshape(UNIT, DIM) for v in range(len(VIEWS))]
    features = np.stack(raw, axis=1)[: len(present)][present]
    sha256 = hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()
    rewrite_json(commit(group, unit), lambda c: c.update(sha256=sha256))


def poison(group: FeatureGroup, value: float) -> None:
    def change(features: np.ndarray) -> None:
        features[2, 1] = value

    rewrite_chunk(group, 0, 1, change)
    recommit(group, 0)


def make_constant(group: FeatureGroup) -> None:
    rewrite_chunk(group, 0, 1, lambda f: f.__setitem__(2, 0.5))
    recommit(group, 0)


def fill_absent(group: FeatureGroup) -> None:
    rewrite_chunk(group, 0, 1, lambda f: f.__setitem__((1, 3), 1.0))


def fill_padding(group: FeatureGroup) -> None:
    rewrite_chunk(group, 2, 0, lambda f: f.__setitem__((3, 0), 1.0))


def swap_clips(group: FeatureGroup) -> None:
    rewrite_json(commit(group, 1), lambda c: c["clips"].reverse())


def rename_clip(group: FeatureGroup) -> None:
    rewrite_json(group.path / "clips.json", lambda c: c["clip_ids"].__setitem__(5, "somebody else"))


def another_unit(group: FeatureGroup) -> None:
    rewrite_json(group.path / "clips.json", lambda c: c.update(unit=5))


def features_metadata(**changes: object) -> Damage:
    return lambda g: rewrite_json(g.path / "features" / "zarr.json", lambda c: c.update(changes))


def truncate(path: Path, size: int) -> None:
    replace_bytes(path, path.read_bytes()[:size])


def copy_chunk(group: FeatureGroup) -> None:
    replace_bytes(chunk(group, 2), chunk(group, 1).read_bytes())


DAMAGES: dict[str, tuple[Damage, list[tuple[str, int | None]]]] = {
    "a bit of a value": (lambda g: flip(chunk(g, 1), 3), [("chunk_checksum", 1)]),
    "a missing chunk": (lambda g: chunk(g, 1, 2).unlink(), [("chunk_missing", 1)]),
    "a cut chunk": (lambda g: truncate(chunk(g, 0), 20), [("chunk_cut", 0)]),
    "a chunk of another unit": (copy_chunk, [("digest", 2), ("not_nan", 2)]),
    "NaN": (lambda g: poison(g, np.nan), [("not_finite", 0)]),
    "Inf": (lambda g: poison(g, -np.inf), [("not_finite", 0)]),
    "values of an absent clip": (fill_absent, [("not_nan", 0)]),
    "values in padding": (fill_padding, [("not_nan", 2)]),
    "a commit cut": (lambda g: truncate(commit(g, 0), 30), [("commit_unreadable", 0), ("status_disagrees", 0)]),
    "a commit of nothing": (lambda g: truncate(commit(g, 0), 0), [("commit_unreadable", 0), ("status_disagrees", 0)]),
    "a commit's clips": (swap_clips, [("commit_clips", 1)]),
    "a commit of no unit": (lambda g: (g.path / "commits" / "000007.json").write_text("{}"), [("commit_extra", None)]),
    "a status": (lambda g: truncate(g.path / "status/c/1", 5), [("status_disagrees", 1)]),
    "no status": (lambda g: (g.path / "status/c/1").unlink(), [("status_disagrees", 1)]),
    "names": (lambda g: truncate(g.path / "clip_id/c/1", 5), [("clip_id_disagrees", 1)]),
    "no names": (lambda g: (g.path / "clip_id/c/0").unlink(), [("clip_id_disagrees", 0)]),
    "clips.json cut": (lambda g: truncate(g.path / "clips.json", 50), [("clips_unreadable", None)]),
    "clips.json gone": (lambda g: (g.path / "clips.json").unlink(), [("clips_unreadable", None)]),
    "a name in clips.json": (rename_clip, [("clips_disagree", 1)]),
    "another unit": (another_unit, [("clips_unreadable", None)]),
    "a shape": (features_metadata(shape=[11, 3, DIM]), [("metadata", None)]),
    "a type": (features_metadata(data_type="float64"), [("metadata", None)]),
    "a fill value": (features_metadata(fill_value=0.0), [("metadata", None)]),
    "an unknown key": (features_metadata(zzz=1), [("metadata", None)]),
    "view names": (features_metadata(attributes={"views": ["a", "b", "c"]}), [("metadata", None)]),
    "no description": (lambda g: (g.path / "status/zarr.json").unlink(), [("metadata", None)]),
    "a bit of the identity": (
        lambda g: flip(g.path / "zarr.json", (g.path / "zarr.json").read_bytes().index(b"tiny")),
        [("identity_digest", None)],
    ),
    "a bit of the notes": (
        lambda g: flip(g.path / "zarr.json", (g.path / "zarr.json").read_bytes().index(b"made for")),
        [("seal", None)],
    ),
    "a bit of a fact": (
        lambda g: flip(commit(g, 1), commit(g, 1).read_bytes().index(b"pyav")),
        [("commit_unreadable", 1), ("status_disagrees", 1)],
    ),
}


def test_a_sound_group_has_no_findings(tmp_path: Path) -> None:
    for group in (make_group(tmp_path), make_group(tmp_path, grown=3, modality="audio")):
        before = snapshot(group.path)
        report = verify(group.path, repair=True, stale_seconds=0)
        assert (report.findings, report.left, report.repaired, report.sound) == ((), (), (), True)
        assert report.units == group.num_units
        assert report.num_bytes == group.num_units * UNIT * len(VIEWS) * DIM * 2
        assert snapshot(group.path) == before


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_mended(tmp_path: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    group = make_group(tmp_path)
    digest, before = group.digest(), snapshot(group.path)
    damage(group)
    damaged = snapshot(group.path)
    report = verify(group.path)
    assert codes(report) == expected
    assert all(f.code in CODES and f.repairable and f.detail for f in report.findings)
    assert not report.sound or all(f.severity == "warning" for f in report.findings)
    assert snapshot(group.path) == damaged  # looking changes nothing
    mended = verify(group.path, repair=True)
    assert mended.sound
    assert mended.repaired
    units = {unit for code, unit in expected if unit is not None and not code.startswith(("status", "clip"))}
    assert set(reopen(group).todo_units()) == units  # exactly the units that are damaged
    fill(make_group(tmp_path))
    assert reopen(group).digest() == digest
    assert verify(group.path).findings == ()
    after = snapshot(group.path)
    assert after.keys() == before.keys()
    assert {k: v for k, v in after.items() if k.endswith("/0")} == {k: v for k, v in before.items() if k.endswith("/0")}


def test_provenance_that_is_lost_is_said_and_not_invented(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    file = group.path / "zarr.json"

    def cut(key: str) -> Callable[[dict], None]:  # type: ignore[type-arg]
        def change(plain: dict) -> None:  # type: ignore[type-arg]
            del plain["attributes"][key]
            plain["attributes"] = sealed(plain["attributes"])

        return change

    good = file.read_bytes()
    for key, code in (("identity", "provenance_missing"), ("schema", "schema")):
        rewrite_json(file, cut(key))
        report = verify(group.path, repair=True)
        assert codes(report) == [(code, None)]
        assert not report.sound
        assert not report.findings[0].repairable
        replace_bytes(file, good)
    rewrite_json(file, cut("versions"))
    report = verify(group.path)
    assert codes(report) == [("provenance_missing", None)]
    assert report.sound  # a warning
    replace_bytes(file, good[:100])
    assert codes(verify(group.path, repair=True)) == [("attributes_unreadable", None)]
    file.unlink()
    assert codes(verify(group.path, repair=True)) == [("attributes_unreadable", None)]


def test_an_identity_that_is_not_the_folders(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    other = group.path.with_name("video-tiny-000000000000.zarr")
    group.path.rename(other)
    report = verify(other, repair=True)
    assert codes(report) == [("identity_digest", None)]
    assert not report.sound
    assert verify(other, name=group.path.name).sound


@pytest.mark.parametrize(
    ("weights", "notes", "known"),
    [
        ("random:0", {}, True),
        ("declared:by a friend", {}, True),
        (f"sha256:{'0a' * 32}", {"weights": "from example.org"}, True),
        (f"sha256:{'0a' * 32}", {}, False),
        ("sha256:0a", {"weights": "from example.org"}, False),
        ("built-in", {}, True),
        ("who knows", {"weights": "hm"}, False),
    ],
)
def test_weights_that_nothing_explains(tmp_path: Path, weights: str, notes: dict[str, str], known: bool) -> None:
    group = FeatureGroup.open_or_create(
        tmp_path, make_identity(weights=weights), CLIPS, DIM, UNIT, {"zarr": "3"}, notes
    )
    report = verify(fill(group).path, known_weights=["built-in"])
    assert codes(report) == ([] if known else [("weights_unknown", None)])
    assert report.sound


def test_constant_rows_and_copies_are_warnings(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    make_constant(group)
    report = verify(group.path, repair=True)
    assert [(f.code, f.clip_id, f.severity, f.repairable) for f in report.findings] == [
        ("constant", CLIPS[2], "warning", False)
    ]
    assert "0.5 in weak0" in report.findings[0].detail
    assert report.repaired == ()


@pytest.mark.parametrize("same_media", [True, False])
def test_the_same_features_of_different_media(tmp_path: Path, same_media: bool) -> None:
    group = make_group(tmp_path, states={})
    group.forget_unit(2)
    features = np.stack([values(CLIPS[0]), values(CLIPS[9])])
    media = f"media of {CLIPS[0]}" if same_media else "another file"
    records = [record(CLIPS[8]), record(CLIPS[9])]
    records[0] = type(records[0])(CLIPS[8], Status.PRESENT, fingerprint=media)
    group.write_unit(2, features, records)
    expected = [] if same_media else [("identical", CLIPS[8])]
    assert [(f.code, f.clip_id) for f in verify(group.path).findings] == expected


def test_a_clip_with_two_rows(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    rewrite_json(group.path / "clips.json", lambda c: c["clip_ids"].__setitem__(9, CLIPS[0]))
    found = {f.code: f for f in verify(group.path).findings}
    assert found["clip_duplicate"].clip_id == CLIPS[0]
    assert verify(group.path, repair=True).sound
    assert reopen(group).clip_ids == CLIPS
    assert reopen(group).todo_units() == []


def test_leftovers_are_deleted_once_they_are_old(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    old = [".tmp/.commits-000001.json~0011.tmp", "status/c/1.0a.partial", "leases/unit-1.000001.lease"]
    for name in old:
        file = group.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    (group.path / "mine.txt").write_text("notes of a user")
    report = verify(group.path, repair=True)
    assert codes(report) == [("unexpected_file", None)]
    for name in old:
        os.utime(group.path / name, (time.time() - 7200,) * 2)
    report = verify(group.path)
    assert sorted(f.detail.split(",")[0] for f in report.findings if f.code == "leftover") == sorted(old)
    assert report.sound
    report = verify(group.path, repair=True)
    assert codes(verify(group.path)) == [("unexpected_file", None)]  # nobody knows what it is: it stays
    assert len(report.repaired) == len(old)
    assert (group.path / "mine.txt").exists()
    group.load()


def test_extra_chunks_are_deleted(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    for name in ("features/c/9/0/0", "features/c/0/7/0", "status/c/4"):
        (group.path / name).parent.mkdir(parents=True, exist_ok=True)
        (group.path / name).write_bytes(b"x")
    report = verify(group.path, repair=True)
    assert [f.code for f in report.findings] == ["chunk_extra"] * 3
    assert report.sound
    assert verify(group.path).findings == ()


def test_a_unit_that_is_todo_is_no_damage(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    group.forget_unit(1)
    report = verify(group.path, repair=True)
    assert [(f.code, f.severity) for f in report.findings] == [
        ("status_disagrees", "warning")
    ]  # readers of Zarr see it
    assert verify(group.path).findings == ()
    assert reopen(group).todo_units() == [1]
    fill(reopen(group))
    assert verify(group.path).findings == ()


def test_float32_groups_are_checked_too(tmp_path: Path) -> None:
    group = make_group(tmp_path, settings={"dtype": "float32"})
    assert verify(group.path).findings == ()
    flip(group.path / "features" / "zarr.json", (group.path / "features/zarr.json").read_bytes().index(b"shape"))
    report = verify(group.path, repair=True)
    assert codes(report) == [("metadata", None)]
    assert report.sound
    assert reopen(group).load().features.dtype == np.float32


def test_a_flipped_length_asks_for_no_memory(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    names = group.path / "clip_id" / "c" / "0"
    good = names.read_bytes()
    tracemalloc.start()
    for position in range(4, 12):
        for bit in range(8):
            flip(names, position, bit)
            verify(group.path)
            replace_bytes(names, good)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_frame_that_says_it_is_huge_is_not_unpacked() -> None:
    for flags, width in ((0xE0, 8), (0xA0, 4)):
        frame = bytes.fromhex("28b52ffd") + bytes([flags]) + (2**31).to_bytes(width, "little") + bytes(8)
        with pytest.raises(ValueError, match="2147483648 bytes of content in"):
            _decompressed(frame)


def test_seals() -> None:
    plain = {"b": [1, 2.5, "ü"], "a": {"c": None}}
    assert is_intact(plain)  # of before there were seals
    once = sealed(plain)
    assert list(once) == ["b", "a", "seal"]
    assert is_intact(once)
    assert is_intact(json.loads(json.dumps(once)))
    assert sealed(once) == once
    assert not is_intact({**once, "b": [1, 2.5, "u"]})
    assert not is_intact({**once, "d": 1})
