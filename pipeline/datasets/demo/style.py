"""What tells the classes and the domains apart: tables only, standard library only.

Every class sits on one end of a *motion axis* and on one end of a *sound axis*, and each axis is shared by two
classes. The pairs differ between the two, so that motion and sound together name a class that neither names alone:

    motion axis   0          1          sound axis   0         1
    sideways      shake      slide      impacts      shake     bounce
    turning       swing      spin       swells       swing     slide
    upright       bounce     pulse      tones        spin      pulse
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MotionAxis = Literal["sideways", "turning", "upright"]
SoundAxis = Literal["impacts", "swells", "tones"]
Range = tuple[float, float]  # (low, high) of a uniform or log-uniform draw
Colour = tuple[int, int, int]  # red, green, blue in 0..255

SILENT_SHARE = 0.04  # clips without a sound track
HARD_MOTION_SHARE = 0.22  # clips whose motion is faint, hidden, far or murky
HARD_SOUND_SHARE = 0.22  # clips whose sound is drowned or muffled, drawn independently of the motion

# How far a clip lies from its class's end of an axis: REACH * Beta(*BLEND). Past 0.5 it resembles the other class.
REACH = 0.8
BLEND = (1.4, 2.0)
SCATTER = 0.1  # standard deviation of each single parameter around the clip's place on the axis


@dataclass(frozen=True)
class Action:
    """One class: its ends of the two axes and its range of tempo."""

    motion: MotionAxis
    motion_end: float  # 0 or 1
    sound: SoundAxis
    sound_end: float  # 0 or 1
    tempo_hz: Range  # cycles per second


ACTIONS: dict[str, Action] = {
    "shake": Action("sideways", 0.0, "impacts", 0.0, (1.3, 3.2)),
    "swing": Action("turning", 0.0, "swells", 0.0, (0.7, 1.6)),
    "bounce": Action("upright", 0.0, "impacts", 1.0, (1.1, 2.4)),
    "spin": Action("turning", 1.0, "tones", 0.0, (0.7, 1.8)),
    "slide": Action("sideways", 1.0, "swells", 1.0, (0.7, 1.9)),
    "pulse": Action("upright", 1.0, "tones", 1.0, (1.1, 2.6)),
}

# Parameter values at the two ends of every axis. Lengths are shares of the picture side.
MOTION_ENDS: dict[MotionAxis, dict[str, Range]] = {
    "sideways": {"travel": (0.08, 0.25), "rock": (0.30, 0.03), "sharp": (0.0, 0.8)},
    "turning": {"swing": (0.95, 0.10), "drift": (0.0, 1.0), "lever": (0.25, 0.05)},
    "upright": {"hop": (0.30, 0.05), "swell": (0.04, 0.32), "squash": (0.28, 0.03)},
}
SOUND_ENDS: dict[SoundAxis, dict[str, Range]] = {
    "impacts": {
        "pitch_hz": (1900, 320),
        "decay_seconds": (0.012, 0.07),
        "grains": (7, 1),
        "spread_seconds": (0.09, 0.01),
    },
    "swells": {
        "pitch_hz": (420, 2100),
        "sweep": (1.6, 0.2),
        "width": (0.45, 0.9),
        "peaked": (2.2, 0.5),
        "rough": (0.05, 0.9),
    },
    "tones": {"pitch_hz": (130, 620), "rolloff": (0.8, 1.9), "floor": (0.5, 0.01), "soft": (1.2, 0.1)},
}


Recorder = Literal["indoors", "dull", "thin"]  # resonances of furniture; far away; bright and without bass


@dataclass(frozen=True)
class Style:
    """How a domain looks, moves and sounds."""

    shapes: tuple[str, ...]
    bodies: tuple[Colour, ...]  # object colours
    accents: tuple[Colour, ...]
    radius: Range  # object radius, share of the picture side
    aspect: Range  # width over height of the object
    tempo: float  # factor on the class's tempo
    amplitude: float  # factor on the class's amplitudes
    motion_shift: dict[MotionAxis, float]  # moves both classes of an axis the same way
    sound_shift: dict[SoundAxis, float]
    pan: float  # largest camera travel during a clip, share of the picture side
    jitter: float  # handheld camera shake, share of the picture side
    shutter: float  # exposure, share of the time between two frames
    blur: Range  # lens blur, standard deviation as a share of the picture side
    noise: Range  # sensor noise, standard deviation in grey levels
    outline: bool
    shadow: bool
    pitch: float  # factor on every frequency of the action's sound
    drive: float  # saturation of the action's sound; 0 leaves it as it is
    recorder: Recorder
    room_seconds: Range  # time until the reverberation has fallen by 60 dB
    room_gain: float  # energy of the reverberation relative to the direct sound
    snr_db: Range  # action over background


STYLES: dict[str, Style] = {
    "workshop": Style(
        shapes=("hammer", "gear", "block"),
        bodies=((196, 52, 40), (222, 170, 40), (60, 96, 140)),
        accents=((205, 208, 212), (60, 62, 66), (235, 225, 200)),
        radius=(0.12, 0.19),
        aspect=(0.85, 1.15),
        tempo=1.0,
        amplitude=1.0,
        motion_shift={"sideways": 0.0, "turning": 0.06, "upright": -0.06},
        sound_shift={"impacts": -0.08, "swells": 0.06, "tones": 0.0},
        pan=0.02,
        jitter=0.002,
        shutter=0.35,
        blur=(0.0, 0.004),
        noise=(1.0, 3.0),
        outline=False,
        shadow=True,
        pitch=1.0,
        drive=0.0,
        recorder="indoors",
        room_seconds=(0.35, 0.7),
        room_gain=0.35,
        snr_db=(5.0, 16.0),
    ),
    "street": Style(
        shapes=("ball", "cone", "can"),
        bodies=((236, 112, 28), (32, 60, 120), (226, 206, 60)),
        accents=((240, 240, 236), (30, 32, 36), (180, 30, 40)),
        radius=(0.12, 0.18),
        aspect=(0.7, 1.0),
        tempo=0.85,
        amplitude=0.85,
        motion_shift={"sideways": 0.10, "turning": -0.08, "upright": 0.08},
        sound_shift={"impacts": 0.10, "swells": -0.10, "tones": -0.08},
        pan=0.16,
        jitter=0.012,
        shutter=0.8,
        blur=(0.004, 0.010),
        noise=(5.0, 11.0),
        outline=False,
        shadow=False,
        pitch=0.75,
        drive=0.0,
        recorder="dull",
        room_seconds=(0.10, 0.25),
        room_gain=0.10,
        snr_db=(1.0, 11.0),
    ),
    "cartoon": Style(
        shapes=("star", "face", "flower"),
        bodies=((250, 60, 90), (60, 120, 250), (255, 210, 30), (150, 70, 220)),
        accents=((255, 255, 255), (255, 140, 30), (40, 220, 160)),
        radius=(0.14, 0.21),
        aspect=(0.9, 1.3),
        tempo=1.25,
        amplitude=1.25,
        motion_shift={"sideways": -0.10, "turning": 0.08, "upright": 0.04},
        sound_shift={"impacts": 0.0, "swells": 0.10, "tones": 0.10},
        pan=0.08,
        jitter=0.0,
        shutter=0.0,
        blur=(0.0, 0.0),
        noise=(0.0, 0.6),
        outline=True,
        shadow=False,
        pitch=1.45,
        drive=2.5,
        recorder="thin",
        room_seconds=(0.03, 0.08),
        room_gain=0.03,
        snr_db=(7.0, 18.0),
    ),
}
