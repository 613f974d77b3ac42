"""The descriptions of a group read one by one, none of them trusted: attributes, clips and arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cache.findings import Findings, Remedy
from cache.layout import SCHEMA, Identity
from cache.seal import SEAL, is_intact

DIGEST_DIGITS = 12  # of the identity's digest at the end of a folder name
ATTRIBUTES = frozenset({"schema", "identity", "versions", "notes", SEAL})
WEIGHTS = re.compile(r"sha256:[0-9a-f]{64}|random:-?\d+|declared:.+", re.DOTALL)
FLOATS = ("float16", "float32")
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_MOST_CONTENT = 2**20  # bytes that a chunk of names or states may unpack to,
_MOST_RATIO = 2**10  # or this multiple of its size


@dataclass(frozen=True)
class Structure:
    """What a sound group says of itself."""

    path: Path
    identity: Identity
    unit: int
    clip_ids: tuple[str, ...]  # "" is padding
    dim: int
    dtype: str

    @property
    def num_units(self) -> int:
        """Units, finished or not."""
        return -(-len(self.clip_ids) // self.unit)

    def rows(self, unit: int) -> tuple[str, ...]:
        """Ids of all rows of a unit, padding included; the last unit's may be fewer than ``unit``."""
        return self.clip_ids[unit * self.unit : (unit + 1) * self.unit]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object.
    """
    plain = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(plain, dict):
        raise ValueError(f"a {type(plain).__name__} where an object belongs")
    return plain


def read_structure(path: Path, name: str, found: Findings, known_weights: Collection[str]) -> Structure | None:
    """Check the descriptions of a group.

    Args:
        path: its folder.
        name: what the folder is or will be called.
        found: takes what is wrong.
        known_weights: names of built-in weights.

    Returns:
        What the group is; ``None`` where an error keeps from reading its units.
    """
    identity = read_attributes(path, name, found, known_weights)
    clips = read_clips(path, found)
    if identity is None or clips is None:
        return None
    unit, clip_ids = clips
    stored = stored_unit(path)
    if stored not in (unit, None):
        found.error("clips_unreadable", f"clips.json has units of {unit} rows, the arrays of {stored}", Remedy.CLIPS)
        return None
    wanted = {
        "features": _features_wanted(identity, unit, len(clip_ids)),
        "status": _wanted([len(clip_ids)], [unit], "uint8", 0, ["clip"]),
        "clip_id": _wanted([len(clip_ids)], [unit], "string", "", ["clip"]),
    }
    described = {array: _check_array(path, array, plain, found) for array, plain in wanted.items()}
    features = described["features"]
    if features is None:
        return None
    dim, dtype = int(features["shape"][2]), str(features["data_type"])
    return Structure(path, identity, unit, clip_ids, dim, dtype)


def read_attributes(path: Path, name: str, found: Findings, known_weights: Collection[str]) -> Identity | None:
    """Check ``zarr.json`` of a group; ``None`` where its identity is not to be trusted."""
    file = path / "zarr.json"
    try:
        text = file.read_bytes()
    except OSError as error:
        found.error("attributes_unreadable", f"zarr.json cannot be read ({error.strerror})", Remedy.NONE)
        return None
    problems = attribute_problems(text, name)
    if problems:
        remedy = Remedy.ATTRIBUTES if restored_attributes(text, name) else Remedy.NONE
        for code, detail in problems:
            found.error(code, detail, remedy)
        return None
    attributes = json.loads(text)["attributes"]
    identity = Identity.from_json(attributes["identity"])
    if not attributes.get("versions"):
        found.warn("provenance_missing", "no versions of libraries are recorded", Remedy.NONE)
    note = dict(attributes.get("notes", {})).get("weights", "")
    builtin = identity.weights in known_weights
    if not (builtin or WEIGHTS.fullmatch(identity.weights)):
        found.warn("weights_unknown", f"weights {identity.weights!r} are no digest and no known name", Remedy.NONE)
    elif identity.weights.startswith("sha256:") and not note:
        found.warn("weights_unknown", f"nothing says where {identity.weights[:19]} comes from", Remedy.NONE)
    return identity


def attribute_problems(text: bytes, name: str) -> list[tuple[str, str]]:
    """What is wrong with a group's ``zarr.json``: (code, detail)."""
    try:
        plain = json.loads(text)
        attributes = plain["attributes"]
        if (plain["zarr_format"], plain["node_type"]) != (3, "group") or not isinstance(attributes, dict):
            raise ValueError("no Zarr v3 group")
    except (ValueError, KeyError, TypeError) as error:
        return [("attributes_unreadable", f"zarr.json is damaged ({type(error).__name__}: {error})")]
    if attributes.get("schema") != SCHEMA:
        return [("schema", f"schema {attributes.get('schema')!r}; this version reads {SCHEMA}")]
    unknown = sorted(set(attributes) - ATTRIBUTES)
    if unknown:
        return [("provenance_missing", f"unknown attributes {', '.join(map(repr, unknown))}")]
    stored = attributes.get("identity")
    names = {f.name for f in fields(Identity)}
    required = {f.name for f in fields(Identity) if f.default is MISSING}
    if not isinstance(stored, dict) or not required <= set(stored) <= names:
        missing = sorted(required - set(stored if isinstance(stored, dict) else ()))
        return [("provenance_missing", f"the identity lacks {', '.join(missing) or 'nothing, and has more'}")]
    try:
        digest = Identity.from_json(stored).digest
    except (ValueError, TypeError) as error:
        return [("provenance_missing", f"the identity cannot be read ({error})")]
    if not name.endswith(f"-{digest[:DIGEST_DIGITS]}.zarr"):
        return [("identity_digest", f"the identity has digest {digest[:DIGEST_DIGITS]}, the folder is called {name}")]
    if not is_intact(attributes):
        return [("seal", "zarr.json differs from the digest inside it")]
    return []


def restored_attributes(text: bytes, name: str) -> bytes | None:
    """The text that differs in a single bit and is sound; the folder's name holds 48 bits of the digest.

    Several that say the same (a space where a line ended) are as good as one; if they do not, none is right for sure.
    """
    candidates: list[bytes] = []
    for position in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[position] ^= 1 << bit
            if not attribute_problems(bytes(changed), name):
                candidates.append(bytes(changed))
    if not candidates or any(json.loads(c) != json.loads(candidates[0]) for c in candidates):
        return None
    return candidates[0]


def read_clips(path: Path, found: Findings) -> tuple[int, tuple[str, ...]] | None:
    """Check ``clips.json``: rows per unit and ids."""
    try:
        plain = read_json(path / "clips.json")
        schema, unit, clip_ids = plain["schema"], plain["unit"], plain["clip_ids"]
        if not isinstance(unit, int) or unit < 1 or not isinstance(clip_ids, list):
            raise ValueError("unit or clip_ids is of the wrong kind")
        if not all(isinstance(c, str) for c in clip_ids) or not set(plain) <= {"schema", "unit", "clip_ids", SEAL}:
            raise ValueError("it holds other things than clip ids")
    except (OSError, ValueError, KeyError, TypeError) as error:
        found.error("clips_unreadable", f"clips.json: {type(error).__name__}: {error}", Remedy.CLIPS)
        return None
    if schema != SCHEMA:
        found.error("schema", f"clips.json has schema {schema!r}; this version reads {SCHEMA}", Remedy.CLIPS)
        return None
    if not is_intact(plain):
        found.error("seal", "clips.json differs from the digest inside it", Remedy.CLIPS)
        return None
    return unit, tuple(clip_ids)


def stored_unit(path: Path) -> int | None:
    """Rows per unit as all arrays that can be read have it; ``None`` where they do not agree."""
    units = set()
    for array in ("features", "status", "clip_id"):
        try:
            units.add(int(read_json(path / array / "zarr.json")["chunk_grid"]["configuration"]["chunk_shape"][0]))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
    return units.pop() if len(units) == 1 else None


def _wanted(
    shape: Sequence[int | None], chunks: Sequence[int | None], dtype: str, fill: object, names: Sequence[str]
) -> dict[str, Any]:
    """What the description of an array has to say; ``None`` and keys that are not here are left open."""
    return {
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "dimension_names": list(names),
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _features_wanted(identity: Identity, unit: int, rows: int) -> dict[str, Any]:
    wanted = _wanted([rows, len(identity.views), None], [unit, 1, None], "", "NaN", ["clip", "view", "dim"])
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    return {**wanted, "codecs": codecs, "attributes": {"views": list(identity.views)}}


def _check_array(path: Path, array: str, wanted: Mapping[str, Any], found: Findings) -> dict[str, Any] | None:
    """The description of an array; ``None`` where it is not what the group needs."""
    try:
        plain = read_json(path / array / "zarr.json")
        differs = _differences(plain, wanted, array)
        if not differs:
            zarr.open_array(str(path / array), mode="r")  # whether Zarr agrees
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        differs = f"{type(error).__name__}: {error}"
    if differs:
        found.error("metadata", f"{array}/zarr.json: {differs}", Remedy.METADATA)
        return None
    return plain


def _differences(plain: Mapping[str, Any], wanted: Mapping[str, Any], array: str) -> str:
    if array == "features":
        dim = plain["shape"][2]
        grid = {"name": "regular", "configuration": {"chunk_shape": [*_chunks(wanted)[:2], dim]}}
        wanted = {**wanted, "shape": [*wanted["shape"][:2], dim], "chunk_grid": grid}
        if not isinstance(dim, int) or plain["data_type"] not in FLOATS:
            return f"dim {dim!r}, type {plain['data_type']!r}"
        wanted["data_type"] = plain["data_type"]
    unknown = sorted(set(plain) - set(wanted) - {"codecs"})
    if unknown:
        return f"unknown keys {', '.join(map(repr, unknown))}"
    for key, value in wanted.items():
        if plain.get(key, [] if key == "storage_transformers" else None) != value:
            return f"{key} is {plain.get(key)!r} where {value!r} belongs"
    return ""


def _chunks(wanted: Mapping[str, Any]) -> list[Any]:
    shape: list[Any] = wanted["chunk_grid"]["configuration"]["chunk_shape"]
    return shape


def read_array(path: Path, array: str, unit: int, number: int) -> NDArray[Any] | None:
    """Rows of a chunk of ``status`` (uint8) or ``clip_id`` (text); ``None`` where they cannot be read.

    The chunk is taken apart here and not by Zarr: a flipped bit of a length would have it ask for gigabytes.

    Args:
        path: folder of the group.
        array: ``status`` or ``clip_id``.
        unit: rows per chunk.
        number: of the chunk; one that is not there has the fill value.
    """
    empty: NDArray[Any] = np.zeros(unit, np.uint8) if array == "status" else np.full(unit, "", dtype=object)
    try:
        data = (path / array / "c" / str(number)).read_bytes()
    except FileNotFoundError:
        return empty
    except OSError:
        return None
    try:
        raw = _decompressed(data)
        if array == "status":
            return np.frombuffer(raw, np.uint8) if len(raw) == unit else None
        return _texts(raw, unit)
    except (ValueError, RuntimeError):
        return None


def _decompressed(data: bytes) -> bytes:
    """Content of a zstd frame that says its size, if that is plausible."""
    from numcodecs.zstd import Zstd

    if len(data) < 6 or data[:4] != _ZSTD_MAGIC:
        raise ValueError("no zstd frame")
    flags = data[4]
    width = {0: 1 if flags & 0x20 else 0, 1: 2, 2: 4, 3: 8}[flags >> 6]
    start = 5 + (0 if flags & 0x20 else 1) + {0: 0, 1: 1, 2: 2, 3: 4}[flags & 3]
    size = int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)
    if width == 0 or size > max(_MOST_CONTENT, len(data) * _MOST_RATIO):
        raise ValueError(f"{size} bytes of content in {len(data)}")
    content = bytes(Zstd().decode(data))
    if len(content) != size:
        raise ValueError(f"{len(content)} bytes where {size} belong")
    return content


def _texts(raw: bytes, unit: int) -> NDArray[Any]:
    """Texts as Zarr's vlen-utf8 lays them: their number, then each with its length."""
    if int.from_bytes(raw[:4], "little") != unit:
        raise ValueError("another number of texts")
    texts, position = [], 4
    for _ in range(unit):
        length = int.from_bytes(raw[position : position + 4], "little")
        text = raw[position + 4 : position + 4 + length]
        position += 4 + length
        texts.append(text.decode("utf-8"))
    if position != len(raw):
        raise ValueError("it ends elsewhere")
    return np.array([*texts, None], dtype=object)[:-1]
