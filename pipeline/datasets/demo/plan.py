"""Which clips there are: ids, splits, lengths and the deliberate faults, without rendering anything."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.datasets.demo.style import ACTIONS, SILENT_SHARE, STYLES
from pipeline.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

CLASSES: tuple[str, ...] = tuple(ACTIONS)
DOMAINS: tuple[str, ...] = tuple(STYLES)
AUDIO_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # what AAC has names for
TEST_SHARE = 0.25
SHORTEST_SECONDS, LONGEST_SECONDS = 2.05, 2.9


@dataclass(frozen=True)
class DemoSpec:
    """What decides the bytes of the data set.

    Raises:
        UsageError: a field is out of range.
    """

    seed: int = 0
    clips_per_class: int = 40  # per class and domain; at least 4
    size: int = 128  # picture side, pixels
    rate_hz: int = 16  # frames per second
    audio_rate_hz: int = 16_000  # samples per second

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"demo {field.name} is {value!r}; give a whole number")
        if self.seed < 0:
            raise UsageError(f"demo seed is {self.seed}; give a whole number >= 0")
        if self.clips_per_class < 4:
            raise UsageError(
                f"demo clips_per_class is {self.clips_per_class}; at least 4 are needed, "
                "so that every class and domain has 3 clips to train and 1 to test"
            )
        if self.size % 2 or not 32 <= self.size <= 1024:
            raise UsageError(f"demo size is {self.size} pixels; give an even number from 32 to 1024")
        if not 10 <= self.rate_hz <= 60:
            raise UsageError(f"demo rate_hz is {self.rate_hz} frames per second; give 10 to 60")
        if self.audio_rate_hz not in AUDIO_RATES_HZ:
            allowed = ", ".join(map(str, AUDIO_RATES_HZ))
            raise UsageError(f"demo audio_rate_hz is {self.audio_rate_hz}; AAC allows {allowed}")


@dataclass(frozen=True)
class ClipPlan:
    """One clip before it is rendered; everything random about it follows from `stream`."""

    seed: int
    domain: str
    label: str
    number: int  # 0-based within its class and domain
    split: str  # train or test
    num_frames: int
    has_sound: bool  # False: the file has no sound track at all
    broken: bool  # True: the file is cut off and holds less than its header promises

    @property
    def clip_id(self) -> str:
        """Stable id, for example ``workshop-spin-007``."""
        return f"{self.domain}-{self.label}-{self.number:03d}"

    @property
    def path(self) -> PurePosixPath:
        """Path of the media file relative to the data set's root."""
        return PurePosixPath(self.domain, self.label, f"{self.clip_id}.mp4")

    def stream(self, name: str) -> np.random.Generator:
        """Return the clip's own generator of this name; a draw from one never moves another."""
        return random_stream(self.seed, self.domain, self.label, self.number, name)


def random_stream(*key: str | int) -> np.random.Generator:
    """Return a Philox generator keyed by the sha256 of ``key``: the same numbers on every machine and in any order."""
    import numpy as np

    value = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(value[:16], "little")))


def plan_clips(spec: DemoSpec) -> list[ClipPlan]:
    """Return every clip of the data set in manifest order: by domain, class, number."""
    num_test = round(TEST_SHARE * spec.clips_per_class)
    shortest, longest = math.ceil(SHORTEST_SECONDS * spec.rate_hz), math.floor(LONGEST_SECONDS * spec.rate_hz)
    broken = _broken_clip(spec, num_test)
    plans: list[ClipPlan] = []
    for domain in DOMAINS:
        for label in CLASSES:
            test = set(_test_numbers(spec, domain, label, num_test))
            for number in range(spec.clips_per_class):
                rng = random_stream(spec.seed, domain, label, number, "plan")
                num_frames = int(rng.integers(shortest, longest + 1))
                silent = bool(rng.random() < SILENT_SHARE)
                cut = (domain, label, number) == broken
                split = "test" if number in test else "train"
                # The broken clip keeps its sound: the cut has to go through both tracks.
                has_sound = cut or not silent
                plans.append(ClipPlan(spec.seed, domain, label, number, split, num_frames, has_sound, cut))
    return plans


def _test_numbers(spec: DemoSpec, domain: str, label: str, num_test: int) -> list[int]:
    order = random_stream(spec.seed, domain, label, "split").permutation(spec.clips_per_class)
    return [int(i) for i in order[:num_test]]


def _broken_clip(spec: DemoSpec, num_test: int) -> tuple[str, str, int]:
    rng = random_stream(spec.seed, "broken")
    domain, label = DOMAINS[rng.integers(len(DOMAINS))], CLASSES[rng.integers(len(CLASSES))]
    test = set(_test_numbers(spec, domain, label, num_test))
    train = [i for i in range(spec.clips_per_class) if i not in test]
    return domain, label, train[rng.integers(len(train))]
