"""The thirteen image operations of strong video views, batched over frames.

Each takes and returns uint8 `(frames, 3, height, width)` and treats all frames alike; what an operation measures
(histogram, extremes, mean) it measures per frame, as PIL does on single images. The reference applies them to
normalised values, where clamping and casting to uint8 destroy the negative half; here they see pixels 0..255, which
is what they are defined for. ``paper`` has the reference's.

Levels are those of the SSMDG released code for a magnitude M in 0.05..0.2; a negative M, which the reference never
draws, mirrors the operation. Frames of several views come with one magnitude per view: equally many consecutive frames
belong to each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Magnitude = float | Sequence[float]  # of all frames, or one per view
Affine = tuple[float, float, float, float, float, float]  # two rows of three

_FACTOR_PER_MAGNITUDE = 0.9  # enhancement factor - 1
_DEGREES_PER_MAGNITUDE = 30.0  # of rotation and shear
_SHIFT_PER_MAGNITUDE = 0.4  # share of the side


def auto_contrast(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Stretch each channel of each frame to 0..255; a constant channel stays."""
    low = frames.amin((2, 3), keepdim=True).float()
    high = frames.amax((2, 3), keepdim=True).float()
    span = high - low
    stretched = ((frames - low) * 255 / span.clamp(min=1)).to(torch.uint8)
    return torch.where(span > 0, stretched, frames)


def equalize(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
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


def posterize(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Keep the ``int(4 M) + 4`` highest bits: 4 bits for every M drawn."""
    kept = per_frame(frames, magnitude, lambda m: 256 - 2 ** (8 - min(int(4 * m) + 4, 8)))
    return frames.bitwise_and(kept.to(torch.uint8))


def solarize(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Invert pixels of at least ``256 - 255 M``."""
    return torch.where(frames >= per_frame(frames, magnitude, lambda m: 256 - 255 * m), 255 - frames, frames)


def color(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Change the saturation by the factor ``1 + 0.9 M``: blend with the grey image."""
    return _blend(_grey(frames), frames, magnitude)


def contrast(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Change the contrast by the factor ``1 + 0.9 M``: blend with the mean grey of each frame."""
    mean = _grey(frames).float().mean((1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor(), frames, magnitude)


def brightness(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Change the brightness by the factor ``1 + 0.9 M``."""
    return _blend(torch.zeros((), device=frames.device), frames, magnitude)


def sharpness(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Change the sharpness by the factor ``1 + 0.9 M``: blend with a 3 x 3 smoothed image; the border stays."""
    if min(frames.shape[2:]) < 3:
        return frames
    values = frames.float()
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = values.clone()
    smooth[:, :, 1:-1, 1:-1] = ((box + 4 * values[:, :, 1:-1, 1:-1]) / 13 + 0.5).floor()
    return _blend(smooth, frames, magnitude)


def rotate(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Rotate by ``30 M`` degrees counter-clockwise about the centre."""

    def turn(m: float) -> Affine:
        angle = math.radians(_DEGREES_PER_MAGNITUDE * m)
        return math.cos(angle), -math.sin(angle), 0.0, math.sin(angle), math.cos(angle), 0.0

    return _warp(frames, magnitude, turn, fill)


def shear_x(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Shear rows by ``30 M`` degrees about the centre; positive moves the lower half to the left."""
    return _warp(frames, magnitude, lambda m: (1.0, _slope(m), 0.0, 0.0, 1.0, 0.0), fill)


def shear_y(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Shear columns by ``30 M`` degrees about the centre; positive moves the right half up."""
    return _warp(frames, magnitude, lambda m: (1.0, 0.0, 0.0, _slope(m), 1.0, 0.0), fill)


def translate_x(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Move right by the share ``0.4 M`` of the width, to the nearest pixel."""
    width = frames.shape[3]
    return _warp(frames, magnitude, lambda m: (1.0, 0.0, -_SHIFT_PER_MAGNITUDE * m * width, 0.0, 1.0, 0.0), fill)


def translate_y(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Move down by the share ``0.4 M`` of the height, to the nearest pixel."""
    height = frames.shape[2]
    return _warp(frames, magnitude, lambda m: (1.0, 0.0, 0.0, 0.0, 1.0, -_SHIFT_PER_MAGNITUDE * m * height), fill)


@dataclass(frozen=True, slots=True)
class Operation:
    """An image operation and whether its magnitude has a sign."""

    apply: Callable[[Tensor, Magnitude, Sequence[float]], Tensor]  # frames, magnitude, value of uncovered pixels
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


def per_frame(frames: Tensor, magnitude: Magnitude, of: Callable[[float], float]) -> Tensor:
    """A number per frame, computed from its view's magnitude: float32 `(frames, 1, 1, 1)`, or `()` for all alike."""
    if isinstance(magnitude, int | float):
        return torch.tensor(of(magnitude), dtype=torch.float32, device=frames.device)
    each = len(frames) // len(magnitude)
    values = torch.tensor([of(m) for m in magnitude for _ in range(each)], dtype=torch.float32, device=frames.device)
    return values.view(-1, 1, 1, 1)


def factor_of(magnitude: float) -> float:
    """The enhancement factor ``1 + 0.9 M``."""
    return 1 + _FACTOR_PER_MAGNITUDE * magnitude


def _slope(magnitude: float) -> float:
    """Pixels to the side per pixel down of a shear by ``30 M`` degrees."""
    return math.tan(math.radians(_DEGREES_PER_MAGNITUDE * magnitude))


def _grey(frames: Tensor) -> Tensor:
    """Luma of uint8 RGB frames by PIL's 16-bit weights: int32 `(frames, 1, height, width)`."""
    red, green, blue = frames.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).unsqueeze(1)


def _blend(other: Tensor, frames: Tensor, magnitude: Magnitude) -> Tensor:
    """Return ``other + (1 + 0.9 M) * (frames - other)``, clipped to 0..255 and cut to whole levels as PIL does."""
    factor = per_frame(frames, magnitude, factor_of)
    return (other + factor * (frames.float() - other)).clamp(0, 255).to(torch.uint8)


def _warp(frames: Tensor, magnitude: Magnitude, inverse: Callable[[float], Affine], fill: Sequence[float]) -> Tensor:
    """Resample by nearest neighbour, the reference's interpolation for these operations.

    Positions are computed in float64 by single additions and products, so that all devices find the same pixels.

    Args:
        frames: `(frames, channels, height, width)` of any type.
        magnitude: of all frames, or one per view.
        inverse: makes of a magnitude the matrix `(2, 3)`, row by row, that takes an output position (right, down, 1)
            from the image centre to an input position, in pixels.
        fill: value per channel of pixels that come from outside.
    """
    height, width = frames.shape[2:]
    magnitudes = [magnitude] if isinstance(magnitude, int | float) else magnitude
    matrix = torch.tensor([inverse(m) for m in magnitudes], dtype=torch.float64, device=frames.device)
    right = torch.arange(width, dtype=torch.float64, device=frames.device) + (0.5 - width / 2)
    down = torch.arange(height, dtype=torch.float64, device=frames.device)[:, None] + (0.5 - height / 2)
    a, b, c, d, e, f = matrix.T.reshape(6, -1, 1, 1)
    column = (a * right + b * down + c + width / 2).floor_().long()
    row = (d * right + e * down + f + height / 2).floor_().long()
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    source = (row * width + column).masked_fill_(outside, 0).flatten(1)
    if len(magnitudes) == 1:
        moved = frames.flatten(2).index_select(2, source[0]).view(frames.shape)
        outside = outside[0]
    else:
        views = frames.reshape(len(magnitudes), -1, height * width)
        moved = views.gather(2, source[:, None].expand(views.shape)).view(frames.shape)
        outside = outside.repeat_interleave(len(frames) // len(magnitudes), 0).unsqueeze(1)
    blank = torch.tensor(fill, dtype=frames.dtype, device=frames.device).view(1, -1, 1, 1)
    return torch.where(outside, blank, moved)
