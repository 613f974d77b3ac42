"""Pixels of optical-flow views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors.inputs import FrameInput
from extractors.views.batch import FrameClip, render_frames
from extractors.views.draws import Variant, check_variant
from extractors.views.geometry import cut_out, mirror, normalise, per_view, shift
from extractors.views.plan import FramePlan

_ZERO_MOTION = 128.0  # level of a flow of 0 pixels, see ``optical_flow.quantise``


def render_flow(
    flow: Tensor,
    rows: NDArray[np.int64],
    plans: Sequence[FramePlan],
    spec: FrameInput,
    *,
    variant: Variant = "strict",
    antialias: bool | None = None,
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
        variant: what the plans were made with; ``paper`` does what the reference does, see ``paper``.
        antialias: see ``geometry.resize``; None: whether the variant is ``strict``.

    Returns:
        Per plan float32 `(2, num_frames, side, side)` on the device of ``flow``.

    Raises:
        ValueError: flow of another type or shape, a planned image is missing, or an unknown variant.
    """
    return render_flow_batch([FrameClip(flow, rows, plans)], spec, variant=variant, antialias=antialias)[0]


def render_flow_batch(
    clips: Sequence[FrameClip], spec: FrameInput, *, variant: Variant = "strict", antialias: bool | None = None
) -> list[list[Tensor]]:
    """Render optical-flow views of several clips, whose sizes and plans may differ; on a GPU many views at once.

    Args:
        clips: what ``render_flow`` takes of each.
        spec: see ``render_flow``.
        variant: see ``render_flow``.
        antialias: see ``render_flow``.

    Returns:
        Per clip what ``render_flow`` returns: on a CPU the same bits; elsewhere within float32 rounding of them, but
        either resize may put a pixel one grey level apart.

    Raises:
        ValueError: see ``render_flow``.
    """
    check_variant(variant)

    def finish(images: Tensor, plans: Sequence[FramePlan]) -> Tensor:
        mirrored = [plan.mirrored for plan in plans]
        images = mirror(images, mirrored)
        images = _negate(images, mirrored if variant == "strict" else [plan.flip for plan in plans])
        still = torch.zeros(spec.channels, device=images.device)
        if variant == "strict":
            still += _ZERO_MOTION - torch.tensor(spec.mean, device=images.device)
            still /= torch.tensor(spec.std, device=images.device)
        values = shift(normalise(images, spec.mean, spec.std), [plan.shift for plan in plans], still)
        return _add_noise(cut_out(values, [plan.cutout for plan in plans], still), plans)

    return render_frames(clips, spec.resize_short, variant == "strict" if antialias is None else antialias, finish)


def _negate(images: Tensor, which: Sequence[bool]) -> Tensor:
    """Negate the horizontal component, channel 0 of `(views, num_frames, 2, side, side)`, of those views."""
    if not any(which):
        return images
    u = images[:, :, :1]
    negated = 255 - u
    if not all(which):
        negated = torch.where(per_view(which, u), negated, u)
    return torch.cat([negated, images[:, :, 1:]], 2)


def _add_noise(values: Tensor, plans: Sequence[FramePlan]) -> Tensor:
    """Add the plans' Gaussian noise to views `(views, 2, num_frames, side, side)` in place.

    Drawn on the CPU, so that all devices see the same noise.
    """
    at = [view for view, plan in enumerate(plans) if plan.noise_std > 0]
    if not at:
        return values
    rngs = [np.random.Generator(np.random.Philox(key=plans[view].noise_seed)) for view in at]
    drawn = [torch.from_numpy(rng.standard_normal(tuple(values.shape[1:]), dtype=np.float32)) for rng in rngs]
    noise = drawn[0][None] if len(at) == 1 else torch.stack(drawn)
    deviation = torch.tensor([plans[view].noise_std for view in at], device=values.device).view(-1, 1, 1, 1, 1)
    noise = noise.to(values.device).mul_(deviation)
    if len(at) == len(plans):
        return values.add_(noise)
    return values.index_add_(0, torch.tensor(at, device=values.device), noise)
