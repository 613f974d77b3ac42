"""Silence, black and frozen pictures are found, and nothing else is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from extractors.views.plan import needed_indices, plan_frames
from pipeline.decode import open_frames, read_sound
from pipeline.decoding import frame_spec
from pipeline.degraded import (
    BLACK,
    FROZEN,
    LOWEST_DBFS,
    SILENT,
    DegradedLevels,
    judge_pictures,
    judge_sound,
    picture_levels,
    sound_dbfs,
)
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings
from tests import media_corpus

LIMITS = DegradedLevels()
REAL = ("arm_wrestling.mp4", "test.avi", "v_GGSY1Qvo990.mp4", "v_ZNVhz7ctTq0.mp4", "frames/rgb")


def seen(path: Path, start: float | None = None, end: float | None = None) -> torch.Tensor:
    """The frames that the clean view of the built-in RGB backbone reads."""
    spec = frame_spec(ExtractSettings(), "video")
    with open_frames(path, start, end) as reader:
        plan = plan_frames("clip", reader.num_frames, spec, [("clean", 0)], 0, "video", reader.rate_hz)
        return reader.read_tensor(needed_indices(plan).tolist())


def code(frames: torch.Tensor, limits: DegradedLevels = LIMITS) -> str:
    return judge_pictures(picture_levels(frames), limits).code


@pytest.mark.parametrize("name", REAL)
def test_no_real_video_is_degraded_and_its_change_is_far_above_the_level(media_dir: Path, name: str) -> None:
    levels = picture_levels(seen(media_dir / name))
    assert judge_pictures(levels, LIMITS).code == ""
    assert levels.change is not None
    assert levels.change > 8 * LIMITS.frozen_level


def test_the_title_card_at_the_end_of_a_real_video_is_frozen(media_dir: Path) -> None:
    levels = picture_levels(seen(media_dir / "arm_wrestling.mp4", 8.0, 10.0))
    assert levels.change is not None
    assert levels.change < LIMITS.frozen_level / 4
    assert judge_pictures(levels, LIMITS).code == FROZEN


@pytest.mark.parametrize("options", [{"crf": "23"}, {"crf": "30"}])
def test_a_real_frame_that_stands_still_is_frozen_after_encoding(
    media_dir: Path, tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_frames(media_dir / "test.avi") as reader:
        one = reader.read([reader.num_frames // 2])[0]
    path = encoded(tmp_path, lambda index: one, monkeypatch, options)
    assert code(seen(path)) == FROZEN


def test_black_is_found_after_encoding_with_and_without_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    black = np.zeros((64, 96, 3), np.uint8)
    assert code(seen(encoded(tmp_path, lambda index: black, monkeypatch))) == BLACK
    noise = rng.integers(0, 9, (60, 64, 96, 3), dtype=np.uint8)
    assert code(seen(encoded(tmp_path, lambda index: noise[index], monkeypatch))) == BLACK


def encoded(
    folder: Path,
    picture: Callable[[int], NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str] | None = None,
) -> Path:
    monkeypatch.setattr(media_corpus, "picture", lambda index, size: picture(index))
    height, width = picture(0).shape[:2]
    return media_corpus.write_video(
        folder / "made.mp4", 60, size=(width, height), options={"g": "250", **(options or {})}
    )


def scene(count: int = 8, height: int = 128, width: int = 128) -> NDArray[np.uint8]:
    """A still picture, `(count, height, width, 3)`."""
    one = np.random.default_rng(1).integers(60, 200, (height, width, 3), dtype=np.uint8)
    return np.repeat(one[None], count, 0)


def test_a_small_thing_that_moves_in_front_of_a_still_camera_is_no_frozen_picture() -> None:
    frames = scene()
    for index in range(len(frames)):
        frames[index, 40:46, 8 * index : 8 * index + 6] = 255  # 0.2 % of the picture
    assert code(torch.from_numpy(frames)) == ""
    whole = np.abs(np.diff(frames.astype(float), axis=0)).mean()
    assert whole < LIMITS.frozen_level  # the mean over the whole picture would have missed it


def test_a_night_with_a_lamp_is_not_black_and_dimness_alone_is() -> None:
    frames = np.full((4, 64, 64, 3), 2, np.uint8)
    assert code(torch.from_numpy(frames)) == BLACK  # and not frozen too
    frames[:, :8, :8] = 250
    assert code(torch.from_numpy(frames), DegradedLevels(frozen_level=0)) == ""
    dim = np.full((4, 64, 64, 3), 9, np.uint8)
    assert code(torch.from_numpy(dim), DegradedLevels(frozen_level=0)) == ""
    assert code(torch.from_numpy(dim), DegradedLevels(black_level=10)) == BLACK


def test_levels_are_those_of_the_formula() -> None:
    frames = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    frames[..., 1] = 100  # green
    frames[1, 0, 0] = torch.tensor([0, 110, 0], dtype=torch.uint8)  # one block of 8 x 8, up and down again
    levels = picture_levels(frames)
    assert levels.change == pytest.approx(5.87, abs=1e-4)
    assert levels.luma == pytest.approx(58.7 + 5.87 / 192, abs=1e-3)
    assert picture_levels(frames[:1]).change is None
    assert code(frames[:1]) == ""  # one picture cannot stand still


def test_levels_do_not_depend_on_the_size_of_the_picture() -> None:
    small = torch.from_numpy(np.random.default_rng(2).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8))
    large = small.repeat_interleave(32, 1).repeat_interleave(32, 2)
    one, other = picture_levels(small), picture_levels(large)
    assert one.luma == pytest.approx(other.luma, rel=1e-3)
    assert one.change == pytest.approx(other.change, rel=1e-3)


@pytest.mark.parametrize(("amplitude", "expected"), [(0.0, SILENT), (1.3e-3, SILENT), (1.6e-3, ""), (0.5, "")])
def test_silence_is_judged_by_root_mean_square(amplitude: float, expected: str) -> None:
    samples = torch.from_numpy((amplitude * np.sin(np.arange(16000) * 0.3)).astype(np.float32))
    level = sound_dbfs(samples)
    assert judge_sound(level, LIMITS).code == expected
    if amplitude:
        assert level == pytest.approx(20 * math.log10(amplitude / math.sqrt(2)), abs=0.05)
    else:
        assert level == LOWEST_DBFS
        assert judge_sound(level, DegradedLevels(silence_dbfs=-math.inf)).code == ""


def test_real_sound_is_far_above_silence(media_dir: Path) -> None:
    names = ("FwVYUHKoLtQ_000034.wav", "test.avi", "v_GGSY1Qvo990.mp4", "v_ZNVhz7ctTq0.mp4")
    levels = [sound_dbfs(torch.from_numpy(read_sound(media_dir / name, 16000).samples)) for name in names]
    assert min(levels) > LIMITS.silence_dbfs + 20


@pytest.mark.parametrize(
    "values", [{"silence_dbfs": 3.0}, {"silence_dbfs": math.nan}, {"black_level": -1}, {"frozen_level": 300}]
)
def test_levels_that_cannot_be_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be"):
        DegradedLevels(**values)


def test_levels_are_plain_numbers_that_json_can_hold() -> None:
    assert DegradedLevels(silence_dbfs=-math.inf).to_json()["silence_dbfs"] is None
