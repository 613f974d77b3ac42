"""What a check of a group found, and what can be done about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning"]


class Remedy(Enum):
    """What repairs a finding."""

    NONE = "cannot be repaired here"
    FORGET = "the unit becomes todo; `pipe extract` makes it anew"
    ARRAYS = "status and clip_id are written anew from the commits"
    METADATA = "the array's description is written anew"
    CLIPS = "clips.json is written anew from the clip_id array and the commits"
    ATTRIBUTES = "the flipped bit is turned back"
    DELETE = "the file is deleted"


# Code -> what it means; the documentation lists the same.
CODES: dict[str, str] = {
    "attributes_unreadable": "zarr.json of the group cannot be read",
    "schema": "the group has a schema that this version does not read",
    "provenance_missing": "the group does not say what made it: identity, versions or notes",
    "identity_digest": "the identity is not the one that the folder is named after",
    "weights_unknown": "nothing says which weights these are",
    "seal": "a JSON file differs from the digest inside it",
    "metadata": "zarr.json of an array is not what this group needs",
    "clips_unreadable": "clips.json cannot be read",
    "clips_disagree": "clips.json names another clip than the clip_id array and the commits",
    "clip_duplicate": "a clip id has two rows",
    "clip_id_disagrees": "the clip_id array names another clip than clips.json",
    "status_disagrees": "the status array says another thing than the commits",
    "commit_unreadable": "a commit cannot be read",
    "commit_clips": "a commit is about other clips than its unit's",
    "commit_extra": "a commit of a unit that the group does not have",
    "chunk_missing": "a chunk of a finished unit is missing",
    "chunk_cut": "a chunk has too few or too many bytes",
    "chunk_checksum": "a chunk fails its crc32c",
    "chunk_extra": "a chunk outside the group",
    "digest": "the features are not those that were committed",
    "not_finite": "NaN or Inf in a clip that is present",
    "not_nan": "values where a clip is not present",
    "constant": "a row of one value",
    "identical": "two clips of different media with the same features",
    "leftover": "a file that a killed process left",
    "unexpected_file": "a file that does not belong here",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a group."""

    group: str  # folder name
    unit: int | None  # None: not of one unit
    clip_id: str  # "": not of one clip
    code: str  # one of ``CODES``
    detail: str  # one sentence with the values seen
    severity: Severity
    remedy: Remedy
    path: Path | None = None  # the file concerned

    @property
    def repairable(self) -> bool:
        """Whether ``verify(repair=True)`` does something about it."""
        return self.remedy is not Remedy.NONE


@dataclass
class Findings:
    """Collects what is found in one group."""

    group: str
    found: list[Finding] = field(default_factory=list)

    def error(self, code: str, detail: str, remedy: Remedy, unit: int | None = None, clip: str = "") -> None:
        """Add an error."""
        self.found.append(Finding(self.group, unit, clip, code, detail, "error", remedy))

    def warn(self, code: str, detail: str, remedy: Remedy, unit: int | None = None, clip: str = "") -> None:
        """Add something that may be right."""
        self.found.append(Finding(self.group, unit, clip, code, detail, "warning", remedy))

    def file(self, code: str, path: Path, detail: str, severity: Severity, remedy: Remedy) -> None:
        """Add a file."""
        self.found.append(Finding(self.group, None, "", code, detail, severity, remedy, path))


@dataclass(frozen=True)
class VerifyReport:
    """What is known about a group after it was checked."""

    path: Path
    findings: tuple[Finding, ...]  # everything found, also what was repaired
    left: tuple[Finding, ...]  # what is still so after repairs; all findings where nothing was repaired
    repaired: tuple[str, ...]  # what was done, a sentence each
    units: int  # committed ones that were read
    num_bytes: int  # of features that were read
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether no error is left."""
        return not any(f.severity == "error" for f in self.left)


def count_by_code(findings: Sequence[Finding]) -> dict[str, int]:
    """Number of findings per code, most first."""
    return dict(Counter(f.code for f in findings).most_common())
