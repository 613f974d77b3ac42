"""What a check of a data set finds in real and damaged files, and what it prints."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import datacheck, show_check
from pipeline.datacheck import DatasetCheck, Problem, check_dataset
from pipeline.datasets.manifest import read_manifest
from pipeline.decode.header import _asked, read_header
from pipeline.errors import MediaError, MediaFailed, PipeError
from pipeline.types import Clip, Manifest
from pipeline.workers import Death, Progress
from tests import media_corpus

HEADER = "clip_id,path,label,domain,split,start,stop,audio_path,flow_path,group,rate_hz\n"
REAL = """\
ggsy,v_GGSY1Qvo990.mp4,play,web,train,,,,,,
ggsy-cut,v_GGSY1Qvo990.mp4,play,web,train,2.0,5.5,,,,
znv,v_ZNVhz7ctTq0.mp4,play,web,test,,,,,,
arm,arm_wrestling.mp4,wrestle,web,train,,,,,,
avi,test.avi,wrestle,old,train,,,,,,
wav,FwVYUHKoLtQ_000034.wav,play,old,train,,,,,,
frames,frames/rgb,wrestle,old,test,,,,frames,,
frames-wav,frames/rgb,wrestle,old,test,,,FwVYUHKoLtQ_000034.wav,,,
"""


def check(manifest: Manifest, deep: bool = False, workers: int = 1, **texts: str) -> DatasetCheck:
    done: list[int] = []
    found = check_dataset(
        manifest, texts.get("published", ""), texts.get("layout", ""), deep, workers, lambda n: done.append(n)
    )
    assert sum(done) == len(manifest.clips)
    return found


def manifest_of(folder: Path, rows: str, root: Path | None = None) -> Manifest:
    folder.mkdir(exist_ok=True)
    (folder / "mine.csv").write_text(HEADER + rows)
    return read_manifest(folder / "mine.csv", root)


def codes(problems: tuple[Problem, ...]) -> set[tuple[str, str, str]]:
    return {(p.clip_id, p.key, p.code) for p in problems}


def printed(found: DatasetCheck, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    show_check.show_check(found)
    return capsys.readouterr().out


@pytest.mark.parametrize("deep", [False, True])
def test_real_media_are_complete(media_dir: Path, tmp_path: Path, deep: bool) -> None:
    found = check(manifest_of(tmp_path, REAL, media_dir), deep, workers=2)
    assert found.ok, found.failures
    assert {k: (m.clips, m.named, m.there) for k, m in found.media.items()} == {
        "video": (8, 6, 6),
        "flow": (1, 1, 1),
        "audio": (1, 1, 1),
    }
    assert found.without_sound == ("arm", "frames")
    assert found.without_pictures == ("wav",)
    assert found.without_media == ()
    assert found.counts[("play", "web", "train")] == 2
    assert found.seconds["video"].low == pytest.approx(3.5)
    assert found.seconds["video"].high == pytest.approx(18.16, abs=0.01)
    assert found.seconds["video"].count == 5
    assert (found.pictures["video"].low, found.pictures["flow"].low) == (10, 5)
    assert found.seconds["audio"].median == pytest.approx(10.0, abs=0.01)


def corpus(folder: Path) -> str:
    """Write good and damaged files; returns rows of a manifest."""
    folder.mkdir()
    media_corpus.write_video(folder / "good.mp4", sound_seconds=2.0)
    media_corpus.write_video(folder / "mute.mp4")
    media_corpus.write_video(folder / "fast.mp4", sound_seconds=2.0, container_options={"movflags": "faststart"})
    media_corpus.write_sound(folder / "sound.wav", media_corpus.sine(32_000, 16_000)[None], 16_000)
    media_corpus.damage_packet(folder / "mute.mp4", folder / "damaged.mp4", 40)
    media_corpus.remux(folder / "mute.mp4", folder / "film.mkv")
    for name in ("good.mp4", "fast.mp4", "sound.wav"):
        media_corpus.cut_file(folder / name, folder / f"cut-{name}", (folder / name).stat().st_size // 2)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no film\n" * 100)
    (folder / "pictures").mkdir()
    for i in (1, 2, 4, 5):
        shutil.copy(folder / "text.mp4", folder / "pictures" / f"{i}.jpg")
    videos = "good.mp4 mute.mp4 fast.mp4 damaged.mp4 film.mkv cut-good.mp4 cut-fast.mp4 empty.mp4 text.mp4 pictures"
    rows = [f"{name},{name},c{i % 2},d,train,,,,,," for i, name in enumerate([*videos.split(), "gone.mp4"])]
    rows += [
        "late,good.mp4,c0,d,train,2.5,,,,,",
        "long,good.mp4,c0,d,train,1,9,,,,",
        "no-rate,pictures,c0,d,test,1,2,,,,",
    ]
    rows += ["wav,,c0,d,train,,,sound.wav,,,", "cut-wav,,c0,d,train,,,cut-sound.wav,,,", "lost,,c0,d,val,,,x.wav,y,,"]
    rows += ["deaf,good.mp4,c1,d,val,,,mute.mp4,,,", "no-flow,good.mp4,c1,d,val,,,,pictures,,"]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("deep", [False, True])
def test_damaged_media_are_named_with_their_reasons(
    tmp_path: Path, deep: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(manifest_of(tmp_path / "media", corpus(tmp_path / "media")), deep, workers=2)
    assert not found.ok
    assert codes(found.media["video"].missing) == {("gone.mp4", "video", "missing_file")}
    assert codes(found.media["audio"].missing) == {("lost", "audio", "missing_file")}
    assert codes(found.media["flow"].missing) == {("lost", "flow", "missing_file")}
    assert codes(found.media["video"].zero_bytes) == {("empty.mp4", "video", "zero_bytes")}
    assert found.without_media == ("gone.mp4", "lost")
    assert found.without_sound == ("mute.mp4", "damaged.mp4", "film.mkv", "deaf")
    expected = {
        ("cut-good.mp4", "video", "truncated"),
        ("cut-fast.mp4", "video", "truncated"),
        ("cut-wav", "audio", "truncated"),
        ("text.mp4", "video", "not_media"),
        ("pictures", "video", "frame_gap"),
        ("no-rate", "video", "frame_gap"),
        ("no-flow", "flow", "no_flow"),
        ("late", "video", "past_end"),
    }
    if deep:
        expected |= {
            ("damaged.mp4", "video", "decode_error"),
            ("late", "audio", "past_end"),
            ("text.mp4", "audio", "not_media"),
            ("cut-good.mp4", "audio", "truncated"),
            ("cut-fast.mp4", "audio", "truncated"),
        }
    assert codes(found.failures) == expected
    assert [p.clip_id for p in found.cut_short] == ["long"]
    text = printed(found, capsys)
    assert "gone.mp4 video: missing_file" in text
    assert "empty.mp4 video: zero_bytes" in text
    assert ("text.mp4 video+audio: not_media" if deep else "text.mp4 video: not_media") in text
    assert "Paths start at" in text
    assert text.rstrip().splitlines()[-1].startswith("Not complete: 3 tracks missing, 1 empty, ")
    assert "Traceback" not in text


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.m4v"])
def test_headers_are_read_as_ffmpeg_reads_them(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    for sound_seconds in (0.0, 2.0):
        path = tmp_path / f"{sound_seconds}-{name}"
        media_corpus.write_video(path, sound_seconds=sound_seconds, container_options=options)
        found, asked = read_header(path), _asked(path)
        assert (found.has_video, found.has_audio) == (asked.has_video, asked.has_audio) == (True, sound_seconds > 0)
        assert found.seconds == pytest.approx(asked.seconds, abs=0.1)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "pcm_u8"])
def test_lengths_of_sound_are_read_as_ffmpeg_reads_them(tmp_path: Path, codec: str) -> None:
    for name, of_file in (("a.wav", codec), ("a.flac", "flac"), ("a.m4a", "aac"), ("a.mkv", codec)):
        path = media_corpus.write_sound(tmp_path / name, media_corpus.sine(48_000, 16_000)[None], 16_000, codec=of_file)
        found, asked = read_header(path), _asked(path)
        assert (found.has_video, found.has_audio) == (False, True)
        assert found.seconds == pytest.approx(asked.seconds, abs=0.01)
        assert found.seconds == pytest.approx(3.0, abs=0.1)


def test_real_headers_are_read_as_ffmpeg_reads_them(media_dir: Path) -> None:
    for path in (p for p in media_dir.iterdir() if p.is_file()):
        found, asked = read_header(path), _asked(path)
        assert (found.has_video, found.has_audio) == (asked.has_video, asked.has_audio)
        assert found.seconds == pytest.approx(asked.seconds, abs=0.01)


def test_a_damaged_header_is_a_reason_and_nothing_else(tmp_path: Path) -> None:
    sources = [
        media_corpus.write_video(tmp_path / "a.mp4", 20, sound_seconds=0.6),
        media_corpus.write_sound(tmp_path / "a.wav", media_corpus.sine(2000, 16_000)[None], 16_000),
    ]
    rng = np.random.default_rng(0)
    seen: dict[str, int] = {}
    for source in sources:
        whole = source.read_bytes()
        index = max(0, whole.find(b"moov") - 4)
        for trial in range(150):
            data = bytearray(whole)
            for place in rng.integers(index, min(len(data), index + 2500), 4):
                data[place] = rng.integers(0, 256)
            path = tmp_path / f"{trial}-{source.name}"
            path.write_bytes(data)
            try:
                read_header(path)
                code = "read"
            except MediaError as error:
                code = error.code
            seen[code] = seen.get(code, 0) + 1
            path.unlink()
    print(seen)
    assert seen["read"]


def test_a_rest_of_bytes_behind_the_index_is_no_damage(tmp_path: Path) -> None:
    path = media_corpus.write_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes() + b"\xff" * 11)
    assert read_header(path).has_video


def test_counts_classes_and_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media_corpus.write_video(tmp_path / "a.mp4")
    rows = "".join(
        f"{i},a.mp4,{label},{domain},{split},,,,,{group},\n"
        for i, (label, domain, split, group) in enumerate(
            [
                ("w[b]", "x", "train", "g"),
                ("w[b]", "x", "test", "g"),
                ("s", "x", "val", "h"),
                ("w[b]", "y", "test", "k"),
            ]
        )
    )
    found = check(manifest_of(tmp_path, rows))
    assert found.counts == {
        ("w[b]", "x", "train"): 1,
        ("w[b]", "x", "test"): 1,
        ("s", "x", "val"): 1,
        ("w[b]", "y", "test"): 1,
    }
    assert found.absent_classes == {"y": ("s",)}
    assert found.shared_groups == {"g": ("0", "1")}
    assert found.ok, "what is no fault of the files is shown and is no failure"
    text = printed(found, capsys)
    assert "w[b]" in text
    assert "1 / 0 / 1" in text
    assert "Domain y has no clip of 1 classes: s" in text
    assert "Groups with clips in both train and test: 1" in text
    assert "Clips without sound: 4" in text
    assert text.rstrip().endswith("Complete: every file is there")


def test_folders_of_pictures_are_compared_with_the_clips_numbers(media_dir: Path, tmp_path: Path) -> None:
    folder = {"video": media_dir / "frames" / "rgb", "flow": media_dir / "frames"}

    def clip(name: str, **numbers: tuple[int, int]) -> Clip:
        return Clip(name, "d", "c", "train", name, folder, **numbers)  # type: ignore[arg-type]

    clips = (
        clip("all"),
        clip("inside", frame_numbers=(2, 9), flow_numbers=(1, 4)),
        clip("late", frame_numbers=(8, 13), flow_numbers=(9, 12)),
    )
    found = check(Manifest("m", ("c",), ("d",), clips, media_dir))
    assert codes(found.failures) == {("late", "video", "frame_gap"), ("late", "flow", "past_end")}
    assert "2 of frames 8..12 are missing, first 11" in found.failures[0].detail
    assert (found.pictures["video"].low, found.pictures["video"].high) == (7, 10)
    assert (found.pictures["flow"].low, found.pictures["flow"].high) == (3, 5)


def test_flow_in_videos_needs_both_directions(tmp_path: Path) -> None:
    for name in ("a_flow_x.mp4", "a_flow_y.mp4", "b_flow_x.mp4"):
        media_corpus.write_video(tmp_path / name, 5)
    rows = "a,,c,d,train,,,,a_flow_x.mp4,,\nb,,c,d,train,,,,b_flow_x.mp4,,\n"
    for deep in (False, True):
        assert codes(check(manifest_of(tmp_path, rows), deep).failures) == {("b", "flow", "no_flow")}


def test_how_to_get_what_is_missing_is_said(
    media_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"g{i},gone/{i}.mp4,play,web,train,,,,,,\n" for i in range(20)) + REAL
    found = check(manifest_of(tmp_path, rows, media_dir), published="see example.org/data", layout="a/*.mp4\nb/*.csv")
    assert len(found.media["video"].missing) == 20
    text = printed(found, capsys)
    assert "Where to get it: see example.org/data" in text
    assert f"Expected below {media_dir}:\n  a/*.mp4\n  b/*.csv" in text
    assert "... and 12 more" in text
    assert "Missing video: 20 tracks of 20 clips" in text


def killer(batch: datacheck._Batch, progress: Progress) -> dict[str, list[datacheck._Track]]:
    """As a decoder that brings its process down at clips whose id says so."""
    found = {}
    for clip in batch.clips:
        if "deadly" in clip.clip_id and clip.clip_id not in batch.deadly:
            os._exit(11)
        found |= CHECK_BATCH(datacheck._Batch((clip,), batch.deep, batch.deadly), progress)
    return found


CHECK_BATCH = datacheck.check_batch


def test_a_file_that_kills_a_process_costs_its_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media_corpus.write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(datacheck, "check_batch", killer)
    rows = "".join(f"{name},a.mp4,c,d,train,,,,,,\n" for name in ("first", "deadly", "last"))
    found = check(manifest_of(tmp_path, rows))
    assert [(p.clip_id, p.code) for p in found.failures] == [("deadly", "crash")]
    assert "exit code 11" in found.failures[0].detail


def test_a_file_that_hangs_costs_its_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media_corpus.write_video(tmp_path / "a.mp4")
    media_corpus.write_video(tmp_path / "slow.mp4")
    monkeypatch.setattr(datacheck, "check_batch", hasty)
    found = check(manifest_of(tmp_path, "first,a.mp4,c,d,train,,,,,,\nhangs,slow.mp4,c,d,train,,,,,,\n"))
    assert [(p.clip_id, p.code) for p in found.failures] == [("hangs", "deadline")]
    assert found.failures[0].detail == "it did not end within 1.5 s, twice"


def hasty(batch: datacheck._Batch, progress: Progress) -> dict[str, list[datacheck._Track]]:
    """As on a file system that does not answer about one file."""
    datacheck.DEADLINE_SECONDS = 1.5
    read = read_header
    datacheck.read_header = lambda path: time.sleep(60) if path.name == "slow.mp4" else read(path)  # type: ignore[attr-defined]
    return CHECK_BATCH(batch, progress)


def test_a_machine_that_kills_everything_is_not_blamed_on_the_files(tmp_path: Path) -> None:
    media_corpus.write_video(tmp_path / "a.mp4")
    clips = manifest_of(tmp_path, "".join(f"{i},a.mp4,c,d,train,,,,,,\n" for i in range(20))).clips
    batch = datacheck._Batch(clips, deep=False)
    with pytest.raises(PipeError, match="died again and again"):
        datacheck._without_deadly_clip(datacheck._without_deadly_clip(batch, Death(0, -9)), Death(0, -9))
    for i in range(datacheck.MOST_DEADLY):
        batch = datacheck._without_deadly_clip(batch, Death(i, -9))
    with pytest.raises(PipeError, match="fewer --workers"):
        datacheck._without_deadly_clip(batch, Death(15, -9))


def test_what_nobody_thought_of_is_a_failure_of_its_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media_corpus.write_video(tmp_path / "a.mp4")
    (clip,) = manifest_of(tmp_path, "a,a.mp4,c,d,train,,,,,,\n").clips

    def odd(path: Path) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(datacheck, "read_header", odd)
    (track,) = datacheck.check_batch(datacheck._Batch((clip,), False), Progress(lambda _: None))["a"]
    assert (track.code, track.detail) == ("unexpected", "a.mp4: ZeroDivisionError: odd")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("deep", [False, True])
def test_files_that_may_not_be_read_are_named(tmp_path: Path, deep: bool) -> None:
    media_corpus.write_video(tmp_path / "a.mp4")
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    (tmp_path / "a.mp4").chmod(0)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret").chmod(0)
    media = {
        "a": tmp_path / "a.mp4",
        "b": tmp_path / "b.mp4",
        "in": tmp_path / "secret" / "c.mp4",
        "d": tmp_path / "secret",
    }
    clips = tuple(Clip(name, "d", "c", "train", name, {"video": path}) for name, path in media.items())
    # In this process: another user may not be able to start Python where the environment lies.
    found = datacheck.check_batch(datacheck._Batch(clips, deep), Progress(lambda _: None))
    (tmp_path / "secret").chmod(0o700)
    first = {name: tracks[0] for name, tracks in found.items()}
    assert {name: track.code for name, track in first.items() if track.code} == {
        "a": "not_media",
        "in": "not_media",
        "d": "missing_file",
    }
    assert all("cannot be" in track.detail for track in first.values() if track.code)


def test_unicode_spaces_and_commas_in_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "Küche, alt"
    folder.mkdir()
    media_corpus.write_video(folder / "动作 [1].mp4")
    found = check(
        manifest_of(folder, '"动作, [/b]","动作 [1].mp4",wavé,Küche,train,,,,,,\nx,gone[red].mp4,w,d,test,,,,,,\n')
    )
    assert not found.failures
    text = printed(found, capsys)
    assert "wavé" in text
    assert "gone[red].mp4 does not exist" in text


def test_every_finding_survives_a_change_of_workers(media_dir: Path, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, REAL, media_dir)
    one, three = (dataclasses.replace(check(manifest, True, n), elapsed_seconds=0) for n in (1, 3))
    assert one == three


def test_ten_thousand_files_take_seconds(tmp_path: Path) -> None:
    source = media_corpus.write_video(tmp_path / "a.mp4", 30, sound_seconds=1.0)
    data = source.read_bytes()
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(10_000):
        (folder / f"{i}.mp4").write_bytes(data)
    rows = "".join(f"{i},clips/{i}.mp4,c{i % 7},d{i % 3},train,,,,,,\n" for i in range(10_000))
    start = time.perf_counter()
    manifest = manifest_of(tmp_path, rows)
    read = time.perf_counter()
    found = check(manifest, workers=2)
    assert found.ok
    assert found.seconds["video"].count == 10_000
    print(f"10,000 files: manifest {read - start:.2f} s, check {found.elapsed_seconds:.2f} s, {len(data)} bytes each")


def test_a_missing_file_is_said_once(tmp_path: Path) -> None:
    media_corpus.write_video(tmp_path / "a.mp4")
    manifest = manifest_of(tmp_path, "a,a.mp4,c,d,train,,,,,,\nb,b.mp4,c,d,train,,,,,,\n")
    found = check(manifest, deep=True)
    assert not found.failures
    assert len(found.media["video"].missing) == 1
    with pytest.raises(MediaFailed, match="missing_file"):
        read_header(tmp_path / "b.mp4")
