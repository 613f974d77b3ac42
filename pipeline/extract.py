"""Manifest x views x frozen backbones -> cache. Resumable: finished units stay, everything else is made."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cache.layout import ClipRecord, Status
from cache.leases import Leases, claim_all
from cache.places import place_of
from cache.store import FeatureGroup
from extractors.encoder import Tap
from pipeline.decoding import fingerprint, media_is_there
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings
from pipeline.types import Manifest
from pipeline.units import UnitTask, extract_fed, extract_unit, extract_unit_apart, lease_name, without_deadly_clip
from pipeline.workers import Advance, Progress, run_tasks

LIBRARIES = ("pipe-features", "torch", "numpy", "av", "opencv-contrib-python-headless", "zarr")  # for the record
RETRIED = ("crash", "deadline")  # failures that a machine may be to blame for
UNIT = 32  # clips per unit of work, at most: a crash loses at most this many per worker
UNIT_BYTES = 2**28  # of a unit in memory, at most, where one clip is not more: feature maps are large
POLL_SECONDS = 2.0  # between two looks whether other processes are done
Execute = Callable[
    [Callable[[UnitTask, Progress], dict[str, float]], Sequence[UnitTask], Advance],
    Iterable[tuple[int, dict[str, float]]],
]


@dataclass
class ExtractReport:
    """What `pipe extract` tells at its end."""

    new_clips: int
    elsewhere: int  # clips that other processes did meanwhile
    seconds: float
    stage_seconds: Mapping[str, float]  # summed over workers; wait: encoders had nothing decoded
    encoders: int  # processes that encode
    counts: Mapping[str, Mapping[str, int]]  # modality -> status -> clips
    quarantined: Sequence[tuple[str, ClipRecord]]  # (modality, record) of clips that failed
    absent: Sequence[tuple[str, ClipRecord]]  # (modality, record) of clips without such a track
    otherwise: Sequence[tuple[str, ClipRecord]]  # (modality, record) of clips that another decoder had to read
    repaired: Sequence[str]  # what had to be made anew, and why


def extract(
    manifest: Manifest,
    settings: ExtractSettings,
    cache: Path | str,
    workers: int,
    on_start: Callable[[int], None],
    advance: Advance,
    decoders: int = 0,
    retry: bool = False,
    execute: Execute | None = None,
) -> ExtractReport:
    """Extract everything that is missing and return what is there.

    Any number of processes, on any number of machines that share the cache, may do this at once: each takes units that
    no other is at, and the last ones wait until all is there.

    Args:
        manifest: the clips.
        settings: modalities, backbones, views.
        cache: root folder of all caches.
        workers: processes that decode and encode; even one is a process of its own.
        on_start: called once with the number of clips to do.
        advance: called with numbers of clips done.
        decoders: processes that only decode, for one encoder in this process, instead of workers; 0: none.
        retry: make units anew whose clips failed although their files may be sound: crashes and deadlines.
        execute: runs tasks elsewhere, as ``pipeline.cluster.Cluster.run``, instead of workers here.

    Raises:
        UsageError: a clip of an unfinished unit is not in the manifest any more.
        CacheError: the cache cannot be used; says what to do.
    """
    start = time.perf_counter()
    groups = open_groups(manifest, settings, cache)
    repaired = _repair(manifest, groups, retry)
    stage_seconds: Counter[str] = Counter()
    done_here = 0

    def count(amount: int) -> None:
        nonlocal done_here
        done_here += amount
        advance(amount)

    tasks = _tasks(manifest, settings, cache, groups)
    encoders = 1 if decoders else max(1, min(workers, len(tasks)))
    left = to_do = sum(len(task.clips) for task in tasks)
    on_start(left)
    while tasks:
        before = done_here
        # Decoders are native code: a file that brings one down must cost its clip, not the run.
        if execute is not None:
            done = execute(extract_unit_apart, tasks, count)
        elif decoders:
            done = extract_fed(tasks, decoders, count)
        else:
            done = run_tasks(extract_unit, tasks, workers, count, without_deadly_clip)
        for _, seconds in done:
            stage_seconds.update(seconds)
        tasks = _tasks(manifest, settings, cache, groups)
        still = sum(len(task.clips) for task in tasks)
        advance(left - still - (done_here - before))  # what other processes did meanwhile
        left = still
        if tasks and done_here == before:
            _wait(tasks)
    records = {m: group.records() for m, group in groups.items()}
    wanted = [c.clip_id for c in manifest.clips]

    def with_status(status: Status) -> list[tuple[str, ClipRecord]]:
        return [(m, records[m][c]) for c in wanted for m in groups if records[m][c].status is status]

    return ExtractReport(
        new_clips=done_here,
        elsewhere=to_do - done_here,
        seconds=time.perf_counter() - start,
        stage_seconds=dict(stage_seconds),
        encoders=encoders,
        counts={m: Counter(records[m][c].status.name.lower() for c in wanted) for m in groups},
        quarantined=with_status(Status.FAILED),
        absent=with_status(Status.ABSENT),
        otherwise=[(m, records[m][c]) for c in wanted for m in groups if "fallback" in records[m][c].facts],
        repaired=repaired,
    )


def open_groups(manifest: Manifest, settings: ExtractSettings, cache: Path | str) -> dict[str, FeatureGroup]:
    """Open or make the cache group of every modality."""
    versions = {name: version(name) for name in LIBRARIES}
    ids = [clip.clip_id for clip in manifest.clips]
    groups = {}
    for modality in settings.modalities:
        identity = settings.identity(manifest.dataset, modality)
        dim = Tap(settings.tap).dim(settings.backbone(modality))
        size = len(identity.views) * dim * np.dtype(identity.dtype).itemsize
        unit = max(1, min(UNIT, UNIT_BYTES // size))
        notes = {"weights": settings.weights_of(modality).note}
        if modality == "flow" and settings.flow_weights is not None:
            notes["flow"] = settings.flow_weights.note
        groups[modality] = FeatureGroup.open_or_create(cache, identity, ids, dim, unit, versions, notes)
    return groups


def _wait(tasks: Sequence[UnitTask]) -> None:
    """Wait until one of the units that other processes are at is finished, given back, or its holder found dead."""
    with ExitStack() as stack:
        places = {str(task.folder(m)): task.folder(m) for task in tasks for m in task.units}
        leases = {name: stack.enter_context(Leases(place)) for name, place in places.items()}
        while all(task.without_finished().units == task.units for task in tasks):
            for task in tasks:
                order = sorted(task.units)
                held = claim_all([(leases[str(task.folder(m))], lease_name(task.units[m])) for m in order])
                if held is not None:  # free now: given back again, for a worker
                    return
            time.sleep(POLL_SECONDS)


def _forget(group: FeatureGroup, unit: int) -> bool:
    """Make a unit todo again, unless another process is at it; returns whether it is todo now."""
    with Leases(group.place) as leases:
        if leases.claim(lease_name(unit)) is None:
            return False
        group.forget_unit(unit)
    return True


def _repair(manifest: Manifest, groups: Mapping[str, FeatureGroup], retry: bool) -> list[str]:
    """Make units todo again whose chunks are damaged, whose media changed since, or whose failures are retried."""
    notes = []
    clips = {clip.clip_id: clip for clip in manifest.clips}
    for modality, group in groups.items():
        for unit in group.damaged_units():
            if _forget(group, unit):
                notes.append(f"{modality}: unit {unit} was damaged on disk")
        for unit in range(group.num_units):
            commit = group.commit_of(unit)
            rows = [(clips.get(plain["clip_id"]), plain) for plain in (commit["clips"] if commit else ())]
            again = [plain["clip_id"] for _, plain in rows if retry and plain["code"] in RETRIED]
            if again:
                if _forget(group, unit):
                    notes.append(f"{modality}: {', '.join(again)} tried again")
                continue
            # Media that has gone missing does not make finished features worthless: such a unit stays as it is.
            if any(c is not None and plain["status"] == "present" and not media_is_there(c) for c, plain in rows):
                continue
            changed = [c.clip_id for c, plain in rows if c is not None and fingerprint(c) != plain["fingerprint"]]
            if changed and _forget(group, unit):
                notes.append(f"{modality}: the media of {', '.join(changed)} changed since it was extracted")
    return notes


def _tasks(
    manifest: Manifest, settings: ExtractSettings, cache: Path | str, groups: Mapping[str, FeatureGroup]
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
                f"now; put it back, or delete {groups[next(iter(units))].place} to start over"
            )
        tasks.append(UnitTask(place_of(cache), manifest.dataset, tuple(clips[c] for c in ids), units, settings))
    return tasks
