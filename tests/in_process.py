"""Extraction without a process of its own: each would import PyTorch anew, and most tests are not about processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

from pipeline.workers import Advance, Progress


def _in_turn(
    function: Callable[[Any, Progress], Any],
    tasks: Sequence[Any],
    workers: int,
    advance: Advance,
    after_death: Any = None,
) -> Iterator[tuple[int, Any]]:
    for position, task in enumerate(tasks):
        yield position, function(task, Progress(advance))


@contextlib.contextmanager
def extraction_in_process() -> Iterator[None]:
    """Clips are decoded and encoded in this process; a file that brings a decoder down would bring it down too."""
    with contextlib.ExitStack() as stack:
        for module in ("extract", "trial", "verify_decode"):
            stack.enter_context(patch(f"pipeline.{module}.run_tasks", _in_turn))
        yield
