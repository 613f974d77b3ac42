"""Sound at one rate -> sound at another, by named filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import av
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from pipeline.errors import UsageError, choose

_BLOCK = 1 << 16  # samples per call of the resampler

Samples = NDArray[np.float32]


def swresample(samples: Samples, rate_hz: int, wanted_hz: int) -> Samples:
    """Resample with FFmpeg's default filter, as most pipelines do: a windowed sinc of 32 taps.

    Args:
        samples: `(num_samples,)`.
        rate_hz: their rate.
        wanted_hz: rate of the result.

    Returns:
        `(num_samples * wanted_hz / rate_hz,)`, rounded.
    """
    resampler = AudioResampler(format="fltp", layout="mono", rate=wanted_hz)
    blocks: list[Samples] = [np.empty(0, np.float32)]
    for begin in range(0, len(samples), _BLOCK):
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples[None, begin : begin + _BLOCK]), format="fltp", layout="mono"
        )
        frame.sample_rate = rate_hz
        blocks += [out.to_ndarray()[0] for out in resampler.resample(frame)]
    blocks += [out.to_ndarray()[0] for out in resampler.resample(None)]
    return np.concatenate(blocks)


def soxr(samples: Samples, rate_hz: int, wanted_hz: int, *, quality: str) -> Samples:
    """Resample with the SoX resampler: linear phase, 20 bits (``HQ``) or 28 bits (``VHQ``) of precision.

    Args:
        samples: `(num_samples,)`.
        rate_hz: their rate.
        wanted_hz: rate of the result.
        quality: ``HQ`` or ``VHQ``.

    Returns:
        `(num_samples * wanted_hz / rate_hz,)`, rounded.
    """
    import soxr as library

    return np.asarray(library.resample(samples, rate_hz, wanted_hz, quality=quality), np.float32)


@cache
def _why_not_soxr() -> str:
    try:
        import soxr as library
    except (ImportError, OSError) as error:
        return f"the package soxr is not installed or does not load ({error}); pip install soxr"
    del library
    return ""


@dataclass(frozen=True)
class Resampler:
    """One way to change the rate of sound."""

    run: Callable[[Samples, int, int], Samples]  # samples, their rate, the wanted rate -> samples
    why_not: Callable[[], str]  # why it cannot be used here; empty: it can


RESAMPLERS: dict[str, Resampler] = {
    "swresample": Resampler(swresample, lambda: ""),
    "soxr-hq": Resampler(partial(soxr, quality="HQ"), _why_not_soxr),
    "soxr-vhq": Resampler(partial(soxr, quality="VHQ"), _why_not_soxr),
}


def check_resampler(name: str) -> str:
    """Return a resampler's name if it can be used here.

    Raises:
        UsageError: there is none of that name, or it cannot be used here and why.
    """
    if reason := RESAMPLERS[choose("resampler", name, RESAMPLERS)].why_not():
        raise UsageError(f"resampler {name!r} cannot be used here: {reason}")
    return name
