"""`pipe predict`: the numbers of evaluation on files as they come, and honest words about those that are broken."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from heads.fillers import FILLERS
from pipeline.api import load_model, predict, predict_features
from pipeline.cli import app
from pipeline.datasets.manifest import read_manifest
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings
from pipeline.inputs import InputOptions, MediaItem, media_items
from pipeline.predict import Predictor
from pipeline.predictions import PredictionLine
from pipeline.reading import ReadTask, read_clips_of
from pipeline.study import load_features
from pipeline.types import Clip, Manifest
from pipeline.windows import Windowing
from pipeline.workers import Progress
from pipeline.workspace import Workspace
from tests import damaged_media, media_corpus
from tests.e2e.conftest import command, pipe

TARGET = "cartoon"
Row = dict[str, Any]
ARRAYS = dict[str, NDArray[Any]]


class Demo:
    """The demo's work, and a model that was exported from it."""

    def __init__(self, work: Path, folder: Path) -> None:
        self.data = work / "data" / "demo"
        self.manifest: Manifest = read_manifest(self.data / "manifest.csv")
        self.cached = load_features(self.manifest, ExtractSettings(), Workspace(work))
        results = [json.loads(path.read_text()) for path in (work / "results" / "demo").glob("*.json")]
        (run,) = [r for r in results if (r["spec"]["method"], r["spec"]["target"]) == ("ssmdg", TARGET)]
        self.model = folder / "model"
        pipe("export", run["run_id"], self.model, "--dataset", "demo", "--work", work)
        self.target = [clip for clip in self.manifest.clips if clip.domain == TARGET]

    def features(self, clips: Sequence[Clip]) -> ARRAYS:
        """The cached clean rows of clips, NaN where a modality is not there."""
        found = {}
        for modality, table in self.cached.items():
            values, present = table.select([clip.clip_id for clip in clips])
            clean = values[:, table.identity.views.index("clean0")].astype(np.float32)
            found[modality] = np.where(present[:, None], clean, np.nan)
        return found


@pytest.fixture(scope="module")
def demo(demo_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(demo_run[0], tmp_path_factory.mktemp("predict"))


@pytest.fixture(scope="module")
def predictor(demo: Demo) -> Iterator[Predictor]:
    """The model with a process that stays for all tests; every file is one prediction."""
    with load_model(demo.model, workers=1, window="off", device="cpu") as loaded:
        yield loaded


def told(predictor: Predictor, *names: Path | str) -> list[PredictionLine]:
    return list(predictor.predict(media_items(names, InputOptions())))


def near(line: PredictionLine | Row, other: PredictionLine | Row) -> None:
    """Two predictions are the same within what is written of them."""
    one, two = (x if isinstance(x, dict) else x.to_json() for x in (line, other))
    assert one["label"] == two["label"]
    assert one["probabilities"] == pytest.approx(two["probabilities"], abs=2e-5)


def test_features_are_the_cached_clean_rows_bit_for_bit(demo: Demo, predictor: Predictor) -> None:
    clips = [*demo.target[::4], *demo.manifest.clips[::24]]
    renamed = tuple(replace(clip, clip_id=f"another name {i}") for i, clip in enumerate(clips))  # no view is drawn
    places = tuple((i, -1) for i in range(len(clips)))
    levels = predictor.options.levels
    task = ReadTask(renamed, places, predictor.settings, levels, Windowing("off"), False, True)
    readings = read_clips_of(task, Progress(lambda amount: None))
    compared = 0
    for modality, table in demo.cached.items():
        values, present = table.select([clip.clip_id for clip in clips])
        for row, reading in enumerate(readings):
            assert present[row] == (modality in reading.features)
            assert reading.tracks[modality].status != "degraded"
            if present[row]:
                mine, cached = reading.features[modality], values[row, table.identity.views.index("clean0")]
                assert mine.dtype == cached.dtype
                assert np.array_equal(mine.view(np.uint16), cached.view(np.uint16))
                compared += 1
    assert compared > 20


def test_a_fresh_process_elsewhere_gives_the_predictions_of_the_cache(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{c.clip_id},{c.media['video'].relative_to(demo.data)},{c.label}\n" for c in demo.target]
    (tmp_path / "new.csv").write_text("clip_id,path,label\n" + "".join(rows))
    monkeypatch.chdir(tmp_path)
    expected = predict_features(demo.model, demo.features(demo.target))
    good = int((expected["status"] == "ok").sum())
    arguments = ["predict", demo.model, "new.csv", "--root", demo.data, "--json", "--workers", "2"]
    done = pipe(*arguments, code=int(good < len(expected)))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["clip_id"] for line in lines] == [clip.clip_id for clip in demo.target]  # in their order
    for line, (_, row) in zip(lines, expected.iterrows(), strict=True):
        assert line["status"] == row["status"]
        if line["status"] == "ok":
            assert line["label"] == row["label"]
            cached = {name: row[f"p_{name}"] for name in line["probabilities"]}
            assert line["probabilities"] == pytest.approx(cached, abs=2e-5)
            assert line["trust"] == row["trust"]
            for modality, said in line["modalities"].items():
                assert said["used"] == row[f"{modality}_used"]
                assert not said["used"] or said["label"] == row[f"{modality}_label"]
    right = sum(line["label"] == clip.label for line, clip in zip(lines, demo.target, strict=True))
    assert f"Accuracy {100 * right / good:.1f} % of {good} files whose label is known" in done.stderr


def write_clip(
    path: Path, frames: NDArray[np.uint8] | None, sound: NDArray[np.float32] | None, rate_hz: int = 25
) -> Path:
    """Encode pictures `(n, height, width, 3)` and sound `(n,)` at 16 kHz, either or both."""
    with av.open(str(path), "w") as output:
        video = audio = None
        if frames is not None:
            video = output.add_stream("libx264", rate=rate_hz, options={"g": "25"})
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.codec_context.thread_count = 1
        if sound is not None:
            audio = output.add_stream("aac", rate=16000, layout="mono")
        for index, picture in enumerate(frames if frames is not None else ()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate_hz)
            if video is not None:
                output.mux(video.encode(frame))
        for start in range(0, 0 if sound is None else len(sound), 1024):
            part = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")  # type: ignore[index]
            part.sample_rate, part.pts, part.time_base = 16000, start, Fraction(1, 16000)
            if audio is not None:
                output.mux(audio.encode(part))
        for stream in (video, audio):
            if stream is not None:
                output.mux(stream.encode())
    return path


def content(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """All pictures and the sound of a file."""
    from pipeline.decode import open_frames, read_sound

    with open_frames(path) as reader:
        return reader.read(range(reader.num_frames)), read_sound(path, 16000).samples


@pytest.fixture(scope="module")
def altered(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Clips of the target: as they are, without sound, silent, black, frozen, and black and silent."""
    folder = tmp_path_factory.mktemp("altered")
    rows = demo.features(demo.target)
    complete = [i for i in range(len(demo.target)) if all(np.isfinite(x[i]).all() for x in rows.values())]
    found: dict[str, list[Path]] = {}
    for number in complete[:6]:
        frames, sound = content(demo.target[number].media["video"])
        black, still, silence = np.zeros_like(frames), np.repeat(frames[:1], len(frames), 0), np.zeros_like(sound)
        kinds = {
            "whole": (frames, sound),
            "mute": (frames, None),
            "silent": (frames, silence),
            "black": (black, sound),
            "frozen": (still, sound),
            "both": (black, silence),
        }
        for kind, (pictures, samples) in kinds.items():
            found.setdefault(kind, []).append(write_clip(folder / f"{number}-{kind}.mp4", pictures, samples))
    return found


GONE = {
    "whole": {},
    "mute": {"audio": ("absent", "no_audio_stream")},
    "silent": {"audio": ("degraded", "silent")},
    "black": {"video": ("degraded", "black"), "flow": ("degraded", "black")},
    "frozen": {"video": ("degraded", "frozen"), "flow": ("degraded", "frozen")},
    "both": {"video": ("degraded", "black"), "flow": ("degraded", "black"), "audio": ("degraded", "silent")},
}


def test_lost_tracks_are_said_and_replaced_and_trust_falls(
    predictor: Predictor, altered: dict[str, list[Path]]
) -> None:
    found = {}
    for kind, paths in altered.items():
        lines = told(predictor, *paths)
        for line in lines:
            assert {m: (x.status, x.code) for m, x in line.missing.items()} == GONE[kind]
            assert set(line.modalities) == {"video", "flow", "audio"}
            if kind == "both":
                assert (line.status, line.code, line.label, line.trust) == ("failed", "no_usable_track", None, None)
                assert "the picture is black" in line.detail
                assert "the sound is silent: digital zero" in line.detail
                continue
            assert line.status == "ok"
            assert (line.filler is None) == (kind == "whole")
            assert sum(line.probs.values()) == pytest.approx(1, abs=1e-5)
            assert all(x.detail for x in line.missing.values())
            if kind != "whole":
                assert line.filler == predictor.head.filler
                assert FILLERS[line.filler] == line.filler_meaning
            assert not {*line.supports, *line.contradicts} & line.missing.keys()
            assert all((x.label is None) == (m in line.missing) for m, x in line.modalities.items())
        found[kind] = lines
    # The toy model is not calibrated, so its confidence need not fall; trust must not rise.
    consensus = {kind: sum(line.trust == "consensus" for line in lines) for kind, lines in found.items()}
    assert max(consensus.values()) == consensus["whole"]
    for one, other in (("mute", "silent"), ("black", "frozen")):  # the same is missing
        for line, same in zip(found[one], found[other], strict=True):
            assert line.probs == same.probs
    assert found["mute"][0].probs != found["whole"][0].probs


def test_degraded_tracks_are_used_when_asked_and_levels_are_told(
    demo: Demo, altered: dict[str, list[Path]], predictor: Predictor
) -> None:
    options = replace(predictor.options, keep_degraded=True)
    kept = Predictor(predictor.bundle, options)
    kept._pool, before = predictor._pool, told(predictor, altered["black"][0])[0]
    (line,) = told(kept, altered["both"][0])
    assert (line.status, line.missing, line.filler) == ("ok", {}, None)
    assert {m: x.status for m, x in line.modalities.items()} == dict.fromkeys(line.modalities, "degraded")
    assert line.to_json()["settings"] == {
        "silence_dbfs": -60.0,
        "black_level": 8.0,
        "frozen_level": 1.0,
        "keep_degraded": True,
        "threshold": predictor.head.threshold,
    }
    assert before.to_json()["modalities"]["video"]["measured"]["luma"] < 1
    blind = Predictor(
        predictor.bundle,
        replace(options, keep_degraded=False, levels=replace(options.levels, black_level=0, frozen_level=0)),
    )
    blind._pool = predictor._pool
    (line,) = told(blind, altered["black"][0])
    assert line.missing == {}


def test_what_a_line_says_does_not_depend_on_its_company(predictor: Predictor, altered: dict[str, list[Path]]) -> None:
    mixed = [altered["whole"][0], altered["both"][1], altered["mute"][2], Path("gone.mp4"), altered["whole"][3]]
    together = told(predictor, *mixed)
    assert [line.file for line in together] == [str(path) for path in mixed]
    for path, line in zip(mixed, together, strict=True):
        (alone,) = told(predictor, path)
        assert alone.to_json() == line.to_json()


def test_clips_that_this_process_encodes_give_the_same_lines(
    predictor: Predictor, altered: dict[str, list[Path]], media_dir: Path
) -> None:
    """The way of a GPU: workers decode, pictures cross in shared memory."""
    paths = [altered["whole"][0], altered["black"][0], Path("gone.mp4"), media_dir / "test.avi"]
    here = Predictor(predictor.bundle, replace(predictor.options, window="4"))
    here._pool, here.workers_encode = predictor._pool, False
    there = Predictor(predictor.bundle, here.options)
    there._pool = predictor._pool
    one, other = told(here, *paths), told(there, *paths)
    assert len(one) == 7
    assert [line.to_json() for line in one] == [line.to_json() for line in other]


def test_another_filler_and_threshold_are_used_and_said(predictor: Predictor, altered: dict[str, list[Path]]) -> None:
    (own,) = told(predictor, altered["mute"][0])
    other = Predictor(predictor.bundle, replace(predictor.options, filler="zero", threshold=0.0))
    other._pool = predictor._pool
    (line,) = told(other, altered["mute"][0])
    assert (line.filler, line.settings["threshold"]) == ("zero", 0.0)
    assert line.filler_meaning == "a zero embedding before fusion"
    assert line.probs != own.probs
    assert line.trust in ("consensus", "disagreement")  # everything is at least 0
    assert set(line.supports) | set(line.contradicts) == {"video", "flow"}
    with pytest.raises(UsageError, match="is not a filler of this model"):
        Predictor(predictor.bundle, replace(predictor.options, filler="transalte"))


def test_windows_of_a_real_video_are_its_stretches_and_their_mean(
    demo: Demo, predictor: Predictor, media_dir: Path, tmp_path: Path
) -> None:
    path = media_dir / "v_GGSY1Qvo990.mp4"
    cut = Predictor(predictor.bundle, replace(predictor.options, window="6"))
    cut._pool = predictor._pool
    *windows, whole = told(cut, path)
    assert [line.level for line in windows] == ["window"] * len(windows)
    assert [(x.start_seconds, x.window) for x in windows[:4]] == [(0.0, 0), (3.0, 1), (6.0, 2), (9.0, 3)]
    assert windows[-1].end_seconds == whole.end_seconds == pytest.approx(18.09, abs=0.01)
    assert windows[-1].start_seconds == pytest.approx(12.09, abs=0.01)
    assert (whole.level, whole.windows, whole.windows_failed, whole.trust) == ("file", len(windows), 0, None)
    for name in predictor.head.classes:
        assert whole.probs[name] == pytest.approx(np.mean([line.probs[name] for line in windows]), abs=1e-9)
    shares = {level: np.mean([line.trust == level for line in windows]) for level in whole.trust_shares}
    assert whole.trust_shares == pytest.approx(shares)
    rows = [f"w{x.window},{path},{x.start_seconds!r},{x.end_seconds!r}\n" for x in windows]
    (tmp_path / "cut.csv").write_text("clip_id,path,start,stop\n" + "".join(rows))
    items = media_items([tmp_path / "cut.csv"], InputOptions(outside=True))
    for line, window in zip(predictor.predict(items), windows, strict=True):
        near(line, window)
    assert windows[0].probs != windows[1].probs


def test_the_title_card_of_a_real_video_is_a_window_without_a_prediction(predictor: Predictor, media_dir: Path) -> None:
    cut = Predictor(predictor.bundle, replace(predictor.options, window="2", stride_seconds=4.0))
    cut._pool = predictor._pool
    *windows, whole = told(cut, media_dir / "arm_wrestling.mp4")
    assert [line.status for line in windows] == ["ok", "ok", "failed"]
    assert {m: x.code for m, x in windows[2].modalities.items()} == {
        "video": "frozen",
        "flow": "frozen",
        "audio": "no_audio_stream",
    }
    assert (whole.status, whole.windows_failed) == ("ok", 1)
    for name, value in whole.probs.items():  # the mean of those that have one
        assert value == pytest.approx(np.mean([line.probs[name] for line in windows[:2]]), abs=1e-9)
    assert whole.modalities["video"].windows_used == 2
    assert not whole.modalities["audio"].used
    assert sum(whole.trust_shares.values()) == pytest.approx(1)


@pytest.fixture(scope="module")
def broken(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of damaged files, and one that is sound."""
    folder = tmp_path_factory.mktemp("broken")
    list(damaged_media._headers(damaged_media.Sources(folder / ".sources"), folder))
    good = media_corpus.write_video(folder / "good.mp4", 45, sound_seconds=1.5)
    whole = good.read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no film\n" * 100)
    media_corpus.write_video(folder / "far.mkv", 30, timestamps=[*range(29), 30 * 10**9])
    return folder


def test_damaged_files_are_listed_and_stop_nothing(demo: Demo, broken: Path, tmp_path: Path) -> None:
    """Absurd lengths and rates included: none makes more windows than there are frames."""
    paths = sorted(path for path in broken.iterdir() if path.is_file())
    listed = "\n".join([*map(str, paths), "", str(tmp_path / "gone.mp4")])
    arguments = command("predict", str(demo.model), "-", "--csv", "--window", "2", "--workers", "1")
    done = subprocess.run(arguments, input=listed, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    files = {Path(row["file"]).name: row for row in rows if row["level"] == "file"}
    assert list(files) == [path.name for path in paths] + ["gone.mp4"]
    codes = {name: row["code"] for name, row in files.items()}
    expected = {
        "good.mp4": "",
        "cut.mp4": "truncated",
        "empty.mp4": "zero_bytes",
        "text.mp4": "not_media",
        "gone.mp4": "missing_file",
        "far.mkv": "absurd_duration",
        "long-movie.mp4": "",  # its header lies and its frames do not
        "many-frames.mp4": "truncated",
        "no-rate.wav": "not_media",
    }
    assert {name: codes[name] for name in expected} == expected
    assert len(rows) < 3 * len(files)
    for name, row in files.items():
        assert (row["status"] == "ok") == (row["code"] == "")
        if row["status"] == "failed":
            assert f"{name}: {row['code']}: {row['detail'][:40]}" in done.stderr
    failed = sum(row["status"] == "failed" for row in files.values())
    assert f"{len(files)} files" in done.stderr
    assert f"{failed} not" in done.stderr


def test_lines_come_while_the_list_grows_and_ctrl_c_keeps_them(
    demo: Demo, altered: dict[str, list[Path]], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = command("predict", str(demo.model), "-", "--output", str(output), "--workers", "1")
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    part = tmp_path / "out.jsonl.part"
    try:
        for number, path in enumerate(altered["whole"][:2], 1):
            process.stdin.write(f"{path}\n".encode())
            process.stdin.flush()  # and the list stays open
            deadline = time.monotonic() + 60
            while not part.exists() or part.read_text().count("\n") < number:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"2 lines are in " in said
    assert b"Traceback" not in said
    assert not output.exists()
    assert [json.loads(line)["status"] for line in part.read_text().splitlines()] == ["ok", "ok"]


def test_a_reader_that_goes_away_ends_it_quietly(demo: Demo, altered: dict[str, list[Path]]) -> None:
    arguments = command("predict", str(demo.model), *map(str, altered["mute"] * 20), "--json", "--workers", "1")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 0
    assert json.loads(first)["filler"]
    assert said == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/empty"], "holds no media"),
        (["x.mp4", "--json", "--csv"], "exclude each other"),
        (["x.mp4", "--output", "x.txt"], "does not say the form"),
        (["x.mp4", "--window", "long"], "give seconds"),
        (["x.mp4", "--window", "off", "--stride", "1"], "goes with windows"),
        (["x.mp4", "--silence-dbfs", "5"], "full scale is 0"),
        (["x.mp4", "--filler", "magic"], "is not a filler of this model"),
        (["x.mp4", "--threshold", "2"], "must be a confidence"),
        (["x.mp4", "--output", "{tmp}/nowhere/x.csv"], "cannot be written"),
        (["{tmp}/bad.csv"], "lies outside the root"),
    ],
)
def test_wrong_use_is_said_in_one_message(demo: Demo, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("path\n/etc/passwd\n")
    done = CliRunner().invoke(app, ["predict", str(demo.model), *(a.format(tmp=tmp_path) for a in arguments)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["predict", str(tmp_path), "x.mp4"])
    assert done.exit_code == 2
    assert "bundle" in done.stderr


def test_from_a_notebook_rows_come_back(demo: Demo, predictor: Predictor, altered: dict[str, list[Path]]) -> None:
    frame = predict(predictor, [altered["whole"][0], altered["mute"][0], "gone.mp4"])
    assert frame["status"].tolist() == ["ok", "ok", "failed"]
    assert frame["audio_used"].tolist() == [True, False, False]
    classes = predictor.head.classes
    total = frame.loc[:1, [f"p_{name}" for name in classes]].sum(axis=1)
    assert total.tolist() == pytest.approx([1, 1], abs=1e-5)
    with pytest.raises(UsageError, match="goes to load_model"):
        predict(predictor, "x.mp4", workers=2)
    with pytest.raises(UsageError, match="Did you mean 'workers'"):
        load_model(demo.model, wrokers=2)
    with pytest.raises(UsageError, match="standard input"):
        predict(predictor, "-")


def test_rows_of_features_may_lack_modalities(demo: Demo, predictor: Predictor) -> None:
    clips = demo.target[:8]
    arrays = {m: np.nan_to_num(values, nan=0.5) for m, values in demo.features(clips).items()}
    whole = predict_features(predictor, arrays)
    holes = {m: values.copy() for m, values in arrays.items()}
    holes["audio"][3] = np.nan
    for values in holes.values():
        values[5] = np.nan
    frame = predict_features(predictor, holes)
    assert frame["status"].tolist() == ["ok"] * 5 + ["failed"] + ["ok"] * 2
    assert frame["filler"].notna().tolist() == [row == 3 for row in range(8)]
    assert frame["audio_label"].isna().tolist() == [row in (3, 5) for row in range(8)]
    columns = [f"p_{name}" for name in predictor.head.classes]
    same = [row for row in range(8) if row not in (3, 5)]
    assert np.allclose(frame.loc[same, columns], whole.loc[same, columns], atol=2e-5)
    without = predict_features(predictor, {m: arrays[m] for m in ("video", "flow")})
    assert np.allclose(frame.loc[3, columns].astype(float), without.loc[3, columns].astype(float), atol=2e-5)
    torch_rows = {m: torch.from_numpy(values) for m, values in arrays.items()}
    present = {m: torch.ones(8, dtype=torch.bool) for m in arrays}
    probs = predictor.head(torch_rows, present).probs.numpy()
    assert np.allclose(whole[columns].to_numpy(float), probs, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sound": np.zeros((8, 160))}, "is not a modality"),
        ({"audio": np.zeros((8, 12))}, r"must be \(rows, 160\)"),
        ({"audio": np.zeros((7, 160))}, "same number of rows"),
        ({"audio": np.where(np.arange(160) == 4, np.nan, np.ones((8, 160)))}, "row 0 of audio is NaN or infinite"),
    ],
)
def test_arrays_that_no_model_reads_are_refused(predictor: Predictor, change: ARRAYS, message: str) -> None:
    arrays = {m: np.ones((8, 160)) for m in predictor.head.modalities} | change
    with pytest.raises(UsageError, match=message):
        predict_features(predictor, arrays)


@pytest.mark.soak
def test_all_damaged_media_are_predicted_or_refused(demo: Demo, tmp_path: Path) -> None:
    paths = damaged_media.write_damaged(tmp_path / "damaged")
    with load_model(demo.model, workers=2, deadline_seconds=60.0) as loaded:
        lines = list(loaded.predict(iter([MediaItem.from_path(str(path)) for path in paths])))
    files = [line for line in lines if line.level == "file"]
    assert [line.file for line in files] == [str(path) for path in paths]
    assert all((line.status == "ok") == (line.code == "") for line in files)
    assert not any(line.code == "crash" for line in files)
    assert len(lines) < 2 * len(paths)


@pytest.mark.soak
def test_memory_stays_flat_over_a_thousand_files(demo: Demo, altered: dict[str, list[Path]]) -> None:
    import psutil

    paths = [path for kind in ("whole", "mute", "black") for path in altered[kind]]
    items = iter([MediaItem.from_path(str(paths[i % len(paths)])) for i in range(1000)])
    used = []
    with load_model(demo.model, workers=2, window="off") as loaded:
        for number, _ in enumerate(loaded.predict(items), 1):
            if number in (100, 1000):
                mine = psutil.Process(os.getpid())
                used.append(sum(p.memory_info().rss for p in [mine, *mine.children()]) / 2**20)
    assert used[1] < used[0] + 60
