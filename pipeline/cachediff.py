"""What two groups of cached features differ in: `pipe cache diff`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.layout import ClipRecord, Status
from cache.readers import BLOCK_BYTES, GroupReader, blocks
from cache.store import FeatureGroup
from pipeline.cachetool import GroupName


@dataclass(frozen=True)
class ViewDiff:
    """Difference of one view between two groups, over clips that both have."""

    view: str
    clips: int
    equal: int  # clips with the same values bit for bit
    largest: float  # absolute difference
    largest_clip: str
    lowest_cosine: float
    mean_cosine: float


@dataclass(frozen=True)
class GroupDiff:
    """What two groups differ in."""

    first: GroupName
    second: GroupName
    same_digest: bool
    identity: tuple[tuple[str, Any, Any], ...]  # field, value in the first, in the second
    only_first: tuple[str, ...]  # clip ids
    only_second: tuple[str, ...]
    status: tuple[tuple[str, str, str], ...]  # clip, status and code in the first, in the second
    views: tuple[ViewDiff, ...]
    note: str = ""  # why features were not compared


def diff_groups(first: GroupName, second: GroupName, block_bytes: int = BLOCK_BYTES) -> GroupDiff:
    """Compare two groups: identities, clips, states and the values of views that both have, a block at a time.

    Args:
        first: a group.
        second: another.
        block_bytes: of features in memory at once, about, of each.

    Raises:
        CacheError: one of them cannot be read or is damaged.
    """
    a, b = (GroupReader(FeatureGroup(name.place)) for name in (first, second))
    one, other = flat(a.group.identity.to_json()), flat(b.group.identity.to_json())
    fields = [k for k in dict.fromkeys([*one, *other]) if one.get(k) != other.get(k)]
    shared = [c for c in a.clip_ids if c in b.row]
    states = [(c, _state(a.record(c)), _state(b.record(c))) for c in shared]
    both = [c for c in shared if a.record(c).status is b.record(c).status is Status.PRESENT]
    views = [v for v in a.group.identity.views if v in b.group.identity.views]
    note = ""
    if a.group.dim != b.group.dim:
        note = f"features of {a.group.dim} and of {b.group.dim} values are not compared"
    elif not views or not both:
        note = "they have no clip and view in common"
    return GroupDiff(
        first=first,
        second=second,
        same_digest=a.group.digest() == b.group.digest(),
        identity=tuple((k, one.get(k), other.get(k)) for k in fields),
        only_first=tuple(c for c in a.clip_ids if c not in b.row),
        only_second=tuple(c for c in b.clip_ids if c not in a.row),
        status=tuple(row for row in states if row[1] != row[2]),
        views=() if note else tuple(_view_diff(a, b, both, view, block_bytes) for view in views),
        note=note,
    )


def flat(plain: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def _state(record: ClipRecord) -> str:
    return f"{record.status.name.lower()} {record.code}".strip()


def _view_diff(a: GroupReader, b: GroupReader, clip_ids: Sequence[str], view: str, block_bytes: int) -> ViewDiff:
    equal, largest, largest_clip, cosines = 0, -1.0, "", []
    for where, values in blocks(a, clip_ids, a.positions([view]), block_bytes):
        x = values[:, 0].astype(np.float64)
        y = b.read(clip_ids[where], b.positions([view]))[:, 0].astype(np.float64)
        differences = np.abs(x - y).max(axis=1)
        equal += int((differences == 0).sum())
        worst = int(differences.argmax())
        if differences[worst] > largest:
            largest, largest_clip = float(differences[worst]), clip_ids[where][worst]
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.einsum("ij,ij->i", x, y) / lengths
        cosines.append(np.where(lengths > 0, np.clip(cosine, -1, 1), np.where(differences == 0, 1.0, 0.0)))
    found = np.concatenate(cosines)
    return ViewDiff(view, len(clip_ids), equal, largest, largest_clip, float(found.min()), float(found.mean()))
