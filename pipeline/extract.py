"""Manifest x views x frozen backbones -> cache. Resumable: finished units stay, everything else is made."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.layout import ClipRecord, Identity, Status
from cache.store import FeatureGroup
from extractors.backbone import BACKBONES, DEFAULT_BACKBONES, Backbone, Encoder
from extractors.inputs import AudioInput, FrameInput
from extractors.optical_flow import FLOW_METHODS, compute_flow
from extractors.views.audio import render_audio
from extractors.views.flow import render_flow
from extractors.views.plan import FramePlan, needed_indices, plan_frames
from extractors.views.video import render_video
from pipeline.decode import open_flow, open_frames, read_sound
from pipeline.errors import MediaAbsent, MediaError, UsageError, choose
from pipeline.locks import only_writer
from pipeline.types import MODALITIES, Clip, Manifest, ViewSpec
from pipeline.workers import Advance, run_tasks

UNIT = 32  # clips per unit of work: a crash loses at most this many per worker
FLOW_BOUND = 20.0  # pixels; flow beyond it saturates, as in the published data sets
STAGES = ("decode", "views", "backbone", "write")

Features = dict[str, tuple[NDArray[np.float16] | None, ClipRecord]]


@dataclass(frozen=True)
class ExtractSettings:
    """What is extracted, and how."""

    modalities: tuple[str, ...] = MODALITIES
    backbones: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_BACKBONES))  # per modality
    views: ViewSpec = field(default_factory=ViewSpec)
    flow_method: str = "dis-medium"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for modality in self.modalities:
            choose("modality", modality, MODALITIES)
            backbone = BACKBONES[choose("backbone", self.backbones[modality], BACKBONES)]
            if backbone.modality != modality:
                raise UsageError(f"backbone {backbone.name!r} takes {backbone.modality}, not {modality}")
        choose("method of optical flow", self.flow_method, FLOW_METHODS)

    def backbone(self, modality: str) -> Backbone:
        """The backbone of a modality."""
        return BACKBONES[self.backbones[modality]]

    def identity(self, dataset: str, modality: str) -> Identity:
        """Identity of the cache group of a modality."""
        backbone = self.backbone(modality)
        settings: dict[str, Any] = {
            "input": dataclasses.asdict(backbone.input),
            "augmentation": self.views.variant,
            "resize": "uint8 antialiased bilinear",
        }
        if modality == "flow":
            settings |= {"flow": self.flow_method, "flow_bound": FLOW_BOUND}
        if modality == "audio":
            settings |= {"resampler": "swresample"}
        return Identity(
            dataset=dataset,
            modality=modality,
            backbone=backbone.name,
            weights=backbone.weights,
            tap="pool",
            views=tuple(view.name for view in self.views.views()),
            view_seed=self.views.seed,
            settings=settings,
        )


@dataclass(frozen=True)
class UnitTask:
    """The units of all modalities that hold the same clips: one decoding pass serves them all."""

    cache: Path
    dataset: str
    clips: tuple[Clip, ...]
    units: Mapping[str, int]  # modality -> unit
    settings: ExtractSettings


@dataclass
class ExtractReport:
    """What `pipe extract` tells at its end."""

    new_clips: int
    seconds: float
    stage_seconds: Mapping[str, float]  # summed over workers
    counts: Mapping[str, Mapping[str, int]]  # modality -> status -> clips
    quarantined: Sequence[tuple[str, ClipRecord]]  # (modality, record) of clips that failed
    absent: Sequence[tuple[str, ClipRecord]]  # (modality, record) of clips without such a track
    repaired: Sequence[str]  # what had to be made anew, and why


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def extract(
    manifest: Manifest,
    settings: ExtractSettings,
    cache: Path,
    workers: int,
    on_start: Callable[[int], None],
    advance: Advance,
) -> ExtractReport:
    """Extract everything that is missing and return what is there.

    Args:
        manifest: the clips.
        settings: modalities, backbones, views.
        cache: root folder of all caches.
        workers: processes.
        on_start: called once with the number of clips to do.
        advance: called with numbers of clips done.

    Raises:
        UsageError: another process is extracting into the same cache.
    """
    start = time.perf_counter()
    with only_writer(cache / manifest.dataset, "extracting into"):
        groups = open_groups(manifest, settings, cache)
        repaired = _repair(manifest, groups)
        tasks = _tasks(manifest, settings, cache, groups)
        total = sum(len(task.clips) for task in tasks)
        on_start(total)
        stage_seconds: Counter[str] = Counter()
        for _, seconds in run_tasks(extract_unit, tasks, workers, advance):
            stage_seconds.update(seconds)
    records = {m: group.records() for m, group in groups.items()}
    wanted = [c.clip_id for c in manifest.clips]

    def with_status(status: Status) -> list[tuple[str, ClipRecord]]:
        return [(m, records[m][c]) for c in wanted for m in groups if records[m][c].status is status]

    return ExtractReport(
        new_clips=total,
        seconds=time.perf_counter() - start,
        stage_seconds=dict(stage_seconds),
        counts={m: Counter(records[m][c].status.name.lower() for c in wanted) for m in groups},
        quarantined=with_status(Status.FAILED),
        absent=with_status(Status.ABSENT),
        repaired=repaired,
    )


def open_groups(manifest: Manifest, settings: ExtractSettings, cache: Path) -> dict[str, FeatureGroup]:
    """Open or make the cache group of every modality."""
    versions = {
        name: version(name) for name in ("pipe-features", "torch", "numpy", "av", "opencv-python-headless", "zarr")
    }
    ids = [clip.clip_id for clip in manifest.clips]
    return {
        m: FeatureGroup.open_or_create(
            cache, settings.identity(manifest.dataset, m), ids, settings.backbone(m).dim, UNIT, versions
        )
        for m in settings.modalities
    }


def _repair(manifest: Manifest, groups: Mapping[str, FeatureGroup]) -> list[str]:
    """Make units todo again whose chunks are damaged or whose media has changed since."""
    notes = []
    clips = {clip.clip_id: clip for clip in manifest.clips}
    for modality, group in groups.items():
        for unit in group.damaged_units():
            group.forget_unit(unit)
            notes.append(f"{modality}: unit {unit} was damaged on disk")
        for unit in range(group.num_units):
            commit = group.commit_of(unit)
            for plain in commit["clips"] if commit else ():
                clip = clips.get(plain["clip_id"])
                # Media that has gone missing does not make finished features worthless.
                if clip is None or (plain["status"] == "present" and not _all_there(clip)):
                    continue
                if fingerprint(clip) != plain["fingerprint"]:
                    group.forget_unit(unit)
                    notes.append(f"{modality}: the media of {clip.clip_id} changed since it was extracted")
                    break
    return notes


def _tasks(
    manifest: Manifest, settings: ExtractSettings, cache: Path, groups: Mapping[str, FeatureGroup]
) -> list[UnitTask]:
    """Units to do; units of several modalities with the same clips become one task."""
    clips = {clip.clip_id: clip for clip in manifest.clips}
    together: dict[tuple[str, ...], dict[str, int]] = {}
    for modality, group in groups.items():
        for unit in group.todo_units():
            together.setdefault(group.unit_clips(unit), {})[modality] = unit
    tasks = []
    for ids, units in together.items():
        gone = [c for c in ids if c not in clips]
        if gone:
            raise UsageError(
                f"clip {gone[0]!r} was in {manifest.dataset} before its extraction finished and is not in the manifest "
                f"now; put it back, or delete {groups[next(iter(units))].path} to start over"
            )
        tasks.append(UnitTask(cache, manifest.dataset, tuple(clips[c] for c in ids), units, settings))
    return tasks


def resolve_device(name: str) -> str:
    """Return ``cpu`` or ``cuda:N`` for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    number = int(index) if index.isdigit() else 0
    if kind != "cuda" or (index and not index.isdigit()):
        raise UsageError(f"{name!r} is not a device. Allowed: auto, cpu, cuda, cuda:N")
    if number >= torch.cuda.device_count():
        raise UsageError(
            f"device {name!r} is not here: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu, or install a driver and a CUDA build of PyTorch"
        )
    return f"cuda:{number}"


@lru_cache(maxsize=8)
def _encoder(backbone: str, device: str) -> Encoder:
    return BACKBONES[backbone].load(torch.device(device))


def extract_unit(task: UnitTask, advance: Advance) -> dict[str, float]:
    """Extract and write the units of one task; returns seconds per stage."""
    torch.set_num_threads(1)
    clock = _Clock()
    rows: list[Features] = []
    for clip in task.clips:
        rows.append(extract_clip(clip, tuple(task.units), task.settings, clock))
        advance(1)
    with clock.stage("write"):
        for modality, unit in task.units.items():
            group = FeatureGroup(task.cache / task.settings.identity(task.dataset, modality).folder)
            shape = (len(rows), len(group.identity.views), group.dim)
            values = np.full(shape, np.nan, dtype=np.float16)
            for i, row in enumerate(rows):
                features, _ = row[modality]
                if features is not None:
                    values[i] = features
            group.write_unit(unit, values, [row[modality][1] for row in rows])
    return clock.seconds


def extract_clip(clip: Clip, modalities: Sequence[str], settings: ExtractSettings, clock: _Clock) -> Features:
    """Features ``(views, dim)`` float16 and the record of one clip, per modality; a bad track never raises."""
    out: Features = {}
    mark = fingerprint(clip)
    for makes, source in _sources(clip, modalities):
        try:
            inputs = source(clip, makes, settings, clock)
        except MediaError as error:
            status = Status.ABSENT if isinstance(error, MediaAbsent) else Status.FAILED
            record = ClipRecord(clip.clip_id, status, error.code, error.detail, mark)
            out.update(dict.fromkeys(makes, (None, record)))
            continue
        for modality, (views, facts) in inputs.items():
            with clock.stage("backbone"):
                values = _encode(_encoder(settings.backbones[modality], settings.device), views)
            if np.isfinite(values).all():
                out[modality] = (values, ClipRecord(clip.clip_id, Status.PRESENT, "", "", mark, facts))
            else:
                detail = f"{modality} features of {settings.backbones[modality]} leave float16 or are not numbers"
                out[modality] = (None, ClipRecord(clip.clip_id, Status.FAILED, "not_finite", detail, mark, facts))
    return out


Inputs = dict[str, tuple[list[torch.Tensor], Mapping[str, Any]]]  # modality -> network inputs per view, facts
Source = Callable[[Clip, Sequence[str], ExtractSettings, _Clock], Inputs]


def _sources(clip: Clip, modalities: Sequence[str]) -> list[tuple[tuple[str, ...], Source]]:
    """Which modalities are read together, and by what: frames serve RGB and computed flow in one pass."""
    stored_flow = "flow" in clip.media
    from_frames = tuple(m for m in modalities if m == "video" or (m == "flow" and not stored_flow))
    sources: list[tuple[tuple[str, ...], Source]] = []
    if from_frames:
        sources.append((from_frames, _frame_inputs))
    if "flow" in modalities and stored_flow:
        sources.append((("flow",), _stored_flow_inputs))
    if "audio" in modalities:
        sources.append((("audio",), _sound_inputs))
    return sources


def _plan(clip: Clip, total: int, modality: str, settings: ExtractSettings) -> list[FramePlan]:
    views = [(view.kind, view.index) for view in settings.views.views()]
    return plan_frames(clip.clip_id, total, _frame_spec(settings, modality), views, settings.views.seed, modality)


def _frame_spec(settings: ExtractSettings, modality: str) -> FrameInput:
    spec = settings.backbone(modality).input
    if not isinstance(spec, FrameInput):
        raise UsageError(f"backbone {settings.backbones[modality]!r} does not take frames")
    return spec


def _frame_inputs(clip: Clip, makes: Sequence[str], settings: ExtractSettings, clock: _Clock) -> Inputs:
    """RGB views and views of flow computed between neighbouring frames, from one decoding pass."""
    if "video" not in clip.media:
        raise MediaAbsent("no_video_path", "the manifest names no video for this clip")
    with clock.stage("decode"):
        reader = open_frames(clip.media["video"], clip.start_seconds, clip.end_seconds, clip.rate_hz)
    with reader:
        # Flow image i lies between frames i and i + 1, so a clip has one fewer of them.
        totals = {"video": reader.num_frames, "flow": reader.num_frames - 1}
        plans = {m: _plan(clip, totals[m], m, settings) for m in makes}
        needed = {m: needed_indices(plans[m]) for m in makes}
        pairs = needed.get("flow", np.empty(0, dtype=np.int64))
        wanted = np.unique(np.concatenate([needed.get("video", pairs), pairs, pairs + 1]))
        with clock.stage("decode"):
            frames = reader.read([int(i) for i in wanted])
    inputs: Inputs = {}
    with clock.stage("views"):
        if "video" in makes:
            chosen = np.searchsorted(wanted, needed["video"])
            views = render_video(
                torch.from_numpy(frames[chosen]), needed["video"], plans["video"], _frame_spec(settings, "video")
            )
            inputs["video"] = (views, dict(reader.facts))
        if "flow" in makes:
            first = np.searchsorted(wanted, pairs)
            flow = compute_flow(
                frames[first], frames[np.searchsorted(wanted, pairs + 1)], settings.flow_method, FLOW_BOUND
            )
            views = render_flow(torch.from_numpy(flow), pairs, plans["flow"], _frame_spec(settings, "flow"))
            inputs["flow"] = (views, {**reader.facts, "flow": settings.flow_method})
    return inputs


def _stored_flow_inputs(clip: Clip, makes: Sequence[str], settings: ExtractSettings, clock: _Clock) -> Inputs:
    """Views of precomputed flow."""
    with clock.stage("decode"):
        reader = open_flow(clip.media["flow"], clip.start_seconds, clip.end_seconds, clip.rate_hz)
    with reader:
        plans = _plan(clip, reader.num_frames, "flow", settings)
        needed = needed_indices(plans)
        with clock.stage("decode"):
            flow = reader.read([int(i) for i in needed])
    with clock.stage("views"):
        views = render_flow(torch.from_numpy(flow), needed, plans, _frame_spec(settings, "flow"))
    return {"flow": (views, {**reader.facts, "flow": "stored"})}


def _sound_inputs(clip: Clip, makes: Sequence[str], settings: ExtractSettings, clock: _Clock) -> Inputs:
    """Views of the sound file, or of the video file's sound track."""
    spec = settings.backbone("audio").input
    if not isinstance(spec, AudioInput):
        raise UsageError(f"backbone {settings.backbones['audio']!r} does not take sound")
    path = clip.media.get("audio") or clip.media.get("video")
    if path is None or ("audio" not in clip.media and path.is_dir()):
        raise MediaAbsent("no_audio_path", "the manifest names no sound for this clip")
    with clock.stage("decode"):
        sound = read_sound(path, spec.rate_hz, clip.start_seconds, clip.end_seconds)
    with clock.stage("views"):
        views = [(view.kind, view.index) for view in settings.views.views()]
        rendered = render_audio(torch.from_numpy(sound.samples), views, clip.clip_id, settings.views.seed, spec)
    return {"audio": (list(rendered), sound.facts)}


def _encode(encoder: Encoder, views: Sequence[torch.Tensor]) -> NDArray[np.float16]:
    """Features ``(views, dim)`` float16; views of one shape go through the network together."""
    rows: list[torch.Tensor] = [torch.empty(0)] * len(views)
    for shape in dict.fromkeys(view.shape for view in views):
        members = [i for i, view in enumerate(views) if view.shape == shape]
        for i, row in zip(members, encoder(torch.stack([views[i] for i in members])), strict=True):
            rows[i] = row
    with np.errstate(over="ignore"):  # an overflow becomes inf, which the caller reports
        return torch.stack(rows).numpy().astype(np.float16)


def fingerprint(clip: Clip) -> str:
    """Identify a clip's media: sizes, first and last bytes, and the stretch; not names, times or the whole content."""
    state = hashlib.sha256(repr((clip.start_seconds, clip.end_seconds, clip.rate_hz)).encode())
    for key in sorted(clip.media):
        state.update(f"{key}:{_path_fingerprint(clip.media[key])}".encode())
    return state.hexdigest()[:32]


@lru_cache(maxsize=65536)
def _path_fingerprint(path: Path) -> str:
    """Size, first and last 4 KiB of a file; for a folder the names and that of its first and last file."""
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        ends = [_path_fingerprint(path / name) for name in names[:1] + names[-1:]]
        return hashlib.sha256(repr((names, ends)).encode()).hexdigest()
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            size = file.seek(0, 2)
            file.seek(max(0, size - 4096))
            return hashlib.sha256(repr((size, head, file.read(4096))).encode()).hexdigest()
    except OSError:
        return "unreadable"


def _all_there(clip: Clip) -> bool:
    return all(path.exists() for path in clip.media.values())
