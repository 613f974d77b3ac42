"""Random numbers per run, as a function of (seed, step, place): no state, no host synchronisation.

A counter-based generator: every number is an integer hash of the run's key and the element's position. So a run draws
the same numbers alone and inside a stack, on a CPU and on a GPU, and after a resume in the middle.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
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
        self.seeds = tuple(seeds)
        keys = [(seed_from("stream", seed) & 0xFFFFFFFF) - 0x80000000 for seed in seeds]
        self.keys = torch.tensor(keys, dtype=torch.int32, device=device)
        self._counters: dict[int, Tensor] = {}

    def bits(self, step: int, place: str, *shape: int) -> Tensor:
        """Return uniform int16 numbers (-32768 to 32767) of shape ``(runs, *shape)``.

        Args:
            step: training step; the same step and place give the same numbers.
            place: name of the consumer, for example ``labeled/video``.
            shape: axes after ``runs``.
        """
        count = math.prod(shape)
        words = -(-count // 2)  # one 32-bit hash serves two numbers
        if words not in self._counters:
            self._counters[words] = _mix(torch.arange(words, dtype=torch.int32, device=self.keys.device))
        salt = (seed_from(place, step) & 0xFFFFFFFF) - 0x80000000
        keys = _mix(self.keys ^ salt)
        hashed = _mix(self._counters[words] ^ keys[:, None])
        return hashed.view(torch.int16)[:, :count].view(len(self.keys), *shape)

    def permutation(self, step: int, place: str, size: int) -> Tensor:
        """Return a permutation of ``0 .. size - 1`` per run, ``(runs, size)`` int64."""
        return self.bits(step, place, size).argsort(dim=-1, stable=True)

    def normal(self, step: int, place: str, *shape: int) -> Tensor:
        """Return standard normal numbers ``(runs, *shape)`` float32 (Box and Muller, from 2 x 16 bits each)."""
        pairs = (self.bits(step, place, *shape, 2).float() + 32768.5) / 65536
        radius = (pairs[..., 0].log() * -2).sqrt()
        return radius * (pairs[..., 1] * (2 * math.pi)).cos()

    def beta(self, step: int, place: str, concentration: Sequence[float]) -> Tensor:
        """Draw from Beta(a, a) with ``a = concentration[run]``: ``(runs,)`` float32 on the device.

        An ``a`` of 0 gives 1, the limit in which nothing is mixed.
        """
        drawn = [
            np.random.Generator(np.random.Philox(seed_from("beta", seed, place, step))).beta(a, a) if a > 0 else 1.0
            for seed, a in zip(self.seeds, concentration, strict=True)
        ]
        return torch.tensor(drawn, dtype=torch.float32).to(self.keys.device)
