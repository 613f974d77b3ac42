"""What holds for every clip, seed and choice of views."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.inputs import AudioInput, FrameInput
from extractors.views.audio import render_audio
from extractors.views.flow import render_flow
from extractors.views.operations import OPERATIONS
from extractors.views.plan import FramePlan, needed_indices, plan_frames
from extractors.views.sampling import clean_offset, frame_indices, random_offset
from extractors.views.video import render_video

RGB = FrameInput(3, 2, 24, 16, 20, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
FLOW = FrameInput(3, 2, 24, 16, 24, mean=(128.0, 128.0), std=(128.0, 128.0))
SOUND = AudioInput(16_000, 1_500)
MODALITIES = ("video", "flow")

clip_ids = st.text(min_size=1, max_size=12)
seeds = st.integers(0, 2**40)
totals = st.integers(1, 30)
views = st.tuples(st.sampled_from(["clean", "weak", "strong"]), st.integers(0, 3))
view_lists = st.lists(views, min_size=1, max_size=6, unique=True)
sides = st.integers(1, 60)
few = settings(max_examples=40, deadline=None)


def render(modality: str, images: torch.Tensor, plans: list[FramePlan]) -> list[torch.Tensor]:
    """Render from only the frames that the plans need."""
    rows = needed_indices(plans)
    chosen = images[torch.from_numpy(rows)]
    if modality == "video":
        return render_video(chosen, rows, plans, RGB)
    return render_flow(chosen, rows, plans, FLOW)


def plan(modality: str, clip: str, total: int, wanted: list[tuple[str, int]], seed: int) -> list[FramePlan]:
    return plan_frames(clip, total, RGB if modality == "video" else FLOW, wanted, seed, modality)


def media(modality: str, total: int, height: int, width: int) -> torch.Tensor:
    shape = (total, height, width, 3) if modality == "video" else (total, 2, height, width)
    return torch.from_numpy(np.random.default_rng(total).integers(0, 256, shape, dtype=np.uint8))


@few
@given(totals, st.integers(1, 9), st.integers(1, 5), seeds)
def test_indices_are_frames_of_the_clip(total: int, num_frames: int, interval: int, seed: int):
    window = num_frames * interval
    for offset in (clean_offset(total, window), random_offset(np.random.default_rng(seed), total, window)):
        indices = frame_indices(total, num_frames, interval, offset)
        assert indices.shape == (num_frames,)
        assert 0 <= indices.min() <= indices.max() < total
        if total >= window:
            assert 0 <= offset <= total - window
            assert (np.diff(indices) == interval).all()
        else:
            assert offset == 0


@few
@given(clip_ids, totals, view_lists, seeds, st.sampled_from(MODALITIES))
def test_a_plan_does_not_depend_on_the_others(clip, total, wanted, seed, modality):
    together = plan(modality, clip, total, wanted, seed)
    assert together == [plan(modality, clip, total, [view], seed)[0] for view in wanted]
    assert plan(modality, clip, total, wanted[::-1], seed) == together[::-1]
    read = {i for one in together for i in one.indices}
    assert needed_indices(together).tolist() == sorted(read)


@few
@given(clip_ids, totals, st.integers(0, 5), seeds, st.sampled_from(MODALITIES))
def test_strong_sees_what_weak_sees(clip, total, index, seed, modality):
    weak, strong = plan(modality, clip, total, [("weak", index), ("strong", index)], seed)
    assert (weak.indices, weak.crop, weak.flip) == (strong.indices, strong.crop, strong.flip)
    assert weak.base == strong.base


@few
@given(clip_ids, totals, view_lists, seeds, st.sampled_from(MODALITIES), sides, sides)
def test_pixels_do_not_depend_on_the_other_views(clip, total, wanted, seed, modality, height, width):
    images = media(modality, total, height, width)
    plans = plan(modality, clip, total, wanted, seed)
    together = render(modality, images, plans)
    backwards = render(modality, images, plans[::-1])[::-1]
    for one, whole, turned in zip(plans, together, backwards, strict=True):
        alone = render(modality, images, [one])[0]
        assert torch.equal(alone, whole)
        assert torch.equal(alone, turned)
        side = {"video": 20, "flow": 24}[modality] if one.view.startswith("clean") else 16
        assert alone.shape == ({"video": 3, "flow": 2}[modality], 3, side, side)
        assert alone.dtype == torch.float32
        assert alone.isfinite().all()


@few
@given(clip_ids, totals, st.integers(0, 3), seeds, sides, sides)
def test_a_mirrored_flow_view_is_the_mirror_image_with_u_negated(clip, total, index, seed, height, width):
    images = media("flow", total, height, width)
    (drawn,) = plan("flow", clip, total, [("weak", index)], seed)
    drawn = dataclasses.replace(drawn, shift=(0, 0))
    other = dataclasses.replace(drawn, flip=not drawn.flip)
    one, mirrored = (view * 128 for view in render("flow", images, [drawn, other]))
    assert (mirrored[0] + one[0].flip(-1)).abs().max() <= 1 + 1e-4
    assert torch.equal(mirrored[1], one[1].flip(-1))


@few
@given(st.sampled_from(list(OPERATIONS)), st.floats(-0.2, 0.2), sides, sides)
def test_no_operation_changes_shape_or_type(name, magnitude, height, width):
    frames = media("video", 2, height, width).permute(0, 3, 1, 2)
    magnitude = magnitude if OPERATIONS[name].signed else abs(magnitude)
    before = frames.clone()
    result = OPERATIONS[name].apply(frames, magnitude, (1, 2, 3))
    assert result.shape == frames.shape
    assert result.dtype == torch.uint8
    assert torch.equal(frames, before)


@few
@given(clip_ids, view_lists, seeds, st.integers(0, 4000))
def test_sound_views_do_not_depend_on_each_other(clip, wanted, seed, count):
    samples = torch.from_numpy(np.random.default_rng(count).normal(0, 0.2, count).astype(np.float32))
    together = render_audio(samples, wanted, clip, seed, SOUND)
    assert together.shape == (len(wanted), 1, *SOUND.shape)
    assert together.isfinite().all()
    assert torch.equal(render_audio(samples, wanted[::-1], clip, seed, SOUND).flip(0), together)
    for i, view in enumerate(wanted):
        assert torch.equal(render_audio(samples, [view], clip, seed, SOUND)[0], together[i])


@few
@given(clip_ids, clip_ids, seeds)
def test_other_clips_and_seeds_get_other_views(clip, other, seed):
    samples = torch.from_numpy(np.random.default_rng(0).normal(0, 0.2, 2000).astype(np.float32))
    weak = render_audio(samples, [("weak", 0)], clip, seed, SOUND)
    assert not torch.equal(weak, render_audio(samples, [("weak", 0)], clip, seed + 1, SOUND))
    assert torch.equal(weak, render_audio(samples, [("weak", 0)], other, seed, SOUND)) == (clip == other)
    for modality in MODALITIES:
        plans = plan(modality, clip, 30, [("strong", 0)], seed)
        assert plans != plan(modality, clip, 30, [("strong", 0)], seed + 1)
        assert (plans == plan(modality, other, 30, [("strong", 0)], seed)) == (clip == other)
