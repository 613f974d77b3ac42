"""Stacks on a dask.distributed cluster: the workers share the workspace's folder, so results arrive in one place.

Needs the extra ``cluster``. A lost worker costs the tasks it had: they run again elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.errors import PipeError, UsageError, disk_error
from pipeline.process import configure_process
from pipeline.workers import Advance, Progress, WorkerFailed

Task = TypeVar("Task")
Result = TypeVar("Result")
LOST = 3  # workers that may die on one task before the task is suspected
CONNECT_SECONDS = 20.0
_LOCAL = re.compile(r"local:([1-9]\d*)")


class Cluster:
    """A connected cluster."""

    def __init__(self, client: Any) -> None:
        self.client = client

    @property
    def workers(self) -> int:
        """Threads of all workers that are there now."""
        found: dict[str, int] = self.client.nthreads()
        return max(1, sum(found.values()))

    def run(
        self, function: Callable[[Task, Progress], Result], tasks: Sequence[Task], advance: Advance
    ) -> Iterator[tuple[int, Result]]:
        """Yield ``(position, result)`` of every task, as they finish; progress is counted per task.

        Raises:
            PipeError: what a task raised, unchanged.
            WorkerFailed: workers died on one task again and again, or it raised something unexpected.
        """
        import distributed

        futures = {
            self.client.submit(_call, function, task, pure=False, priority=-position): position
            for position, task in enumerate(tasks)
        }
        try:
            for future in distributed.as_completed(list(futures)):
                position = futures[future]
                try:
                    result, amount = future.result()
                except PipeError:
                    raise
                except distributed.KilledWorker as error:
                    raise WorkerFailed(
                        f"{LOST} workers died on task {position}: {tasks[position]!r:.300}. Finished work is kept; run "
                        "the same command again to go on"
                    ) from error
                except OSError as error:
                    raise disk_error(error) or WorkerFailed(f"unexpected error on a worker: {error!r}") from error
                except Exception as error:
                    raise WorkerFailed(f"unexpected error on a worker: {error!r}") from error
                advance(amount)
                yield position, result
        finally:
            self.client.cancel(list(futures))


def _call(function: Callable[[Any, Progress], Any], task: Any) -> tuple[Any, int]:
    """Do one task on a worker; returns its result and the progress it reported."""
    configure_process()
    amounts: list[int] = []
    return function(task, Progress(amounts.append)), sum(amounts)


@contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """Connect to a scheduler (``tcp://host:port``), or start so many workers here (``local:N``).

    Raises:
        UsageError: another address, the extra is not installed, or nobody answers.
    """
    local = _LOCAL.fullmatch(address)
    if not local and not re.match(r"(tcp|tls|ucx|inproc)://", address):
        raise UsageError(
            f"--cluster {address}: write tcp://HOST:PORT of a dask scheduler, or local:N for N workers here"
        )
    try:
        import dask
        import distributed
    except ImportError as error:
        raise UsageError(
            "--cluster needs dask.distributed: install pipe-features with the extra [cluster], on the workers too"
        ) from error
    # One task at a time and thread: stacks use one intra-op thread each. Death of a worker is nobody's fault at first.
    with dask.config.set({"distributed.scheduler.allowed-failures": LOST, "distributed.worker.daemon": False}):
        if local:
            with (
                distributed.LocalCluster(
                    n_workers=int(local[1]),
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    silence_logs=50,
                ) as cluster,
                distributed.Client(cluster) as client,
            ):
                yield Cluster(client)
            return
        try:
            client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(
                f"--cluster {address}: no dask scheduler answers ({error}); start one with `dask scheduler`"
            ) from error
        with client:
            yield Cluster(client)
