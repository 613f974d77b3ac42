"""Plans of frame views, image operations and RGB rendering."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from extractors.inputs import FrameInput
from extractors.views.draws import view_generator
from extractors.views.geometry import resize, short_side_shape, stack_by_side
from extractors.views.operations import OPERATIONS
from extractors.views.plan import CropDraw, FramePlan, needed_indices, plan_frames
from extractors.views.sampling import clean_offset, frame_indices, random_offset
from extractors.views.video import render_video

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SPEC = FrameInput(4, 2, 40, 32, 32, mean=MEAN, std=STD)
VIEWS = [("clean", 0), ("weak", 0), ("weak", 1), ("strong", 0), ("strong", 1)]
FILL = (124, 116, 104)


def picture(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth colours with some noise, uint8 (count, height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, 3, 6, 6), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 240 + 14
    noise = torch.from_numpy(rng.integers(-9, 10, (count, 3, height, width))).float()
    return (smooth + noise).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def render(frames: torch.Tensor, plans: list[FramePlan], spec: FrameInput = SPEC) -> list[torch.Tensor]:
    rows = needed_indices(plans)
    return render_video(frames[torch.from_numpy(rows)], rows, plans, spec)


def in_levels(values: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: grey levels."""
    return values * torch.tensor(STD).view(3, 1, 1, 1) + torch.tensor(MEAN).view(3, 1, 1, 1)


# --- draws and sampling ---------------------------------------------------------------------------------------------


def test_draws_are_pinned():
    """The same numbers on every machine: these were drawn once and may never change."""
    rng = view_generator(0, "P01_01_0", "video", "crop", 1)
    assert rng.random(3).tolist() == [0.9307324675736197, 0.8138724565655302, 0.48626100843402287]


def test_draws_differ_in_every_argument():
    base = (0, "a", "video", "crop", 0)
    others = [(1, "a", "video", "crop", 0), (0, "b", "video", "crop", 0), (0, "a", "flow", "crop", 0)]
    others += [(0, "a", "video", "weak", 0), (0, "a", "video", "crop", 1)]
    draws = {view_generator(*key).random() for key in [base, *others]}
    assert len(draws) == 6
    assert view_generator(*base).random() == view_generator(*base).random()


def test_random_offset_reaches_both_ends_and_nothing_else():
    rng = np.random.default_rng(0)
    assert {random_offset(rng, 10, 8) for _ in range(200)} == {0, 1, 2}
    assert {random_offset(rng, 8, 8), random_offset(rng, 3, 8)} == {0}
    assert (clean_offset(3, 8), clean_offset(8, 8), clean_offset(9, 8), clean_offset(10, 8)) == (0, 0, 1, 1)


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        frame_indices(0, 4, 2, 0)
    with pytest.raises(ValueError, match="'c' has 0 video frames"):
        plan_frames("c", 0, SPEC, VIEWS, 0, "video")


# --- plans ----------------------------------------------------------------------------------------------------------


def test_weak_and_strong_share_one_pipeline_output():
    for clip in ("a", "b", "c"):
        plans = {plan.view: plan for plan in plan_frames(clip, 50, SPEC, VIEWS, 3, "video")}
        for i in (0, 1):
            assert plans[f"weak{i}"].base == plans[f"strong{i}"].base
        assert plans["weak0"].base != plans["weak1"].base


def test_plans_are_pinned():
    """Planned once; cached features name these draws by their seed, so they may never change."""
    (video,) = plan_frames("P01_01_0", 50, SPEC, [("strong", 1)], 7, "video")
    (flow,) = plan_frames("P01_01_0", 50, SPEC, [("strong", 1)], 7, "flow")
    assert (video.indices, video.flip, video.cutout) == ((27, 29, 31, 33), False, (22, 27, 4))
    assert video.operations == (("Solarize", 0.07074596094409728), ("Contrast", -0.07074596094409728))
    assert video.crop is not None
    assert video.crop.box(256, 456) == (29, 97, 208, 263)
    assert (flow.indices, flow.flip, flow.second_flip) == ((35, 37, 39, 41), False, True)
    assert (flow.shift, flow.cutout, flow.noise_seed) == ((3, 2), (12, 1, 4), 2842571377799026309)


def test_what_each_kind_of_view_does():
    plans = [plan for i in range(60) for plan in plan_frames(f"clip{i}", 50, SPEC, VIEWS, 3, "video")]
    for plan in plans:
        kind = plan.view[:-1]
        assert (plan.crop is None) == (kind == "clean")
        assert bool(plan.operations) == (plan.cutout is not None) == (kind == "strong")
        assert kind == "weak" or (plan.shift == (0, 0) and not plan.second_flip)
        assert kind != "clean" or not plan.flip
        assert plan.noise_std == 0
    weak = [plan for plan in plans if plan.view.startswith("weak")]
    assert {step for plan in weak for step in plan.shift} == {-3, -2, -1, 0, 1, 2, 3}
    assert 0.35 < np.mean([plan.flip for plan in weak]) < 0.65
    assert 0.35 < np.mean([plan.second_flip for plan in weak]) < 0.65


def test_strong_draws_keep_the_papers_ranges():
    plans = [plan for i in range(300) for plan in plan_frames(f"clip{i}", 50, SPEC, [("strong", 0)], 3, "video")]
    seen = set()
    for plan in plans:
        names = [name for name, _ in plan.operations]
        magnitudes = {abs(magnitude) for _, magnitude in plan.operations}
        assert len(names) in (1, 2)
        assert len(set(names)) == len(names)
        assert len(magnitudes) == 1
        assert 0.05 <= magnitudes.pop() <= 0.2
        seen |= {(name, magnitude > 0) for name, magnitude in plan.operations}
        assert plan.cutout is not None
        top, left, side = plan.cutout
        assert side == int(0.15 * 32)
        assert 0 <= top <= 32 - side
        assert 0 <= left <= 32 - side
    wanted = {(name, True) for name in OPERATIONS} | {(name, False) for name, op in OPERATIONS.items() if op.signed}
    assert seen == wanted
    assert 0.4 < np.mean([len(plan.operations) == 2 for plan in plans]) < 0.6


def test_crop_boxes_follow_area_and_aspect():
    for i in range(200):
        (plan,) = plan_frames(f"clip{i}", 9, SPEC, [("weak", 0)], 0, "video")
        assert plan.crop is not None
        top, left, height, width = plan.crop.box(400, 700)
        assert top >= 0
        assert left >= 0
        assert top + height <= 400
        assert left + width <= 700
        assert 0.079 <= height * width / (400 * 700) <= 1
        assert 0.74 <= width / height <= 1.35


def test_crop_falls_back_to_the_centre_and_survives_tiny_images():
    wide = CropDraw((1.0,) * 10, (4 / 3,) * 10, 0.5, 0.5)
    assert wide.box(40, 400) == (0, 180, 40, 40)
    assert CropDraw((0.08,), (1.0,), 0.99, 0.0).box(1, 1) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("views", "modality", "spec", "message"),
    [
        ([("medium", 0)], "video", SPEC, "allowed: clean, weak, strong"),
        (VIEWS, "audio", SPEC, "allowed: video, flow"),
        (VIEWS, "video", dataclasses.replace(SPEC, clean_size=41), "larger than resize_short 40"),
    ],
)
def test_impossible_plans_are_refused(views, modality, spec, message):
    with pytest.raises(ValueError, match=message):
        plan_frames("c", 9, spec, views, 0, modality)


# --- operations -----------------------------------------------------------------------------------------------------


def warped(image: Image.Image, inverse: tuple[float, ...]) -> Image.Image:
    """PIL's nearest-neighbour transform about the centre; uncovered pixels are FILL."""
    width, height = image.size
    a, b, c, d, e, f = inverse
    x, y = width / 2, height / 2
    inverse = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST, fillcolor=FILL)


def slope(magnitude: float) -> float:
    return float(np.tan(np.radians(30 * magnitude)))


REFERENCES = {
    "AutoContrast": lambda image, m: ImageOps.autocontrast(image),
    "Equalize": lambda image, m: ImageOps.equalize(image),
    "Posterize": lambda image, m: ImageOps.posterize(image, 4),
    "Solarize": lambda image, m: ImageOps.solarize(image, int(np.ceil(256 - 255 * m))),
    "Color": lambda image, m: ImageEnhance.Color(image).enhance(1 + 0.9 * m),
    "Contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(1 + 0.9 * m),
    "Brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(1 + 0.9 * m),
    "Sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * m),
    "Rotate": lambda image, m: image.rotate(30 * m, Image.Resampling.NEAREST, fillcolor=FILL),
    "ShearX": lambda image, m: warped(image, (1, slope(m), 0, 0, 1, 0)),
    "ShearY": lambda image, m: warped(image, (1, 0, 0, slope(m), 1, 0)),
    "TranslateX": lambda image, m: warped(image, (1, 0, -0.4 * m * image.width, 0, 1, 0)),
    "TranslateY": lambda image, m: warped(image, (1, 0, 0, 0, 1, -0.4 * m * image.height)),
}


WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def test_every_operation_has_a_reference():
    assert list(REFERENCES) == list(OPERATIONS)


@pytest.mark.parametrize("magnitude", [0.07, 0.2, -0.13])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_pil(name, magnitude):
    operation = OPERATIONS[name]
    magnitude = magnitude if operation.signed else abs(magnitude)
    frames = picture(41, 56, count=3)
    result = operation.apply(frames.permute(0, 3, 1, 2), magnitude, FILL)
    assert result.dtype == torch.uint8
    assert result.shape == (3, 3, 41, 56)
    for frame, ours in zip(frames.numpy(), result.permute(0, 2, 3, 1).numpy(), strict=True):
        image = Image.fromarray(frame)
        expected = REFERENCES[name](image, magnitude)
        assert ImageChops.difference(image, expected).getbbox() is not None, "the reference does nothing here"
        off = np.abs(ours.astype(int) - np.asarray(expected).astype(int))
        # Equal but for ties of the nearest neighbour and levels that fall on the boundary of two.
        assert (off > 0).mean() < 0.01
        assert name in WARPS or off.max() <= 1


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if operation.signed])
def test_magnitude_zero_changes_nothing(name):
    frames = picture(20, 24, count=2).permute(0, 3, 1, 2)
    assert torch.equal(OPERATIONS[name].apply(frames, 0.0, FILL), frames)
    assert torch.equal(OPERATIONS["Solarize"].apply(frames, 0.0, FILL), frames)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 7), (5, 3)])
def test_operations_survive_tiny_and_flat_images(name, shape):
    flat = torch.full((2, 3, *shape), 77, dtype=torch.uint8)
    for frames in (flat, torch.zeros_like(flat), torch.full_like(flat, 255)):
        result = OPERATIONS[name].apply(frames, 0.2, FILL)
        assert result.shape == frames.shape
        assert result.dtype == torch.uint8
    if name in ("AutoContrast", "Equalize", "Color", "Contrast", "Sharpness"):
        assert torch.equal(OPERATIONS[name].apply(flat, 0.2, FILL), flat)


def test_operations_treat_each_frame_alone():
    frames = picture(20, 24, count=4).permute(0, 3, 1, 2)
    frames[1] = frames[1] // 3
    for name, operation in OPERATIONS.items():
        whole = operation.apply(frames, 0.15, FILL)
        alone = torch.cat([operation.apply(frame[None], 0.15, FILL) for frame in frames])
        assert torch.equal(whole, alone), name


# --- geometry and rendering -----------------------------------------------------------------------------------------


def test_short_side_shape_rounds_half_up():
    assert short_side_shape(720, 1280, 256) == (256, 455)
    assert short_side_shape(320, 240, 256) == (341, 256)
    assert short_side_shape(2, 5, 1) == (1, 3)
    assert short_side_shape(1, 1, 256) == (256, 256)


def test_resize_keeps_type_and_mean():
    images = picture(90, 120).permute(0, 3, 1, 2)
    smaller = resize(images, 30, 40)
    assert smaller.dtype == torch.uint8
    assert smaller.shape == (1, 3, 30, 40)
    assert abs(smaller.float().mean() - images.float().mean()) < 0.5
    assert resize(images, 90, 120) is images


def test_resize_in_float_agrees_with_fixed_point():
    """What other devices compute, done here on the CPU."""
    images = picture(97, 131, seed=4).permute(0, 3, 1, 2)
    for shape in ((40, 54), (150, 170)):
        values = torch.nn.functional.interpolate(images.float(), shape, mode="bilinear", antialias=True)
        assert (values.round() - resize(images, *shape).float()).abs().max() <= 1


def test_clean_view_is_the_centre_crop():
    frames = picture(40, 60, count=9)
    plans = plan_frames("c", 9, SPEC, [("clean", 0)], 0, "video")
    (view,) = render(frames, plans)
    assert view.dtype == torch.float32
    assert view.shape == (3, 4, 32, 32)
    expected = frames[1::2, 4:36, 14:46].permute(3, 0, 1, 2).float()
    assert torch.allclose(in_levels(view), expected, atol=1e-3)


def weak_plan() -> FramePlan:
    (plan,) = plan_frames("c", 9, SPEC, [("weak", 0)], 0, "video")
    return dataclasses.replace(plan, flip=False, second_flip=False, shift=(0, 0))


def test_flips_mirror_and_cancel():
    frames, plan = picture(50, 60, count=9), weak_plan()
    plain = render(frames, [plan])[0]
    assert torch.equal(render(frames, [dataclasses.replace(plan, flip=True)])[0], plain.flip(-1))
    assert torch.equal(render(frames, [dataclasses.replace(plan, second_flip=True)])[0], plain.flip(-1))
    assert torch.equal(render(frames, [dataclasses.replace(plan, flip=True, second_flip=True)])[0], plain)


@pytest.mark.parametrize("step", [(3, 2), (-3, 1), (0, -2), (1, 0)])
def test_shift_moves_down_and_right_and_fills_with_the_mean(step):
    frames, plan = picture(50, 60, count=9), weak_plan()
    plain = render(frames, [plan])[0]
    moved = render(frames, [dataclasses.replace(plan, shift=step)])[0]
    down, right = step
    expected = torch.zeros_like(plain)
    for y in range(32):
        for x in range(32):
            if 0 <= y - down < 32 and 0 <= x - right < 32:
                expected[:, :, y, x] = plain[:, :, y - down, x - right]
    assert torch.equal(moved, expected)


def test_strong_view_operates_on_pixels_and_blanks_one_square():
    frames = picture(50, 60, count=9)
    (plan,) = plan_frames("c", 9, SPEC, [("strong", 0)], 0, "video")
    plan = dataclasses.replace(plan, operations=(("Solarize", 0.2), ("Posterize", 0.2)), cutout=(5, 9, 4))
    base = dataclasses.replace(plan, operations=(), cutout=None)
    before, after = (in_levels(view).round() for view in render(frames, [base, plan]))
    expected = torch.where(before >= 205, 255 - before, before) // 16 * 16
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[5:9, 9:13] = True
    assert torch.equal(after[:, :, ~inside], expected[:, :, ~inside])
    assert not render(frames, [plan])[0][:, :, inside].any()


def test_rows_must_cover_the_plan():
    frames = picture(20, 20, count=9)
    plans = plan_frames("c", 9, SPEC, [("clean", 0)], 0, "video")
    with pytest.raises(ValueError, match=r"frames \[7\] are planned but were not decoded"):
        render_video(frames[:7], np.arange(7), plans, SPEC)
    with pytest.raises(ValueError, match="were not decoded"):
        render_video(frames[:0], np.arange(0), plans, SPEC)
    with pytest.raises(ValueError, match="ascending"):
        render_video(frames, np.arange(9)[::-1], plans, SPEC)
    with pytest.raises(ValueError, match="one image per row"):
        render_video(frames, np.arange(8), plans, SPEC)
    with pytest.raises(ValueError, match="uint8"):
        render_video(frames.float(), np.arange(9), plans, SPEC)
    assert render_video(frames, np.arange(9), [], SPEC) == []


def test_frames_beyond_the_plan_change_nothing():
    frames = picture(45, 60, count=30)
    plans = plan_frames("c", 30, SPEC, VIEWS, 0, "video")
    whole = render_video(frames, np.arange(30), plans, SPEC)
    assert all(torch.equal(a, b) for a, b in zip(whole, render(frames, plans), strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (7, 90), (40, 40), (200, 151)])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_odd_clips_give_whole_views(shape, total):
    plans = plan_frames("c", total, SPEC, VIEWS, 0, "video")
    for view in render(picture(*shape, count=total), plans):
        assert view.shape == (3, 4, 32, 32)
        assert view.isfinite().all()


def test_views_of_two_sides_are_stacked_apart():
    spec = dataclasses.replace(SPEC, clean_size=40)
    views = render(picture(50, 60, count=9), plan_frames("c", 9, spec, VIEWS, 0, "video"), spec)
    groups = stack_by_side(views)
    assert {side: positions for side, (positions, _) in groups.items()} == {40: (0,), 32: (1, 2, 3, 4)}
    assert groups[32][1].shape == (4, 3, 4, 32, 32)
    assert torch.equal(groups[32][1][2], views[3])
