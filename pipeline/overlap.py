"""Work done ahead of those who need it: decoding in a thread, and decoded frames that cross processes uncopied."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.shared_memory import SharedMemory
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.decoding import Decoded

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Generator[Result]:
    """Yield ``function(item)`` of every item, in order, made by a thread while the caller works on earlier ones.

    Args:
        function: what is done ahead; what it raises is raised here, in its turn.
        items: its arguments.
        depth: results that are made or being made and not yet asked for, at most; 0: no thread.
    """
    if depth == 0:
        yield from map(function, items)
        return
    rest = iter(items)
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        coming: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(rest, depth))
        while coming:
            result = coming.popleft().result()
            coming.extend(pool.submit(function, item) for item in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Place:
    """An array in shared memory."""

    name: str
    shape: tuple[int, ...]


@dataclass
class Shared:
    """A decoded clip on its way to another process: its pictures lie in shared memory, the rest is small.

    Whoever ``take``s it owns the memory and must ``release`` it; memory of a process that dies before it hands its
    clip over is freed when the run ends.
    """

    decoded: Decoded  # without pixels
    places: Sequence[_Place]
    _held: list[SharedMemory] = field(default_factory=list)

    @classmethod
    def put(cls, decoded: Decoded) -> Shared:
        """Move a clip's pictures to shared memory."""
        places, light = [], []
        for images in decoded.images:
            memory = SharedMemory(create=True, size=max(1, images.pixels.nbytes))
            places.append(_Place(memory.name, tuple(images.pixels.shape)))
            _array(memory, places[-1].shape)[...] = images.pixels.numpy()
            memory.close()
            light.append(replace(images, pixels=torch.empty(0, dtype=torch.uint8)))
        return cls(replace(decoded, images=light), places)

    def take(self) -> Decoded:
        """The clip; its pictures are views of shared memory, valid until ``release``."""
        self._held = [SharedMemory(place.name) for place in self.places]
        pixels = [_array(memory, place.shape) for memory, place in zip(self._held, self.places, strict=True)]
        images = [replace(i, pixels=torch.from_numpy(p)) for i, p in zip(self.decoded.images, pixels, strict=True)]
        return replace(self.decoded, images=images)

    def release(self) -> None:
        """Free the memory; views of it must be gone, or it is freed when the process ends."""
        for memory in self._held or [SharedMemory(place.name) for place in self.places]:
            memory.unlink()
            with suppress(BufferError):
                memory.close()
        self._held = []


def _array(memory: SharedMemory, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.ndarray(shape, np.uint8, memory.buf)
