"""Work done ahead: in order, bounded, with its errors in their turn; and frames in shared memory."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
import torch

from pipeline.decoding import Decoded, Images
from pipeline.overlap import Shared, ahead


@pytest.mark.parametrize("depth", [0, 1, 3, 50])
def test_results_come_in_order(depth: int) -> None:
    with closing(ahead(lambda x: x * x, range(20), depth)) as results:
        assert list(results) == [x * x for x in range(20)]
    assert list(ahead(lambda x: x, [], depth)) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_made_than_may_wait(depth: int) -> None:
    made: list[int] = []
    with closing(ahead(lambda x: made.append(x) or x, range(20), depth)) as results:
        for taken in range(5):
            next(results)
            time.sleep(0.05)
            assert taken + 1 <= len(made) <= taken + 1 + depth
    assert len(made) <= 5 + depth


def test_it_is_made_by_another_thread_while_the_caller_works() -> None:
    with closing(ahead(lambda _: threading.current_thread().name, range(3), 1)) as results:
        assert all(name.startswith("ahead") for name in results)
    assert list(ahead(lambda _: threading.current_thread(), range(2), 0)) == [threading.current_thread()] * 2


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_in_its_turn(depth: int) -> None:
    def third_fails(x: int) -> int:
        if x == 2:
            raise ZeroDivisionError(x)
        return x

    results = ahead(third_fails, range(5), depth)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def clip() -> Decoded:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8))
    flow = torch.from_numpy(rng.integers(0, 256, (3, 2, 6, 5), dtype=np.uint8))
    return Decoded(
        "c",
        "mark",
        [
            Images(frames, np.arange(4), False, {"video": []}, {"codec": "h264"}),
            Images(flow, np.arange(3), True, {"flow": []}, {"flow": "stored"}),
            Images(frames[:0], np.arange(0), False, {}, {}),
        ],
    )


def test_pictures_cross_in_shared_memory_and_leave_nothing_behind() -> None:
    whole = clip()
    shared = Shared.put(whole)
    assert all(images.pixels.numel() == 0 for images in shared.decoded.images)
    taken = shared.take()
    for mine, theirs in zip(taken.images, whole.images, strict=True):
        assert torch.equal(mine.pixels, theirs.pixels)
        assert (mine.hold_flow, mine.facts) == (theirs.hold_flow, theirs.facts)
    del taken, mine
    shared.release()
    for place in shared.places:
        with pytest.raises(FileNotFoundError):
            SharedMemory(place.name)


def test_what_nobody_took_can_be_released_too() -> None:
    shared = Shared.put(clip())
    shared.release()
    with pytest.raises(FileNotFoundError):
        SharedMemory(shared.places[0].name)
