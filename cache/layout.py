"""What a cache group is called, what its records hold, and how a file is written so that a crash leaves no half.

A group is one folder ``<root>/<dataset>/<modality>-<backbone>-<digest>.zarr``:

======================  =============================================================================================
``zarr.json``           Zarr v3 group; its attributes hold the identity and the library versions
``features/``           ``(clips, views, dim)`` float16 or float32, chunks ``(unit, 1, dim)``, crc32c, fill value NaN
``status/``             ``(clips,)`` uint8: 0 todo, 1 present, 2 absent, 3 failed
``clip_id/``            ``(clips,)`` string; empty where a unit was padded
``clips.json``          unit size and the clip id of every row; written last when the group is made or grows
``commits/<unit>.json`` one per finished unit, written last: the truth about its rows
``leases/``             while processes work on it: who works on what
======================  =============================================================================================

A chunk that is missing reads back as NaN, never as a plausible value.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from cache.seal import sealed

SCHEMA = 1
DTYPES = ("float16", "float32")  # of features; the first where the setting ``dtype`` is absent


class CacheError(Exception):
    """The cache cannot be used as asked; the message says what to do."""


class Status(IntEnum):
    """State of one clip in one modality."""

    TODO = 0  # not extracted yet
    PRESENT = 1  # features are there
    ABSENT = 2  # the media has no such track
    FAILED = 3  # the track is damaged; the record holds the reason


@dataclass(frozen=True)
class Identity:
    """Everything that decides a feature's value: a changed setting is another group, never a mixture."""

    dataset: str
    modality: str
    backbone: str
    weights: str  # digest or name of the weights, for example ``random:0``
    tap: str  # where in the network the feature is taken
    views: tuple[str, ...]  # names, in the order of the view axis
    view_seed: int
    settings: Mapping[str, Any]  # network input, decoding and augmentation settings, plain JSON values

    def to_json(self) -> dict[str, Any]:
        """Plain values, as stored in the group's attributes."""
        return {
            "dataset": self.dataset,
            "modality": self.modality,
            "backbone": self.backbone,
            "weights": self.weights,
            "tap": self.tap,
            "views": list(self.views),
            "view_seed": self.view_seed,
            "settings": dict(self.settings),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Identity:
        """Read back what ``to_json`` gave."""
        return cls(**{**plain, "views": tuple(plain["views"])})

    @property
    def digest(self) -> str:
        """sha256 of all fields, hex."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def dtype(self) -> str:
        """Of the stored features: the setting ``dtype``, float16 where it is absent.

        Raises:
            CacheError: features are not stored in this type.
        """
        dtype = str(self.settings.get("dtype", DTYPES[0]))
        if dtype not in DTYPES:
            raise CacheError(f"features are stored as {' or '.join(DTYPES)}, not {dtype!r}")
        return dtype

    @property
    def folder(self) -> Path:
        """Folder of the group below the cache root."""
        backbone = self.backbone.replace(":", "-")  # torchvision:NAME; a colon is no part of a file name everywhere
        return Path(self.dataset) / f"{self.modality}-{backbone}-{self.digest[:12]}.zarr"


@dataclass(frozen=True)
class Listing:
    """The rows of a group."""

    unit: int  # rows per unit
    clip_ids: tuple[str, ...]  # of every row; "" is padding

    def to_bytes(self) -> bytes:
        """The content of ``clips.json``."""
        return json.dumps(sealed({"schema": SCHEMA, "unit": self.unit, "clip_ids": list(self.clip_ids)})).encode()


def _listing_1(plain: Mapping[str, Any]) -> Listing:
    return Listing(int(plain["unit"]), tuple(plain["clip_ids"]))


LISTINGS: Mapping[int, Callable[[Mapping[str, Any]], Listing]] = {1: _listing_1}  # a reader per schema


def read_listing(text: bytes, where: str) -> Listing:
    """The rows of a group of any schema up to this version's.

    Args:
        text: content of ``clips.json``.
        where: the group, for messages.

    Raises:
        CacheError: the file is damaged, or a newer version of pipe wrote it.
    """
    try:
        plain = json.loads(text)
        schema = plain["schema"]
        if isinstance(schema, int) and schema > SCHEMA:
            raise CacheError(
                f"{where} has cache schema {schema}; this version reads schema {SCHEMA} and older: a newer pipe wrote "
                "it. Update pipe (pip install -U pipe-features), or extract again into another folder"
            )
        return LISTINGS[schema](plain)
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{where}/clips.json cannot be read ({type(error).__name__}: {error}); `pipe cache verify` says what is "
            f"left of it, or delete {where} to extract again"
        ) from error


@dataclass(frozen=True)
class ClipRecord:
    """What is known about one clip of a finished unit."""

    clip_id: str
    status: Status
    code: str = ""  # short reason when absent or failed
    detail: str = ""  # one sentence with the values seen
    fingerprint: str = ""  # identifies the media the features were made from
    facts: Mapping[str, str | int | float | bool] = field(default_factory=dict)  # decoder, codec, sizes, rates

    def to_json(self) -> dict[str, Any]:
        """Plain values, as stored in a commit."""
        return {
            "clip_id": self.clip_id,
            "status": self.status.name.lower(),
            "code": self.code,
            "detail": self.detail,
            "fingerprint": self.fingerprint,
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ClipRecord:
        """Read what ``to_json`` wrote."""
        return cls(**{**plain, "status": Status[plain["status"].upper()]})


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is either there whole or as before, also after a power cut; no half stays behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush_to_disk(path: Path) -> None:
    """Force a finished file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
