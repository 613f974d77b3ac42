"""Optical flow: computing it, its 8-bit form, and flow views."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from extractors import optical_flow
from extractors.inputs import FrameInput
from extractors.optical_flow import quantise
from extractors.views.flow import render_flow
from extractors.views.plan import FramePlan, needed_indices, plan_frames

SPEC = FrameInput(4, 2, 40, 32, 40, mean=(128.0, 128.0), std=(128.0, 128.0))
METHODS = ("dis-medium", "dis-fast", "dis-ultrafast", "tvl1")
VIEWS = [("clean", 0), ("weak", 0), ("weak", 1), ("strong", 0), ("strong", 1)]


def dequantise(levels: np.ndarray, bound: float = 20.0) -> np.ndarray:
    """Displacement in pixels of 8-bit levels."""
    return levels.astype(np.float32) * np.float32(2 * bound / 255) - np.float32(bound)


def compute_flow(before: np.ndarray, after: np.ndarray, method: str) -> np.ndarray:
    """Levels of the flow between RGB frames."""
    return optical_flow.compute_flow(before, after, method).numpy()


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def flow_images(height: int, width: int, count: int, seed: int = 0) -> torch.Tensor:
    frames = np.stack([texture(height, width, seed + i)[:, :, :2] for i in range(count)])
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def render(flow: torch.Tensor, plans: list[FramePlan], spec: FrameInput = SPEC) -> list[torch.Tensor]:
    rows = needed_indices(plans)
    return render_flow(flow[torch.from_numpy(rows)], rows, plans, spec)


def plan_of(kind: str, **changes: object) -> FramePlan:
    (plan,) = plan_frames("c", 9, SPEC, [(kind, 0)], 0, "flow")
    return dataclasses.replace(plan, **changes)


# --- the 8-bit form -------------------------------------------------------------------------------------------------


def test_levels_of_the_published_data_sets():
    flow = np.array([-25.0, -20.0, 0.0, 20.0, 25.0, 1.0, -1.0], dtype=np.float32)
    assert quantise(flow).tolist() == [0, 0, 128, 255, 255, 134, 121]
    assert quantise(np.zeros(1, dtype=np.float32), bound=7.0).tolist() == [128]


@pytest.mark.parametrize("bound", [20.0, 5.0])
def test_quantising_loses_at_most_half_a_level(bound: float):
    flow = np.linspace(-bound, bound, 1001, dtype=np.float32)
    assert np.abs(dequantise(quantise(flow, bound), bound) - flow).max() <= bound / 255 + 1e-5
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(quantise(dequantise(levels, bound), bound), levels)


# --- computing it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("move", [(3, 0), (-2, 0), (0, 4), (2, -3)])
def test_flow_points_where_the_picture_went(method: str, move: tuple[int, int]):
    right, down = move
    picture = texture(140, 180)
    before = picture[20:116, 20:148]
    after = picture[20 - down : 116 - down, 20 - right : 148 - right]
    flow = compute_flow(before[None], after[None], method)
    assert flow.dtype == np.uint8
    assert flow.shape == (1, 2, 96, 128)
    u, v = np.median(dequantise(flow)[0, :, 10:-10, 10:-10], axis=(1, 2))
    assert abs(u - right) < 0.25
    assert abs(v - down) < 0.25


@pytest.mark.parametrize("method", METHODS)
def test_still_pictures_have_no_motion(method: str):
    frames = texture(64, 80)[None]
    assert (compute_flow(frames, frames, method) == 128).all()


@pytest.mark.parametrize("method", METHODS)
def test_pairs_do_not_depend_on_each_other(method: str):
    a = np.stack([texture(48, 64, i) for i in range(3)])
    b = np.roll(a, (1, 2), (1, 2))
    whole = compute_flow(a, b, method)
    for i in (2, 0, 1):
        assert np.array_equal(compute_flow(a[i : i + 1], b[i : i + 1], method)[0], whole[i])
    assert compute_flow(a[:0], b[:0], method).shape == (0, 2, 48, 64)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (8, 40), (16, 200), (24, 341), (40, 8), (31, 1000), (32, 33)])
@pytest.mark.parametrize("method", METHODS)
def test_small_and_narrow_pictures_do_not_crash(method: str, shape: tuple[int, int]):
    a = texture(*shape)[None]
    flow = compute_flow(a, np.roll(a, 1, 2), method)
    assert flow.shape == (1, 2, *shape)


# --- views ----------------------------------------------------------------------------------------------------------


def test_what_each_kind_of_view_does():
    views = [plan for i in range(60) for plan in plan_frames(f"clip{i}", 50, SPEC, VIEWS, 3, "flow")]
    for plan in views:
        kind = plan.view[:-1]
        assert plan.operations == ()
        assert (plan.noise_std > 0) == (plan.cutout is not None) == (kind == "strong")
        assert kind != "strong" or 0.02 <= plan.noise_std <= 0.08
        assert kind != "clean" or (plan.crop is None and not plan.flip and not plan.second_flip)
    pairs = list(zip(views[1::5], views[3::5], strict=True))
    assert all(weak.base == strong.base for weak, strong in pairs)
    assert any(weak.shift != strong.shift for weak, strong in pairs)  # drawn anew, as in the reference
    assert len({plan.noise_seed for plan in views[3::5]}) == 60


def test_rgb_and_flow_are_drawn_apart():
    video = plan_frames("c", 50, SPEC, [("weak", 0)], 0, "video")
    assert video != plan_frames("c", 50, SPEC, [("weak", 0)], 0, "flow")


def test_clean_view_has_its_own_side():
    flow = flow_images(40, 60, 9)
    (view,) = render(flow, [plan_of("clean")])
    assert view.shape == (2, 4, 40, 40)
    expected = flow[1::2, :, :, 10:50].transpose(0, 1).float()
    assert torch.allclose(view * 128 + 128, expected, atol=1e-4)


@pytest.mark.parametrize("which", ["flip", "second_flip"])
def test_a_mirror_negates_the_horizontal_component(which: str):
    flow = flow_images(50, 60, 9)
    still = plan_of("weak", flip=False, second_flip=False, shift=(0, 0))
    plain = render(flow, [still])[0] * 128 + 128
    mirrored = render(flow, [dataclasses.replace(still, **{which: True})])[0] * 128 + 128
    assert torch.equal(mirrored[0], 255 - plain[0].flip(-1))
    assert torch.equal(mirrored[1], plain[1].flip(-1))
    both = render(flow, [dataclasses.replace(still, flip=True, second_flip=True)])[0] * 128 + 128
    assert torch.equal(both, plain)


def test_a_mirrored_view_moves_as_mirrored_frames_do():
    """Flow of mirrored frames, and the mirror of the frames' flow."""
    picture = texture(140, 180)
    before, after = picture[20:116, 20:148], picture[19:115, 17:145]
    flow = torch.from_numpy(compute_flow(before[None], after[None], "dis-medium"))
    turned = compute_flow(before[None, :, ::-1], after[None, :, ::-1], "dis-medium")
    spec = FrameInput(1, 1, 96, 96, 96, mean=(128.0, 128.0), std=(128.0, 128.0))
    plans = plan_frames("c", 1, spec, [("clean", 0)], 0, "flow")
    mirrored = render(flow, [dataclasses.replace(plans[0], flip=True)], spec)[0]
    expected = render(torch.from_numpy(turned), plans, spec)[0]
    inside = (mirrored - expected)[:, 0, 12:-12, 12:-12] * 128
    assert inside.abs().median() <= 1
    assert expected[0].mean() * 128 < -10


def test_uncovered_pixels_and_the_square_have_no_motion():
    flow = flow_images(50, 60, 9)
    plan = plan_of("strong", noise_std=0.0, flip=False, second_flip=False, shift=(2, -3), cutout=(10, 12, 4))
    for zero_level in (128.0, 100.0):
        spec = dataclasses.replace(SPEC, mean=(zero_level, 128.0))
        view = render(flow, [plan], spec)[0] * 128 + torch.tensor([zero_level, 128.0]).view(2, 1, 1, 1)
        assert (view[:, :, :2] == 128).all()
        assert (view[:, :, :, -3:] == 128).all()
        assert (view[:, :, 10:14, 12:16] == 128).all()
        assert (view[:, :, 2:, :-3] == 128).float().mean() < 0.1


def test_strong_noise_has_its_deviation_and_its_seed():
    flow = flow_images(50, 60, 9)
    noisy = plan_of("strong", noise_std=0.05)
    plain, first, again, other = render(
        flow, [dataclasses.replace(noisy, noise_std=0.0), noisy, noisy, dataclasses.replace(noisy, noise_seed=1)]
    )
    noise = first - plain
    assert 0.048 < noise.std() < 0.052
    assert noise.mean().abs() < 0.003
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (7, 90), (200, 151)])
@pytest.mark.parametrize("total", [1, 2, 9])
def test_odd_clips_give_whole_views(shape: tuple[int, int], total: int):
    for view in render(flow_images(*shape, total), plan_frames("c", total, SPEC, VIEWS, 0, "flow")):
        assert view.shape[:2] == (2, 4)
        assert view.isfinite().all()


def test_no_plans_give_no_views():
    assert render_flow(flow_images(8, 8, 1), np.arange(1), [], SPEC) == []
