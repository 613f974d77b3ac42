"""Imports: our own exports become the same group again, other people's features one with declared provenance."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import DTYPES, CacheError, ClipRecord, Identity, Status
from cache.places import Place
from cache.sources import Source
from cache.store import FeatureGroup

UNIT = 32  # clips per unit
UNIT_BYTES = 2**28  # of a unit in memory, at most, where one clip is not more
NOT_FINITE = "not_finite"
NOT_IMPORTED = "not_imported"
DECLARED = "declared:"
_LISTED = 8  # ids in a message


@dataclass(frozen=True)
class Declared:
    """What the user says of features that others made."""

    dataset: str
    modality: str
    backbone: str
    weights: str = ""  # a text of one's own; empty: the digest of the file stands for them
    tap: str = "unknown"
    views: tuple[str, ...] = ()  # names; empty: clean0 for one view
    dtype: str = "float16"
    note: str = ""  # who made them and how, a sentence


@dataclass(frozen=True)
class Matching:
    """How a file's ids and a manifest's go together; nothing is dropped or matched by position unless said."""

    rename: Mapping[str, str] = field(default_factory=dict)  # id in the file -> clip id
    by_position: bool = False  # the file's rows are the manifest's clips, in this order
    drop_extra: bool = False  # clips of the file that the manifest does not know are left out
    allow_missing: bool = False  # clips of the manifest that the file does not have become failed, ``not_imported``


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    path: str  # of the group
    identity: Identity
    present: int
    failed: tuple[ClipRecord, ...]  # with code and values seen
    dropped: tuple[str, ...]  # ids of the file that were left out
    rounding: float  # largest relative error by rounding to the stored type, of values in its normal range
    underflowed: int  # values that became smaller than the stored type's normal range keeps exactly
    digest: str


def restore_group(source: Source, root: Place | Path | str) -> ImportReport:
    """Make the group of an export of pipe again; it gets the same digest.

    Args:
        source: with everything known of its group.
        root: folder or address of all caches.

    Raises:
        CacheError: the source is no export of pipe, is damaged, or another group is in its place.
    """
    known = source.known
    if known is None:
        raise CacheError(
            f"{source.path} was not exported by pipe; say what its features are (data set, modality, backbone, weights)"
        )
    group = None
    for ids in known.growth():
        group = FeatureGroup.open_or_create(
            root, known.identity, ids, source.dim, known.unit, known.versions, known.notes
        )
    if group is None or group.unit != known.unit:
        raise CacheError(f"{source.path} does not fit the group that is there; delete that one, or name another folder")
    start = 0
    for unit, (count, _) in enumerate(known.units):
        records = known.records[start : start + count]
        if group.commit_of(unit) is None:
            group.write_unit(unit, source.read(range(start, start + count)), records)
        start += count
    digest = group.digest()
    if digest != known.digest:
        raise CacheError(
            f"{group.place} has digest {digest[:12]}, {source.path} was exported from {known.digest[:12]}: the file is "
            "damaged, or another state of the group was there; delete the group and import again"
        )
    failed = tuple(r for r in known.records if r.status is Status.FAILED)
    present = sum(r.status is Status.PRESENT for r in known.records)
    return ImportReport(str(group.place), known.identity, present, failed, (), 0.0, 0, digest)


def declared_identity(source: Source, declared: Declared) -> Identity:
    """The identity of imported features: what the user says of them, and the digests of the files.

    Raises:
        CacheError: the names of views are not as many as the source has views.
    """
    views = declared.views or (("clean0",) if source.views == 1 else ())
    if len(views) != source.views or len(set(views)) != len(views):
        raise CacheError(
            f"{source.path} has {source.views} views per clip and {len(views)} names were given ({', '.join(views)}); "
            "name every view once, for example clean0,weak0,strong0"
        )
    digests = source.digests()
    dtype = {} if declared.dtype == DTYPES[0] else {"dtype": declared.dtype}
    weights = declared.weights or f"file sha256:{next(iter(digests.values()))}"
    return Identity(
        dataset=declared.dataset,
        modality=declared.modality,
        backbone=declared.backbone,
        weights=DECLARED + weights.removeprefix(DECLARED),
        tap=declared.tap,
        views=views,
        view_seed=0,
        settings={"import": {"source": source.path.name, "sha256": digests, "dtype": source.dtype}, **dtype},
    )


def import_group(
    source: Source,
    root: Place | Path | str,
    declared: Declared,
    clip_ids: Sequence[str] | None = None,
    matching: Matching = Matching(),
) -> ImportReport:
    """Make a group of other people's features; what is there already of it is kept, so it can be stopped and goes on.

    Args:
        source: the features.
        root: folder or address of all caches.
        declared: what they are.
        clip_ids: of the manifest, in its order; ``None``: the source's own.
        matching: how ids go together.

    Raises:
        CacheError: ids that do not match, listed both ways; names of views that do not fit; a damaged source.
    """
    identity = declared_identity(source, declared)
    wanted, rows, dropped = match_ids(source, clip_ids, matching)
    unit = max(1, min(UNIT, UNIT_BYTES // (source.views * source.dim * np.dtype(declared.dtype).itemsize)))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    made_by = declared.note or "who made them and how is not stated"
    notes = {
        "weights": f"declared by the user, not checked: {identity.weights.removeprefix(DECLARED)}",
        "import": f"features imported from {source.path.name} on {date}, not extracted by pipe; {made_by}",
    }
    versions = {name: version(name) for name in ("numpy", "zarr")}
    group = FeatureGroup.open_or_create(root, identity, wanted, source.dim, unit, versions, notes)
    rounding, underflowed = 0.0, 0
    for number, ids, values in _units(group, source, rows):
        stored, bad, error, small = to_stored(values, np.dtype(declared.dtype))
        rounding, underflowed = max(rounding, error), underflowed + small
        records = _records(ids, rows, bad, source)
        stored[[r.status is not Status.PRESENT for r in records]] = np.nan
        if group.commit_of(number) is None:
            group.write_unit(number, stored, records)
    there = group.records()
    failed = tuple(there[c] for c in wanted if there[c].status is Status.FAILED)
    return ImportReport(
        path=str(group.place),
        identity=identity,
        present=len(wanted) - len(failed),
        failed=failed,
        dropped=dropped,
        rounding=rounding,
        underflowed=underflowed,
        digest=group.digest(),
    )


def _units(
    group: FeatureGroup, source: Source, rows: Mapping[str, int]
) -> Iterator[tuple[int, tuple[str, ...], NDArray[Any]]]:
    """Unit, its clips, and their values ``(clips, views, dim)`` in the source's type, NaN where it has none."""
    for number in range(group.num_units):
        ids = group.unit_clips(number)
        found = [i for i, c in enumerate(ids) if c in rows]
        read = source.read([rows[ids[i]] for i in found]) if found else None
        kind = np.result_type(read.dtype, np.float16) if read is not None else np.dtype(np.float16)
        values = np.full((len(ids), source.views, source.dim), np.nan, kind)
        if read is not None:
            values[found] = read
        yield number, ids, values


def _records(ids: Sequence[str], rows: Mapping[str, int], bad: Mapping[int, str], source: Source) -> list[ClipRecord]:
    records = []
    for i, clip_id in enumerate(ids):
        if clip_id not in rows:
            detail = f"{source.path.name} has no such clip"
            records.append(ClipRecord(clip_id, Status.FAILED, NOT_IMPORTED, detail))
        elif i in bad:
            records.append(ClipRecord(clip_id, Status.FAILED, NOT_FINITE, bad[i]))
        else:
            records.append(ClipRecord(clip_id, Status.PRESENT, facts={"imported_row": rows[clip_id]}))
    return records


def match_ids(
    source: Source, clip_ids: Sequence[str] | None, matching: Matching
) -> tuple[tuple[str, ...], dict[str, int], tuple[str, ...]]:
    """Match a source's rows with a manifest's clips.

    Returns:
        The clips of the group, in order; row of the source by clip id; ids of the source that are left out.

    Raises:
        CacheError: lists what does not match, both ways.
    """
    if matching.by_position:
        if clip_ids is None or len(clip_ids) != source.num_rows:
            count = "no manifest" if clip_ids is None else f"{len(clip_ids)} clips"
            raise CacheError(f"by position {source.num_rows} rows of {source.path} cannot be matched with {count}")
        return tuple(clip_ids), {c: i for i, c in enumerate(clip_ids)}, ()
    if not source.clip_ids:
        raise CacheError(
            f"{source.path} has no clip ids; name them (an index with clip_id and row, or the key of the ids), or say "
            "that its rows are the manifest's clips in order (--by-position)"
        )
    rows: dict[str, int] = {}
    for row, name in enumerate(source.clip_ids):
        clip_id = matching.rename.get(name, name)
        if clip_id in rows or not clip_id:
            raise CacheError(f"{source.path} has clip {clip_id!r} twice" if clip_id else f"{source.path}: an empty id")
        rows[clip_id] = row
    if clip_ids is None:
        return tuple(rows), rows, ()
    wanted = set(clip_ids)
    missing, extra = [c for c in clip_ids if c not in rows], [c for c in rows if c not in wanted]
    problems = []
    if missing and not matching.allow_missing:
        problems.append(
            f"{len(missing)} of {len(clip_ids)} clips of the manifest are not in the file: {_some(missing)}"
        )
    if extra and not matching.drop_extra:
        problems.append(f"{len(extra)} of {len(rows)} clips of the file are not in the manifest: {_some(extra)}")
    if problems:
        raise CacheError(
            f"{source.path}: {'; '.join(problems)}. Ids are compared letter by letter: give a table of names, or allow "
            "missing clips (they become failed) and drop extra ones"
        )
    for name in extra:
        del rows[name]
    return tuple(clip_ids), rows, tuple(extra)


def _some(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    return ", ".join(map(repr, ids[:_LISTED])) + rest


def to_stored(values: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], dict[int, str], float, int]:
    """Round features to the stored type.

    Args:
        values: ``(clips, views, dim)``.
        dtype: float16 or float32.

    Returns:
        The rounded values; what is wrong, by row, where values are not finite or beyond the type's range; the largest
        relative error of a value in the type's normal range; the number of values that underflowed.
    """
    limits = np.finfo(dtype)
    finite = np.isfinite(values).all(axis=(1, 2))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = values.astype(dtype)
        fits = np.isfinite(stored).all(axis=(1, 2))
        bad = {}
        for row in np.flatnonzero(~(finite & fits)):
            count = int((~np.isfinite(values[row])).sum())
            size = np.abs(values[row].astype(np.float64)).max()
            reason = f"{count} values are NaN or Inf" if count else f"the largest value is {size:g}"
            bad[int(row)] = f"{reason}; {dtype.name} holds up to {float(limits.max):g}"
        good = values[finite & fits].astype(np.float64)
        kept = stored[finite & fits].astype(np.float64)
        magnitude = np.abs(good)
        normal = magnitude >= float(limits.smallest_normal)
        error = np.abs(kept - good)[normal] / magnitude[normal]
        small = int(((magnitude > 0) & ~normal & (kept != good)).sum())
    return stored, bad, float(error.max()) if error.size else 0.0, small
