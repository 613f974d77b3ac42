"""What an extraction will cost: a few clips are really decoded and encoded, nothing is written."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from cache.layout import Status
from cache.places import place_of
from cache.store import FeatureGroup
from extractors.encoder import Tap
from pipeline.decoding import STAGES, Clock, decode_clip
from pipeline.encode import encode_clips
from pipeline.extraction import ExtractSettings
from pipeline.types import Clip, Manifest
from pipeline.workers import Advance, Death, Progress, run_tasks

TRIED = 8  # clips


@dataclass(frozen=True)
class TrialTask:
    """Clips that one process tries."""

    clips: tuple[Clip, ...]
    settings: ExtractSettings
    deadly: Mapping[str, Death] = field(default_factory=dict)  # clip id -> how processes that decoded it died


@dataclass(frozen=True)
class Trial:
    """What was measured, and what follows for all clips."""

    clips: int  # of the data set
    missing: int  # of them without features of some modality
    tried: int
    stage_seconds: Mapping[str, float]  # of one process per clip, mean
    failures: Sequence[tuple[str, str, str]]  # (clip, modality, reason) among the tried clips
    seconds: float  # for all missing clips
    disk_bytes: int  # of all missing clips' features
    free_bytes: int | None  # of the disk that they go to; None: not known
    memory_bytes: int  # of one process at its largest


def try_extraction(
    manifest: Manifest, settings: ExtractSettings, cache: Path | str, workers: int, decoders: int, advance: Advance
) -> Trial:
    """Decode and encode a few of the missing clips, spread evenly over the manifest, in a process of their own.

    Args:
        manifest: the clips.
        settings: modalities, backbones, views.
        cache: root folder of all caches.
        workers: processes that decode and encode.
        decoders: processes that only decode, for one encoder, instead of workers; 0: none.
        advance: called with numbers of clips done.
    """
    missing = _missing(manifest, settings, cache)
    places = np.unique(np.linspace(0, len(missing) - 1, min(TRIED, len(missing))).round().astype(int))
    chosen = tuple(missing[i] for i in places)
    tasks = [TrialTask(chosen, settings)] if chosen else []
    measured = next((found for _, found in run_tasks(try_clips, tasks, 1, advance, _without)), Measured({}, (), 0))
    per_clip = {stage: measured.seconds.get(stage, 0.0) for stage in STAGES}
    ahead = per_clip["decode"] + (per_clip["flow"] if settings.device == "cpu" else 0.0)
    rest = sum(per_clip.values()) - ahead
    each = max(ahead / decoders, rest) if decoders else (ahead + rest) / max(1, workers)
    return Trial(
        clips=len(manifest.clips),
        missing=len(missing),
        tried=len(chosen),
        stage_seconds=per_clip,
        failures=measured.failures,
        seconds=each * len(missing),
        disk_bytes=len(missing) * sum(_row_bytes(settings, m) for m in settings.modalities),
        free_bytes=_free_bytes(cache),
        memory_bytes=measured.memory_bytes,
    )


def _free_bytes(cache: Path | str) -> int | None:
    """Free bytes where a local cache is or will be; ``None`` at an address."""
    if isinstance(cache, str):
        return None
    return shutil.disk_usage(next(p for p in [cache, *cache.absolute().parents] if p.exists())).free


def _missing(manifest: Manifest, settings: ExtractSettings, cache: Path | str) -> list[Clip]:
    """Clips without features, and without a record why, of some modality."""
    there: list[set[str]] = []
    for modality in settings.modalities:
        place = place_of(cache).child(*settings.identity(manifest.dataset, modality).folder.parts)
        there.append(set(FeatureGroup(place).records()) if place.exists("clips.json") else set())
    return [clip for clip in manifest.clips if not all(clip.clip_id in ids for ids in there)]


def _row_bytes(settings: ExtractSettings, modality: str) -> int:
    """Bytes of one clip's features."""
    dim = Tap(settings.tap).dim(settings.backbone(modality))
    return len(settings.views.views()) * dim * np.dtype(settings.dtype).itemsize


@dataclass(frozen=True)
class Measured:
    """What one process found."""

    seconds: Mapping[str, float]  # per stage and clip, mean
    failures: Sequence[tuple[str, str, str]]
    memory_bytes: int


def try_clips(task: TrialTask, progress: Progress) -> Measured:
    """Decode and encode clips; the first one twice, because loading the networks comes with the first time."""
    torch.set_num_threads(1)
    clocks: list[Clock] = []
    failures = [(clip, "+".join(task.settings.modalities), f"{d.code}: {d}") for clip, d in task.deadly.items()]
    usable = [clip for clip in task.clips if clip.clip_id not in task.deadly]
    for turn, clip in enumerate([*usable[:1], *usable]):
        clock = Clock()
        with progress.guard(task.settings.deadline_seconds):
            decoded = decode_clip(clip, task.settings.modalities, task.settings)
        (features,) = encode_clips([decoded], task.settings, clock)
        if turn:
            clocks.append(clock)
            failures += [
                (clip.clip_id, modality, f"{record.code}: {record.detail}")
                for modality, (_, record) in features.items()
                if record.status is Status.FAILED
            ]
            progress(1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = {stage: fmean(clock.seconds[stage] for clock in clocks) for stage in STAGES} if clocks else {}
    return Measured(seconds, failures, peak)


def _without(task: TrialTask, death: Death) -> TrialTask:
    usable = [clip for clip in task.clips if clip.clip_id not in task.deadly]
    return replace(task, deadly={**task.deadly, usable[min(death.done, len(usable) - 1)].clip_id: death})
