"""Features on the training device: whose rows they are, how they are scaled, and which batches a run sees."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.layout import CacheError, ClipRecord, Status
from cache.store import FeatureTable
from pipeline.bank import FeatureBank, Sampler, Standardiser
from pipeline.errors import UsageError
from pipeline.types import Clip, Manifest
from tests.unit.test_cache_store import identity, values

CPU = torch.device("cpu")
VIEWS = ("clean0", "weak0", "weak1", "strong0", "strong1")
POOLS = [[3, 5, 7, 11, 13], [2, 4, 6]]


def manifest(*clip_ids: str) -> Manifest:
    clips = tuple(Clip(c, "yard", "wave", "train", c, {"video": Path("x.mp4")}) for c in clip_ids)
    return Manifest("small", ("wave",), ("yard",), clips, Path())


def table(states: dict[str, Status], views: tuple[str, ...] = VIEWS) -> FeatureTable:
    """A table in the order of ``states``; rows that are not present are NaN, as the cache gives them."""
    features = np.stack([values(c, len(views)) for c in states])
    features[[state is not Status.PRESENT for state in states.values()]] = np.nan
    records = tuple(ClipRecord(c, state) for c, state in states.items())
    return FeatureTable(identity(views=views), "", tuple(states), features, records)


def test_rows_follow_the_manifest_and_absent_ones_are_zero() -> None:
    video = table({"a": Status.PRESENT, "b": Status.FAILED, "c": Status.PRESENT, "d": Status.ABSENT})
    audio = table({"d": Status.ABSENT, "c": Status.PRESENT, "b": Status.PRESENT, "a": Status.ABSENT})
    small = manifest("d", "c", "b", "a")
    bank = FeatureBank.from_tables(small, {"video": video, "audio": audio}, CPU)
    assert bank.present["video"].tolist() == [False, True, False, True]
    assert bank.present["audio"].tolist() == [False, True, True, False]
    zero = np.zeros_like(values("a", len(VIEWS)))
    expected = np.stack([zero, values("c", len(VIEWS)), zero, values("a", len(VIEWS))])
    assert np.array_equal(bank.features["video"].numpy(), expected)
    assert bank.usable(small) == {"a", "b", "c"}
    assert bank.dims == (("video", 3), ("audio", 3))


def test_a_clip_that_was_never_extracted_is_an_error() -> None:
    with pytest.raises(CacheError, match="1 of 2 clips have no video features yet"):
        FeatureBank.from_tables(manifest("a", "new"), {"video": table({"a": Status.PRESENT})}, CPU)


def test_modalities_with_different_views_are_refused() -> None:
    tables = {"video": table({"a": Status.PRESENT}), "audio": table({"a": Status.PRESENT}, VIEWS[:4])}
    with pytest.raises(UsageError, match="different views"):
        FeatureBank.from_tables(manifest("a"), tables, CPU)


def test_views_are_found_by_kind() -> None:
    bank = FeatureBank({}, {}, VIEWS)
    assert [bank.view_positions(kind) for kind in ("clean", "weak", "strong")] == [[0], [1, 2], [3, 4]]


def test_scaling_by_hand() -> None:
    """Mean and deviation come from the clean view of the pool's present clips: 1 and 5, or 5 and 9."""
    clean = torch.tensor([[1.0], [5.0], [9.0], [777.0]])
    features = torch.stack([clean, torch.full((4, 1), 100.0)], 1).half()
    present = torch.tensor([True, True, True, False])
    bank = FeatureBank({"video": features}, {"video": present}, ("clean0", "weak0"))
    scale = Standardiser(bank, [[0, 1, 3], [1, 2]])
    x = torch.tensor([[[5.0], [7.0]], [[5.0], [9.0]]])
    here = torch.tensor([[True, True], [True, False]])
    assert scale("video", x, here)[..., 0].tolist() == [[1, 2], [-1, 0]]  # the last one is absent


def test_a_modality_without_training_clips_is_refused() -> None:
    bank = FeatureBank({"audio": torch.zeros(2, 1, 3)}, {"audio": torch.tensor([False, True])}, ("clean0",))
    with pytest.raises(UsageError, match="no source training clip has audio features; leave audio out"):
        Standardiser(bank, [[0]])


def sampler(name: str = "labeled", seeds: tuple[int, int] = (0, 1)) -> Sampler:
    return Sampler(name, POOLS, seeds, batch=4, views=2)


def test_every_pass_shows_every_clip_once() -> None:
    clips, views = sampler().block(0, 15)
    assert clips.shape == views.shape == (15, 2, 4)
    for run, pool in enumerate(POOLS):
        series = clips[:, run].flatten()
        passes = [tuple(series[start : start + len(pool)].tolist()) for start in range(0, 60, len(pool))]
        assert [sorted(p) for p in passes] == [pool] * len(passes)
        assert len(set(passes)) > len(passes) / 4
    assert Counter(views.flatten().tolist()).keys() == {0, 1}


def test_batches_do_not_depend_on_how_steps_are_cut_or_on_other_runs() -> None:
    clips, views = sampler().block(0, 12)
    for cut in (1, 5, 11):
        parts = [sampler().block(0, cut), sampler().block(cut, 12 - cut)]
        assert np.array_equal(np.concatenate([p[0] for p in parts]), clips)
        assert np.array_equal(np.concatenate([p[1] for p in parts]), views)
    alone = Sampler("labeled", POOLS[1:], (1,), batch=4, views=2).block(0, 12)
    assert np.array_equal(alone[0][:, 0], clips[:, 1])
    assert np.array_equal(alone[1][:, 0], views[:, 1])


def test_seed_and_name_decide_the_batches() -> None:
    first = sampler().block(0, 12)[0]
    assert not np.array_equal(first[:, 0], sampler(seeds=(5, 1)).block(0, 12)[0][:, 0])
    assert not np.array_equal(first[:, 0], sampler("unlabeled").block(0, 12)[0][:, 0])
    assert np.array_equal(first, sampler().block(0, 12)[0])
