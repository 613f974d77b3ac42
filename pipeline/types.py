"""The values that travel through the pipeline: frozen, checked on construction, standard library only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ManifestError, UsageError, nearest

ViewKind = Literal["clean", "weak", "strong"]
Protocol = Literal["strict"]
MODALITIES = ("video", "flow", "audio")


def canonical_json(value: object) -> str:
    """Serialise plain values so that equal values give equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """Return the sha256 hex digest of a plain value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled stretch of media.

    Media keys: ``video`` (a container or a folder of JPEG frames), ``audio`` (a sound file; without it the sound of
    the video file is used), ``flow`` (precomputed optical flow; without it flow is computed from the frames).
    """

    clip_id: str  # stable across machines; unique in its manifest
    domain: str  # name of the domain the clip was recorded in
    label: str  # class name
    split: str  # train, val or test, as the data set's authors publish it
    group: str  # clips of one group (one source video, one person) stay on one side of every split
    media: Mapping[str, Path]  # absolute path per media key
    start_seconds: float | None = None  # start inside the media file; None: from its beginning
    end_seconds: float | None = None  # end inside the media file; None: to its end
    rate_hz: float | None = None  # frame rate of a folder of frames; files carry their own

    def __post_init__(self) -> None:
        start = 0.0 if self.start_seconds is None else self.start_seconds
        if not self.clip_id:
            raise ManifestError("clip_id is empty; every clip needs a unique, stable clip_id")
        if not math.isfinite(start) or start < 0:
            raise ManifestError(f"clip {self.clip_id!r}: start is {start}; it must be a finite number >= 0 seconds")
        if self.end_seconds is not None and not self.end_seconds > start:
            raise ManifestError(
                f"clip {self.clip_id!r}: stop {self.end_seconds} s is not after start {start} s; "
                "leave stop empty to use the whole file"
            )
        if not self.media:
            raise ManifestError(f"clip {self.clip_id!r} has no media; give at least one of path, audio_path, flow_path")


@dataclass(frozen=True)
class Manifest:
    """A data set: its classes, domains and clips, in a fixed order."""

    dataset: str  # short name, used in folder names and in every record
    classes: tuple[str, ...]  # class names; the position is the label index
    domains: tuple[str, ...]  # domain names
    clips: tuple[Clip, ...]
    root: Path  # the folder that relative media paths start from

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for clip in self.clips:
            if clip.clip_id in seen:
                raise ManifestError(f"clip_id {clip.clip_id!r} occurs twice in {self.dataset}; clip ids must be unique")
            seen.add(clip.clip_id)
            if clip.label not in self.classes:
                raise ManifestError(
                    f"clip {clip.clip_id!r} has label {clip.label!r}, which is not a class of {self.dataset}."
                    f"{nearest(clip.label, self.classes)} Classes: {', '.join(self.classes)}"
                )
            if clip.domain not in self.domains:
                raise ManifestError(
                    f"clip {clip.clip_id!r} has domain {clip.domain!r}, which is not a domain of {self.dataset}."
                    f"{nearest(clip.domain, self.domains)} Domains: {', '.join(self.domains)}"
                )
        if not self.clips:
            raise ManifestError(f"{self.dataset} has no clips")

    @property
    def digest(self) -> str:
        """Digest of everything a split depends on; media paths are not part of it."""
        rows = sorted([c.clip_id, c.domain, c.label, c.split, c.group] for c in self.clips)
        return digest({"classes": self.classes, "domains": self.domains, "rows": rows})

    def label_indices(self) -> list[int]:
        """Class index of every clip, in manifest order."""
        position = {name: i for i, name in enumerate(self.classes)}
        return [position[clip.label] for clip in self.clips]

    def domain_indices(self) -> list[int]:
        """Domain index of every clip, in manifest order."""
        position = {name: i for i, name in enumerate(self.domains)}
        return [position[clip.domain] for clip in self.clips]


@dataclass(frozen=True, slots=True)
class View:
    """One augmented version of a clip; its pixels depend on (clip_id, view, view_seed) and nothing else."""

    kind: ViewKind
    index: int  # weak i and strong i of a clip share frames, crop and flip

    @property
    def name(self) -> str:
        """Name used in caches and tables, for example ``weak1``."""
        return f"{self.kind}{self.index}"


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """How many views of each kind are cached, and the seed of their draws."""

    clean: int = 1
    weak: int = 2
    strong: int = 2
    seed: int = 0
    variant: Literal["strict"] = "strict"  # photometric operations before normalisation, u negated by a flip

    def __post_init__(self) -> None:
        if self.clean != 1:
            raise UsageError(f"views: {self.clean} clean views; there is exactly 1 (it is deterministic)")
        if self.weak < 1 or self.strong < 1 or self.strong > self.weak:
            raise UsageError(
                f"views: {self.weak} weak and {self.strong} strong; need weak >= strong >= 1 "
                "(strong view i is made from the frames of weak view i)"
            )

    def views(self) -> tuple[View, ...]:
        """Views in cache order: clean, all weak, all strong."""
        counts: tuple[tuple[ViewKind, int], ...] = (
            ("clean", self.clean),
            ("weak", self.weak),
            ("strong", self.strong),
        )
        return tuple(View(kind, i) for kind, count in counts for i in range(count))
