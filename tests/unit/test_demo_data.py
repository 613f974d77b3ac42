"""The embedded data set: the same bytes every time, resumable, and as faulty as it says."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.datasets.demo import CLASSES, DOMAINS, ClipPlan, DemoSpec, plan_clips, write_demo
from pipeline.datasets.demo.motion import draw_motion, phase, poses
from pipeline.datasets.demo.sound import sound_trouble, synthesise
from pipeline.datasets.demo.style import ACTIONS, HARD_MOTION_SHARE, HARD_SOUND_SHARE, SILENT_SHARE
from pipeline.datasets.demo.write import COLUMNS
from pipeline.errors import PipeError, UsageError

SPEC = DemoSpec(clips_per_class=4, size=64)
TOTAL = 4 * len(CLASSES) * len(DOMAINS)
MANY = plan_clips(DemoSpec(clips_per_class=60))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "data"
    calls: list[tuple[int, int]] = []
    manifest = write_demo(root, SPEC, progress=lambda done, total: calls.append((done, total)))
    assert manifest == root / "manifest.csv"
    assert calls == [(i, TOTAL) for i in range(TOTAL + 1)]
    return root


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def contents(root: Path) -> dict[str, bytes]:
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def the_broken(spec: DemoSpec = SPEC) -> ClipPlan:
    (plan,) = [plan for plan in plan_clips(spec) if plan.broken]
    return plan


def decoded_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_manifest_counts_and_columns(written: Path) -> None:
    table = rows(written)
    assert tuple(table[0]) == COLUMNS == ("clip_id", "path", "label", "domain", "split", "group")
    assert Counter((r["domain"], r["label"]) for r in table) == {(d, c): 4 for d in DOMAINS for c in CLASSES}
    assert Counter(r["split"] for r in table) == {"train": 3 * TOTAL // 4, "test": TOTAL // 4}
    assert all(r["group"] == r["clip_id"] for r in table)
    assert table[0]["clip_id"] == f"{DOMAINS[0]}-{CLASSES[0]}-000"
    assert table[0]["path"] == f"{DOMAINS[0]}/{CLASSES[0]}/{DOMAINS[0]}-{CLASSES[0]}-000.mp4"
    files = {p for p in contents(written) if p not in {"manifest.csv", "demo.json"}}
    assert files == {r["path"] for r in table}


def test_splits_are_three_to_one_in_every_class_and_domain() -> None:
    counts = Counter((p.domain, p.label, p.split) for p in MANY)
    assert set(counts.values()) == {45, 15}


def test_files_are_h264_and_aac_with_the_index_in_front(written: Path) -> None:
    for plan in plan_clips(SPEC)[::5]:
        if plan.broken:
            continue
        path = written / plan.path
        head = path.read_bytes()
        assert head.index(b"moov") < head.index(b"mdat")
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (video.width, video.height, video.average_rate) == (64, 64, 16)
            assert 2.0 <= float(video.duration * video.time_base) <= 3.0
            assert 2.0 <= container.duration / av.time_base <= 3.0
            assert sum(1 for _ in container.decode(video)) == video.frames == plan.num_frames
            assert len(container.streams.audio) == int(plan.has_sound)
        if plan.has_sound:
            with av.open(str(path)) as container:
                audio = container.streams.audio[0]
                assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 16_000, 1)
                wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio)])
                assert abs(len(wave) / 16_000 - plan.num_frames / 16) < 0.15
                assert 0.01 < wave.std() < 0.5


def test_key_frames_are_at_most_32_frames_apart(written: Path) -> None:
    plan = max((p for p in plan_clips(SPEC) if not p.broken), key=lambda p: p.num_frames)
    with av.open(str(written / plan.path)) as container:
        keys = [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert plan.num_frames > 32
    assert max(np.diff([*keys, plan.num_frames])) <= 32


def test_the_broken_file_promises_more_than_it_holds(written: Path) -> None:
    plan = the_broken()
    assert (plan.split, plan.has_sound) == ("train", True)
    decoded = {"video": 0, "audio": 0}
    for kind in decoded:
        with av.open(str(written / plan.path)) as container:
            stream = container.streams.get({kind: 0})[0]
            assert stream.frames > 0
            promised = float(stream.duration * stream.time_base)
            seconds = 0.0
            try:
                for frame in container.decode(stream):
                    decoded[kind] += 1
                    seconds = frame.time
            except av.error.InvalidDataError:
                pass
            assert decoded[kind] < stream.frames
            assert seconds < 0.9 * promised
    assert 0 < decoded["video"] < plan.num_frames


def test_shares_of_silent_and_spoiled_clips() -> None:
    for seed in range(3):
        assert sum(p.broken for p in plan_clips(DemoSpec(seed=seed))) == 1
    silent = np.mean([not p.has_sound for p in MANY])
    assert abs(silent - SILENT_SHARE) < 0.02
    assert all({p.domain for p in MANY if not p.has_sound} >= {d} for d in DOMAINS)
    motion = np.array([draw_motion(p, 16).trouble != "none" for p in MANY])
    sound = np.array([sound_trouble(p) != "none" for p in MANY])
    assert abs(motion.mean() - HARD_MOTION_SHARE) < 0.04
    assert abs(sound.mean() - HARD_SOUND_SHARE) < 0.04
    both = (motion & sound).mean()  # independent draws: the share of both is the product
    assert abs(both - HARD_MOTION_SHARE * HARD_SOUND_SHARE) < 0.02


def test_motion_and_sound_together_name_a_class_that_neither_names_alone() -> None:
    assert set(Counter(a.motion for a in ACTIONS.values()).values()) == {2}
    assert set(Counter(a.sound for a in ACTIONS.values()).values()) == {2}
    assert len({(a.motion, a.sound) for a in ACTIONS.values()}) == len(ACTIONS)


@pytest.mark.parametrize(("label", "parameter"), [("shake", "travel"), ("bounce", "hop"), ("spin", "drift")])
def test_classes_that_share_a_motion_axis_overlap(label: str, parameter: str) -> None:
    axis = ACTIONS[label].motion
    (other,) = [name for name, a in ACTIONS.items() if a.motion == axis and name != label]
    mine, theirs = (
        np.array([getattr(draw_motion(p, 16), parameter) for p in MANY if p.label == name]) for name in (label, other)
    )
    pooled = np.concatenate([mine, theirs])
    best = max(
        max(np.mean([*(mine > t), *(theirs <= t)]), np.mean([*(mine <= t), *(theirs > t)])) for t in np.unique(pooled)
    )
    assert 0.6 < best < 0.9  # the best threshold tells the two apart often, but not always


def test_sound_events_fall_on_the_events_of_the_motion() -> None:
    """The loudest moments of clear bounces are the landings."""
    hits, count = 0, 0
    for plan in [p for p in MANY if p.label == "bounce" and p.domain == "cartoon"]:
        motion = draw_motion(plan, 16)
        if sound_trouble(plan) != "none":
            continue
        wave = synthesise(plan, motion, 16_000, 16)
        within = phase(motion, np.array([np.argmax(np.abs(wave)) / 16_000, 1.0]))[0] % 1.0
        hits += within < 0.15 or within > 0.98
        count += 1
    assert count > 30
    assert hits / count > 0.75


def test_the_object_stays_in_the_picture() -> None:
    for plan in MANY[::7]:
        motion = draw_motion(plan, 16)
        pose = poses(motion, np.arange(plan.num_frames) / 16)
        assert pose.x.min() > -0.05
        assert pose.x.max() < 1.05
        assert pose.y.min() > -0.05
        assert pose.y.max() < 1.05


def test_domains_differ_in_colour_noise_and_tempo(written: Path) -> None:
    colour: dict[str, list[np.ndarray]] = {d: [] for d in DOMAINS}
    noise: dict[str, list[float]] = {d: [] for d in DOMAINS}
    for plan in plan_clips(SPEC)[::2]:
        if plan.broken or draw_motion(plan, 16).trouble == "murky":
            continue
        frames = np.stack(decoded_frames(written / plan.path)[:8]).astype(np.float64)
        colour[plan.domain].append(frames.mean(axis=(0, 1, 2)))
        noise[plan.domain].append(float(np.median(np.abs(np.diff(frames, axis=0)))))
    means = {d: np.mean(c, axis=0) for d, c in colour.items()}
    for i, first in enumerate(DOMAINS):
        for second in DOMAINS[i + 1 :]:
            assert np.abs(means[first] - means[second]).max() > 25
    assert np.mean(noise["street"]) > np.mean(noise["workshop"]) > np.mean(noise["cartoon"])
    tempo = {d: np.mean([draw_motion(p, 16).tempo_hz for p in MANY if p.domain == d]) for d in DOMAINS}
    assert tempo["street"] < tempo["workshop"] < tempo["cartoon"]


def test_the_second_call_changes_nothing_and_is_quick(written: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in written.rglob("*")}
    calls: list[tuple[int, int]] = []
    write_demo(written, SPEC, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(TOTAL, TOTAL)]
    assert {p: p.stat().st_mtime_ns for p in written.rglob("*")} == before


def test_resuming_with_two_workers_gives_the_same_bytes(written: Path, copied: Path) -> None:
    plans = plan_clips(SPEC)
    gone = {*plans[::4], the_broken()}
    for plan in gone:
        (copied / plan.path).unlink()
    emptied, left_over = copied / plans[1].path, copied / plans[1].path.parent / ".x.mp4.123.part"
    emptied.write_bytes(b"")  # as after a power cut
    left_over.write_bytes(b"half a file")
    (copied / "manifest.csv").unlink()
    kept = copied / plans[2].path
    before = kept.stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    write_demo(copied, SPEC, workers=2, progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (TOTAL - len(gone) - 1, TOTAL)
    assert calls[-1] == (TOTAL, TOTAL)
    assert kept.stat().st_mtime_ns == before
    assert contents(copied) == contents(written)  # the left-over file is gone as well


def test_another_clip_count_or_seed_is_another_data_set(copied: Path) -> None:
    before = contents(copied)
    for other in (DemoSpec(clips_per_class=5, size=64), DemoSpec(seed=1, clips_per_class=4, size=64)):
        with pytest.raises(UsageError, match=r"seed=0, clips_per_class=4.*name another folder"):
            write_demo(copied, other)
    assert contents(copied) == before


def test_seeds_and_clips_are_independent_streams() -> None:
    draws = {draw_motion(p, 16).tempo_hz for seed in (0, 1) for p in plan_clips(DemoSpec(seed, clips_per_class=4))}
    assert len(draws) == 2 * TOTAL
    plan = MANY[0]
    assert draw_motion(plan, 16) == draw_motion(plan, 16)
    plan.stream("look").random(5)
    assert plan.stream("look").random() == plan.stream("look").random() != plan.stream("sound").random()


def test_foreign_folders_are_refused(tmp_path: Path, written: Path) -> None:
    (tmp_path / "manifest.csv").write_text("clip_id\n")
    with pytest.raises(UsageError, match=r"no demo\.json"):
        write_demo(tmp_path, SPEC)
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        write_demo(tmp_path, SPEC)
    with pytest.raises(UsageError, match="is a file"):
        write_demo(written / "demo.json", SPEC)
    with pytest.raises(UsageError, match="workers is 0"):
        write_demo(written, SPEC, workers=0)


def test_the_spec_is_recorded_before_the_first_clip(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path, SPEC, progress=stop)
    recorded = json.loads((tmp_path / "demo.json").read_text())
    assert recorded["spec"] == {"seed": 0, "clips_per_class": 4, "size": 64, "rate_hz": 16, "audio_rate_hz": 16_000}
    assert len(recorded["digest"]) == 64
    assert not (tmp_path / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 0.5),
        ("clips_per_class", 3),
        ("size", 63),
        ("size", 16),
        ("rate_hz", 5),
        ("audio_rate_hz", 10_000),
        ("size", True),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        DemoSpec(**{field: value})  # type: ignore[arg-type]


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, pipeline.datasets.demo\nprint([m for m in ('numpy', 'av', 'cv2', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PROGRAM = """
import sys
from pathlib import Path
from pipeline.datasets.demo import DemoSpec, write_demo

if __name__ == "__main__":
    write_demo(Path(sys.argv[1]), DemoSpec(clips_per_class=4, size=64), workers=2)
"""


@pytest.mark.skipif(os.name != "posix", reason="process groups and signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_call_ends_at_once_and_is_resumed(tmp_path: Path, written: Path, how: signal.Signals) -> None:
    program, root = tmp_path / "program.py", tmp_path / "data"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), str(root)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 20
    while len(list(root.rglob("*.mp4"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # Ctrl-C reaches the whole group
    else:
        process.kill()
    _, errors = process.communicate(timeout=10)  # returns once every process has closed its end
    assert process.returncode not in (0, None)
    # One stack trace, of the process the user started; Python's own resource tracker may warn after a kill.
    assert errors.count("Traceback") == int(how == signal.SIGINT)
    there = contents(root)
    assert 8 <= sum(name.endswith(".mp4") for name in there) < TOTAL
    assert "manifest.csv" not in there
    assert {name: data for name, data in there.items() if not name.endswith(".part")}.items() <= contents(
        written
    ).items()
    shutil.copytree(written, root, dirs_exist_ok=True, copy_function=copy_if_missing)
    write_demo(root, SPEC)
    assert contents(root) == contents(written)


def copy_if_missing(source: str, target: str) -> None:
    """Fill up a folder cheaply, but leave some clips to the call that resumes."""
    if not Path(target).exists() and not source.endswith("-003.mp4"):
        shutil.copy2(source, target)


def test_two_writers_do_not_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")

    def again(done: int, total: int) -> None:
        with pytest.raises(UsageError, match="another pipe process is writing"):
            write_demo(tmp_path, SPEC)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path, SPEC, progress=again)


def test_any_number_of_readers_share_a_finished_folder(written: Path) -> None:
    seen: list[Path] = []
    write_demo(written, SPEC, progress=lambda done, total: seen.append(write_demo(written, SPEC)))
    assert seen == [written / "manifest.csv"]


def test_left_over_files_go_even_if_nothing_is_missing(copied: Path, written: Path) -> None:
    (copied / ".demo.json.1.part").write_bytes(b"{")
    write_demo(copied, SPEC)
    assert contents(copied) == contents(written)


def test_a_missing_encoder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipeline.datasets.demo import encode

    monkeypatch.setattr(encode, "VIDEO_ENCODERS", {"libnothing": {}})
    with pytest.raises(PipeError, match=r"no H\.264 encoder.*libnothing"):
        write_demo(tmp_path, SPEC)
