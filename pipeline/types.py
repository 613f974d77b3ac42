"""The values that travel through the pipeline: frozen, checked on construction, standard library only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ManifestError, UsageError, nearest

ViewKind = Literal["clean", "weak", "strong"]
Protocol = Literal["strict", "paper"]
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
    # Numbers of the first picture and behind the last, in the folders of frames and of flow; seconds then cut the
    # sound alone.
    frame_numbers: tuple[int, int] | None = None
    flow_numbers: tuple[int, int] | None = None

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
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise ManifestError(
                f"clip {self.clip_id!r}: rate_hz is {self.rate_hz}; it must be more than 0 frames a second"
            )
        for name in ("frame_numbers", "flow_numbers"):
            numbers = getattr(self, name)
            if numbers is not None and not 0 <= numbers[0] < numbers[1]:
                raise ManifestError(
                    f"clip {self.clip_id!r}: {name} are {numbers}; the first must be 0 or more and less than the second"
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
    notes: tuple[str, ...] = ()  # what a reader of its numbers must know; no part of its identity

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
        """Digest of everything a split depends on, the order of the clips included; media paths are no part of it."""
        rows = [[c.clip_id, c.domain, c.label, c.split, c.group] for c in self.clips]
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
    variant: Literal["strict", "paper"] = "strict"  # paper: as the authors' code does it, with what it does wrong

    def __post_init__(self) -> None:
        if self.variant not in ("strict", "paper"):
            raise UsageError(f"views: variant {self.variant!r}; allowed: strict, paper")
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


@dataclass(frozen=True, slots=True)
class CleanView(ViewSpec):
    """The clean view alone, which is all that a prediction reads; no cache is made with it."""

    weak: int = 0
    strong: int = 0

    def __post_init__(self) -> None:
        if self.variant not in ("strict", "paper"):
            raise UsageError(f"views: variant {self.variant!r}; allowed: strict, paper")
        if (self.clean, self.weak, self.strong) != (1, 0, 0):
            raise UsageError(f"views: {self.clean} clean, {self.weak} weak, {self.strong} strong; this is 1, 0 and 0")


@dataclass(frozen=True, slots=True)
class PerClass:
    """So many labeled clips per class and source domain."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"labels: {self.count} per class; need at least 1")

    def __str__(self) -> str:
        return str(self.count)


@dataclass(frozen=True, slots=True)
class Ratio:
    """This share of each class of each source domain is labeled, at least one clip."""

    share: float  # in (0, 1]

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"labels: {self.share:.2%}; need more than 0 % and at most 100 %")

    def __str__(self) -> str:
        return f"{self.share * 100:.12g}%"


Budget = PerClass | Ratio


def parse_budget(text: str) -> Budget:
    """Read ``5`` (clips per class and source domain) or ``5%`` (share of each class).

    Raises:
        UsageError: anything else.
    """
    try:
        return Ratio(float(text[:-1]) / 100) if text.endswith("%") else PerClass(int(text))
    except ValueError:
        raise UsageError(f"labels: {text!r}; write a number per class (5) or a share (5%)") from None


@dataclass(frozen=True)
class Split:
    """Which clips a run may use for what; members are positions in the manifest's list of clips.

    The four parts are disjoint. Strict protocol: the target domain is in ``test`` only and nothing else is, and a group
    is never on two sides of training, validation and test. The one exception is a data set of a single domain, which
    is tested on its own test part. Paper protocol: as the authors' code does it, where that is well defined.
    """

    sources: tuple[str, ...]
    target: str
    labeled: tuple[int, ...]
    unlabeled: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    protocol: Protocol = "strict"
    notes: tuple[str, ...] = ()  # what a reader must know, for example classes too small for the budget

    def __post_init__(self) -> None:
        parts = {"labeled": self.labeled, "unlabeled": self.unlabeled, "val": self.val, "test": self.test}
        seen: dict[int, str] = {}
        for name, part in parts.items():
            for position in part:
                if position in seen:
                    raise ValueError(f"clip {position} is in {seen[position]} and {name}; a strict split is disjoint")
                seen[position] = name


@dataclass(frozen=True)
class RunSpec:
    """Everything a run depends on, resolved: hashing it gives the run's identity."""

    dataset: str
    manifest_digest: str  # digest of clip ids, labels, domains, splits and groups
    classes: tuple[str, ...]
    sources: tuple[str, ...]
    target: str  # the unseen domain; "": none, nothing is tested
    modalities: tuple[str, ...]
    features: Mapping[str, Mapping[str, str]]  # per modality: backbone, weights, digest of the cached features
    budget: str  # as ``parse_budget`` reads it
    method: str
    hparams: Mapping[str, float | str]  # resolved, every name present
    split_seed: int  # draws the labeled set
    init_seed: int  # initial weights, batches, dropout
    steps: int
    batch_labeled: int
    batch_unlabeled: int
    eval_every: int  # steps between two evaluations
    protocol: Protocol = "strict"
    target_part: Literal["all", "test"] = "all"  # which clips of the unseen target domain are evaluated
    selection: str = "last"  # rule that picks the reported evaluation
    projection: str = "none"  # of the features, fitted on the sources' training clips: pca:N, pca-white:N
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products in training
    patience: int = 0  # evaluations without a better validation accuracy before a run stops; 0: it never does
    unlabeled_domains: tuple[str, ...] = ()  # sources of which no clip is labeled
    labeled_ids: tuple[str, ...] = ()  # the labeled clips, where they were given and not drawn
    folds: int = 0  # of the selection rule label-honest
    fold: int = -1  # which of them holds labeled clips back for validation; -1: none, the run itself
    version: str = ""  # code version

    def __post_init__(self) -> None:
        if self.target in self.sources and self.sources != (self.target,):
            raise UsageError(f"target {self.target!r} is also a source; a target domain is in no training set")
        if self.folds == 1 or not -1 <= self.fold < self.folds:
            raise UsageError(f"fold {self.fold} of {self.folds}: there must be 2 folds or more, counted from 0")
        if self.steps < 1 or self.batch_labeled < 1 or self.batch_unlabeled < 1 or self.eval_every < 1:
            raise UsageError("steps, batch sizes and eval_every must be at least 1")
        if self.patience < 0:
            raise UsageError(f"patience is {self.patience}; it must be 0 (never stop early) or more evaluations")

    def to_json(self) -> dict[str, Any]:
        """Plain values, as stored in a result."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> RunSpec:
        """Read what ``to_json`` wrote."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**values)

    @cached_property
    def run_id(self) -> str:
        """First 16 hex digits of the digest of all fields."""
        return digest(self.to_json())[:16]


@dataclass(frozen=True)
class RunResult:
    """The record of a finished run: written once, atomically; it exists means it is finished.

    Curves share the axis ``step``: ``target/fused`` and ``val/<modality>`` are accuracies, ``loss/<term>`` are means
    since the previous evaluation. The rest describes pseudo-labels over the whole unlabeled pool, by labels that no
    training sees (``None`` where there is nothing to take a share of):

    ``pseudo/<mask>/coverage`` and ``.../precision``: share of the clips accepted, and of the accepted ones right.
    ``pseudo/<mask>/class/<class>/coverage``: of the clips of this class; ``.../precision``: of those labeled as it.
    ``pseudo/<mask>/domain/<domain>/coverage`` and ``.../precision``: both of the clips of a source domain.
    ``pseudo/agree/<modality>``: share of the accepted ones whose label this modality alone would have given too.
    ``pseudo/right/<modality>``: accuracy of this modality alone, accepted or not; both of clips that have it.
    """

    spec: RunSpec
    metrics: Mapping[str, float | None]  # the curves at the selected evaluation, and ``selected_step``
    curves: Mapping[str, Sequence[float | None]]
    selection: str
    environment: Mapping[str, str | int | float]
    seconds: float  # training time of the run's stack divided by the number of its runs
    status: Literal["finished", "diverged"] = "finished"
    notes: tuple[str, ...] = ()  # what a reader must know about the split
    sizes: Mapping[str, int] = field(default_factory=dict)  # clips per part of the split
    # Target clips per true (row) and predicted (column) class at the selected evaluation, fused; (): not known.
    confusion: tuple[tuple[int, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, as written to disk."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"schema": 1, "run_id": self.spec.run_id, **plain}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> RunResult:
        """Read what ``to_json`` wrote."""
        values = {k: v for k, v in plain.items() if k not in ("schema", "run_id")}
        values["spec"] = RunSpec.from_json(values["spec"])
        values["notes"] = tuple(values["notes"])
        values["confusion"] = tuple(tuple(row) for row in values.get("confusion", ()))
        return cls(**values)
