"""How the object of a clip moves. Picture and sound follow the same phase, so events coincide in both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.demo.plan import ClipPlan
from pipeline.datasets.demo.style import ACTIONS, BLEND, HARD_MOTION_SHARE, MOTION_ENDS, REACH, SCATTER, STYLES, Range

Floats = NDArray[np.float64]
MotionTrouble = Literal["none", "faint", "hidden", "far", "murky"]
MOTION_TROUBLES: tuple[MotionTrouble, ...] = ("faint", "hidden", "far", "murky")
TEMPO_LIMIT = 0.28  # cycles per frame; faster motion would look like slower motion


@dataclass(frozen=True)
class Motion:
    """The motion of one clip. Lengths are shares of the picture side, angles are radians, y points down."""

    trouble: MotionTrouble
    tempo_hz: float  # cycles per second
    start: float  # phase of the first frame, cycles
    wobble: float  # slow variation of the phase, cycles
    wobble_hz: float
    direction: int  # +1 or -1
    centre: tuple[float, float]  # place at rest
    radius: float
    tilt: float  # angle at rest
    roam: tuple[float, float]  # travel that means nothing, over the clip
    travel: float = 0.0  # sideways amplitude
    rock: float = 0.0  # amplitude of the rotation that goes with it
    sharp: float = 0.0  # 0: sine, 1: triangle
    swing: float = 0.0  # pendulum amplitude
    drift: float = 0.0  # turns per cycle
    lever: float = 0.0  # distance from pivot to object
    hop: float = 0.0  # height of the jump
    swell: float = 0.0  # relative growth on the beat
    squash: float = 0.0  # relative flattening on landing


@dataclass(frozen=True)
class Poses:
    """Place of the object at every moment; all arrays ``(moments,)``."""

    x: Floats  # share of the picture side
    y: Floats
    angle: Floats  # radians
    width: Floats  # factor on the radius
    height: Floats


def place_on_axis(rng: np.random.Generator, end: float, shift: float) -> float:
    """Draw how much a clip resembles the class at 1 of its axis; classes overlap and domains shift both."""
    away = REACH * rng.beta(*BLEND)
    return float((away if end == 0.0 else 1.0 - away) + shift)


def between_ends(rng: np.random.Generator, ends: Mapping[str, Range], place: float) -> dict[str, float]:
    """Draw every parameter around ``place`` between its two ends, in ratios where both ends are positive."""
    values = {}
    for name, (low, high) in ends.items():
        share = float(np.clip(place + rng.normal(0.0, SCATTER), -0.1, 1.1))
        positive = min(low, high) > 0
        values[name] = low * (high / low) ** share if positive else max(low + (high - low) * share, 0.0)
    return values


def log_uniform(rng: np.random.Generator, bounds: Range) -> float:
    """Draw from ``bounds`` so that equal ratios are equally likely."""
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def draw_motion(plan: ClipPlan, rate_hz: int) -> Motion:
    """Draw the motion of a clip at ``rate_hz`` frames per second."""
    rng, action, style = plan.stream("motion"), ACTIONS[plan.label], STYLES[plan.domain]
    trouble: MotionTrouble = "none"
    if rng.random() < HARD_MOTION_SHARE:
        trouble = MOTION_TROUBLES[int(rng.integers(len(MOTION_TROUBLES)))]
    place = place_on_axis(rng, action.motion_end, style.motion_shift[action.motion])
    values = between_ends(rng, MOTION_ENDS[action.motion], place)
    radius = rng.uniform(*style.radius)
    weaker = {"faint": rng.uniform(0.2, 0.4), "far": 0.5}.get(trouble, 1.0)
    radius *= 0.5 if trouble == "far" else 1.0
    strength = style.amplitude * rng.uniform(0.8, 1.2) * weaker
    for name in values.keys() & {"travel", "rock", "swing", "lever", "hop", "swell", "squash"}:
        values[name] *= strength
    if trouble == "faint" and "drift" in values:
        values["drift"] *= weaker
    for name in values.keys() & {"travel", "lever", "hop"}:
        # Larger objects leave less room: the centre stays far enough inside the picture.
        values[name] = min(values[name], {"travel": 0.46 - 0.6 * radius, "lever": 0.3, "hop": 0.6}[name])
    tempo = min(log_uniform(rng, action.tempo_hz) * style.tempo, TEMPO_LIMIT * rate_hz)
    # A jump starts low and a pendulum hangs high; what turns all the way round stays in the middle.
    hangs = max(1.0 - values.get("drift", 0.0), 0.0)
    below = 0.45 * values.get("hop", 0.0) - 0.5 * values.get("lever", 0.0) * hangs
    return Motion(
        trouble=trouble,
        tempo_hz=tempo,
        start=float(rng.random()),
        wobble=rng.uniform(0.0, 0.05),
        wobble_hz=rng.uniform(0.3, 0.8),
        direction=1 if rng.random() < 0.5 else -1,
        centre=(0.5 + rng.uniform(-0.06, 0.06), 0.5 + below + rng.uniform(-0.05, 0.05)),
        radius=radius,
        tilt=rng.uniform(-0.25, 0.25),
        roam=(rng.uniform(-0.06, 0.06), rng.uniform(-0.04, 0.04)),
        **values,
    )


def phase(motion: Motion, seconds: Floats) -> Floats:
    """Return the phase in cycles at ``seconds (moments,)``; it never runs backwards."""
    slow = np.sin(2 * np.pi * motion.wobble_hz * seconds)
    return motion.start + motion.tempo_hz * seconds + motion.wobble * slow


def poses(motion: Motion, seconds: Floats) -> Poses:
    """Return where the object is at ``seconds (moments,)``.

    Whole phases are landings and beats; sideways and pendulum motion turns back at 1/4 and 3/4.
    """
    cycles = phase(motion, seconds)
    wave = np.sin(2 * np.pi * cycles)
    corner = 2 / np.pi * np.arcsin(wave)
    side = (1 - motion.sharp) * wave + motion.sharp * corner
    turn = motion.direction * (motion.swing * wave + 2 * np.pi * motion.drift * cycles)
    within = cycles % 1.0
    landing = np.exp(-((np.minimum(within, 1 - within) / 0.09) ** 2))
    beat = (0.5 + 0.5 * np.cos(2 * np.pi * cycles)) ** 2
    progress = seconds / max(float(seconds[-1]), 1e-9) - 0.5
    grown = 1 + motion.swell * (2 * beat - 0.75)
    return Poses(
        x=motion.centre[0] + motion.roam[0] * progress + motion.travel * side + motion.lever * np.sin(turn),
        y=motion.centre[1]
        + motion.roam[1] * progress
        + motion.lever * np.cos(turn)
        - motion.hop * 4 * within * (1 - within)
        + motion.squash * motion.radius * landing,
        angle=motion.tilt - turn + motion.direction * motion.rock * wave,
        width=grown * (1 + 0.7 * motion.squash * landing),
        height=grown * (1 - motion.squash * landing),
    )
