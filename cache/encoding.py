"""The bytes of a group's files: chunks and Zarr's descriptions, made in memory so that each is written in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.buffer.cpu import Buffer
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from cache.layout import SCHEMA, CacheError, Identity
from cache.seal import sealed

CHECKSUM_BYTES = 4  # crc32c, little-endian, behind the values
_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


@dataclass(frozen=True)
class FeatureFormat:
    """How features are stored."""

    unit: int  # rows per chunk
    dim: int
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, document: bytes, where: str) -> FeatureFormat:
        """What ``features/zarr.json`` says.

        Raises:
            CacheError: it is damaged, or features are stored in another way.
        """
        try:
            plain = json.loads(document)
            unit, views_at_once, dim = plain["chunk_grid"]["configuration"]["chunk_shape"]
            codecs = [{k: v for k, v in codec.items() if v != {}} for codec in plain["codecs"]]
            if views_at_once != 1 or dim != plain["shape"][2] or codecs != _CODECS:
                raise ValueError("these are not chunks of whole units with a crc32c")
            dtype = np.dtype(plain["data_type"]).newbyteorder("<")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CacheError(
                f"{where}/features/zarr.json is not as pipe writes it ({type(error).__name__}: {error}); delete "
                f"{where} and extract again"
            ) from error
        return cls(int(unit), int(dim), dtype)

    def encode(self, values: NDArray[Any]) -> list[bytes]:
        """Chunks of a unit, one per view.

        Args:
            values: ``(clips, views, dim)`` of the format's dtype; a unit with fewer clips is filled up with NaN.
        """
        chunks = []
        padded = np.full((self.unit, self.dim), np.nan, dtype=self.dtype)
        for view in range(values.shape[1]):
            padded[: len(values)] = values[:, view]
            raw = padded.tobytes()
            chunks.append(raw + google_crc32c.value(raw).to_bytes(CHECKSUM_BYTES, "little"))
        return chunks

    def decode(self, data: bytes) -> NDArray[Any]:
        """Values ``(unit, dim)`` of a chunk.

        Raises:
            ValueError: it is cut or too long, or its checksum is wrong.
        """
        expected = self.unit * self.dim * self.dtype.itemsize + CHECKSUM_BYTES
        if len(data) != expected:
            raise ValueError(f"{len(data)} bytes where {expected} belong")
        raw = memoryview(data)[:-CHECKSUM_BYTES]
        if google_crc32c.value(np.frombuffer(raw, np.uint8)) != int.from_bytes(data[-CHECKSUM_BYTES:], "little"):
            raise ValueError("its checksum is wrong")
        return np.frombuffer(raw, self.dtype).reshape(self.unit, self.dim)


def descriptions(identity: Identity, dim: int, unit: int, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Zarr's own files of an empty group, by name.

    Args:
        identity: what the features are.
        dim: feature dimension.
        unit: rows per chunk.
        facts: more attributes of the group.
    """
    files: dict[str, Any] = {}
    group = zarr.open_group(
        MemoryStore(files),
        mode="w",
        zarr_format=3,
        attributes=sealed({"schema": SCHEMA, "identity": identity.to_json(), **facts}),
    )
    group.create_array(
        "features",
        shape=(0, len(identity.views), dim),
        chunks=(unit, 1, dim),
        dtype=identity.dtype,
        fill_value=float("nan"),
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
        dimension_names=["clip", "view", "dim"],
        attributes={"views": list(identity.views)},
    )
    group.create_array("status", shape=(0,), chunks=(unit,), dtype="uint8", dimension_names=["clip"])
    group.create_array("clip_id", shape=(0,), chunks=(unit,), dtype=str, dimension_names=["clip"])
    return {name: content.to_bytes() for name, content in files.items()}


def rows_of(description: bytes) -> int:
    """Rows of an array, as its description says."""
    return int(json.loads(description)["shape"][0])


def with_rows(description: bytes, rows: int) -> bytes:
    """The description of an array with another number of rows."""
    plain = json.loads(description)
    plain["shape"][0] = rows
    return json.dumps(plain, indent=2).encode()


def encode_rows(description: bytes, array: str, start: int, values: NDArray[Any]) -> dict[str, bytes]:
    """Chunk files of a one-dimensional array, by name, as Zarr writes them.

    Args:
        description: content of the array's ``zarr.json``.
        array: its name.
        start: first row, at the start of a chunk.
        values: ``(rows,)``, up to the end of a chunk or of the array.
    """
    described = with_rows(description, start + len(values))
    files: dict[str, Any] = {f"{array}/zarr.json": Buffer.from_bytes(described)}
    # The setting is not stored with an array; without it a chunk of nothing but fill values would not be written.
    stored = zarr.open_array(MemoryStore(files), path=array, mode="r+").with_config({"write_empty_chunks": True})
    stored[start : start + len(values)] = values
    return {name: content.to_bytes() for name, content in files.items() if not name.endswith("zarr.json")}


def decode_rows(description: bytes, array: str, chunks: Mapping[str, bytes]) -> NDArray[Any]:
    """Values ``(rows,)`` of a one-dimensional array from its chunk files; what is missing has the fill value.

    Raises:
        ValueError: a chunk is damaged.
    """
    files: dict[str, Any] = {name: Buffer.from_bytes(data) for name, data in chunks.items()}
    files[f"{array}/zarr.json"] = Buffer.from_bytes(description)
    try:
        return np.asarray(zarr.open_array(MemoryStore(files), path=array, mode="r")[:])
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{array}: {error}") from error
