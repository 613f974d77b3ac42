"""The thirteen image operations of strong video views, batched over frames.

Each takes and returns uint8 `(frames, 3, height, width)` and treats all frames alike; what an operation measures
(histogram, extremes, mean) it measures per frame, as PIL does on single images. The reference applies them to
normalised values, where clamping and casting to uint8 destroy the negative half; here they see pixels 0..255, which
is what they are defined for.

Levels are those of the SSMDG released code for a magnitude M in 0.05..0.2; a negative M, which the reference never
draws, mirrors the operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FACTOR_PER_MAGNITUDE = 0.9  # enhancement factor - 1
_DEGREES_PER_MAGNITUDE = 30.0  # of rotation and shear
_SHIFT_PER_MAGNITUDE = 0.4  # share of the side


def auto_contrast(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Stretch each channel of each frame to 0..255; a constant channel stays."""
    low = frames.amin((2, 3), keepdim=True).float()
    high = frames.amax((2, 3), keepdim=True).float()
    span = high - low
    stretched = ((frames - low) * 255 / span.clamp(min=1)).to(torch.uint8)
    return torch.where(span > 0, stretched, frames)


def equalize(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Equalise the histogram of each channel of each frame, by PIL's integer rule."""
    images = frames.shape[0] * frames.shape[1]
    codes = frames.reshape(images, -1).long() + 256 * torch.arange(images, device=frames.device)[:, None]
    counts = torch.bincount(codes.flatten(), minlength=256 * images).view(images, 256)
    # The step leaves out the brightest level present, so that this level maps to 255.
    brightest = 255 - (counts.flip(1) > 0).int().argmax(1, keepdim=True)
    step = (counts.sum(1, keepdim=True) - counts.gather(1, brightest)) // 255
    below = counts.cumsum(1) - counts
    table = torch.div(below + step // 2, step.clamp(min=1), rounding_mode="floor").clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=frames.device)).to(torch.uint8)
    return table.flatten()[codes].view(frames.shape)


def posterize(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Keep the ``int(4 M) + 4`` highest bits: 4 bits for every M drawn."""
    bits = min(int(4 * magnitude) + 4, 8)
    return frames.bitwise_and(256 - 2 ** (8 - bits))


def solarize(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Invert pixels of at least ``256 - 255 M``."""
    return torch.where(frames >= 256 - 255 * magnitude, 255 - frames, frames)


def color(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Change the saturation by the factor ``1 + 0.9 M``: blend with the grey image."""
    return _blend(_grey(frames), frames, magnitude)


def contrast(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Change the contrast by the factor ``1 + 0.9 M``: blend with the mean grey of each frame."""
    mean = _grey(frames).float().mean((1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor(), frames, magnitude)


def brightness(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Change the brightness by the factor ``1 + 0.9 M``."""
    return _blend(torch.zeros((), device=frames.device), frames, magnitude)


def sharpness(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Change the sharpness by the factor ``1 + 0.9 M``: blend with a 3 x 3 smoothed image; the border stays."""
    if min(frames.shape[2:]) < 3:
        return frames
    values = frames.float()
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = values.clone()
    smooth[:, :, 1:-1, 1:-1] = ((box + 4 * values[:, :, 1:-1, 1:-1]) / 13 + 0.5).floor()
    return _blend(smooth, frames, magnitude)


def rotate(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Rotate by ``30 M`` degrees counter-clockwise about the centre."""
    angle = math.radians(_DEGREES_PER_MAGNITUDE * magnitude)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    return _warp(frames, turn, fill)


def shear_x(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Shear rows by ``30 M`` degrees about the centre; positive moves the lower half to the left."""
    slope = math.tan(math.radians(_DEGREES_PER_MAGNITUDE * magnitude))
    return _warp(frames, np.array([[1.0, slope, 0.0], [0.0, 1.0, 0.0]]), fill)


def shear_y(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Shear columns by ``30 M`` degrees about the centre; positive moves the right half up."""
    slope = math.tan(math.radians(_DEGREES_PER_MAGNITUDE * magnitude))
    return _warp(frames, np.array([[1.0, 0.0, 0.0], [slope, 1.0, 0.0]]), fill)


def translate_x(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Move right by the share ``0.4 M`` of the width, to the nearest pixel."""
    move = _SHIFT_PER_MAGNITUDE * magnitude * frames.shape[3]
    return _warp(frames, np.array([[1.0, 0.0, -move], [0.0, 1.0, 0.0]]), fill)


def translate_y(frames: Tensor, magnitude: float, fill: Sequence[int]) -> Tensor:
    """Move down by the share ``0.4 M`` of the height, to the nearest pixel."""
    move = _SHIFT_PER_MAGNITUDE * magnitude * frames.shape[2]
    return _warp(frames, np.array([[1.0, 0.0, 0.0], [0.0, 1.0, -move]]), fill)


@dataclass(frozen=True, slots=True)
class Operation:
    """An image operation and whether its magnitude has a sign."""

    apply: Callable[[Tensor, float, Sequence[int]], Tensor]  # frames, magnitude, grey levels of uncovered pixels
    signed: bool  # a negative magnitude means something: turn back, shift left, darken


OPERATIONS: dict[str, Operation] = {  # the order is part of the draws
    "AutoContrast": Operation(auto_contrast, signed=False),
    "Equalize": Operation(equalize, signed=False),
    "Posterize": Operation(posterize, signed=False),
    "Solarize": Operation(solarize, signed=False),
    "Color": Operation(color, signed=True),
    "Contrast": Operation(contrast, signed=True),
    "Brightness": Operation(brightness, signed=True),
    "Sharpness": Operation(sharpness, signed=True),
    "Rotate": Operation(rotate, signed=True),
    "ShearX": Operation(shear_x, signed=True),
    "ShearY": Operation(shear_y, signed=True),
    "TranslateX": Operation(translate_x, signed=True),
    "TranslateY": Operation(translate_y, signed=True),
}


def _grey(frames: Tensor) -> Tensor:
    """Luma of uint8 RGB frames by PIL's 16-bit weights: int32 `(frames, 1, height, width)`."""
    red, green, blue = frames.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).unsqueeze(1)


def _blend(other: Tensor, frames: Tensor, magnitude: float) -> Tensor:
    """Return ``other + (1 + 0.9 M) * (frames - other)``, clipped to 0..255 and cut to whole levels as PIL does."""
    factor = 1 + _FACTOR_PER_MAGNITUDE * magnitude
    return (other + factor * (frames.float() - other)).clamp(0, 255).to(torch.uint8)


def _warp(frames: Tensor, inverse: NDArray[np.float64], fill: Sequence[int]) -> Tensor:
    """Resample by nearest neighbour, the reference's interpolation for these operations.

    Args:
        frames: uint8 `(frames, 3, height, width)`.
        inverse: `(2, 3)`, takes an output position (right, down, 1) from the image centre to an input position, in
            pixels.
        fill: grey level per channel of pixels that come from outside.
    """
    height, width = frames.shape[2:]
    right, down = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    x, y = np.einsum("ij,jhw->ihw", inverse, np.stack([right, down, np.ones_like(right)]))
    column = np.floor(x + width / 2).astype(np.int64)
    row = np.floor(y + height / 2).astype(np.int64)
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    source = torch.from_numpy(np.where(outside, 0, row * width + column).ravel()).to(frames.device)
    moved = frames.flatten(2).index_select(2, source).view(frames.shape)
    blank = torch.tensor(fill, dtype=torch.uint8, device=frames.device).view(1, -1, 1, 1)
    return torch.where(torch.from_numpy(outside).to(frames.device), blank, moved)
