"""Processes are fed while they work, whatever a task does to them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from pipeline.feeding import Feed
from pipeline.workers import Death, Progress


def twice(task: int, progress: Progress) -> int:
    if task == -1 and progress.attempt == 0:
        os._exit(3)
    if task == -2:
        with progress.guard(0.3):
            time.sleep(60)
    if task == -3:
        os._exit(5)
    return 2 * task


def test_a_pool_takes_tasks_as_they_come_and_survives_crashes_and_hangs() -> None:
    source: Iterator[int | None] = iter([1, None, 2, -1, -2, *range(3, 40), -3, None, None, 50])
    deaths: list[str] = []

    def spared(task: int, death: Death) -> int:
        deaths.append(death.code)
        return 1000 + task

    feed: Feed[int, int] = Feed(twice, 2)
    ended, found = object(), []
    last: object = None

    def more() -> int | None:
        nonlocal last
        last = next(source, ended)  # type: ignore[arg-type]
        return last if isinstance(last, int) else None

    try:
        while last is not ended:
            found += list(feed.each(more, spared))
        assert len(feed.idle) <= 2
    finally:
        feed.close()
    answers = sorted(result for _, result in found)
    assert answers == sorted([2, 4, -2, *(2 * n for n in range(3, 40)), 100, 2 * 998, 2 * 997])
    assert sorted(deaths) == ["crash", "deadline"]
