"""The picture of a clip: object, backdrop, camera, lens and sensor."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.demo.backdrop import BACKDROPS
from pipeline.datasets.demo.motion import Motion, Poses, poses
from pipeline.datasets.demo.plan import ClipPlan
from pipeline.datasets.demo.shapes import SHAPES, Part
from pipeline.datasets.demo.style import STYLES, Colour, Style

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Corners = NDArray[np.int32]

CANVAS = 1.6  # side of the backdrop over the side of the picture
SUBPIXEL = 4  # fractional bits of the corners that OpenCV fills
SHADOW = (0.035, 0.05)  # offset of the shadow, share of the picture side
DARK: Colour = (28, 26, 30)


def render(plan: ClipPlan, motion: Motion, size: int, rate_hz: int) -> Picture:
    """Render all frames of a clip: ``(frames, size, size, 3)`` uint8 RGB, ``rate_hz`` frames per second."""
    rng, style = plan.stream("look"), STYLES[plan.domain]
    canvas = BACKDROPS[plan.domain](rng, round(CANVAS * size))
    camera = _camera_path(rng, style, plan.num_frames)
    parts, colours = _costume(rng, style)
    shots = 3 if style.shutter > 0.5 else 2 if style.shutter > 0 else 1
    starts = np.arange(plan.num_frames) / rate_hz
    drawings = []
    for shot in range(shots):
        moment = starts + (shot / shots) * style.shutter / rate_hz
        drawings.append(_outlines(parts, poses(motion, moment), motion.radius, camera, size))
    hideout = _hideout(rng, motion, camera, size) if motion.trouble == "hidden" else None
    finish = _Finish(plan, motion, size)
    frames = np.empty((plan.num_frames, size, size, 3), np.uint8)
    for i in range(plan.num_frames):
        scenery = _look_at(canvas, camera[i], size)
        frame = scenery
        for shot, drawing in enumerate(drawings):
            picture = scenery.copy() if shot + 1 < shots else scenery
            _draw(picture, [corners[i] for corners in drawing], colours, style, size)
            # A running mean of the moments while the shutter is open.
            share = 1 / (shot + 1)
            frame = picture if shot == 0 else np.asarray(cv2.addWeighted(picture, share, frame, 1 - share, 0), np.uint8)
        if hideout is not None:
            cv2.fillPoly(frame, [hideout[0][i]], hideout[1], cv2.LINE_AA, SUBPIXEL)
        frames[i] = finish(frame, i)
    return frames


def _camera_path(rng: np.random.Generator, style: Style, num_frames: int) -> Floats:
    """Camera offsets ``(frames, 2)`` as shares of the picture side: a steady pan and a trembling hand."""
    direction = rng.uniform(0, 2 * np.pi)
    pan = rng.uniform(0.3, 1.0) * style.pan * np.array([np.cos(direction), 0.4 * np.sin(direction)])
    path = np.linspace(-0.5, 0.5, num_frames)[:, None] * pan
    tremble = rng.standard_normal((num_frames + 4, 2))
    smooth = sum(tremble[k : k + num_frames] for k in range(5)) / np.sqrt(5)
    return np.asarray(np.clip(path + style.jitter * smooth, -0.28, 0.28))


def _costume(rng: np.random.Generator, style: Style) -> tuple[list[Part], list[Colour]]:
    """Draw shape, proportions and colours, independently of the class."""
    shape = SHAPES[style.shapes[int(rng.integers(len(style.shapes)))]]()
    stretch = np.array([np.sqrt(rng.uniform(*style.aspect)), 1.0])
    stretch[1] = 1 / stretch[0]
    body = style.bodies[int(rng.integers(len(style.bodies)))]
    accent = style.accents[int(rng.integers(len(style.accents)))]
    paints: dict[str, Colour] = {"body": body, "accent": accent, "dark": DARK}
    parts: list[Part] = [(corners * stretch, paint) for corners, paint in shape]
    return parts, [paints[paint] for _, paint in shape]


def _outlines(parts: list[Part], pose: Poses, radius: float, camera: Floats, size: int) -> list[Corners]:
    """Corners of every part in every frame, ``(frames, corners, 2)`` in sub-pixels."""
    cos, sin = np.cos(pose.angle)[:, None], np.sin(pose.angle)[:, None]
    # Somebody who films follows the object: half of the camera's motion shows in its place.
    x, y = pose.x - 0.5 * camera[:, 0], pose.y - 0.5 * camera[:, 1]
    outlines = []
    for corners, _ in parts:
        across, down = radius * pose.width[:, None] * corners[:, 0], radius * pose.height[:, None] * corners[:, 1]
        place = np.stack([x[:, None] + cos * across - sin * down, y[:, None] + sin * across + cos * down], axis=2)
        outlines.append(np.rint(place * size * 2**SUBPIXEL).astype(np.int32))
    return outlines


def _look_at(canvas: Picture, camera: Floats, size: int) -> Picture:
    margin = (canvas.shape[0] - size) / 2
    shift = np.array([[1, 0, -margin - camera[0] * size], [0, 1, -margin - camera[1] * size]], np.float32)
    return np.asarray(cv2.warpAffine(canvas, shift, (size, size), flags=cv2.INTER_LINEAR), np.uint8)


def _draw(picture: Picture, outlines: list[Corners], colours: list[Colour], style: Style, size: int) -> None:
    """Draw the object onto ``picture``, in place."""
    if style.shadow:
        offset = np.rint(np.array(SHADOW) * size * 2**SUBPIXEL).astype(np.int32)
        for corners in outlines:
            cv2.fillPoly(picture, [corners + offset], (62, 44, 30), cv2.LINE_AA, SUBPIXEL)
    for corners, colour in zip(outlines, colours, strict=True):
        cv2.fillPoly(picture, [corners], colour, cv2.LINE_AA, SUBPIXEL)
    if style.outline:
        cv2.polylines(picture, [outlines[0]], True, (20, 16, 24), max(size // 64, 1), cv2.LINE_AA, SUBPIXEL)


def _hideout(rng: np.random.Generator, motion: Motion, camera: Floats, size: int) -> tuple[Corners, Colour]:
    """A board in front of the middle of the motion: corners ``(frames, 4, 2)`` in sub-pixels, and its colour."""
    wide, high = rng.uniform(0.3, 0.42), rng.uniform(0.5, 0.75)
    x, y = motion.centre[0] + rng.uniform(-0.08, 0.08), motion.centre[1] + rng.uniform(-0.12, 0.12)
    lean = rng.uniform(-0.05, 0.05)
    left, right, top, bottom = x - wide / 2, x + wide / 2, y - high / 2, y + high / 2
    board = np.array([[left + lean, top], [right + lean, top], [right - lean, bottom], [left - lean, bottom]])
    grey = int(rng.integers(40, 120))
    place = (board - camera[:, None, :]) * size * 2**SUBPIXEL
    return np.rint(place).astype(np.int32), (grey, int(grey * 0.95), int(grey * 0.85))


class _Finish:
    """Lens and sensor: blur, loss of contrast, noise. Frames differ in which part of one noise field they get."""

    def __init__(self, plan: ClipPlan, motion: Motion, size: int) -> None:
        rng, style = plan.stream("sensor"), STYLES[plan.domain]
        blur, noise = rng.uniform(*style.blur), rng.uniform(*style.noise)
        self.contrast = 1.0
        if motion.trouble == "murky":
            blur, noise, self.contrast = blur + rng.uniform(0.018, 0.03), noise + 8.0, rng.uniform(0.35, 0.5)
        self.blur = blur * size
        field = rng.standard_normal((size + size // 2, size + size // 2, 3), dtype=np.float32)
        self.field = np.rint(np.float32(noise) * field).astype(np.int16)
        self.places = rng.integers(0, size // 2, (plan.num_frames, 2))
        self.size = size

    def __call__(self, frame: Picture, index: int) -> Picture:
        if self.contrast < 1.0:
            frame = np.asarray(cv2.convertScaleAbs(frame, alpha=self.contrast, beta=60 * (1 - self.contrast)), np.uint8)
        if self.blur > 0.3:  # pixels; less would not show
            frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), self.blur), np.uint8)
        row, column = self.places[index]
        grain = self.field[row : row + self.size, column : column + self.size]
        return np.asarray(cv2.add(frame, grain, dtype=cv2.CV_8U), np.uint8)
