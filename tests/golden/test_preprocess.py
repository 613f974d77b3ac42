"""Resize, centre crop and normalisation against the reference's validation pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from extractors.inputs import FrameInput
from extractors.views.flow import render_flow
from extractors.views.plan import plan_frames
from extractors.views.video import render_video

RGB = FrameInput(2, 1, 256, 224, 224, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
FLOW = FrameInput(2, 1, 256, 224, 256, mean=(128.0, 128.0), std=(128.0, 128.0))
CASES = [
    ("rgb", 256, 456, 5001),
    ("rgb", 240, 320, 5002),
    ("rgb", 720, 1280, 5003),
    ("flow", 256, 456, 5004),
    ("flow", 240, 320, 5005),
]


def golden_frames(channels: int, height: int, width: int, seed: int) -> np.ndarray:
    """The two frames of a case, uint8 (2, height, width, channels), by the rule of the golden README."""
    frames = []
    for i in range(2):
        rng = np.random.default_rng(10 * seed + i)
        a, p = rng.uniform(2, 9, (2, channels)), rng.uniform(0, 6.28, (2, channels))
        x, y = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
        wave = 127.5 + 80 * np.sin(a[0] * 6.28 * x + p[0]) * np.cos(a[1] * 6.28 * y + p[1])
        value = wave + 30 * rng.standard_normal((height, width, channels))
        frames.append(np.clip(np.rint(value), 0, 255).astype(np.uint8))
    return np.stack(frames)


def render_case(modality: str, frames: np.ndarray, antialias: bool) -> torch.Tensor:
    spec = RGB if modality == "rgb" else FLOW
    plans = plan_frames("c", 2, spec, [("clean", 0)], 0, "video" if modality == "rgb" else "flow")
    rows = np.arange(2)
    if modality == "rgb":
        return render_video(torch.from_numpy(frames), rows, plans, spec, antialias=antialias)[0]
    flow = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    return render_flow(flow, rows, plans, spec, antialias=antialias)[0]


@pytest.mark.parametrize(("modality", "height", "width", "seed"), CASES)
def test_validation_pipeline(golden_dir: Path, modality: str, height: int, width: int, seed: int):
    with np.load(golden_dir / "preprocess.npz") as golden:
        case = {name: golden[f"{modality}/{height}x{width}/{name}"] for name in (
            "input_check", "output_shape", "output_t01_strided", "output_mean_std")}  # fmt: skip
    channels, level = (3, 1 / 57) if modality == "rgb" else (2, 1 / 128)
    frames = golden_frames(channels, height, width, seed)
    assert frames.sum(dtype=np.int64) == case["input_check"][0]

    result = render_case(modality, frames, antialias=False)
    expected = case["output_t01_strided"][0]
    assert tuple(result.shape[-2:]) == tuple(case["output_shape"][-2:])
    assert np.abs(result[:, :, ::4, ::4].numpy() - expected).max() <= level + 1e-6
    values = result.double().numpy()
    assert np.allclose([values.mean(), values.std()], case["output_mean_std"], atol=0.2 * level)


def test_antialiasing_is_what_differs_when_shrinking():
    """Our default removes detail that the reference's resizing turns into noise; enlarging is the same."""
    smaller = golden_frames(3, 720, 1280, 5003)
    assert render_case("rgb", smaller, antialias=True).std() < 0.95 * render_case("rgb", smaller, antialias=False).std()
    larger = torch.from_numpy(golden_frames(3, 240, 320, 5002))
    difference = render_case("rgb", larger.numpy(), True) - render_case("rgb", larger.numpy(), False)
    assert difference.abs().max() <= 1 / 57 + 1e-6
