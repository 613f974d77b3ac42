"""Views of frames of many clips at once: what is computed together, and how.

A GPU needs long queues of large kernels, so the views of all clips go through every step after their crop together,
as many as memory allows. A CPU is fastest with one view at a time, which its caches hold. Either way the same
functions run, and on a CPU a view has the same bits whatever it is rendered with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors.views.geometry import ClipImages, as_levels
from extractors.views.operations import Magnitude, Operation
from extractors.views.plan import FramePlan

_VALUES_AT_ONCE = 2**27  # float32 values of a group of views: 512 MiB, and a few times that while it is made

# Levels uint8 `(views, num_frames, channels, side, side)` and their plans to values float32
# `(views, channels, num_frames, side, side)`. The levels of several views are its own; those of one are not.
Finish = Callable[[Tensor, Sequence[FramePlan]], Tensor]


@dataclass(frozen=True, eq=False)
class FrameClip:
    """Decoded images of one clip and the views that are wanted of it."""

    images: Tensor  # uint8 on any device: RGB `(n, height, width, 3)`, flow `(n, 2, height, width)` with u, v
    rows: NDArray[np.int64]  # number of each image in the clip, ascending; at least ``needed_indices(plans)``
    plans: Sequence[FramePlan]  # of ``plan_frames``


@dataclass(frozen=True, eq=False)
class _Base:
    """A crop and the views made of it."""

    crop: Tensor  # what ``ClipImages.crop`` returned
    views: list[tuple[int, int, FramePlan]]  # number of the clip, place among its views, plan


def views_at_once(device: torch.device, values: int) -> int:
    """How many views of so many values are computed together."""
    return 1 if device.type == "cpu" else max(1, _VALUES_AT_ONCE // values)


def render_frames(clips: Sequence[FrameClip], short: int, antialias: bool, finish: Finish) -> list[list[Tensor]]:
    """Render the views of clips: resize and crop clip by clip, finish views of one size together.

    Args:
        clips: images `(n, channels, height, width)`.
        short: short side after the first resize, pixels.
        antialias: see ``geometry.resize``.
        finish: everything behind the crop.

    Returns:
        Per clip and plan float32 `(channels, num_frames, side, side)`; off a CPU they share memory with others.

    Raises:
        ValueError: see ``ClipImages``.
    """
    rendered: dict[tuple[int, int], Tensor] = {}
    waiting: dict[Hashable, list[_Base]] = {}
    for number, clip in enumerate(clips):
        for base in _bases(number, clip, short, antialias):
            key = base.crop.device, base.crop.shape
            group = waiting.setdefault(key, [])
            group.append(base)
            if sum(len(b.views) for b in group) >= views_at_once(base.crop.device, base.crop.numel()):
                rendered.update(_finish(waiting.pop(key), finish))
    for group in waiting.values():
        rendered.update(_finish(group, finish))
    return [[rendered[number, place] for place in range(len(clip.plans))] for number, clip in enumerate(clips)]


def operate(images: Tensor, plans: Sequence[FramePlan], table: dict[str, Operation], fill: Sequence[float]) -> Tensor:
    """Apply the operations of plans, those of one name together.

    Args:
        images: `(views, num_frames, 3, side, side)`; written to, unless there is one view.
        plans: one per view.
        table: what the operations' names mean.
        fill: per channel, of pixels from outside.

    Returns:
        Of the shape and type of ``images``.
    """
    for turn in range(max(len(plan.operations) for plan in plans)):
        named: dict[str, list[int]] = {}
        for view, plan in enumerate(plans):
            if turn < len(plan.operations):
                named.setdefault(plan.operations[turn][0], []).append(view)
        for name, views in named.items():
            magnitudes = [plans[view].operations[turn][1] for view in views]
            magnitude: Magnitude = magnitudes[0] if len(views) == 1 else magnitudes
            if len(views) == len(plans):
                images = table[name].apply(images.flatten(0, 1), magnitude, fill).view(images.shape)
                continue
            at = torch.tensor(views, device=images.device)
            chosen = images.index_select(0, at)
            changed = table[name].apply(chosen.flatten(0, 1), magnitude, fill).view(chosen.shape)
            images.index_copy_(0, at, changed)
    return images


def _bases(number: int, clip: FrameClip, short: int, antialias: bool) -> Iterator[_Base]:
    """The crops of a clip, each with the views that share it."""
    shared: dict[Hashable, list[tuple[int, int, FramePlan]]] = {}
    for place, plan in enumerate(clip.plans):
        shared.setdefault((plan.indices, plan.side, plan.crop), []).append((number, place, plan))
    if shared:
        images = ClipImages(clip.images, clip.rows, clip.plans, short, antialias)
        for views in shared.values():
            yield _Base(images.crop(views[0][2]), views)


def _finish(bases: Sequence[_Base], finish: Finish) -> dict[tuple[int, int], Tensor]:
    """Finish the views of crops of one shape; by number of the clip and place of the view."""
    first = bases[0].crop
    levels = as_levels(first[None] if len(bases) == 1 else torch.stack([base.crop for base in bases]))
    views = [(i, *view) for i, base in enumerate(bases) for view in base.views]
    size = views_at_once(first.device, first.numel())
    rendered = {}
    for start in range(0, len(views), size):
        group = views[start : start + size]
        at = [view[0] for view in group]
        chosen = (
            levels[at[0] : at[0] + 1] if len(at) == 1 else levels.index_select(0, torch.tensor(at).to(first.device))
        )
        values = finish(chosen, [view[3] for view in group])
        rendered.update({(number, place): row for (_, number, place, _), row in zip(group, values, strict=True)})
    return rendered
