"""Stacks on a dask.distributed cluster: the workers share the workspace's folder, so results arrive in one place.

Needs the extra ``cluster``. A lost worker costs the tasks it had: they run again elsewhere.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
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
QUEUE_SECONDS = 86400.0  # that the first job may stand in the queue
_HERE = re.compile(r"(local|slurm):([1-9]\d*)")


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


def _local_cluster(workers: int) -> Any:
    import distributed

    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    )


@contextmanager
def _slurm_cluster(jobs: int) -> Iterator[Any]:
    """A scheduler here, and so many SLURM jobs with workers; the first of them is waited for, the others join later."""
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise UsageError(
            "--cluster slurm:N needs dask-jobqueue: install pipe-features with the extra [slurm]"
        ) from error
    try:
        cluster = SLURMCluster(worker_extra_args=["--nthreads", "1"], silence_logs="critical")
    except (ValueError, TypeError) as error:
        reason = str(error).partition(", for example")[0]
        raise UsageError(
            f"--cluster slurm:{jobs}: {reason}; say what a job is in ~/.config/dask/jobqueue.yaml under "
            "jobqueue: slurm: (cores, processes, memory, queue, walltime, job-extra-directives)"
        ) from error
    with cluster:
        _try_job(cluster.job_script(), jobs)
        cluster.scale(jobs=jobs)
        try:
            cluster.wait_for_workers(1, timeout=QUEUE_SECONDS)
        except TimeoutError as error:
            raise UsageError(
                f"--cluster slurm:{jobs}: no worker has come within {QUEUE_SECONDS:g} s; see `squeue`, and whether a "
                f"job can reach this machine (interface, in jobqueue.yaml). A job is\n{cluster.job_script()}"
            ) from error
        yield cluster


def _try_job(script: str, jobs: int) -> None:
    """Ask SLURM whether it would take a job: dask-jobqueue only logs a refusal, and waits."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            asked = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise UsageError(
                f"--cluster slurm:{jobs}: there is no sbatch on this machine; call it on a login node"
            ) from error
    if asked.returncode:
        raise UsageError(f"--cluster slurm:{jobs}: SLURM refuses the job: {asked.stderr.strip()}\n{script}")


@contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """Connect to a scheduler (``tcp://host:port``), or start so many workers here (``local:N``) or as SLURM jobs.

    What a SLURM job asks for (partition, cores, memory, GPUs) stands in dask-jobqueue's own configuration.

    Raises:
        UsageError: another address, an extra is not installed, nobody answers, or no job starts.
    """
    here = _HERE.fullmatch(address)
    if not here and not re.match(r"(tcp|tls|ucx|inproc)://", address):
        raise UsageError(
            f"--cluster {address}: write tcp://HOST:PORT of a dask scheduler, local:N for N workers here, or slurm:N "
            "for N jobs"
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
        if here:
            start = _local_cluster if here[1] == "local" else _slurm_cluster
            with start(int(here[2])) as cluster, distributed.Client(cluster) as client:
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
