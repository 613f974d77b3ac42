"""The log spectrogram against the reference's scipy front end."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal

from extractors.spectrogram import fit_length, log_spectrogram

LENGTH = 160_000
SILENT = ("empty_segment", "zeros_2s", "constant_0.25_2s")
CASES = (
    "example_wav_0_10",
    "synth_24k_1.3s",
    "synth_16k_1.3s",
    *SILENT,
    "middle_segment",
    "longer_than_10s",
    "clipping",
    "stop_past_end",
)


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    with np.load(golden_dir / "spectrogram.npz") as archive:
        return {name: archive[name] for name in archive.files}


def read_wav(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2") / 32768.0


def signal_of(case: dict[str, Any], media_dir: Path) -> np.ndarray:
    """The signal of a case, float64, by the rule of the golden README."""
    if case.get("src") == "wav":
        return read_wav(media_dir / "FwVYUHKoLtQ_000034.wav")
    count = round(case["sr"] * case["dur"])
    if case.get("zeros"):
        return np.zeros(count)
    if "const" in case:
        return np.full(count, case["const"])
    t = np.arange(count) / case["sr"]
    tones = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 3000 * t)
    return (tones + 0.1 * np.random.default_rng(case["seed"]).standard_normal(count)) * case.get("gain", 1.0)


@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(golden: dict[str, np.ndarray], media_dir: Path, name: str):
    meta = json.loads(str(golden["meta_json"]))
    assert set(meta) == set(CASES)
    case = meta[name]
    x = signal_of(case, media_dir)
    check = [len(x), x.sum(), np.abs(x).sum(), x[len(x) // 3], x[-1]]
    assert np.allclose(check, golden[f"{name}/input_check"], rtol=1e-9)

    segment = torch.from_numpy(x[case["start_sample"] : case["stop_sample_exclusive"]].copy())
    for dtype, tolerance in ((torch.float64, 2e-6), (torch.float32, 1e-4)):
        # The stored value of silence is the rounding of a mean, divided by 1e-9; ours is exactly 0.
        tolerance = 2e-5 if name in SILENT else tolerance
        waveform = fit_length(segment.to(dtype), LENGTH)
        result = log_spectrogram(waveform[None], case["sample_rate"])[0]
        assert result.dtype == dtype
        assert result.shape == (257, 1004)
        values = result.double().numpy()
        assert np.abs(values[::4, ::8] - golden[f"{name}/spectrogram_strided"]).max() <= tolerance
        assert np.abs(values.mean(1) - golden[f"{name}/row_mean"]).max() <= tolerance
        assert np.abs(values.mean(0) - golden[f"{name}/col_mean"]).max() <= tolerance
        if case.get("full"):
            assert np.abs(values - golden[f"{name}/spectrogram"]).max() <= tolerance
        if name in SILENT:
            assert not values.any()
        else:
            stats = [values.mean(), values.std(), values.min(), values.max()]
            assert np.allclose(stats, golden[f"{name}/stats"], atol=tolerance)


@pytest.mark.parametrize(("window", "overlap", "rate"), [(512, 353, 16000), (256, 128, 8000), (511, 100, 24000)])
def test_against_scipy_at_other_settings(window: int, overlap: int, rate: int):
    x = np.random.default_rng(3).standard_normal((3, 6000)) * np.array([[0.3], [1e-3], [1e-5]]) + 0.2
    _, _, power = signal.spectrogram(x, rate, nperseg=window, noverlap=overlap)
    level = np.log(power + 1e-7)
    mean, std = level.mean((1, 2), keepdims=True), level.std((1, 2), keepdims=True)
    expected = (level - mean) / (std + 1e-9)
    result = log_spectrogram(torch.from_numpy(x), rate, window, overlap)
    # The third signal lies below the floor: scipy's own logarithm keeps nine of its digits.
    assert np.abs(result[:2].numpy() - expected[:2]).max() < 2e-6
    assert np.abs(result[2].numpy() - expected[2]).max() < 1e-4
