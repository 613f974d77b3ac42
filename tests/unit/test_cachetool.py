"""Workflows behind `pipe cache`: groups are found by name, compared, copied and cleared, and said what of."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cache.convert import Declared, Matching
from cache.layout import CacheError, Status
from cache.packed import pack, packed_path
from cache.sources import Layout
from cache.store import FeatureGroup
from pipeline import show_cache
from pipeline.cachecare import collect_garbage, copy_group
from pipeline.cachediff import diff_groups
from pipeline.cachetool import (
    GroupName,
    choose_groups,
    export_groups,
    find_group,
    find_groups,
    group_info,
    import_features,
    list_groups,
    pack_groups,
    verify_groups,
)
from pipeline.errors import UsageError
from pipeline.locks import only_writer
from pipeline.types import Clip, Manifest
from tests.unit.cache_groups import (
    CLIPS,
    STATES,
    VIEWS,
    chunk,
    fill,
    flip,
    make_group,
    record,
    reopen,
    snapshot,
    values,
)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(width=200, highlight=False, soft_wrap=True, record=True)
    monkeypatch.setattr(show_cache, "out", console)
    return console


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_group(tmp_path / "cache")
    make_group(tmp_path / "cache", modality="audio", backbone="ears")
    make_group(tmp_path / "cache", modality="audio", backbone="ears", weights="random:1", dataset="other")
    return tmp_path / "cache"


def name_of(group: FeatureGroup) -> GroupName:
    return GroupName(group.identity.dataset, group.path.name, group.place)


def test_groups_are_found_by_any_clear_name(root: Path) -> None:
    (root / "README.txt").write_text("a file beside the data sets")
    groups = find_groups(root)
    assert [g.dataset for g in groups] == ["other", "small", "small"]
    video = next(g for g in groups if g.modality == "video")
    stem = video.name.removesuffix(".zarr")
    for name in (video.name, stem, str(video), "small/video", "video-ti", f"small/{stem[:12]}", stem[:-3]):
        assert find_group(root, name).path == video.path
    assert find_group(root, str(video.path)).path == video.path
    assert find_group(root, "other/audio").dataset == "other"
    assert [g.dataset for g in choose_groups(root, (), "small")] == ["small", "small"]
    for name, reason in (
        ("audio", r"can be 2 groups: other/audio-ears"),
        ("smal/video", r"Did you mean 'small/video'\?"),
        ("video-tinny", "Did you mean 'video-tiny"),
        ("", "no group is called"),
    ):
        with pytest.raises(UsageError, match=reason):
            find_group(root, name)
    with pytest.raises(UsageError, match="holds no groups"):
        choose_groups(root / "nowhere", ())
    with pytest.raises(UsageError, match=r"'smal' is not a data set .*'small'"):
        choose_groups(root, (), "smal")


def test_the_list_says_what_is_there_and_what_is_broken(root: Path, printed: Console) -> None:
    broken = find_group(root, "other/audio").path / "clips.json"
    broken.write_text("{")
    reopen(make_group(root)).forget_unit(1)
    rows = list_groups(root)
    assert [(r.group.dataset, r.identity is None) for r in rows] == [
        ("other", True),
        ("small", False),
        ("small", False),
    ]
    video = rows[2]
    assert video.counts == {"present": 5, "absent": 1, "failed": 0, "todo": 4}
    assert video.num_bytes == sum(len(content) for content in snapshot(video.group.path).values())
    assert video.made_with == "pipe 0"
    show_cache.show_groups(rows)
    text = printed.export_text()
    assert "cannot be read" in text
    assert "clips.json cannot be read" in text
    line = next(line for line in text.splitlines() if "random:0" in line and "video" in line)
    assert line.split()[:9] == ["small", "video", "tiny", "random:0", "3", "5", "1", "0", "4"]
    assert "3 groups" in text


def test_info_spells_everything_out(root: Path, printed: Console) -> None:
    info = group_info(find_group(root, "small/video"))
    assert info.counts == {"present": 8, "absent": 1, "failed": 1, "todo": 0}
    assert info.reasons == {("absent", "no_track"): 1, ("failed", "no_track"): 1}
    assert info.decoders == {"pyav": 10}
    assert info.digest == make_group(root).digest()
    assert (info.units, info.unit, info.todo_units, info.dim) == (3, 4, 0, 5)
    show_cache.show_info(info)
    text = printed.export_text()
    for part in ("identity settings.input.size  64", "clean0, weak0, strong0", info.digest, "made for a test"):
        assert part in text
    assert f"why {CLIPS[6]} has none" in text


def test_verify_mends_one_group_after_the_other(root: Path, printed: Console) -> None:
    group = make_group(root)
    flip(chunk(group, 1, 2), 5)
    reports = list(verify_groups(root))
    assert [r.sound for r in reports] == [True, True, False]
    show_cache.show_verified(reports[2], repair=False)
    report = next(verify_groups(root, ["small/video"], repair=True))
    show_cache.show_verified(report, repair=True)
    text = printed.export_text()
    assert "chunk_checksum" in text
    assert "view strong0: the chunk fails its crc32c" in text
    assert "verify --repair` mends" in text
    assert "unit 1 is todo again" in text
    assert "`pipe extract` makes the units anew" in text
    assert fill(reopen(group)).todo_units() == []
    assert all(r.sound for r in verify_groups(root, dataset="small"))


def hold(folder: Path, started: object, ended: object) -> None:
    with only_writer(folder, "extracting into"):
        started.set()  # type: ignore[attr-defined]
        ended.wait(30)  # type: ignore[attr-defined]


@pytest.fixture
def another_process(root: Path) -> Iterator[None]:
    """Somebody extracts into the data set ``small``."""
    context = multiprocessing.get_context("spawn")
    started, ended = context.Event(), context.Event()
    process = context.Process(target=hold, args=(root / "small", started, ended))
    process.start()
    assert started.wait(30)
    yield
    ended.set()
    process.join(30)


def age(folder: Path, days: float = 100) -> None:
    """Make a folder look old."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (time.time() - days * 86400,) * 2)


def results(tmp_path: Path, *digests: str) -> Path:
    folder = tmp_path / "results"
    for i, digest in enumerate(digests):
        (folder / "small").mkdir(parents=True, exist_ok=True)
        plain = {"spec": {"features": {"video": {"digest": digest}}}}
        (folder / "small" / f"{i}.json").write_text(json.dumps(plain))
    return folder


@pytest.mark.usefixtures("another_process")
def test_nothing_is_touched_while_others_write(root: Path, tmp_path: Path) -> None:
    before = snapshot(root)
    for path in root.glob("*/*.zarr"):
        age(path)
    with pytest.raises(UsageError, match="another pipe process is extracting"):
        list(verify_groups(root, ["small/video"], repair=True))
    with pytest.raises(UsageError, match="another pipe process"):
        copy_group(find_group(root, "small/video"), tmp_path / "copy")
    rows = collect_garbage(root, tmp_path / "results", delete=True)
    found = {(r.path.parent.name, r.deleted, bool(r.kept)) for r in rows}
    assert found == {("other", True, False), ("small", False, True)}
    after = snapshot(root / "small")
    assert {f"small/{k}": v for k, v in after.items()} == {k: v for k, v in before.items() if k.startswith("small/")}


def test_a_leased_group_is_busy(root: Path, tmp_path: Path) -> None:
    group = make_group(root)
    lease = group.path / "leases" / "unit-000001.000001.lease"
    age(group.path)
    lease.parent.mkdir(exist_ok=True)
    lease.write_text("{}")
    with pytest.raises(UsageError, match="being extracted"):
        list(verify_groups(root, ["small/video"], repair=True))
    with pytest.raises(UsageError, match="being extracted"):
        copy_group(name_of(group), tmp_path / "copy")
    listed = collect_garbage(root, tmp_path / "results", days=0)
    assert {r.kept for r in listed if r.path == group.path} == {"a process works on it"}
    rows = collect_garbage(root, tmp_path / "results", days=0, delete=True)
    assert [r.kept for r in rows if r.path == group.path] == ["a process works on it"]
    assert reopen(group).digest() == group.digest()


def test_garbage_is_listed_first_and_deleted_if_said(root: Path, tmp_path: Path, printed: Console) -> None:
    used = make_group(root)
    for path in root.glob("*/*.zarr"):
        age(path)
    fresh = make_group(root, modality="flow")
    pack(used)
    pack(fresh)
    fresh.forget_unit(0)
    left = used.path / ".tmp" / ".commits~00.tmp"
    left.parent.mkdir(exist_ok=True)
    left.write_text("x")
    os.utime(left, (0, 0))
    orphan = root / "small" / "video-gone-000000000000.safetensors"
    orphan.write_text("x")
    folder = results(tmp_path, used.digest(), "0" * 64)
    before = snapshot(root)
    rows = collect_garbage(root, folder)
    assert [r.deleted for r in rows] == [False] * len(rows)
    assert snapshot(root) == before
    kinds = sorted((r.kind, r.path.name.partition("-")[0]) for r in rows)
    assert kinds == [
        ("group", "audio"),
        ("group", "audio"),
        ("leftover", ".commits~00.tmp"),
        ("packed copy", "flow"),
        ("packed copy", "video"),
    ]
    show_cache.show_garbage(rows, deleted=False)
    done = collect_garbage(root, folder, delete=True)
    show_cache.show_garbage(done, deleted=True)
    assert all(r.deleted for r in done)
    assert {p.name for p in root.glob("*/*.zarr")} == {used.path.name, fresh.path.name}
    assert packed_path(used.path).exists()
    assert not orphan.exists()
    assert reopen(used).digest() == used.digest()
    assert collect_garbage(root, folder, delete=True) == []
    show_cache.show_garbage([], deleted=False)
    text = printed.export_text()
    assert "can be freed: `pipe cache gc --delete`" in text
    assert "100 days ago" in text
    assert "Nothing in the cache is unused." in text


def test_a_delete_that_was_cut_off_is_finished(root: Path, tmp_path: Path) -> None:
    path = find_group(root, "small/video").path
    half = path.with_name(f".deleted-{path.name}")
    path.rename(half)
    rows = collect_garbage(root, tmp_path / "results", delete=True)
    assert [(r.kind, r.deleted) for r in rows] == [("leftover", True)]
    assert not half.exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_copy_is_whole_and_goes_on_where_it_stopped(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool, printed: Console
) -> None:
    group = make_group(root)
    target: Path | str = f"memory://copies/{tmp_path.name}" if elsewhere else tmp_path / "second"
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_group(name_of(group), target, advance=stop)
    if not elsewhere:
        assert find_groups(target)
        assert list((tmp_path / "second").rglob("clips.json")) == []
        with pytest.raises(FileNotFoundError):
            FeatureGroup(find_groups(target)[0].place)
    copied = copy_group(name_of(group), target)
    assert copied.files - copied.copied == len(seen)
    assert (copied.digest, copied.moved) == (group.digest(), False)
    again = FeatureGroup(find_group(target, "small/video").place)
    assert again.load().features.tobytes() == group.load().features.tobytes()
    assert copy_group(name_of(group), target).copied == 0
    if not elsewhere:
        theirs = {k: v for k, v in snapshot(again.path).items() if not k.startswith(".tmp")}
        assert theirs == snapshot(group.path)
    group.forget_unit(1)
    fill(group, {**STATES, CLIPS[5]: Status.ABSENT})
    with pytest.raises(UsageError, match="another state"):
        copy_group(name_of(group), target)
    show_cache.show_copied(copied)
    assert f"{len(seen)} of them were there already" in printed.export_text()


def test_a_move_leaves_nothing_behind_and_damage_does_not_travel(root: Path, tmp_path: Path) -> None:
    group = make_group(root)
    digest = group.digest()
    with pytest.raises(UsageError, match=r"is in .* already"):
        copy_group(name_of(group), root)
    good = chunk(group, 0).read_bytes()
    flip(chunk(group, 0), 1)
    with pytest.raises(CacheError, match=r"1 units of small/video.* are damaged"):
        copy_group(name_of(group), tmp_path / "second", move=True)
    chunk(group, 0).write_bytes(good)
    moved = copy_group(name_of(group), tmp_path / "second", move=True)
    assert moved.moved
    assert not group.path.exists()
    assert FeatureGroup(Path(moved.target)).digest() == digest
    assert [p.name for p in (root / "small").glob(".deleted*")] == []


def test_differences_are_named(root: Path, printed: Console) -> None:
    first = make_group(root)
    second = make_group(root, (*CLIPS[1:], "new"), {CLIPS[2]: Status.FAILED}, weights="random:7", dim=5)
    second.forget_unit(0)
    clips = second.unit_clips(0)
    features = np.stack([values(c) for c in clips])
    features[2, 1, 3] += 2
    features[1] = np.nan
    states = [record(c, Status.FAILED if c == CLIPS[2] else Status.PRESENT) for c in clips]
    second.write_unit(0, features, states)
    diff = diff_groups(name_of(first), name_of(second), block_bytes=1)  # several blocks
    assert diff_groups(name_of(first), name_of(second)) == diff
    assert diff.identity == (("weights", "random:0", "random:7"),)
    assert (diff.only_first, diff.only_second) == ((CLIPS[0],), ("new",))
    assert diff.status == (
        (CLIPS[1], "absent no_track", "present"),
        (CLIPS[2], "present", "failed no_track"),
        (CLIPS[6], "failed no_track", "present"),
    )
    shared = [c for c in CLIPS[1:] if c not in (CLIPS[1], CLIPS[2], CLIPS[6])]
    by_view = {v.view: v for v in diff.views}
    assert list(by_view) == list(VIEWS)
    assert (by_view["clean0"].clips, by_view["clean0"].equal) == (len(shared), len(shared))
    assert by_view["clean0"].lowest_cosine == pytest.approx(1)
    changed = by_view["weak0"]
    assert (changed.equal, changed.largest_clip) == (len(shared) - 1, CLIPS[3])
    assert changed.largest == pytest.approx(2, abs=0.01)
    x, y = values(CLIPS[3])[1].astype(float), features[2, 1].astype(float)
    assert changed.lowest_cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    show_cache.show_diff(diff)
    show_cache.show_diff(diff_groups(name_of(first), name_of(first)))
    text = printed.export_text()
    assert "identity weights: 'random:0' in A, 'random:7' in B" in text
    assert "1 clips only in B: new" in text
    assert "Digests are equal" in text
    other = make_group(root, dim=3, weights="random:8")
    assert "5 and of 3 values" in diff_groups(name_of(first), name_of(other)).note


def test_export_import_and_pack_by_name(root: Path, tmp_path: Path, printed: Console) -> None:
    clips = tuple(Clip(c, "kitchen", "run", "train", "", {"video": Path("/x.mp4")}) for c in CLIPS)
    data = Manifest("small", ("run",), ("kitchen",), clips, tmp_path)
    written = export_groups(root, (), tmp_path / "out", "hdf5", "small", data)
    assert [p.suffix for p in written] == [".h5", ".parquet"] * 2
    show_cache.show_exported(written)
    shutil.rmtree(root / "small")
    report = import_features(written[2], root, None, Layout(), Matching())
    assert report.digest == make_group(root).digest()
    declared = Declared("mine", "video", "i3d", "theirs", views=VIEWS)
    report = import_features(written[2], root, declared, Layout(), Matching(), data)
    assert {r.clip_id for r in report.failed} == set(STATES)
    assert report.digest == FeatureGroup(Path(report.path)).digest()
    show_cache.show_imported(report)
    assert find_group(root, "mine/video").modality == "video"
    show_cache.show_groups(list_groups(root))
    assert pack_groups(root, ["mine/video"])[0].exists()
    text = printed.export_text()
    assert text.count("imported, its provenance is declared and not checked") == 2
    with pytest.raises(UsageError, match="'zip' is not a format"):
        export_groups(root, (), tmp_path, "zip")
