"""Views for xarray and Dask, and statistics of given clips: NumPy's numbers, with bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cache.arrays import as_dask, as_xarray
from cache.layout import CacheError, Status
from cache.statistics import fit_components, fit_spread
from cache.store import FeatureGroup
from tests.unit.cache_groups import CLIPS, DIM, STATES, VIEWS, chunk, flip, make_group


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> FeatureGroup:
    return make_group(tmp_path_factory.mktemp("cache"), grown=6)


@pytest.mark.parametrize("lazy", [True, False])
def test_xarray_has_names_for_everything(group: FeatureGroup, lazy: bool) -> None:
    found = as_xarray(group, lazy=lazy)
    assert found.features.dims == ("clip", "view", "dim")
    assert found.features.values.tobytes() == group.load().features.tobytes()
    assert (found.features.chunks is not None) is lazy
    assert found["clip"].values.tolist() == list(CLIPS)
    assert found["view"].values.tolist() == list(VIEWS)
    assert found.sel(clip=CLIPS[1]).status.item() == "absent"
    assert found.sel(clip=CLIPS[6]).detail.item() == f"why {CLIPS[6]} has none"
    assert found.sel(clip=CLIPS[6]).code.item() == "no_track"
    assert json.loads(found.attrs["identity"]) == json.loads(json.dumps(group.identity.to_json()))
    assert found.attrs["digest"] == group.digest()
    assert found.attrs["note_weights"] == "made for a test"
    one = as_xarray(group, CLIPS[4:2:-1], ["strong0"], lazy=lazy)
    expected = found.features.sel(clip=list(CLIPS[4:2:-1]), view=["strong0"])
    assert one.features.values.tobytes() == expected.values.tobytes()


def test_dask_reads_blocks_as_they_are_computed(group: FeatureGroup, tmp_path: Path) -> None:
    found = as_dask(group, block_bytes=1)
    assert found.chunks[0] == (4, 4, 2)
    assert found.dtype == np.float16
    assert found.compute(scheduler="single-threaded").tobytes() == group.load().features.tobytes()
    means = found.astype("float64").mean(axis=(1, 2)).compute(scheduler="threads", num_workers=2)
    assert np.allclose(means, group.load().features.astype(float).mean(axis=(1, 2)), equal_nan=True)
    damaged = make_group(tmp_path)
    flip(chunk(damaged, 2), 0)
    lazy = as_dask(damaged, block_bytes=1)
    assert lazy[:4, 1:, 2].compute(scheduler="single-threaded").shape == (4, 2)
    with pytest.raises(CacheError, match="crc32c"):
        lazy.compute(scheduler="single-threaded")
    with pytest.raises(CacheError, match="nobody"):
        as_dask(group, ["nobody"])


def rows_of(group: FeatureGroup, clips: tuple[str, ...], views: list[int]) -> np.ndarray:
    table = group.load()
    rows = [i for i, r in enumerate(table.records) if r.clip_id in clips and r.status is Status.PRESENT]
    return table.features[rows][:, views].reshape(-1, DIM).astype(np.float64)


@pytest.mark.parametrize("block_bytes", [1, 10**6])
@pytest.mark.parametrize("views", [None, ["strong0", "clean0"]])
def test_statistics_are_those_of_numpy(group: FeatureGroup, block_bytes: int, views: list[str] | None) -> None:
    clips = CLIPS[7:0:-1]
    rows = rows_of(group, clips, [0, 1, 2] if views is None else [2, 0])
    spread = fit_spread(group, clips, views, block_bytes)
    assert spread.count == len(rows)
    assert np.allclose(spread.mean, rows.mean(axis=0), rtol=0, atol=1e-12)
    assert np.allclose(spread.std, rows.std(axis=0), rtol=0, atol=1e-12)
    standard = spread.apply(rows)
    assert np.abs(standard.mean(axis=0)).max() < 1e-6
    assert np.abs(standard.std(axis=0) - 1).max() < 1e-6
    found = fit_components(group, clips, 3, views, block_bytes)
    centred = rows - rows.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    assert np.allclose(found.axes, (axes * signs[:, None])[:3], rtol=0, atol=1e-6)
    assert np.allclose(found.variances, sizes[:3] ** 2 / len(rows), rtol=1e-6)
    assert np.isclose(found.total_variance, (sizes**2).sum() / len(rows))
    white = found.apply(rows, whiten=True)
    assert np.allclose(np.cov(white.T, bias=True), np.eye(3), atol=1e-5)
    assert np.allclose(found.apply(rows), centred @ found.axes.T, atol=1e-5)


def test_only_the_clips_given_are_seen(group: FeatureGroup, tmp_path: Path) -> None:
    other = make_group(tmp_path, states={**STATES, CLIPS[9]: Status.FAILED}, grown=6)
    assert np.array_equal(fit_spread(group, CLIPS[:8]).mean, fit_spread(other, CLIPS[:8]).mean)
    assert not np.array_equal(fit_spread(group, CLIPS).mean, fit_spread(other, CLIPS).mean)


def test_what_cannot_be_fitted_is_said(group: FeatureGroup, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="named twice"):
        fit_spread(group, [CLIPS[0], CLIPS[0]])
    with pytest.raises(CacheError, match="none of the 2 clips"):
        fit_spread(group, list(STATES))
    with pytest.raises(CacheError, match="6 components of 24 rows of 5 values; 1 to 5"):
        fit_components(group, CLIPS, 6)
    with pytest.raises(CacheError, match="3 components of 3 rows of 5 values; 1 to 2"):
        fit_components(group, CLIPS[:1], 3)
    todo = make_group(tmp_path)
    todo.forget_unit(0)
    with pytest.raises(CacheError, match="pipe extract"):
        fit_spread(todo, CLIPS)


def test_memory_does_not_grow_with_the_group(tmp_path: Path) -> None:
    peaks = []
    for count in (400, 3200):
        clips = [f"{i}" for i in range(count)]
        group = make_group(tmp_path / str(count), clips, {}, dim=64, unit=100)
        bytes_ = count * len(VIEWS) * 64 * 2
        fit_components(
            group, clips, 2, block_bytes=bytes_ // 40
        )  # imports and caches of NumPy are not what is measured
        tracemalloc.start()
        fit_components(group, clips, 2, block_bytes=150_000)
        peaks.append(
            tracemalloc.get_traced_memory()[1] - 800 * count
        )  # ids and records stay in memory, 800 bytes a clip
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 400_000  # the features alone are 1.2 MB in float16, 4.9 MB in float64
