"""A tree of folders becomes a manifest that reads back; what is no clip is named with its reason."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from pipeline.datasets.manifest import read_manifest
from pipeline.datasets.tree import SOUND_SUFFIXES, VIDEO_SUFFIXES, Skipped, scan_tree, write_manifest
from pipeline.errors import UsageError

SPLIT_FOLDERS = ("kitchen/train/wave", "kitchen/test/wave", "yard/val/spin")


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder with a telling name."""
    folder = tmp_path / "my clips"
    folder.mkdir()
    return folder


def test_domains_splits_and_classes_come_from_folders(root: Path) -> None:
    touch(root, "kitchen/train/wave/a.mp4", "kitchen/test/wave/b.MOV", "yard/val/spin/a.mp4")
    rows = scan_tree(root)
    assert [(r["clip_id"], r["path"], r["domain"], r["split"], r["label"]) for r in rows] == [
        ("kitchen-test-wave-b", "kitchen/test/wave/b.MOV", "kitchen", "test", "wave"),
        ("kitchen-train-wave-a", "kitchen/train/wave/a.mp4", "kitchen", "train", "wave"),
        ("yard-val-spin-a", "yard/val/spin/a.mp4", "yard", "val", "spin"),
    ]
    assert all(r["group"] == r["clip_id"] and not r["audio_path"] and not r["flow_path"] for r in rows)


def test_two_levels_are_one_domain_named_after_the_folder(root: Path) -> None:
    touch(root, "train/wave/a.mp4", "test/train/b.mp4")
    assert [(r["domain"], r["split"], r["label"]) for r in scan_tree(root)] == [
        ("my clips", "test", "train"),
        ("my clips", "train", "wave"),
    ]
    touch(root, "kitchen/train/wave/a.mp4")
    with pytest.raises(UsageError, match="mixes domain/split/class/clip"):
        scan_tree(root)


@pytest.mark.parametrize("suffix", [*VIDEO_SUFFIXES, *SOUND_SUFFIXES])
def test_every_media_suffix_is_a_clip(root: Path, suffix: str) -> None:
    touch(root, f"kitchen/train/wave/a{suffix}", f"kitchen/train/wave/b{suffix.upper()}")
    column = "path" if suffix in VIDEO_SUFFIXES else "audio_path"
    rows = scan_tree(root)
    assert [r[column] for r in rows] == [f"kitchen/train/wave/a{suffix}", f"kitchen/train/wave/b{suffix.upper()}"]
    assert [r["clip_id"] for r in rows] == ["kitchen-train-wave-a", "kitchen-train-wave-b"]
    write_manifest(root, root / "manifest.csv", force=False)
    assert set(read_manifest(root / "manifest.csv").clips[0].media) == {"video" if column == "path" else "audio"}


def test_sound_and_flow_of_the_same_name_belong_to_a_clip(root: Path) -> None:
    folder = "kitchen/train/wave"
    touch(root, *[f"{folder}/{n}" for n in ("a.mp4", "a.wav", "a.mp3", "a_flow_x.mp4", "a_flow_y.mp4", "alone.wav")])
    touch(root, f"{folder}/b_flow_x.mp4", f"{folder}/b_flow_y.mp4", f"{folder}/pictures/frame_001.jpg")
    touch(root, f"{folder}/pictures/frame_002.jpg", f"{folder}/pictures.wav")
    skipped: Skipped = {}
    found = {r["clip_id"].removeprefix("kitchen-train-wave-"): r for r in scan_tree(root, skipped)}
    assert set(found) == {"a", "alone", "b", "pictures"}
    assert (found["b"]["path"], found["b"]["flow_path"]) == ("", f"{folder}/b_flow_x.mp4")
    assert (found["a"]["path"], found["a"]["audio_path"]) == (f"{folder}/a.mp4", f"{folder}/a.wav")
    assert found["a"]["flow_path"] == f"{folder}/a_flow_x.mp4"
    assert (found["alone"]["path"], found["alone"]["audio_path"]) == ("", f"{folder}/alone.wav")
    assert (found["pictures"]["path"], found["pictures"]["audio_path"]) == (
        f"{folder}/pictures",
        f"{folder}/pictures.wav",
    )
    assert skipped == {"second sound file of one clip": [f"{folder}/a.mp3"]}


def test_everything_that_is_no_clip_is_named_with_its_reason(root: Path) -> None:
    touch(root, "kitchen/train/wave/a.mp4", "kitchen/train/wave/deep/b.mp4", "kitchen/train/c.mp4", "d.mp4")
    touch(root, "kitchen/training/wave/e.mp4", "kitchen/Train/wave/f.mp4", "kitchen/train/wave/notes.txt", "README")
    touch(root, "kitchen/train/wave/._a.mp4", "kitchen/train/wave/poster.jpg", "kitchen/train/covers/left.jpg")
    touch(root, "manifest.csv", "classes.txt", "kitchen/train/wave/.cache/x.mp4")
    (root / "kitchen/test/spin").mkdir(parents=True)
    skipped: Skipped = {}
    assert len(scan_tree(root, skipped)) == 1
    wrong = "wrong depth: {} folders deep, domain/split/class/clip has 3"
    split = "split folder {!r} is none of train, val, test. Did you mean 'train'?"
    assert skipped == {
        wrong.format(4): ["kitchen/train/wave/deep/b.mp4"],
        wrong.format(2): ["kitchen/train/c.mp4"],
        wrong.format(0): ["d.mp4"],
        split.format("training"): ["kitchen/training/wave/e.mp4"],
        split.format("Train"): ["kitchen/Train/wave/f.mp4"],
        "other file (.txt)": ["kitchen/train/wave/notes.txt"],
        "other file (no suffix)": ["README"],
        "hidden": ["kitchen/train/wave/._a.mp4", "kitchen/train/wave/.cache"],
        "other file (.jpg)": ["kitchen/train/wave/poster.jpg"],
        "folder with pictures without a number in their names": ["kitchen/train/covers"],
        "empty folder": ["kitchen/test/spin"],
    }


@pytest.mark.parametrize("paths", [(), ("a.txt",), ("valid/wave/a.mp4", "valid/wave/b.mp4")])
def test_a_tree_without_a_clip_is_refused_and_says_what_is_there(root: Path, paths: tuple[str, ...]) -> None:
    touch(root, *paths)
    with pytest.raises(UsageError) as caught:
        write_manifest(root, root / "manifest.csv", force=False)
    message = str(caught.value)
    assert "expected domain/split/class/clip or split/class/clip with split in train, val, test" in message
    assert ("Found: nothing" in message) == (not paths)
    assert ("2 x split folder 'valid' is none of train, val, test. Did you mean 'val'?" in message) == (len(paths) == 2)
    assert not list(root.glob("*.csv"))
    with pytest.raises(UsageError, match="is not a folder"):
        scan_tree(root / "nowhere")


def test_names_of_all_kinds_read_back(root: Path) -> None:
    names = [
        "a, b",
        'say "hi"',
        " before",
        "two\nlines",
        "Käse",
        "动作",
        "动物",
        "-dash",
        "'quoted'",
        "#",
        "a;b",
        "tab\tx",
    ]
    for name in names:
        touch(root, f"Küche, alt/train/{name.strip()} class/{name}.mp4", f" yard/test/wave/{name} /01.jpg")
    assert write_manifest(root, root / "manifest.csv", force=False) == 2 * len(names)
    manifest = read_manifest(root / "manifest.csv")
    assert all(path.exists() for clip in manifest.clips for path in clip.media.values())
    assert {clip.domain for clip in manifest.clips} == {"Küche, alt", "yard"}
    assert {clip.label for clip in manifest.clips} == {*[f"{name.strip()} class" for name in names], "wave"}
    ids = {clip.clip_id for clip in manifest.clips}
    assert len(ids) == 2 * len(names)
    assert all(set(i) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for i in ids)


def test_two_clips_that_would_have_one_id_get_two_that_stay(root: Path) -> None:
    touch(root, "k/train/w/a.mp4", "k/train/w/a.avi", "k/train/w/b.mp4", "k/train/w-b/c.mp4", "k-train/train/w/x.mp4")
    touch(root, "k/train/train-w/x.mp4", "k/train/w/c.mp4", "k/train/w/é.mp4")
    before = {r["path"]: r["clip_id"] for r in scan_tree(root)}
    assert len(set(before.values())) == len(before) == 8
    assert before["k/train/w/b.mp4"] == "k-train-w-b"
    touch(root, "k/train/w/aa.mp4", "k/test/w/a.mp4")
    after = {r["path"]: r["clip_id"] for r in scan_tree(root)}
    assert before.items() <= after.items()


def test_links_are_followed_inside_the_root_alone(root: Path, tmp_path: Path) -> None:
    touch(root, "kitchen/train/wave/a.mp4")
    touch(tmp_path, "elsewhere/b.mp4")
    folder = root / "kitchen" / "train" / "wave"
    (folder / "out.mp4").symlink_to(tmp_path / "elsewhere" / "b.mp4")
    (root / "kitchen" / "train" / "far").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "broken.mp4").symlink_to("nothing.mp4")
    (folder / "self.mp4").symlink_to("self.mp4")
    (folder / "up").symlink_to(root, target_is_directory=True)
    (root / "yard" / "test").mkdir(parents=True)
    (root / "yard" / "test" / "wave").symlink_to(folder, target_is_directory=True)
    skipped: Skipped = {}
    rows = {r["path"]: r for r in scan_tree(root, skipped)}
    assert set(rows) == {"kitchen/train/wave/a.mp4", "yard/test/wave/a.mp4"}
    assert {r["group"] for r in rows.values()} == {"kitchen-train-wave-a"}, "one file on two sides is one group"
    assert skipped["link that leads out of the folder"] == [
        "kitchen/train/far",
        "kitchen/train/wave/out.mp4",
        "yard/test/wave/out.mp4",
    ]
    assert "kitchen/train/wave/broken.mp4" in skipped["link that leads nowhere, or where nothing may be read"]
    assert "kitchen/train/wave/self.mp4" in skipped["link that leads nowhere, or where nothing may be read"]
    assert "kitchen/train/wave/up" in skipped["link to a folder that it lies in"]
    write_manifest(root, root / "manifest.csv", force=False)
    assert len(read_manifest(root / "manifest.csv").clips) == 2


def test_what_is_neither_file_nor_folder_is_left_alone(root: Path) -> None:
    touch(root, "kitchen/train/wave/a.mp4")
    os.mkfifo(root / "kitchen/train/wave/pipe.mp4")
    skipped: Skipped = {}
    assert len(scan_tree(root, skipped)) == 1
    assert skipped == {"neither a file nor a folder": ["kitchen/train/wave/pipe.mp4"]}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_listed_is_named(root: Path) -> None:
    touch(root, "kitchen/train/wave/a.mp4", "kitchen/train/secret/b.mp4")
    (root / "kitchen/train/secret").chmod(0)
    skipped: Skipped = {}
    try:
        assert len(scan_tree(root, skipped)) == 1
    finally:
        (root / "kitchen/train/secret").chmod(0o700)
    assert skipped == {"folder that cannot be listed (Permission denied)": ["kitchen/train/secret"]}


def test_names_that_are_not_utf8_are_named(root: Path) -> None:
    touch(root, "kitchen/train/wave/a.mp4")
    try:
        (root / "kitchen/train/wave" / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    skipped: Skipped = {}
    assert len(scan_tree(root, skipped)) == 1
    assert skipped == {"name that is not UTF-8": ["kitchen/train/wave/caf?.mp4"]}


def test_a_manifest_is_replaced_only_by_force_and_never_by_half(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, "kitchen/train/wave/a.mp4")
    path = root / "manifest.csv"
    assert write_manifest(root, path, force=False) == 1
    first = path.read_text()
    touch(root, "kitchen/train/wave/b.mp4")
    with pytest.raises(UsageError, match="is there already; give --force"):
        write_manifest(root, path, force=False)
    assert path.read_text() == first

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match="cannot be written"):
            write_manifest(root, path, force=True)
    assert path.read_text() == first
    assert write_manifest(root, path, force=True) == 2
    assert sorted(p.name for p in root.iterdir()) == ["kitchen", "manifest.csv"]
    for bad in (root / "nowhere" / "m.csv", root):
        with pytest.raises(UsageError, match=r"cannot be written|is there already"):
            write_manifest(root, bad, force=True)


def test_real_media_are_found(root: Path, media_dir: Path) -> None:
    for folder in SPLIT_FOLDERS:
        (root / folder).mkdir(parents=True)
    shutil.copy(media_dir / "arm_wrestling.mp4", root / SPLIT_FOLDERS[0])
    shutil.copy(media_dir / "FwVYUHKoLtQ_000034.wav", root / SPLIT_FOLDERS[1])
    shutil.copytree(media_dir / "frames" / "rgb", root / SPLIT_FOLDERS[2] / "rgb")
    write_manifest(root, root / "manifest.csv", force=False)
    clips = {clip.clip_id: clip for clip in read_manifest(root / "manifest.csv").clips}
    assert {name: set(clip.media) for name, clip in clips.items()} == {
        "kitchen-train-wave-arm_wrestling": {"video"},
        "kitchen-test-wave-FwVYUHKoLtQ_000034": {"audio"},
        "yard-val-spin-rgb": {"video"},
    }


def test_thousands_of_files_take_a_second(root: Path) -> None:
    for domain in ("a", "b"):
        for split in ("train", "test"):
            for label in range(5):
                folder = root / domain / split / f"c{label}"
                folder.mkdir(parents=True)
                for i in range(300):
                    (folder / f"{i}.mp4").write_bytes(b"")
    start = time.perf_counter()
    assert write_manifest(root, root / "manifest.csv", force=False) == 6000
    written = time.perf_counter()
    assert len(read_manifest(root / "manifest.csv").clips) == 6000
    print(f"6000 files: listed and written in {written - start:.2f} s, read in {time.perf_counter() - written:.2f} s")
