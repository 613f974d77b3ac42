"""Pixel arithmetic shared by RGB and flow: resize, crop, mirror, normalise, shift, cut out, stack.

This is the only place where images are resized. Decoders deliver native size, since their own resizing differs by
tens of grey levels from one library to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from extractors.views.plan import FramePlan, needed_indices


def short_side_shape(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width after scaling the short side to ``short`` pixels, rounded half up as in mmcv."""
    scale = short / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize(images: Tensor, height: int, width: int, antialias: bool = True) -> Tensor:
    """Resize uint8 images `(n, channels, height, width)` bilinearly, half-pixel centres, to uint8.

    ``antialias=True``, the default of everything this package extracts, widens the filter when it shrinks an image,
    so that a 1280 x 720 video gives the same picture as a small one. ``antialias=False`` is OpenCV's ``INTER_LINEAR``,
    which the papers' pipelines use and which aliases when shrinking by more than two; it is there to reproduce them
    (equal to within one grey level). Both are equal when enlarging.

    A CPU works in fixed point on uint8; other devices go through float32 and round, which may differ by one grey level.
    """
    if images.shape[2:] == (height, width):
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=antialias)
    values = F.interpolate(images.float(), (height, width), mode="bilinear", align_corners=False, antialias=antialias)
    return values.round_().clamp_(0, 255).to(torch.uint8)


class ClipImages:
    """The decoded images of one clip, resized once, from which views cut their pixels.

    Raises:
        ValueError: a plan reads a frame that is not among ``rows``, rows are not ascending, or ``images`` is not uint8
            `(n, channels, height, width)` with one image per row.
    """

    def __init__(
        self, images: Tensor, rows: NDArray[np.int64], plans: Sequence[FramePlan], short: int, antialias: bool
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(rows):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)} for {len(rows)} rows; "
                "views need uint8 with four axes and one image per row"
            )
        if (np.diff(rows) <= 0).any():
            raise ValueError(f"rows {rows.tolist()} are not ascending; give each frame once, in the order of the clip")
        self._needed = needed_indices(plans)
        missing = np.setdiff1d(self._needed, rows)
        if missing.size:
            raise ValueError(f"frames {missing.tolist()} are planned but were not decoded")
        if len(self._needed) < len(rows):
            images = images[torch.from_numpy(np.searchsorted(rows, self._needed)).to(images.device)]
        height, width = short_side_shape(images.shape[2], images.shape[3], short)
        self._images = resize(images, height, width, antialias)
        self._antialias = antialias
        self._bases: dict[object, Tensor] = {}

    def base(self, plan: FramePlan, mirror: Callable[[Tensor], Tensor]) -> Tensor:
        """Frames, crop and mirror of a plan: uint8 `(num_frames, channels, side, side)`; do not write to it."""
        if plan.base not in self._bases:
            height, width = self._images.shape[2:]
            if plan.crop is None:
                side = plan.side
                top, left, box_height, box_width = (height - side) // 2, (width - side) // 2, side, side
            else:
                top, left, box_height, box_width = plan.crop.box(height, width)
            # A clip shorter than the window repeats frames: crop each once.
            numbers, places = np.unique(np.array(plan.indices), return_inverse=True)
            at = torch.from_numpy(np.searchsorted(self._needed, numbers)).to(self._images.device)
            images = self._images[:, :, top : top + box_height, left : left + box_width].index_select(0, at)
            images = resize(images, plan.side, plan.side, self._antialias)
            if plan.flip:
                images = mirror(images)
            self._bases[plan.base] = images[torch.from_numpy(places).to(images.device)]
        return self._bases[plan.base]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 `(num_frames, channels, side, side)` into float32 `(channels, num_frames, side, side)`.

    ``(level - mean) / std`` per channel, mean and std in grey levels.
    """
    values = images.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    shape = (-1, 1, 1, 1)
    values -= torch.tensor(mean, device=values.device).view(shape)
    values /= torch.tensor(std, device=values.device).view(shape)
    return values


def shift(clip: Tensor, down: int, right: int, fill: Tensor) -> Tensor:
    """Translate `(channels, num_frames, side, side)` by whole pixels; ``fill`` `(channels,)` is what comes in."""
    if down == 0 and right == 0:
        return clip
    height, width = clip.shape[2:]
    moved = fill.view(-1, 1, 1, 1).expand(clip.shape).clone()
    target = moved[:, :, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    target.copy_(clip[:, :, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)])
    return moved


def cut_out(clip: Tensor, square: tuple[int, int, int], fill: Tensor) -> None:
    """Blank a square (top, left, side) of `(channels, num_frames, side, side)` in place with ``fill`` `(channels,)`."""
    top, left, side = square
    clip[:, :, top : top + side, left : left + side] = fill.view(-1, 1, 1, 1)


def stack_by_side(views: Sequence[Tensor]) -> dict[int, tuple[tuple[int, ...], Tensor]]:
    """Group rendered views by their last axis so that a network can take each group as one batch.

    Args:
        views: tensors `(channels, num_frames, side, side)`, or spectrograms of one shape.

    Returns:
        Per side, in order of first appearance: the positions in ``views`` and the stack
        `(positions, channels, num_frames, side, side)`.
    """
    positions: dict[int, list[int]] = {}
    for position, view in enumerate(views):
        positions.setdefault(view.shape[-1], []).append(position)
    return {side: (tuple(group), torch.stack([views[i] for i in group])) for side, group in positions.items()}
