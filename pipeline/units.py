"""A unit of work of extraction: some clips, all their modalities; done whole by one worker, or fed by many decoders."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from cache.layout import ClipRecord, Status
from cache.leases import Lease, LeaseLost, Leases, claim_all
from cache.places import Place
from cache.store import FeatureGroup, UnitTaken
from pipeline.decoding import Clock, Decoded, decode_clip, fingerprint
from pipeline.encode import Features, encode_clips
from pipeline.errors import PipeError
from pipeline.extraction import ExtractSettings, pinned_device
from pipeline.overlap import Shared, ahead
from pipeline.types import Clip
from pipeline.workers import Advance, Death, Pool, Progress

MOST_DEADLY = 3  # clips of a unit that may bring processes down before the machine is suspected
BATCH = 16  # clips that go through a network together where decoders feed one encoder
CLAIMED = 8  # units that are claimed at a time where decoders feed one encoder
WAITING = 32  # decoded clips that may wait for the encoder, at most
LOOK_SECONDS = 0.2  # between two looks whether the encoder is still there


@dataclass(frozen=True)
class UnitTask:
    """The units of all modalities that hold the same clips: one decoding pass serves them all."""

    cache: Place
    dataset: str
    clips: tuple[Clip, ...]
    units: Mapping[str, int]  # modality -> unit
    settings: ExtractSettings
    deadly: Mapping[str, Death] = field(default_factory=dict)  # clip id -> how processes that decoded it died

    def folder(self, modality: str) -> Place:
        """Where the group of a modality lies."""
        return self.cache.child(*self.settings.identity(self.dataset, modality).folder.parts)

    def without_finished(self) -> UnitTask:
        """The task without units that are committed by now."""
        units = {m: u for m, u in self.units.items() if FeatureGroup(self.folder(m)).commit_of(u) is None}
        return replace(self, units=units)


def lease_name(unit: int) -> str:
    """What the lease of a unit is called in its group."""
    return f"unit-{unit:06d}"


@contextmanager
def claimed(task: UnitTask) -> Iterator[dict[str, Lease] | None]:
    """Hold the leases of a task's units, by modality; ``None`` where another process is at one of them."""
    with ExitStack() as stack:
        order = sorted(task.units)  # the same for all processes, so that none waits for another
        leases = [stack.enter_context(Leases(task.folder(modality))) for modality in order]
        held = claim_all([(its, lease_name(task.units[m])) for its, m in zip(leases, order, strict=True)])
        yield None if held is None else dict(zip(order, held, strict=True))


def extract_unit(task: UnitTask, progress: Progress) -> dict[str, float]:
    """Extract and write the units of one task, unless another process is at them or has written them.

    The next clip is decoded while one is encoded, unless a worker died on the task: then it has to be clear at which.

    Returns:
        Seconds per stage, and of waiting for decoding as ``wait``; nothing where another process has the units.
    """
    with claimed(task) as leases:
        task = task.without_finished()
        if leases is None or not task.units:
            return {}
        return _extract(task, leases, progress)


def _extract(task: UnitTask, leases: Mapping[str, Lease], progress: Progress) -> dict[str, float]:
    torch.set_num_threads(1)
    clock = Clock()

    def decoded(clip: Clip) -> Decoded:
        if clip.clip_id in task.deadly:
            return _dead(clip, tuple(task.units), task.deadly[clip.clip_id])
        with progress.guard(task.settings.deadline_seconds):
            return decode_clip(clip, tuple(task.units), task.settings)

    rows: list[Features] = []
    waited, asked = 0.0, time.perf_counter()
    with closing(ahead(decoded, task.clips, task.settings.ahead if progress.attempt == 0 else 0)) as clips:
        for clip in clips:
            waited += time.perf_counter() - asked
            rows += encode_clips([clip], task.settings, clock)
            progress(1)
            asked = time.perf_counter()
    with clock.stage("write"):
        write_rows(task, rows, leases)
    return {**clock.seconds, "wait": waited}


_apart = threading.local()  # threads of a dask worker work at the same time, each with a process of its own


def extract_unit_apart(task: UnitTask, progress: Progress) -> dict[str, float]:
    """As ``extract_unit``, in another process that stays for more: what brings it down costs its clip.

    The device that was asked for is found here, by the name of the dask worker that this is.
    """
    device = pinned_device(task.settings.device, _worker_name())
    if not hasattr(_apart, "pool"):
        _apart.pool = Pool(extract_unit, 1)
    pool: Pool[UnitTask, dict[str, float]] = _apart.pool
    settings = replace(task.settings, device=device)
    ((_, seconds),) = pool.run([replace(task, settings=settings)], progress, without_deadly_clip)
    return seconds


def _worker_name() -> str:
    """Name of the dask worker that this process is; empty outside of one."""
    try:
        from distributed import get_worker

        return str(get_worker().name)
    except (ImportError, ValueError):
        return ""


def without_deadly_clip(task: UnitTask, death: Death) -> UnitTask:
    """The task without the clip on which two processes died or did not end.

    Raises:
        PipeError: they died while writing, or on so many clips that the machine is to blame and not the files.
    """
    if death.done >= len(task.clips) or len(task.deadly) >= MOST_DEADLY:
        where = "writing features" if death.done >= len(task.clips) else f"more than {MOST_DEADLY} clips of one unit"
        raise PipeError(
            f"processes died (exit code {death.exit_code}) on {where}; is there enough memory and disk? Finished units "
            "are kept; run the same command again to go on, with fewer --workers if memory is short"
        )
    return replace(task, deadly={**task.deadly, task.clips[death.done].clip_id: death})


def _dead(clip: Clip, modalities: Sequence[str], death: Death) -> Decoded:
    """Failed records for a clip that is not touched again."""
    mark = fingerprint(clip)
    record = ClipRecord(clip.clip_id, Status.FAILED, death.code, str(death), mark)
    return Decoded(clip.clip_id, mark, records=dict.fromkeys(modalities, record))


def write_rows(task: UnitTask, rows: Sequence[Features], leases: Mapping[str, Lease]) -> None:
    """Write the units of a task; a clip without features is a row of NaN.

    What another process took over, because this one stalled, and has written, stays as it is.
    """
    for modality, unit in task.units.items():
        group = FeatureGroup(task.folder(modality))
        values = np.full((len(rows), len(group.identity.views), group.dim), np.nan, dtype=group.format.dtype)
        for i, row in enumerate(rows):
            features, _ = row[modality]
            if features is not None:
                values[i] = features
        with suppress(LeaseLost, UnitTaken):
            group.write_unit(unit, values, [row[modality][1] for row in rows], leases[modality])


@dataclass(frozen=True)
class ClipTask:
    """One clip for a process that only decodes."""

    clip: Clip
    modalities: tuple[str, ...]
    settings: ExtractSettings
    unit: int  # position of its unit task
    row: int  # its position in the unit
    death: Death | None = None  # how processes that decoded it died


def decode_task(task: ClipTask, progress: Progress) -> Shared:
    """Decode a clip for another process."""
    if task.death is not None:
        return Shared.put(_dead(task.clip, task.modalities, task.death))
    with progress.guard(task.settings.deadline_seconds):
        decoded = decode_clip(task.clip, task.modalities, task.settings)
    return Shared.put(decoded)


def _given_up(task: ClipTask, death: Death) -> ClipTask:
    """A clip that is not touched again.

    Raises:
        PipeError: its processes died although they did not touch it.
    """
    if task.death is not None:
        raise PipeError(
            f"processes died (exit code {death.exit_code}) without decoding anything; is there enough memory, also of "
            "shared memory (/dev/shm)? Finished units are kept; run the same command again, with fewer --decoders"
        )
    return replace(task, death=death)


def extract_fed(tasks: Sequence[UnitTask], decoders: int, advance: Advance) -> Iterator[tuple[int, dict[str, float]]]:
    """Extract units with processes that decode and one encoder, here, that takes clips of several files at once.

    Decoding, encoding and writing run at the same time. At most ``WAITING`` decoded clips wait, and one per decoder.
    A few units are claimed at a time, so that other processes find something to do; units that others are at are
    passed over.

    Args:
        tasks: the units.
        decoders: processes that decode.
        advance: called with numbers of clips done.

    Yields:
        Position of a finished unit and seconds per stage since the unit before, as ``extract_unit``.
    """
    with closing(Pool(decode_task, decoders)) as pool:
        for start in range(0, len(tasks), CLAIMED):
            with ExitStack() as stack:
                window, leases = [], []
                for task in tasks[start : start + CLAIMED]:
                    held = stack.enter_context(claimed(task))
                    task = task.without_finished()
                    if held is not None and task.units:
                        window.append(task)
                        leases.append(held)
                for position, seconds in _feed(window, leases, pool, advance):
                    yield start + position, seconds


def _feed(
    tasks: Sequence[UnitTask], leases: Sequence[Mapping[str, Lease]], pool: Pool[ClipTask, Shared], advance: Advance
) -> Iterator[tuple[int, dict[str, float]]]:
    """Extract units whose leases are held."""
    clips = [
        ClipTask(clip, tuple(task.units), task.settings, unit, row)
        for unit, task in enumerate(tasks)
        for row, clip in enumerate(task.clips)
    ]
    encoder = _Encoder(tasks, leases, advance)
    encoder.start()
    try:
        for position, shared in pool.run(clips, lambda _: None, _given_up):
            encoder.put(clips[position], shared)
            yield from encoder.finished()
        encoder.put(None, None)
        encoder.join()
        yield from encoder.finished()
    finally:
        encoder.stop()


class _Encoder(threading.Thread):
    """Takes decoded clips from a queue, encodes several at once and writes whole units, in a thread of this process."""

    def __init__(self, tasks: Sequence[UnitTask], leases: Sequence[Mapping[str, Lease]], advance: Advance) -> None:
        super().__init__(name="encoder", daemon=True)
        self.tasks, self.leases, self.advance = tasks, leases, advance
        self.rows: dict[int, dict[int, Features]] = {}
        self.next: tuple[ClipTask, Shared] | None = None  # taken from the queue and not of the kind of the batch
        self.waiting: queue.Queue[tuple[ClipTask, Shared] | None] = queue.Queue(maxsize=WAITING)
        self.done: queue.SimpleQueue[tuple[int, dict[str, float]]] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self.stopped = threading.Event()

    def put(self, task: ClipTask | None, shared: Shared | None) -> None:
        """Hand a clip over, or ``None`` after the last; waits while too many wait, and raises what ended the thread."""
        item = None if task is None or shared is None else (task, shared)
        while True:
            self._raise()
            try:
                self.waiting.put(item, timeout=LOOK_SECONDS)
                return
            except queue.Full:
                continue

    def finished(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Units that were written since the last call."""
        self._raise()
        while not self.done.empty():
            yield self.done.get()

    def stop(self) -> None:
        """End the thread after the clips that it holds, and free what waits."""
        self.stopped.set()
        if self.is_alive():
            self.join()
        while not self.waiting.empty():
            item = self.waiting.get()
            if item is not None:
                item[1].release()

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        """Encode until the end is handed over."""
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
                self._run(writer)
        except BaseException as error:
            self.error = error

    def _run(self, writer: ThreadPoolExecutor) -> None:
        written: Future[None] | None = None
        clock, waited, ended = Clock(), 0.0, False
        while not ended and not self.stopped.is_set():
            start = time.perf_counter()
            batch, ended = self._batch()
            waited += time.perf_counter() - start
            if not batch:
                continue
            self._encode(batch, clock)
            for unit in [u for u, rows in self.rows.items() if len(rows) == len(self.tasks[u].clips)]:
                if written is not None:
                    written.result()  # one unit at a time waits to be written
                rows = self.rows.pop(unit)
                seconds = {**clock.seconds, "wait": waited}
                written = writer.submit(self._write, unit, [rows[row] for row in range(len(rows))], seconds)
                clock, waited = Clock(), 0.0
        if written is not None:
            written.result()

    def _batch(self) -> tuple[list[tuple[ClipTask, Shared]], bool]:
        """Clips that wait, at least one and at most ``BATCH``, of the same modalities; and whether that was the end."""
        batch: list[tuple[ClipTask, Shared]] = [] if self.next is None else [self.next]
        self.next = None
        while len(batch) < BATCH:
            try:
                item = self.waiting.get_nowait() if batch else self.waiting.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if batch or self.stopped.is_set():
                    break
                continue
            if item is None:
                return batch, True
            if batch and item[0].modalities != batch[0][0].modalities:
                self.next = item
                break
            batch.append(item)
        return batch, False

    def _encode(self, batch: Sequence[tuple[ClipTask, Shared]], clock: Clock) -> None:
        """Encode clips together and keep their rows."""
        decoded = [shared.take() for _, shared in batch]
        try:
            features = encode_clips(decoded, batch[0][0].settings, clock)
        finally:
            del decoded
            for _, shared in batch:
                shared.release()
        for (task, _), row in zip(batch, features, strict=True):
            self.rows.setdefault(task.unit, {})[task.row] = row
        self.advance(len(batch))

    def _write(self, unit: int, rows: Sequence[Features], seconds: dict[str, float]) -> None:
        start = time.perf_counter()
        write_rows(self.tasks[unit], rows, self.leases[unit])
        self.done.put((unit, {**seconds, "write": time.perf_counter() - start}))
