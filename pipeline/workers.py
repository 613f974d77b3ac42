"""Tasks on worker processes: progress while they run, and a worker's death costs its task one retry, not the run."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


class WorkerFailed(PipeError):
    """A worker process died on the same task twice, or raised an unexpected error."""


def run_tasks(
    function: Callable[[Task, Advance], Result],
    tasks: Sequence[Task],
    workers: int,
    advance: Advance,
    after_death: Callable[[Task, int, int | None], Task] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yield ``(position, result)`` of every task, as they finish.

    Args:
        function: importable by name; called with a task and a callback for progress.
        tasks: picklable values, started in this order.
        workers: number of processes; 1 runs everything in this process, unless ``after_death`` is given.
        advance: called in this process with the amounts that ``function`` reports.
        after_death: called when workers died twice on a task, with the task, the progress that the last one had
            reported and its exit code; returns the task to go on with, which must avoid what kills. Without it two
            deaths are an error.

    Raises:
        PipeError: what a task raised, unchanged.
        WorkerFailed: a worker died twice on one task or raised something unexpected.
    """
    if not tasks:
        return
    if after_death is None and (workers <= 1 or len(tasks) <= 1):
        for position, task in enumerate(tasks):
            yield position, function(task, advance)
        return
    pool = _Pool(function, list(tasks), min(max(workers, 1), len(tasks)), advance, after_death)
    try:
        yield from pool.run()
    finally:
        pool.stop()


class _Pool(Generic[Task, Result]):
    """Spawned processes, one pipe each. A worker whose parent is gone sees its pipe close and ends."""

    def __init__(
        self,
        function: Callable[[Task, Advance], Result],
        tasks: list[Task],
        workers: int,
        advance: Advance,
        after_death: Callable[[Task, int, int | None], Task] | None,
    ) -> None:
        self.function, self.tasks, self.advance, self.after_death = function, tasks, advance, after_death
        self.queue = deque(range(len(tasks)))
        self.retried: set[int] = set()
        self.reported: dict[int, int] = {}
        self.context = multiprocessing.get_context("spawn")
        self.busy: dict[Connection, tuple[BaseProcess, int]] = {}
        self.processes: list[BaseProcess] = []
        self.idle: list[tuple[Connection, BaseProcess]] = [self._start() for _ in range(workers)]

    def _start(self) -> tuple[Connection, BaseProcess]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.function), daemon=True)
        with _interrupts_held():
            process.start()
        self.processes.append(process)
        theirs.close()  # the worker's alone from here on, so that its end is noticed
        return ours, process

    def run(self) -> Iterator[tuple[int, Result]]:
        while self.queue or self.busy:
            while self.queue and self.idle:
                position = self.queue.popleft()
                connection, process = self.idle.pop()
                self.reported[position] = 0
                try:
                    connection.send(self.tasks[position])
                except OSError:  # it died while it waited
                    self._retry(process, position)
                else:
                    self.busy[connection] = (process, position)
            for ready in wait(list(self.busy)):
                yield from self._receive(cast(Connection, ready))

    def _receive(self, connection: Connection) -> Iterator[tuple[int, Result]]:
        process, position = self.busy[connection]
        try:
            kind, value = connection.recv()
        except (EOFError, ConnectionResetError):
            del self.busy[connection]
            self._retry(process, position)
            return
        if kind == "advance":
            self.reported[position] += value
            self.advance(value)
            return
        del self.busy[connection]
        if kind == "error":
            raise value
        self.idle.append((connection, process))
        yield position, value

    def _retry(self, process: BaseProcess, position: int) -> None:
        """Give a dead worker's task to a new one, as it is or without what killed two; its progress is taken back."""
        process.join()
        if position not in self.retried:
            self.retried.add(position)
        elif self.after_death is not None:
            self.tasks[position] = self.after_death(self.tasks[position], self.reported[position], process.exitcode)
            self.retried.discard(position)
        else:
            raise WorkerFailed(
                f"a worker process died twice (exit code {process.exitcode}) on task {position}: "
                f"{self.tasks[position]!r:.300}. Finished work is kept; run the same command again to go on, with "
                "--workers 1 to see the cause"
            )
        self.advance(-self.reported[position])
        self.queue.appendleft(position)
        self.idle.append(self._start())

    def stop(self) -> None:
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


def _answer(function: Callable[[Task, Advance], Result], task: Task, connection: Connection) -> bytes:
    """Do one task; returns what to send, pickled here so that a result that cannot be is an error like any other."""
    try:
        return bytes(
            ForkingPickler.dumps(("result", function(task, lambda amount: connection.send(("advance", amount)))))
        )
    except PipeError as error:
        return bytes(ForkingPickler.dumps(("error", error)))
    except Exception as error:
        known = disk_error(error) if isinstance(error, OSError) else None
        if known is not None:
            return bytes(ForkingPickler.dumps(("error", known)))
        text = "".join(traceback.format_exception(error))
        return bytes(ForkingPickler.dumps(("error", WorkerFailed(f"unexpected error in a worker:\n{text}"))))


def _serve(connection: Connection, function: Callable[[Task, Advance], Result]) -> None:
    """A worker's loop: tasks come in, progress and results go out, until the parent's end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    configure_process()
    try:
        while True:
            task = connection.recv()
            connection.send_bytes(_answer(function, task, connection))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)
