"""Tasks on worker processes: progress while they run, deadlines for what may hang, and a death that costs one retry."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Generic, TypeVar, cast

from pipeline.errors import PipeError, disk_error
from pipeline.process import configure_process

Task = TypeVar("Task")
Result = TypeVar("Result")
Advance = Callable[[int], None]


LOOK_SECONDS = 0.5  # between two looks at deadlines


class Progress:
    """What a task tells while it runs; call it with the amount that is done. Any thread may.

    Args:
        report: takes the amounts.
        tell: takes the seconds that guarded work may take when it begins, and ``None`` when it ends.
        attempt: 0, or 1 after a worker died on the task as it is.
    """

    def __init__(
        self,
        report: Advance,
        tell: Callable[[float | None], None] = lambda _: None,
        attempt: int = 0,
    ) -> None:
        self._report, self._tell = report, tell
        self.attempt = attempt

    def __call__(self, amount: int) -> None:
        """Report an amount that is done."""
        self._report(amount)

    @contextmanager
    def guard(self, seconds: float) -> Iterator[None]:
        """Kill this process if the block takes longer, unless it is the caller's own; one block at a time."""
        self._tell(seconds)
        yield
        self._tell(None)


@dataclass(frozen=True)
class Death:
    """How the second of two workers died on a task."""

    done: int  # amount that it had reported
    exit_code: int | None  # negative: a signal
    overtime_seconds: float | None = None  # the deadline that it was killed for; None: it died by itself

    @property
    def code(self) -> str:
        """``deadline`` or ``crash``."""
        return "crash" if self.overtime_seconds is None else "deadline"

    def __str__(self) -> str:
        if self.overtime_seconds is not None:
            return f"it did not end within {self.overtime_seconds:g} s, twice"
        return f"two processes died, the last one with exit code {self.exit_code} (negative: a signal)"


@dataclass
class _Busy:
    """A worker that has a task."""

    process: BaseProcess
    position: int
    seconds: float | None = None  # that what it guards may take; None: it guards nothing
    begun: float = 0.0
    late: bool = False

    def overdue(self, now: float) -> bool:
        """Whether it is behind its deadline."""
        return self.seconds is not None and now - self.begun > self.seconds


class WorkerFailed(PipeError):
    """A worker process died on the same task twice, or raised an unexpected error."""


def run_tasks(
    function: Callable[[Task, Progress], Result],
    tasks: Sequence[Task],
    workers: int,
    advance: Advance,
    after_death: Callable[[Task, Death], Task] | None = None,
) -> Generator[tuple[int, Result]]:
    """Yield ``(position, result)`` of every task, as they finish.

    Args:
        function: importable by name; called with a task and where it tells its progress.
        tasks: picklable values, started in this order.
        workers: number of processes; 1 runs everything in this process, unless ``after_death`` is given.
        advance: called in this process with the amounts that ``function`` reports.
        after_death: called when workers died twice on a task, or were killed for a deadline; returns the task to go
            on with, which must avoid what kills. Without it two deaths are an error.

    Raises:
        PipeError: what a task raised, unchanged.
        WorkerFailed: a worker died twice on one task or raised something unexpected.
    """
    if not tasks:
        return
    if after_death is None and (workers <= 1 or len(tasks) <= 1):
        for position, task in enumerate(tasks):
            yield position, function(task, Progress(advance))
        return
    with closing(Pool(function, min(max(workers, 1), len(tasks)))) as pool:
        yield from pool.run(tasks, advance, after_death)


class Pool(Generic[Task, Result]):
    """Spawned processes, one pipe each, that do tasks of one kind. A worker whose parent is gone ends itself.

    Args:
        function: see ``run_tasks``.
        workers: number of processes; they start now.
    """

    def __init__(self, function: Callable[[Task, Progress], Result], workers: int) -> None:
        self.function = function
        self.context = multiprocessing.get_context("spawn")
        self.processes: list[BaseProcess] = []
        self.idle: list[tuple[Connection, BaseProcess]] = [self._start() for _ in range(workers)]
        self._begin([], lambda _: None, None)

    def _begin(
        self, tasks: Sequence[Task], advance: Advance, after_death: Callable[[Task, Death], Task] | None
    ) -> None:
        self.tasks, self.advance, self.after_death = list(tasks), advance, after_death
        self.queue = deque(range(len(tasks)))
        self.retried: set[int] = set()
        self.reported: dict[int, int] = {}
        self.busy: dict[Connection, _Busy] = {}

    def _start(self) -> tuple[Connection, BaseProcess]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.function), daemon=True)
        with _interrupts_held():
            process.start()
        self.processes.append(process)
        theirs.close()  # the worker's alone from here on, so that its end is noticed
        return ours, process

    def run(
        self, tasks: Sequence[Task], advance: Advance, after_death: Callable[[Task, Death], Task] | None = None
    ) -> Generator[tuple[int, Result]]:
        """Do tasks as ``run_tasks``; the processes stay for more, unless one of the tasks raises."""
        self._begin(tasks, advance, after_death)
        while self.queue or self.busy:
            while self.queue and self.idle:
                position = self.queue.popleft()
                connection, process = self.idle.pop()
                self.reported[position] = 0
                try:
                    connection.send((self.tasks[position], int(position in self.retried)))
                except OSError:  # it died while it waited
                    self._retry(_Busy(process, position))
                else:
                    self.busy[connection] = _Busy(process, position)
            guarded = any(busy.seconds is not None for busy in self.busy.values())
            for ready in wait(list(self.busy), LOOK_SECONDS if guarded else None):
                yield from self._receive(cast(Connection, ready))
            self._end_overdue()

    def _end_overdue(self) -> None:
        """Kill workers that are behind their deadline; their pipes close, and the rest is as after a crash."""
        now = time.monotonic()
        for busy in self.busy.values():
            if not busy.late and busy.overdue(now):
                busy.late = True
                busy.process.kill()

    def _receive(self, connection: Connection) -> Iterator[tuple[int, Result]]:
        busy = self.busy[connection]
        try:
            kind, value = connection.recv()
        except (EOFError, ConnectionResetError):
            del self.busy[connection]
            self._retry(busy)
            return
        if kind == "advance":
            self.reported[busy.position] += value
            self.advance(value)
            return
        if kind == "guard":
            busy.seconds, busy.begun = value, time.monotonic()
            return
        del self.busy[connection]
        self.idle.append((connection, busy.process))
        if kind == "error":
            raise value
        yield busy.position, value

    def _retry(self, busy: _Busy) -> None:
        """Give a dead worker's task to a new one, as it is or without what killed two; its progress is taken back."""
        busy.process.join()
        position, exit_code = busy.position, busy.process.exitcode
        if position not in self.retried:
            self.retried.add(position)
        elif self.after_death is not None:
            overtime = busy.seconds if busy.late else None
            death = Death(self.reported[position], exit_code, overtime)
            self.tasks[position] = self.after_death(self.tasks[position], death)
            self.retried.discard(position)
        else:
            raise WorkerFailed(
                f"a worker process died twice (exit code {exit_code}) on task {position}: "
                f"{self.tasks[position]!r:.300}. Finished work is kept; run the same command again to go on, with "
                "--workers 1 to see the cause"
            )
        self.advance(-self.reported[position])
        self.queue.appendleft(position)
        self.idle.append(self._start())

    def close(self) -> None:
        """End all workers at once."""
        for process in self.processes:
            process.kill()
            process.join()
        for connection in [*self.busy, *[c for c, _ in self.idle]]:
            connection.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C while a process starts; the new process inherits the delay and ignores the signal later."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it resets the mask when it starts, so it has to run before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Voice:
    """The sending end of a worker's pipe; threads take turns."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()

    def __call__(self, kind: str, value: object) -> None:
        with self.lock:
            self.connection.send((kind, value))


def _answer(function: Callable[[Task, Progress], Result], task: Task, attempt: int, voice: _Voice) -> bytes:
    """Do one task; returns what to send, pickled here so that a result that cannot be is an error like any other."""
    progress = Progress(lambda amount: voice("advance", amount), lambda seconds: voice("guard", seconds), attempt)
    try:
        return bytes(ForkingPickler.dumps(("result", function(task, progress))))
    except PipeError as error:
        return bytes(ForkingPickler.dumps(("error", error)))
    except Exception as error:
        known = disk_error(error) if isinstance(error, OSError) else None
        if known is not None:
            return bytes(ForkingPickler.dumps(("error", known)))
        text = "".join(traceback.format_exception(error))
        return bytes(ForkingPickler.dumps(("error", WorkerFailed(f"unexpected error in a worker:\n{text}"))))


def _serve(connection: Connection, function: Callable[[Task, Progress], Result]) -> None:
    """A worker's loop: tasks come in, progress and results go out, until the parent's end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    configure_process()
    voice = _Voice(connection)
    try:
        while True:
            task, attempt = connection.recv()
            answer = _answer(function, task, attempt, voice)
            with voice.lock:
                connection.send_bytes(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)
