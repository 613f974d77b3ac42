"""Finds everything that is wrong with a group: flipped bits, missing chunks, impossible values, unknown provenance.

The group is read unit by unit, so memory does not grow with it. Nothing is taken on trust: files are read as they lie,
and each is compared with what the others say.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.chunks import ChunkError, ChunkFiles, ChunkReader
from cache.findings import Finding, Findings, Remedy, VerifyReport
from cache.layout import CacheError, ClipRecord, Status
from cache.repair import repair_findings
from cache.seal import SEAL, is_intact
from cache.structure import Structure, read_array, read_json, read_structure

LEFTOVER = re.compile(r"\..*\.tmp|.*\.partial|.*\.lease")
STALE_SECONDS = 3600.0  # a temporary file that has not been touched for so long belongs to no living process
MOST_PASSES = 4  # of checking and repairing: a repaired description lets the next be read


def verify(
    path: Path,
    repair: bool = False,
    known_weights: Collection[str] = (),
    stale_seconds: float = STALE_SECONDS,
    name: str = "",
) -> VerifyReport:
    """Check a group in a local folder.

    Args:
        path: its folder.
        repair: mark exactly the units that are damaged todo, write anew what follows from the rest, delete leftovers;
            `pipe extract` then makes those units. The caller keeps other writers away.
        known_weights: names of built-in weights; digests, ``random:SEED`` and ``declared:TEXT`` are always known.
        stale_seconds: age from which a temporary file or lease counts as left over.
        name: what the folder will be called, for a copy that is still in the making; default: as it is called.
    """
    start = time.perf_counter()
    name = name or path.name
    state = _inspect(path, name, known_weights, stale_seconds)
    everything = dict.fromkeys(state.found.found)
    repaired: list[str] = []
    for _ in range(MOST_PASSES if repair else 0):
        done = repair_findings(path, name, state.found.found)
        if not done:
            break
        repaired += done
        state = _inspect(path, name, known_weights, stale_seconds)
        everything |= dict.fromkeys(state.found.found)
    return VerifyReport(
        path=path,
        findings=tuple(everything),
        left=tuple(state.found.found),
        repaired=tuple(repaired),
        units=state.units,
        num_bytes=state.num_bytes,
        seconds=time.perf_counter() - start,
    )


@dataclass
class _State:
    """What a walk through a group gathers."""

    found: Findings
    units: int = 0
    num_bytes: int = 0
    seen: dict[bytes, tuple[str, str]] = field(default_factory=dict)  # digest of a row -> clip, media fingerprint


def _inspect(path: Path, name: str, known_weights: Collection[str], stale_seconds: float) -> _State:
    found = Findings(name)
    state = _State(found)
    structure = read_structure(path, name, found, known_weights)
    if structure is not None:
        _check_units(structure, state)
    _check_files(path, structure, stale_seconds, found)
    return state


def _check_units(structure: Structure, state: _State) -> None:
    duplicates = _duplicates(structure.clip_ids)
    for clip_id in duplicates:
        state.found.error("clip_duplicate", f"{clip_id!r} has two rows or more", Remedy.CLIPS, None, clip_id)
    files = ChunkFiles.of(structure.path)
    if files is None:
        raise CacheError(f"{structure.path}: the chunks are not stored in a way that is checked here")
    reader = ChunkReader(files)
    values = np.empty((structure.unit, len(structure.identity.views), structure.dim), files.dtype)
    for unit in range(structure.num_units):
        commit = _read_commit(structure, unit, state.found)
        if not _check_names(structure, unit, commit, state.found):
            continue  # nobody knows which clip a row is
        _check_states(structure, unit, commit, state.found)
        if commit is None:
            continue
        state.units += 1
        if _read_values(structure, unit, reader, values, state.found):
            state.num_bytes += values.nbytes
            _check_values(structure, unit, commit, values, state)


def _duplicates(clip_ids: tuple[str, ...]) -> list[str]:
    seen: set[str] = set()
    found = []
    for clip_id in clip_ids:
        if clip_id and clip_id in seen:
            found.append(clip_id)
        seen.add(clip_id)
    return found


@dataclass(frozen=True)
class _Commit:
    sha256: str
    records: tuple[ClipRecord, ...]


def _read_commit(structure: Structure, unit: int, found: Findings) -> _Commit | None:
    """The commit of a unit; ``None`` where there is none or it cannot be read."""
    try:
        plain = read_json(structure.path / "commits" / f"{unit:06d}.json")
        if not {"sha256", "clips"} <= set(plain) or not is_intact(plain):
            raise ValueError("a key is missing, or it differs from the digest inside it")
        if not set(plain) <= {"sha256", "clips", SEAL}:
            raise ValueError("it has unknown keys")
        return _Commit(str(plain["sha256"]), tuple(ClipRecord.from_json(clip) for clip in plain["clips"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"the commit of unit {unit}: {type(error).__name__}: {error}"
        found.error("commit_unreadable", detail, Remedy.FORGET, unit)
        return None


def _check_names(structure: Structure, unit: int, commit: _Commit | None, found: Findings) -> bool:
    """Compare what clips.json, the clip_id array and the commit call the rows of a unit: two of them are right.

    Returns:
        Whether the commit is about the unit's rows.
    """
    rows = structure.rows(unit)
    stored = read_array(structure.path, "clip_id", structure.unit, unit)
    named = None if stored is None else tuple(str(c) for c in stored[: len(rows)].tolist())
    committed = None if commit is None else tuple(r.clip_id for r in commit.records)
    clips = tuple(c for c in rows if c)
    if committed is not None and committed != clips:
        if named is not None and committed == tuple(c for c in named if c):
            detail = f"clips.json calls rows of unit {unit} {_difference(clips, committed)}"
            found.error("clips_disagree", detail, Remedy.CLIPS, unit)
            return len(committed) == len(clips)
        detail = f"the commit calls rows of unit {unit} {_difference(committed, clips)}"
        found.error("commit_clips", detail, Remedy.FORGET, unit)
    if named != rows:
        detail = "the chunk cannot be read" if named is None else _difference(named, rows)
        found.error("clip_id_disagrees", f"the clip_id array, unit {unit}: {detail}", Remedy.ARRAYS, unit)
    return committed is None or committed == clips


def _difference(got: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    for one, other in zip(got, wanted, strict=False):
        if one != other:
            return f"{one!r} where {other!r} belongs"
    return f"{len(got)} names where {len(wanted)} belong"


def _check_states(structure: Structure, unit: int, commit: _Commit | None, found: Findings) -> None:
    """Compare the status array with the commit; rows of a unit without one are todo."""
    rows = structure.rows(unit)
    stored = read_array(structure.path, "status", structure.unit, unit)
    states = iter(() if commit is None else [r.status for r in commit.records])
    wanted = np.full(structure.unit, Status.TODO, np.uint8)  # also past the array's end: a cache that grows reads it
    wanted[: len(rows)] = [next(states, Status.TODO) if clip_id else Status.TODO for clip_id in rows]
    if stored is not None and np.array_equal(stored, wanted):
        return
    seen = "cannot be read" if stored is None else f"is {stored.tolist()} where {wanted.tolist()} belongs"
    add = found.warn if commit is None else found.error  # a killed writer leaves states of a unit that is still todo
    add("status_disagrees", f"the status array, unit {unit}: {seen}", Remedy.ARRAYS, unit)


def _read_values(structure: Structure, unit: int, reader: ChunkReader, values: NDArray[Any], found: Findings) -> bool:
    """Read all chunks of a unit; whether every one is whole."""
    whole = True
    for view, name in enumerate(structure.identity.views):
        try:
            values[:, view] = reader.read(unit, view)
        except ChunkError as error:
            detail = f"view {name}: {error.detail}"
            found.found.append(Finding(found.group, unit, "", error.code, detail, "error", Remedy.FORGET, error.path))
            whole = False
        except OSError as error:
            detail = f"view {name}: it cannot be read ({error.strerror})"
            found.error("chunk_missing", detail, Remedy.FORGET, unit)
            whole = False
    return whole


def _check_values(structure: Structure, unit: int, commit: _Commit, values: NDArray[Any], state: _State) -> None:
    """Compare a unit's features with its commit, and look for what no network gives."""
    records, found = commit.records, state.found
    is_present = np.zeros(len(values), dtype=bool)
    is_present[: len(records)] = [r.status is Status.PRESENT for r in records]
    features = np.ascontiguousarray(values[is_present])
    if hashlib.sha256(features.tobytes()).hexdigest() != commit.sha256:
        found.error("digest", f"the features of unit {unit} are not those that were committed", Remedy.FORGET, unit)
    for row in np.flatnonzero(~is_present):
        if not np.isnan(values[row]).all():
            clip = records[row].clip_id if row < len(records) else ""
            detail = f"row {row} of unit {unit} has values and is {'not present' if clip else 'padding'}"
            found.error("not_nan", detail, Remedy.FORGET, unit, clip)
    views = structure.identity.views
    for record, row in zip([r for r in records if r.status is Status.PRESENT], features, strict=True):
        finite = np.isfinite(row)
        if not finite.all():
            detail = f"{int((~finite).sum())} of {row.size} values are NaN or Inf"
            found.error("not_finite", detail, Remedy.FORGET, unit, record.clip_id)
            continue
        if structure.dim > 1:
            same = [views[v] for v in np.flatnonzero((row == row[:, :1]).all(axis=1))]
            if same:
                detail = f"all values are {float(row[views.index(same[0]), 0]):g} in {', '.join(same)}"
                found.warn("constant", detail, Remedy.NONE, unit, record.clip_id)
                continue
        mark = hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()
        other, media = state.seen.setdefault(mark, (record.clip_id, record.fingerprint))
        if other != record.clip_id and (media != record.fingerprint or not media):
            found.warn("identical", f"the same values as {other!r}", Remedy.NONE, unit, record.clip_id)


def _check_files(path: Path, structure: Structure | None, stale_seconds: float, found: Findings) -> None:
    """Look for files that do not belong to the group."""
    for file in _files(path):
        name = file.relative_to(path).as_posix()
        if LEFTOVER.fullmatch(file.name):
            try:
                age = time.time() - file.stat().st_mtime
            except FileNotFoundError:
                continue  # its process has finished meanwhile
            if age >= stale_seconds:
                detail = f"{name}, {age / 3600:.1f} hours old"
                found.file("leftover", file, detail, "warning", Remedy.DELETE)
        elif structure is not None and not _belongs(name, structure):
            kind = name.partition("/")[0]
            if re.fullmatch(r"(features/c/\d+/\d+|status/c|clip_id/c)/\d+", name):
                found.file("chunk_extra", file, f"{name} is outside the group", "error", Remedy.DELETE)
            elif re.fullmatch(r"commits/\d{6}\.json", name):
                detail = f"{name}; the group has {structure.num_units} units"
                found.file("commit_extra", file, detail, "error", Remedy.DELETE)
            else:
                found.file("unexpected_file", file, f"{name} in {kind}", "warning", Remedy.NONE)


def _files(path: Path) -> Iterator[Path]:
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        else:
            yield entry


def _belongs(name: str, structure: Structure) -> bool:
    """Whether a file is part of a group with these units and views."""
    if name in ("zarr.json", "clips.json", "features/zarr.json", "status/zarr.json", "clip_id/zarr.json"):
        return True
    limits: Mapping[str, tuple[int, ...]] = {
        r"features/c/(\d+)/(\d+)/(0)": (structure.num_units, len(structure.identity.views), 1),
        r"status/c/(\d+)": (structure.num_units,),
        r"clip_id/c/(\d+)": (structure.num_units,),
        r"commits/(\d{6})\.json": (structure.num_units,),
    }
    for pattern, most in limits.items():
        match = re.fullmatch(pattern, name)
        if match:
            return all(int(number) < limit for number, limit in zip(match.groups(), most, strict=True))
    return False
