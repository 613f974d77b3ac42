"""The two log spectrograms that audio networks see.

* ``log_spectrogram``: SSMDG released code (arXiv 2602.22917), ``scipy.signal.spectrogram(x, rate, nperseg=512,
  noverlap=353)``, the logarithm, then standardisation over the whole array;
* ``log_magnitude``: the literature on modality balance since OGM-GE (arXiv 2203.15332),
  ``numpy.log(numpy.abs(librosa.stft(x, n_fft=512, hop_length=353)) + 1e-7)``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_FLOOR = 1e-7  # added to the power density before the logarithm; power per hertz for samples in -1..1
_MAGNITUDE_FLOOR = 1e-7  # added to the magnitude before the logarithm
_TAPER = 0.25  # share of the Tukey window that is tapered


def fit_length(samples: Tensor, num_samples: int) -> Tensor:
    """Repeat or cut a waveform `(n,)` to `(num_samples,)` and clip it to -1..1; no samples give silence."""
    if samples.ndim != 1:
        raise ValueError(f"samples have shape {tuple(samples.shape)}; mix the channels down to one axis first")
    if samples.numel() == 0:
        return samples.new_zeros(num_samples)
    repeats = math.ceil(num_samples / samples.numel())
    return samples[:num_samples].repeat(repeats)[:num_samples].clamp(-1, 1)


def log_spectrogram(waveform: Tensor, rate_hz: int, window_samples: int = 512, overlap_samples: int = 353) -> Tensor:
    """Return the standardised log power spectrogram.

    Periodic Tukey window (0.25), the mean of each segment removed, one-sided power density, ``log(. + 1e-7)``, then
    ``(x - mean) / (std + 1e-9)`` over all frequencies and times with the population standard deviation. Silence gives
    zeros (the reference: a constant of about -7e-6, the rounding of its mean).

    The floor 1e-7 is per hertz, so one sound at two rates gives slightly different pictures.

    Args:
        waveform: float32 or float64 `(batch, num_samples)` in -1..1; the result has the same type.
        rate_hz: samples per second.
        window_samples: length of a segment.
        overlap_samples: samples that two neighbouring segments share.

    Returns:
        `(batch, frequency, time)` with ``window_samples // 2 + 1`` frequencies.

    Raises:
        ValueError: the waveform is not `(batch, num_samples)` or shorter than one segment.
    """
    if waveform.ndim != 2 or waveform.shape[1] < window_samples:
        raise ValueError(
            f"waveform has shape {tuple(waveform.shape)}; it must be (batch, num_samples) "
            f"with at least {window_samples} samples"
        )
    window = _tukey_window(window_samples).to(waveform)
    segments = waveform.unfold(1, window_samples, window_samples - overlap_samples)
    segments = segments - segments.mean(2, keepdim=True)
    power = torch.view_as_real(torch.fft.rfft(segments * window)).square_().sum(3)

    # One-sided density: every bin but 0 Hz and the Nyquist frequency also carries its negative twin.
    density = torch.full((power.shape[2],), 2.0, dtype=torch.float64)
    density[0] = 1.0
    if window_samples % 2 == 0:
        density[-1] = 1.0
    density /= rate_hz * float(_tukey_window(window_samples).square().sum())

    # log(p + floor) is log1p(p / floor) and a constant that standardising removes; unlike it, log1p keeps what is
    # below the floor in float32 and is exactly 0 in silence.
    level = (power * (density / _FLOOR).to(power)).log1p_().transpose(1, 2).double()
    level -= level.mean((1, 2), keepdim=True)
    spread = level.square().mean((1, 2), keepdim=True).sqrt()
    return (level / (spread + 1e-9)).to(waveform.dtype).contiguous()


def log_magnitude(waveform: Tensor, window_samples: int = 512, hop_samples: int = 353) -> Tensor:
    """Return the log magnitude spectrogram, not standardised: ``log(|STFT| + 1e-7)``.

    Periodic Hann window; segment j is centred on sample ``j * hop_samples`` and what it sees before and after the
    waveform is 0 (librosa's ``center=True, pad_mode="constant"``). The mean of a segment stays in, the transform is
    not scaled, and silence is ``log(1e-7)`` everywhere, about -16.1.

    It is computed in float64, because float32 rounding of loud bins would reach above the floor in quiet ones.

    Args:
        waveform: float32 or float64 `(batch, num_samples)` in -1..1; the result has the same type.
        window_samples: length of a segment.
        hop_samples: samples from one segment to the next.

    Returns:
        `(batch, frequency, time)` with ``window_samples // 2 + 1`` frequencies and, for an even window,
        ``1 + num_samples // hop_samples`` times.

    Raises:
        ValueError: the waveform is not `(batch, num_samples)` or has no samples, or segments that do not advance.
    """
    if waveform.ndim != 2 or waveform.shape[1] < 1:
        raise ValueError(
            f"waveform has shape {tuple(waveform.shape)}; it must be (batch, num_samples) with at least 1 sample"
        )
    if hop_samples < 1:
        raise ValueError(f"hop_samples is {hop_samples}; allowed: at least 1")
    half = window_samples // 2
    window = torch.hann_window(window_samples, dtype=torch.float64, device=waveform.device)
    segments = F.pad(waveform.double(), (half, half)).unfold(1, window_samples, hop_samples)
    magnitude: Tensor = torch.fft.rfft(segments * window).abs()
    return (magnitude + _MAGNITUDE_FLOOR).log_().transpose(1, 2).to(waveform.dtype).contiguous()


@lru_cache(maxsize=8)
def _tukey_window(length: int) -> Tensor:
    """Periodic Tukey window, float64 `(length,)`: scipy's ``get_window(("tukey", 0.25), length)``."""
    ramp = math.floor(_TAPER * length / 2)
    window = np.ones(length + 1)
    window[: ramp + 1] = 0.5 * (1 + np.cos(np.pi * (2 * np.arange(ramp + 1) / (_TAPER * length) - 1)))
    window[length - ramp :] = window[ramp::-1]
    return torch.from_numpy(window[:length].copy())
