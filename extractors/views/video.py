"""Pixels of RGB views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors.inputs import FrameInput
from extractors.views.batch import FrameClip, operate, render_frames
from extractors.views.draws import Variant, check_variant
from extractors.views.geometry import cut_out, mirror, normalise, shift
from extractors.views.operations import OPERATIONS
from extractors.views.paper import PAPER_OPERATIONS
from extractors.views.plan import FramePlan


def render_video(
    frames: Tensor,
    rows: NDArray[np.int64],
    plans: Sequence[FramePlan],
    spec: FrameInput,
    *,
    variant: Variant = "strict",
    antialias: bool | None = None,
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
        variant: what the plans were made with; ``paper`` does what the reference does, see ``paper``.
        antialias: see ``geometry.resize``; None: whether the variant is ``strict``.

    Returns:
        Per plan float32 `(3, num_frames, side, side)` on the device of ``frames``; ``stack_by_side`` makes batches.

    Raises:
        ValueError: frames of another type or shape, a planned frame is missing, or an unknown variant.
    """
    return render_video_batch([FrameClip(frames, rows, plans)], spec, variant=variant, antialias=antialias)[0]


def render_video_batch(
    clips: Sequence[FrameClip], spec: FrameInput, *, variant: Variant = "strict", antialias: bool | None = None
) -> list[list[Tensor]]:
    """Render RGB views of several clips, whose sizes and plans may differ; on a GPU many views at once.

    Args:
        clips: what ``render_video`` takes of each.
        spec: see ``render_video``.
        variant: see ``render_video``.
        antialias: see ``render_video``.

    Returns:
        Per clip what ``render_video`` returns: on a CPU the same bits; elsewhere within float32 rounding of them, but
        either resize may put a pixel one grey level apart, which operations such as Equalize enlarge.

    Raises:
        ValueError: see ``render_video``.
    """
    check_variant(variant)

    def finish(images: Tensor, plans: Sequence[FramePlan]) -> Tensor:
        images = mirror(images, [plan.mirrored for plan in plans])
        zero = torch.zeros(spec.channels, device=images.device)
        if variant == "strict":
            fill = [min(max(round(level), 0), 255) for level in spec.mean]
            values = normalise(operate(images, plans, OPERATIONS, fill), spec.mean, spec.std)
        else:
            frames = normalise(images, spec.mean, spec.std).transpose(1, 2)
            values = operate(frames, plans, PAPER_OPERATIONS, [0.0] * spec.channels).transpose(1, 2).contiguous()
        values = shift(values, [plan.shift for plan in plans], zero)
        return cut_out(values, [plan.cutout for plan in plans], zero)

    images = [replace(clip, images=clip.images.permute(0, 3, 1, 2)) for clip in clips]
    return render_frames(images, spec.resize_short, variant == "strict" if antialias is None else antialias, finish)
