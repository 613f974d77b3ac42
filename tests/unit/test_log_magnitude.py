"""The magnitude log spectrogram: librosa's definition, the shape its input states, and views of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from extractors.inputs import AudioInput
from extractors.spectrogram import fit_length, log_magnitude
from extractors.views.audio import render_audio

RATE = 22_050
PAPER = AudioInput(RATE, 3 * RATE, window_samples=512, overlap_samples=512 - 353, kind="magnitude")
SMALL = AudioInput(RATE, 9_000, window_samples=512, overlap_samples=512 - 353, kind="magnitude")
VIEWS = [("clean", 0), ("weak", 0), ("weak", 1), ("strong", 0), ("strong", 1)]


def by_definition(samples: NDArray[np.float64], window: int, hop: int) -> NDArray[np.float64]:
    """librosa.stft with its defaults, as its documentation states it, one segment and one frequency at a time."""
    half = window // 2
    padded = np.concatenate([np.zeros(half), samples, np.zeros(half)])
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    basis = np.exp(-2j * np.pi * np.outer(np.arange(half + 1), n) / window)
    columns = [basis @ (hann * padded[start : start + window]) for start in range(0, len(padded) - window + 1, hop)]
    return np.log(np.abs(np.stack(columns, 1)) + 1e-7)


def sounds(count: int) -> dict[str, NDArray[np.float64]]:
    rng, t = np.random.default_rng(0), np.arange(count) / RATE
    tones = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 3000 * t)
    return {
        "noise": rng.normal(0, 0.1, count),
        "tones": tones + 0.01 * rng.standard_normal(count),
        "quiet": 1e-5 * rng.standard_normal(count),
        "offset": np.full(count, 0.25) + 0.001 * rng.standard_normal(count),
    }


@pytest.mark.parametrize(("window", "hop", "count"), [(512, 353, 9_000), (256, 100, 3_001), (101, 40, 700)])
def test_it_is_librosas_definition(window: int, hop: int, count: int):
    for name, sound in sounds(count).items():
        expected = by_definition(sound, window, hop)
        ours = log_magnitude(torch.from_numpy(sound)[None], window, hop)[0]
        assert ours.dtype == torch.float64
        assert ours.shape == expected.shape
        assert np.allclose(ours.numpy(), expected, rtol=1e-6, atol=1e-9), name
        # In float32 only the rounding of the samples and of the result is left.
        single = sound.astype(np.float32)
        rounded = log_magnitude(torch.from_numpy(single)[None], window, hop)[0]
        assert rounded.dtype == torch.float32
        assert np.abs(rounded.numpy() - by_definition(single.astype(np.float64), window, hop)).max() < 2e-6, name


def test_quiet_bins_beside_loud_ones_keep_their_value_in_float32():
    """A pure tone on a bin leaves the bins far from it at the floor; float32 transforms would lift them."""
    tone = torch.sin(2 * torch.pi * torch.arange(5_120, dtype=torch.float64) / 8)
    far = log_magnitude(tone.float()[None])[0, 200:, 3:-3].numpy()
    # 1e-12 of rounding in the reference's own sums is 1e-5 of the floor.
    assert np.abs(far - by_definition(tone.float().double().numpy(), 512, 353)[200:, 3:-3]).max() < 1e-4


def test_silence_is_the_floor():
    assert torch.equal(log_magnitude(torch.zeros(1, 800)), torch.full((1, 257, 3), np.log(1e-7)))


def test_the_papers_shape():
    assert PAPER.shape == (257, 188)
    assert log_magnitude(torch.zeros(1, PAPER.num_samples), 512, 353).shape == (1, *PAPER.shape)


@pytest.mark.parametrize("count", [600, 820, 1_000, 5_003])
@pytest.mark.parametrize(("window", "overlap"), [(512, 159), (512, 0), (101, 60), (256, 255)])
def test_shape_is_what_the_input_says(count: int, window: int, overlap: int):
    spec = AudioInput(RATE, count, window, overlap, "magnitude")
    assert render_audio(torch.zeros(300), [("clean", 0)], "c", 0, spec).shape == (1, 1, *spec.shape)


def test_rows_do_not_depend_on_the_batch():
    batch = torch.from_numpy(np.stack(list(sounds(4_000).values())).astype(np.float32))
    whole = log_magnitude(batch)
    for i in range(len(batch)):
        assert torch.equal(log_magnitude(batch[i : i + 1])[0], whole[i])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"\(batch, num_samples\)"):
        log_magnitude(torch.zeros(600))
    with pytest.raises(ValueError, match="at least 1 sample"):
        log_magnitude(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="hop_samples is 0"):
        log_magnitude(torch.zeros(1, 600), 512, 0)
    with pytest.raises(ValueError, match="'cqt'; allowed: power, magnitude, mel"):
        AudioInput(RATE, 600, kind="cqt")
    with pytest.raises(ValueError, match="overlap_samples is 512; allowed: 0 to 511"):
        AudioInput(RATE, 600, 512, 512)


# --- views ----------------------------------------------------------------------------------------------------------


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32))


def test_the_clean_view_is_not_standardised():
    samples = 3 * noise(5_000)
    (view,) = render_audio(samples, [("clean", 0)], "c", 0, SMALL)
    assert torch.equal(view, log_magnitude(fit_length(samples, SMALL.num_samples)[None]))
    (louder,) = render_audio(0.5 * fit_length(samples, SMALL.num_samples), [("clean", 0)], "c", 0, SMALL)
    assert (view - louder).mean() == pytest.approx(np.log(2), abs=1e-3)


def test_noise_scales_with_the_contrast_of_the_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("extractors.views.audio.pitch_shift", lambda samples, semitones: samples)
    samples = noise(SMALL.num_samples)
    clean, weak = render_audio(samples, VIEWS[:2], "c", 0, SMALL)[:, 0]
    added = (weak - clean) - (weak - clean).median()  # without the gain
    largest = 0.03 * float(clean.std())
    assert 0.95 * largest < added.abs().max() < 1.05 * largest


def test_strong_views_are_masked_with_the_mean():
    rows, columns = SMALL.shape
    starts = set()
    for clip in ("a", "b", "c", "d"):
        weak, strong = render_audio(noise(7_000), [("weak", 1), ("strong", 1)], clip, 0, SMALL)[:, 0]
        largest = 0.1 * float(weak.std(correction=0)) * (1 + 1e-5)
        kept = (strong - weak).abs() <= largest
        masked = (strong - weak.mean()).abs() <= largest
        assert (kept | masked).all()
        band, stretch = masked.all(1), masked.all(0)
        assert int(band.sum()) == 18
        assert int(stretch.sum()) == max(1, round(40 * columns / 1004))
        assert not masked[~band][:, ~stretch].all()
        starts.add((int(band.int().argmax()), int(stretch.int().argmax())))
    assert rows == 257
    assert len(starts) > 1


def test_silent_views_are_the_floor_without_noise():
    views = render_audio(torch.zeros(5_000), VIEWS, "c", 0, SMALL)
    assert (views - np.log(1e-7)).abs().max() < 1e-5


def test_draws_are_those_of_the_other_spectrogram(monkeypatch: pytest.MonkeyPatch):
    """Which spectrogram a network wants changes no gain, pitch or mask."""
    power = AudioInput(RATE, 9_000)
    drawn: list[tuple[float, float]] = []

    def record(samples: torch.Tensor, semitones: float) -> torch.Tensor:
        drawn.append((float(samples.abs().max()), semitones))
        return samples

    monkeypatch.setattr("extractors.views.audio.pitch_shift", record)
    for spec in (power, SMALL):
        render_audio(noise(12_000), [("weak", 0)], "c", 0, spec)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("count", [0, 1, 511, 9_000, 20_000])
def test_any_length_gives_finite_views(count: int):
    for samples in (noise(count), torch.zeros(count), torch.ones(count)):
        views = render_audio(samples, VIEWS, "c", 0, SMALL)
        assert views.shape == (5, 1, *SMALL.shape)
        assert views.dtype == torch.float32
        assert views.isfinite().all()
