"""Workers: every result arrives, errors keep their meaning, and a death costs one retry."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import MediaFailed
from pipeline.workers import Advance, Death, Pool, Progress, WorkerFailed, run_tasks


def ignore(amount: int) -> None:
    """Progress that nobody looks at."""


def square(task: int, advance: Advance) -> int:
    for _ in range(task):
        advance(1)
    return task * task


def refuse(task: int, advance: Advance) -> int:
    raise MediaFailed("truncated", f"frame {task} of 30 is missing")


def stumble(task: int, advance: Advance) -> float:
    return 1 / (task - task)


def run_out(task: int, advance: Advance) -> int:
    raise EOFError("the archive of task ends early")


def die_once(task: tuple[Path, int], advance: Advance) -> int:
    """Task 1 reports progress and is killed, but only the first time."""
    folder, number = task
    advance(10)
    if number == 1 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    advance(1)
    return number


def die(task: int, advance: Advance) -> int:
    advance(10)
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def wait_long(task: int, advance: Advance) -> int:
    if task:
        time.sleep(60)
    return task


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_gives_its_result_and_its_progress(workers: int) -> None:
    tasks = [3, 0, 4, 1, 2]
    reported: list[int] = []
    results = list(run_tasks(square, tasks, workers, reported.append))
    assert sorted(results) == [(i, task * task) for i, task in enumerate(tasks)]
    assert reported == [1] * sum(tasks)


def test_no_tasks_are_no_results() -> None:
    assert list(run_tasks(square, [], 2, ignore)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_expected_error_reaches_the_caller_unchanged(workers: int) -> None:
    with pytest.raises(MediaFailed, match="frame 7 of 30 is missing") as caught:
        list(run_tasks(refuse, [7, 7], workers, ignore))
    assert type(caught.value) is MediaFailed
    assert (caught.value.code, caught.value.detail) == ("truncated", "frame 7 of 30 is missing")


def test_an_unexpected_error_comes_with_the_workers_traceback() -> None:
    with pytest.raises(WorkerFailed) as caught:
        list(run_tasks(stumble, [5, 6], 2, ignore))
    text = str(caught.value)
    assert "return 1 / (task - task)" in text
    assert "ZeroDivisionError: division by zero" in text


def test_the_end_of_a_file_inside_a_task_is_not_the_end_of_the_pipe() -> None:
    with pytest.raises(WorkerFailed, match="EOFError: the archive of task ends early"):
        list(run_tasks(run_out, [1, 2], 2, ignore))


def test_a_killed_worker_costs_one_retry_and_its_progress_is_taken_back(tmp_path: Path) -> None:
    reported: list[int] = []
    results = list(run_tasks(die_once, [(tmp_path, i) for i in range(4)], 2, reported.append))
    assert sorted(results) == [(i, i) for i in range(4)]
    assert (tmp_path / "died").exists()
    assert reported.count(-10) == 1
    assert sum(reported) == 4 * 11


def test_a_worker_that_is_killed_twice_on_a_task_fails() -> None:
    with pytest.raises(WorkerFailed, match=r"died twice \(exit code -9\) on task 1: 1\. .*run the same command again"):
        list(run_tasks(die, [0, 1, 2, 3], 2, ignore))


def test_leaving_early_ends_the_workers() -> None:
    results = run_tasks(wait_long, [0, 1, 2], 2, ignore)
    assert next(results) == (0, 0)
    assert len(multiprocessing.active_children()) == 2
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def return_what_cannot_travel(task: int, advance: Advance) -> object:
    return lambda: task


def test_a_result_that_cannot_be_sent_is_an_error_like_any_other() -> None:
    with pytest.raises(WorkerFailed, match="unexpected error in a worker"):
        list(run_tasks(return_what_cannot_travel, [1, 2], 2, ignore))


def die_on_seven(task: tuple[int, ...], advance: Advance) -> int:
    for number in task:
        if number == 7:
            os.kill(os.getpid(), signal.SIGSEGV)
        advance(1)
    return sum(task)


def without_what_kills(task: tuple[int, ...], death: Death) -> tuple[int, ...]:
    assert (death.exit_code, death.code) == (-signal.SIGSEGV, "crash")
    return (*task[: death.done], 0, *task[death.done + 1 :])


def test_what_kills_workers_twice_can_be_left_out() -> None:
    """Also with one worker: then it is a process of its own, so that the caller survives."""
    progress: list[int] = []
    tasks = [(1, 2), (3, 7, 5, 7)]
    results = dict(run_tasks(die_on_seven, tasks, 1, progress.append, without_what_kills))
    assert results == {0: 3, 1: 8}
    assert sum(progress) == 6


def hang_on_seven(task: tuple[int, ...], progress: Progress) -> int:
    """Pieces after the first task's take long without being guarded."""
    for number in task:
        with progress.guard(1.0):
            time.sleep(60 if number == 7 else 0)
        time.sleep(1.5 if number == 5 else 0)  # longer than a guarded piece may take, and not guarded
        progress(1)
    return sum(task)


def without_what_hangs(task: tuple[int, ...], death: Death) -> tuple[int, ...]:
    assert (death.code, str(death)) == ("deadline", "it did not end within 1 s, twice")
    return (*task[: death.done], 0, *task[death.done + 1 :])


def test_what_hangs_twice_can_be_left_out_and_other_workers_go_on() -> None:
    progress: list[int] = []
    start = time.monotonic()
    results = dict(run_tasks(hang_on_seven, [(1, 7, 2), (5, 5)], 2, progress.append, without_what_hangs))
    assert results == {0: 3, 1: 10}
    assert sum(progress) == 5
    assert time.monotonic() - start < 30


def test_a_deadline_is_nothing_to_the_callers_own_process() -> None:
    assert list(run_tasks(guarded_for_no_time, [1], 1, ignore)) == [(0, 1)]


def guarded_for_no_time(task: int, progress: Progress) -> int:
    with progress.guard(0.0):
        return task


def attempts(task: Path, progress: Progress) -> int:
    if not task.exists():
        task.touch()
        os._exit(1)
    return progress.attempt


def test_a_task_knows_that_a_worker_died_on_it(tmp_path: Path) -> None:
    paths = [tmp_path / "there", tmp_path / "kills"]
    paths[0].touch()
    assert dict(run_tasks(attempts, paths, 2, ignore)) == {0: 0, 1: 1}


def own_process(task: int, progress: Progress) -> int:
    if task < 0:
        raise MediaFailed("truncated", "no more")
    progress(1)
    return os.getpid()


def test_a_pool_stays_for_more_tasks_also_after_an_error() -> None:
    with closing(Pool(own_process, 1)) as pool:
        first = dict(pool.run([1, 2], ignore))
        with pytest.raises(MediaFailed, match="no more"):
            list(pool.run([-1], ignore))
        assert set(dict(pool.run([3], ignore)).values()) == set(first.values())
    assert multiprocessing.active_children() == []
