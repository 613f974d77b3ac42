"""Which frames of a clip a view sees.

The rule of the papers (SSMDG, arXiv 2602.22917, and the MM-SADA line before it): a window of
``num_frames * interval`` consecutive frames, centred for the clean view and anywhere inside the clip for the others;
a clip shorter than the window starts at 0 and wraps round.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def clean_offset(total: int, window: int) -> int:
    """First frame of the centred window: ``int((total - window + 1) / 2)``, or 0 where the clip is shorter."""
    return (total - window + 1) // 2 if total >= window else 0


def random_offset(rng: np.random.Generator, total: int, window: int) -> int:
    """First frame of a random window: uniform over ``0..total - window``, or 0 where the clip is shorter."""
    return int(rng.integers(0, total - window + 1)) if total >= window else 0


def frame_indices(total: int, num_frames: int, interval: int, offset: int) -> NDArray[np.int64]:
    """Return the frame numbers ``(offset + j * interval) mod total`` for ``j < num_frames``, shape `(num_frames,)`.

    Raises:
        ValueError: the clip has no frames.
    """
    if total < 1:
        raise ValueError(f"a clip of {total} frames cannot be sampled; it needs at least 1")
    return (offset + np.arange(num_frames, dtype=np.int64) * interval) % total
