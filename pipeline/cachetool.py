"""Whole workflows behind `pipe cache`: find groups, say what is in them, check and convert them."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache.convert import Declared, ImportReport, Matching, import_group, restore_group
from cache.exports import FORMATS, export_group
from cache.findings import VerifyReport
from cache.layout import CacheError, ClipRecord, Identity, Status
from cache.leases import STALE_SECONDS
from cache.packed import pack
from cache.places import LocalPlace, Place, place_of
from cache.sources import Layout, open_source
from cache.store import FeatureGroup
from cache.verify import verify
from pipeline.errors import UsageError, choose, nearest
from pipeline.locks import only_writer

if TYPE_CHECKING:
    from pipeline.types import Manifest

Root = Path | str
STATES = ("present", "absent", "failed", "todo")
LEASES = "leases"


@dataclass(frozen=True)
class GroupName:
    """A folder that is called as a group is; it need not be a sound one."""

    dataset: str
    name: str  # of the folder
    place: Place

    @property
    def path(self) -> Path:
        """Its folder.

        Raises:
            UsageError: it is not in a local one.
        """
        if not isinstance(self.place, LocalPlace):
            raise UsageError(f"{self.place} is not in a local folder; copy it into one first (`pipe cache cp`)")
        return self.place.folder

    @property
    def modality(self) -> str:
        """By its name."""
        return self.name.partition("-")[0]

    def __str__(self) -> str:
        return f"{self.dataset}/{self.name}"


def find_groups(root: Root) -> list[GroupName]:
    """Everything below a cache root that is called as a group is, sorted by data set and name."""
    place = place_of(root)
    if isinstance(place, LocalPlace) and not place.folder.is_dir():
        return []
    found = []
    for dataset in place.list():
        try:
            names = place.child(dataset).list()
        except (NotADirectoryError, CacheError):  # a file beside the data sets
            continue
        found += [GroupName(dataset, name, place.child(dataset, name)) for name in names if name.endswith(".zarr")]
    return found


def find_group(root: Root, name: str) -> GroupName:
    """The one group that is meant.

    Args:
        root: folder or address of all caches.
        name: of the folder, the start of it, ``DATASET/MODALITY``, ``DATASET/`` with the start of a folder's name, or
            the path of a group anywhere.

    Raises:
        UsageError: no group or several are called so; with the nearest name.
    """
    groups = find_groups(root)
    tests: tuple[Callable[[GroupName], bool], ...] = (
        lambda g: name in (g.name, g.name.removesuffix(".zarr"), str(g)),
        lambda g: name == f"{g.dataset}/{g.modality}",
        lambda g: name != "" and (g.name.startswith(name) or ("/" in name and str(g).startswith(name))),
    )
    for fits in tests:
        found = [g for g in groups if fits(g)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(str(g) for g in found[:8])
            raise UsageError(f"{name!r} can be {len(found)} groups: {listed}; name one of them (`pipe cache ls`)")
    path = Path(name)
    if "://" not in name and name.endswith(".zarr") and path.is_dir():
        return GroupName(path.resolve().parent.name, path.name, LocalPlace(path))
    names = [str(g) for g in groups] + [f"{g.dataset}/{g.modality}" for g in groups]
    there = f"There are {', '.join(str(g) for g in groups[:8])}" if groups else f"{root} holds no groups"
    raise UsageError(
        f"no group is called {name!r}.{nearest(name, [*names, *(g.name for g in groups)])} {there}"
        f"{', ...' if len(groups) > 8 else ''}"
    )


def choose_groups(root: Root, names: Sequence[str], dataset: str = "") -> list[GroupName]:
    """The groups named; without names all of a data set, or all.

    Raises:
        UsageError: a name that fits none or several, a data set without groups, or no group at all.
    """
    if names:
        return [find_group(root, name) for name in names]
    groups = find_groups(root)
    if dataset:
        choose("data set with cached features", dataset, dict.fromkeys(g.dataset for g in groups))
        groups = [g for g in groups if g.dataset == dataset]
    if not groups:
        raise UsageError(f"{root} holds no groups; `pipe extract` makes them, `pipe cache import` takes others'")
    return groups


@dataclass(frozen=True)
class GroupRow:
    """A line of `pipe cache ls`."""

    group: GroupName
    identity: Identity | None  # None: it cannot be read, see ``problem``
    counts: Mapping[str, int]  # clips per status
    num_bytes: int  # on the disk; of groups elsewhere, of their features
    made_with: str  # versions of pipe and torch, or how it was imported
    problem: str = ""


def list_groups(root: Root, dataset: str = "") -> list[GroupRow]:
    """What is cached; groups that cannot be read are listed with the reason.

    Raises:
        UsageError: nothing is cached, or nothing of this data set.
    """
    return [_row(group) for group in choose_groups(root, (), dataset)]


def _row(name: GroupName) -> GroupRow:
    try:
        group = FeatureGroup(name.place)
        counts = _counts(group, group.records())
        versions = _versions(group)
    except (CacheError, OSError) as error:
        return GroupRow(name, None, {}, _size(name.place), "", str(error))
    size = _size(name.place)
    if not size:
        done = group.num_units - len(group.todo_units())
        size = done * group.unit * len(group.identity.views) * group.dim * group.format.dtype.itemsize
    parts = [
        f"{label} {versions[key]}" for key, label in (("pipe-features", "pipe"), ("torch", "torch")) if key in versions
    ]
    made_with = "imported" if "import" in group.notes else ", ".join(parts)
    return GroupRow(name, group.identity, counts, size, made_with)


def _counts(group: FeatureGroup, records: Mapping[str, ClipRecord]) -> dict[str, int]:
    found = Counter(r.status.name.lower() for r in records.values())
    found["todo"] = sum(1 for c in group.clip_ids if c) - len(records)
    return {state: found[state] for state in STATES}


def _versions(group: FeatureGroup) -> dict[str, str]:
    attributes = json.loads(group.place.read_bytes("zarr.json"))["attributes"]
    return {str(k): str(v) for k, v in dict(attributes.get("versions", {})).items()}


def _size(place: Place) -> int:
    """Bytes of all files of a local folder."""
    if not isinstance(place, LocalPlace):
        return 0
    return folder_bytes(place.folder)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder; those that vanish meanwhile do not count."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(parent) / file).stat().st_size
            except FileNotFoundError:
                continue
    return total


@dataclass(frozen=True)
class GroupInfo:
    """Everything about one group."""

    group: GroupName
    identity: Identity
    digest: str
    notes: Mapping[str, str]
    versions: Mapping[str, str]
    dim: int
    unit: int
    units: int
    todo_units: int
    counts: Mapping[str, int]
    reasons: Mapping[tuple[str, str], int]  # (status, code) -> clips without features
    examples: Mapping[tuple[str, str], str]  # (status, code) -> a clip and its detail
    decoders: Mapping[str, int]  # decoder and device as the clips' facts have them -> clips
    num_bytes: int


def group_info(name: GroupName) -> GroupInfo:
    """Everything about one group.

    Raises:
        CacheError: it cannot be read.
    """
    group = FeatureGroup(name.place)
    records = group.records()
    reasons: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    decoders: Counter[str] = Counter()
    for record in records.values():
        if record.status is not Status.PRESENT:
            key = (record.status.name.lower(), record.code)
            reasons[key] += 1
            examples.setdefault(key, f"{record.clip_id}: {record.detail}")
        used = [str(v) for k, v in sorted(record.facts.items()) if "decoder" in k or "backend" in k or "device" in k]
        if used:
            decoders[" ".join(used)] += 1
    return GroupInfo(
        group=name,
        identity=group.identity,
        digest=group.digest(),
        notes=dict(group.notes),
        versions=_versions(group),
        dim=group.dim,
        unit=group.unit,
        units=group.num_units,
        todo_units=len(group.todo_units()),
        counts=_counts(group, records),
        reasons=dict(reasons.most_common()),
        examples=examples,
        decoders=dict(decoders.most_common()),
        num_bytes=_size(name.place),
    )


def busy(path: Path) -> bool:
    """Whether a process works on a group: a lease in it was touched within the time after which its holder is dead."""
    now = time.time()
    for lease in (path / LEASES).glob("*"):
        try:
            if abs(now - lease.stat().st_mtime) < 2 * STALE_SECONDS:  # a little clock skew does not matter
                return True
        except FileNotFoundError:
            continue
    return False


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Keep other processes of this machine from writing into the data set of a group, and refuse where others work.

    Raises:
        UsageError: another process writes into it.
    """
    with only_writer(path.parent, doing):
        if busy(path):
            raise UsageError(f"{path} is being extracted by another process; wait for it, then run this again")
        yield


def verify_groups(
    root: Root, names: Sequence[str] = (), dataset: str = "", repair: bool = False
) -> Iterator[VerifyReport]:
    """Check groups one after the other.

    Args:
        root: folder of all caches.
        names: of groups; none: all.
        dataset: only of this data set.
        repair: mark damaged units todo, write anew what follows from the rest, delete leftovers.

    Raises:
        UsageError: bad names, a group that is not in a local folder, or, for repairs, one that others write into.
    """
    from extractors.backbone import BACKBONES

    builtin = {b.builtin for b in BACKBONES.values() if b.builtin}
    for name in choose_groups(root, names, dataset):
        if repair:
            with alone(name.path, "extracting into"):
                yield verify(name.path, repair=True, known_weights=builtin)
        else:
            yield verify(name.path, known_weights=builtin)


def labels_of(manifest: Manifest | None) -> dict[str, tuple[str, str]] | None:
    """Domain and label by clip id."""
    return None if manifest is None else {c.clip_id: (c.domain, c.label) for c in manifest.clips}


def export_groups(
    root: Root,
    names: Sequence[str],
    folder: Path,
    format: str = "hdf5",
    dataset: str = "",
    manifest: Manifest | None = None,
) -> list[Path]:
    """Write groups in another format, each with an index.

    Args:
        root: folder or address of all caches.
        names: of groups; none: all modalities of ``dataset``.
        folder: that gets a folder per data set.
        format: hdf5, npy or safetensors.
        dataset: whose groups are exported where none are named.
        manifest: whose domains and labels go into the index.

    Raises:
        UsageError: bad names or an unknown format.
        CacheError: unfinished or damaged groups, or a target that is there.
    """
    choose("format of exports", format, FORMATS)
    written = []
    for name in choose_groups(root, names, dataset):
        group = FeatureGroup(name.place)
        written += export_group(group, folder / name.dataset, format, labels_of(manifest))
    return written


def import_features(
    path: Path,
    root: Root,
    declared: Declared | None,
    layout: Layout,
    matching: Matching,
    manifest: Manifest | None = None,
) -> ImportReport:
    """Take features into the cache: an export of pipe as it was, others' with what the user says of them.

    Args:
        path: file or folder of features.
        root: folder or address of all caches.
        declared: what the features are; ``None``: an export of pipe says so itself.
        layout: names inside a foreign file.
        matching: how ids go together.
        manifest: whose clips the ids have to be; ``None``: the file's ids are taken as they are.

    Raises:
        UsageError: another process extracts into that data set.
        CacheError: the file cannot be read, or ids do not match.
    """
    source = open_source(path, layout)
    dataset = declared.dataset if declared else source.known.identity.dataset if source.known else ""
    clip_ids = None if manifest is None else [c.clip_id for c in manifest.clips]

    def take() -> ImportReport:
        if declared is None:
            return restore_group(source, root)
        return import_group(source, root, declared, clip_ids, matching)

    place = place_of(root)
    if not isinstance(place, LocalPlace) or not dataset:
        return take()
    with only_writer(place.folder / dataset, "importing into"):
        return take()


def pack_groups(root: Root, names: Sequence[str], dataset: str = "") -> list[Path]:
    """Write the packed copies of groups.

    Raises:
        UsageError: bad names, or a group that is not in a local folder.
        CacheError: unfinished or damaged groups.
    """
    return [pack(FeatureGroup(name.path)) for name in choose_groups(root, names, dataset)]
