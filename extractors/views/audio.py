"""Spectrograms of audio views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from extractors.inputs import AudioInput
from extractors.spectrogram import fit_length, spectrograms
from extractors.views.batch import views_at_once
from extractors.views.draws import Variant, check_variant, view_generator
from extractors.views.pitch import FRAME_SAMPLES, pitch_shift, pitch_shifts

_GAIN_RANGE = (0.8, 1.2)
_SEMITONE_RANGE = (-1.0, 1.0)
_WEAK_NOISE = 0.03  # largest value of the uniform noise, in standard deviations of the spectrogram
_STRONG_NOISE = 0.1
_MASKED_ROWS = (18, 257)  # frequency rows set to the mean, of so many in the papers' spectrogram
_MASKED_COLUMNS = (40, 1004)  # time columns, likewise
_VALUES_PER_POINT = 8  # of a spectrogram: what its computation holds meanwhile, in float32 values

_View = tuple[int, str, int]  # number of the clip, kind, index
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class SoundClip:
    """The sound of one clip."""

    clip_id: str  # its identity
    samples: Tensor  # float32 `(n,)`, the whole clip at ``AudioInput.rate_hz``, mono, -1..1; may be empty


def render_audio(
    samples: Tensor,
    views: Sequence[tuple[str, int]],
    clip_id: str,
    view_seed: int,
    spec: AudioInput,
    *,
    variant: Variant = "strict",
) -> Tensor:
    """Render audio views of one clip.

    * clean: fit the length, spectrogram;
    * weak: gain 0.8..1.2, pitch shift by up to one semitone, fit the length, spectrogram, uniform noise of 0.03;
    * strong i: weak i with a band of frequencies and a stretch of time set to 0 (the clip's mean) and uniform noise of
      0.1. The papers mask 18 of 257 rows and 40 of 1004 columns; other shapes mask the same shares, at least one.

    The magnitude and mel spectrograms are not standardised, and views of them keep the same share of their contrast:
    noise is scaled by the standard deviation of the view (weak: before its noise; strong: of weak i), and masks are
    filled with the mean of weak i. Silence, whose deviation is 0, gets no noise there.

    Pitch is shifted before short clips are tiled, so that the shift sees the real sound; samples beyond
    ``num_samples`` are not read. The rules are those of the SSMDG released code (arXiv 2602.22917), except that masks
    also reach the last row and column; the variant ``paper`` has it exactly, see ``paper``.

    Args:
        samples: float32 `(n,)`, the whole clip at ``spec.rate_hz``, mono, -1..1; may be empty.
        views: pairs of kind (``clean``, ``weak``, ``strong``) and index.
        clip_id: identity of the clip.
        view_seed: seed of all views.
        spec: what the backbone wants.
        variant: ``strict`` or ``paper``.

    Returns:
        float32 `(views, 1, frequency, time)` on the device of ``samples``.

    Raises:
        ValueError: samples with more than one axis, an unknown kind of view or an unknown variant.
    """
    return render_audio_batch([SoundClip(clip_id, samples)], views, view_seed, spec, variant=variant)[0]


def render_audio_batch(
    clips: Sequence[SoundClip],
    views: Sequence[tuple[str, int]],
    view_seed: int,
    spec: AudioInput,
    *,
    variant: Variant = "strict",
) -> list[Tensor]:
    """Render the same audio views of several clips; on a GPU as many spectrograms at once as memory allows.

    Args:
        clips: the sounds, of whatever lengths, on one device.
        views: see ``render_audio``.
        view_seed: seed of all views.
        spec: what the backbone wants.
        variant: ``strict`` or ``paper``.

    Returns:
        Per clip what ``render_audio`` returns: on a CPU the same bits; elsewhere as far apart as float32 transforms
        round, which bins near the floor of a logarithm show most.

    Raises:
        ValueError: see ``render_audio``.
    """
    check_variant(variant)
    wanted: dict[str, dict[_View, None]] = {"clean": {}, "weak": {}, "strong": {}}
    for number, clip in enumerate(clips):
        if clip.samples.ndim != 1:
            raise ValueError(f"samples have shape {tuple(clip.samples.shape)}; mix the channels down to one axis first")
        for kind, index in views:
            if kind not in wanted:
                raise ValueError(f"view kind {kind!r}; allowed: {', '.join(wanted)}")
            wanted[kind][number, kind, index] = None
            if kind == "strong":
                wanted["weak"][number, "weak", index] = None
    rendered: dict[_View, Tensor] = {}

    def rngs(group: Sequence[_View]) -> list[np.random.Generator]:
        return [view_generator(view_seed, clips[n].clip_id, "audio", kind, index) for n, kind, index in group]

    if not clips or not views:
        return [clip.samples.new_zeros(0, 1, *spec.shape) for clip in clips]
    size = views_at_once(clips[0].samples.device, _VALUES_PER_POINT * spec.shape[0] * spec.shape[1])
    for group in _groups(list(wanted["clean"]), size):
        pictures = _spectrograms([clips[view[0]].samples for view in group], spec)
        rendered.update(zip(group, pictures, strict=True))
    for group in _groups(list(wanted["weak"]), size):
        pictures = _render_weak([clips[view[0]].samples for view in group], rngs(group), spec, variant)
        rendered.update(zip(group, pictures, strict=True))
    for group in _groups(list(wanted["strong"]), size):
        weak = [rendered[number, "weak", index] for number, _, index in group]
        pictures = _render_strong(_stack(weak), rngs(group), spec, variant)
        rendered.update(zip(group, pictures, strict=True))
    return [torch.stack([rendered[n, kind, i] for kind, i in views]).unsqueeze(1) for n in range(len(clips))]


def _groups(views: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """Cut a list into pieces of ``size``."""
    return (views[start : start + size] for start in range(0, len(views), size))


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """Stack tensors of one shape; one alone is not copied."""
    return rows[0][None] if len(rows) == 1 else torch.stack(list(rows))


def _spectrograms(sounds: Sequence[Tensor], spec: AudioInput) -> Tensor:
    """Fit the lengths and transform: `(views, frequency, time)`."""
    return spectrograms(_stack([fit_length(sound, spec.num_samples) for sound in sounds]), spec)


def _levels(pictures: Tensor, spec: AudioInput) -> tuple[Tensor, Tensor]:
    """Mean and deviation of pictures, float64 `(views,)`: by definition 0 and 1 if standardised, else their own."""
    if spec.kind == "power":
        mean = torch.zeros(len(pictures), dtype=torch.float64, device=pictures.device)
        return mean, torch.ones_like(mean)
    values = pictures.double()
    return values.mean((1, 2)), values.std((1, 2), correction=0)


def _render_weak(
    sounds: Sequence[Tensor], rngs: Sequence[np.random.Generator], spec: AudioInput, variant: Variant
) -> Tensor:
    """Render weak views: `(views, frequency, time)`."""
    draws = [(float(rng.uniform(*_GAIN_RANGE)), float(rng.uniform(*_SEMITONE_RANGE))) for rng in rngs]
    # One vocoder frame more than is kept, so that the cut leaves no mark in what is kept.
    heard = spec.num_samples + FRAME_SAMPLES if variant == "strict" else None
    loud = [sound[:heard] * gain for sound, (gain, _) in zip(sounds, draws, strict=True)]
    if len(loud) == 1:
        shifted = [pitch_shift(loud[0], draws[0][1])]
    else:
        shifted = pitch_shifts(loud, [semitones for _, semitones in draws])
    pictures = _spectrograms(shifted, spec)
    _, spread = _levels(pictures, spec)
    return pictures + _noise(rngs, pictures, _WEAK_NOISE * spread)


def _render_strong(weak: Tensor, rngs: Sequence[np.random.Generator], spec: AudioInput, variant: Variant) -> Tensor:
    """Render strong views from the weak ones `(views, frequency, time)`, which stay as they are."""
    rows, columns = weak.shape[1:]
    draw = _draw_mask if variant == "strict" else _draw_paper_mask
    bands, stretches = [], []
    for rng in rngs:
        bands.append(draw(rng, rows, _MASKED_ROWS, max(1, rows // 3)))
        stretches.append(draw(rng, columns, _MASKED_COLUMNS, columns))
    mean, spread = _levels(weak, spec)
    strong = _blank(weak, bands, stretches, mean.to(weak.dtype))
    return strong + _noise(rngs, strong, _STRONG_NOISE * spread)


def _blank(
    pictures: Tensor, bands: Sequence[tuple[int, int]], stretches: Sequence[tuple[int, int]], fill: Tensor
) -> Tensor:
    """Fill rows and columns, by start and number, of copies of pictures `(views, rows, columns)` with ``fill`` each."""
    if len(bands) == 1:  # slices, which a CPU fills faster
        blanked = pictures.clone()
        for (start, masked), lines in ((bands[0], blanked[0]), (stretches[0], blanked[0].T)):
            lines[start : start + masked] = fill
        return blanked
    rows, columns = pictures.shape[1:]
    blank = _inside(bands, rows, pictures.device)[:, :, None] | _inside(stretches, columns, pictures.device)[:, None]
    return torch.where(blank, fill[:, None, None], pictures)


def _draw_mask(rng: np.random.Generator, length: int, share: tuple[int, int], most: int) -> tuple[int, int]:
    """Start and length of a mask: the papers' share of ``length``, at least 1, wherever it fits."""
    masked = max(1, round(length * share[0] / share[1]))
    return int(rng.integers(0, length - masked, endpoint=True)), masked


def _draw_paper_mask(rng: np.random.Generator, length: int, share: tuple[int, int], most: int) -> tuple[int, int]:
    """Start and length of a mask as the papers draw it: never at the end, none where it would hide everything."""
    masked = min(share[0], most)
    return (int(rng.integers(0, length - masked)), masked) if length > masked else (0, 0)


def _inside(masks: Sequence[tuple[int, int]], length: int, device: torch.device) -> Tensor:
    """Where masks of start and length lie: bool `(masks, length)`."""
    start, masked = torch.tensor(masks, device=device).T.unsqueeze(2)
    place = torch.arange(length, device=device)
    inside: Tensor = (place >= start) & (place < start + masked)
    return inside


def _noise(rngs: Sequence[np.random.Generator], like: Tensor, largest: Tensor) -> Tensor:
    """Uniform noise of each view in -largest..largest, drawn on the CPU so that all devices see the same."""
    drawn = [torch.from_numpy(rng.random(tuple(like.shape[1:]), dtype=np.float32)) for rng in rngs]
    bound = largest[:, None, None]
    return _stack(drawn).to(like.device).mul_((2 * bound).float()).sub_(bound.float())
