"""Frames at a rate in frames per second."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.inputs import FrameInput
from extractors.views.plan import plan_frames
from extractors.views.sampling import interval_at_rate
from pipeline import decoding, encode
from pipeline.extraction import ExtractSettings
from pipeline.types import Clip

STEPS = FrameInput(3, 7, 40, 32, 32, mean=(0.0,) * 3, std=(1.0,) * 3)
SECONDS = dataclasses.replace(STEPS, rate_hz=1.0)
VIEWS = [("clean", 0), ("weak", 0), ("weak", 1), ("strong", 1)]


def clean(total: int, rate_hz: float | None, spec: FrameInput = SECONDS) -> list[int]:
    (plan,) = plan_frames("c", total, spec, [("clean", 0)], 0, "video", rate_hz)
    return list(plan.indices)


def test_the_interval_is_the_clips_rate_over_the_wanted_one():
    assert interval_at_rate(1000, 3, 30.0, 1.0) == 30
    assert interval_at_rate(1000, 3, 29.97, 1.0) == 30
    assert interval_at_rate(1000, 3, 25.0, 2.0) == 12
    assert interval_at_rate(1000, 3, 25.0, 4.0) == 6
    assert interval_at_rate(1000, 3, 10.0, 25.0) == 1


def test_a_long_clip_gives_the_centred_window():
    # 10 s at 30 frames per second: the window of 90 frames starts at (300 - 90 + 1) // 2.
    assert clean(300, 30.0) == [105, 135, 165]
    assert clean(100, 10.0) == [35, 45, 55]
    assert clean(90, 30.0) == [0, 30, 60]


def test_a_short_clip_spreads_its_frames_and_does_not_wrap():
    # 2 s of a window of 3 s: 60 // 3 frames apart.
    assert clean(60, 30.0) == [0, 20, 40]
    assert clean(89, 30.0) == [1, 30, 59]
    assert clean(4, 30.0) == [1, 2, 3]
    assert clean(3, 30.0) == [0, 1, 2]


def test_only_fewer_frames_than_wanted_repeat():
    assert clean(2, 30.0) == [0, 1, 0]
    assert clean(1, 30.0) == [0, 0, 0]


def test_two_rates_of_one_clip_see_the_same_moments():
    slow, fast = (np.array(clean(10 * rate, float(rate))) / rate for rate in (10, 50))
    assert np.abs(slow - fast).max() <= 0.1


def test_random_windows_keep_the_interval_and_reach_both_ends():
    starts = []
    for clip in range(300):
        for plan in plan_frames(f"clip{clip}", 33, SECONDS, VIEWS[1:], 0, "video", 10.0):
            assert np.diff(plan.indices).tolist() == [10, 10]
            starts.append(plan.indices[0])
    assert set(starts) == {0, 1, 2, 3}


def test_all_else_is_as_without_a_rate():
    """At the rate that gives the same interval the plans are equal, draw for draw."""
    for total in (5, 21, 22, 100):
        for modality in ("video", "flow"):
            wanted = dataclasses.replace(STEPS, interval=min(7, max(1, total // 3)))
            expected = plan_frames("c", total, wanted, VIEWS, 3, modality)
            assert plan_frames("c", total, SECONDS, VIEWS, 3, modality, 7.0) == expected


def test_without_a_wanted_rate_the_clips_rate_changes_nothing():
    for rate_hz in (None, 1.0, 60.0):
        assert plan_frames("c", 50, STEPS, VIEWS, 3, "video", rate_hz) == plan_frames("c", 50, STEPS, VIEWS, 3, "video")


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'c' has no known frame rate.*state its rate_hz in the manifest"):
        clean(50, None)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="the clip's frame rate is"):
            clean(50, wrong)
        with pytest.raises(ValueError, match="rate_hz is"):
            dataclasses.replace(STEPS, rate_hz=wrong)
        with pytest.raises(ValueError, match="the wanted frame rate is"):
            interval_at_rate(50, 3, 25.0, wrong)
    with pytest.raises(ValueError, match="at least 1"):
        clean(0, 25.0)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 40), st.floats(0.1, 300), st.floats(0.1, 60))
def test_frames_are_distinct_and_in_order_wherever_there_are_enough(total, num_frames, clip_rate, rate):
    spec = dataclasses.replace(STEPS, num_frames=num_frames, rate_hz=rate)
    for plan in plan_frames("c", total, spec, VIEWS, 0, "video", clip_rate):
        assert 0 <= min(plan.indices) <= max(plan.indices) < total
        if total >= num_frames:
            steps = np.diff(plan.indices)
            assert (steps > 0).all()
            assert len(set(steps.tolist())) <= 1
            assert num_frames == 1 or steps[0] <= max(1, round(clip_rate / rate))


def grey_pictures(folder: Path) -> Path:
    """20 pictures; the level of each is ten times its number."""
    folder.mkdir(parents=True)
    for number in range(20):
        cv2.imwrite(str(folder / f"{number:03d}.png"), np.full((40, 48), 10 * number, np.uint8))
    return folder


@pytest.mark.parametrize("modality", ["video", "flow"])
def test_extraction_samples_pictures_at_the_rate_of_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str
):
    spec = SECONDS if modality == "video" else dataclasses.replace(SECONDS, mean=(0.0, 0.0), std=(1.0, 1.0))
    for module in (decoding, encode):
        monkeypatch.setattr(module, "frame_spec", lambda settings, modality: spec)
    folders = [grey_pictures(tmp_path / name) for name in ("frames", "flow/u", "flow/v")]
    media = {"video": folders[0]} if modality == "video" else {"flow": folders[1].parent}
    clip = Clip("c", "d", "walk", "train", "g", media, rate_hz=5.0)
    decoded = decoding.decode_clip(clip, [modality], ExtractSettings())
    ((_, (clean_view, *_), _),) = encode._rendered([decoded], modality, ExtractSettings(), decoding.Clock())
    assert clean_view.mean((0, 2, 3)).tolist() == [30.0, 80.0, 130.0]  # window of 15 from frame 3, every 5th
    unknown = decoding.decode_clip(dataclasses.replace(clip, rate_hz=None), [modality], ExtractSettings())
    assert unknown.records[modality].code == "no_rate"
    assert "state rate_hz in the manifest" in unknown.records[modality].detail
