"""A model and media files -> predictions, in the order of the files, as they are ready; nothing is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pipeline.answering import Summary, answered, answers, why_nothing
from pipeline.bundle import Bundle
from pipeline.decode.container import Closing
from pipeline.degraded import DegradedLevels
from pipeline.errors import PipeError, UsageError, choose
from pipeline.extraction import ExtractSettings, resolve_device
from pipeline.feeding import Feed
from pipeline.inputs import MediaItem
from pipeline.predictions import ModalityLine, PredictionLine
from pipeline.process import default_workers
from pipeline.reading import Reading, ReadTask, encode_readings, read_clips_of, without_deadly
from pipeline.trust import check_threshold
from pipeline.types import CleanView, Clip
from pipeline.windows import AUTO, Window, parse_windowing

BATCH = 4  # clips of a task, at most: the next is decoded while one is encoded
AHEAD = 16  # clips per process that may be handed out and not yet told
MOST_CRASHES = 8  # in a row, before the machine is suspected and not the files


@dataclass(frozen=True)
class PredictOptions:
    """How predictions are made."""

    workers: int = 0  # processes; 0: one per processor
    device: str = "auto"
    window: str = AUTO  # see ``parse_windowing``
    stride_seconds: float | None = None
    levels: DegradedLevels = field(default_factory=DegradedLevels)
    keep_degraded: bool = False  # use degraded tracks all the same
    filler: str | None = None  # None: the model's own
    threshold: float | None = None  # least confidence that a level of trust counts; None: the model's
    deadline_seconds: float = 120.0  # for decoding one clip or window
    decoder: str | None = None  # of video files; None: the model's

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"workers is {self.workers}; it must be 0 (one per processor) or more")
        if self.threshold is not None:
            check_threshold(self.threshold)
        if not self.deadline_seconds > 0:
            raise UsageError(f"deadline is {self.deadline_seconds} s; it must be more than 0")


class Predictor(Closing):
    """A model that is ready for any number of files; its processes stay until it is closed.

    Args:
        bundle: the model, loaded on the device of the options.
        options: how predictions are made.

    Raises:
        UsageError: options that are not allowed, or weights of a backbone that are not here.
    """

    def __init__(self, bundle: Bundle, options: PredictOptions | None = None) -> None:
        self.options = options = options or PredictOptions()
        self.bundle, self.head = bundle, bundle.head
        device = resolve_device(options.device)
        settings = bundle.feature_settings(device)
        dtypes = {facts.dtype for facts in bundle.spec.modalities}
        views = CleanView(seed=settings.views.seed, variant=settings.views.variant)
        self.settings: ExtractSettings = replace(
            settings,
            views=views,
            dtype=dtypes.pop() if len(dtypes) == 1 else "float32",  # the head rounds what is stored as less
            deadline_seconds=options.deadline_seconds,
            decoder=options.decoder or settings.decoder,
        )
        self.filler = self.head.filler
        if options.filler is not None:
            self.filler = choose("filler of this model", options.filler, self.head.fillers)
        self.windowing = parse_windowing(options.window, options.stride_seconds, bundle.spec.features.clip_seconds)
        self.threshold = self.head.threshold if options.threshold is None else options.threshold
        self.said: dict[str, Any] = {
            **options.levels.to_json(),
            "keep_degraded": options.keep_degraded,
            "threshold": self.threshold,
        }
        self.workers = options.workers or default_workers()
        # One process has the networks on a GPU and gets decoded clips; on a CPU whoever decodes a clip encodes it too.
        self.workers_encode = self.settings.device == "cpu" or self.settings.decode_device != "cpu"
        self._pool: Feed[ReadTask, list[Reading]] | None = None

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def predict(self, items: Iterator[MediaItem | None], live: bool = False) -> Generator[PredictionLine]:
        """Predict files.

        Args:
            items: the files; ``None`` where there is none at the moment.
            live: they come one after the other, so none waits for a batch.

        Yields:
            A line per file, or per window of it and then one for the file, in the order of the files.

        Raises:
            PipeError: processes die whatever the file.
        """
        if self._pool is None:
            self._pool = Feed(read_clips_of, self.workers)
        try:
            yield from _Run(self, self._pool, items, live).lines()
        except BaseException:  # what is under way is nobody's any more
            self.close()
            raise

    def encode_here(self, readings: Sequence[Reading]) -> None:
        """Encode clips that workers have decoded, all at once."""
        held = [reading for reading in readings if reading.shared is not None]
        try:
            clips = [reading.shared.take() for reading in held if reading.shared is not None]
            encode_readings(held, clips, self.settings)
            del clips
        finally:
            for reading in held:
                if reading.shared is not None:
                    reading.shared.release()
                reading.shared = None

    def line(self, item: MediaItem, reading: Reading, number: int | None, window: Window | None) -> PredictionLine:
        """The prediction for what was read of a file or a window."""
        start, end = window or (item.clip.start_seconds or 0.0, reading.end_seconds)
        line = PredictionLine(
            item.name,
            item.clip_id,
            "file" if number is None else "window",
            "failed",
            number,
            start,
            end,
            modalities={
                m: ModalityLine(t.status, t.used, t.code, t.detail, measured=t.measured)
                for m, t in reading.tracks.items()
            },
            true_label=item.label,
            settings=self.said,
        )
        if not reading.features:
            code, detail = why_nothing(line.modalities)
            return replace(line, code=code, detail=detail)
        features = {m: torch.from_numpy(values)[None] for m, values in reading.features.items()}
        present = {m: torch.ones(1, dtype=torch.bool) for m in features}
        # Row by row: an answer does not depend on what else is read.
        said = answers(self.head, features, present, self.filler, self.threshold)
        return answered(line, said, 0, self.head, self.filler)

    def summary_line(self, item: MediaItem, windows: Sequence[Window], summary: Summary) -> PredictionLine:
        """The line of a file that was cut into windows."""
        line = PredictionLine(
            item.name,
            item.clip_id,
            "file",
            "failed",
            start_seconds=windows[0][0],
            end_seconds=windows[-1][1],
            true_label=item.label,
            settings=self.said,
        )
        return summary.line(line)


@dataclass
class _Slot:
    """A file under way."""

    item: MediaItem
    windows: tuple[Window, ...] | None = None  # None: it is predicted as one, as far as is known
    handed: int = 0  # windows handed out
    told: int = 0  # windows told
    ready: dict[int, Reading] = field(default_factory=dict)  # by number of the window; -1: the whole file
    summary: Summary | None = None

    @property
    def unhanded(self) -> int:
        """Windows that nobody reads yet."""
        return 0 if self.windows is None else len(self.windows) - self.handed


class _Run:
    """One call of ``Predictor.predict``."""

    def __init__(
        self,
        predictor: Predictor,
        pool: Feed[ReadTask, list[Reading]],
        items: Iterator[MediaItem | None],
        live: bool,
    ) -> None:
        self.predictor, self.pool, self.items, self.live = predictor, pool, items, live
        self.slots: deque[_Slot] = deque()
        self.first = 0  # number of the first slot's file
        self.tasks = 0
        self.outstanding = 0  # clips and windows handed out and not yet told
        self.most = AHEAD * predictor.workers
        self.ended = False
        self.crashed: set[int] = set()  # numbers of files, since the last that did not

    def lines(self) -> Iterator[PredictionLine]:
        """Lines as they are ready."""
        while not self.ended or self.slots:
            with closing(self.pool.each(self._more, without_deadly)) as results:
                for task, readings in results:
                    if not task.encode:
                        self.predictor.encode_here(readings)
                    for (number, window), reading in zip(task.places, readings, strict=True):
                        self._take(number, window, reading)
                    yield from self._tell()

    def _more(self) -> ReadTask | None:
        """The next windows of the first file that has some, else the next files."""
        for number, slot in enumerate(self.slots, self.first):
            head_may = number == self.first and slot.handed - slot.told < self.most
            if slot.windows and slot.unhanded and (head_may or self.outstanding < self.most):
                count = min(BATCH, slot.unhanded)
                chosen = range(slot.handed, slot.handed + count)
                slot.handed += count
                parts = [slot.windows[i] for i in chosen]
                clips = tuple(replace(slot.item.clip, start_seconds=a, end_seconds=b) for a, b in parts)
                return self._task(clips, tuple((number, i) for i in chosen))
        size = 1 if self.live else min(BATCH, 1 + self.tasks // self.predictor.workers)
        added: list[tuple[int, _Slot]] = []
        while len(added) < size and self.outstanding + len(added) < self.most and not self.ended:
            try:
                item = next(self.items)
            except StopIteration:
                self.ended = True
                break
            if item is None:
                break
            self.slots.append(_Slot(item))
            added.append((self.first + len(self.slots) - 1, self.slots[-1]))
        if not added:
            return None
        return self._task(tuple(s.item.clip for _, s in added), tuple((number, -1) for number, _ in added))

    def _task(self, clips: tuple[Clip, ...], places: tuple[tuple[int, int], ...]) -> ReadTask:
        predictor, options = self.predictor, self.predictor.options
        self.tasks += 1
        self.outstanding += len(clips)
        return ReadTask(
            clips,
            places,
            predictor.settings,
            options.levels,
            predictor.windowing,
            options.keep_degraded,
            predictor.workers_encode,
        )

    def _take(self, number: int, window: int, reading: Reading) -> None:
        """Put a reading where it belongs."""
        if any(track.code == "crash" for track in reading.tracks.values()):
            self.crashed.add(number)  # windows of one file count once: it alone may be to blame
        else:
            self.crashed.clear()
        if len(self.crashed) >= MOST_CRASHES:
            raise PipeError(
                f"processes died on {MOST_CRASHES} files one after the other; is there enough memory? Run again with "
                "fewer --workers"
            )
        slot = self.slots[number - self.first]
        if reading.windows:
            self.outstanding -= 1
            slot.windows = reading.windows
            slot.summary = Summary(self.predictor.head, len(reading.windows))
        else:
            slot.ready[window] = reading

    def _tell(self) -> Iterator[PredictionLine]:
        """Lines of the first files, as far as they are complete."""
        while self.slots:
            slot = self.slots[0]
            if slot.windows is None or slot.summary is None:
                if -1 not in slot.ready:
                    return
                self._forget()
                yield self.predictor.line(slot.item, slot.ready.pop(-1), None, None)
                continue
            while slot.told in slot.ready:
                reading, number = slot.ready.pop(slot.told), slot.told
                slot.told += 1
                self.outstanding -= 1
                line = self.predictor.line(slot.item, reading, number, slot.windows[number])
                slot.summary.add(line)
                yield line
            if slot.told < len(slot.windows):
                return
            self.outstanding += 1  # the file itself was counted when it was cut
            self._forget()
            yield self.predictor.summary_line(slot.item, slot.windows, slot.summary)

    def _forget(self) -> None:
        self.slots.popleft()
        self.first += 1
        self.outstanding -= 1
