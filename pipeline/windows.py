"""Windows of a long file: where they start and end, and whether the file is long at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.decode.length import media_length
from pipeline.errors import MediaFailed, UsageError
from pipeline.types import Clip

Mode = Literal["auto", "off", "fixed"]
AUTO: Mode = "auto"
OFF: Mode = "off"
ABSURD = "absurd_duration"
DEFAULT_SECONDS = 10.0  # of a window, where the length of the training clips is not known
LONG = 2.0  # a file is long if it is more than so many windows
SHORTEST_SECONDS = 0.1
_SLACK_SECONDS = 1e-3  # a stretch that is so little too long is not
_NEAR_SHARE = 0.1  # of the stride: windows so close to each other are one
Window = tuple[float, float]  # start and end in seconds, the end exclusive


@dataclass(frozen=True)
class Windowing:
    """Which files are cut into windows, and how."""

    mode: Mode = AUTO  # fixed: every file that is longer than a window
    seconds: float = DEFAULT_SECONDS  # of a window
    stride_seconds: float | None = None  # from one window's start to the next; None: half a window

    def __post_init__(self) -> None:
        for name, value in (("--window", self.seconds), ("--stride", self.stride)):
            if not SHORTEST_SECONDS <= value < math.inf:
                raise UsageError(f"{name} is {value:g} s; it must be at least {SHORTEST_SECONDS} s")

    @property
    def stride(self) -> float:
        """Seconds from one window's start to the next."""
        return self.seconds / 2 if self.stride_seconds is None else self.stride_seconds

    @property
    def longest(self) -> float:
        """Seconds of the longest file that is predicted as one."""
        return {"off": math.inf, "auto": LONG * self.seconds, "fixed": self.seconds}[self.mode]


def parse_windowing(window: str, stride_seconds: float | None, clip_seconds: float | None) -> Windowing:
    """Read the options ``--window`` and ``--stride``.

    Args:
        window: ``auto``, ``off`` or seconds.
        stride_seconds: ``None``: half a window.
        clip_seconds: median length of the model's training clips; ``None``: not known.

    Raises:
        UsageError: anything else, or a stride without windows.
    """
    if window == OFF:
        if stride_seconds is not None:
            raise UsageError(f"--stride {stride_seconds:g} goes with windows; leave it out, or give --window SECONDS")
        return Windowing(OFF)
    if window == AUTO:
        known = clip_seconds is not None and clip_seconds >= SHORTEST_SECONDS
        return Windowing(AUTO, clip_seconds if known and clip_seconds else DEFAULT_SECONDS, stride_seconds)
    try:
        seconds = float(window)
    except ValueError:
        raise UsageError(f"--window {window!r}; give seconds, for example 5, or auto, or off") from None
    return Windowing("fixed", seconds, stride_seconds)


def cut_windows(start: float, end: float, windowing: Windowing) -> tuple[Window, ...]:
    """Windows of one length from ``start`` on, a stride apart; the last one ends at ``end``, whatever its start.

    Returns:
        Ascending windows; ``()`` where the stretch is predicted as one.
    """
    length, stride = windowing.seconds, windowing.stride
    if end - start <= max(windowing.longest, length) + _SLACK_SECONDS:
        return ()
    # Where windows overlap, one that would end just before the last one is left out; nothing is left uncovered by it.
    near = max(_SLACK_SECONDS, min(_NEAR_SHARE * stride, length - stride))
    steps = max(1, math.ceil((end - start - length - near) / stride))  # the first one starts with the stretch
    return (*((start + i * stride, start + i * stride + length) for i in range(steps)), (end - length, end))


def windows_of(clip: Clip, pictures: bool, windowing: Windowing) -> tuple[tuple[Window, ...], float | None]:
    """Windows of a clip, and where it ends in seconds.

    Args:
        clip: what is predicted on; a stretch of it that is given by seconds is what is cut.
        pictures: the model sees pictures, so frames tell the length.
        windowing: which files are cut, and how.

    Returns:
        Windows, ``()`` where it is predicted as one; and the end, ``None`` where nobody knows it.

    Raises:
        MediaAbsent, MediaFailed: its length cannot be found; ``absurd_duration``: its times reach so far that windows
            would be empty.
    """
    start = clip.start_seconds or 0.0
    asked = clip.end_seconds
    if windowing.mode == OFF or (asked is not None and asked - start <= windowing.longest):
        return (), asked
    key = "video" if pictures and "video" in clip.media else "audio" if "audio" in clip.media else "video"
    path = clip.media.get(key)
    if path is None or clip.frame_numbers is not None:
        return (), asked
    length = media_length(path, pictures and key == "video", clip.rate_hz)
    if length is None:
        return (), asked
    end = length.seconds if asked is None else min(asked, length.seconds)
    count = (end - start) / windowing.stride
    if end - start > windowing.longest and count > length.pieces:
        raise MediaFailed(
            ABSURD,
            f"{path.name} has {length.pieces} frames or packets whose times reach over {length.seconds:.4g} s: windows "
            f"every {windowing.stride:g} s would be empty; --window off predicts it as one",
        )
    return cut_windows(start, end, windowing), end
