"""Pixels of RGB views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors.inputs import FrameInput
from extractors.views.geometry import ClipImages, cut_out, normalise, shift
from extractors.views.operations import OPERATIONS
from extractors.views.plan import FramePlan


def render_video(
    frames: Tensor,
    rows: NDArray[np.int64],
    plans: Sequence[FramePlan],
    spec: FrameInput,
    *,
    antialias: bool = True,
) -> list[Tensor]:
    """Render RGB views of one clip.

    Resize to the short side, crop, resize the crop, mirror; then

    * clean: normalise;
    * weak: maybe mirror again, normalise, translate, uncovered pixels 0, the channel mean;
    * strong: one or two operations on pixels 0..255, normalise, one blank square of 0. The reference applies the
      operations after normalisation, where they clip the negative half; this is deliberately put right.

    Args:
        frames: uint8 RGB `(n, height, width, 3)` at native size, on any device.
        rows: frame number of each of the n frames, ascending; at least ``needed_indices(plans)``.
        plans: what ``plan_frames`` returned for modality ``video``.
        spec: the specification the plans were made with.
        antialias: see ``geometry.resize``; False reproduces the papers' resizing.

    Returns:
        Per plan float32 `(3, num_frames, side, side)` on the device of ``frames``; ``stack_by_side`` makes batches.

    Raises:
        ValueError: frames of another type or shape, or a planned frame is missing.
    """
    if not plans:
        return []
    clip = ClipImages(frames.permute(0, 3, 1, 2), rows, plans, spec.resize_short, antialias)
    return [_render_view(clip, plan, spec) for plan in plans]


def _render_view(clip: ClipImages, plan: FramePlan, spec: FrameInput) -> Tensor:
    """Render one view: float32 `(3, num_frames, side, side)`."""
    images = clip.base(plan, _mirror)
    if plan.second_flip:
        images = _mirror(images)
    fill = [min(max(round(level), 0), 255) for level in spec.mean]
    for name, magnitude in plan.operations:
        images = OPERATIONS[name].apply(images, magnitude, fill)
    zero = torch.zeros(spec.channels, device=images.device)
    values = shift(normalise(images, spec.mean, spec.std), *plan.shift, zero)
    if plan.cutout is not None:
        cut_out(values, plan.cutout, zero)
    return values


def _mirror(images: Tensor) -> Tensor:
    """Mirror left-right."""
    return images.flip(-1)
