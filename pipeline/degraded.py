"""Tracks that are there and show nothing: silence, black and frozen pictures. Pure functions on decoded tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UsageError

SILENT, BLACK, FROZEN = "silent", "black", "frozen"
LOWEST_DBFS = -200.0  # what digital zero is called: a number that JSON can hold
BLOCKS = 8  # a picture is judged in so many blocks a side
SHORT_SIDE = 128  # pixels of the short side that are looked at; more say nothing else
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue


@dataclass(frozen=True)
class DegradedLevels:
    """Below which levels a track is degraded; 0 grey levels, and minus infinity, switch a check off."""

    silence_dbfs: float = -60.0  # root mean square of the samples, in decibels of full scale
    black_level: float = 8.0  # of 255: mean luma of the pictures, and its spread inside a picture
    frozen_level: float = 1.0  # of 255: see ``PictureLevels.change``

    def __post_init__(self) -> None:
        if math.isnan(self.silence_dbfs) or self.silence_dbfs > 0:
            raise UsageError(f"silence is {self.silence_dbfs} dBFS; full scale is 0, so it must be 0 or less, like -60")
        for name, value in (("black level", self.black_level), ("frozen level", self.frozen_level)):
            if not 0 <= value <= 255:
                raise UsageError(f"{name} is {value}; it must be from 0 (never) to 255 grey levels")

    def to_json(self) -> dict[str, float | None]:
        """Plain values; ``None`` where silence is never found."""
        silence = self.silence_dbfs if math.isfinite(self.silence_dbfs) else None
        return {"silence_dbfs": silence, "black_level": self.black_level, "frozen_level": self.frozen_level}


@dataclass(frozen=True)
class PictureLevels:
    """What pictures look like, in grey levels 0..255."""

    luma: float  # mean over pixels and pictures
    spread: float  # standard deviation over the pixels of a picture, mean over pictures
    # Mean over neighbouring pictures of the mean absolute difference in that one of 8 x 8 blocks where it is largest: a
    # small thing that moves in front of a still camera counts, a key frame's new rounding hardly does. None: there is
    # one picture.
    change: float | None


@dataclass(frozen=True)
class Finding:
    """Whether a track is degraded, and what was measured."""

    code: str  # "": it is not; else silent, black or frozen
    detail: str  # one sentence with the values
    measured: Mapping[str, float] = field(default_factory=dict)


def picture_levels(frames: Tensor) -> PictureLevels:
    """Measure pictures.

    Args:
        frames: `(n, height, width, 3)` uint8 RGB in the order they are shown, at any size, n >= 1, on any device.
    """
    step = max(1, min(frames.shape[1:3]) // SHORT_SIDE)
    red, green, blue = (frames[:, ::step, ::step, channel].float() for channel in range(3))
    luma = red.mul_(_LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    change = None
    if len(luma) > 1:
        moved = (luma[1:] - luma[:-1]).abs_()
        blocks = F.adaptive_avg_pool2d(moved[:, None], BLOCKS)
        change = float(blocks.flatten(1).amax(1).mean())
    pixels = luma.flatten(1)
    means = pixels.mean(1)
    spread = (pixels - means[:, None]).square_().mean(1).sqrt().mean()  # as Tensor.std, in a third of its time
    return PictureLevels(float(means.mean()), float(spread), change)


def judge_pictures(levels: PictureLevels, limits: DegradedLevels) -> Finding:
    """Black: mean luma and its spread are below ``black_level``. Frozen: the change is below ``frozen_level``.

    A dark scene with a lamp in it has a spread and is not black; pictures that are black are not called frozen too.
    """
    measured = {"luma": round(levels.luma, 3), "spread": round(levels.spread, 3)}
    if levels.change is not None:
        measured["change"] = round(levels.change, 3)
    if levels.luma < limits.black_level and levels.spread < limits.black_level:
        detail = (
            f"the picture is black: mean luma {levels.luma:.1f} with a spread of {levels.spread:.1f}, both below "
            f"{limits.black_level:g} of 255"
        )
        return Finding(BLACK, detail, measured)
    if levels.change is not None and levels.change < limits.frozen_level:
        detail = f"the picture is frozen: it changes by {levels.change:.2f} grey levels, below {limits.frozen_level:g}"
        return Finding(FROZEN, detail, measured)
    return Finding("", "", measured)


def sound_dbfs(samples: Tensor) -> float:
    """Root mean square of samples `(n,)`, full scale -1..1, in decibels of full scale; digital zero is -200."""
    power = float(samples.double().square().mean()) if samples.numel() else 0.0
    return max(LOWEST_DBFS, 10 * math.log10(power)) if power > 0 else LOWEST_DBFS


def judge_sound(dbfs: float, limits: DegradedLevels) -> Finding:
    """Silent: the level is below ``silence_dbfs``."""
    measured = {"dbfs": round(dbfs, 2)}
    if dbfs < limits.silence_dbfs:
        zero = "digital zero" if dbfs <= LOWEST_DBFS else f"{dbfs:.1f} dBFS"
        return Finding(SILENT, f"the sound is silent: {zero}, below {limits.silence_dbfs:g} dBFS", measured)
    return Finding("", "", measured)
