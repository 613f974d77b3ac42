"""One clip's media -> the frames, flow and sound that its views need; a bad track becomes a record, never an error."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache.layout import ClipRecord, Status
from extractors.inputs import AudioInput, FrameInput
from extractors.loading import Weights
from extractors.optical_flow import FLOW_METHODS, compute_flow, flow_network
from extractors.views.geometry import resize, short_side_shape
from extractors.views.plan import FramePlan, needed_indices, plan_frames
from pipeline.decode import AUTO, FrameReader, Sound, open_flow, open_frames, read_sound
from pipeline.decode.container import Facts
from pipeline.errors import MediaAbsent, MediaError, MediaFailed, UsageError
from pipeline.extraction import CUDA_DECODER, FLOW_BOUND, ExtractSettings, usage_errors
from pipeline.types import Clip

STAGES = ("decode", "flow", "views", "backbone", "write")
LARGE_BYTES = 2**28  # frames of a clip that take more are read in parts, each made small before the next


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


@dataclass
class Images:
    """Pictures of a clip, those that its views need."""

    pixels: Tensor  # uint8: (n, height, width, 3) RGB frames, or (n, 2, height, width) optical flow
    numbers: NDArray[np.int64]  # (n,) their numbers in the clip, ascending
    hold_flow: bool
    plans: dict[str, list[FramePlan]]  # modality -> its views; of RGB frames also flow that is still to be computed
    facts: Facts


@dataclass
class Decoded:
    """What decoding a clip gave."""

    clip_id: str
    fingerprint: str
    images: list[Images] = field(default_factory=list)
    sound: Sound | None = None
    records: dict[str, ClipRecord] = field(default_factory=dict)  # modality -> why it has nothing
    seconds: dict[str, float] = field(default_factory=dict)  # per stage


def decode_clip(clip: Clip, modalities: Sequence[str], settings: ExtractSettings) -> Decoded:
    """Read what the views of some modalities of a clip need, in one pass over each file.

    Optical flow that only a CPU computes is computed here, so that it is done by the processes that decode.
    """
    clock, mark = Clock(), fingerprint(clip)
    decoded = Decoded(clip.clip_id, mark)
    for makes, source in _sources(clip, modalities):
        try:
            source(decoded, clip, makes, settings, clock)
        except MediaError as error:
            status = Status.ABSENT if isinstance(error, MediaAbsent) else Status.FAILED
            record = ClipRecord(clip.clip_id, status, error.code, error.detail, mark)
            decoded.records.update(dict.fromkeys(makes, record))
    decoded.seconds = clock.seconds
    return decoded


Source = Callable[[Decoded, Clip, Sequence[str], ExtractSettings, Clock], None]


def _sources(clip: Clip, modalities: Sequence[str]) -> list[tuple[tuple[str, ...], Source]]:
    """Which modalities are read together, and by what: frames serve RGB and computed flow in one pass."""
    stored_flow = "flow" in clip.media
    from_frames = tuple(m for m in modalities if m == "video" or (m == "flow" and not stored_flow))
    sources: list[tuple[tuple[str, ...], Source]] = []
    if from_frames:
        sources.append((from_frames, _frames))
    if "flow" in modalities and stored_flow:
        sources.append((("flow",), _stored_flow))
    if "audio" in modalities:
        sources.append((("audio",), _sound))
    return sources


def frame_spec(settings: ExtractSettings, modality: str) -> FrameInput:
    """What the backbone of ``video`` or ``flow`` wants.

    Raises:
        UsageError: it does not take frames.
    """
    spec = settings.backbone(modality).input
    if not isinstance(spec, FrameInput):
        raise UsageError(f"backbone {settings.backbones[modality]!r} does not take frames")
    return spec


def sound_spec(settings: ExtractSettings) -> AudioInput:
    """What the backbone of ``audio`` wants.

    Raises:
        UsageError: it does not take sound.
    """
    spec = settings.backbone("audio").input
    if not isinstance(spec, AudioInput):
        raise UsageError(f"backbone {settings.backbones['audio']!r} does not take sound")
    return spec


def _plan(clip: Clip, total: int, rate_hz: float | None, modality: str, settings: ExtractSettings) -> list[FramePlan]:
    spec = frame_spec(settings, modality)
    if spec.rate_hz is not None and rate_hz is None:
        raise MediaFailed(
            "no_rate",
            f"{clip.clip_id}: backbone {settings.backbones[modality]!r} samples {spec.rate_hz:g} frames per second and "
            "the clip's frame rate is not known; state rate_hz in the manifest",
        )
    views = [(view.kind, view.index) for view in settings.views.views()]
    variant = settings.views.variant
    return plan_frames(clip.clip_id, total, spec, views, settings.views.seed, modality, rate_hz, variant=variant)


def _frames(decoded: Decoded, clip: Clip, makes: Sequence[str], settings: ExtractSettings, clock: Clock) -> None:
    """RGB frames, and flow between neighbouring ones, from one decoding pass."""
    if "video" not in clip.media:
        raise MediaAbsent("no_video_path", "the manifest names no video for this clip")
    with clock.stage("decode"):
        reader = open_frames(
            clip.media["video"],
            clip.start_seconds,
            clip.end_seconds,
            clip.rate_hz,
            clip.frame_numbers,
            decoder=AUTO if settings.decoder == CUDA_DECODER else settings.decoder,  # what it cannot read a CPU may
            device=settings.decode_device,
        )
    with reader:
        # Flow image i lies between frames i and i + 1, so a clip has one fewer of them.
        totals = {"video": reader.num_frames, "flow": reader.num_frames - 1}
        plans = {m: _plan(clip, totals[m], reader.rate_hz, m, settings) for m in makes}
        flow_here = "flow" in plans and FLOW_METHODS[settings.flow_method].devices == ("cpu",)
        with clock.stage("decode"):
            size = len(_wanted(plans)) * int(reader.facts["height"]) * int(reader.facts["width"]) * 3
        if size > LARGE_BYTES:
            found = _read_in_parts(reader, plans, settings, size, clock)
        else:
            with clock.stage("decode"):
                wanted = _wanted(plans)
                frames = reader.read_tensor(wanted.tolist())
            found = _split(frames, wanted, plans, settings, flow_here, clock)
        facts = dict(reader.facts)
    for pixels, numbers, hold_flow, mine in found:
        also = {"flow": settings.flow_method} if "flow" in mine else {}
        decoded.images.append(Images(pixels, numbers, hold_flow, mine, {**facts, **also}))


Part = tuple[Tensor, NDArray[np.int64], bool, dict[str, list[FramePlan]]]  # as the fields of Images


def places(numbers: NDArray[np.int64], wanted: NDArray[np.int64]) -> Tensor:
    """Where the wanted numbers stand among ascending ones that hold them."""
    return torch.from_numpy(np.searchsorted(numbers, wanted))


def _wanted(plans: dict[str, list[FramePlan]]) -> NDArray[np.int64]:
    """Numbers of the frames that views read, and flow between which they read."""
    parts = [needed_indices(mine) + step for m, mine in plans.items() for step in ((0, 1) if m == "flow" else (0,))]
    return np.unique(np.concatenate(parts))


def _split(
    frames: Tensor,
    numbers: NDArray[np.int64],
    plans: dict[str, list[FramePlan]],
    settings: ExtractSettings,
    flow_here: bool,
    clock: Clock,
) -> list[Part]:
    """Frames as they are, or RGB frames and the flow that is computed between them here."""
    if not flow_here:
        return [(frames, numbers, False, plans)]
    pairs = needed_indices(plans["flow"])
    with clock.stage("flow"):
        flow = flow_between(frames[places(numbers, pairs)], frames[places(numbers, pairs + 1)], settings)
    parts: list[Part] = [(flow, pairs, True, {"flow": plans["flow"]})]
    if "video" in plans:
        own = needed_indices(plans["video"])
        parts.insert(0, (frames[places(numbers, own)], own, False, {"video": plans["video"]}))
    return parts


def _read_in_parts(
    reader: FrameReader, plans: dict[str, list[FramePlan]], settings: ExtractSettings, size: int, clock: Clock
) -> list[Part]:
    """As ``_split``, of frames that together would take too much memory: each part is made small before the next.

    Making it small is the first thing that views do, so their pixels are the same on a CPU.
    """
    wanted = _wanted(plans)
    per_part = max(2, len(wanted) * LARGE_BYTES // size)
    small: dict[str, list[Tensor]] = {m: [] for m in plans}
    bounds = [*range(0, len(wanted), per_part), len(wanted)]
    before: Tensor | None = None  # the last frame of the part before
    for start, stop in pairwise(bounds):
        with clock.stage("decode"):
            frames, numbers = reader.read_tensor(wanted[start:stop].tolist()), wanted[start:stop]
        if "video" in plans:
            own = places(numbers, np.intersect1d(numbers, needed_indices(plans["video"])))
            with clock.stage("views"):
                small["video"].append(_made_small(frames[own].permute(0, 3, 1, 2), settings, "video"))
        if "flow" in plans:
            if before is not None:
                frames, numbers = torch.cat([before, frames]), wanted[start - 1 : stop]
            pairs = np.intersect1d(needed_indices(plans["flow"]), numbers[:-1][np.diff(numbers) == 1])
            for i in places(numbers, pairs).tolist():  # one by one: the flow of large frames is large too
                with clock.stage("flow"):
                    flow = flow_between(frames[i : i + 1], frames[i + 1 : i + 2], settings)
                with clock.stage("views"):
                    small["flow"].append(_made_small(flow, settings, "flow"))
            before = frames[-1:]
    parts: list[Part] = []
    for modality, mine in plans.items():
        pixels = torch.cat(small[modality])
        shown = pixels.permute(0, 2, 3, 1) if modality == "video" else pixels
        parts.append((shown, needed_indices(mine), modality == "flow", {modality: mine}))
    return parts


def flow_between(first: Tensor, second: Tensor, settings: ExtractSettings) -> Tensor:
    """Optical flow from frames to the frames beside them, uint8 `(n, 2, height, width)`, on their device."""
    network = None
    if settings.flow_weights is not None:
        network = _flow_network(settings.flow_method, settings.flow_weights, str(first.device))
    return compute_flow(first, second, settings.flow_method, FLOW_BOUND, network=network)


@lru_cache(maxsize=2)
def _flow_network(method: str, weights: Weights, device: str) -> nn.Module:
    with usage_errors():
        return flow_network(method, weights, device)


def _made_small(images: Tensor, settings: ExtractSettings, modality: str) -> Tensor:
    """Images `(n, channels, height, width)` with the short side that the backbone's views begin with."""
    shape = short_side_shape(images.shape[2], images.shape[3], frame_spec(settings, modality).resize_short)
    return resize(images, *shape, antialias=settings.views.variant == "strict")


def _stored_flow(decoded: Decoded, clip: Clip, makes: Sequence[str], settings: ExtractSettings, clock: Clock) -> None:
    """Precomputed flow."""
    with clock.stage("decode"):
        stretch = (clip.start_seconds, clip.end_seconds, clip.rate_hz, clip.flow_numbers)
        reader = open_flow(clip.media["flow"], *stretch, decoder=settings.decoder)
    with reader:
        plans = _plan(clip, reader.num_frames, reader.rate_hz, "flow", settings)
        needed = needed_indices(plans)
        with clock.stage("decode"):
            pixels = torch.from_numpy(reader.read(needed.tolist()))
    decoded.images.append(Images(pixels, needed, True, {"flow": plans}, {**reader.facts, "flow": "stored"}))


def _sound(decoded: Decoded, clip: Clip, makes: Sequence[str], settings: ExtractSettings, clock: Clock) -> None:
    """The sound file, or the video file's sound track."""
    path = clip.media.get("audio") or clip.media.get("video")
    if path is None or ("audio" not in clip.media and path.is_dir()):
        raise MediaAbsent("no_audio_path", "the manifest names no sound for this clip")
    with clock.stage("decode"):
        rate_hz = sound_spec(settings).rate_hz
        decoded.sound = read_sound(path, rate_hz, clip.start_seconds, clip.end_seconds, resampler=settings.resampler)


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
