"""A group for users of xarray and Dask: lazily read, so it may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import Status
from cache.readers import BLOCK_BYTES, GroupReader
from cache.store import FeatureGroup

if TYPE_CHECKING:
    import dask.array
    import xarray


class LazyFeatures:
    """Features of clips that are read when they are indexed; what ``dask.array.from_array`` takes."""

    def __init__(self, group: FeatureGroup, clip_ids: Sequence[str] | None = None, views: Sequence[str] | None = None):
        """Look up what there is; nothing is read.

        Args:
            group: where from.
            clip_ids: in the order wanted; default: all. Clips that are not extracted yet are rows of NaN.
            views: names, in the order wanted; default: all.

        Raises:
            CacheError: an unknown clip or view.
        """
        self.reader = GroupReader(group, threads=1)  # Dask has its own
        self.clip_ids = self.reader.clip_ids if clip_ids is None else tuple(clip_ids)
        self.reader.check(self.clip_ids)
        self.views = np.array(self.reader.positions(views), dtype=np.int64)
        self.shape = (len(self.clip_ids), len(self.views), group.dim)
        self.dtype = self.reader.dtype
        self.ndim = 3

    def __getitem__(self, key: Any) -> NDArray[Any]:
        clips, views, values = key if isinstance(key, tuple) else (key, slice(None), slice(None))
        return self.reader.read(self.clip_ids[clips], self.views[views].tolist())[:, :, values]


def as_dask(
    group: FeatureGroup,
    clip_ids: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> dask.array.Array:
    """Features ``(clips, views, dim)`` as a Dask array; NaN where not present, checksums verified as blocks are read.

    Args:
        group: where from.
        clip_ids: in the order wanted; default: all.
        views: names, in the order wanted; default: all.
        block_bytes: of a block, about; blocks are whole units where clips are in row order.

    Raises:
        CacheError: an unknown clip or view; when it is computed, a damaged chunk.
    """
    import dask.array

    lazy = LazyFeatures(group, clip_ids, views)
    per_unit = max(1, len(lazy.views) * group.dim * lazy.dtype.itemsize * group.unit)
    step = max(1, block_bytes // per_unit) * group.unit
    chunks = (step, len(lazy.views) or 1, group.dim)
    found: dask.array.Array = dask.array.from_array(  # type: ignore[no-untyped-call]
        lazy, chunks=chunks, asarray=False, fancy=False, lock=False, name=False
    )
    return found


def as_xarray(
    group: FeatureGroup,
    clip_ids: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    lazy: bool = True,
) -> xarray.Dataset:
    """The group as an xarray data set.

    Variable ``features`` ``(clip, view, dim)``, NaN where not present; coordinates ``clip`` (ids), ``view`` (names),
    and per clip ``status`` (todo, present, absent, failed), ``code`` and ``detail`` (why there are no features).
    Attributes: the identity as JSON, the digest, and the notes.

    Args:
        group: where from.
        clip_ids: in the order wanted; default: all.
        views: names, in the order wanted; default: all.
        lazy: features are a Dask array; else they are read now.

    Raises:
        CacheError: an unknown clip or view, or a damaged chunk.
    """
    import xarray

    source = LazyFeatures(group, clip_ids, views)
    records = [source.reader.record(c) for c in source.clip_ids]
    features: Any = as_dask(group, source.clip_ids, views) if lazy else source[:]
    texts = {
        "status": [Status(r.status).name.lower() for r in records],
        "code": [r.code for r in records],
        "detail": [r.detail for r in records],
    }
    coordinates: dict[str, Any] = {
        "clip": np.array(source.clip_ids, dtype=object),
        "view": np.array([group.identity.views[v] for v in source.views.tolist()], dtype=object),
        **{name: ("clip", np.array(values, dtype=object)) for name, values in texts.items()},
    }
    attributes = {
        "identity": json.dumps(group.identity.to_json(), sort_keys=True),
        "digest": group.digest(),
        **{f"note_{name}": text for name, text in group.notes.items()},
    }
    return xarray.Dataset({"features": (("clip", "view", "dim"), features)}, coordinates, attributes)
