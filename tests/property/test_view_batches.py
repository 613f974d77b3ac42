"""Views of many clips at once are those of each clip alone, whatever is rendered together and how it is grouped.

A CPU renders one view at a time; groups as on a GPU are made here by setting their size, so that this code runs too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from extractors.inputs import AudioInput, FrameInput
from extractors.views import audio, batch, geometry
from extractors.views.audio import SoundClip, render_audio, render_audio_batch
from extractors.views.batch import FrameClip, views_at_once
from extractors.views.draws import VARIANTS, Variant
from extractors.views.flow import render_flow, render_flow_batch
from extractors.views.pitch import pitch_shift, pitch_shifts
from extractors.views.plan import needed_indices, plan_frames
from extractors.views.video import render_video, render_video_batch

RGB = FrameInput(3, 2, 24, 16, 20, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
FLOW = FrameInput(3, 2, 24, 16, 24, mean=(128.0, 120.0), std=(128.0, 128.0))
SOUNDS = {
    "power": AudioInput(16_000, 1_500),
    "magnitude": AudioInput(16_000, 900, overlap_samples=159, kind="magnitude"),
    "mel": AudioInput(16_000, 900, 256, 128, "mel", 20),
}
VIEWS = [("clean", 0), *((kind, i) for kind in ("weak", "strong") for i in range(3))]
SIZES = (1, 2, 5, 1000)  # of a group

few = settings(max_examples=25, deadline=None)
view_lists = st.lists(st.sampled_from(VIEWS), max_size=6, unique=True)
variants = st.sampled_from(VARIANTS)
Shape = tuple[int, int, int, list[tuple[str, int]]]  # frames, height, width, views
shapes = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 40), view_lists), max_size=5)
lengths = st.lists(st.integers(0, 5_000), max_size=5)


@contextmanager
def grouped(size: int, in_fixed_point: bool = True) -> Iterator[None]:
    """Render groups of so many views, as on a GPU; or also resize as there."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (audio, batch):
            patch.setattr(module, "views_at_once", lambda device, values: size)
        if not in_fixed_point:
            patch.setattr(geometry, "in_fixed_point", lambda device: False)
        yield


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


def frame_clips(modality: str, wanted: Sequence[Shape], seed: int, variant: Variant) -> list[FrameClip]:
    rng = np.random.default_rng(seed)
    clips = []
    for number, (total, height, width, views) in enumerate(wanted):
        spec = RGB if modality == "video" else FLOW
        plans = plan_frames(f"clip{number}", total, spec, views, seed, modality, variant=variant)
        rows = needed_indices(plans)
        shape = (len(rows), height, width, 3) if modality == "video" else (len(rows), 2, height, width)
        clips.append(FrameClip(smooth(rng, shape), rows, plans))
    return clips


def sound_clips(counts: Sequence[int]) -> list[SoundClip]:
    rng = np.random.default_rng(len(counts))
    return [
        SoundClip(f"clip{i}", torch.from_numpy(rng.normal(0, 0.2, count).astype(np.float32)))
        for i, count in enumerate(counts)
    ]


def together(modality: str, clips: Sequence[FrameClip], variant: Variant) -> list[list[Tensor]]:
    if modality == "video":
        return render_video_batch(clips, RGB, variant=variant)
    return render_flow_batch(clips, FLOW, variant=variant)


def alone(modality: str, clip: FrameClip, variant: Variant) -> list[Tensor]:
    if modality == "video":
        return render_video(clip.images, clip.rows, clip.plans, RGB, variant=variant)
    return render_flow(clip.images, clip.rows, clip.plans, FLOW, variant=variant)


def same(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    return len(one) == len(other) and all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


# --- frames ---------------------------------------------------------------------------------------------------------


@few
@given(st.sampled_from(["video", "flow"]), shapes, st.integers(0, 2**40), variants, st.sampled_from(SIZES))
def test_frame_views_have_the_same_bits_in_any_batch(modality, wanted, seed, variant, size):
    clips = frame_clips(modality, wanted, seed, variant)
    before = [clip.images.clone() for clip in clips]
    expected = [alone(modality, clip, variant) for clip in clips]
    assert same(together(modality, clips, variant), expected)
    assert same(together(modality, clips[::-1], variant)[::-1], expected)
    with grouped(size):
        assert same(together(modality, clips, variant), expected)
    assert all(torch.equal(clip.images, images) for clip, images in zip(clips, before, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("modality", ["video", "flow"])
def test_groups_hold_every_operation_mirror_and_shift(modality: str, variant: Variant):
    """Enough clips of one size that a group has several views of each kind."""
    clips = frame_clips(modality, [(12, 40, 50, VIEWS)] * 24, 5, variant)
    expected = [alone(modality, clip, variant) for clip in clips]
    names = [name for clip in clips for plan in clip.plans for name, _ in plan.operations]
    assert modality == "flow" or min(names.count(name) for name in names) > 2
    for size in (7, 1000):
        with grouped(size):
            assert same(together(modality, clips, variant), expected)


@pytest.mark.parametrize("modality", ["video", "flow"])
def test_resizing_off_a_cpu_is_within_levels(modality: str):
    """Two resizes, each a level at most, on smooth pictures; operations that enlarge a level are left out."""
    clips = frame_clips(modality, [(12, 30, 44, VIEWS[:4])] * 4, 5, "strict")
    expected = [alone(modality, clip, "strict") for clip in clips]
    with grouped(1000, in_fixed_point=False):
        found = together(modality, clips, "strict")
    largest = 2 / (57.12 if modality == "video" else 128) + 1e-5
    for one, other in zip(expected, found, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a - b).abs().max() <= largest
            assert (a - b).abs().mean() < 0.2 * largest


def test_a_cpu_renders_one_view_at_a_time_and_a_gpu_many():
    assert views_at_once(torch.device("cpu"), 10) == 1
    assert views_at_once(torch.device("cuda"), 3 * 32 * 224 * 224) == 27
    assert views_at_once(torch.device("cuda"), 2**40) == 1


def test_mistakes_are_those_of_one_clip():
    clips = frame_clips("video", [(12, 30, 44, VIEWS)] * 2, 0, "strict")
    broken = FrameClip(clips[1].images[:-1], clips[1].rows[:-1], clips[1].plans)
    with pytest.raises(ValueError, match="planned but were not decoded"):
        render_video_batch([clips[0], broken], RGB)
    assert render_video_batch([], RGB) == []
    assert render_flow_batch([FrameClip(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), np.arange(1), [])], FLOW) == [[]]


# --- sound ----------------------------------------------------------------------------------------------------------


@few
@given(lengths, view_lists, st.integers(0, 2**40), variants, st.sampled_from(list(SOUNDS)))
def test_sound_views_have_the_same_bits_in_any_batch(counts, views, seed, variant, kind):
    clips, spec = sound_clips(counts), SOUNDS[kind]
    before = [clip.samples.clone() for clip in clips]
    found = render_audio_batch(clips, views, seed, spec, variant=variant)
    assert [pictures.shape for pictures in found] == [(len(views), 1, *spec.shape)] * len(clips)
    turned = render_audio_batch(clips[::-1], views[::-1], seed, spec, variant=variant)[::-1]
    for clip, pictures, other in zip(clips, found, turned, strict=True):
        assert torch.equal(render_audio(clip.samples, views, clip.clip_id, seed, spec, variant=variant), pictures)
        assert torch.equal(other.flip(0), pictures)
    assert all(torch.equal(clip.samples, samples) for clip, samples in zip(clips, before, strict=True))


@few
@given(lengths, view_lists, st.integers(0, 99), variants, st.sampled_from(list(SOUNDS)), st.sampled_from(SIZES[1:]))
def test_groups_of_sound_views_are_within_rounding(counts, views, seed, variant, kind, size):
    """Transforms of many segments round otherwise than those of few, so this is in float64."""
    clips, spec = [SoundClip(clip.clip_id, clip.samples.double()) for clip in sound_clips(counts)], SOUNDS[kind]
    expected = render_audio_batch(clips, views, seed, spec, variant=variant)
    with grouped(size):
        found = render_audio_batch(clips, views, seed, spec, variant=variant)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", SOUNDS)
def test_groups_of_sound_views_in_float32(kind: str, variant: Variant):
    clips = sound_clips([4_000, 900, 0, 2_500, 1_200])
    expected = render_audio_batch(clips, VIEWS, 0, SOUNDS[kind], variant=variant)
    with grouped(7):
        found = render_audio_batch(clips, VIEWS, 0, SOUNDS[kind], variant=variant)
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() < 0.05  # bins near the floor
        assert (one - other).abs().mean() < 1e-4


@few
@given(st.lists(st.tuples(st.integers(0, 9_000), st.floats(-1, 1)), max_size=5))
def test_pitch_shifts_are_those_of_each_alone(wanted):
    clips = sound_clips([count for count, _ in wanted])
    sounds, semitones = [clip.samples.double() for clip in clips], [s for _, s in wanted]
    for sound, interval, shifted in zip(sounds, semitones, pitch_shifts(sounds, semitones), strict=True):
        assert shifted.shape == sound.shape
        assert torch.allclose(shifted, pitch_shift(sound, interval), rtol=0, atol=1e-9)


# --- a GPU ----------------------------------------------------------------------------------------------------------


def on_gpu(run: Callable[[torch.device], None]) -> None:
    if not torch.cuda.is_available():
        if os.environ.get("REQUIRE_CUDA") == "1":
            pytest.fail("REQUIRE_CUDA=1 and there is no GPU")
        pytest.skip("no GPU")
    run(torch.device("cuda"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("modality", ["video", "flow"])
def test_a_gpu_gives_the_same_frames(modality: str, variant: Variant):
    """Exactly what its way of resizing gives on a CPU but for float32 rounding, and a level where that tips one."""

    def run(device: torch.device) -> None:
        clips = frame_clips(modality, [(12, 40, 50, VIEWS)] * 6, 5, variant)
        moved = [FrameClip(clip.images.to(device), clip.rows, clip.plans) for clip in clips]
        found = together(modality, moved, variant)
        with grouped(1000, in_fixed_point=False):
            expected = together(modality, clips, variant)
        for one, other in zip(expected, found, strict=True):
            for a, b in zip(one, other, strict=True):
                assert b.device.type == "cuda"
                assert ((a - b.cpu()).abs() > 1e-5).float().mean() < 0.01

    on_gpu(run)


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_gpu_gives_the_same_sound(kind: str):
    def run(device: torch.device) -> None:
        clips = sound_clips([0, 700, 5_000, 9_000])
        moved = [SoundClip(clip.clip_id, clip.samples.to(device)) for clip in clips]
        expected = render_audio_batch(clips, VIEWS, 0, SOUNDS[kind])
        for one, other in zip(expected, render_audio_batch(moved, VIEWS, 0, SOUNDS[kind]), strict=True):
            assert (one - other.cpu()).abs().max() < 0.05
            assert (one - other.cpu()).abs().mean() < 1e-3

    on_gpu(run)
