"""What a group knows besides its features, as texts that any file format can carry: from them it can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.layout import CacheError, ClipRecord, Identity
from cache.store import FeatureGroup

FORMAT = "pipe-cache-1"


@dataclass(frozen=True)
class Portable:
    """Everything of a finished group but its features."""

    identity: Identity
    digest: str  # of the group
    notes: Mapping[str, str]
    versions: Mapping[str, str]
    unit: int  # rows per unit
    units: tuple[tuple[int, str], ...]  # clips and sha256 of every unit
    records: tuple[ClipRecord, ...]  # one per clip, in row order

    @classmethod
    def of(cls, group: FeatureGroup) -> Portable:
        """What a group knows.

        Raises:
            CacheError: a unit is not finished.
        """
        commits = [group.commit_of(unit) for unit in range(group.num_units)]
        todo = sum(commit is None for commit in commits)
        if todo:
            raise CacheError(
                f"{todo} of {group.num_units} units of {group.place.name} are not finished; run `pipe extract` first"
            )
        done = [commit for commit in commits if commit is not None]
        attributes = json.loads(group.place.read_bytes("zarr.json"))["attributes"]
        return cls(
            identity=group.identity,
            digest=group.digest(),
            notes=dict(group.notes),
            versions=dict(attributes.get("versions", {})),
            unit=group.unit,
            units=tuple((len(commit["clips"]), str(commit["sha256"])) for commit in done),
            records=tuple(ClipRecord.from_json(clip) for commit in done for clip in commit["clips"]),
        )

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """Of all clips, in row order."""
        return tuple(r.clip_id for r in self.records)

    def growth(self) -> list[tuple[str, ...]]:
        """Clips known after each step in which the group grew: a group that grows so has the same units."""
        steps, known = [], 0
        for count, _ in self.units:
            known += count
            if count < self.unit:
                steps.append(self.clip_ids[:known])
        return [*steps, self.clip_ids] if not steps or len(steps[-1]) < len(self.clip_ids) else steps

    def to_texts(self) -> dict[str, str]:
        """JSON texts by name."""
        return {
            "format": FORMAT,
            "identity": json.dumps(self.identity.to_json(), sort_keys=True),
            "digest": self.digest,
            "notes": json.dumps(dict(self.notes)),
            "versions": json.dumps(dict(self.versions)),
            "unit": str(self.unit),
            "units": json.dumps(self.units),
            "records": json.dumps([r.to_json() for r in self.records]),
        }

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], path: Path) -> Portable:
        """Read what ``to_texts`` gave.

        Raises:
            CacheError: the texts are damaged or of another format.
        """
        if texts.get("format") != FORMAT:
            raise CacheError(
                f"{path} is an export of format {texts.get('format')!r}; this version reads {FORMAT}. Use the version "
                "of pipe that wrote it"
            )
        try:
            return cls(
                identity=Identity.from_json(json.loads(texts["identity"])),
                digest=texts["digest"],
                notes=json.loads(texts["notes"]),
                versions=json.loads(texts["versions"]),
                unit=int(texts["unit"]),
                units=tuple((int(count), str(sha256)) for count, sha256 in json.loads(texts["units"])),
                records=tuple(ClipRecord.from_json(plain) for plain in json.loads(texts["records"])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(
                f"{path}: what it says of its group is damaged ({error}); export the group again"
            ) from error


def write_index(
    path: Path,
    records: Sequence[ClipRecord],
    labels: Mapping[str, tuple[str, str]] | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write a Parquet table with a row per clip: clip_id, row, status, code, detail, fingerprint, facts.

    Args:
        path: of the table.
        records: in row order.
        labels: domain and label by clip id; clips without are empty there.
        files: file by clip id, for formats with one per clip.
    """
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {
        "clip_id": [r.clip_id for r in records],
        "row": list(range(len(records))),
        "status": [r.status.name.lower() for r in records],
        "code": [r.code for r in records],
        "detail": [r.detail for r in records],
        "fingerprint": [r.fingerprint for r in records],
        "facts": [json.dumps(dict(r.facts), sort_keys=True) for r in records],
    }
    if files is not None:
        columns["file"] = [files.get(r.clip_id) for r in records]
    if labels is not None:
        found = [labels.get(r.clip_id, (None, None)) for r in records]
        columns["domain"], columns["label"] = [d for d, _ in found], [label for _, label in found]
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
