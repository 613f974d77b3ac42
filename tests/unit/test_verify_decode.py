"""Comparing decoders on a manifest's clips."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import verify_decode as verification
from pipeline.decode import DECODERS
from pipeline.decode.decoders import Decoder, Wanted
from pipeline.decode.source import FrameSource
from pipeline.errors import MediaFailed, UsageError
from pipeline.types import Clip, Manifest
from pipeline.verify_decode import FRAMES, ClipVerdict, verify_decode
from pipeline.workers import Progress
from tests import media_corpus as corpus


class Brighter(FrameSource):
    """One pixel of every second frame is 8 levels off."""

    label = "brighter 1.0"

    def __init__(self, like: FrameSource) -> None:
        self._like, self.size = like, like.size

    def frames(self, positions: list[int]) -> np.ndarray:  # type: ignore[override]
        frames = self._like.frames(positions)
        frames[::2, 20, 20, 1] ^= 8
        return frames

    def close(self) -> None:
        self._like.close()


def failing(wanted: Wanted) -> FrameSource:
    raise MediaFailed("decode_error", f"{wanted.path.name}: it cannot")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    good = corpus.write_video(tmp_path / "good.mp4", 30, size=(128, 96), sound_seconds=1.0)
    mute = corpus.write_video(tmp_path / "mute.mp4", 30, size=(128, 96), codec="mpeg4")
    cut = corpus.cut_file(good, tmp_path / "cut.mp4", 4000)
    one = Clip("good", "d", "c", "train", "good", {"video": good})
    clips = (
        one,
        replace(one, clip_id="part", start_seconds=0.2, end_seconds=0.6),
        replace(one, clip_id="mute", media={"video": mute}),
        replace(one, clip_id="cut", media={"video": cut}),
        replace(one, clip_id="sound", media={"audio": good}),
    )
    return Manifest("small", ("c",), ("d",), clips, tmp_path)


def test_decoders_that_are_here_agree(manifest: Manifest) -> None:
    done: list[int] = []
    report = verify_decode(manifest, 100, 0, rate_hz=11025, advance=done.append)
    assert sum(done) == len(report.clips) == 5
    assert report.decoders[0] == "auto"
    assert report.reference == "pyav"
    assert set(report.decoders) | set(report.unavailable) == {*DECODERS, "auto"} - {"pyav"}
    by_id = {clip.clip_id: clip for clip in report.clips}
    for name in ("auto", "torchcodec"):
        if name in report.decoders:
            assert all(d.largest == 0 and not d.only_one for c in report.clips for d in c.frames if d.decoder == name)
    assert by_id["good"].num_frames == by_id["part"].num_frames == FRAMES
    assert by_id["cut"].reference_failure.startswith("truncated")
    assert not any(difference.only_one for difference in by_id["cut"].frames)
    assert all(difference.failure for difference in by_id["cut"].frames)
    assert by_id["sound"].frames == ()
    assert by_id["sound"].num_frames == 0
    assert by_id["mute"].sound == ()
    assert by_id["good"].sound[0].decoder == "swresample"
    assert by_id["good"].sound[0].largest == 0
    assert all(0 < d.largest < 0.1 for d in by_id["good"].sound[1:])


def test_differences_and_failures_come_first(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    brighter = Decoder(lambda: "", lambda wanted: Brighter(DECODERS["pyav"].open(wanted)), "")
    monkeypatch.setitem(DECODERS, "torchcodec", brighter)

    def picky(wanted: Wanted) -> FrameSource:
        return failing(wanted) if wanted.path.name == "mute.mp4" else DECODERS["pyav"].open(wanted)

    monkeypatch.setitem(DECODERS, "decord", Decoder(lambda: "", picky, ""))
    monkeypatch.setattr(verification, "run_tasks", in_this_process)
    report = verify_decode(manifest, 100, 0, ["torchcodec", "decord"])
    assert not report.identical
    first, second = report.clips[:2]
    assert first.clip_id == "mute"
    assert second.frames[0].largest == 8
    assert second.frames[0].differing == 0.5
    assert second.frames[0].mean == pytest.approx(8 / (128 * 96 * 3) / 2)
    torchcodec, decord = report.summary()
    assert (torchcodec.decoder, torchcodec.largest, torchcodec.only_one) == ("torchcodec", 8, False)
    assert (decord.largest, decord.only_one) == (0, True)
    assert "it cannot" in decord.failure
    assert verify_decode(manifest, 100, 0, ["pyav"]).identical


def in_this_process(
    function: Callable[[Any, Progress], Any], tasks: list[Any], workers: int, advance: Callable[[int], None], _: object
) -> Iterator[tuple[int, Any]]:
    """``run_tasks`` where another process would not know what a test put in place."""
    return ((i, function(task, Progress(advance))) for i, task in enumerate(tasks))


def test_a_clip_that_brings_a_decoder_down_is_a_finding(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_verdict", dies_at_mute)
    report = verify_decode(manifest, 100, 0, ["pyav"])
    first = report.clips[0]
    assert (first.clip_id, first.frames[0].only_one) == ("mute", True)
    assert "exit code -11" in first.frames[0].failure
    assert not report.identical


VERDICT = verification._verdict


def dies_at_mute(task: verification._Task, progress: Progress) -> ClipVerdict:
    if task.clip.clip_id == "mute" and task.death is None:
        os.kill(os.getpid(), signal.SIGSEGV)
    return VERDICT(task, progress)


def test_the_choice_is_the_seeds(manifest: Manifest) -> None:
    def ids(seed: int, clips: tuple[Clip, ...]) -> set[str]:
        report = verify_decode(replace(manifest, clips=clips), 2, seed, ["pyav"])
        return {clip.clip_id for clip in report.clips}

    assert ids(1, manifest.clips) == ids(1, manifest.clips[::-1])  # not the order's
    assert len({frozenset(ids(seed, manifest.clips)) for seed in range(6)}) > 1


def test_pictures_and_wrong_names(manifest: Manifest, media_dir: Path) -> None:
    clip = replace(manifest.clips[0], media={"video": media_dir / "frames" / "rgb"})
    report = verify_decode(replace(manifest, clips=(clip,)), 1, 0)
    assert report.identical
    assert report.clips[0].num_frames == FRAMES
    with pytest.raises(UsageError, match="not a decoder"):
        verify_decode(manifest, 1, 0, ["ffmpeg"])
    with pytest.raises(UsageError, match="1 or more"):
        verify_decode(manifest, 0, 0)
