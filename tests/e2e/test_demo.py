"""The demo from nothing to a report, again, and by its stages."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import zarr

from tests.e2e.conftest import DEMO, here, pipe

Demo = tuple[Path, str]


def results(work: Path) -> dict[str, dict]:
    """Every finished run, without what may differ between two machines or moments."""
    found = {}
    for path in (work / "results" / "demo").glob("*.json"):
        plain = json.loads(path.read_text())
        found[path.stem] = {k: v for k, v in plain.items() if k not in ("seconds", "environment")}
    return found


def test_it_writes_real_media_and_says_what_it_is(demo_run: Demo) -> None:
    work, text = demo_run
    files = sorted((work / "data" / "demo").rglob("*.mp4"))
    assert len(files) == 72
    with av.open(str(files[0])) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
    assert "synthetic" in text
    assert "nothing was pretrained" in text


def test_broken_and_silent_files_are_listed_and_do_not_stop_it(demo_run: Demo) -> None:
    _, text = demo_run
    assert re.search(r"Quarantined: 3 tracks of 1 clips\n\s+street-bounce-003 video\+flow: truncated", text)
    assert "no_audio_stream" in text


def test_the_table_has_every_method_and_target(demo_run: Demo) -> None:
    work, text = demo_run
    assert len(results(work)) == 9
    for word in ("FixMatch", "SSMDG", "Labeled only", "cartoon", "street", "workshop", "average"):
        assert word in text
    for plain in results(work).values():
        assert plain["status"] == "finished"
        assert plain["curves"]["step"] == [50, 60]
        assert 0 <= plain["metrics"]["target/fused"] <= 1


def test_the_page_is_self_contained(demo_run: Demo) -> None:
    work, text = demo_run
    page = work / "report" / "demo" / "report.html"
    assert str(page) in text
    html = page.read_text()
    assert "<svg" in html
    assert "data:image/png" in html
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", html)


def test_the_cache_is_plain_zarr_with_provenance(demo_run: Demo) -> None:
    work, _ = demo_run
    for modality in ("video", "flow", "audio"):
        (path,) = (work / "cache" / "demo").glob(f"{modality}-*.zarr")
        group = zarr.open_group(str(path), mode="r")
        assert group["features"].dtype == np.float16
        assert group["features"].shape[:2] == (72, 5)
        status = np.asarray(group["status"])
        assert (status > 0).all()
        assert np.isfinite(np.asarray(group["features"])[status == 1]).all()
        identity = group.attrs["identity"]
        assert identity["weights"] == "random:0"
        assert identity["views"] == ["clean0", "weak0", "weak1", "strong0", "strong1"]
        assert "torch" in group.attrs["versions"]


def test_a_second_call_does_nothing(demo_run: Demo) -> None:
    work, first = demo_run
    kept = [p for part in ("data", "cache", "results") for p in (work / part).rglob("*") if p.is_file()]
    before = {p: p.stat().st_mtime_ns for p in kept if p.name != ".lock"}
    again = here(*DEMO, "--work", work)
    assert "Everything was extracted already" in again.stdout
    assert "All 9 runs were there already" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before
    table = re.search(r"^  method.*?^\s*$", first, re.M | re.S)
    assert table is not None
    assert table.group() in again.stdout


def test_heads_on_the_demo_data_by_its_manifest(demo_run: Demo, tmp_path: Path) -> None:
    """A manifest of the user's own gives the same runs as the demo by name (and, in test_kill.py, features)."""
    source = demo_run[0]
    shutil.copytree(source / "cache", tmp_path / "cache")
    common = ["--dataset", source / "data" / "demo" / "manifest.csv", "--work", tmp_path, "--workers", "1"]
    text = here("train-heads", *common, "--labels", "1", "--seeds", "1", "--steps", "60", "--method", "ssmdg").stdout
    assert "3 runs, 3 of them trained now" in text
    mine = {(r["spec"]["method"], r["spec"]["target"]): r["curves"] for r in results(tmp_path).values()}
    theirs = {(r["spec"]["method"], r["spec"]["target"]): r["curves"] for r in results(source).values()}
    assert len(mine) == 3
    assert all(theirs[key] == curves for key, curves in mine.items())


def test_a_dry_run_writes_nothing(demo_run: Demo, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(demo_run[0] / "data", target_is_directory=True)
    said = here("extract", "--dataset", "demo", "--work", tmp_path, "--dry-run").stdout
    assert "72 clips, 0 of them are in the cache, 72 to extract" in said
    assert "Nothing was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    refused = here("extract", "--dataset", "demo", "--work", tmp_path, "--decoder", "ffmpeg", code=2).stderr
    assert "'ffmpeg' is not a decoder" in refused


@pytest.mark.soak
def test_views_as_in_the_papers_code_by_decoders_that_feed_one_encoder(demo_run: Demo, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(demo_run[0] / "data", target_is_directory=True)
    where = ("--dataset", "demo", "--work", tmp_path, "--modalities", "audio", "--augmentation", "paper")
    said = pipe("extract", *where, "--decoders", "1").stdout
    assert "encoders waited for decoding" in said
    (group,) = (tmp_path / "cache" / "demo").glob("audio-*.zarr")
    identity = zarr.open_group(group, mode="r").attrs["identity"]
    assert identity["settings"]["augmentation"] == "paper"
    assert "Everything was extracted already" in here("extract", *where).stdout


def test_the_cache_is_listed_checked_mended_and_exchanged(demo_run: Demo, tmp_path: Path) -> None:
    shutil.copytree(demo_run[0] / "cache", tmp_path / "cache")
    (tmp_path / "data").symlink_to(demo_run[0] / "data", target_is_directory=True)
    where = ("--work", tmp_path)
    assert "tiny-audio" in here("cache", "ls", *where).stdout
    assert "no_audio_stream" in here("cache", "info", "demo/audio", *where).stdout
    here("cache", "verify", *where)
    (chunk, *_) = (tmp_path / "cache" / "demo").glob("video-*.zarr/features/c/0/2/0")
    damaged = bytearray(chunk.read_bytes())
    damaged[100] ^= 4
    chunk.write_bytes(damaged)
    assert "chunk" in here("cache", "verify", "demo/video", *where, code=1).stdout
    assert "unit 0 is todo again" in here("cache", "verify", "--repair", *where).stdout
    assert "32 clips in" in here("extract", "--dataset", "demo", *where, "--workers", "1").stdout
    here("cache", "verify", *where)
    here("cache", "export", tmp_path / "out", "demo/audio", *where)
    (exported,) = (tmp_path / "out" / "demo").glob("*.h5")
    here("cache", "import", exported, "--work", tmp_path / "other")
    theirs = here("cache", "info", "demo/audio", "--work", tmp_path / "other").stdout
    assert re.search(r"digest +(\w+)", theirs)[1] in here("cache", "info", "demo/audio", *where).stdout
