"""The ``paper`` variant of the views: what the papers' code does where ``strict`` puts it right.

The source is the SSMDG released code (arXiv 2602.22917) with the pipelines of mmaction that it runs on. Draws are those
of ``strict`` but for the places named here, so the variants can be compared view by view.

| what | paper | strict |
| --- | --- | --- |
| resizing, both times | OpenCV's bilinear filter of two pixels, whatever the scale | antialiased |
| operations of strong video | on normalised values, see below | on levels 0..255, then normalised |
| sign of their magnitude | always positive | drawn where the operation has one |
| pixels that a warp uncovers | 0 after normalising (black after an operation to 0..1) | the channel mean, as a level |
| second mirror of flow | u keeps its sign | u is negated |
| uncovered and blanked flow | 0 after normalising | no motion, level 128; the same where the mean is 128 |
| strong flow | a weak view by its own draws, then the square, then noise | the same |
| pitch of sound | shifted over the whole clip, then cut | cut a vocoder frame behind what is kept, then shifted |
| rows masked in strong sound | 18, but at most a third of all | 18 of 257, the same share of others |
| columns masked in strong sound | 40, none where there are no more | 40 of 1,004, the same share of others |
| where masks start | never at the last possible row or column | anywhere |

Both leave out what the reference does to single clips by accident: it stops at empty sound, and in a tiny image it may
round the side of a crop to nothing. Its pitch shift is librosa's, with a resampler of its own; ``pitch`` has ours for
both. Spectrograms that are not standardised do not occur in it: their masks hold the mean and their noise is scaled, as
in ``strict``.

**Image operations on normalised values**, about -2.1 to 2.6:

* AutoContrast, Equalize, Posterize, Solarize: 255 times the value is cut to a whole number and turned to uint8, then
  the operation runs on that and divides by 255, so the result is in 0..1. C++ and so torch leave the conversion of what
  lies outside 0..255 undefined (an x86 CPU usually keeps the low eight bits, others clamp). Here the low eight bits of
  the whole number are kept on every device: -1 becomes 255, 256 becomes 0.
* Color, Contrast, Brightness, Sharpness: blended as torchvision's ``adjust_*`` do, and so clamped to 0..1.
* Rotate, ShearX, ShearY, TranslateX, TranslateY move values as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from extractors.views import operations
from extractors.views.operations import Magnitude, Operation, factor_of, per_frame

_GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def auto_contrast(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Stretch each channel of each frame to 0..1 after the turn to uint8; a constant channel stays."""
    levels = as_bytes(frames)
    low, high = (extreme.float() for extreme in (levels.amin((2, 3), keepdim=True), levels.amax((2, 3), keepdim=True)))
    constant = low == high
    scale = torch.where(constant, 1.0, 255 / (high - low))
    stretched = ((levels - low.masked_fill(constant, 0)) * scale).clamp_(0, 255).to(torch.uint8)
    return stretched.float() / 255


def equalize(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Equalise the histogram of each channel of each frame after the turn to uint8."""
    return operations.equalize(as_bytes(frames), magnitude, fill).float() / 255


def posterize(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Keep the ``int(4 M) + 4`` highest bits after the turn to uint8."""
    return operations.posterize(as_bytes(frames), magnitude, fill).float() / 255


def solarize(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Invert what is at least ``256 - 255 M`` after the turn to uint8."""
    return operations.solarize(as_bytes(frames), magnitude, fill).float() / 255


def color(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Blend with the grey image by the factor ``1 + 0.9 M``."""
    return _blend(_grey(frames), frames, magnitude)


def contrast(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Blend with the mean grey of each frame by the factor ``1 + 0.9 M``."""
    return _blend(_grey(frames).mean((1, 2, 3), keepdim=True, dtype=torch.float64).float(), frames, magnitude)


def brightness(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Multiply by the factor ``1 + 0.9 M``."""
    return _blend(torch.zeros((), device=frames.device), frames, magnitude)


def sharpness(frames: Tensor, magnitude: Magnitude, fill: Sequence[float]) -> Tensor:
    """Blend with a 3 x 3 smoothed image by the factor ``1 + 0.9 M``; the border is only clamped."""
    if min(frames.shape[2:]) < 3:
        return frames
    rows = frames[:, :, :-2] + frames[:, :, 1:-1] + frames[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = frames.clone()
    smooth[:, :, 1:-1, 1:-1] = (box + 4 * frames[:, :, 1:-1, 1:-1]) / 13
    return _blend(smooth, frames, magnitude)


PAPER_OPERATIONS: dict[str, Operation] = {  # the names of ``OPERATIONS``, on normalised float32 frames
    "AutoContrast": Operation(auto_contrast, signed=False),
    "Equalize": Operation(equalize, signed=False),
    "Posterize": Operation(posterize, signed=False),
    "Solarize": Operation(solarize, signed=False),
    "Color": Operation(color, signed=True),
    "Contrast": Operation(contrast, signed=True),
    "Brightness": Operation(brightness, signed=True),
    "Sharpness": Operation(sharpness, signed=True),
    **{name: operations.OPERATIONS[name] for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")},
}


def as_bytes(frames: Tensor) -> Tensor:
    """Turn float32 frames to uint8: 255 times the value, cut towards 0, of which the low eight bits are kept."""
    return (frames * 255).to(torch.int32).bitwise_and_(255).to(torch.uint8)


def _grey(frames: Tensor) -> Tensor:
    """Grey image of RGB frames: float32 `(frames, 1, height, width)`."""
    red, green, blue = (weight * channel for weight, channel in zip(_GREY, frames.unbind(1), strict=True))
    return (red + green + blue).unsqueeze(1)


def _blend(other: Tensor, frames: Tensor, magnitude: Magnitude) -> Tensor:
    """Return ``factor * frames + (1 - factor) * other``, clamped to 0..1."""
    ours, theirs = per_frame(frames, magnitude, factor_of), per_frame(frames, magnitude, lambda m: 1 - factor_of(m))
    return (ours * frames + theirs * other).clamp_(0, 1)
