"""Which frames of a clip a view sees.

The rule of the papers (SSMDG, arXiv 2602.22917, and the MM-SADA line before it): a window of
``num_frames * interval`` consecutive frames, centred for the clean view and anywhere inside the clip for the others;
a clip shorter than the window starts at 0 and wraps round.

Where a number of frames per second is wanted, ``interval_at_rate`` gives the interval; there a clip shorter than the
window spreads its frames instead of wrapping round.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def clean_offset(total: int, window: int) -> int:
    """First frame of the centred window: ``int((total - window + 1) / 2)``, or 0 where the clip is shorter."""
    return (total - window + 1) // 2 if total >= window else 0


def random_offset(rng: np.random.Generator, total: int, window: int) -> int:
    """First frame of a random window: uniform over ``0..total - window``, or 0 where the clip is shorter."""
    return int(rng.integers(0, total - window + 1)) if total >= window else 0


def interval_at_rate(total: int, num_frames: int, clip_rate_hz: float, rate_hz: float) -> int:
    """Step between sampled frames for so many frames per second, in frames of the clip, at least 1.

    ``round(clip_rate_hz / rate_hz)``; where ``num_frames`` such steps do not fit into the clip, the longest step that
    fits, ``total // num_frames``. So a clip of 2 s that is asked for 3 frames at 1 per second gives 3 frames 0.67 s
    apart, not those at 0 s, 1 s and 0 s again: wrapping round would weigh the first seconds of short clips more than
    the rest. Only a clip of fewer than ``num_frames`` frames repeats any.

    Args:
        total: frames in the clip.
        num_frames: frames of a view.
        clip_rate_hz: frames per second of the clip.
        rate_hz: frames per second that are wanted.

    Raises:
        ValueError: a rate that is not a positive number.
    """
    for name, value in (("the clip's frame rate", clip_rate_hz), ("the wanted frame rate", rate_hz)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; allowed: more than 0 frames per second")
    step = max(1, round(clip_rate_hz / rate_hz))
    return step if num_frames * step <= total else max(1, total // num_frames)


def frame_indices(total: int, num_frames: int, interval: int, offset: int) -> NDArray[np.int64]:
    """Return the frame numbers ``(offset + j * interval) mod total`` for ``j < num_frames``, shape `(num_frames,)`.

    Raises:
        ValueError: the clip has no frames.
    """
    if total < 1:
        raise ValueError(f"a clip of {total} frames cannot be sampled; it needs at least 1")
    return (offset + np.arange(num_frames, dtype=np.int64) * interval) % total
