"""Extraction's small parts: settings, devices, fingerprints, overflow, damage that the next call repairs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.layout import Status
from pipeline import encode
from pipeline import extract as module
from pipeline.encode import Clock, ExtractSettings, extract_clip, fingerprint, resolve_device
from pipeline.errors import PipeError, UsageError
from pipeline.extract import extract
from pipeline.types import Clip, Manifest, ViewSpec
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
    encode._path_fingerprint.cache_clear()
    assert run(media, tmp_path / "cache", settings).new_clips == 0
    assert group.digest() == before


def test_a_clip_that_brings_decoders_down_costs_itself_alone(folder: Path, tmp_path: Path) -> None:
    settings = ExtractSettings(modalities=("audio",))
    clips = manifest(folder).clips
    group = module.open_groups(manifest(folder), settings, tmp_path)["audio"]
    task = module.UnitTask(tmp_path, "small", clips, {"audio": 0}, settings)
    module.extract_unit(module._without_deadly_clip(task, 1, -11), lambda done: None)
    records = group.records()
    assert [records[c.clip_id].status for c in clips] == [Status.PRESENT, Status.FAILED, Status.PRESENT]
    assert records["c1"].code == "crash"
    assert "exit code -11" in records["c1"].detail
    with pytest.raises(PipeError, match="writing features"):
        module._without_deadly_clip(task, len(clips), -9)
    with pytest.raises(PipeError, match="more than 3 clips"):
        module._without_deadly_clip(replace(task, deadly=dict.fromkeys("xyz", "died")), 0, -9)
    assert run(folder, tmp_path, settings).new_clips == 0
