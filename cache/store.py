"""One group of cached features: written unit by unit, each by one writer, and read as one array."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.chunks import ChunkFiles, Part, read_parts
from cache.commits import digest_of, essence, parse_commit, records_of
from cache.encoding import FeatureFormat, encode_rows
from cache.growth import create_group, grow, is_whole
from cache.layout import CacheError, ClipRecord, Identity, Status, read_listing
from cache.leases import Checked, LeaseLost
from cache.places import LocalPlace, Place, place_of
from cache.seal import sealed

TRIES = 5  # of a file that former holders of a lease write at the same time; each of them does so once
ADVICE = "run `pipe extract` again: it finds damaged units and makes them anew"


class UnitTaken(CacheError):
    """Another process has committed the unit; what it wrote counts."""


@dataclass(frozen=True)
class FeatureTable:
    """A group in memory."""

    identity: Identity
    digest: str  # of the identity and of every committed value
    clip_ids: tuple[str, ...]
    features: NDArray[Any]  # (clips, views, dim) float16 or float32, as the identity says; NaN where not present
    records: tuple[ClipRecord, ...]  # one per clip

    def select(self, clip_ids: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Features ``(clips, views, dim)`` (zero where not present) and presence ``(clips,)`` of the clips asked for.

        Raises:
            CacheError: a clip has not been extracted yet.
        """
        row = {clip_id: i for i, clip_id in enumerate(self.clip_ids)}
        todo = [c for c in clip_ids if c not in row or self.records[row[c]].status is Status.TODO]
        if todo:
            raise CacheError(
                f"{len(todo)} of {len(clip_ids)} clips have no {self.identity.modality} features yet "
                f"(first: {todo[0]!r}); run `pipe extract` first, it goes on where it stopped"
            )
        rows = np.array([row[c] for c in clip_ids], dtype=np.int64)
        present = np.array([self.records[r].status is Status.PRESENT for r in rows], dtype=bool)
        features = self.features[rows]
        features[~present] = 0
        return features, present


class FeatureGroup:
    """A group in its place. Units of ``unit`` consecutive rows are written whole, by one writer, and committed last.

    Args:
        path: folder of the group, or an address that fsspec knows.

    Raises:
        CacheError: the group is damaged, or a newer version of pipe wrote it.
        FileNotFoundError: there is no group.
    """

    def __init__(self, path: Place | Path | str) -> None:
        self.place = place_of(path)
        self._set_rows()
        try:
            attributes: dict[str, Any] = json.loads(self.place.read_bytes("zarr.json"))["attributes"]
            self.identity = Identity.from_json(attributes["identity"])
            self.notes: dict[str, str] = dict(attributes.get("notes", {}))
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(
                f"{self.place}/zarr.json cannot be read ({type(error).__name__}: {error}); `pipe cache verify` says "
                f"what is left of it, or delete {self.place} to extract again"
            ) from error
        self.format = FeatureFormat.of(self.place.read_bytes("features/zarr.json"), str(self.place))
        self.dim = self.format.dim
        self._status: bytes | None = None  # description of the status array, read when something is written
        if (self.format.unit, self.format.dtype.name) != (self.unit, self.identity.dtype):
            raise CacheError(
                f"{self.place}: features are {self.format.dtype.name} in units of {self.format.unit} clips, the rest "
                f"of the group says {self.identity.dtype} and {self.unit}; delete that folder and extract again"
            )

    def _set_rows(self) -> None:
        listing = read_listing(self.place.read_bytes("clips.json"), str(self.place))
        self.unit = listing.unit
        self.clip_ids = listing.clip_ids  # "" is padding

    @property
    def path(self) -> Path:
        """Folder of the group.

        Raises:
            CacheError: it is not in a local folder; use ``place``.
        """
        if not isinstance(self.place, LocalPlace):
            raise CacheError(f"{self.place} is not a local folder; copy it into one first (`pipe cache cp`)")
        return self.place.folder

    @classmethod
    def open_or_create(
        cls,
        root: Place | Path | str,
        identity: Identity,
        clip_ids: Sequence[str],
        dim: int,
        unit: int,
        versions: Mapping[str, str],
        notes: Mapping[str, str] | None = None,
    ) -> FeatureGroup:
        """Open the group of an identity, make it if it is not there, and add rows for clips it does not know.

        Any number of processes may do this at once, on any number of machines.

        Args:
            root: folder or address of all caches.
            identity: what the features are.
            clip_ids: unique ids in the order of the manifest.
            dim: feature dimension.
            unit: rows per unit; an existing group keeps its own.
            versions: library versions, for the record.
            notes: sentences for the record, for example where the weights come from; kept as the group was made.

        Raises:
            CacheError: the group that is there is damaged, newer or of another dim, or another process holds it.
            OSError: it cannot be written: a full disk, a folder that is read-only.
        """
        place = place_of(root).child(*identity.folder.parts)
        if not place.exists("clips.json"):
            create_group(place, identity, dim, unit, {"versions": dict(versions), "notes": dict(notes or {})})
        group = cls(place)
        if group.dim != dim:
            raise CacheError(f"{place} holds features of dim {group.dim}, the backbone gives {dim}; delete that folder")
        known = set(group.clip_ids)
        if any(clip_id not in known for clip_id in clip_ids) or not is_whole(place, len(group.clip_ids)):
            grow(place, clip_ids)
            group._set_rows()
        return group

    @property
    def num_units(self) -> int:
        """Number of units, finished or not."""
        return -(-len(self.clip_ids) // self.unit)

    def unit_clips(self, unit: int) -> tuple[str, ...]:
        """Clip ids of a unit's rows, without padding."""
        return tuple(c for c in self.clip_ids[unit * self.unit : (unit + 1) * self.unit] if c)

    def _commit_name(self, unit: int) -> str:
        return f"commits/{unit:06d}.json"

    def _chunk_names(self, unit: int) -> list[str]:
        return [f"features/c/{unit}/{view}/0" for view in range(len(self.identity.views))]

    def commit_of(self, unit: int) -> dict[str, Any] | None:
        """The commit of a unit, or ``None`` if it is not finished (one that is damaged or of other clips is none)."""
        return next(self._read_commits([unit]))

    def _read_commits(self, units: Sequence[int]) -> Iterator[dict[str, Any] | None]:
        for unit, text in zip(units, self.place.read_many([self._commit_name(u) for u in units]), strict=True):
            yield None if text is None else parse_commit(text, self.unit_clips(unit))

    def write_unit(
        self, unit: int, features: NDArray[Any], records: Sequence[ClipRecord], lease: Checked | None = None
    ) -> None:
        """Write a unit whole and commit it.

        Args:
            unit: index of the unit.
            features: ``(clips, views, dim)`` of the identity's dtype, NaN where a clip is not present.
            records: one per clip, in row order.
            lease: on the unit; it is checked before the first chunk and before the commit. A unit that is committed
                stays as it is. Without a lease the caller is the only writer, and a commit that is there is replaced.

        Raises:
            CacheError: a present clip's features are not finite, or clips, shape or dtype are not the unit's.
            LeaseLost: another process has taken over; nothing was committed here.
            UnitTaken: another process has committed other features.
            OSError: a full disk, a folder that is read-only; the unit stays todo.
        """
        chunks, commit = self._encode(unit, features, records)
        if lease is None:
            self.forget_unit(unit)
        else:
            lease.check()
            if self._is_taken(unit, commit):
                return
        try:
            self._publish(unit, chunks, commit, lease)
        except (CacheError, OSError) as error:
            self._heal(unit)
            if lease is None or isinstance(error, LeaseLost):
                raise
            with suppress(OSError):
                lease.check()  # what failed may have failed because another process took over
            if not (isinstance(error, UnitTaken) and self._is_taken(unit, commit)):
                raise

    def _encode(
        self, unit: int, features: NDArray[Any], records: Sequence[ClipRecord]
    ) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Chunk files by name, and the commit, of a unit that was checked."""
        clips, where = self.unit_clips(unit), f"unit {unit} of {self.place.name}"
        if tuple(r.clip_id for r in records) != clips:
            raise CacheError(f"{where}: the records are not those of its {len(clips)} clips")
        expected = (len(clips), len(self.identity.views), self.dim)
        if features.shape != expected or features.dtype != self.format.dtype:
            raise CacheError(
                f"{where}: got {features.dtype} {features.shape}, expected {self.identity.dtype} {expected}"
            )
        present = np.array([r.status is Status.PRESENT for r in records], dtype=bool)
        finite = np.isfinite(features).all(axis=(1, 2))
        if not finite[present].all():
            first = clips[int(np.flatnonzero(present & ~finite)[0])]
            raise CacheError(f"{where}: features of a present clip are not finite ({first!r})")
        chunks = dict(zip(self._chunk_names(unit), self.format.encode(features), strict=True))
        states = np.array([r.status for r in records], dtype=np.uint8)
        if self._status is None:
            self._status = self.place.read_bytes("status/zarr.json")
        chunks |= encode_rows(self._status, "status", unit * self.unit, states)
        sha256 = hashlib.sha256(np.ascontiguousarray(features[present]).tobytes()).hexdigest()
        return chunks, sealed({"sha256": sha256, "clips": [r.to_json() for r in records]})

    def _publish(
        self, unit: int, chunks: Mapping[str, bytes], commit: Mapping[str, Any], lease: Checked | None
    ) -> None:
        """Create all chunks, then the commit; each appears whole, and none replaces another process's.

        A chunk that is there with other content was left by a killed writer, or written by a former holder that woke
        up: who holds the lease deletes it, after a check. A former holder that stalls right there may delete or place
        a chunk of its successor's unit. It learns that in its next check, and makes a unit todo whose chunks are not
        those of its commit (``_heal``); its successor looks at its chunks after its commit. One of the two sees what
        the other did, whatever the order; only where one of them is killed at that very point a damaged unit stays,
        which ``damaged_units`` finds.
        """

        def check() -> None:
            if lease is not None:
                lease.check()
                if self.commit_of(unit) is not None:
                    raise UnitTaken(f"unit {unit} of {self.place.name} was committed by another process")

        name, text = self._commit_name(unit), json.dumps(commit).encode()
        self.place.sweep([*chunks, name])
        for _ in range(TRIES):
            for chunk, data in chunks.items():
                self._create(chunk, data, check)
            check()
            self._create(name, text, check)  # in place of one that is damaged, or of other clips
            if lease is None or list(self.place.read_many(list(chunks))) == list(chunks.values()):
                return
            self.forget_unit(unit)
        raise CacheError(f"unit {unit} of {self.place}: other processes keep changing its chunks")

    def _create(self, name: str, data: bytes, check: Callable[[], None]) -> None:
        """Make a file with this content, in place of what may be there."""
        for _ in range(TRIES):
            if self.place.create_exclusively(name, data):
                return
            check()
            self.place.delete(name)
            check()
        raise CacheError(f"{self.place}/{name}: other processes keep writing it")

    def _is_taken(self, unit: int, commit: Mapping[str, Any]) -> bool:
        """Whether a unit is committed with these features and states; raises ``UnitTaken`` if with others."""
        there = self.commit_of(unit)
        if there is not None and essence(there) != essence(commit):
            raise UnitTaken(
                f"unit {unit} of {self.place.name} was committed by another process, with other features or states "
                "than this one's; what is there counts"
            )
        return there is not None

    def _heal(self, unit: int) -> None:
        """Make a unit todo whose chunks are not those of its commit: its writer lost its lease too late to know."""
        with suppress(OSError, CacheError):
            commit = self.commit_of(unit)
            if commit is not None and self._is_damaged(unit, commit):
                self.forget_unit(unit)

    def forget_unit(self, unit: int) -> None:
        """Make a unit todo again."""
        self.place.delete(self._commit_name(unit))

    def todo_units(self) -> list[int]:
        """Units without a commit."""
        return [u for u, commit in enumerate(self._read_commits(range(self.num_units))) if commit is None]

    def damaged_units(self) -> list[int]:
        """Committed units whose chunks are missing, fail their checksum or differ from the committed digest."""
        commits = enumerate(self._read_commits(range(self.num_units)))
        return [unit for unit, commit in commits if commit is not None and self._is_damaged(unit, commit)]

    def _is_damaged(self, unit: int, commit: Mapping[str, Any]) -> bool:
        present = np.array([c["status"] == "present" for c in commit["clips"]], dtype=bool)
        try:
            views = [v[: len(present)][present] for v in self._read_unit(unit)]
        except (ValueError, OSError):
            return True
        values = np.stack(views, axis=1) if views else np.empty((int(present.sum()), 0, self.dim), self.format.dtype)
        if hashlib.sha256(values.tobytes()).hexdigest() != commit["sha256"]:
            return True
        return not self.place.exists(f"status/c/{unit}")

    def _read_unit(self, unit: int) -> Iterator[NDArray[Any]]:
        """Values ``(unit, dim)`` of every view; raises ``FileNotFoundError`` or ``ValueError`` (damaged)."""
        names = self._chunk_names(unit)
        for name, data in zip(names, self.place.read_many(names), strict=True):
            if data is None:
                raise FileNotFoundError(name)
            yield self.format.decode(data)

    def records(self) -> dict[str, ClipRecord]:
        """Record of every clip of a finished unit, by clip id."""
        return records_of(self._commits())

    def _commits(self) -> list[dict[str, Any]]:
        """Commits of all finished units, in order."""
        return [commit for commit in self._read_commits(range(self.num_units)) if commit is not None]

    def load(self) -> FeatureTable:
        """Read the whole group into memory.

        Raises:
            CacheError: a committed chunk is missing or damaged.
        """
        shape = (self.num_units * self.unit, len(self.identity.views), self.dim)
        features = np.empty(shape, dtype=self.identity.dtype)
        commits, finished = [], []
        for unit, commit in enumerate(self._read_commits(range(self.num_units))):
            if commit is None:
                features[self._rows_of(unit)] = np.nan
            else:
                commits.append(commit)
                finished.append(unit)
        self._read_units(finished, features)
        clip_ids = tuple(clip_id for clip_id in self.clip_ids if clip_id)
        features = features[: len(self.clip_ids)]
        if len(clip_ids) < len(features):  # without padding there is nothing to copy
            features = features[[bool(clip_id) for clip_id in self.clip_ids]]
        found = records_of(commits)
        records = tuple(found.get(c, ClipRecord(c, Status.TODO)) for c in clip_ids)
        return FeatureTable(self.identity, digest_of(self.identity, commits), clip_ids, features, records)

    def _rows_of(self, unit: int) -> slice:
        return slice(unit * self.unit, (unit + 1) * self.unit)

    def _read_units(self, units: Sequence[int], features: NDArray[Any]) -> None:
        """Read all values of finished units into ``(rows, views, dim)``."""
        files = ChunkFiles.of(self.path) if isinstance(self.place, LocalPlace) else None
        if files is not None:
            rows = np.arange(self.unit)
            parts = [Part(unit, rows, unit * self.unit + rows) for unit in units]
            read_parts(files, parts, range(features.shape[1]), features)
            return
        for unit in units:
            try:
                for view, values in enumerate(self._read_unit(unit)):
                    features[self._rows_of(unit), view] = values
            except FileNotFoundError as error:
                first = self.unit_clips(unit)[0]
                raise CacheError(f"{self.place}: a chunk of features is missing (clip {first!r}); {ADVICE}") from error
            except ValueError as error:
                raise CacheError(f"{self.place} has a damaged chunk (unit {unit}: {error}); {ADVICE}") from error

    def digest(self) -> str:
        """sha256 over the identity and every committed unit: equal digests mean equal features and states."""
        return digest_of(self.identity, self._commits())


@dataclass(frozen=True)
class StoredGroup:
    """What a group says of itself, without opening its arrays."""

    place: Place
    identity: Identity
    notes: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Folder of the group; raises ``CacheError`` where it is not in a local one."""
        return FeatureGroup(self.place).path


def stored_groups(root: Place | Path | str, dataset: str) -> list[StoredGroup]:
    """The groups of a data set below a cache root, sorted by name; what is no whole group is passed over."""
    found = []
    folder = place_of(root).child(dataset)
    for name in folder.list():
        if not name.endswith(".zarr"):
            continue
        place = folder.child(name)
        try:
            attributes = json.loads(place.read_bytes("zarr.json"))["attributes"]
            identity = Identity.from_json(attributes["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if place.exists("clips.json"):
            found.append(StoredGroup(place, identity, dict(attributes.get("notes", {}))))
    return found
