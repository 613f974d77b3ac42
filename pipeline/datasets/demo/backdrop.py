"""The backgrounds: one large still picture per clip, which the camera looks at a part of."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Floats32 = NDArray[np.float32]


def _smooth_noise(rng: np.random.Generator, side: int, across: int, down: int) -> Floats32:
    """Noise ``(side, side, 1)`` of unit variance with ``across`` x ``down`` independent values."""
    coarse = rng.standard_normal((down, across), dtype=np.float32)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)[..., None].astype(np.float32)


def _workshop(rng: np.random.Generator, side: int) -> Picture:
    """A wooden wall: planks with grain, warm lamp light from one corner."""
    base = np.array([156, 112, 70], np.float32) * np.float32(rng.uniform(0.8, 1.15))
    down = int(rng.integers(70, 120))
    grain = 9 * _smooth_noise(rng, side, 6, down) + 5 * _smooth_noise(rng, side, 3, 16)
    picture = base + grain * np.array([1.0, 0.85, 0.6], np.float32)
    planks = int(rng.integers(5, 9))
    for i in range(planks):
        top, bottom = i * side // planks, (i + 1) * side // planks
        picture[top:bottom] *= np.float32(rng.uniform(0.88, 1.1))
        picture[top : top + max(side // 128, 1)] *= np.float32(0.6)
    yy, xx = np.mgrid[0:side, 0:side].astype(np.float32) / side
    light = 1.15 - 0.45 * np.hypot(xx - rng.uniform(0.2, 0.8), yy - rng.uniform(0.1, 0.5))
    return np.asarray(np.clip(picture * light[..., None], 0, 255), np.uint8)


def _street(rng: np.random.Generator, side: int) -> Picture:
    """A grey house front with windows above a rough pavement, in the light of some hour."""
    light = np.float32(rng.uniform(0.65, 1.2))
    wall = np.array([118, 124, 134], np.float32) + rng.uniform(-14, 14, 3).astype(np.float32)
    picture = wall + 6 * _smooth_noise(rng, side, 30, 30)
    horizon = int(side * rng.uniform(0.55, 0.75))
    columns, rows = int(rng.integers(4, 8)), int(rng.integers(2, 5))
    wide, high = side / columns, horizon / rows
    for row in range(rows):
        for column in range(columns):
            left, top = int((column + 0.25) * wide), int((row + 0.2) * high)
            shade = rng.uniform(45, 85) if rng.random() < 0.8 else 190.0
            picture[top : top + int(0.6 * high), left : left + int(0.5 * wide)] = shade * np.array([0.9, 1.0, 1.1])
    pavement = np.array([92, 92, 96], np.float32) + 14 * _smooth_noise(rng, side, side // 3, side // 3)
    picture[horizon:] = pavement[horizon:]
    picture[horizon : horizon + max(side // 64, 1)] = 170
    return np.asarray(np.clip(picture * light, 0, 255), np.uint8)


def _cartoon(rng: np.random.Generator, side: int) -> Picture:
    """Flat hills below a sky of two colours, with round clouds."""
    skies = (((120, 205, 250), (215, 240, 255)), ((255, 190, 150), (255, 235, 190)), ((150, 225, 210), (235, 250, 215)))
    top, low = (np.array(colour, np.float32) for colour in skies[int(rng.integers(len(skies)))])
    share = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    picture = np.repeat((top + (low - top) * share).astype(np.uint8), side, axis=1)
    for _ in range(int(rng.integers(2, 5))):
        x, y, r = rng.uniform(0, side), rng.uniform(0.1, 0.5) * side, rng.uniform(0.04, 0.08) * side
        for dx in (-1.2, 0.0, 1.2):
            cv2.circle(picture, (int(x + dx * r), int(y)), int(r), (250, 250, 250), -1, cv2.LINE_AA)
    greens = ((130, 205, 95), (88, 175, 80))
    xs = np.linspace(0, side, 40)
    for i, green in enumerate(greens):
        height = side * (0.68 + 0.12 * i + 0.05 * np.sin(xs / side * rng.uniform(5, 11) + rng.uniform(0, 6)))
        hill = np.concatenate([np.stack([xs, height], 1), [[side, side], [0, side]]]).astype(np.int32)
        cv2.fillPoly(picture, [hill], green, cv2.LINE_AA)
        cv2.polylines(picture, [hill], True, (40, 60, 40), max(side // 100, 1), cv2.LINE_AA)
    return picture


BACKDROPS: dict[str, Callable[[np.random.Generator, int], Picture]] = {
    "workshop": _workshop,
    "street": _street,
    "cartoon": _cartoon,
}
"""Domain name -> function ``(generator, side in pixels)`` that paints a picture ``(side, side, 3)`` uint8 RGB."""
