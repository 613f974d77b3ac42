"""The log mel spectrogram: librosa's numbers, its shape, what an input may ask for, and views of it."""

from __future__ import annotations

import subprocess
import sys

import librosa
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from extractors.backbone import BACKBONES
from extractors.inputs import AudioInput
from extractors.spectrogram import fit_length, log_magnitude, log_mel, log_spectrogram, spectrograms
from extractors.views.audio import render_audio

RATE = 22_050
PAPER = AudioInput(RATE, 3 * RATE, 2048, 2048 - 512, "mel", 128)
SMALL = AudioInput(RATE, 9_000, 512, 512 - 256, "mel", 40)
VIEWS = [("clean", 0), ("weak", 0), ("weak", 1), ("strong", 0), ("strong", 1)]
TOLERANCE = 1e-4  # of the logarithm: torchaudio makes its filters in float32


def sounds(count: int) -> dict[str, NDArray[np.float64]]:
    rng, t = np.random.default_rng(0), np.arange(count) / RATE
    tones = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 3000 * t)
    return {
        "noise": rng.normal(0, 0.1, count),
        "tones": tones + 0.01 * rng.standard_normal(count),
        "pure": tones,
        "quiet": 1e-5 * rng.standard_normal(count),
        "offset": np.full(count, 0.25) + 0.001 * rng.standard_normal(count),
        "silence": np.zeros(count),
    }


def by_librosa(sound: NDArray[np.float64], **settings: float) -> NDArray[np.float64]:
    """librosa's own, from end to end in float64."""
    power = librosa.feature.melspectrogram(y=sound, sr=RATE, dtype=np.float64, **settings)
    return np.log(power + 1e-7)


# --- librosa --------------------------------------------------------------------------------------------------------


def test_the_defaults_are_librosas():
    for name, sound in sounds(9_000).items():
        ours = log_mel(torch.from_numpy(sound)[None], RATE)[0]
        expected = by_librosa(sound)
        assert ours.dtype == torch.float64
        assert ours.shape == expected.shape == (128, 18)
        assert np.abs(ours.numpy() - expected).max() < TOLERANCE, name


@pytest.mark.parametrize(
    ("window", "hop", "bands", "low", "high"),
    [
        (1024, 160, 64, 50.0, 8000.0),
        (512, 353, 40, 0.0, None),
        (510, 700, 20, 300.0, 11_025.0),
        (2048, 512, 1, 0.0, 99.0),
    ],
)
def test_every_setting_is_librosas(window: int, hop: int, bands: int, low: float, high: float | None):
    batch = np.stack(list(sounds(5_003).values()))
    settings = {"n_fft": window, "hop_length": hop, "n_mels": bands, "fmin": low}
    expected = by_librosa(batch, **settings, **({} if high is None else {"fmax": high}))
    for dtype in (torch.float64, torch.float32):
        waveform = torch.from_numpy(batch).to(dtype)
        before = waveform.clone()
        ours = log_mel(waveform, RATE, window, hop, num_mels=bands, min_hz=low, max_hz=high)
        assert ours.dtype == dtype
        assert ours.shape == expected.shape
        rounded = by_librosa(waveform.double().numpy(), **settings, **({} if high is None else {"fmax": high}))
        assert np.abs(ours.double().numpy() - rounded).max() < TOLERANCE
        assert torch.equal(waveform, before)


def test_it_is_decibels_by_another_factor_and_floor():
    """What stands in the docstring about ``librosa.power_to_db``, for a sound far above both floors."""
    power = librosa.feature.melspectrogram(y=sounds(9_000)["noise"], sr=RATE, dtype=np.float64)
    decibels = librosa.power_to_db(power, top_db=None)
    ours = log_mel(torch.from_numpy(sounds(9_000)["noise"])[None], RATE)[0].numpy()
    assert np.abs(ours * 10 / np.log(10) - decibels).max() < 1e-2


def test_silence_is_the_floor():
    assert torch.equal(log_mel(torch.zeros(1, 800), RATE), torch.full((1, 128, 2), np.log(1e-7)))


def test_rows_do_not_depend_on_the_batch():
    batch = torch.from_numpy(np.stack(list(sounds(4_000).values())).astype(np.float32))
    whole = log_mel(batch, RATE)
    for i in range(len(batch)):
        assert torch.allclose(log_mel(batch[i : i + 1], RATE)[0], whole[i], atol=1e-5)


def test_torchaudio_is_imported_only_for_mel_bands():
    code = (
        "import sys, torch; from extractors.inputs import AudioInput; from extractors.views.audio import render_audio;"
        "render_audio(torch.zeros(9), [('weak', 0)], 'c', 0, AudioInput(16000, 900));"
        "assert 'torchaudio' not in sys.modules;"
        "render_audio(torch.zeros(9), [('weak', 0)], 'c', 0, AudioInput(16000, 900, kind='mel', num_mels=9));"
        "assert 'torchaudio' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_the_backbones_shape():
    assert PAPER.shape == (128, 130)
    assert BACKBONES["resnet18-mel"].input == PAPER
    assert BACKBONES["resnet18-mel"].row_shape() == (1, 128, 130)


@pytest.mark.parametrize("count", [600, 820, 5_003])
@pytest.mark.parametrize(("window", "overlap"), [(512, 159), (512, 0), (402, 60), (256, 255)])
def test_shape_is_what_the_input_says(count: int, window: int, overlap: int):
    spec = AudioInput(RATE, count, window, overlap, "mel", 12)
    assert render_audio(torch.zeros(300), [("clean", 0)], "c", 0, spec).shape == (1, 1, *spec.shape)


def test_each_kind_gets_its_own_spectrogram():
    waveform = torch.from_numpy(sounds(9_000)["tones"].astype(np.float32))[None]
    power, magnitude = AudioInput(RATE, 9_000, 256, 100), AudioInput(RATE, 9_000, 256, 100, "magnitude")
    mel = AudioInput(RATE, 9_000, 256, 100, "mel", 30, 100.0, 9_000.0)
    assert torch.equal(spectrograms(waveform, power), log_spectrogram(waveform, RATE, 256, 100))
    assert torch.equal(spectrograms(waveform, magnitude), log_magnitude(waveform, 256, 156))
    expected = log_mel(waveform, RATE, 256, 156, num_mels=30, min_hz=100.0, max_hz=9_000.0)
    assert torch.equal(spectrograms(waveform, mel), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "num_mels is 0; kind 'mel' needs at least 1"),
        ({"num_mels": 8, "rate_hz": 11_025}, "rate_hz is 11025 and window_samples 512; kind 'mel' needs both even"),
        ({"num_mels": 8, "window_samples": 511}, "rate_hz is 16000 and window_samples 511; kind 'mel' needs both"),
        ({"num_mels": 8, "min_hz": 900.0, "max_hz": 900.0}, "from 900 to 900 Hz"),
        ({"num_mels": 8, "max_hz": 8_001.0}, "allowed: ascending, from 0 to half the rate, 8000 Hz"),
        ({"num_mels": 8, "min_hz": -1.0}, "from -1 to 8000 Hz"),
        ({"num_mels": 8, "max_hz": float("nan")}, "from 0 to nan Hz"),
        ({"num_mels": 8, "kind": "power"}, "num_mels is 8, min_hz 0 and max_hz None for the kind 'power'"),
        ({"max_hz": 800.0, "kind": "magnitude"}, "max_hz 800.0 for the kind 'magnitude', which has no mel bands"),
        ({"kind": "cqt"}, "'cqt'; allowed: power, magnitude, mel"),
    ],
)
def test_impossible_inputs_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        AudioInput(**{"rate_hz": 16_000, "num_samples": 900, "kind": "mel", **fields})


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"\(batch, num_samples\)"):
        log_mel(torch.zeros(600), RATE)
    with pytest.raises(ValueError, match="hop_samples is 0"):
        log_mel(torch.zeros(1, 600), RATE, 512, 0)
    with pytest.raises(ValueError, match="rate_hz is 11025"):
        log_mel(torch.zeros(1, 600), 11_025)
    with pytest.raises(ValueError, match=r"of 128 mel bands from 0 to 11025 Hz hold none of the 65 frequencies .*128"):
        log_mel(torch.zeros(1, 600), RATE, 128, 64)


# --- views ----------------------------------------------------------------------------------------------------------


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32))


def test_the_clean_view_is_not_standardised():
    samples = 3 * noise(5_000)
    (view,) = render_audio(samples, [("clean", 0)], "c", 0, SMALL)
    waveform = fit_length(samples, SMALL.num_samples)[None]
    assert torch.equal(view, log_mel(waveform, RATE, 512, 256, num_mels=40))


def test_noise_scales_with_the_contrast_of_the_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("extractors.views.audio.pitch_shift", lambda samples, semitones: samples)
    clean, weak = render_audio(noise(SMALL.num_samples), VIEWS[:2], "c", 0, SMALL)[:, 0]
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
        assert int(band.sum()) == round(18 * rows / 257) == 3
        assert int(stretch.sum()) == max(1, round(40 * columns / 1004))
        starts.add((int(band.int().argmax()), int(stretch.int().argmax())))
    assert len(starts) > 1


def test_silent_views_are_the_floor_without_noise():
    views = render_audio(torch.zeros(5_000), VIEWS, "c", 0, SMALL)
    assert (views - np.log(1e-7)).abs().max() < 1e-5


@pytest.mark.parametrize("count", [0, 1, 511, 9_000, 20_000])
def test_any_length_gives_finite_views(count: int):
    for samples in (noise(count), torch.zeros(count), torch.ones(count)):
        views = render_audio(samples, VIEWS, "c", 0, SMALL)
        assert views.shape == (5, 1, *SMALL.shape)
        assert views.dtype == torch.float32
        assert views.isfinite().all()
