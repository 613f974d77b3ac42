"""Lines come in the order of the files and of their windows, whatever order the work is done in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pipeline.errors import PipeError
from pipeline.inputs import MediaItem
from pipeline.predict import MOST_CRASHES, PredictOptions, Predictor, _Run
from pipeline.predictions import PredictionLine
from pipeline.reading import Reading, ReadTask, failed
from pipeline.windows import Window, Windowing


class Shuffled:
    """A pool that does several tasks at a time and hands them back in any order.

    Args:
        windows: how many windows the files have, by name; others are predicted as one.
        code: why nothing can be read.
    """

    def __init__(self, windows: dict[str, int], code: str = "truncated") -> None:
        self.windows, self.code = windows, code
        self.rng = np.random.default_rng(0)
        self.most_waiting = 0

    def each(self, more: Callable[[], ReadTask | None], _: object) -> Iterator[tuple[ReadTask, list[Reading]]]:
        held: list[ReadTask] = []
        while True:
            while len(held) < 4 and (task := more()) is not None:
                held.append(task)
            if not held:
                return
            self.most_waiting = max(self.most_waiting, sum(len(task.clips) for task in held))
            done = held.pop(int(self.rng.integers(len(held))))
            yield (
                done,
                [self.read(clip.clip_id, window) for clip, (_, window) in zip(done.clips, done.places, strict=True)],
            )

    def read(self, name: str, window: int) -> Reading:
        count = self.windows.get(name, 0)
        if window < 0 and count:
            return Reading(windows=tuple((float(i), i + 1.0) for i in range(count)), end_seconds=float(count))
        return failed(("video",), self.code, f"{name} {window}")


class Told:
    """What a run needs of a ``Predictor``; lines say what they were made from."""

    def __init__(self) -> None:
        self.workers, self.workers_encode, self.windowing = 2, True, Windowing("fixed", 1.0, 1.0)
        self.settings, self.options = cast(Any, None), PredictOptions()
        self.head = SimpleNamespace(classes=("a", "b"), modalities=("video",))

    def line(self, item: MediaItem, reading: Reading, number: int | None, window: Window | None) -> PredictionLine:
        assert window is None or window[0] == number
        detail = reading.tracks["video"].detail
        return PredictionLine(item.name, "", "window" if window else "file", "failed", number, detail=detail)

    def summary_line(self, item: MediaItem, windows: tuple[Window, ...], summary: Any) -> PredictionLine:
        assert summary.failed == len(windows)
        return PredictionLine(item.name, "", "file", "failed", windows=len(windows))


def run(names: list[str | None], pool: Shuffled, live: bool = False) -> list[tuple[str, int | None, int | None]]:
    items = iter([None if name is None else MediaItem.from_path(name) for name in names])
    lines = _Run(cast(Predictor, Told()), cast(Any, pool), items, live).lines()
    found = []
    for line in lines:
        if line.windows is None:
            assert line.detail == f"{line.file} {-1 if line.window is None else line.window}"
        found.append((line.file, line.window, line.windows))
    return found


@pytest.mark.parametrize("live", [False, True])
def test_files_and_windows_are_told_in_order(live: bool) -> None:
    windows = {"f3": 17, "f4": 2, "f20": 300, "f39": 5}
    names = [f"f{i}" for i in range(40)]
    pool = Shuffled(windows)
    given: list[str | None] = [x for name in names for x in ([name, None] if live else [name])]
    expected: list[tuple[str, int | None, int | None]] = []
    for name in names:
        count = windows.get(name, 0)
        expected += [(name, i, None) for i in range(count)]
        expected.append((name, None, count or None))
    assert run(given, pool, live) == expected
    assert pool.most_waiting <= 16


def test_no_file_at_all_is_no_line() -> None:
    assert run([], Shuffled({})) == []


def test_a_machine_that_brings_every_process_down_is_told() -> None:
    with pytest.raises(PipeError, match=f"processes died on {MOST_CRASHES} files one after the other"):
        run([f"f{i}" for i in range(40)], Shuffled({}, "crash"))


def test_a_long_file_that_brings_processes_down_again_and_again_is_one_file() -> None:
    assert len(run(["long"], Shuffled({"long": 3 * MOST_CRASHES}, "crash"))) == 3 * MOST_CRASHES + 1
