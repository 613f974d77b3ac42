"""Pixels of optical-flow views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors.inputs import FrameInput
from extractors.views.geometry import ClipImages, cut_out, normalise, shift
from extractors.views.plan import FramePlan

_ZERO_MOTION = 128.0  # level of a flow of 0 pixels, see ``optical_flow.quantise``


def render_flow(
    flow: Tensor,
    rows: NDArray[np.int64],
    plans: Sequence[FramePlan],
    spec: FrameInput,
    *,
    antialias: bool = True,
) -> list[Tensor]:
    """Render optical-flow views of one clip.

    Resize to the short side, crop, resize the crop, mirror with u negated; then

    * clean: normalise;
    * weak: maybe mirror again, normalise, translate, uncovered pixels without motion;
    * strong: the same with draws of its own, then one square without motion, then Gaussian noise.

    Both mirrors negate the horizontal component (``255 - u``), so that a mirrored clip moves the way its mirrored
    frames do; the reference's second mirror leaves u as it is, which is deliberately put right. Flow vectors are not
    rescaled with the image, as in the reference.

    Args:
        flow: uint8 `(n, 2, height, width)`, channel 0 = u (to the right), 1 = v (down), on any device.
        rows: number of each of the n flow images in the clip, ascending; at least ``needed_indices(plans)``.
        plans: what ``plan_frames`` returned for modality ``flow``.
        spec: the specification the plans were made with.
        antialias: see ``geometry.resize``; False reproduces the papers' resizing.

    Returns:
        Per plan float32 `(2, num_frames, side, side)` on the device of ``flow``.

    Raises:
        ValueError: flow of another type or shape, or a planned image is missing.
    """
    if not plans:
        return []
    clip = ClipImages(flow, rows, plans, spec.resize_short, antialias)
    return [_render_view(clip, plan, spec) for plan in plans]


def _render_view(clip: ClipImages, plan: FramePlan, spec: FrameInput) -> Tensor:
    """Render one view: float32 `(2, num_frames, side, side)`."""
    images = clip.base(plan, _mirror)
    if plan.second_flip:
        images = _mirror(images)
    still = (_ZERO_MOTION - torch.tensor(spec.mean, device=images.device)) / torch.tensor(
        spec.std, device=images.device
    )
    values = shift(normalise(images, spec.mean, spec.std), *plan.shift, still)
    if plan.cutout is not None:
        cut_out(values, plan.cutout, still)
    if plan.noise_std > 0:
        # Drawn on the CPU, so that all devices see the same noise.
        rng = np.random.Generator(np.random.Philox(key=plan.noise_seed))
        noise = torch.from_numpy(rng.standard_normal(tuple(values.shape), dtype=np.float32))
        values += plan.noise_std * noise.to(values.device)
    return values


def _mirror(images: Tensor) -> Tensor:
    """Mirror left-right and negate the horizontal component, channel 0."""
    mirrored = images.flip(-1)
    mirrored[:, 0] = 255 - mirrored[:, 0]
    return mirrored
