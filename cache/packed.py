"""A packed copy of a group: one safetensors file that is mapped into memory, made on request.

The file lies beside its group, ``<group>.safetensors`` for ``<group>.zarr``, and any reader of safetensors opens it:
tensors ``features`` ``(clips, views, dim)`` and ``status`` ``(clips,)``. Its metadata name the source's digest, so a
copy of a group that has changed since is refused, never used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import CacheError, ClipRecord, Identity, Status
from cache.places import LocalPlace
from cache.portable import FORMAT, Portable
from cache.readers import FeatureBlock, GroupReader, blocks
from cache.store import FeatureGroup, FeatureTable

ALIGNMENT = 64  # bytes; where the tensors begin
_HEADER_BYTES = 8  # length of the header, little-endian
_MOST_HEADER = 2**28
_NAMES = {"float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Packed:
    """An open packed copy; ``features`` is mapped and read from the disk as it is touched."""

    path: Path
    identity: Identity
    digest: str  # of the group that it was made from
    clip_ids: tuple[str, ...]
    features: NDArray[Any]  # (clips, views, dim), read-only; NaN where not present
    status: NDArray[np.uint8]  # (clips,)
    metadata: Mapping[str, str]  # everything the file says of itself

    def records(self) -> tuple[ClipRecord, ...]:
        """Record of every clip, as in the group."""
        return Portable.from_texts(self.metadata, self.path).records

    def table(self) -> FeatureTable:
        """What ``FeatureGroup.load`` gives, with mapped features."""
        return FeatureTable(self.identity, self.digest, self.clip_ids, self.features, self.records())


def packed_path(group: Path) -> Path:
    """Where the packed copy of a group lies."""
    return group.with_suffix(".safetensors")


def pack(group: FeatureGroup, path: Path | None = None) -> Path:
    """Write the packed copy of a group: atomically, and compared with the group's commits while it is written.

    Args:
        group: every unit must be finished.
        path: of the file; default: beside the group.

    Raises:
        CacheError: units are todo or damaged, or differ from what was committed.
    """
    known = Portable.of(group)
    path = path or packed_path(group.path)
    reader = GroupReader(group)
    ids = known.clip_ids
    status = np.array([r.status for r in known.records], dtype=np.uint8)
    metadata = {**known.to_texts(), "clip_ids": json.dumps(ids), "commits": commit_marks(group)}
    shape = (len(ids), len(group.identity.views), group.dim)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_header(reader.dtype, shape, metadata))
            waiting = iter(enumerate(known.units))
            for where, values in blocks(reader, ids, range(shape[1])):
                start = 0
                while start < len(values):
                    unit, (count, sha256) = next(waiting)
                    if not _is_committed(values[start : start + count], status[where][start : start + count], sha256):
                        raise CacheError(
                            f"unit {unit} of {group.path} differs from its commit; run `pipe cache verify --repair`, "
                            "then `pipe extract`"
                        )
                    start += count
                file.write(np.ascontiguousarray(values).view(np.uint8).data)
            file.write(status.tobytes())
            file.flush()
            os.fsync(file.fileno())
        if group.digest() != known.digest:
            raise CacheError(f"{group.path.name} changed while it was packed; pack it again")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _header(dtype: np.dtype[Any], shape: tuple[int, int, int], metadata: Mapping[str, str]) -> bytes:
    """Length and text of the header, padded so that the tensors begin aligned."""
    size = int(np.prod(shape)) * dtype.itemsize
    plain = {
        "__metadata__": dict(metadata),
        "features": {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": [0, size]},
        "status": {"dtype": "U8", "shape": [shape[0]], "data_offsets": [size, size + shape[0]]},
    }
    text = json.dumps(plain, separators=(",", ":")).encode()
    text += b" " * (-(_HEADER_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(_HEADER_BYTES, "little") + text


def _is_committed(values: NDArray[Any], status: NDArray[np.uint8], digest: str) -> bool:
    """Whether rows of a whole unit are what was committed, and NaN where a clip is not present."""
    present = status == Status.PRESENT
    if not np.isnan(values[~present]).all():
        return False
    return hashlib.sha256(np.ascontiguousarray(values[present]).tobytes()).hexdigest() == digest


def commit_marks(group: FeatureGroup) -> str:
    """Digest of names, sizes and times of a group's commits: while it is the same, the group is; empty: not known."""
    if not isinstance(group.place, LocalPlace):
        return ""
    state = hashlib.sha256()
    try:
        with os.scandir(group.path / "commits") as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                facts = entry.stat()
                state.update(f"{entry.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    except FileNotFoundError:
        return ""
    return state.hexdigest()


def open_packed(path: Path, group: FeatureGroup | None = None) -> Packed:
    """Map a packed copy into memory.

    Args:
        path: the file.
        group: its source; if given, the copy must be of this state of it.

    Raises:
        CacheError: no packed copy, a cut one, or one of another state of the group.
    """
    try:
        header, start = _read_header(path)
        metadata: dict[str, str] = header["__metadata__"]
        if metadata["format"] != FORMAT:
            raise CacheError(f"{path} is a packed copy of format {metadata['format']!r}; this version reads {FORMAT}")
        entry, states = header["features"], header["status"]
        end = start + int(states["data_offsets"][1])
        if path.stat().st_size != end:
            raise ValueError(f"{path.stat().st_size} bytes where {end} belong")
        dtype = {code: np.dtype(name) for name, code in _NAMES.items()}[entry["dtype"]]
        shape = tuple(int(side) for side in entry["shape"])
        bytes_ = np.memmap(path, np.uint8, "r", start) if end > start else np.empty(0, np.uint8)
        first, last = entry["data_offsets"]
        packed = Packed(
            path=path,
            identity=Identity.from_json(json.loads(metadata["identity"])),
            digest=metadata["digest"],
            clip_ids=tuple(json.loads(metadata["clip_ids"])),
            features=bytes_[first:last].view(dtype).reshape(shape),
            status=bytes_[states["data_offsets"][0] : states["data_offsets"][1]],
            metadata=metadata,
        )
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CacheError(
            f"{path} is no packed copy of a group, or a damaged one ({error}); pack the group again"
        ) from error
    if group is not None and not is_fresh(packed, group):
        raise CacheError(
            f"{path} is a copy of an earlier state of {group.path.name}; pack it again (`pipe cache pack`)"
        )
    return packed


def is_fresh(packed: Packed, group: FeatureGroup) -> bool:
    """Whether the copy is of this state of the group: by the marks of its commits, else by its digest."""
    if packed.identity != group.identity:
        return False
    marks = commit_marks(group)
    return (marks != "" and packed.metadata.get("commits") == marks) or packed.digest == group.digest()


def check_packed(packed: Packed) -> bool:
    """Read the whole copy: whether every row is what was committed, and NaN where a clip is not present."""
    start = 0
    for count, digest in json.loads(packed.metadata["units"]):
        rows = slice(start, start + count)
        if not _is_committed(packed.features[rows], packed.status[rows], digest):
            return False
        start += count
    return start == len(packed.clip_ids)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_BYTES), "little")
        if not 0 < length <= min(_MOST_HEADER, path.stat().st_size):
            raise ValueError(f"a header of {length} bytes")
        header: dict[str, Any] = json.loads(file.read(length))
    return header, _HEADER_BYTES + length


def block_of(packed: Packed) -> FeatureBlock:
    """The whole copy as a block, without reading it."""
    return FeatureBlock(packed.identity, packed.identity.views, packed.clip_ids, packed.features, packed.records())
