"""A dry run of extraction: it measures, foretells size and failures, and writes nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipeline import extract as extraction
from pipeline import trial
from pipeline.extraction import ExtractSettings
from pipeline.types import Clip, Manifest
from pipeline.workers import Progress
from tests import media_corpus

SETTINGS = ExtractSettings(modalities=("video", "audio"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("media")
    path = media_corpus.write_video(folder / "a.mp4", num_frames=40, sound_seconds=1.0)
    (folder / "bad.mp4").write_text("no media")
    clips = [Clip(f"c{i:02d}", "d", "x", "train", f"c{i:02d}", {"video": path}) for i in range(19)]
    clips.append(Clip("c19", "d", "x", "train", "c19", {"video": folder / "bad.mp4"}))
    return Manifest("small", ("x",), ("d",), tuple(clips), folder)


def tried(manifest: Manifest, cache: Path, workers: int = 2, decoders: int = 0) -> trial.Trial:
    return trial.try_extraction(manifest, SETTINGS, cache, workers, decoders, lambda amount: None)


def test_it_measures_a_few_clips_and_writes_nothing(manifest: Manifest, tmp_path: Path) -> None:
    found = tried(manifest, tmp_path / "cache")
    assert not list(tmp_path.iterdir())
    assert (found.clips, found.missing, found.tried) == (20, 20, trial.TRIED)
    assert all(found.stage_seconds[stage] > 0 for stage in ("decode", "views", "backbone"))
    assert {(clip, modality) for clip, modality, _ in found.failures} == {("c19", "video"), ("c19", "audio")}
    assert "not_media" in found.failures[0][2]
    assert found.seconds == pytest.approx(20 / 2 * sum(found.stage_seconds.values()))
    assert found.free_bytes > 0
    assert 2**27 < found.memory_bytes < 2**33


def test_its_size_is_what_extraction_writes(manifest: Manifest, tmp_path: Path) -> None:
    before = tried(manifest, tmp_path)
    extraction.extract(manifest, SETTINGS, tmp_path, 1, lambda total: None, lambda done: None)
    groups = extraction.open_groups(manifest, SETTINGS, tmp_path)
    assert before.disk_bytes == sum(20 * len(g.identity.views) * g.dim * 2 for g in groups.values())
    after = tried(manifest, tmp_path)
    assert (after.missing, after.tried, after.seconds, after.disk_bytes) == (0, 0, 0, 0)


def kills_at_c19(task: trial.TrialTask, progress: Progress) -> trial.Measured:
    if "c19" not in task.deadly:
        progress(len(task.clips) - 1)
        os.kill(os.getpid(), signal.SIGSEGV)
    return TRY_CLIPS(task, progress)


TRY_CLIPS = trial.try_clips


def test_a_clip_that_kills_decoders_is_foretold(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "try_clips", kills_at_c19)
    found = tried(manifest, tmp_path)
    (failure,) = found.failures
    assert failure[:2] == ("c19", "video+audio")
    assert "crash: two processes died, the last one with exit code -11" in failure[2]


def test_decoders_and_an_encoder_work_at_the_same_time(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = trial.Measured({"decode": 0.3, "flow": 0.1, "views": 0.04, "backbone": 0.06}, (), 1)
    monkeypatch.setattr(trial, "run_tasks", lambda *arguments: iter([(0, measured)]))
    assert tried(manifest, tmp_path, decoders=2).seconds == pytest.approx(20 * 0.2)
    assert tried(manifest, tmp_path, decoders=8).seconds == pytest.approx(20 * 0.1)
    assert tried(manifest, tmp_path, workers=5).seconds == pytest.approx(20 * 0.1)
