"""Waveform helpers, pitch shift and spectrogram views."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from extractors.inputs import AudioInput
from extractors.spectrogram import fit_length, log_spectrogram
from extractors.views import audio
from extractors.views.audio import render_audio
from extractors.views.pitch import pitch_shift

RATE = 16_000
SPEC = AudioInput(RATE, 8_192)
PAPER = AudioInput(RATE, 160_000)
VIEWS = [("clean", 0), ("weak", 0), ("weak", 1), ("strong", 0), ("strong", 1)]


def tone(frequency_hz: float, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 0.4 * torch.sin(2 * torch.pi * frequency_hz * torch.arange(count, dtype=torch.float64) / RATE).to(dtype)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32))


def loudest_hz(samples: torch.Tensor) -> float:
    """Frequency of the strongest peak, to a fraction of a bin (parabola through the logarithms)."""
    windowed = samples.double() * torch.hann_window(samples.numel(), dtype=torch.float64)
    power = torch.fft.rfft(windowed).abs().log()
    k = int(power.argmax())
    a, b, c = power[k - 1 : k + 2].tolist()
    return (k + 0.5 * (a - c) / (a - 2 * b + c)) * RATE / samples.numel()


# --- length ---------------------------------------------------------------------------------------------------------


def test_fit_length_repeats_cuts_and_clips():
    assert fit_length(torch.tensor([0.1, 0.2, 0.3]), 7).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1])
    assert fit_length(torch.tensor([0.5, -3.0, 2.0, 0.1]), 3).tolist() == [0.5, -1.0, 1.0]
    assert fit_length(torch.tensor([]), 4).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="one axis"):
        fit_length(torch.zeros(2, 9), 4)


def test_fit_length_leaves_its_input():
    samples = torch.tensor([2.0, 0.0])
    fit_length(samples, 2).fill_(7)
    assert samples.tolist() == [2.0, 0.0]


# --- spectrogram ----------------------------------------------------------------------------------------------------


def test_spectrogram_rows_do_not_depend_on_the_batch():
    batch = torch.stack([noise(4000), tone(440, 4000), torch.zeros(4000)])
    whole = log_spectrogram(batch, RATE)
    assert whole.shape == (3, 257, 22)
    for i in range(3):
        assert torch.allclose(log_spectrogram(batch[i : i + 1], RATE)[0], whole[i], atol=1e-5)
    assert not whole[2].any()


def test_spectrogram_shape_is_what_the_input_says():
    for spec in (SPEC, PAPER, AudioInput(8000, 5000, 256, 100)):
        view = render_audio(noise(3000), [("clean", 0)], "c", 0, spec)
        assert view.shape == (1, 1, *spec.shape)
    assert PAPER.shape == (257, 1004)


def test_spectrogram_peaks_at_the_tone():
    rows = log_spectrogram(tone(3000, 8000)[None], RATE)[0].mean(1)
    assert int(rows.argmax()) == round(3000 / RATE * 512)


def test_spectrogram_refuses_less_than_a_segment():
    with pytest.raises(ValueError, match="at least 512 samples"):
        log_spectrogram(torch.zeros(1, 511), RATE)
    with pytest.raises(ValueError, match=r"\(batch, num_samples\)"):
        log_spectrogram(torch.zeros(600), RATE)


# --- pitch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency_hz", [220.0, 1000.0, 3517.0])
@pytest.mark.parametrize("semitones", [-1.0, -0.37, 0.05, 0.6, 1.0])
def test_pitch_of_a_tone_moves_and_its_level_stays(frequency_hz: float, semitones: float):
    count = 40_963
    samples = tone(frequency_hz, count)
    shifted = pitch_shift(samples, semitones)
    assert shifted.shape == (count,)
    assert shifted.dtype == torch.float32
    wanted = 2 ** (semitones / 12)
    middle = slice(4096, count - 4096)
    assert loudest_hz(shifted[middle]) / loudest_hz(samples[middle]) == pytest.approx(wanted, rel=0.002)
    for part in (slice(4096, 12_000), slice(20_000, 28_000), slice(count - 12_000, count - 4096)):
        assert shifted[part].std() / samples[part].std() == pytest.approx(1, abs=0.1)


def test_pitch_shift_keeps_the_time_of_events():
    samples = torch.zeros(40_000)
    samples[20_000:24_000] = tone(800, 4000)
    for semitones in (-1.0, 1.0):
        energy = pitch_shift(samples, semitones).square()
        centre = (energy * torch.arange(40_000)).sum() / energy.sum()
        assert abs(float(centre) - 22_000) < 300


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 511, 2047, 2049, 4097])
def test_pitch_shift_of_short_sounds(count: int):
    for semitones in (-1.0, 0.3, 1.0):
        shifted = pitch_shift(noise(count), semitones)
        assert shifted.shape == (count,)
        assert shifted.isfinite().all()
        assert count == 0 or shifted.abs().max() < 2


def test_pitch_shift_of_silence_and_by_nothing():
    assert not pitch_shift(torch.zeros(5000), 0.7).any()
    samples = noise(5000)
    assert torch.equal(pitch_shift(samples, 0.0), samples)


def test_a_tiny_pitch_shift_is_nearly_nothing():
    """Vocoder, window sums and resampling together give back what went in."""
    samples = noise(20_000)
    shifted = pitch_shift(samples, 1e-9)
    assert (shifted - samples).abs().max() < 1e-4


# --- views ----------------------------------------------------------------------------------------------------------


def test_clean_view_is_the_plain_spectrogram():
    samples = 30 * noise(5000)
    (view,) = render_audio(samples, [("clean", 0)], "c", 0, SPEC)
    expected = log_spectrogram(fit_length(samples, SPEC.num_samples)[None], RATE)
    assert torch.equal(view, expected)


def test_weak_view_differs_by_gain_pitch_and_little_noise():
    samples = tone(1000, 8192) + 0.1 * noise(8192)
    clean, weak, other = render_audio(samples, VIEWS[:3], "c", 0, SPEC)[:, 0]
    assert 0.01 < (weak - clean).abs().mean() < 1
    assert not torch.equal(weak, other)
    assert torch.corrcoef(torch.stack([weak.mean(1), clean.mean(1)]))[0, 1] > 0.9


def test_weak_gain_and_pitch_keep_the_papers_ranges(monkeypatch: pytest.MonkeyPatch):
    drawn = []

    def record(samples: torch.Tensor, semitones: float) -> torch.Tensor:
        drawn.append((float(samples.max()), semitones))
        return samples

    monkeypatch.setattr(audio, "pitch_shift", record)
    for i in range(200):
        render_audio(torch.ones(600), [("weak", 0)], f"clip{i}", 0, AudioInput(RATE, 600))
    gains, semitones = np.array(drawn).T
    assert 0.8 <= gains.min() < 0.82
    assert 1.18 < gains.max() <= 1.2 + 1e-6
    assert -1 <= semitones.min() < -0.95
    assert 0.95 < semitones.max() <= 1


def test_weak_pitch_moves_a_tone():
    rows = [
        int(render_audio(tone(4000, 8192), [("weak", 0)], f"c{i}", 0, SPEC)[0, 0].mean(1).argmax()) for i in range(9)
    ]
    assert len(set(rows)) > 4
    assert 128 / 2 ** (1 / 12) - 1 <= min(rows) < 128 < max(rows) <= 128 * 2 ** (1 / 12) + 1


def test_weak_noise_stays_in_its_range():
    """In silence the spectrogram is 0, so that the view is the noise."""
    (weak,) = render_audio(torch.zeros(9000), [("weak", 0)], "c", 0, SPEC)
    assert 0.029 < weak.max() <= 0.03
    assert -0.03 <= weak.min() < -0.029
    assert weak.mean().abs() < 0.001


@pytest.mark.parametrize("spec", [SPEC, PAPER, AudioInput(RATE, 600)])
def test_strong_view_is_the_weak_view_masked_and_noisier(spec: AudioInput):
    rows, columns = spec.shape
    starts = set()
    for clip in ("a", "b", "c", "d"):
        weak, strong = render_audio(noise(3000), [("weak", 1), ("strong", 1)], clip, 0, spec)[:, 0]
        added = (strong - weak).abs() <= 0.1 + 1e-6
        masked = (strong.abs() <= 0.1 + 1e-6) & ~added
        masked_rows = (masked | added).float().mean(1) > 0
        band = masked.float().mean(1) > 0.3
        stretch = masked.float().mean(0) > 0.3
        assert masked_rows.all()
        assert int(band.sum()) == (18 if rows == 257 else 1) or columns == 1
        assert int(stretch.sum()) == max(1, round(40 * columns / 1004))
        assert (added | masked).all()
        starts.add((int(band.int().argmax()), int(stretch.int().argmax())))
    assert len(starts) > 1 or columns == 1


def test_the_weak_view_is_the_same_with_and_without_the_strong_one():
    samples = noise(5000)
    alone = render_audio(samples, [("weak", 0)], "c", 0, SPEC)
    together = render_audio(samples, [("strong", 0), ("weak", 0)], "c", 0, SPEC)
    assert torch.equal(alone[0], together[1])


@pytest.mark.parametrize("count", [0, 1, 2, 50, 511, 512, 8191, 8193, 30_000])
def test_any_length_gives_finite_views(count: int):
    for samples in (noise(count), torch.zeros(count), torch.ones(count)):
        views = render_audio(samples, VIEWS, "c", 0, SPEC)
        assert views.shape == (5, 1, *SPEC.shape)
        assert views.dtype == torch.float32
        assert views.isfinite().all()


def test_what_comes_after_the_kept_samples_is_not_heard():
    samples = noise(40_000)
    views = render_audio(samples, VIEWS, "c", 0, SPEC)
    changed = samples.clone()
    changed[SPEC.num_samples + 2048 :] = 0.5
    assert torch.equal(render_audio(changed, VIEWS, "c", 0, SPEC), views)
    # The frame that the last kept samples belong to is heard whole.
    changed[SPEC.num_samples :] = 0.5
    again = render_audio(changed, VIEWS, "c", 0, SPEC)
    assert torch.equal(again[0], views[0])
    assert not torch.allclose(again[1], views[1], atol=0.1)


def test_the_cut_leaves_no_mark():
    """A long clip is cut before the pitch shift; the last samples that are kept sound like the others."""
    kept = SPEC.num_samples
    for semitones in (-0.9, 0.8):
        shifted = pitch_shift(tone(1000, 40_000)[: kept + 2048], semitones)[:kept]
        assert shifted[-512:].std() == pytest.approx(float(shifted[4000:5000].std()), rel=0.05)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="one axis"):
        render_audio(torch.zeros(2, 900), VIEWS, "c", 0, SPEC)
    with pytest.raises(ValueError, match="allowed: clean, weak, strong"):
        render_audio(noise(900), [("loud", 0)], "c", 0, SPEC)
