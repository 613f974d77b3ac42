"""Extraction's small parts: settings, devices, fingerprints, overflow, damage that the next call repairs."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.layout import Status
from cache.places import place_of
from extractors.loading import Weights, random_weights
from pipeline import decoding, encode, units
from pipeline import extract as module
from pipeline.decoding import Clock, fingerprint
from pipeline.encode import extract_clip
from pipeline.errors import PipeError, UsageError
from pipeline.extract import extract
from pipeline.extraction import ExtractSettings, resolve_device
from pipeline.overlap import Shared
from pipeline.types import Clip, Manifest, ViewSpec
from pipeline.workers import Death, Progress
from tests import media_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media")
    for i in range(3):
        media_corpus.write_video(path / f"{i}.mp4", num_frames=40 + i, sound_seconds=1.5)
    return path


def manifest(folder: Path) -> Manifest:
    clips = tuple(Clip(f"c{i}", f"d{i % 2}", "x", "train", f"c{i}", {"video": folder / f"{i}.mp4"}) for i in range(3))
    return Manifest("small", ("x",), ("d0", "d1"), clips, folder)


def run(folder: Path, cache: Path, settings: ExtractSettings) -> module.ExtractReport:
    return extract(manifest(folder), settings, cache, 1, lambda total: None, lambda done: None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExtractSettings(modalities=("vidio",)), "'vidio' is not a modality. Did you mean 'video'"),
        (lambda: ExtractSettings(flow_method="dis"), "'dis' is not a method of optical flow"),
        (lambda: ExtractSettings(backbones={"video": "tiny-flow"}, modalities=("video",)), "takes flow, not video"),
        (lambda: ViewSpec(weak=1, strong=2), "need weak >= strong"),
        (lambda: resolve_device("gpu"), "'gpu' is not a device"),
        (lambda: resolve_device("cuda:99"), "is not here"),
    ],
)
def test_settings_that_are_not_allowed_are_named(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]


def test_auto_is_a_device_that_is_here() -> None:
    assert torch.zeros(1, device=resolve_device("auto")).item() == 0


def test_a_fingerprint_follows_content_and_stretch_not_name_or_time(tmp_path: Path) -> None:
    def mark(content: bytes, name: str = "a", start: float | None = None) -> str:
        path = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"  # results are remembered by path
        path.write_bytes(content)
        return fingerprint(Clip("c", "d", "x", "train", "c", {"video": path}, start_seconds=start))

    assert mark(b"abc") == mark(b"abc", name="b")
    assert len({mark(b"abc"), mark(b"abd"), mark(b"abcd"), mark(b"abc", start=1.0)}) == 4


def test_features_beyond_float16_are_a_failed_track_not_infinity(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ExtractSettings(modalities=("audio",))
    monkeypatch.setattr(encode, "encoder_of", lambda settings, modality: lambda x: torch.full((len(x), 160), 1e6))
    values, record = extract_clip(manifest(folder).clips[0], ("audio",), settings, Clock())["audio"]
    assert values is None
    assert (record.status, record.code) == (Status.FAILED, "not_finite")


def test_damage_is_found_and_only_the_damaged_unit_is_made_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNIT", 1)
    settings = ExtractSettings(modalities=("audio", "flow"))
    assert run(folder, tmp_path, settings).new_clips == 3
    before = {m: g.digest() for m, g in module.open_groups(manifest(folder), settings, tmp_path).items()}
    (path,) = (tmp_path / "small").glob("audio-*.zarr")
    chunk = path / "features" / "c" / "1" / "2" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[10] ^= 1
    chunk.write_bytes(damaged)
    report = run(folder, tmp_path, settings)
    assert report.repaired == ["audio: unit 1 was damaged on disk"]
    assert report.new_clips == 1
    assert report.encoders == 1  # there was one unit to do
    assert {m: g.digest() for m, g in module.open_groups(manifest(folder), settings, tmp_path).items()} == before
    assert run(folder, tmp_path, settings).new_clips == 0


def test_every_view_is_its_own_row_and_the_same_in_every_call(folder: Path) -> None:
    settings = ExtractSettings()
    clip = manifest(folder).clips[0]
    first = extract_clip(clip, settings.modalities, settings, Clock())
    again = extract_clip(clip, ("audio",), settings, Clock())
    for modality in settings.modalities:
        values, record = first[modality]
        assert record.status is Status.PRESENT
        assert values is not None
        assert values.shape == (5, 160)
        assert len(np.unique(values, axis=0)) == 5
        assert record.facts["codec"]
    np.testing.assert_array_equal(first["audio"][0], again["audio"][0])


def test_media_that_went_missing_costs_no_finished_feature(folder: Path, tmp_path: Path) -> None:
    media = tmp_path / "media"
    shutil.copytree(folder, media)
    settings = ExtractSettings(modalities=("audio",))
    run(media, tmp_path / "cache", settings)
    group = module.open_groups(manifest(media), settings, tmp_path / "cache")["audio"]
    before = group.digest()
    (media / "0.mp4").unlink()
    (media / "1.mp4").write_bytes(b"changed meanwhile")
    decoding._path_fingerprint.cache_clear()
    assert run(media, tmp_path / "cache", settings).new_clips == 0
    assert group.digest() == before


def test_a_clip_that_brings_decoders_down_costs_itself_alone(folder: Path, tmp_path: Path) -> None:
    settings = ExtractSettings(modalities=("audio",))
    clips = manifest(folder).clips
    group = module.open_groups(manifest(folder), settings, tmp_path)["audio"]
    task = units.UnitTask(place_of(tmp_path), "small", clips, {"audio": 0}, settings)
    units.extract_unit(units.without_deadly_clip(task, Death(1, -11)), Progress(lambda done: None))
    records = group.records()
    assert [records[c.clip_id].status for c in clips] == [Status.PRESENT, Status.FAILED, Status.PRESENT]
    assert records["c1"].code == "crash"
    assert "exit code -11" in records["c1"].detail
    with pytest.raises(PipeError, match="writing features"):
        units.without_deadly_clip(task, Death(len(clips), -9))
    with pytest.raises(PipeError, match="more than 3 clips"):
        units.without_deadly_clip(replace(task, deadly=dict.fromkeys("xyz", Death(0, -9))), Death(0, -9))
    assert run(folder, tmp_path, settings).new_clips == 0


def features(folder: Path, cache: Path, settings: ExtractSettings) -> dict[str, str]:
    return {m: g.digest() for m, g in module.open_groups(manifest(folder), settings, cache).items()}


def test_decoders_that_feed_one_encoder_give_the_same_features(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNIT", 2)
    settings = ExtractSettings()
    run(folder, tmp_path / "workers", settings)
    done: list[int] = []
    report = extract(manifest(folder), settings, tmp_path / "fed", 1, lambda total: None, done.append, decoders=2)
    assert sum(done) == report.new_clips == 3
    assert report.encoders == 1
    assert all(report.stage_seconds[stage] > 0 for stage in (*decoding.STAGES, "wait"))
    assert features(folder, tmp_path / "fed", settings) == features(folder, tmp_path / "workers", settings)
    again = extract(manifest(folder), settings, tmp_path / "fed", 1, lambda total: None, done.append, decoders=2)
    assert again.new_clips == 0


def dies_at_c1(task: units.ClipTask, progress: Progress) -> Shared:
    if task.clip.clip_id == "c1" and task.death is None:
        os.kill(os.getpid(), signal.SIGSEGV)
    return DECODE_TASK(task, progress)


def hangs_at_c1(task: units.ClipTask, progress: Progress) -> Shared:
    if task.clip.clip_id == "c1" and task.death is None:
        with progress.guard(task.settings.deadline_seconds):
            time.sleep(60)
    return DECODE_TASK(task, progress)


DECODE_TASK = units.decode_task


@pytest.mark.parametrize(
    ("decode", "code"), [(dies_at_c1, "crash"), pytest.param(hangs_at_c1, "deadline", marks=pytest.mark.soak)]
)
def test_a_decoder_that_dies_or_hangs_costs_its_clip_and_is_tried_again_when_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: object, code: str
) -> None:
    monkeypatch.setattr(units, "decode_task", decode)
    settings = ExtractSettings(modalities=("audio",), deadline_seconds=2.0)
    nothing = lambda amount: None  # noqa: E731
    report = extract(manifest(folder), settings, tmp_path, 1, nothing, nothing, decoders=1)
    assert [(record.clip_id, record.code) for _, record in report.quarantined] == [("c1", code)]
    assert extract(manifest(folder), settings, tmp_path, 1, nothing, nothing, decoders=1).new_clips == 0
    if code == "deadline":
        return
    monkeypatch.setattr(units, "decode_task", DECODE_TASK)
    report = extract(manifest(folder), settings, tmp_path, 1, nothing, nothing, decoders=1, retry=True)
    assert report.repaired == ["audio: c1 tried again"]
    assert not report.quarantined


def hangs_once(task: units.UnitTask, progress: Progress) -> dict[str, float]:
    """As a decoder that hangs at one clip for ever."""
    decode = decoding.decode_clip

    def slow(clip: Clip, modalities: tuple[str, ...], settings: ExtractSettings) -> decoding.Decoded:
        if clip.clip_id == "c1":
            time.sleep(60)
        return decode(clip, modalities, settings)

    units.decode_clip = slow  # type: ignore[attr-defined]
    return EXTRACT_UNIT(task, progress)


EXTRACT_UNIT = units.extract_unit


def test_a_clip_behind_its_deadline_costs_itself_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline has room for a first clip that waits for torch's own start on a busy machine."""
    monkeypatch.setattr(module, "extract_unit", hangs_once)
    report = run(folder, tmp_path, ExtractSettings(modalities=("audio",), deadline_seconds=5.0))
    assert [(record.clip_id, record.code) for _, record in report.quarantined] == [("c1", "deadline")]
    assert "did not end within 5 s" in report.quarantined[0][1].detail
    assert report.counts["audio"] == {"present": 2, "failed": 1}


def test_what_ends_the_encoder_ends_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(task: units.UnitTask, rows: object, leases: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(units, "write_rows", full)
    nothing = lambda amount: None  # noqa: E731
    with pytest.raises(OSError, match="No space left"):
        extract(manifest(folder), ExtractSettings(modalities=("audio",)), tmp_path, 1, nothing, nothing, decoders=1)
    assert multiprocessing.active_children() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "encoder"]


@pytest.mark.parametrize("modalities", [("video", "flow"), ("flow",), ("video",)])
def test_large_frames_are_read_in_parts_with_the_same_features(
    folder: Path, monkeypatch: pytest.MonkeyPatch, modalities: tuple[str, ...]
) -> None:
    settings = ExtractSettings(modalities=modalities)
    clip = manifest(folder).clips[0]
    whole = extract_clip(clip, modalities, settings, Clock())
    for frames in (2, 7):
        monkeypatch.setattr(decoding, "LARGE_BYTES", frames * 96 * 64 * 3)
        parts = extract_clip(clip, modalities, settings, Clock())
        for modality in modalities:
            np.testing.assert_array_equal(parts[modality][0], whole[modality][0])
            assert parts[modality][1] == whole[modality][1]


@pytest.mark.parametrize(
    ("method", "weights"), [("tvl1", None), ("tvl1-opencv", None), ("raft-small", random_weights(0))]
)
def test_methods_of_flow_make_features_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, weights: Weights | None
) -> None:
    default = ExtractSettings(modalities=("flow",))
    settings = replace(default, flow_method=method, flow_weights=weights)
    video = media_corpus.write_video(tmp_path / "short.mp4", num_frames=6, size=(64, 48))
    clip = Clip("c", "d", "x", "train", "c", {"video": video})
    values, record = extract_clip(clip, ("flow",), settings, Clock())["flow"]
    assert record.facts["flow"] == method
    usual, _ = extract_clip(clip, ("flow",), default, Clock())["flow"]
    assert values is not None
    assert not np.array_equal(values, usual)
    assert settings.identity("d", "flow") != default.identity("d", "flow")
    monkeypatch.setattr(decoding, "LARGE_BYTES", 3 * 64 * 48 * 3)
    np.testing.assert_array_equal(extract_clip(clip, ("flow",), settings, Clock())["flow"][0], values)


def test_the_weights_of_a_flow_network_are_part_of_the_identity() -> None:
    settings = ExtractSettings(modalities=("flow",), flow_method="raft-small", flow_weights=random_weights(0))
    other = replace(settings, flow_weights=random_weights(1))
    assert settings.identity("d", "flow").settings["flow_weights"] == "random:0"
    assert settings.identity("d", "flow") != other.identity("d", "flow")


def test_the_encoders_whose_waiting_is_counted_are_those_that_worked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNIT", 1)
    nothing = lambda amount: None  # noqa: E731
    settings = ExtractSettings(modalities=("audio",))
    report = extract(manifest(folder), settings, tmp_path, 2, nothing, nothing)
    assert report.encoders == 2
    assert report.stage_seconds["wait"] <= report.encoders * report.seconds
