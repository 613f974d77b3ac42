"""Statistics of features of given clips, a block at a time: mean, spread, and principal components.

Fit them on the source-training clips alone: whatever sees a target or test clip has leaked. A block of features and,
for components, one ``(dim, dim)`` matrix are all that is in memory, however large the group is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import CacheError, Status
from cache.readers import BLOCK_BYTES, GroupReader, blocks
from cache.store import FeatureGroup

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Mean and spread of every value."""

    count: int  # rows: present clips times views
    mean: Floats  # (dim,)
    std: Floats  # (dim,) of the population (divided by ``count``)

    def apply(self, features: NDArray[Any], smallest: float = 1e-6) -> NDArray[np.float32]:
        """Standardised features ``(..., dim)`` float32; values that hardly vary are divided by ``smallest``."""
        scaled = (features.astype(np.float64) - self.mean) / np.maximum(self.std, smallest)
        return scaled.astype(np.float32)


@dataclass(frozen=True)
class Components:
    """Principal components, largest variance first; the largest entry of each is positive, so signs are fixed."""

    count: int  # rows they were fitted on
    mean: Floats  # (dim,)
    axes: Floats  # (components, dim), orthonormal
    variances: Floats  # (components,) along the axes, of the population (divided by ``count``)
    total_variance: float  # of all directions

    def apply(self, features: NDArray[Any], whiten: bool = False, smallest: float = 1e-12) -> NDArray[np.float32]:
        """Coordinates ``(..., components)`` float32 along the axes.

        Args:
            features: ``(..., dim)``.
            whiten: divide by the standard deviation along each axis.
            smallest: variance below which an axis counts as having this much.
        """
        coordinates = (features.astype(np.float64) - self.mean) @ self.axes.T
        if whiten:
            coordinates /= np.sqrt(np.maximum(self.variances, smallest))
        return np.asarray(coordinates, dtype=np.float32)


def fit_spread(
    group: FeatureGroup, clip_ids: Sequence[str], views: Sequence[str] | None = None, block_bytes: int = BLOCK_BYTES
) -> Spread:
    """Mean and standard deviation of every value, over the present ones of the clips and their views.

    Args:
        group: where from.
        clip_ids: those to fit on, each once.
        views: names; default: all.
        block_bytes: of features in memory at once, about.

    Raises:
        CacheError: a clip is not extracted yet or named twice, none is present, or a chunk is damaged.
    """
    count, total = 0, np.zeros(group.dim)
    for rows in _rows(group, clip_ids, views, block_bytes):
        count += len(rows)
        total += rows.sum(axis=0)
    mean = total / count
    squares = np.zeros(group.dim)
    for rows in _rows(group, clip_ids, views, block_bytes):
        rows -= mean
        squares += np.einsum("ij,ij->j", rows, rows)
    return Spread(count, mean, np.sqrt(squares / count))


def fit_components(
    group: FeatureGroup,
    clip_ids: Sequence[str],
    components: int,
    views: Sequence[str] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Components:
    """Principal components of the present ones of the clips and their views.

    Args:
        group: where from.
        clip_ids: those to fit on, each once.
        components: at most ``dim`` and less than the number of rows.
        views: names; default: all.
        block_bytes: of features in memory at once, about.

    Raises:
        CacheError: too many components, a clip is not extracted yet or named twice, none is present, or damage.
    """
    count, total = 0, np.zeros(group.dim)
    for rows in _rows(group, clip_ids, views, block_bytes):
        count += len(rows)
        total += rows.sum(axis=0)
    most = min(group.dim, count - 1)
    if not 1 <= components <= most:
        raise CacheError(f"{components} components of {count} rows of {group.dim} values; 1 to {most} are possible")
    mean = total / count
    scatter = np.zeros((group.dim, group.dim))
    for rows in _rows(group, clip_ids, views, block_bytes):
        rows -= mean
        scatter += rows.T @ rows
    scatter /= count
    variances, vectors = np.linalg.eigh(scatter)
    axes = vectors[:, ::-1][:, :components].T.copy()
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.sign(axes[np.arange(components), largest])[:, None]
    kept = np.maximum(variances[::-1][:components], 0.0)
    return Components(count, mean, axes, kept, float(np.trace(scatter)))


def _rows(
    group: FeatureGroup, clip_ids: Sequence[str], views: Sequence[str] | None, block_bytes: int
) -> Iterator[Floats]:
    """Rows ``(n, dim)`` float64 of present clips, in blocks; the block may be changed."""
    reader = GroupReader(group)
    reader.check(clip_ids, finished=True)
    if len(set(clip_ids)) != len(clip_ids):
        raise CacheError("a clip is named twice among those to fit on; it would count twice")
    there = [c for c in clip_ids if reader.records[c].status is Status.PRESENT]
    if not there:
        raise CacheError(f"none of the {len(clip_ids)} clips has {group.identity.modality} features to fit on")
    there.sort(key=reader.row.__getitem__)  # every chunk is read once
    positions = reader.positions(views)
    # float64 takes four times the memory of float16
    for _, values in blocks(reader, there, positions, max(1, block_bytes * reader.dtype.itemsize // 8)):
        yield values.reshape(-1, group.dim).astype(np.float64)
