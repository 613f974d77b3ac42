"""What a worker does for a prediction: cut into windows, decode, look for degraded tracks, encode the clean view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from cache.layout import Status
from extractors.backbone import DEFAULT_BACKBONES
from extractors.views.plan import needed_indices
from pipeline.decoding import Clock, Decoded, decode_clip, places, sound_spec
from pipeline.degraded import DegradedLevels, Finding, judge_pictures, judge_sound, picture_levels, sound_dbfs
from pipeline.encode import encode_clips
from pipeline.errors import MediaError, PipeError
from pipeline.extraction import ExtractSettings
from pipeline.overlap import Shared, ahead
from pipeline.types import Clip
from pipeline.windows import ABSURD, Window, Windowing, windows_of
from pipeline.workers import Death, Progress

TrackStatus = Literal["present", "absent", "failed", "degraded"]


@dataclass(frozen=True)
class Track:
    """What became of one modality of a piece."""

    status: TrackStatus
    used: bool  # whether the model sees it
    code: str = ""  # why not, in a word
    detail: str = ""  # and in a sentence
    measured: Mapping[str, float] = field(default_factory=dict)  # levels of pictures or sound, see ``degraded``


@dataclass(frozen=True)
class ReadTask:
    """Some clips that are read together."""

    clips: tuple[Clip, ...]
    places: tuple[tuple[int, int], ...]  # of each: number of its file, and of its window or -1 for a whole file
    settings: ExtractSettings  # of the model's features, with the clean view alone
    levels: DegradedLevels
    windowing: Windowing
    keep_degraded: bool
    encode: bool  # here; else what was decoded comes back for another process
    deadly: Mapping[int, Death] = field(default_factory=dict)  # position -> how processes that read it died


@dataclass
class Reading:
    """What reading a clip gave: windows to read instead, or its tracks."""

    tracks: dict[str, Track] = field(default_factory=dict)  # per modality of the model
    features: dict[str, NDArray[Any]] = field(default_factory=dict)  # (dim,) of the tracks that are used
    end_seconds: float | None = None  # where the clip ends; None: it was not looked up
    windows: tuple[Window, ...] = ()
    shared: Shared | None = None  # what is still to be encoded


def read_clips_of(task: ReadTask, progress: Progress) -> list[Reading]:
    """Read the clips of a task; the next one is decoded while one is encoded, unless a worker died on the task."""
    torch.set_num_threads(1)

    def decoded(position: int) -> tuple[Reading, Decoded | None]:
        if position in task.deadly:
            return failed(task.settings.modalities, task.deadly[position].code, str(task.deadly[position])), None
        with progress.guard(task.settings.deadline_seconds):
            return _decode(task.clips[position], task.places[position][1] < 0, task)

    found: list[Reading] = []
    depth = task.settings.ahead if progress.attempt == 0 else 0
    with closing(ahead(decoded, range(len(task.clips)), depth)) as readings:
        for reading, clip in readings:
            if clip is not None and task.encode:
                encode_readings([reading], [clip], task.settings)
            elif clip is not None:
                reading.shared = Shared.put(clip)
            found.append(reading)
            progress(1)
    return found


def without_deadly(task: ReadTask, death: Death) -> ReadTask:
    """The task without the clip on which two processes died or did not end.

    Raises:
        PipeError: they died when every clip had been read, or on one that they had not touched.
    """
    if death.done >= len(task.clips) or death.done in task.deadly:
        when = "before they read anything" if death.done in task.deadly else "after reading their files"
        raise PipeError(
            f"processes died (exit code {death.exit_code}) {when}; is there enough memory? Run again with fewer "
            "workers. A script of your own must keep what it does under `if __name__ == '__main__':`"
        )
    return replace(task, deadly={**task.deadly, death.done: death})


def failed(modalities: Sequence[str], code: str, detail: str) -> Reading:
    """A clip of which nothing could be read."""
    return Reading({modality: Track("failed", False, code, detail) for modality in modalities})


def _decode(clip: Clip, may_be_cut: bool, task: ReadTask) -> tuple[Reading, Decoded | None]:
    """Windows of a long file; else what the clean view needs, without what is degraded."""
    settings = task.settings
    end = clip.end_seconds
    if may_be_cut:
        try:
            windows, end = windows_of(clip, _sees_pictures(settings), task.windowing)
        except MediaError as error:
            if error.code == ABSURD:
                return failed(settings.modalities, error.code, error.detail), None
            windows = ()  # decoding it gives every track its own reason
        if windows:
            return Reading(windows=windows, end_seconds=end), None
    modalities, settings = _with_pictures(clip, settings)
    decoded = decode_clip(clip, modalities, settings)
    tracks = _tracks(decoded, clip, task)
    unused = [m for m in modalities if m not in tracks or not tracks[m].used]
    return Reading(tracks, end_seconds=end), _without(decoded, unused)


def _sees_pictures(settings: ExtractSettings) -> bool:
    return any(modality in settings.modalities for modality in ("video", "flow"))


def _with_pictures(clip: Clip, settings: ExtractSettings) -> tuple[tuple[str, ...], ExtractSettings]:
    """Frames are asked for wherever flow is computed from some: they tell whether it shows anything."""
    modalities = settings.modalities
    if "video" in modalities or "flow" not in modalities or "flow" in clip.media:
        return modalities, settings
    return ("video", *modalities), replace(settings, backbones={**DEFAULT_BACKBONES, **settings.backbones})


def _tracks(decoded: Decoded, clip: Clip, task: ReadTask) -> dict[str, Track]:
    """What is there of every modality of the model, and what of it is degraded."""
    pictures = _pictures_finding(decoded, task.levels)
    tracks = {}
    for modality in task.settings.modalities:
        record = decoded.records.get(modality)
        if record is not None:
            status: TrackStatus = "absent" if record.status is Status.ABSENT else "failed"
            tracks[modality] = Track(status, False, record.code, record.detail)
            continue
        finding = Finding("", "")
        if modality == "audio" and decoded.sound is not None:
            heard = torch.from_numpy(decoded.sound.samples[: sound_spec(task.settings).num_samples])
            finding = judge_sound(sound_dbfs(heard), task.levels)
        elif modality == "video" or "flow" not in clip.media:
            finding = pictures
        detail = finding.detail
        if finding.code and modality == "flow":
            detail = f"flow is computed from the pictures: {detail}"
        state: TrackStatus = "degraded" if finding.code else "present"
        used = not finding.code or task.keep_degraded
        tracks[modality] = Track(state, used, finding.code, detail, finding.measured)
    return tracks


def _pictures_finding(decoded: Decoded, levels: DegradedLevels) -> Finding:
    """What the frames that the clean view of video reads look like."""
    for images in decoded.images:
        if "video" in images.plans and not images.hold_flow:
            frames = images.pixels[places(images.numbers, needed_indices(images.plans["video"]))]
            return judge_pictures(picture_levels(frames), levels)
    return Finding("", "")


def _without(decoded: Decoded, modalities: Iterable[str]) -> Decoded:
    """The clip without some modalities, so that nothing is computed for them."""
    gone = set(modalities)
    images = []
    for found in decoded.images:
        plans = {m: plan for m, plan in found.plans.items() if m not in gone}
        if plans:
            images.append(replace(found, plans=plans))
    records = {m: record for m, record in decoded.records.items() if m not in gone}
    return replace(decoded, images=images, sound=None if "audio" in gone else decoded.sound, records=records)


def encode_readings(readings: Sequence[Reading], clips: Sequence[Decoded], settings: ExtractSettings) -> None:
    """Put the features of decoded clips into their readings."""
    for reading, features in zip(readings, encode_clips(clips, settings, Clock()), strict=True):
        for modality, (values, record) in features.items():
            if values is not None:
                reading.features[modality] = values[0]
            else:
                track = reading.tracks[modality]
                reading.tracks[modality] = Track("failed", False, record.code, record.detail, track.measured)
