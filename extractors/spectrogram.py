"""The three log spectrograms that audio networks see, each of a batch of waveforms on whatever device it is.

* ``log_spectrogram``: SSMDG released code (arXiv 2602.22917), ``scipy.signal.spectrogram(x, rate, nperseg=512,
  noverlap=353)``, the logarithm, then standardisation over the whole array;
* ``log_magnitude``: the literature on modality balance since OGM-GE (arXiv 2203.15332),
  ``numpy.log(numpy.abs(librosa.stft(x, n_fft=512, hop_length=353)) + 1e-7)``;
* ``log_mel``: ``numpy.log(librosa.feature.melspectrogram(y=x, sr=rate) + 1e-7)``.

``spectrograms`` picks the one that an ``AudioInput`` names.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from extractors.inputs import AudioInput

_FLOOR = 1e-7  # added to the power density before the logarithm; power per hertz for samples in -1..1
_MAGNITUDE_FLOOR = 1e-7  # added to the magnitude before the logarithm
_MEL_FLOOR = 1e-7  # added to the power of a mel band before the logarithm; see ``log_mel``
_TAPER = 0.25  # share of the Tukey window that is tapered


def fit_length(samples: Tensor, num_samples: int) -> Tensor:
    """Repeat or cut a waveform `(n,)` to `(num_samples,)` and clip it to -1..1; no samples give silence."""
    if samples.ndim != 1:
        raise ValueError(f"samples have shape {tuple(samples.shape)}; mix the channels down to one axis first")
    if samples.numel() == 0:
        return samples.new_zeros(num_samples)
    repeats = math.ceil(num_samples / samples.numel())
    return samples[:num_samples].repeat(repeats)[:num_samples].clamp(-1, 1)


def spectrograms(waveform: Tensor, spec: AudioInput) -> Tensor:
    """Return the spectrograms that ``spec`` asks for.

    Args:
        waveform: float32 or float64 `(batch, spec.num_samples)` in -1..1, see ``fit_length``.
        spec: which spectrogram, and its settings.

    Returns:
        `(batch, *spec.shape)` of the type and on the device of ``waveform``.

    Raises:
        ValueError: what ``log_spectrogram``, ``log_magnitude`` and ``log_mel`` refuse.
    """
    if spec.kind == "magnitude":
        return log_magnitude(waveform, spec.window_samples, spec.hop_samples)
    if spec.kind == "mel":
        return log_mel(
            waveform,
            spec.rate_hz,
            spec.window_samples,
            spec.hop_samples,
            num_mels=spec.num_mels,
            min_hz=spec.min_hz,
            max_hz=spec.max_hz,
        )
    return log_spectrogram(waveform, spec.rate_hz, spec.window_samples, spec.overlap_samples)


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
    spectra = _centred_spectra(waveform, window_samples, hop_samples)
    magnitude = spectra.abs()
    return (magnitude + _MAGNITUDE_FLOOR).log_().transpose(1, 2).to(waveform.dtype).contiguous()


def log_mel(
    waveform: Tensor,
    rate_hz: int,
    window_samples: int = 2048,
    hop_samples: int = 512,
    *,
    num_mels: int = 128,
    min_hz: float = 0.0,
    max_hz: float | None = None,
) -> Tensor:
    """Return the log mel spectrogram, not standardised: ``log(mel power + 1e-7)``.

    The power is that of ``librosa.feature.melspectrogram`` with its defaults (librosa 0.11; McFee et al., SciPy 2015):
    periodic Hann window, segments centred with zeros outside the waveform, squared magnitude, triangular filters on
    Slaney's mel scale, each divided by its width (``norm="slaney"``). The arguments here default to librosa's too.

    The papers on modality balance say "spectrograms by librosa" and their public loaders take no mel scale; the
    logarithm is therefore theirs, natural with 1e-7 added, as in ``log_magnitude``. ``librosa.power_to_db`` would be
    ``10 / log(10)`` times this with a floor of 1e-10 that is cut off rather than added, and it bounds a picture to
    80 dB below its own maximum. Silence is ``log(1e-7)``, about -16.1.

    Transforms are made in float64 as in ``log_magnitude``; the filters are torchaudio's, computed in float32. Against
    librosa in float64 the result is within 1e-4 (docs/benchmarks.md has the time).

    Args:
        waveform: float32 or float64 `(batch, num_samples)` in -1..1; the result has the same type.
        rate_hz: samples per second, even.
        window_samples: length of a segment and of its transform (librosa's ``n_fft``), even.
        hop_samples: samples from one segment to the next.
        num_mels: mel bands.
        min_hz: lower edge of the first band.
        max_hz: upper edge of the last band; None: half the rate.

    Returns:
        `(batch, num_mels, time)` with ``1 + num_samples // hop_samples`` times.

    Raises:
        ValueError: what ``log_magnitude`` refuses, an odd rate or window, no bands or bands out of order, or a band so
            narrow that no frequency of the transform falls into it.
    """
    wanted = AudioInput(rate_hz, 1, window_samples, 0, "mel", num_mels, min_hz, max_hz)  # checks its fields
    spectra = _centred_spectra(waveform, window_samples, hop_samples)
    power = torch.view_as_real(spectra).square_().sum(3)
    filters = _mel_filters(rate_hz, window_samples, num_mels, float(min_hz), float(wanted.highest_hz)).to(power)
    return (power @ filters).add_(_MEL_FLOOR).log_().transpose(1, 2).to(waveform.dtype).contiguous()


def _centred_spectra(waveform: Tensor, window_samples: int, hop_samples: int) -> Tensor:
    """librosa's short-time transform with its defaults: complex128 `(batch, time, frequency)`.

    Raises:
        ValueError: see ``log_magnitude``.
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
    spectra: Tensor = torch.fft.rfft(segments * window)
    return spectra


@lru_cache(maxsize=8)
def _mel_filters(rate_hz: int, window_samples: int, num_mels: int, min_hz: float, max_hz: float) -> Tensor:
    """Slaney's mel filters, each divided by its width: float32 `(frequency, num_mels)`."""
    from torchaudio.functional import melscale_fbanks  # here, because only this needs torchaudio

    frequencies = window_samples // 2 + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty bands: they are refused below
        filters: Tensor = melscale_fbanks(frequencies, min_hz, max_hz, num_mels, rate_hz, "slaney", "slaney")
    empty = int((filters.amax(0) == 0).sum())
    if empty:
        raise ValueError(
            f"{empty} of {num_mels} mel bands from {min_hz:g} to {max_hz:g} Hz hold none of the {frequencies} "
            f"frequencies of a segment of {window_samples} samples; take fewer bands or longer segments"
        )
    return filters


@lru_cache(maxsize=8)
def _tukey_window(length: int) -> Tensor:
    """Periodic Tukey window, float64 `(length,)`: scipy's ``get_window(("tukey", 0.25), length)``."""
    ramp = math.floor(_TAPER * length / 2)
    window = np.ones(length + 1)
    window[: ramp + 1] = 0.5 * (1 + np.cos(np.pi * (2 * np.arange(ramp + 1) / (_TAPER * length) - 1)))
    window[length - ramp :] = window[ramp::-1]
    return torch.from_numpy(window[:length].copy())
