"""Random numbers per run, as a function of (seed, step, place): no state, no host synchronisation.

A counter-based generator: every number is an integer hash of the run's key and the element's position. So a run draws
the same numbers alone and inside a stack, on a CPU and on a GPU, and after a resume in the middle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_from(*parts: object) -> int:
    """Return a non-negative 63-bit seed that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _mix(x: Tensor) -> Tensor:
    """Bijective 32-bit integer hash (multiply and xor-shift rounds), element by element, int32 in and out."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x21F0AAAD
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * 0x735A2D97
    return x ^ ((x >> 15) & 0x1FFFF)


class RunStreams:
    """Random streams of a stack, one per run."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        keys = [(seed_from("stream", seed) & 0xFFFFFFFF) - 0x80000000 for seed in seeds]
        self.keys = torch.tensor(keys, dtype=torch.int32, device=device)
        self._counters: dict[int, Tensor] = {}

    def uniform(self, step: int, place: str, *shape: int) -> Tensor:
        """Return float32 numbers in [0, 1) of shape ``(runs, *shape)``.

        Args:
            step: training step; the same step and place give the same numbers.
            place: name of the consumer, for example ``dropout/video``.
            shape: axes after ``runs``.
        """
        count = 1
        for size in shape:
            count *= size
        if count not in self._counters:
            self._counters[count] = _mix(torch.arange(count, dtype=torch.int32, device=self.keys.device))
        # Two rounds on the key separate neighbouring steps; the element's counter is hashed once more with it.
        salt = (seed_from(place, step) & 0xFFFFFFFF) - 0x80000000
        keys = _mix(self.keys ^ salt)
        bits = _mix(self._counters[count] ^ keys[:, None])
        return ((bits >> 8) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24).view(len(self.keys), *shape)
