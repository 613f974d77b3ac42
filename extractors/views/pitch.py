"""Pitch shift of waveforms at constant duration: a phase vocoder, then resampling.

The vocoder takes many waveforms at once, each with its own length and interval; shorter ones are followed by silence,
which changes no bit of them on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
    return pitch_shifts([samples], [semitones])[0]


def pitch_shifts(sounds: Sequence[Tensor], semitones: Sequence[float]) -> list[Tensor]:
    """Shift the pitch of several waveforms, each by its own interval; see ``pitch_shift``.

    On a GPU the vocoder queues as many kernels for all as for one; resampling stays one by one, because nearly every
    interval has transforms of its own length.

    Args:
        sounds: each `(n,)` with an n of its own, of one type and on one device.
        semitones: one per waveform.

    Returns:
        Per waveform `(n,)`, not clipped.
    """
    shifted = list(sounds)
    at = [i for i, sound in enumerate(sounds) if sound.numel() and semitones[i] != 0]
    if not at:
        return shifted
    heard = [sounds[i] for i in at]
    counts = [sound.numel() // _HOP + 1 for sound in heard]  # of vocoder frames
    sizes = [_fast_lengths(max(len(sounds[i]), _SHORTEST_FFT), 2.0 ** (semitones[i] / 12)) for i in at]
    times = [_times(count, longer / length) for count, (length, longer) in zip(counts, sizes, strict=True)]
    frames = _frames(heard)
    if len(heard) > 1:
        frames *= _valid(counts, frames.real)[:, :, None]
    stretched = _overlap_add(_stretch(frames, times), [len(t) for t in times])
    for i, (length, longer), sound in zip(at, sizes, stretched, strict=True):
        # Of the frequencies that both lengths can hold, all but the highest: there the phase is lost.
        spectrum = torch.fft.rfft(sound[:longer], longer)[: (min(length, longer) + 1) // 2]
        shifted[i] = torch.fft.irfft(spectrum, length)[: len(sounds[i])] * (length / longer)
    return shifted


def _frames(sounds: Sequence[Tensor]) -> Tensor:
    """Short-time spectra, complex `(sounds, time, frequency)`; frame j is centred on sample ``512 j``.

    A sound of n samples has ``n // 512 + 1`` of them; what a shorter one has behind them is its end once more.
    """
    half = FRAME_SAMPLES // 2
    padded = F.pad(sounds[0][None] if len(sounds) == 1 else pad_sequence(list(sounds), True), (half, half))
    spectra: Tensor = torch.fft.rfft(padded.unfold(1, FRAME_SAMPLES, _HOP) * _hann(padded))
    return spectra


def _times(count: int, ratio: float) -> NDArray[np.float64]:
    """Where in ``count`` input frames the output frames of a stretch by ``ratio`` lie: frame j at ``j / ratio``."""
    times = np.arange(math.ceil(count * ratio)) / ratio
    return times[times < count]


def _stretch(frames: Tensor, times: Sequence[NDArray[np.float64]]) -> Tensor:
    """Stretch complex spectra `(sounds, time, frequency)` in time, keeping every phase advance per hop.

    An output frame lies between two input frames: its magnitude is interpolated, its phase is that of the output frame
    before plus the advance between these two. Analysis and synthesis hop are equal, so the advance needs no unwrapping,
    and phases can be kept as unit complex numbers whose product is their sum.

    Args:
        frames: the spectra; 0 behind the last of a shorter sound.
        times: per sound what ``_times`` returned.

    Returns:
        As many frames as the longest has; those behind the last of a shorter sound are 0.
    """
    frames = frames.transpose(0, 1)  # time first: for one sound all that follows is contiguous
    longest = max(map(len, times))
    positions = np.full((longest, len(times)), len(frames) - 1.0)
    for sound, wanted in enumerate(times):
        positions[: len(wanted), sound] = wanted
    whole = np.floor(positions)
    share = torch.from_numpy(positions - whole).to(frames.device, frames.real.dtype)[:, :, None]
    before = torch.from_numpy(whole.astype(np.int64)).to(frames.device)

    magnitude = F.pad(frames.abs(), (0, 0, 0, 0, 0, 1))
    level = torch.lerp(_take(magnitude, before), _take(magnitude, before + 1), share)
    if len(times) > 1:
        level *= _valid([len(t) for t in times], level).T[:, :, None]
    unit = torch.where(frames == 0, torch.ones_like(frames), frames.sgn())
    advance = torch.cat([unit[1:] * unit[:-1].conj(), unit[-1:].conj()])
    phases = [unit[0]]
    for step in _take(advance, before)[:-1]:
        phases.append(phases[-1] * step)
    return (torch.stack(phases) * level).transpose(0, 1)


def _take(rows: Tensor, at: Tensor) -> Tensor:
    """Of `(time, sounds, frequency)` the times ``at`` `(n, sounds)` of each sound: `(n, sounds, frequency)`."""
    sounds = rows.shape[1]
    place = at * sounds + torch.arange(sounds, device=at.device)
    return rows.flatten(0, 1).index_select(0, place.flatten()).view(*at.shape, -1)


def _overlap_add(frames: Tensor, counts: Sequence[int]) -> Tensor:
    """Turn spectra into sound: the inverse STFT, divided by the sum of squared windows.

    Args:
        frames: complex `(sounds, time, frequency)`, 0 from a sound's count on.
        counts: number of frames of each sound.

    Returns:
        `(sounds, samples)`, more at the end than the caller keeps.
    """
    count = frames.shape[1]
    sounds: Tensor = torch.fft.irfft(frames, FRAME_SAMPLES)
    window = _hann(sounds)
    pieces = (sounds * window).view(*frames.shape[:2], -1, _HOP)
    weights = window.square().view(-1, _HOP)
    overlap = len(weights)
    total = pieces.new_zeros(len(counts), count + overlap - 1, _HOP)
    weight = torch.zeros_like(total)
    valid = _valid(counts, total)[:, :, None] if len(counts) > 1 else 1.0
    for i in range(overlap):
        total[:, i : i + count] += pieces[:, :, i]
        weight[:, i : i + count] += weights[i] * valid
    # The half frame before sample 0 is dropped.
    added: Tensor = (total / weight.clamp(min=1e-8)).flatten(1)
    return added[:, FRAME_SAMPLES // 2 :]


def _valid(counts: Sequence[int], like: Tensor) -> Tensor:
    """1 where a sound has a frame, 0 behind its last: `(sounds, time)` of the type and on the device of ``like``."""
    last = torch.tensor(counts, device=like.device)[:, None]
    return (torch.arange(max(counts), device=like.device) < last).to(like.dtype)


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
