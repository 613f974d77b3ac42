"""The ``paper`` variant against the reference's steps written down once more, view by view and frame by frame.

Frames go through OpenCV and torchvision's functional operations, sound through scipy. Nothing is shared with the
package but the draws, and in sound the pitch shift.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from numpy.typing import NDArray
from scipy import signal
from torch import Tensor

from extractors.inputs import AudioInput, FrameInput
from extractors.views import audio
from extractors.views.audio import render_audio
from extractors.views.draws import VARIANTS, view_generator
from extractors.views.flow import render_flow
from extractors.views.geometry import short_side_shape
from extractors.views.operations import OPERATIONS
from extractors.views.paper import PAPER_OPERATIONS, as_bytes
from extractors.views.pitch import pitch_shift
from extractors.views.plan import FramePlan, needed_indices, plan_frames
from extractors.views.video import render_video
from pipeline.errors import UsageError
from pipeline.types import ViewSpec

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
RGB = FrameInput(3, 2, 48, 40, 40, mean=MEAN, std=STD)
FLOW = FrameInput(3, 2, 48, 40, 48, mean=(128.0, 120.0), std=(128.0, 128.0))
VIEWS = [("clean", 0), ("weak", 0), ("weak", 1), ("strong", 0), ("strong", 1)]
SOUND = AudioInput(16_000, 160_000)


def pictures(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with some noise, uint8 (count, height, width, channels)."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 5, 6, channels)).astype(np.float32)
    smooth = [cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse]
    return np.clip(np.stack(smooth) + rng.normal(0, 6, (count, height, width, channels)), 0, 255).astype(np.uint8)


def whole(plan: FramePlan) -> FramePlan:
    """The plan on the whole of a picture that needs no resizing."""
    return dataclasses.replace(plan, crop=None)


# --- the reference, by its description ------------------------------------------------------------------------------


def to_uint8(frame: Tensor) -> Tensor:
    """255 times the value, cut towards 0, low eight bits: plain Python integers."""
    levels = [int(value * np.float32(255)) % 256 for value in frame.flatten().numpy()]
    return torch.tensor(levels, dtype=torch.uint8).view(frame.shape)


def reference_operation(frame: Tensor, name: str, m: float) -> Tensor:
    """One operation on one normalised frame (3, height, width)."""
    height, width = frame.shape[1:]
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    if name in ("AutoContrast", "Equalize", "Posterize", "Solarize"):
        levels = to_uint8(frame)
        done = {
            "AutoContrast": lambda: TF.autocontrast(levels),
            "Equalize": lambda: TF.equalize(levels),
            "Posterize": lambda: TF.posterize(levels, 4),
            "Solarize": lambda: TF.solarize(levels, 256 - 255 * m),
        }[name]()
        return done.float() / 255
    return {
        "Color": lambda: TF.adjust_saturation(frame, 1 + 0.9 * m),
        "Contrast": lambda: TF.adjust_contrast(frame, 1 + 0.9 * m),
        "Brightness": lambda: TF.adjust_brightness(frame, 1 + 0.9 * m),
        "Sharpness": lambda: TF.adjust_sharpness(frame, 1 + 0.9 * m),
        "Rotate": lambda: TF.rotate(frame, 30 * m),
        "ShearX": lambda: TF.affine(frame, **{**still, "shear": [30 * m, 0.0]}),
        "ShearY": lambda: TF.affine(frame, **{**still, "shear": [0.0, 30 * m]}),
        "TranslateX": lambda: TF.affine(frame, **{**still, "translate": [0.4 * m * width, 0.0]}),
        "TranslateY": lambda: TF.affine(frame, **{**still, "translate": [0.0, 0.4 * m * height]}),
    }[name]()


def reference_frames(images: NDArray[np.uint8], plan: FramePlan, spec: FrameInput) -> list[Tensor]:
    """Resize, crop, resize, mirror (flow: u inverted), normalise: the frames of a view, each (channels, side, side)."""
    frames = []
    for i in plan.indices:
        height, width = short_side_shape(*images.shape[1:3], spec.resize_short)
        frame = cv2.resize(images[i], (width, height), interpolation=cv2.INTER_LINEAR)
        if plan.crop is None:
            top, left, box = (height - plan.side) // 2, (width - plan.side) // 2, (plan.side, plan.side)
        else:
            top, left, *box = plan.crop.box(height, width)
        frame = frame[top : top + box[0], left : left + box[1]]
        frame = cv2.resize(frame, (plan.side, plan.side), interpolation=cv2.INTER_LINEAR)
        if plan.flip:
            frame = frame[:, ::-1].copy()
            if spec.channels == 2:
                frame[..., 0] = 255 - frame[..., 0]
        values = (frame.astype(np.float32) - np.float32(spec.mean)) / np.float32(spec.std)
        frames.append(torch.from_numpy(values).permute(2, 0, 1).contiguous())
    return frames


def reference_view(images: NDArray[np.uint8], plan: FramePlan, spec: FrameInput) -> Tensor:
    """A whole view (channels, num_frames, side, side)."""
    frames = reference_frames(images, plan, spec)
    for i, frame in enumerate(frames):
        for name, m in plan.operations:
            frame = reference_operation(frame, name, m)
        if plan.second_flip:
            frame = torch.flip(frame, [-1])
        down, right = plan.shift
        frames[i] = TF.affine(frame, angle=0, translate=[right, down], scale=1.0, shear=[0.0, 0.0], fill=0)
    view = torch.stack(frames, 1)
    if plan.cutout is not None:
        top, left, side = plan.cutout
        view[:, :, top : top + side, left : left + side] = 0
    if plan.noise_std:
        rng = np.random.Generator(np.random.Philox(key=plan.noise_seed))
        view = view + plan.noise_std * torch.from_numpy(rng.standard_normal(tuple(view.shape), dtype=np.float32))
    return view


def render(images: NDArray[np.uint8], plans: list[FramePlan], spec: FrameInput) -> list[Tensor]:
    rows = needed_indices(plans)
    chosen = torch.from_numpy(images[rows])
    if spec.channels == 3:
        return render_video(chosen, rows, plans, spec, variant="paper")
    return render_flow(chosen.permute(0, 3, 1, 2), rows, plans, spec, variant="paper")


# --- frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["video", "flow"])
def test_views_are_the_references(modality: str):
    """Without resizing every value is the reference's but for what a rounding tips over: a nearest pixel, a level."""
    spec = dataclasses.replace(RGB if modality == "video" else FLOW, resize_short=40, clean_size=40)
    images = pictures(12, 40, 40, spec.channels)
    seen = set()
    for clip in range(60):
        plans = plan_frames(f"clip{clip}", 12, spec, VIEWS, 3, modality, variant="paper")
        plans = [whole(plan) for plan in plans]
        seen |= {name for plan in plans for name, _ in plan.operations} | {(p.flip, p.second_flip) for p in plans}
        for plan, ours in zip(plans, render(images, plans, spec), strict=True):
            assert ours.is_contiguous()
            off = (ours - reference_view(images, plan, spec)).abs() > 1e-5
            assert off.float().mean() < (0.003 if plan.operations else 1e-9), plan
    assert len(seen) == 4 + (13 if modality == "video" else 0)


@pytest.mark.parametrize("modality", ["video", "flow"])
def test_resizing_is_opencvs(modality: str):
    """Two resizes with bilinear filters of two pixels; each may round a level otherwise."""
    spec = RGB if modality == "video" else FLOW
    images = pictures(12, 150, 230, spec.channels)
    plans = plan_frames("c", 12, spec, VIEWS[:3], 1, modality, variant="paper")
    two_levels = 2 / min(spec.std) + 1e-6
    for plan, ours in zip(plans, render(images, plans, spec), strict=True):
        expected = reference_view(images, plan, spec)
        assert (ours - expected).abs().max() <= two_levels
        assert (ours - expected).abs().mean() < 0.2 * two_levels
    rows = needed_indices(plans)
    chosen = torch.from_numpy(images[rows])
    if modality == "video":
        smooth = render_video(chosen, rows, plans, spec, variant="paper", antialias=True)[0]
        assert (smooth - reference_view(images, plans[0], spec)).abs().max() > 2 * two_levels


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions_on_normalised_values(name: str):
    frames = torch.from_numpy(pictures(4, 41, 56)).permute(0, 3, 1, 2).float()
    frames = (frames - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    frames[3, 0] = 0.3  # a constant channel
    before = frames.clone()
    magnitudes = [0.05, 0.2, 0.13, 0.07]
    ours = PAPER_OPERATIONS[name].apply(frames, magnitudes, (0.0, 0.0, 0.0))
    assert ours.dtype == torch.float32
    for frame, done, m in zip(frames, ours, magnitudes, strict=True):
        expected = reference_operation(frame, name, m)
        assert not torch.equal(expected, frame), "the reference does nothing here"
        assert ((done - expected).abs() > 1e-5).float().mean() < 0.003
        alone = PAPER_OPERATIONS[name].apply(frame[None], m, (0.0, 0.0, 0.0))[0]
        assert torch.equal(alone, done)
    assert torch.equal(frames, before)


def test_the_turn_to_uint8_is_the_same_everywhere():
    values = torch.tensor([-2.2, -1.0, -1 / 255, -0.001, 0.0, 0.5, 1.0, 256 / 255, 2.7])
    assert as_bytes(values).tolist() == [207, 1, 255, 0, 0, 127, 255, 0, 176]


def test_plans_differ_in_signs_alone():
    signs = set()
    for clip in range(150):
        for modality, spec in (("video", RGB), ("flow", FLOW)):
            strict = plan_frames(f"clip{clip}", 12, spec, VIEWS, 3, modality)
            paper = plan_frames(f"clip{clip}", 12, spec, VIEWS, 3, modality, variant="paper")
            assert strict == plan_frames(f"clip{clip}", 12, spec, VIEWS, 3, modality, variant="strict")
            for one, other in zip(strict, paper, strict=True):
                assert dataclasses.replace(one, operations=()) == dataclasses.replace(other, operations=())
                assert [(name, abs(m)) for name, m in one.operations] == list(other.operations)
                signs |= {m > 0 for _, m in one.operations}
    assert signs == {True, False}


def test_the_second_mirror_of_flow_leaves_u():
    images = pictures(12, 60, 70, 2)
    (plan,) = plan_frames("c", 12, FLOW, [("weak", 0)], 0, "flow", variant="paper")
    plan = dataclasses.replace(plan, flip=False, second_flip=False, shift=(0, 0))
    plain, first, second, both = (
        render(images, [dataclasses.replace(plan, flip=a, second_flip=b)], FLOW)[0] * 128 + 128
        for a, b in ((False, False), (True, False), (False, True), (True, True))
    )
    level = torch.tensor([0.0, 8.0]).view(2, 1, 1, 1)  # the mean of v is 120
    assert torch.equal((second - level).round(), (plain - level).flip(-1).round())
    assert torch.equal(first[0].round(), 255 - plain[0].flip(-1).round())
    assert torch.equal(both[0].round(), 255 - plain[0].round())
    assert torch.equal(both[1], plain[1])


def test_what_flow_uncovers_is_0_whatever_the_mean():
    images = np.full((12, 60, 70, 2), 40, dtype=np.uint8)
    (plan,) = plan_frames("c", 12, FLOW, [("strong", 0)], 0, "flow", variant="paper")
    plan = dataclasses.replace(plan, shift=(3, -2), cutout=(10, 20, 6), noise_std=0.0)
    (view,) = render(images, [plan], FLOW)
    assert not view[:, :, :3].any()
    assert not view[..., -2:].any()
    assert not view[:, :, 10:16, 20:26].any()
    assert (view[:, :, 3:10, :-2] < -0.5).all()


# --- sound ----------------------------------------------------------------------------------------------------------


def sound(count: int, seed: int = 0) -> NDArray[np.float64]:
    rng, t = np.random.default_rng(seed), np.arange(count) / 16_000
    return 0.4 * np.sin(2 * np.pi * (300 + 200 * t) * t) + 0.05 * rng.standard_normal(count)


def reference_sound(samples: NDArray[np.float64], clip: str, seed: int) -> tuple[NDArray[np.float64], ...]:
    """Weak and strong view 0, each (257, 1004)."""
    weak_rng, strong_rng = (view_generator(seed, clip, "audio", kind, 0) for kind in ("weak", "strong"))
    louder = samples * weak_rng.uniform(0.8, 1.2)
    shifted = pitch_shift(torch.from_numpy(louder), weak_rng.uniform(-1, 1)).numpy()[:160_000]
    while len(shifted) < 160_000:
        shifted = np.tile(shifted, 10)[:160_000]
    _, _, density = signal.spectrogram(np.clip(shifted, -1, 1), 16_000, nperseg=512, noverlap=353)
    level = np.log(density + 1e-7)
    weak = (level - level.mean()) / (level.std() + 1e-9)
    weak = weak + (weak_rng.random(weak.shape, dtype=np.float32) - 0.5) * 0.06
    strong = weak.copy()
    row, column = int(strong_rng.integers(257 - 18)), int(strong_rng.integers(1004 - 40))
    strong[row : row + 18] = 0
    strong[:, column : column + 40] = 0
    return weak, strong + (strong_rng.random(weak.shape, dtype=np.float32) - 0.5) * 0.2


@pytest.mark.parametrize("count", [23_000, 200_000])
def test_sound_views_are_the_references(count: int):
    samples = sound(count)
    views = [("strong", 0), ("weak", 0)]
    ours = render_audio(torch.from_numpy(samples.astype(np.float32)), views, "c", 7, SOUND, variant="paper")
    weak, strong = reference_sound(samples, "c", 7)
    for picture, expected in zip(ours[:, 0].double().numpy(), (strong, weak), strict=True):
        assert np.abs(picture - expected).max() < 5e-3  # float32 against float64, in the quietest bins
        assert np.abs(picture - expected).mean() < 1e-4


def test_the_whole_clip_is_shifted(monkeypatch: pytest.MonkeyPatch):
    heard = []

    def record(samples: Tensor, semitones: float) -> Tensor:
        heard.append(len(samples))
        return samples

    monkeypatch.setattr(audio, "pitch_shift", record)
    for variant in VARIANTS:
        render_audio(torch.zeros(9_000), [("weak", 0)], "c", 0, AudioInput(16_000, 600), variant=variant)
    assert heard == [600 + 2048, 9_000]


def test_masks_never_reach_the_end(monkeypatch: pytest.MonkeyPatch):
    """Rows: at most a third of 21; columns: 40 of 45. Every start but the last is drawn, strict draws that too."""
    spec = AudioInput(16_000, 40 + 44 * 10, window_samples=40, overlap_samples=30)
    assert spec.shape == (21, 45)
    monkeypatch.setattr(audio, "pitch_shift", lambda samples, semitones: samples)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 600).astype(np.float32))
    starts: dict[str, tuple[set[int], set[int]]] = {variant: (set(), set()) for variant in VARIANTS}
    sizes = {"strict": (1, 2), "paper": (7, 40)}
    for variant in VARIANTS:
        for clip in range(400):
            (strong,) = render_audio(noise, [("strong", 0)], f"clip{clip}", 0, spec, variant=variant)[:, 0]
            masked = strong.abs() <= 0.1 + 1e-6
            lines = masked.all(1), masked.all(0)
            for found, line, size in zip(starts[variant], lines, sizes[variant], strict=True):
                if int(line.sum()) == size:  # else a line beside the mask is quiet by chance
                    found.add(int(line.int().argmax()))
    assert starts["paper"] == (set(range(21 - 7)), set(range(45 - 40)))
    assert starts["strict"] == (set(range(21)), set(range(44)))


def test_short_pictures_keep_their_columns():
    """40 columns or fewer are not masked, and no more than a third of the rows."""
    spec = AudioInput(16_000, 40 + 39 * 10, window_samples=40, overlap_samples=30)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 600).astype(np.float32))
    for clip in range(5):
        weak, strong = render_audio(noise, [("weak", 0), ("strong", 0)], f"c{clip}", 0, spec, variant="paper")[:, 0]
        kept = (strong - weak).abs() <= 0.1 + 1e-6
        assert int(kept.all(1).sum()) in (14, 15)
        assert (kept.sum(0) >= 14).all()


# --- variants -------------------------------------------------------------------------------------------------------


def test_unknown_variants_are_refused():
    message = "variant 'papers' of the views; allowed: strict, paper"
    empty = torch.zeros(0, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        plan_frames("c", 9, RGB, VIEWS, 0, "video", variant="papers")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        render_video(empty, np.arange(0), [], RGB, variant="papers")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        render_flow(empty, np.arange(0), [], FLOW, variant="papers")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        render_audio(torch.zeros(9), VIEWS, "c", 0, SOUND, variant="papers")  # type: ignore[arg-type]


def test_the_pipeline_has_the_same_variants():
    assert [ViewSpec(variant=variant).variant for variant in VARIANTS] == list(VARIANTS)
    with pytest.raises(UsageError, match="views: variant 'papers'; allowed: strict, paper"):
        ViewSpec(variant="papers")  # type: ignore[arg-type]
