"""Reading a group into memory: what Zarr reads, only the chunks needed, and nothing that is damaged or unfinished."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.chunks import ChunkError, ChunkFiles, ChunkReader, parts_of
from cache.layout import CacheError, Status
from cache.places import place_of
from cache.readers import CachedFeatures, GroupReader, blocks, load_tensor, read_group
from cache.store import FeatureGroup
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
    values,
)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> FeatureGroup:
    return make_group(tmp_path_factory.mktemp("cache"), grown=3)


def by_zarr(group: FeatureGroup) -> np.ndarray:
    rows = [i for i, c in enumerate(group.clip_ids) if c]
    return np.asarray(zarr.open_group(str(group.path), mode="r")["features"][:])[rows]


def test_the_whole_group_is_what_zarr_reads(group: FeatureGroup) -> None:
    assert ChunkFiles.of(group.path) is not None
    block = read_group(group)
    assert block.features.tobytes() == by_zarr(group).tobytes()
    table = group.load()
    assert block.features.tobytes() == table.features.tobytes()
    assert (block.clip_ids, block.records, block.views) == (table.clip_ids, table.records, VIEWS)
    assert block.status.tolist() == [STATES.get(c, Status.PRESENT) for c in block.clip_ids]
    assert block.present.tolist() == [c not in STATES for c in block.clip_ids]


@settings(max_examples=25, deadline=None)
@given(
    clips=st.lists(st.sampled_from(CLIPS), min_size=0, max_size=14),
    views=st.lists(st.sampled_from(VIEWS), min_size=1, max_size=4),
    threads=st.integers(1, 3),
)
def test_any_clips_and_views_in_any_order(
    group: FeatureGroup, clips: list[str], views: list[str], threads: int
) -> None:
    block = read_group(group, clips, views, threads)
    assert block.features.shape == (len(clips), len(views), DIM)
    assert block.clip_ids == tuple(clips)
    assert block.views == tuple(views)
    whole = read_group(group)
    rows = [whole.clip_ids.index(c) for c in clips]
    expected = whole.features[rows][:, [VIEWS.index(v) for v in views]]
    assert block.features.tobytes() == expected.tobytes()


@settings(max_examples=20, deadline=None)
@given(clips=st.permutations(CLIPS), size=st.integers(1, 400), in_order=st.booleans())
def test_blocks_are_all_clips_once_and_cut_no_unit(
    group: FeatureGroup, clips: list[str], size: int, in_order: bool
) -> None:
    reader = GroupReader(group)
    ids = reader.clip_ids if in_order else tuple(clips)
    seen: list[str] = []
    for where, features in blocks(reader, ids, [2, 0], size):
        assert features.tobytes() == reader.read(ids[where], [2, 0]).tobytes()
        assert features.nbytes <= max(size, UNIT * 2 * DIM * 2)
        seen += ids[where]
        if in_order and len(seen) < len(ids):
            assert reader.row[ids[len(seen)]] // UNIT != reader.row[seen[-1]] // UNIT
    assert tuple(seen) == ids


def test_only_the_chunks_that_are_needed_are_opened(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    for unit in range(group.num_units):
        for view in range(len(VIEWS)):
            if (unit, view) != (1, 2):
                chunk(group, unit, view).unlink()
    block = read_group(group, [CLIPS[5], CLIPS[4]], ["strong0"])
    assert np.array_equal(block.features[:, 0], np.stack([values(CLIPS[5])[2], values(CLIPS[4])[2]]))


def test_float32_is_read_as_it_is(tmp_path: Path) -> None:
    group = make_group(tmp_path, settings={"dtype": "float32"})
    block = read_group(group)
    assert block.features.dtype == np.float32
    assert block.features.tobytes() == group.load().features.tobytes()
    tensor, _ = load_tensor(group, CLIPS)
    assert tensor.dtype == torch.float32


def test_unfinished_units_are_nan_whatever_lies_in_their_chunks(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    group.forget_unit(1)
    block = read_group(group)
    rows = slice(UNIT, 2 * UNIT)
    assert np.isnan(block.features[rows]).all()
    assert [r.status for r in block.records[rows]] == [Status.TODO] * UNIT
    with pytest.raises(CacheError, match=r"4 of 10 clips have no video features.*pipe extract"):
        load_tensor(group, CLIPS)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda p: p.unlink(), "chunk_missing"),
        (lambda p: os.truncate(p, 43), "chunk_cut"),
        (lambda p: os.truncate(p, 0), "chunk_cut"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "chunk_cut"),
        (lambda p: flip(p, 7, 3), "chunk_checksum"),
        (lambda p: flip(p, 41), "chunk_checksum"),  # in the checksum itself
    ],
)
def test_a_damaged_chunk_is_an_error_with_its_file(tmp_path: Path, damage, code: str) -> None:  # type: ignore[no-untyped-def]
    group = make_group(tmp_path)
    damage(chunk(group, 1, 2))
    with pytest.raises(ChunkError, match="pipe extract") as caught:
        read_group(group)
    assert (caught.value.code, caught.value.path) == (code, chunk(group, 1, 2))
    read_group(group, CLIPS[:UNIT])  # the others are fine


def test_unknown_clips_and_views_are_named(group: FeatureGroup) -> None:
    with pytest.raises(CacheError, match=r"1 of 2 clips.*'nobody'"):
        read_group(group, [CLIPS[0], "nobody"])
    with pytest.raises(CacheError, match=r"'weak9' is not a view .*clean0, weak0, strong0"):
        read_group(group, views=["weak9"])


def test_another_codec_is_left_to_the_store(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    path = group.path / "features" / "zarr.json"
    text = path.read_text()
    for old, new in (('"little"', '"big"'), ('"separator": "/"', '"separator": "."'), ('"crc32c"', '"zstd"')):
        path.write_text(text.replace(old, new))
        assert ChunkFiles.of(group.path) is None
    path.write_text("{")
    assert ChunkFiles.of(group.path) is None


def test_a_group_elsewhere_is_read_through_its_place(tmp_path: Path) -> None:
    local = make_group(tmp_path)
    root = place_of("memory://cache-readers")
    elsewhere = fill(FeatureGroup.open_or_create(root, make_identity(), CLIPS, DIM, UNIT, {}))
    block = read_group(elsewhere, CLIPS[::-1], ["weak0", "clean0"])
    assert block.features.tobytes() == read_group(local, CLIPS[::-1], ["weak0", "clean0"]).features.tobytes()
    name = f"features/c/{1}/{0}/0"
    data = elsewhere.place.read_bytes(name)
    elsewhere.place.write_atomically(name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CacheError, match="damaged"):
        read_group(elsewhere)


def test_the_array_to_fill_must_fit(group: FeatureGroup) -> None:
    with pytest.raises(CacheError, match=r"float32 \(1, 1, 5\); float16 \(1, 1, 5\) is needed"):
        GroupReader(group).read(CLIPS[:1], [0], np.empty((1, 1, DIM), np.float32))


@pytest.mark.parametrize("rows", [(0, 0, 2), (0, 2, 2), (0, 1, 1, 3), (0, 1, 2, 3), (3,)])
def test_repeated_rows_are_no_stretch(group: FeatureGroup, rows: tuple[int, ...]) -> None:
    clips = [CLIPS[3 + row] for row in rows]
    assert np.array_equal(
        read_group(group, clips, ["weak0"]).features[:, 0], [by_zarr(group)[3 + r, 1] for r in rows], True
    )


def test_parts_keep_repetitions_and_order() -> None:
    parts = parts_of(np.array([9, 1, 8, 1]), 4)
    assert [(p.unit, p.source.tolist(), p.target.tolist()) for p in parts] == [(0, [1, 1], [1, 3]), (2, [0, 1], [2, 0])]
    assert parts_of(np.array([], dtype=np.int64), 4) == []


def test_a_reader_gives_whole_chunks_with_padding(group: FeatureGroup) -> None:
    files = ChunkFiles.of(group.path)
    assert files is not None
    whole = ChunkReader(files).read(0, 1)
    assert whole.shape == (UNIT, DIM)
    assert np.isnan(whole[3]).all()  # the group grew after three clips


def test_tensors_are_zero_where_not_present(group: FeatureGroup) -> None:
    features, present = load_tensor(group, CLIPS[:3], ["weak0"])
    assert features.dtype == torch.float16
    assert present.tolist() == [True, False, True]
    assert not features[1].any()
    assert np.array_equal(features[2, 0].numpy(), values(CLIPS[2])[1])


def test_a_device_gets_the_same_through_blocks(group: FeatureGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.readers.BLOCK_BYTES", 3 * len(VIEWS) * DIM * 2)
    from cache import readers

    copied = readers._to_device(GroupReader(group), CLIPS, [0, 1, 2], "cpu")
    assert copied.numpy().tobytes() == read_group(group, CLIPS).features.tobytes()
    meta, _ = load_tensor(group, CLIPS, device="meta")
    assert meta.shape == (len(CLIPS), len(VIEWS), DIM)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_and_in_pinned_memory(group: FeatureGroup) -> None:
    expected, there = load_tensor(group, CLIPS)
    features, present = load_tensor(group, CLIPS, device="cuda")
    assert torch.equal(features.cpu(), expected)
    assert torch.equal(present.cpu(), there)
    pinned, _ = load_tensor(group, CLIPS, pinned=True)
    assert pinned.is_pinned()
    assert torch.equal(pinned, expected)


def test_modalities_are_joined_by_clip_id(tmp_path: Path) -> None:
    video = make_group(tmp_path)
    audio = make_group(tmp_path, clips=CLIPS[::-1][:8], modality="audio", dim=2, states={CLIPS[3]: Status.ABSENT})
    joined = CachedFeatures({"video": video, "audio": audio})
    assert joined.clip_ids == CLIPS[2:]
    batch = next(iter(torch.utils.data.DataLoader(joined, batch_size=3)))
    assert batch["clip_id"] == list(CLIPS[2:5])
    assert batch["audio"].shape == (3, len(VIEWS), 2)
    assert batch["audio_present"].tolist() == [True, False, True]
    assert not batch["audio"][1].any()
    assert np.array_equal(batch["audio"][2].numpy(), values(CLIPS[4], dim=2))
    assert np.array_equal(batch["video"][2].numpy(), values(CLIPS[4]))
    with pytest.raises(CacheError, match="audio features"):
        CachedFeatures({"video": video, "audio": audio}, CLIPS)
    with pytest.raises(CacheError, match="no group"):
        CachedFeatures({})
