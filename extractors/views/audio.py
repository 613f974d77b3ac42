"""Spectrograms of audio views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from extractors.inputs import AudioInput
from extractors.spectrogram import fit_length, log_magnitude, log_spectrogram
from extractors.views.draws import view_generator
from extractors.views.pitch import FRAME_SAMPLES, pitch_shift

_GAIN_RANGE = (0.8, 1.2)
_SEMITONE_RANGE = (-1.0, 1.0)
_WEAK_NOISE = 0.03  # largest value of the uniform noise, in standard deviations of the spectrogram
_STRONG_NOISE = 0.1
_MASKED_ROWS = (18, 257)  # frequency rows set to the mean, of so many in the papers' spectrogram
_MASKED_COLUMNS = (40, 1004)  # time columns, likewise


def render_audio(
    samples: Tensor, views: Sequence[tuple[str, int]], clip_id: str, view_seed: int, spec: AudioInput
) -> Tensor:
    """Render audio views of one clip.

    * clean: fit the length, spectrogram;
    * weak: gain 0.8..1.2, pitch shift by up to one semitone, fit the length, spectrogram, uniform noise of 0.03;
    * strong i: weak i with a band of frequencies and a stretch of time set to 0 (the clip's mean) and uniform noise of
      0.1. The papers mask 18 of 257 rows and 40 of 1004 columns; other shapes mask the same shares, at least one.

    The magnitude spectrogram is not standardised, and views of it keep the same share of its contrast: noise is scaled
    by the standard deviation of the view (weak: before its noise; strong: of weak i), and masks are filled with the
    mean of weak i. Silence, whose deviation is 0, gets no noise there.

    Pitch is shifted before short clips are tiled, so that the shift sees the real sound; samples beyond
    ``num_samples`` are not read. The rules are those of the SSMDG released code (arXiv 2602.22917), except that masks
    also reach the last row and column.

    Args:
        samples: float32 `(n,)`, the whole clip at ``spec.rate_hz``, mono, -1..1; may be empty.
        views: pairs of kind (``clean``, ``weak``, ``strong``) and index.
        clip_id: identity of the clip.
        view_seed: seed of all views.
        spec: what the backbone wants.

    Returns:
        float32 `(views, 1, frequency, time)` on the device of ``samples``.

    Raises:
        ValueError: samples with more than one axis or an unknown kind of view.
    """
    if samples.ndim != 1:
        raise ValueError(f"samples have shape {tuple(samples.shape)}; mix the channels down to one axis first")
    weak: dict[int, Tensor] = {}
    rendered = []
    for kind, index in views:
        if kind == "clean":
            rendered.append(_spectrogram(samples, spec))
            continue
        if kind not in ("weak", "strong"):
            raise ValueError(f"view kind {kind!r}; allowed: clean, weak, strong")
        if index not in weak:
            weak[index] = _render_weak(samples, view_generator(view_seed, clip_id, "audio", "weak", index), spec)
        if kind == "weak":
            rendered.append(weak[index])
        else:
            rng = view_generator(view_seed, clip_id, "audio", "strong", index)
            rendered.append(_render_strong(weak[index], rng, spec))
    return torch.stack(rendered).unsqueeze(1)


def _spectrogram(samples: Tensor, spec: AudioInput) -> Tensor:
    """Fit the length and transform: `(frequency, time)`."""
    waveform = fit_length(samples, spec.num_samples)[None]
    if spec.kind == "magnitude":
        return log_magnitude(waveform, spec.window_samples, spec.hop_samples)[0]
    return log_spectrogram(waveform, spec.rate_hz, spec.window_samples, spec.overlap_samples)[0]


def _level(picture: Tensor, spec: AudioInput) -> tuple[float, float]:
    """Mean and standard deviation of a picture: by definition 0 and 1 where it is standardised, else its own."""
    if spec.kind == "power":
        return 0.0, 1.0
    values = picture.double()
    return float(values.mean()), float(values.std(correction=0))


def _render_weak(samples: Tensor, rng: np.random.Generator, spec: AudioInput) -> Tensor:
    """Render a weak view: `(frequency, time)`."""
    gain = float(rng.uniform(*_GAIN_RANGE))
    semitones = float(rng.uniform(*_SEMITONE_RANGE))
    # One vocoder frame more than is kept, so that the cut leaves no mark in what is kept.
    heard = samples[: spec.num_samples + FRAME_SAMPLES]
    spectrogram = _spectrogram(pitch_shift(heard * gain, semitones), spec)
    _, spread = _level(spectrogram, spec)
    return spectrogram + _noise(rng, spectrogram, _WEAK_NOISE * spread)


def _render_strong(weak: Tensor, rng: np.random.Generator, spec: AudioInput) -> Tensor:
    """Render a strong view from the weak one `(frequency, time)`, which stays as it is."""
    strong = weak.clone()
    mean, spread = _level(weak, spec)
    rows, columns = strong.shape
    masked_rows, masked_columns = _masked(rows, *_MASKED_ROWS), _masked(columns, *_MASKED_COLUMNS)
    row = int(rng.integers(0, rows - masked_rows, endpoint=True))
    column = int(rng.integers(0, columns - masked_columns, endpoint=True))
    strong[row : row + masked_rows] = mean
    strong[:, column : column + masked_columns] = mean
    return strong + _noise(rng, strong, _STRONG_NOISE * spread)


def _masked(length: int, masked: int, of: int) -> int:
    """Number of masked rows or columns: the papers' share of ``length``, at least 1."""
    return max(1, round(length * masked / of))


def _noise(rng: np.random.Generator, like: Tensor, largest: float) -> Tensor:
    """Uniform noise in -largest..largest, drawn on the CPU so that all devices see the same."""
    noise = torch.from_numpy(rng.random(tuple(like.shape), dtype=np.float32))
    return noise.mul_(2 * largest).sub_(largest).to(like.device)
