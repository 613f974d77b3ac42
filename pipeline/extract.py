"""Manifest x views x frozen backbones -> cache. Resumable: finished units stay, everything else is made."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from cache.layout import ClipRecord, Status
from cache.store import FeatureGroup
from extractors.encoder import Tap
from pipeline.encode import Clock, ExtractSettings, Features, extract_clip, fingerprint, media_is_there
from pipeline.errors import PipeError, UsageError
from pipeline.locks import only_writer
from pipeline.types import Clip, Manifest
from pipeline.workers import Advance, run_tasks

MOST_DEADLY = 3  # clips of a unit that may bring processes down before the machine is suspected
UNIT = 32  # clips per unit of work, at most: a crash loses at most this many per worker
UNIT_BYTES = 2**28  # of a unit in memory, at most, where one clip is not more: feature maps are large


@dataclass(frozen=True)
class UnitTask:
    """The units of all modalities that hold the same clips: one decoding pass serves them all."""

    cache: Path
    dataset: str
    clips: tuple[Clip, ...]
    units: Mapping[str, int]  # modality -> unit
    settings: ExtractSettings
    deadly: Mapping[str, str] = field(default_factory=dict)  # clip id -> what happened to processes that decoded it


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
        workers: processes; even one is a process of its own.
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
        # Decoders are native code: a file that brings one down must cost its clip, not the run.
        for _, seconds in run_tasks(extract_unit, tasks, workers, advance, _without_deadly_clip):
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
    groups = {}
    for modality in settings.modalities:
        identity = settings.identity(manifest.dataset, modality)
        dim = Tap(settings.tap).dim(settings.backbone(modality))
        unit = max(1, min(UNIT, UNIT_BYTES // (len(identity.views) * dim * 2)))
        notes = {"weights": settings.weights_of(modality).note}
        groups[modality] = FeatureGroup.open_or_create(cache, identity, ids, dim, unit, versions, notes)
    return groups


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
            rows = [(clips.get(plain["clip_id"]), plain) for plain in (commit["clips"] if commit else ())]
            # Media that has gone missing does not make finished features worthless: such a unit stays as it is.
            if any(c is not None and plain["status"] == "present" and not media_is_there(c) for c, plain in rows):
                continue
            changed = [c.clip_id for c, plain in rows if c is not None and fingerprint(c) != plain["fingerprint"]]
            if changed:
                group.forget_unit(unit)
                notes.append(f"{modality}: the media of {', '.join(changed)} changed since it was extracted")
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


def _without_deadly_clip(task: UnitTask, done: int, exit_code: int | None) -> UnitTask:
    """The task without the clip on which two processes died.

    Raises:
        PipeError: they died while writing, or on so many clips that the machine is to blame and not the files.
    """
    if done >= len(task.clips) or len(task.deadly) >= MOST_DEADLY:
        where = "writing features" if done >= len(task.clips) else f"more than {MOST_DEADLY} clips of one unit"
        raise PipeError(
            f"processes died (exit code {exit_code}) on {where}; is there enough memory and disk? Finished units are "
            "kept; run the same command again to go on, with fewer --workers if memory is short"
        )
    detail = f"two processes that decoded it died, the last one with exit code {exit_code} (negative: a signal)"
    return replace(task, deadly={**task.deadly, task.clips[done].clip_id: detail})


def _dead(clip: Clip, task: UnitTask) -> Features:
    """Failed records for a clip that is not touched again."""
    record = ClipRecord(clip.clip_id, Status.FAILED, "crash", task.deadly[clip.clip_id], fingerprint(clip))
    return dict.fromkeys(task.units, (None, record))


def extract_unit(task: UnitTask, advance: Advance) -> dict[str, float]:
    """Extract and write the units of one task; returns seconds per stage."""
    torch.set_num_threads(1)
    clock = Clock()
    rows: list[Features] = []
    for clip in task.clips:
        if clip.clip_id in task.deadly:
            rows.append(_dead(clip, task))
        else:
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
