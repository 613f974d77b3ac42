"""Several processes that write clips. They end with the process that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path

from pipeline.datasets.demo.plan import ClipPlan, DemoSpec
from pipeline.errors import PipeError

BLOCK_CLIPS = 4  # clips handed out at a time
PATIENCE_SECONDS = 5.0  # for a process to end when asked to
DIED = (
    "a process that writes demo clips died (killed, or out of memory); run the command again: "
    "it goes on where it stopped"
)

Channel = connection.Connection


def write_in_processes(root: Path, spec: DemoSpec, todo: list[ClipPlan], workers: int) -> Generator[int, None, None]:
    """Write ``todo`` with ``workers`` processes and yield the number of clips of every finished block.

    Every process has a channel of its own: it ends when the channel closes, which also happens when this process is
    killed. A shared task queue would keep the others waiting for ever in that case.

    Raises:
        PipeError: a process died.
        Exception: what failed in a process, after the others were stopped.
    """
    blocks = [todo[i : i + BLOCK_CLIPS] for i in range(0, len(todo), BLOCK_CLIPS)]
    processes: list[SpawnProcess] = []
    channels: list[Channel] = []
    try:
        for _ in range(min(workers, len(blocks))):
            process, channel = _start(root, spec)
            processes.append(process)
            channels.append(channel)
        waiting = iter(blocks)
        busy = []
        for channel, block in zip(channels, waiting, strict=False):
            _hand_out(channel, block)
            busy.append(channel)
        while busy:
            ready = connection.wait(busy)
            for channel in [channel for channel in busy if channel in ready]:
                yield _answer(channel)
                block = next(waiting, [])
                if block:
                    _hand_out(channel, block)
                else:
                    busy.remove(channel)
    finally:
        _stop(processes, channels)


def _start(root: Path, spec: DemoSpec) -> tuple[SpawnProcess, Channel]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, root, spec), daemon=True)
    with _interrupts_held():
        process.start()
    theirs.close()  # theirs alone from here on, so that its end is noticed
    return process, ours


def _hand_out(channel: Channel, block: list[ClipPlan]) -> None:
    try:
        channel.send(block)
    except OSError as error:
        raise PipeError(DIED) from error


def _answer(channel: Channel) -> int:
    try:
        answer = channel.recv()
    except (EOFError, OSError) as error:
        raise PipeError(DIED) from error
    if isinstance(answer, Exception):
        raise answer
    return int(answer)


def _stop(processes: list[SpawnProcess], channels: list[Channel]) -> None:
    for channel in channels:
        channel.close()
    for process in processes:
        process.join(PATIENCE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _work(channel: Channel, root: Path, spec: DemoSpec) -> None:
    """Write the blocks that come through the channel until it closes."""
    # Ctrl-C goes to the whole group; only the process that was started by the user answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import cv2

    from pipeline.datasets.demo.write import write_clip

    cv2.setNumThreads(1)
    while True:
        try:
            block: list[ClipPlan] = channel.recv()
        except (EOFError, OSError):
            return
        answer: int | Exception = len(block)
        try:
            for plan in block:
                if channel.poll():  # nothing is sent while a block is worked on: the other end closed
                    return
                write_clip(root, spec, plan)
        except Exception as error:
            answer = error
        try:
            channel.send(answer)
        except OSError:
            return  # nobody listens any more


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C while a process starts; the new process inherits the delay and never sees it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it resets the mask when it starts, so it has to run before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
