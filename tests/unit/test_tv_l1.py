"""TV-L1 in torch: beside OpenCV's, on motion that is known, and on what breaks such code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from extractors import tv_l1
from extractors.optical_flow import grey, quantise
from extractors.tv_l1 import tv_l1_flow
from pipeline.decode import open_frames

contrib = pytest.mark.skipif(not hasattr(cv2, "optflow"), reason="this OpenCV was built without cv2.optflow")


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random grey levels, uint8 (height, width)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2), dtype=np.uint8)
    return torch.from_numpy(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def opencv(first: Tensor, second: Tensor, engine: Any = None) -> Tensor:
    """OpenCV's flow of one pair of uint8 images, (2, height, width)."""
    engine = engine or cv2.optflow.DualTVL1OpticalFlow_create()
    return torch.from_numpy(engine.calc(first.numpy(), second.numpy(), None)).permute(2, 0, 1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """End-point differences in pixels."""
    return (a - b).square().sum(-3).sqrt()


def real_pair(path: Path, number: int, short_side: int) -> tuple[Tensor, Tensor]:
    """Grey images of a frame and the next."""
    with open_frames(path) as reader:
        frames = reader.read([number, number + 1])
    scale = short_side / min(frames.shape[1:3])
    small = [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames]
    return grey(torch.from_numpy(small[0])), grey(torch.from_numpy(small[1]))


# --- beside OpenCV --------------------------------------------------------------------------------------------------


@contrib
@pytest.mark.parametrize(
    ("file", "number"),
    [("v_GGSY1Qvo990.mp4", 40), ("v_ZNVhz7ctTq0.mp4", 40), ("arm_wrestling.mp4", 40), ("test.avi", 5)],
)
def test_real_video_gives_the_flow_of_opencv(media_dir: Path, file: str, number: int):
    # One rounding that differs may end a warp an iteration sooner or later, and becomes some 0.01 pixels.
    first, second = real_pair(media_dir / file, number, 120)
    flow, theirs = tv_l1_flow(first[None], second[None])[0], opencv(first, second)
    apart = distance(flow, theirs)
    assert theirs.norm(dim=0).mean() > 0.2
    assert apart.mean() < 0.03
    assert apart.flatten().quantile(0.95) < 0.08
    assert (quantise(flow) == quantise(theirs)).float().mean() > 0.9


@contrib
@pytest.mark.parametrize("shape", [(3, 3), (3, 40), (5, 7), (16, 19), (20, 20), (21, 33), (37, 24), (64, 61)])
def test_any_size_gives_the_flow_of_opencv(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    engine = cv2.optflow.DualTVL1OpticalFlow_create()
    engine.setWarpingsNumber(1)  # each further one makes ten times more of a rounding, in pictures of such contrast
    engine.setOuterIterations(1)
    monkeypatch.setattr(tv_l1, "WARPS", 1)
    monkeypatch.setattr(tv_l1, "ROUNDS", 1)
    picture = texture(shape[0] + 2, shape[1] + 2, seed=3)
    first, second = picture[1:-1, 1:-1].contiguous(), picture[:-2, 2:].contiguous()
    flow, theirs = tv_l1_flow(first[None], second[None])[0], opencv(first, second, engine)
    assert distance(flow, theirs).max() < 5e-4
    assert theirs.abs().max() > 0.1


@contrib
@pytest.mark.parametrize(
    ("scales", "warps", "rounds", "iterations", "epsilon"),
    [(1, 1, 1, 1, 0.0), (1, 1, 2, 5, 0.0), (1, 2, 1, 6, 0.0), (2, 2, 2, 6, 0.0), (3, 2, 3, 9, 0.05), (9, 1, 1, 4, 0.0)],
)
def test_short_runs_agree_to_the_last_digits(
    scales: int, warps: int, rounds: int, iterations: int, epsilon: float, monkeypatch: pytest.MonkeyPatch
):
    """Before roundings add up."""
    picture = texture(50, 70, seed=1)
    first, second = picture[1:-1, 1:-1].contiguous(), picture[:-2, 2:].contiguous()
    engine = cv2.optflow.DualTVL1OpticalFlow_create()
    engine.setScalesNumber(scales)
    engine.setWarpingsNumber(warps)
    engine.setOuterIterations(rounds)
    engine.setInnerIterations(iterations)
    engine.setEpsilon(epsilon)
    theirs = opencv(first, second, engine)
    assert theirs.abs().max() > 1
    values = {"SCALES": scales, "WARPS": warps, "ROUNDS": rounds, "ITERATIONS": iterations, "EPSILON": epsilon}
    for name, value in values.items():
        monkeypatch.setattr(tv_l1, name, value)
    for at_once in (1, 2):
        flow = tv_l1_flow(torch.stack([first] * 2), torch.stack([second] * 2), pairs_at_once=at_once)
        assert distance(flow, theirs).max() < 3e-4


def test_the_median_is_that_of_opencv():
    for shape in [(1, 1), (2, 3), (5, 5), (17, 30)]:
        planes = torch.from_numpy(np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32))
        planes[0] = planes[0].round()  # many equal values
        expected = np.stack([cv2.medianBlur(plane, 5).reshape(shape) for plane in planes.numpy()])
        assert np.array_equal(tv_l1._median(planes).numpy(), expected)


def test_sizes_of_scales_are_resized_as_by_opencv():
    planes = torch.from_numpy(np.random.default_rng(0).random((2, 41, 57), dtype=np.float32) * 255)
    smaller = np.stack([cv2.resize(plane, None, fx=0.8, fy=0.8) for plane in planes.numpy()])
    assert np.abs(tv_l1._resize(planes, [33, 46], 0.8).numpy() - smaller).max() < 1e-4
    larger = np.stack([cv2.resize(plane, (71, 51)) for plane in planes.numpy()])
    assert np.abs(tv_l1._resize(planes, [51, 71]).numpy() - larger).max() < 2e-3  # OpenCV 4 rounds weights


# --- known motion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [(1, 0), (0, -2), (3, 2), (-4, 3)])
def test_translations(move: tuple[int, int]):
    right, down = move
    picture = texture(120, 140)
    first = picture[20:100, 20:116]
    second = picture[20 - down : 100 - down, 20 - right : 116 - right]
    flow = tv_l1_flow(first[None], second[None])[0, :, 12:-12, 12:-12]
    assert distance(flow, torch.tensor([right, down]).view(2, 1, 1)).mean() < 0.1


def test_a_rotation():
    """Two degrees around the middle: displacements of up to 2 pixels, in all directions."""
    picture = texture(96, 96, seed=2)
    turn = cv2.getRotationMatrix2D((47.5, 47.5), 2.0, 1.0)
    turned = torch.from_numpy(
        cv2.warpAffine(picture.numpy(), turn, (96, 96), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    )
    y, x = np.mgrid[:96, :96].astype(np.float64)
    there = np.stack([turn[c, 0] * x + turn[c, 1] * y + turn[c, 2] for c in range(2)])
    expected = torch.from_numpy(there - np.stack([x, y]))
    flow = tv_l1_flow(picture[None], turned[None])[0].double()
    inside = (distance(flow, expected))[10:-10, 10:-10]
    assert inside.mean() < 0.06
    assert inside.quantile(0.95) < 0.15


def test_mirrored_images_move_the_other_way():
    picture = texture(80, 110, seed=4)
    first, second = picture[4:-4, 4:-4], picture[2:-6, 7:-1]
    flow = tv_l1_flow(first[None], second[None])[0]
    mirrored = tv_l1_flow(first.flip(1)[None], second.flip(1)[None])[0].flip(-1) * torch.tensor([-1, 1]).view(2, 1, 1)
    assert flow[0].mean() < -2
    # Differences go to the right and below, and pixels that fall out do so on another side: not the same near edges.
    assert distance(flow, mirrored)[10:-10, 10:-10].mean() < 0.05
    upside_down = tv_l1_flow(first.flip(0)[None], second.flip(0)[None])[0].flip(-2)
    upside_down *= torch.tensor([1, -1]).view(2, 1, 1)
    assert distance(flow, upside_down)[10:-10, 10:-10].mean() < 0.05


# --- batches, sizes, values -----------------------------------------------------------------------------------------


def some_pairs() -> tuple[Tensor, Tensor]:
    """Pairs that stop after very different numbers of iterations."""
    first = torch.stack([texture(36, 48, i) for i in range(4)])
    second = torch.stack([first[0], first[1].roll(1, 1), first[2].roll((4, 3), (0, 1)), texture(36, 48, 9)])
    return first, second


def test_a_pair_does_not_depend_on_its_batch():
    first, second = some_pairs()
    whole = tv_l1_flow(first, second)
    for order in ([2], [3, 1, 0], [1, 1]):
        assert torch.equal(tv_l1_flow(first[order], second[order]), whole[order])


@pytest.mark.parametrize("at_once", [3, 4])
def test_pairs_that_are_computed_together_are_held_where_each_stops(at_once: int):
    first, second = some_pairs()
    together = tv_l1_flow(first, second, pairs_at_once=at_once)
    assert distance(together, tv_l1_flow(first, second)).max() < 1e-3


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    first, second = (t[2:] for t in some_pairs())
    whole = tv_l1_flow(first, second)
    for size in (200, 1000):
        monkeypatch.setattr(tv_l1, "_BLOCK", size)
        # Sums of changes are rounded otherwise, and may stop a pair an iteration sooner or later.
        assert distance(tv_l1_flow(first, second), whole).mean() < 0.01


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 40), (33, 1), (2, 2), (3, 2), (4, 4), (9, 31), (16, 16), (19, 32), (32, 20)]
)
@pytest.mark.parametrize("at_once", [1, 2])
def test_tiny_images(shape: tuple[int, int], at_once: int):
    first = torch.stack([texture(*shape, seed) for seed in range(2)])
    flow = tv_l1_flow(first, first.flip(-1), pairs_at_once=at_once)
    assert flow.shape == (2, 2, *shape)
    assert flow.isfinite().all()
    assert tv_l1_flow(first, first, pairs_at_once=at_once).abs().max() < 1e-6


@pytest.mark.parametrize("levels", [(0, 0), (255, 255), (0, 255), (255, 0), (7, 9)])
def test_images_of_one_level_do_not_move_inside(levels: tuple[int, int]):
    first, second = (torch.full((1, 30, 44), level, dtype=torch.uint8) for level in levels)
    flow = tv_l1_flow(first, second)
    assert flow.isfinite().all()
    assert flow[..., 8:-8, 8:-8].abs().max() < 1e-3


def test_extreme_images_stay_finite():
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (3, 40, 50)).astype(np.uint8) * 255)
    flow = tv_l1_flow(noise[:2], noise[1:])
    assert flow.isfinite().all()
    assert flow.abs().max() < 100


def test_levels_may_be_of_any_type():
    first, second = (t[1:2] for t in some_pairs())
    flow = tv_l1_flow(first, second)
    assert flow.dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(tv_l1_flow(first.to(dtype), second.to(dtype)), flow)
    assert torch.equal(tv_l1_flow(first.mT.contiguous().mT, second.mT.contiguous().mT), flow)


def test_images_are_left_as_they_are():
    first, second = (t[:2].float() for t in some_pairs())
    kept = first.clone(), second.clone()
    tv_l1_flow(first, second, pairs_at_once=2)
    assert torch.equal(first, kept[0])
    assert torch.equal(second, kept[1])


def test_no_pairs_give_no_flow():
    assert tv_l1_flow(torch.empty(0, 5, 6), torch.empty(0, 5, 6)).shape == (0, 2, 5, 6)


def test_pairs_at_once_follow_the_device():
    assert tv_l1.default_pairs_at_once(256, 341, torch.device("cpu")) == 1
    assert tv_l1.default_pairs_at_once(256, 341, torch.device("cuda")) == 2**30 // (320 * 256 * 341)
    assert tv_l1.default_pairs_at_once(10_000, 10_000, torch.device("cuda")) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tv_l1_flow(torch.zeros(1, 4, 5), torch.zeros(1, 5, 4)), r"shapes \(1, 4, 5\) and \(1, 5, 4\); both"),
        (lambda: tv_l1_flow(torch.zeros(4, 5), torch.zeros(4, 5)), "must be"),
        (lambda: tv_l1_flow(torch.zeros(1, 0, 5), torch.zeros(1, 0, 5)), "must be"),
        (lambda: tv_l1_flow(torch.zeros(1, 4, 5), torch.zeros(1, 4, 5), pairs_at_once=0), "at least 1"),
    ],
)
def test_mistakes_are_named(call: Callable[[], Tensor], message: str):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_flow_of_the_cpu():
    first, second = some_pairs()
    flow = tv_l1_flow(first.cuda(), second.cuda())
    assert flow.device.type == "cuda"
    assert distance(flow.cpu(), tv_l1_flow(first, second)).mean() < 0.03
