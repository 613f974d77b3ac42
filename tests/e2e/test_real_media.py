"""`pipe extract` on real files and on damaged ones: features for what each has, a reason for what it lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import media_corpus
from tests.e2e.conftest import here, pipe

HEADER = "clip_id,path,label,domain,split,start,stop,audio_path,flow_path\n"
REAL = """\
ggsy,v_GGSY1Qvo990.mp4,play,web,train,,,,
ggsy-cut,v_GGSY1Qvo990.mp4,play,web,train,2.0,5.5,,
znv,v_ZNVhz7ctTq0.mp4,play,web,test,,,,
arm,arm_wrestling.mp4,wrestle,web,train,,,,
avi,test.avi,wrestle,old,train,,,,
wav,FwVYUHKoLtQ_000034.wav,play,old,train,,,,
frames,frames/rgb,wrestle,old,test,,,,frames
frames-wav,frames/rgb,wrestle,old,test,,,FwVYUHKoLtQ_000034.wav,
gone,nowhere.mp4,wrestle,old,test,,,,
"""


def records(work: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """clip id -> modality -> (status, code), from the commits of the cache."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for path in work.glob("cache/*/*.zarr/commits/*.json"):
        modality = path.parent.parent.name.split("-")[0]
        for clip in json.loads(path.read_text())["clips"]:
            found.setdefault(clip["clip_id"], {})[modality] = (clip["status"], clip["code"])
    return found


def expect(**tracks: str) -> dict[str, tuple[str, str]]:
    """``video="present"`` or ``video="failed truncated"``."""
    return {m: (text.split()[0], " ".join(text.split()[1:])) for m, text in tracks.items()}


def write_manifest(folder: Path, rows: Iterable[str]) -> Path:
    path = folder / "mine.csv"
    path.write_text(HEADER + "".join(rows))
    return path


@pytest.fixture(scope="module")
def real(media_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A workspace with the real files' features, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("real")
    manifest = write_manifest(folder, [REAL])
    arguments = ["--dataset", str(manifest), "--root", str(media_dir), "--work", str(folder / "work")]
    here("extract", *arguments, "--workers", "1")
    return folder / "work", arguments


def test_every_real_file_gives_what_it_has(real: tuple[Path, list[str]]) -> None:
    everything = expect(video="present", flow="present", audio="present")
    assert records(real[0]) == {
        "ggsy": everything,
        "ggsy-cut": everything,
        "znv": everything,
        "avi": everything,
        "frames-wav": everything,
        "arm": expect(video="present", flow="present", audio="absent no_audio_stream"),
        "wav": expect(video="absent no_video_stream", flow="absent no_video_stream", audio="present"),
        "frames": expect(video="present", flow="present", audio="absent no_audio_path"),
        "gone": expect(video="failed missing_file", flow="failed missing_file", audio="failed missing_file"),
    }


def test_heads_train_on_clips_that_lack_a_track(real: tuple[Path, list[str]]) -> None:
    _, arguments = real
    few = ("--seeds", "2", "--steps", "5", "--workers", "1")
    text = here("train-heads", *arguments, "--method", "erm", "--labels", "1", *few).stdout
    assert "4 runs, 4 of them trained now" in text
    refused = here("train-heads", *arguments, "--method", "ssmdg", "--labels", "100%", *few, code=2)
    assert "needs unlabeled clips" in refused.stderr


def test_damaged_files_are_quarantined_and_the_rest_goes_on(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    media_corpus.write_video(media / "good.mp4", sound_seconds=2.4)
    media_corpus.write_video(media / "mute.mp4")
    media_corpus.write_video(media / "one.mp4", num_frames=1)
    media_corpus.write_sound(media / "sound.wav", media_corpus.sine(32_000, 16_000)[None], 16_000)
    (media / "empty.mp4").write_bytes(b"")
    (media / "text.mp4").write_text("this is no film\n" * 100)
    whole = (media / "good.mp4").read_bytes()
    (media / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    names = ["good", "mute", "one", "empty", "text", "cut"]
    rows = [f"{n},{n}.mp4,c{i % 2},d{i % 2},train,,,,\n" for i, n in enumerate(names)]
    manifest = write_manifest(media, [*rows, "sound,sound.wav,c0,d0,train,,,,\n"])
    arguments = ["extract", "--dataset", str(manifest), "--work", str(tmp_path / "work"), "--workers", "1"]
    text = here(*arguments).stdout
    found = records(tmp_path / "work")
    assert found["good"] == expect(video="present", flow="present", audio="present")
    assert found["mute"] == expect(video="present", flow="present", audio="absent no_audio_stream")
    assert found["sound"] == expect(video="absent no_video_stream", flow="absent no_video_stream", audio="present")
    assert found["one"]["video"] == found["one"]["flow"] == ("failed", "one_frame")
    assert set(found["empty"].values()) == {("failed", "zero_bytes")}
    assert set(found["text"].values()) == {("failed", "not_media")}
    assert {status for status, _ in found["cut"].values()} == {"failed"}
    for name in ("one", "empty", "text", "cut"):
        assert f"  {name} " in text
    # Mended files are taken up by the next call, and only they.
    shutil.copy(media / "good.mp4", media / "empty.mp4")
    text = pipe(*arguments).stdout
    assert "the media of empty changed" in text
    assert records(tmp_path / "work")["empty"] == found["good"]
