"""What follows from the sound parts of a group is written anew; damaged units become todo; leftovers are deleted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.encoding import CHECKSUM_BYTES, descriptions, encode_rows, with_rows
from cache.findings import Finding, Remedy
from cache.growth import ARRAYS
from cache.layout import Identity, Listing, Status
from cache.places import LocalPlace
from cache.store import FeatureGroup
from cache.structure import read_array, read_json, restored_attributes, stored_unit


def repair_findings(path: Path, name: str, findings: Sequence[Finding]) -> list[str]:
    """Do what can be done about findings: descriptions first, because units are read by them.

    Args:
        path: folder of the group.
        name: what the folder is or will be called.
        findings: of one walk through the group.

    Returns:
        What was done, a sentence each; empty: nothing could be.
    """
    remedies = {f.remedy for f in findings}
    first: list[tuple[Remedy, Callable[[], list[str]]]] = [
        (Remedy.ATTRIBUTES, lambda: _restore_attributes(path, name)),
        (Remedy.CLIPS, lambda: _restore_clips(path)),
        (Remedy.METADATA, lambda: _restore_metadata(path)),
    ]
    for remedy, restore in first:
        if remedy in remedies:
            done = restore()
            if done:
                return done
    done = []
    for file in sorted({f.path for f in findings if f.remedy is Remedy.DELETE and f.path is not None}):
        file.unlink(missing_ok=True)
        done.append(f"deleted {file.relative_to(path).as_posix()}")
    if remedies & {Remedy.ATTRIBUTES, Remedy.CLIPS, Remedy.METADATA}:
        return done  # without sound descriptions nothing is written
    for unit in sorted({f.unit for f in findings if f.remedy is Remedy.FORGET and f.unit is not None}):
        FeatureGroup(path).forget_unit(unit)
        # A damaged chunk that the unit fills in part would be read, and refused, when the unit is written again.
        for chunk in (path / "features" / "c" / str(unit)).glob("*/0"):
            chunk.unlink()
        done.append(f"unit {unit} is todo again")
    if remedies & {Remedy.ARRAYS, Remedy.FORGET}:
        done += _rebuild_arrays(path)
    return done


def _restore_attributes(path: Path, name: str) -> list[str]:
    """Turn back the one bit that makes the identity the folder's again."""
    file = path / "zarr.json"
    restored = restored_attributes(file.read_bytes(), name)
    if restored is None:
        return []
    LocalPlace(path).write_atomically(file.name, restored)
    return ["turned back a flipped bit of zarr.json"]


def _restore_clips(path: Path) -> list[str]:
    """Write clips.json from the clip_id array, wherever the commits agree with it."""
    unit = stored_unit(path)
    try:
        rows = int(read_json(path / "clip_id" / "zarr.json")["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return []
    if unit is None:
        return []
    parts = [read_array(path, "clip_id", unit, number) for number in range(-(-rows // unit))]
    if any(part is None for part in parts):
        return []
    clip_ids = [str(c) for part in parts if part is not None for c in part.tolist()][:rows]
    named = [c for c in clip_ids if c]
    if len(set(named)) != len(named):
        return []
    for number in range(-(-rows // unit)):
        committed = _committed_clips(path, number)
        if committed is not None and committed != [c for c in clip_ids[number * unit : (number + 1) * unit] if c]:
            return []
    LocalPlace(path).write_atomically("clips.json", Listing(unit, tuple(clip_ids)).to_bytes())
    return ["wrote clips.json from the clip_id array"]


def _committed_clips(path: Path, unit: int) -> list[str] | None:
    try:
        return [str(c["clip_id"]) for c in read_json(path / "commits" / f"{unit:06d}.json")["clips"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _restore_metadata(path: Path) -> list[str]:
    """Write the arrays' descriptions as a new group of the same identity, clips and size has them."""
    attributes = read_json(path / "zarr.json")["attributes"]
    clips = read_json(path / "clips.json")
    identity, unit, clip_ids = Identity.from_json(attributes["identity"]), int(clips["unit"]), clips["clip_ids"]
    dim = _stored_dim(path, unit, np.dtype(identity.dtype).itemsize)
    if dim is None:
        return []
    done = []
    made = descriptions(identity, dim, unit, {})
    for array in ARRAYS:
        wanted = with_rows(made[f"{array}/zarr.json"], len(clip_ids))
        if not _says(path / array / "zarr.json", wanted):
            LocalPlace(path).write_atomically(f"{array}/zarr.json", wanted)
            done.append(f"wrote {array}/zarr.json anew")
    return done


def _stored_dim(path: Path, unit: int, itemsize: int) -> int | None:
    """Feature dimension by the size of most chunks, else by the description."""
    sizes: dict[int, int] = {}
    for file in sorted((path / "features" / "c").glob("*/*/0"))[:1000]:
        size = file.stat().st_size - CHECKSUM_BYTES
        sizes[size] = sizes.get(size, 0) + 1
    if sizes:
        dim, rest = divmod(max(sizes, key=lambda s: sizes[s]), unit * itemsize)
        return dim if rest == 0 and dim > 0 else None
    try:
        shape = read_json(path / "features" / "zarr.json")["shape"]
        return int(shape[2])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _says(file: Path, wanted: bytes) -> bool:
    try:
        plain: dict[str, Any] = read_json(file)
    except (OSError, ValueError):
        return False
    described: dict[str, Any] = json.loads(wanted)
    return plain == described


def _rebuild_arrays(path: Path) -> list[str]:
    """Write status and clip_id from clips.json and the commits; units without a commit are todo."""
    group, place = FeatureGroup(path), LocalPlace(path)
    records = group.records()
    states = [records[c].status if c in records else Status.TODO for c in group.clip_ids]
    wanted = {
        "status": np.array(states, dtype=np.uint8),
        "clip_id": np.array([*group.clip_ids, None], dtype=object)[:-1],
    }
    done = []
    for array, values in wanted.items():
        description = place.read_bytes(f"{array}/zarr.json")
        for unit in range(group.num_units):
            start = unit * group.unit
            rows = values[start : start + group.unit]
            there = read_array(path, array, group.unit, unit)
            if there is None or not np.array_equal(there[: len(rows)], rows) or there[len(rows) :].any():
                for name, content in encode_rows(description, array, start, rows).items():
                    place.write_atomically(name, content)
                done.append(f"wrote {array} of unit {unit} anew")
    return done
