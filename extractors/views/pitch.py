"""Pitch shift of a waveform at constant duration: a phase vocoder, then resampling."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

FRAME_SAMPLES = 2048  # Hann frames of the vocoder, librosa's default
_HOP = FRAME_SAMPLES // 4
_SHORTEST_FFT = 4096  # shorter sounds are padded to this length for resampling


def pitch_shift(samples: Tensor, semitones: float) -> Tensor:
    """Shift the pitch by so many semitones (12 to the octave) and keep the duration.

    The vocoder stretches the sound by ``2 ** (semitones / 12)`` without changing its pitch, and resampling in the
    frequency domain brings it back to its length; librosa's recipe (which the SSMDG released code calls) with another
    resampler. The factor is rounded to a quotient of two lengths with fast transforms, an error below 0.2 %.

    Args:
        samples: float32 or float64 `(n,)`; may be empty.
        semitones: positive is higher.

    Returns:
        `(n,)`, not clipped.
    """
    count = samples.numel()
    if count == 0 or semitones == 0:
        return samples
    length, stretched_length = _fast_lengths(max(count, _SHORTEST_FFT), 2.0 ** (semitones / 12))
    stretched = _overlap_add(_stretch(_frames(samples), stretched_length / length))[:stretched_length]
    # Of the frequencies that both lengths can hold, all but the highest: there the phase is lost.
    spectrum = torch.fft.rfft(stretched, stretched_length)[: (min(length, stretched_length) + 1) // 2]
    shifted: Tensor = torch.fft.irfft(spectrum, length)[:count] * (length / stretched_length)
    return shifted


def _frames(samples: Tensor) -> Tensor:
    """Short-time spectra, complex `(time, frequency)`; frame j is centred on sample ``512 j``."""
    half = FRAME_SAMPLES // 2
    padded = F.pad(samples, (half, half))
    spectra: Tensor = torch.fft.rfft(padded.unfold(0, FRAME_SAMPLES, _HOP) * _hann(padded))
    return spectra


def _stretch(frames: Tensor, ratio: float) -> Tensor:
    """Stretch complex spectra `(time, frequency)` in time by ``ratio``, keeping every phase advance per hop.

    Output frame j lies at time ``j / ratio``, between two input frames: its magnitude is interpolated, its phase is
    that of output frame j - 1 plus the advance between these two. Analysis and synthesis hop are equal, so the advance
    needs no unwrapping, and phases can be kept as unit complex numbers whose product is their sum.
    """
    count = frames.shape[0]
    times = np.arange(math.ceil(count * ratio)) / ratio
    times = times[times < count]
    whole = np.floor(times)
    before = torch.from_numpy(whole.astype(np.int64)).to(frames.device)
    share = torch.from_numpy(times - whole).to(frames.device, frames.real.dtype)[:, None]

    magnitude = F.pad(frames.abs(), (0, 0, 0, 1))
    level = torch.lerp(magnitude[before], magnitude[before + 1], share)
    unit = torch.where(frames == 0, torch.ones_like(frames), frames.sgn())
    advance = torch.cat([unit[1:] * unit[:-1].conj(), unit[-1:].conj()])[before]
    phases = [unit[0]]
    for step in advance[:-1]:
        phases.append(phases[-1] * step)
    return torch.stack(phases) * level


def _overlap_add(frames: Tensor) -> Tensor:
    """Turn spectra `(time, frequency)` back into sound: the inverse STFT, divided by the sum of squared windows."""
    count = frames.shape[0]
    sound: Tensor = torch.fft.irfft(frames, FRAME_SAMPLES)
    window = _hann(sound)
    pieces = (sound * window).view(count, -1, _HOP)
    weights = window.square().view(-1, _HOP)
    overlap = len(weights)
    total = pieces.new_zeros(count + overlap - 1, _HOP)
    weight = torch.zeros_like(total)
    for i in range(overlap):
        total[i : i + count] += pieces[:, i]
        weight[i : i + count] += weights[i]
    # The half frame before sample 0 is dropped; there is more at the end than the caller keeps.
    return (total / weight.clamp(min=1e-8)).flatten()[FRAME_SAMPLES // 2 :]


def _hann(like: Tensor) -> Tensor:
    """Periodic Hann window `(2048,)` of the type and on the device of ``like``."""
    return torch.hann_window(FRAME_SAMPLES, dtype=like.dtype, device=like.device)


def _fast_lengths(shortest: int, ratio: float) -> tuple[int, int]:
    """Two lengths with fast transforms: at least ``shortest``, at most 10 % more, and about ``ratio`` times that.

    A transform of a length with a large prime factor takes several times longer than one without.
    """
    numbers = _smooth_numbers(2 ** math.ceil(math.log2(shortest * max(ratio, 1.0)) + 1))
    lengths = numbers[(numbers >= shortest) & (numbers <= shortest * 1.1)]
    wanted = lengths * ratio
    above = np.searchsorted(numbers, wanted)
    candidates = np.stack([numbers[above - 1], numbers[above]])
    side, place = np.unravel_index(np.abs(candidates / wanted - 1).argmin(), candidates.shape)
    return int(lengths[place]), int(candidates[side, place])


@lru_cache(maxsize=32)
def _smooth_numbers(limit: int) -> NDArray[np.int64]:
    """Numbers up to ``limit`` without a prime factor above 11, sorted."""
    numbers = np.ones(1, dtype=np.int64)
    for prime in (2, 3, 5, 7, 11):
        powers = prime ** np.arange(int(math.log(limit, prime)) + 1, dtype=np.int64)
        numbers = np.multiply.outer(numbers, powers).ravel()
        numbers = numbers[numbers <= limit]
    return np.sort(numbers)
