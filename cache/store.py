"""One group of cached features: written unit by unit, each by one writer, and read as one array."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from cache.layout import (
    SCHEMA,
    CacheError,
    ClipRecord,
    Identity,
    Status,
    flush_to_disk,
    write_atomically,
)


@dataclass(frozen=True)
class FeatureTable:
    """A group in memory."""

    identity: Identity
    digest: str  # of the identity and of every committed value
    clip_ids: tuple[str, ...]
    features: NDArray[np.float16]  # (clips, views, dim); NaN where not present
    records: tuple[ClipRecord, ...]  # one per clip

    def select(self, clip_ids: Sequence[str]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
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
    """A group on disk. Units of ``unit`` consecutive rows are written whole, by one writer, and committed last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            clips = json.loads((path / "clips.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise CacheError(
                f"{path / 'clips.json'} cannot be read ({error}); delete {path} to extract again"
            ) from error
        if clips["schema"] != SCHEMA:
            raise CacheError(
                f"{path} has cache schema {clips['schema']}; this version reads schema {SCHEMA}. "
                "Use the version of pipe that wrote it, or extract again into another folder"
            )
        self.unit: int = clips["unit"]
        self.clip_ids: tuple[str, ...] = tuple(clips["clip_ids"])  # "" is padding
        self._group = zarr.open_group(str(path), mode="r+")
        attributes: dict[str, Any] = dict(self._group.attrs)
        self.identity = Identity.from_json(attributes["identity"])
        self.notes: dict[str, str] = dict(attributes.get("notes", {}))
        self.dim = int(self._array("features").shape[2])

    @classmethod
    def open_or_create(
        cls,
        root: Path,
        identity: Identity,
        clip_ids: Sequence[str],
        dim: int,
        unit: int,
        versions: Mapping[str, str],
        notes: Mapping[str, str] | None = None,
    ) -> FeatureGroup:
        """Open the group of an identity, make it if it is not there, and add rows for clips it does not know.

        Args:
            root: folder of all caches.
            identity: what the features are.
            clip_ids: unique ids in the order of the manifest.
            dim: feature dimension.
            unit: rows per unit; an existing group keeps its own.
            versions: library versions, for the record.
            notes: sentences for the record, for example where the weights come from; kept as the group was made.
        """
        path = root / identity.folder
        if not (path / "clips.json").exists():
            cls._create(path, identity, dim, unit, {"versions": dict(versions), "notes": dict(notes or {})})
        group = cls(path)
        if group.dim != dim:
            raise CacheError(f"{path} holds features of dim {group.dim}, the backbone gives {dim}; delete that folder")
        known = set(group.clip_ids)
        group._extend([c for c in clip_ids if c not in known])
        return group

    @classmethod
    def _create(cls, path: Path, identity: Identity, dim: int, unit: int, facts: Mapping[str, Any]) -> None:
        """Write an empty group; ``clips.json`` comes last, so a crash before it starts over."""
        path.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(
            str(path),
            mode="w",
            zarr_format=3,
            attributes={"schema": SCHEMA, "identity": identity.to_json(), **facts},
        )
        group.create_array(
            "features",
            shape=(0, len(identity.views), dim),
            chunks=(unit, 1, dim),
            dtype="float16",
            fill_value=float("nan"),
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
            dimension_names=["clip", "view", "dim"],
            attributes={"views": list(identity.views)},
        )
        group.create_array("status", shape=(0,), chunks=(unit,), dtype="uint8", dimension_names=["clip"])
        group.create_array("clip_id", shape=(0,), chunks=(unit,), dtype=str, dimension_names=["clip"])
        (path / "commits").mkdir()
        write_atomically(path / "clips.json", json.dumps({"schema": SCHEMA, "unit": unit, "clip_ids": []}))

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise CacheError(f"{self.path}: {name} is not an array; delete that folder and extract again")
        return array

    def _extend(self, new: Sequence[str]) -> None:
        """Add rows for new clips, from the next unit on, so that no finished unit is touched."""
        if new:
            padding = -len(self.clip_ids) % self.unit
            self.clip_ids = (*self.clip_ids, *([""] * padding), *new)
            text = json.dumps({"schema": SCHEMA, "unit": self.unit, "clip_ids": list(self.clip_ids)})
            write_atomically(self.path / "clips.json", text)
        rows = len(self.clip_ids)
        for name, shape in (("features", (rows, len(self.identity.views), self.dim)), ("status", (rows,))):
            if self._array(name).shape != shape:  # new clips, or a crash after clips.json was written
                self._array(name).resize(shape)
        stored = self._array("clip_id")
        if stored.shape != (rows,) or tuple(np.asarray(stored[:]).tolist()) != self.clip_ids:
            stored.resize((rows,))
            stored[:] = np.array(self.clip_ids, dtype=object)

    @property
    def num_units(self) -> int:
        """Number of units, finished or not."""
        return -(-len(self.clip_ids) // self.unit)

    def unit_clips(self, unit: int) -> tuple[str, ...]:
        """Clip ids of a unit's rows, without padding."""
        return tuple(c for c in self.clip_ids[unit * self.unit : (unit + 1) * self.unit] if c)

    def _commit_path(self, unit: int) -> Path:
        return self.path / "commits" / f"{unit:06d}.json"

    def _chunk_paths(self, unit: int) -> list[Path]:
        views = range(len(self.identity.views))
        features = [self.path / "features" / "c" / str(unit) / str(v) / "0" for v in views]
        return [*features, self.path / "status" / "c" / str(unit)]

    def commit_of(self, unit: int) -> dict[str, Any] | None:
        """The commit of a unit, or ``None`` if it is not finished (a commit that cannot be read is none)."""
        try:
            commit: dict[str, Any] = json.loads(self._commit_path(unit).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return commit

    def write_unit(self, unit: int, features: NDArray[np.float16], records: Sequence[ClipRecord]) -> None:
        """Write a unit whole and commit it.

        Args:
            unit: index of the unit; the caller is its only writer.
            features: ``(clips, views, dim)`` float16, NaN where a clip is not present.
            records: one per clip, in row order.

        Raises:
            CacheError: a present clip's features are not finite, or clips, shape or dtype are not the unit's.
        """
        clips = self.unit_clips(unit)
        if tuple(r.clip_id for r in records) != clips:
            raise CacheError(f"unit {unit} of {self.path.name}: the records are not those of its {len(clips)} clips")
        expected = (len(clips), len(self.identity.views), self.dim)
        if features.shape != expected or features.dtype != np.float16:
            raise CacheError(
                f"unit {unit} of {self.path.name}: got {features.dtype} {features.shape}, expected float16 {expected}"
            )
        present = np.array([r.status is Status.PRESENT for r in records])
        if not np.isfinite(features[present]).all():
            raise CacheError(f"unit {unit} of {self.path.name}: features of a present clip are not finite")
        self.forget_unit(unit)
        start = unit * self.unit
        states = np.array([r.status for r in records], dtype=np.uint8)
        for name, values in (("features", features), ("status", states)):
            # The setting is not stored with the array; without it a chunk of nothing but NaN would not be written.
            array = self._array(name).with_config({"write_empty_chunks": True})
            array[start : start + len(clips)] = values
        for chunk in self._chunk_paths(unit):
            flush_to_disk(chunk)
        commit = {
            "sha256": hashlib.sha256(np.ascontiguousarray(features[present]).tobytes()).hexdigest(),
            "clips": [r.to_json() for r in records],
        }
        write_atomically(self._commit_path(unit), json.dumps(commit))

    def forget_unit(self, unit: int) -> None:
        """Make a unit todo again."""
        self._commit_path(unit).unlink(missing_ok=True)

    def todo_units(self) -> list[int]:
        """Units without a commit."""
        return [u for u in range(self.num_units) if self.commit_of(u) is None]

    def damaged_units(self) -> list[int]:
        """Committed units whose chunks are missing, fail their checksum or differ from the committed digest."""
        damaged = []
        for unit in range(self.num_units):
            commit = self.commit_of(unit)
            if commit is None:
                continue
            if not all(chunk.exists() for chunk in self._chunk_paths(unit)):
                damaged.append(unit)
                continue
            start = unit * self.unit
            present = np.array([c["status"] == "present" for c in commit["clips"]], dtype=bool)
            try:
                values = np.asarray(self._array("features")[start : start + len(present)])
            except (ValueError, OSError):  # zarr reports a wrong checksum or a cut chunk as ValueError
                damaged.append(unit)
                continue
            if hashlib.sha256(np.ascontiguousarray(values[present]).tobytes()).hexdigest() != commit["sha256"]:
                damaged.append(unit)
        return damaged

    def records(self) -> dict[str, ClipRecord]:
        """Record of every clip of a finished unit, by clip id."""
        return _records(self._commits())

    def _commits(self) -> list[dict[str, Any]]:
        """Commits of all finished units, in order."""
        found = (self.commit_of(unit) for unit in range(self.num_units))
        return [commit for commit in found if commit is not None]

    def load(self) -> FeatureTable:
        """Read the whole group into memory.

        Raises:
            CacheError: a committed chunk is missing or damaged.
        """
        rows = [i for i, clip_id in enumerate(self.clip_ids) if clip_id]
        clip_ids = tuple(self.clip_ids[i] for i in rows)
        advice = "run `pipe extract` again: it finds damaged units and makes them anew"
        try:
            features = np.asarray(self._array("features")[:])[rows]
        except (ValueError, OSError) as error:
            raise CacheError(f"{self.path} has a damaged chunk ({error}); {advice}") from error
        commits = self._commits()
        found = _records(commits)
        records = tuple(found.get(c, ClipRecord(c, Status.TODO)) for c in clip_ids)
        present = np.array([r.status is Status.PRESENT for r in records], dtype=bool)
        missing = ~np.isfinite(features[present]).all(axis=(1, 2))
        if missing.any():
            first = clip_ids[int(np.flatnonzero(present)[int(np.flatnonzero(missing)[0])])]
            raise CacheError(f"{self.path}: a chunk of features is missing (clip {first!r}); {advice}")
        return FeatureTable(self.identity, _digest(self.identity, commits), clip_ids, features, records)

    def digest(self) -> str:
        """sha256 over the identity and every committed unit: equal digests mean equal features and states."""
        return _digest(self.identity, self._commits())


@dataclass(frozen=True)
class StoredGroup:
    """What a group on disk says of itself, without opening its arrays."""

    path: Path
    identity: Identity
    notes: Mapping[str, str]


def stored_groups(root: Path, dataset: str) -> list[StoredGroup]:
    """The groups of a data set below a cache root, sorted by name; what is no whole group is passed over."""
    found = []
    for path in sorted((root / dataset).glob("*.zarr")):
        try:
            attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
            identity = Identity.from_json(attributes["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if (path / "clips.json").exists():
            found.append(StoredGroup(path, identity, dict(attributes.get("notes", {}))))
    return found


def _records(commits: Sequence[Mapping[str, Any]]) -> dict[str, ClipRecord]:
    """Record of every committed clip, by clip id."""
    return {plain["clip_id"]: ClipRecord.from_json(plain) for commit in commits for plain in commit["clips"]}


def _digest(identity: Identity, commits: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over an identity and commits in order: features and states, not times or decoding facts."""
    state = hashlib.sha256(identity.digest.encode())
    for commit in commits:
        rows = [[c["clip_id"], c["status"], c["code"]] for c in commit["clips"]]
        state.update(json.dumps([commit["sha256"], rows]).encode())
    return state.hexdigest()
