"""One clip -> features per modality: decoding, views and the backbone; a bad track becomes a record, never an error."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.layout import ClipRecord, Identity, Status
from extractors.backbone import DEFAULT_BACKBONES, find_backbone
from extractors.checkpoint_files import CheckpointError
from extractors.encoder import PRECISIONS, Backbone, Encoder, Tap
from extractors.inputs import AudioInput, FrameInput
from extractors.loading import Weights, choose_weights, load_encoder
from extractors.optical_flow import FLOW_METHODS, compute_flow
from extractors.views.audio import render_audio
from extractors.views.flow import render_flow
from extractors.views.geometry import stack_by_side
from extractors.views.plan import FramePlan, needed_indices, plan_frames
from extractors.views.video import render_video
from extractors.weights import WeightsError, WeightsFolder, default_folder
from pipeline.decode import open_flow, open_frames, read_sound
from pipeline.errors import MediaAbsent, MediaError, MediaFailed, UsageError, choose
from pipeline.types import MODALITIES, Clip, ViewSpec

VIEWS_REVISION = 1  # goes up whenever the same view gives other pixels or samples
FLOW_BOUND = 20.0  # pixels; flow beyond it saturates, as in the published data sets
LATER_FIELDS = {"rate_hz": None, "kind": "power"}  # of inputs: caches made before them stay valid
STAGES = ("decode", "views", "backbone", "write")

Features = dict[str, tuple[NDArray[np.float16] | None, ClipRecord]]


@dataclass(frozen=True)
class ExtractSettings:
    """What is extracted, and how."""

    modalities: tuple[str, ...] = MODALITIES
    backbones: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_BACKBONES))  # per modality
    weights: Mapping[str, Weights] = field(default_factory=dict)  # per modality; default: built-in ones
    tap: str = "pool"  # where in the networks features are taken
    precision: Mapping[str, str] = field(default_factory=dict)  # per modality, of the networks; default: float32
    views: ViewSpec = field(default_factory=ViewSpec)
    flow_method: str = "dis-medium"
    device: str = "cpu"
    compiled: bool = False  # networks go through torch.compile

    def __post_init__(self) -> None:
        for modality in self.modalities:
            choose("modality", modality, MODALITIES)
            choose("precision", self.precision_of(modality), PRECISIONS)
            backbone = self.backbone(modality)
            if backbone.modality != modality:
                raise UsageError(f"backbone {backbone.name!r} takes {backbone.modality}, not {modality}")
            with usage_errors():
                Tap(self.tap).check(backbone)
        choose("method of optical flow", self.flow_method, FLOW_METHODS)

    def backbone(self, modality: str) -> Backbone:
        """The backbone of a modality.

        Raises:
            UsageError: there is no such backbone.
        """
        with usage_errors():
            return find_backbone(self.backbones[modality])

    def weights_of(self, modality: str) -> Weights:
        """The weights of a modality's backbone.

        Raises:
            UsageError: none were chosen, and the backbone has none built in.
        """
        if modality in self.weights:
            return self.weights[modality]
        with usage_errors():
            return choose_weights(self.backbone(modality), "", WeightsFolder(default_folder()))

    def precision_of(self, modality: str) -> str:
        """``float32`` or ``bfloat16``."""
        return self.precision.get(modality, PRECISIONS[0])

    def identity(self, dataset: str, modality: str) -> Identity:
        """Identity of the cache group of a modality."""
        backbone = self.backbone(modality)
        settings: dict[str, Any] = {
            "input": plain_input(backbone.input),
            "augmentation": self.views.variant,
            "revisions": {"backbone": backbone.revision, "views": VIEWS_REVISION},
            "resize": "uint8 antialiased bilinear",
        }
        if modality == "flow":
            settings |= {"flow": self.flow_method, "flow_bound": FLOW_BOUND}
        if modality == "audio":
            settings |= {"resampler": "swresample"}
        if self.precision_of(modality) != PRECISIONS[0]:
            settings |= {"precision": self.precision_of(modality)}
        return Identity(
            dataset=dataset,
            modality=modality,
            backbone=backbone.name,
            weights=self.weights_of(modality).identity,
            tap=self.tap,
            views=tuple(view.name for view in self.views.views()),
            view_seed=self.views.seed,
            settings=settings,
        )


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what backbones and weights complain about into an error of usage: the sentence is for the user."""
    try:
        yield
    except (ValueError, WeightsError, CheckpointError) as error:
        raise UsageError(str(error)) from error


def plain_input(wanted: FrameInput | AudioInput) -> dict[str, Any]:
    """Fields of an input as plain values; those that came later are left out where they change nothing."""
    plain = dataclasses.asdict(wanted)
    for name, neutral in LATER_FIELDS.items():
        if plain.get(name) == neutral:
            plain.pop(name, None)
    return plain


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's seconds under one of ``STAGES``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


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
def _encoder(backbone: str, weights: Weights, device: str, tap: str, precision: str, compiled: bool) -> Encoder:
    with usage_errors():
        return load_encoder(backbone, weights, device, tap, precision, compiled)


def encoder_of(settings: ExtractSettings, modality: str) -> Encoder:
    """The loaded encoder of a modality; each process loads it once."""
    return _encoder(
        settings.backbones[modality],
        settings.weights_of(modality),
        settings.device,
        settings.tap,
        settings.precision_of(modality),
        settings.compiled,
    )


def extract_clip(clip: Clip, modalities: Sequence[str], settings: ExtractSettings, clock: Clock) -> Features:
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
                values = _encode(encoder_of(settings, modality), views)
            if np.isfinite(values).all():
                out[modality] = (values, ClipRecord(clip.clip_id, Status.PRESENT, "", "", mark, facts))
            else:
                detail = f"{modality} features of {settings.backbones[modality]} leave float16 or are not numbers"
                out[modality] = (None, ClipRecord(clip.clip_id, Status.FAILED, "not_finite", detail, mark, facts))
    return out


Inputs = dict[str, tuple[list[torch.Tensor], Mapping[str, Any]]]  # modality -> network inputs per view, facts
Source = Callable[[Clip, Sequence[str], ExtractSettings, Clock], Inputs]


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


def _plan(clip: Clip, total: int, rate_hz: float | None, modality: str, settings: ExtractSettings) -> list[FramePlan]:
    spec = _frame_spec(settings, modality)
    if spec.rate_hz is not None and rate_hz is None:
        raise MediaFailed(
            "no_rate",
            f"{clip.clip_id}: backbone {settings.backbones[modality]!r} samples {spec.rate_hz:g} frames per second and "
            "the clip's frame rate is not known; state rate_hz in the manifest",
        )
    views = [(view.kind, view.index) for view in settings.views.views()]
    return plan_frames(clip.clip_id, total, spec, views, settings.views.seed, modality, rate_hz)


def _frame_spec(settings: ExtractSettings, modality: str) -> FrameInput:
    spec = settings.backbone(modality).input
    if not isinstance(spec, FrameInput):
        raise UsageError(f"backbone {settings.backbones[modality]!r} does not take frames")
    return spec


def _frame_inputs(clip: Clip, makes: Sequence[str], settings: ExtractSettings, clock: Clock) -> Inputs:
    """RGB views and views of flow computed between neighbouring frames, from one decoding pass."""
    if "video" not in clip.media:
        raise MediaAbsent("no_video_path", "the manifest names no video for this clip")
    with clock.stage("decode"):
        reader = open_frames(
            clip.media["video"], clip.start_seconds, clip.end_seconds, clip.rate_hz, clip.frame_numbers
        )
    with reader:
        # Flow image i lies between frames i and i + 1, so a clip has one fewer of them.
        totals = {"video": reader.num_frames, "flow": reader.num_frames - 1}
        plans = {m: _plan(clip, totals[m], reader.rate_hz, m, settings) for m in makes}
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


def _stored_flow_inputs(clip: Clip, makes: Sequence[str], settings: ExtractSettings, clock: Clock) -> Inputs:
    """Views of precomputed flow."""
    with clock.stage("decode"):
        reader = open_flow(clip.media["flow"], clip.start_seconds, clip.end_seconds, clip.rate_hz, clip.flow_numbers)
    with reader:
        plans = _plan(clip, reader.num_frames, reader.rate_hz, "flow", settings)
        needed = needed_indices(plans)
        with clock.stage("decode"):
            flow = reader.read([int(i) for i in needed])
    with clock.stage("views"):
        views = render_flow(torch.from_numpy(flow), needed, plans, _frame_spec(settings, "flow"))
    return {"flow": (views, {**reader.facts, "flow": "stored"})}


def _sound_inputs(clip: Clip, makes: Sequence[str], settings: ExtractSettings, clock: Clock) -> Inputs:
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
    rows: dict[int, torch.Tensor] = {}
    for positions, batch in stack_by_side(views).values():
        rows.update(zip(positions, encoder(batch), strict=True))
    with np.errstate(over="ignore"):  # an overflow becomes inf, which the caller reports
        return torch.stack([rows[i] for i in range(len(views))]).numpy().astype(np.float16)


def fingerprint(clip: Clip) -> str:
    """Identify a clip's media: sizes, first and last bytes, and the stretch; not names, times or the whole content."""
    numbers = tuple(n for n in (clip.frame_numbers, clip.flow_numbers) if n is not None)
    state = hashlib.sha256(repr((clip.start_seconds, clip.end_seconds, clip.rate_hz, *numbers)).encode())
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


def media_is_there(clip: Clip) -> bool:
    """Whether every file and folder of a clip exists."""
    return all(path.exists() for path in clip.media.values())
