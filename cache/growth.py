"""Making a group and adding rows to it, by any number of processes at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from cache.encoding import FeatureFormat, descriptions, encode_rows, rows_of, with_rows
from cache.layout import Identity, Listing, read_listing
from cache.leases import STALE_SECONDS, Leases
from cache.places import Place

ARRAYS = ("features", "status", "clip_id")
LEASE = "growth"
GROWTH_SECONDS = 4 * STALE_SECONDS  # that one process waits for others that add rows: longer than for a dead one


def create_group(place: Place, identity: Identity, dim: int, unit: int, facts: Mapping[str, Any]) -> None:
    """Make an empty group, or finish one that was half made.

    Every file is created exclusively and none is replaced, so any number of processes may do this at once, and one
    that wakes up late changes nothing; ``clips.json`` comes last and makes it a group.

    Args:
        place: folder of the group.
        identity: what the features are.
        dim: feature dimension.
        unit: rows per unit; if another process has begun with another number, that one counts.
        facts: more attributes.
    """
    place.make()
    place.child("commits").make()
    files = descriptions(identity, dim, unit, facts)
    _create(place, "features/zarr.json", files["features/zarr.json"])
    unit = FeatureFormat.of(place.read_bytes("features/zarr.json"), str(place)).unit
    files = descriptions(identity, dim, unit, facts)
    for name in ("status/zarr.json", "clip_id/zarr.json", "zarr.json"):
        _create(place, name, files[name])
    _create(place, "clips.json", Listing(unit, ()).to_bytes())


def _create(place: Place, name: str, content: bytes) -> None:
    """Make a file; one that is no JSON (where files have no hard links, a crash can leave a part) is replaced."""
    if place.create_exclusively(name, content):
        return
    try:
        json.loads(place.read_bytes(name))
    except (ValueError, FileNotFoundError):
        place.write_atomically(name, content)


def is_whole(place: Place, rows: int) -> bool:
    """Whether all arrays have as many rows as ``clips.json`` says."""
    found = place.read_many([f"{array}/zarr.json" for array in ARRAYS])
    return all(text is not None and rows_of(text) == rows for text in found)


def grow(place: Place, clip_ids: Sequence[str]) -> Listing:
    """Add rows for clips that a group does not know, from the next unit on, so that no finished unit is touched.

    One process at a time does it, under a lease. The arrays grow first and ``clips.json`` last: a crash before that
    leaves rows that nobody asks for, and the next growth sets them right. Should a process stall between its check and
    a write while another one grows the group, rows change their clips; commits name theirs, so that no features are
    taken for another clip's: those units count as todo.

    Returns:
        The rows of the group now.
    """
    with _growing(place) as check:
        listing = read_listing(place.read_bytes("clips.json"), str(place))
        known = set(listing.clip_ids)
        new = [clip_id for clip_id in clip_ids if clip_id not in known]
        rows = listing.clip_ids
        if new:
            rows = (*rows, *([""] * (-len(rows) % listing.unit)), *new)
        found = {array: place.read_bytes(f"{array}/zarr.json") for array in ARRAYS}
        names = encode_rows(found["clip_id"], "clip_id", 0, np.array(rows, dtype=object)) if rows else {}
        place.sweep(list(names))  # not of what those who make the group write, too, without a lease
        there = dict(zip(names, place.read_many(list(names)), strict=True))
        check()
        for name, content in names.items():
            if there[name] != content:
                place.write_atomically(name, content)
        for array, description in found.items():
            if rows_of(description) != len(rows):
                place.write_atomically(f"{array}/zarr.json", with_rows(description, len(rows)))
        check()
        grown = Listing(listing.unit, rows)
        if grown != listing:
            place.write_atomically("clips.json", grown.to_bytes())
        return grown


@contextmanager
def _growing(place: Place) -> Iterator[Callable[[], None]]:
    """The right to add rows; where leases are impossible there is one writer anyhow."""
    if not place.exclusive:
        yield lambda: None
        return
    with Leases(place) as leases, leases.hold(LEASE, GROWTH_SECONDS) as lease:
        yield lease.check
