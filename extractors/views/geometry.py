"""Pixel arithmetic shared by RGB and flow: resize, crop, mirror, normalise, shift, cut out, stack.

What follows the crop works on several views at once, each with its own draws; the axes are `(views, num_frames,
channels, side, side)` for levels and `(views, channels, num_frames, side, side)` for normalised values. One view alone
is moved and blanked by slices, which a CPU does faster than by indices; both give the same bits.

This is the only place where images are resized. Decoders deliver native size, since their own resizing differs by
tens of grey levels from one library to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    if in_fixed_point(images.device):
        return _interpolate(images, height, width, antialias)
    return as_levels(_interpolate(images.float(), height, width, antialias))


def _interpolate(images: Tensor, height: int, width: int, antialias: bool) -> Tensor:
    """Resize `(n, channels, height, width)` bilinearly in their own type."""
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=antialias)


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
        images = resize(images, height, width, antialias)
        self._images = images if in_fixed_point(images.device) else images.float()
        self._antialias = antialias

    def crop(self, plan: FramePlan) -> Tensor:
        """Frames and crop of a plan: `(num_frames, channels, side, side)`; do not write to it.

        uint8 on a CPU; elsewhere float32 that ``as_levels`` rounds, for many views at once.
        """
        height, width = self._images.shape[2:]
        side = plan.side
        if plan.crop is None:
            top, left, box_height, box_width = (height - side) // 2, (width - side) // 2, side, side
        else:
            top, left, box_height, box_width = plan.crop.box(height, width)
        # A clip shorter than the window repeats frames: crop each once.
        numbers, places = np.unique(np.array(plan.indices), return_inverse=True)
        at = torch.from_numpy(np.searchsorted(self._needed, numbers)).to(self._images.device)
        images = self._images[:, :, top : top + box_height, left : left + box_width].index_select(0, at)
        if images.dtype == torch.uint8:
            images = resize(images, side, side, self._antialias)
        elif (box_height, box_width) != (side, side):
            images = _interpolate(images, side, side, self._antialias)
        if np.array_equal(places, np.arange(len(numbers))):
            return images
        return images[torch.from_numpy(places).to(images.device)]


def in_fixed_point(device: torch.device) -> bool:
    """Whether images are resized in uint8: on a CPU; other devices go through float32."""
    return device.type == "cpu"


def as_levels(images: Tensor) -> Tensor:
    """Round what ``ClipImages.crop`` returned to uint8; uint8 stays."""
    return images if images.dtype == torch.uint8 else images.round().clamp_(0, 255).to(torch.uint8)


def mirror(images: Tensor, which: Sequence[bool]) -> Tensor:
    """Mirror those views left-right, whatever the axes before the last; none: the input itself."""
    if not any(which):
        return images
    turned = images.flip(-1)
    return turned if all(which) else torch.where(per_view(which, images), turned, images)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 `(views, num_frames, channels, side, side)` into float32 `(views, channels, num_frames, side, side)`.

    ``(level - mean) / std`` per channel, mean and std in grey levels.
    """
    values = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    shape = (-1, 1, 1, 1)
    values -= torch.tensor(mean, device=values.device).view(shape)
    values /= torch.tensor(std, device=values.device).view(shape)
    return values


def shift(values: Tensor, steps: Sequence[tuple[int, int]], fill: Tensor) -> Tensor:
    """Translate each view `(views, channels, num_frames, side, side)` by whole pixels.

    Args:
        values: the views; returned as they are where none moves.
        steps: per view how far down and right.
        fill: `(channels,)`, what comes in.
    """
    if not any(map(any, steps)):
        return values
    height, width = values.shape[3:]
    if len(steps) > 1:
        down, right = torch.tensor(steps, device=values.device).T.unsqueeze(2)
        row, column = (
            torch.arange(height, device=values.device) - down,
            torch.arange(width, device=values.device) - right,
        )
        source = row.clamp(0, height - 1)[:, :, None] * width + column.clamp(0, width - 1)[:, None]
        outside = ((row < 0) | (row >= height))[:, :, None] | ((column < 0) | (column >= width))[:, None]
        moved = values.flatten(3).gather(3, source.flatten(1)[:, None, None].expand(*values.shape[:3], -1))
        return torch.where(outside[:, None, None], fill.view(-1, 1, 1, 1), moved.view(values.shape))
    ((down, right),) = steps
    moved = torch.empty_like(values)
    top, left = max(down, 0), max(right, 0)
    bottom, end = height + min(down, 0), width + min(right, 0)
    moved[..., top:bottom, left:end] = values[..., max(-down, 0) : height - top, max(-right, 0) : width - left]
    for uncovered in (moved[..., :top, :], moved[..., bottom:, :], moved[..., :left], moved[..., end:]):
        uncovered.copy_(fill.view(-1, 1, 1, 1))
    return moved


def cut_out(values: Tensor, squares: Sequence[tuple[int, int, int] | None], fill: Tensor) -> Tensor:
    """Blank a square of each view `(views, channels, num_frames, side, side)`.

    Args:
        values: the views; one view alone is written to.
        squares: per view top, left and side in pixels, or None.
        fill: `(channels,)`, what the square holds.
    """
    if not any(squares):
        return values
    if len(squares) > 1:
        top, left, side = torch.tensor([square or (0, 0, 0) for square in squares], device=values.device).T.unsqueeze(2)
        row, column = (torch.arange(size, device=values.device) for size in values.shape[3:])
        rows, columns = (row >= top) & (row < top + side), (column >= left) & (column < left + side)
        inside = rows[:, :, None] & columns[:, None]
        return torch.where(inside[:, None, None], fill.view(-1, 1, 1, 1), values)
    top, left, side = squares[0] or (0, 0, 0)
    values[..., top : top + side, left : left + side] = fill.view(-1, 1, 1, 1)
    return values


def per_view(which: Sequence[bool], like: Tensor) -> Tensor:
    """Booleans per view, shaped to go with ``like``."""
    return torch.tensor(which, device=like.device).view(-1, *[1] * (like.ndim - 1))


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
