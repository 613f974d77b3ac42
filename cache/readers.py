"""Cached features in memory: whole groups, some clips or views, tensors on a device, and several modalities joined.

Training reads features once and works on arrays, so reading is whole chunks into one array that is made once, checked
by their checksums on the way. A group that is larger than memory is read in blocks (``blocks``), through Dask
(``cache.arrays``) or from a packed copy (``cache.packed``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.chunks import THREADS, ChunkFiles, parts_of, read_parts
from cache.layout import CacheError, ClipRecord, Identity, Status
from cache.places import LocalPlace
from cache.store import FeatureGroup

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 2**25  # of features that ``blocks`` reads at once


@dataclass(frozen=True)
class FeatureBlock:
    """Features of some clips and views in memory."""

    identity: Identity  # of the group; its views are all that it holds
    views: tuple[str, ...]  # those that are here, in the order of the view axis
    clip_ids: tuple[str, ...]
    features: NDArray[Any]  # (clips, views, dim) float16; NaN where not present
    records: tuple[ClipRecord, ...]  # one per clip

    @property
    def status(self) -> NDArray[np.uint8]:
        """``(clips,)`` uint8 as in ``Status``."""
        return np.array([r.status for r in self.records], dtype=np.uint8)

    @property
    def present(self) -> NDArray[np.bool_]:
        """``(clips,)``: whether a clip has features."""
        return np.array([r.status is Status.PRESENT for r in self.records], dtype=bool)


class GroupReader:
    """Reads rows of a group by clip id; what is committed is looked up once, when the reader is made."""

    def __init__(self, group: FeatureGroup, threads: int = THREADS) -> None:
        self.group = group
        self.threads = threads
        self.files = ChunkFiles.of(group.path) if isinstance(group.place, LocalPlace) else None
        self.row = {clip_id: i for i, clip_id in enumerate(group.clip_ids) if clip_id}
        self.records = group.records()
        self.dtype: np.dtype[Any] = np.dtype(group.identity.dtype)

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """All clips of the group, in row order."""
        return tuple(self.row)

    def record(self, clip_id: str) -> ClipRecord:
        """What is known about a clip of the group; ``TODO`` where its unit is not finished."""
        return self.records.get(clip_id, ClipRecord(clip_id, Status.TODO))

    def positions(self, views: Sequence[str] | None) -> list[int]:
        """Positions of views on the view axis; ``None``: all.

        Raises:
            CacheError: a view that the group does not hold.
        """
        names = self.group.identity.views
        wrong = [v for v in views or () if v not in names]
        if wrong:
            raise CacheError(
                f"{wrong[0]!r} is not a view of {self.group.place.name}; it holds {', '.join(names)}. Another set of "
                "views is another group: extract it"
            )
        return list(range(len(names))) if views is None else [names.index(v) for v in views]

    def check(self, clip_ids: Sequence[str], finished: bool = False) -> None:
        """Refuse clips that the group does not know, or, where they must be finished, has not extracted yet.

        Raises:
            CacheError: names how many and the first.
        """
        missing = [c for c in clip_ids if c not in self.row or (finished and c not in self.records)]
        if missing:
            raise CacheError(
                f"{len(missing)} of {len(clip_ids)} clips have no {self.group.identity.modality} features yet in "
                f"{self.group.place.name} (first: {missing[0]!r}); run `pipe extract` first, it goes on where it "
                "stopped"
            )

    def read(self, clip_ids: Sequence[str], views: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Features ``(clips, len(views), dim)`` of clips that the group knows; NaN where a clip is not present.

        Args:
            clip_ids: in the order wanted, repetitions allowed.
            views: positions on the view axis.
            out: array to fill, for example pinned memory; default: a new one.

        Raises:
            CacheError: a finished unit's chunk is missing or damaged.
        """
        shape = (len(clip_ids), len(views), self.group.dim)
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype:
            raise CacheError(f"the array to fill is {out.dtype} {out.shape}; {self.dtype} {shape} is needed")
        done = np.array([c in self.records for c in clip_ids], dtype=bool)
        out[~done] = np.nan  # whatever lies in chunks of units that are not finished is no feature
        rows = np.array([self.row[c] for c in clip_ids], dtype=np.int64)
        if not done.any():
            return out
        if self.files is None:
            self._read_from_place(rows, done, views, out)
            return out
        targets = np.flatnonzero(done)
        parts = parts_of(rows[targets], self.group.unit)
        if len(targets) != len(rows):
            parts = [type(p)(p.unit, p.source, targets[p.target]) for p in parts]
        read_parts(self.files, parts, views, out, self.threads)
        return out

    def _read_from_place(
        self, rows: NDArray[np.int64], done: NDArray[np.bool_], views: Sequence[int], out: NDArray[Any]
    ) -> None:
        """As ``read_parts``, for a group that is not in a local folder."""
        targets = np.flatnonzero(done)
        for part in parts_of(rows[targets], self.group.unit):
            names = [f"features/c/{part.unit}/{view}/0" for view in views]
            for position, (name, data) in enumerate(zip(names, self.group.place.read_many(names), strict=True)):
                try:
                    if data is None:
                        raise ValueError("it is missing")
                    out[targets[part.target], position] = self.group.format.decode(data)[part.source]
                except ValueError as error:
                    raise CacheError(
                        f"{self.group.place}/{name} is damaged ({error}); run `pipe extract` again: it finds damaged "
                        "units and makes them anew"
                    ) from error


def read_group(
    group: FeatureGroup,
    clip_ids: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    threads: int = THREADS,
) -> FeatureBlock:
    """Read clips and views of a group into memory; only the chunks that hold them are opened, their checksums checked.

    Args:
        group: where from.
        clip_ids: in the order wanted; default: all. Clips that are not extracted yet are rows of NaN, status ``TODO``.
        views: names, in the order wanted; default: all.
        threads: that read at the same time.

    Raises:
        CacheError: an unknown clip or view, or a damaged chunk.
    """
    reader = GroupReader(group, threads)
    ids = reader.clip_ids if clip_ids is None else tuple(clip_ids)
    reader.check(ids)
    positions = reader.positions(views)
    features = reader.read(ids, positions)
    names = tuple(group.identity.views[p] for p in positions)
    return FeatureBlock(group.identity, names, ids, features, tuple(reader.record(c) for c in ids))


def blocks(
    reader: GroupReader, clip_ids: Sequence[str], views: Sequence[int], block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Read clips a block at a time, for groups larger than memory.

    Args:
        reader: where from.
        clip_ids: in the order wanted; in row order every chunk is read once.
        views: positions on the view axis.
        block_bytes: of features at once, about.

    Yields:
        Positions of the block among the clips (no unit is cut where clips are in row order), and its features
        ``(clips, views, dim)``, an array that is used again.
    """
    unit = reader.group.unit
    per_clip = max(1, len(views) * reader.group.dim * reader.dtype.itemsize)
    step = max(1, block_bytes // per_clip // unit) * unit
    buffer = np.empty((min(step, len(clip_ids)), len(views), reader.group.dim), reader.dtype)
    units = np.array([reader.row[c] for c in clip_ids], dtype=np.int64) // unit
    edges = np.append(np.flatnonzero(np.diff(units)) + 1, len(clip_ids))
    start = 0
    while start < len(clip_ids):
        last = int(np.searchsorted(edges, start + step, side="right")) - 1
        end = int(edges[last]) if last >= 0 and edges[last] > start else start + step
        some = clip_ids[start:end]
        yield slice(start, end), reader.read(some, views, buffer[: len(some)])
        start = end


def load_tensor(
    group: FeatureGroup,
    clip_ids: Sequence[str],
    views: Sequence[str] | None = None,
    device: str = "cpu",
    pinned: bool = False,
    threads: int = THREADS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of finished clips as a tensor.

    Args:
        group: where from.
        clip_ids: in the order wanted.
        views: names; default: all.
        device: of the result. To a GPU the features go in blocks through two pinned buffers, so that the host holds
            tens of MiB and reading and copying overlap.
        pinned: the result lies in page-locked memory of the host (``device`` is ``cpu``), for copies of one's own.
        threads: that read at the same time.

    Returns:
        Features ``(clips, views, dim)`` float16, zero where not present; presence ``(clips,)`` bool, on the device.

    Raises:
        CacheError: a clip is not extracted yet, a view is unknown, or a chunk is damaged.
    """
    import torch

    reader = GroupReader(group, threads)
    reader.check(clip_ids, finished=True)
    positions = reader.positions(views)
    there = np.array([reader.records[c].status is Status.PRESENT for c in clip_ids], dtype=bool)
    present = torch.from_numpy(there).to(device)
    shape = (len(clip_ids), len(positions), group.dim)
    if torch.device(device).type != "cpu":
        features = _to_device(reader, clip_ids, positions, device)
    else:
        features = torch.empty(shape, dtype=_torch_dtype(reader), pin_memory=pinned)
        reader.read(clip_ids, positions, features.numpy())
    features[~present] = 0
    return features, present


def _torch_dtype(reader: GroupReader) -> torch.dtype:
    import torch

    return torch.float32 if reader.dtype.itemsize == 4 else torch.float16


def _to_device(reader: GroupReader, clip_ids: Sequence[str], views: Sequence[int], device: str) -> torch.Tensor:
    """Blocks through two pinned buffers: one is filled while the other is copied."""
    import torch

    shape = (len(views), reader.group.dim)
    features = torch.empty((len(clip_ids), *shape), dtype=_torch_dtype(reader), device=device)
    step = max(1, BLOCK_BYTES // max(1, shape[0] * shape[1] * reader.dtype.itemsize))
    cuda = torch.device(device).type == "cuda"
    buffers = [torch.empty((min(step, len(clip_ids)), *shape), dtype=features.dtype, pin_memory=cuda) for _ in "ab"]
    copied: list[torch.cuda.Event | None] = [None, None]
    for number, start in enumerate(range(0, len(clip_ids), step)):
        some = clip_ids[start : start + step]
        waiting = copied[number % 2]
        if waiting is not None:
            waiting.synchronize()
        block = buffers[number % 2][: len(some)]
        reader.read(some, views, block.numpy())
        features[start : start + len(some)].copy_(block, non_blocking=cuda)
        if cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(torch.device(device)))
            copied[number % 2] = event
    if cuda:
        torch.cuda.current_stream(torch.device(device)).synchronize()
    return features


class CachedFeatures:
    """Several modalities in memory, joined by clip id: a map-style data set for ``torch.utils.data.DataLoader``.

    An item is a dictionary that the default collation of PyTorch turns into a batch: ``clip_id``; per modality
    ``<modality>`` features ``(views, dim)`` float16, zero where not present, and ``<modality>_present`` bool.
    """

    def __init__(
        self,
        groups: Mapping[str, FeatureGroup],
        clip_ids: Sequence[str] | None = None,
        views: Sequence[str] | None = None,
    ) -> None:
        """Read the modalities.

        Args:
            groups: per modality.
            clip_ids: in the order wanted; default: the clips that every group knows, in the first one's order. A clip
                that a group does not know at all is an error: an absent track is a recorded fact, never a gap.
            views: names; default: those of each group.

        Raises:
            CacheError: no group, or a clip that is not extracted yet in a modality.
        """
        if not groups:
            raise CacheError("no group was given; name at least one per modality, for example video=...")
        readers = {m: GroupReader(g) for m, g in groups.items()}
        if clip_ids is None:
            first, *others = readers.values()
            clip_ids = [c for c in first.clip_ids if all(c in r.row for r in others)]
        self.clip_ids = tuple(clip_ids)
        self.features: dict[str, torch.Tensor] = {}
        self.present: dict[str, torch.Tensor] = {}
        for modality, reader in readers.items():
            tensor, there = load_tensor(reader.group, self.clip_ids, views)
            self.features[modality], self.present[modality] = tensor, there

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, position: int) -> dict[str, Any]:
        item: dict[str, Any] = {"clip_id": self.clip_ids[position]}
        for modality, values in self.features.items():
            item[modality] = values[position]
            item[f"{modality}_present"] = self.present[modality][position]
        return item
