"""Optical flow between frames, and its 8-bit form.

Published flow data sets (EPIC-Kitchens, Kinetics as used by mmaction) hold TV-L1 clipped to 20 pixels and quantised to
256 levels. DIS (Kroeger et al. 2016, OpenCV) is about 170 times faster than TV-L1 and, at its medium setting, differs
by 0.09 pixels on average at 256 pixels; the method is part of the identity of what is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_SMALLEST_SIDE = 32  # DIS reads outside its pyramid, and may crash the process, in smaller images

FLOW_METHODS: dict[str, Callable[[], Any]] = {
    "dis-medium": partial(cv2.DISOpticalFlow.create, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
    "dis-fast": partial(cv2.DISOpticalFlow.create, cv2.DISOPTICAL_FLOW_PRESET_FAST),
    "dis-ultrafast": partial(cv2.DISOpticalFlow.create, cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST),
}


def compute_flow(
    frames_a: NDArray[np.uint8], frames_b: NDArray[np.uint8], method: str, bound: float = 20.0
) -> NDArray[np.uint8]:
    """Compute the flow from each frame of ``frames_a`` to the frame of ``frames_b`` beside it.

    Flow is computed on grey images of the given size; images with a side under 32 pixels are extended by their border
    for the computation. A pair's result does not depend on the other pairs, nor on the number of threads.

    Args:
        frames_a: uint8 RGB `(n, height, width, 3)`.
        frames_b: the same shape; usually the next frame of each.
        method: a key of ``FLOW_METHODS``.
        bound: largest displacement that is kept, pixels.

    Returns:
        uint8 `(n, 2, height, width)`, see ``quantise``; channel 0 is u (positive to the right), 1 is v (positive
        down).

    Raises:
        ValueError: an unknown method, or frames of different shapes.
    """
    if method not in FLOW_METHODS:
        raise ValueError(f"flow method {method!r}; allowed: {', '.join(FLOW_METHODS)}")
    if frames_a.shape != frames_b.shape or frames_a.ndim != 4 or frames_a.shape[3] != 3:
        raise ValueError(
            f"frames have shapes {frames_a.shape} and {frames_b.shape}; both must be (n, height, width, 3)"
        )
    engine = FLOW_METHODS[method]()
    count, height, width = frames_a.shape[:3]
    levels = np.empty((count, 2, height, width), dtype=np.uint8)
    for i in range(count):
        # No array for the result: DIS would start its search from what is in it.
        flow = engine.calc(_grey(frames_a[i]), _grey(frames_b[i]), None)[:height, :width]
        levels[i] = quantise(flow.transpose(2, 0, 1), bound)
    return levels


def quantise(flow: NDArray[np.float32], bound: float = 20.0) -> NDArray[np.uint8]:
    """Map -bound..bound pixels linearly to levels 0..255; what is beyond is clipped.

    No motion is level 128: 127.5 rounded to even, as in the published data sets.
    """
    # In this order no motion is exactly 127.5, whatever the bound.
    levels: NDArray[np.float32] = np.rint(flow * np.float32(255 / (2 * bound)) + np.float32(127.5))
    return np.clip(levels, 0, 255).astype(np.uint8)


def _grey(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey image of an RGB frame, extended to the right and below to the smallest side that DIS can take."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    below, right = (max(0, _SMALLEST_SIDE - side) for side in grey.shape)
    if below or right:
        grey = cv2.copyMakeBorder(grey, 0, below, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(grey, dtype=np.uint8)
