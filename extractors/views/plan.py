"""Everything random about a view of frames, decided before a frame is decoded.

A plan is cheap and pure: it needs the number of frames of a clip and no pixel, so that only the frames it names have
to be decoded. The rules are those of the SSMDG released code (arXiv 2602.22917), put right where the code errs; each
difference stands at the function that makes it; ``paper`` lists them and has a variant without them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from extractors.inputs import FrameInput
from extractors.views.draws import Variant, check_variant, view_generator
from extractors.views.operations import OPERATIONS
from extractors.views.sampling import clean_offset, frame_indices, interval_at_rate, random_offset

FRAME_MODALITIES = ("video", "flow")

_CROP_ATTEMPTS = 10
_ASPECT_RANGE = (3 / 4, 4 / 3)  # width / height
_SHIFT_SHARE = 0.1  # largest translation of a weak view, share of the side
_CUTOUT_SHARE = 0.15  # side of the cut-out square, share of the side
_MAGNITUDE_RANGE = (0.05, 0.2)
_NOISE_STD_RANGE = (0.02, 0.08)  # of a strong flow view, in normalised values


@dataclass(frozen=True, slots=True)
class CropDraw:
    """Draws of a random resized crop; ``box`` turns them into pixels once the image size is known."""

    areas: tuple[float, ...]  # candidate area shares of the resized image, tried in order
    aspects: tuple[float, ...]  # candidate width / height, log-uniform in 3/4..4/3
    top: float  # in [0, 1): position of the box between the highest and the lowest place it fits
    left: float  # in [0, 1): the same from left to right

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return ``(top, left, height, width)`` in pixels of a `height` x `width` image.

        The first candidate that fits is taken; where none does, the largest centred square. A box is at least one
        pixel high and wide (the reference can round a side to nothing in tiny images).
        """
        for area, aspect in zip(self.areas, self.aspects, strict=True):
            pixels = area * height * width
            box_width = max(1, round((pixels * aspect) ** 0.5))
            box_height = max(1, round((pixels / aspect) ** 0.5))
            if box_height <= height and box_width <= width:
                top = int(self.top * (height - box_height + 1))
                left = int(self.left * (width - box_width + 1))
                return top, left, box_height, box_width
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side


@dataclass(frozen=True, slots=True)
class FramePlan:
    """One view of the frames of a clip: which frames, and what is done to them, in this order."""

    view: str  # clean0, weak1, strong1, ...
    indices: tuple[int, ...]  # frame numbers of the clip, one per time step; a short clip repeats
    side: int  # side of the square result, pixels
    crop: CropDraw | None = None  # None: centre crop of ``side`` pixels
    flip: bool = False  # mirror left-right (flow: u negated)
    second_flip: bool = False  # the weak view's own mirror, on top of ``flip``
    shift: tuple[int, int] = (0, 0)  # translation (down, right), pixels
    operations: tuple[tuple[str, float], ...] = ()  # (name in OPERATIONS, signed magnitude), applied in order
    cutout: tuple[int, int, int] | None = None  # (top, left, side) of the blanked square, pixels
    noise_std: float = 0.0  # Gaussian noise, in normalised values
    noise_seed: int = 0  # key of the noise

    @property
    def mirrored(self) -> bool:
        """Whether the picture ends up mirrored: two mirrors are none."""
        return self.flip != self.second_flip

    @property
    def base(self) -> Hashable:
        """What weak i and strong i have in common: frames, crop and mirror."""
        return self.indices, self.side, self.crop, self.flip


def plan_frames(
    clip_id: str,
    total: int,
    spec: FrameInput,
    views: Sequence[tuple[str, int]],
    view_seed: int,
    modality: str,
    rate_hz: float | None = None,
    *,
    variant: Variant = "strict",
) -> list[FramePlan]:
    """Plan views of a clip of ``total`` frames.

    Weak i and strong i share frames, crop and mirror ("one pipeline output"). A plan depends on clip_id, view,
    view_seed, total, spec, modality and, where the spec wants frames per second, the clip's rate, not on the other
    views. RGB and flow are drawn independently, as in the reference.

    Args:
        clip_id: identity of the clip.
        total: number of frames (of flow images) in the clip.
        spec: what the backbone wants.
        views: pairs of kind (``clean``, ``weak``, ``strong``) and index.
        view_seed: seed of all views.
        modality: ``video`` or ``flow``.
        rate_hz: frames per second of the clip (of its flow images); read only where ``spec.rate_hz`` is given.
        variant: ``strict`` or ``paper``; all draws are the same, but ``paper`` has no negative magnitudes.

    Raises:
        ValueError: no frames, an unknown kind, modality or variant, a centre crop larger than the resized image, or no
            frame rate where the spec wants frames per second.
    """
    if total < 1:
        raise ValueError(f"clip {clip_id!r} has {total} {modality} frames; views need at least 1")
    if modality not in FRAME_MODALITIES:
        raise ValueError(f"modality {modality!r} has no frames; allowed: {', '.join(FRAME_MODALITIES)}")
    check_variant(variant)
    if spec.clean_size > spec.resize_short:
        raise ValueError(
            f"clean_size {spec.clean_size} is larger than resize_short {spec.resize_short}; "
            "a centre crop must fit into the resized image"
        )
    if spec.rate_hz is not None:
        if rate_hz is None:
            raise ValueError(
                f"clip {clip_id!r} has no known frame rate and {spec.rate_hz:g} frames per second are to be sampled "
                "from it; state its rate_hz in the manifest"
            )
        interval = interval_at_rate(total, spec.num_frames, rate_hz, spec.rate_hz)
        spec = replace(spec, interval=interval, rate_hz=None)
    plans = [_plan_view(clip_id, total, spec, kind, index, view_seed, modality) for kind, index in views]
    return plans if variant == "strict" else [_unsigned(plan) for plan in plans]


def needed_indices(plans: Sequence[FramePlan]) -> NDArray[np.int64]:
    """Frame numbers that the plans read: sorted, each once, shape `(n,)`."""
    return np.unique(np.array([i for plan in plans for i in plan.indices], dtype=np.int64))


def _plan_view(
    clip_id: str, total: int, spec: FrameInput, kind: str, index: int, view_seed: int, modality: str
) -> FramePlan:
    """Plan one view."""
    view = f"{kind}{index}"
    if kind == "clean":
        return FramePlan(view, _indices(total, spec, clean_offset(total, spec.window)), spec.clean_size)
    if kind not in ("weak", "strong"):
        raise ValueError(f"view kind {kind!r}; allowed: clean, weak, strong")

    rng = view_generator(view_seed, clip_id, modality, "crop", index)
    indices = _indices(total, spec, random_offset(rng, total, spec.window))
    crop = _draw_crop(rng, spec.min_scale)
    flip = bool(rng.random() < 0.5)

    rng = view_generator(view_seed, clip_id, modality, kind, index)
    if kind == "weak":
        second_flip, shift = _draw_weak(rng, spec.size)
        return FramePlan(view, indices, spec.size, crop, flip, second_flip, shift)
    if modality == "video":
        operations = _draw_operations(rng)
        cutout = _draw_cutout(rng, spec.size)
        return FramePlan(view, indices, spec.size, crop, flip, operations=operations, cutout=cutout)
    # A strong flow view makes the weak view's draws anew, as the reference does.
    second_flip, shift = _draw_weak(rng, spec.size)
    cutout = _draw_cutout(rng, spec.size)
    noise_std = float(rng.uniform(*_NOISE_STD_RANGE))
    noise_seed = int(rng.integers(2**63))
    return FramePlan(
        view, indices, spec.size, crop, flip, second_flip, shift, (), cutout, noise_std=noise_std, noise_seed=noise_seed
    )


def _unsigned(plan: FramePlan) -> FramePlan:
    """The plan with the magnitudes of its operations, but never their signs."""
    return replace(plan, operations=tuple((name, abs(magnitude)) for name, magnitude in plan.operations))


def _indices(total: int, spec: FrameInput, offset: int) -> tuple[int, ...]:
    """Frame numbers of a view as plain integers."""
    return tuple(frame_indices(total, spec.num_frames, spec.interval, offset).tolist())


def _draw_crop(rng: np.random.Generator, min_scale: float) -> CropDraw:
    """Draw a random resized crop: area share in min_scale..1, aspect log-uniform in 3/4..4/3, ten candidates."""
    low, high = np.log(_ASPECT_RANGE)
    aspects = np.exp(rng.uniform(low, high, _CROP_ATTEMPTS)).tolist()
    areas = rng.uniform(min_scale, 1.0, _CROP_ATTEMPTS).tolist()
    top, left = rng.random(2).tolist()
    return CropDraw(tuple(areas), tuple(aspects), top, left)


def _draw_weak(rng: np.random.Generator, side: int) -> tuple[bool, tuple[int, int]]:
    """Draw the weak view's mirror (p = 0.5) and whole-pixel translation (within 10 % of the side)."""
    second_flip = bool(rng.random() < 0.5)
    reach = int(side * _SHIFT_SHARE)
    down, right = rng.integers(-reach, reach, 2, endpoint=True).tolist()
    return second_flip, (down, right)


def _draw_operations(rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """Draw one or two distinct operations with one magnitude.

    The reference's signs are always positive (never darker, never turned the other way; so is the ``paper`` variant);
    here each signed operation draws its own.
    """
    names = list(OPERATIONS)
    count = int(rng.integers(1, 2, endpoint=True))
    magnitude = float(rng.uniform(*_MAGNITUDE_RANGE))
    chosen = [names[i] for i in rng.choice(len(names), count, replace=False)]
    signs = [1.0 if rng.random() < 0.5 else -1.0 for _ in chosen]
    return tuple(
        (name, sign * magnitude if OPERATIONS[name].signed else magnitude)
        for name, sign in zip(chosen, signs, strict=True)
    )


def _draw_cutout(rng: np.random.Generator, side: int) -> tuple[int, int, int]:
    """Draw the place of a square of ``int(0.15 * side)`` pixels, wholly inside the image."""
    square = int(_CUTOUT_SHARE * side)
    top, left = rng.integers(0, side - square, 2, endpoint=True).tolist()
    return top, left, square
