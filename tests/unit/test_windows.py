"""Windows cover a file, end with it, and are never made of times that a header invents."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decode.length import media_length
from pipeline.errors import MediaAbsent, MediaFailed, UsageError
from pipeline.types import Clip
from pipeline.windows import Windowing, cut_windows, parse_windowing, windows_of
from tests import media_corpus

FIXED = Windowing("fixed", 2.0, 1.0)


def clip(path: Path, start: float | None = None, end: float | None = None, rate_hz: float | None = None) -> Clip:
    return Clip("x", "", "", "", "", {"video": path}, start, end, rate_hz)


def test_windows_are_a_stride_apart_and_the_last_one_ends_with_the_file() -> None:
    assert cut_windows(0, 5.5, FIXED) == ((0, 2), (1, 3), (2, 4), (3, 5), (3.5, 5.5))
    assert cut_windows(0, 5.0, FIXED) == ((0, 2), (1, 3), (2, 4), (3, 5))
    assert cut_windows(0, 5.05, FIXED)[-2:] == ((2, 4), (3.05, 5.05))  # not two that are nearly one
    assert cut_windows(10, 13, FIXED) == ((10, 12), (11, 13))
    assert cut_windows(0, 2.0, FIXED) == ()
    assert cut_windows(0, 7.9, Windowing("auto", 4.0)) == ()  # at most twice as long: one prediction
    assert cut_windows(0, 8.1, Windowing("auto", 4.0))[0] == (0, 4)
    assert cut_windows(0, 1e9, Windowing("off")) == ()


@given(
    start=st.floats(0, 1e4),
    rest=st.floats(0.01, 500),
    length=st.floats(0.5, 20),
    share=st.floats(0.05, 1.0),
)
def test_windows_cover_the_stretch_and_stay_inside_it(start: float, rest: float, length: float, share: float) -> None:
    end = start + length + rest
    windows = cut_windows(start, end, Windowing("fixed", length, max(0.1, share * length)))
    assert windows[0][0] == start
    assert windows[-1] == (pytest.approx(end - length), end)
    for (a, b), (c, d) in pairwise(windows):
        assert a < c
        assert c <= b + 2e-3  # no gap
        assert b - a == pytest.approx(length)
        assert d <= end + 1e-6


@pytest.mark.parametrize(
    ("window", "stride", "known", "expected"),
    [
        ("auto", None, 2.5, ("auto", 2.5, 1.25)),
        ("auto", None, None, ("auto", 10.0, 5.0)),
        ("5", None, 2.5, ("fixed", 5.0, 2.5)),
        ("5", 7.5, None, ("fixed", 5.0, 7.5)),
    ],
)
def test_options_are_read(
    window: str, stride: float | None, known: float | None, expected: tuple[str, float, float]
) -> None:
    found = parse_windowing(window, stride, known)
    assert (found.mode, found.seconds, found.stride) == expected


@pytest.mark.parametrize(
    ("window", "stride"), [("soon", None), ("0", None), ("-3", None), ("nan", None), ("inf", None), ("5", 0.0)]
)
def test_options_that_make_no_windows_are_refused(window: str, stride: float | None) -> None:
    with pytest.raises(UsageError):
        parse_windowing(window, stride, None)
    with pytest.raises(UsageError, match="goes with windows"):
        parse_windowing("off", 2.0, None)


def test_the_length_is_counted_from_frames_packets_and_pictures(media_dir: Path) -> None:
    video, sound = media_dir / "v_GGSY1Qvo990.mp4", media_dir / "FwVYUHKoLtQ_000034.wav"
    frames = media_length(video, True)
    packets = media_length(video, False)
    alone = media_length(sound, True)
    assert frames is not None
    assert packets is not None
    assert alone is not None
    assert (frames.seconds, frames.pieces) == (pytest.approx(18.09, abs=0.01), 355)
    assert packets.seconds == pytest.approx(18.14, abs=0.05)
    assert alone.seconds == pytest.approx(10.0, abs=0.01)
    assert media_length(media_dir / "frames/rgb", True) is None
    folder = media_length(media_dir / "frames/rgb", True, 2.0)
    assert folder is not None
    assert folder.seconds == 5.0


def test_what_has_no_length_says_why(tmp_path: Path) -> None:
    with pytest.raises(MediaFailed, match="missing_file"):
        media_length(tmp_path / "nowhere.mp4", True)
    (tmp_path / "text.mp4").write_text("no film" * 99)
    with pytest.raises(MediaFailed, match="not_media"):
        media_length(tmp_path / "text.mp4", True)
    mute = media_corpus.write_video(tmp_path / "mute.mp4", 30)
    with pytest.raises(MediaAbsent, match="no_audio_stream"):
        media_length(mute, False)


def test_windows_of_a_stretch_lie_in_it(media_dir: Path) -> None:
    path = media_dir / "v_GGSY1Qvo990.mp4"
    windows, end = windows_of(clip(path, 3.0, 8.0), True, FIXED)
    assert windows == ((3, 5), (4, 6), (5, 7), (6, 8))
    assert end == 8.0
    assert windows_of(clip(path, 17.0, 500.0), True, FIXED)[0] == ()  # so little of the file is left
    assert windows_of(clip(path, 3.0, 4.5), True, FIXED) == ((), 4.5)
    assert windows_of(clip(media_dir / "frames/rgb"), True, FIXED) == ((), None)
    assert len(windows_of(clip(media_dir / "frames/rgb", rate_hz=2.0), True, FIXED)[0]) == 4


def test_a_file_that_claims_a_billion_seconds_makes_no_windows(tmp_path: Path) -> None:
    stamps = [*range(29), 30 * 10**9]
    path = media_corpus.write_video(tmp_path / "long.mkv", 30, timestamps=stamps)
    length = media_length(path, True)
    assert length is not None
    assert length.seconds > 1e8
    with pytest.raises(MediaFailed, match="30 frames or packets whose times reach over") as caught:
        windows_of(clip(path), True, FIXED)
    assert caught.value.code == "absurd_duration"
    assert windows_of(clip(path), True, Windowing("off")) == ((), None)


def test_no_count_of_windows_is_larger_than_what_is_in_the_file(tmp_path: Path) -> None:
    stamps = [index * 30 * 20 for index in range(30)]  # a picture every 20 s
    path = media_corpus.write_video(tmp_path / "slow.mkv", 30, timestamps=stamps)
    with pytest.raises(MediaFailed, match="absurd_duration"):
        windows_of(clip(path), True, FIXED)
    windows, end = windows_of(clip(path), True, Windowing("fixed", 60.0))
    assert len(windows) == 19
    assert end is not None
    assert math.isclose(end, 600, rel_tol=0.01)
