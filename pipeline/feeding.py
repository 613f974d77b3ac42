"""Worker processes that are fed while they work: tasks that nobody has listed before, processes as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

from pipeline.workers import Death, Pool, Progress

ROUND = 512  # tasks after which a pool starts a new list of them: what is done is forgotten
Task = TypeVar("Task")
Result = TypeVar("Result")


class Feed(Pool[Task, Result]):
    """A pool whose tasks are asked for when there is somebody to do them; processes start when they are needed.

    Args:
        function: see ``run_tasks``.
        workers: processes, at most.
    """

    def __init__(self, function: Callable[[Task, Progress], Result], workers: int) -> None:
        super().__init__(function, 0)
        self.limit = workers

    def each(
        self, more: Callable[[], Task | None], after_death: Callable[[Task, Death], Task]
    ) -> Generator[tuple[Task, Result]]:
        """Do tasks until ``more`` has none at the moment and all that were begun are done.

        Args:
            more: hands out the next task; ``None``: there is none now.
            after_death: see ``run_tasks``.

        Yields:
            Tasks, as ``after_death`` left them, with their results, as they finish.
        """
        while True:
            tasks = self._some(more, 0)
            if not tasks:
                return
            handed = len(tasks)
            self._grow(handed)
            with closing(self.run(tasks, lambda amount: None, after_death)) as results:
                for position, result in results:
                    yield self.tasks[position], result
                    if handed >= ROUND:
                        continue
                    tasks = self._some(more, len(self.queue))
                    self.queue.extend(range(handed, handed + len(tasks)))
                    self.tasks += tasks
                    handed += len(tasks)
                    self._grow(len(self.queue))

    def _some(self, more: Callable[[], Task | None], waiting: int) -> list[Task]:
        """Tasks for all workers that are idle, and one more for each."""
        tasks: list[Task] = []
        while waiting + len(tasks) < 2 * self.limit:
            task = more()
            if task is None:
                break
            tasks.append(task)
        return tasks

    def _grow(self, waiting: int) -> None:
        """Start processes for tasks that wait and find none idle."""
        while len(self.idle) < waiting and len(self.idle) + len(self.busy) < self.limit:
            self.idle.append(self._start())
