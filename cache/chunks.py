"""The chunk files of a local group's features, read straight into one array, each checked by its crc32c.

Zarr's own reading costs about half a millisecond per chunk, and a group of 10,000 clips has thousands of small ones.
What is read here is what Zarr reads (tested); a layout that this reader does not know is left to Zarr.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache.encoding import CHECKSUM_BYTES
from cache.layout import CacheError

THREADS = 2  # more gain nothing from the page cache: memory traffic is the limit
_KEYS = {"name": "default", "configuration": {"separator": "/"}}
_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


class ChunkError(CacheError):
    """A chunk cannot be used.

    Args:
        code: ``chunk_missing``, ``chunk_cut`` or ``chunk_checksum``.
        path: its file.
        detail: what was seen.
    """

    def __init__(self, code: str, path: Path, detail: str) -> None:
        super().__init__(f"{path}: {detail}; run `pipe extract` again: it finds damaged units and makes them anew")
        self.code = code
        self.path = path
        self.detail = detail


@dataclass(frozen=True)
class ChunkFiles:
    """Where the chunks of a features array lie, and what one holds: ``unit`` rows of one view."""

    folder: Path  # of the array
    unit: int  # rows per chunk
    dim: int
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, group: Path) -> ChunkFiles | None:
        """Chunks of the group in a local folder; ``None``: not stored in the way that is read here."""
        try:
            plain = json.loads((group / "features" / "zarr.json").read_text(encoding="utf-8"))
            _, views_at_once, dim = plain["chunk_grid"]["configuration"]["chunk_shape"]
            known = (
                plain["zarr_format"] == 3
                and plain["chunk_grid"]["name"] == "regular"
                and plain["chunk_key_encoding"] == _KEYS
                and [{k: v for k, v in codec.items() if v != {}} for codec in plain["codecs"]] == _CODECS
                and not plain.get("storage_transformers")
                and plain["data_type"] in ("float16", "float32")
                and views_at_once == 1
                and dim == plain["shape"][2]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not known:
            return None
        dtype = np.dtype(plain["data_type"]).newbyteorder("<")
        return cls(group / "features", int(plain["chunk_grid"]["configuration"]["chunk_shape"][0]), int(dim), dtype)

    @property
    def num_bytes(self) -> int:
        """Size of a chunk's values, without the checksum."""
        return self.unit * self.dim * self.dtype.itemsize

    def path(self, unit: int, view: int) -> Path:
        """File of one chunk."""
        return self.folder / "c" / str(unit) / str(view) / "0"


class ChunkReader:
    """Reads one chunk at a time into a buffer of its own; not for several threads at once."""

    def __init__(self, files: ChunkFiles) -> None:
        self.files = files
        self._size = files.num_bytes
        # One byte more than belongs there: a file that is too long shows.
        self._buffer = memoryview(bytearray(self._size + CHECKSUM_BYTES + 1))
        self._bytes = np.frombuffer(self._buffer, np.uint8, self._size)
        self._values = np.frombuffer(self._buffer, files.dtype, files.unit * files.dim).reshape(files.unit, files.dim)
        self._start = f"{files.folder}/c/"

    def read(self, unit: int, view: int) -> NDArray[Any]:
        """Values ``(unit, dim)`` of a chunk; valid until the next call.

        Raises:
            ChunkError: the chunk is missing, cut or too long, or its checksum is wrong.
        """
        try:
            descriptor = os.open(f"{self._start}{unit}/{view}/0", os.O_RDONLY)
        except FileNotFoundError:
            raise ChunkError("chunk_missing", self.files.path(unit, view), "the chunk is missing") from None
        try:
            count = os.readv(descriptor, [self._buffer])
            while 0 < count < self._size + CHECKSUM_BYTES:
                more = os.readv(descriptor, [self._buffer[count:]])
                if not more:
                    break
                count += more
        finally:
            os.close(descriptor)
        if count != self._size + CHECKSUM_BYTES:
            expected = self._size + CHECKSUM_BYTES
            seen = f"{count} bytes" if count < expected else f"more than {expected} bytes"
            detail = f"the chunk has {seen} where {expected} belong"
            raise ChunkError("chunk_cut", self.files.path(unit, view), detail)
        stored = int.from_bytes(self._buffer[self._size : count], "little")
        if google_crc32c.value(self._bytes) != stored:
            raise ChunkError("chunk_checksum", self.files.path(unit, view), "the chunk fails its crc32c")
        return self._values


@dataclass(frozen=True)
class Part:
    """Rows of one unit that are wanted, and where they go."""

    unit: int
    source: NDArray[np.int64]  # rows inside the unit
    target: NDArray[np.int64]  # rows of the array that is filled


def parts_of(rows: NDArray[np.int64], unit: int) -> list[Part]:
    """Sort wanted rows by their unit.

    Args:
        rows: ``(n,)`` rows of the group in the order wanted, repetitions allowed.
        unit: rows per unit.
    """
    order = np.argsort(rows, kind="stable")
    units = rows[order] // unit
    edges = np.flatnonzero(np.diff(units)) + 1
    return [
        Part(int(rows[positions[0]] // unit), rows[positions] % unit, positions)
        for positions in np.split(order, edges)
        if len(positions)
    ]


def read_parts(
    files: ChunkFiles, parts: Sequence[Part], views: Sequence[int], out: NDArray[Any], threads: int = THREADS
) -> None:
    """Read rows into an array; only the chunks that hold them are opened.

    Args:
        files: the chunks.
        parts: what is read, of finished units.
        views: positions on the view axis, in the order wanted.
        out: ``(n, len(views), dim)`` of the group's dtype; rows that no part names are left alone.
        threads: that read at the same time.

    Raises:
        ChunkError: a chunk is missing or damaged.
    """
    threads = max(1, min(threads, len(parts)))
    if threads == 1:
        _read_share(files, parts, views, out)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="chunks") as pool:
        shares = [parts[i * len(parts) // threads : (i + 1) * len(parts) // threads] for i in range(threads)]
        for done in [pool.submit(_read_share, files, share, views, out) for share in shares]:
            done.result()


def _read_share(files: ChunkFiles, parts: Sequence[Part], views: Sequence[int], out: NDArray[Any]) -> None:
    reader = ChunkReader(files)
    for part in parts:
        source, target = _as_slice(part.source), _as_slice(part.target)
        for position, view in enumerate(views):
            out[target, position] = reader.read(part.unit, view)[source]


def _as_slice(rows: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Rows that follow each other as a slice: copied at once, not one by one."""
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first == count - 1 and (count == 1 or bool((np.diff(rows) == 1).all())):
        return slice(first, first + count)
    return rows
