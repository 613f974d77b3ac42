"""The objects: polygons in a unit circle, x to the right and y down, asymmetric so that every turn shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Paint = Literal["body", "accent", "dark"]
Part = tuple[Floats, Paint]  # corners (corners, 2) and what they are filled with


def _box(left: float, top: float, right: float, bottom: float) -> Floats:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _around(radii: Floats | float, count: int, centre: tuple[float, float] = (0.0, 0.0)) -> Floats:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False) - np.pi / 2
    return np.stack([centre[0] + radii * np.cos(angle), centre[1] + radii * np.sin(angle)], axis=1)


def _sector(radius: float, first: float, last: float) -> Floats:
    angle = np.linspace(first, last, 10)
    rim = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([np.zeros((1, 2)), rim])


def _hammer() -> list[Part]:
    return [(_box(-0.16, -0.3, 0.16, 1.0), "body"), (_box(-0.62, -0.85, 0.45, -0.25), "accent")]


def _gear() -> list[Part]:
    teeth = np.where(np.arange(40) % 4 < 2, 0.95, 0.72)
    hole = _around(0.16, 12)
    return [(_around(teeth, 40), "body"), (_sector(0.6, -0.6, 0.6), "accent"), (hole, "dark")]


def _block() -> list[Part]:
    band = np.array([[-0.9, 0.1], [0.9, -0.5], [0.9, -0.1], [-0.9, 0.5]])
    return [(_box(-0.9, -0.65, 0.9, 0.65), "body"), (band, "accent"), (_box(-0.75, -0.5, -0.5, -0.25), "dark")]


def _ball() -> list[Part]:
    return [(_around(0.9, 28), "body"), (_sector(0.9, -0.5, 1.1), "accent"), (_around(0.14, 8, (-0.45, 0.0)), "dark")]


def _cone() -> list[Part]:
    cone = np.array([[-0.1, -1.0], [0.1, -1.0], [0.6, 0.75], [-0.6, 0.75]])
    band = np.array([[-0.27, -0.4], [0.27, -0.4], [0.41, 0.1], [-0.41, 0.1]])
    return [(_box(-0.85, 0.7, 0.85, 0.95), "dark"), (cone, "body"), (band, "accent")]


def _can() -> list[Part]:
    return [
        (_box(-0.55, -0.95, 0.55, 0.95), "body"),
        (_box(-0.55, -0.5, 0.55, 0.05), "accent"),
        (_box(-0.3, -0.95, 0.3, -0.8), "dark"),
    ]


def _star() -> list[Part]:
    points = np.where(np.arange(10) % 2 == 0, 1.0, 0.48)
    return [(_around(points, 10), "body"), (_around(0.2, 12, (0.0, -0.42)), "accent")]


def _face() -> list[Part]:
    mouth = np.array([[-0.45, 0.25], [0.45, 0.25], [0.2, 0.6], [-0.2, 0.6]])
    eyes: list[Part] = [(_around(0.15, 10, (x, -0.2)), "dark") for x in (-0.33, 0.33)]
    return [(_around(0.9, 28), "body"), (mouth, "accent"), *eyes]


def _flower() -> list[Part]:
    petals = 0.75 + 0.25 * np.cos(5 * np.linspace(0, 2 * np.pi, 50, endpoint=False))
    return [(_around(petals, 50), "body"), (_around(0.3, 14), "accent"), (_around(0.12, 8, (0.0, -0.7)), "dark")]


SHAPES: dict[str, Callable[[], list[Part]]] = {
    "hammer": _hammer,
    "gear": _gear,
    "block": _block,
    "ball": _ball,
    "cone": _cone,
    "can": _can,
    "star": _star,
    "face": _face,
    "flower": _flower,
}
