"""Kinetics-Sounds: the real lists give the published numbers, files are found by class or flat, faults are said."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cache.layout import Status
from pipeline.datasets import kinetics_sounds as ks
from pipeline.datasets.source import DatasetRequest
from pipeline.decoding import Clock
from pipeline.encode import extract_clip
from pipeline.errors import ManifestError, UsageError
from pipeline.extraction import ExtractSettings
from pipeline.splits import Labels, make_split
from pipeline.types import Clip, Manifest, PerClass
from tests.conftest import SHARED, _needed
from tests.miniatures import kinetics_sounds as miniature

LISTS = ("my_train.txt", "my_test.txt")
TRAIN = "-00nar1nEPc_000033_000043,10,13"
TEST = "-3Mwkq-7TV4_2,10,23"


@pytest.fixture(scope="module")
def splits_dir() -> Path:
    return _needed(SHARED / "splits", "split files")


@pytest.fixture(scope="module")
def real(splits_dir: Path) -> Manifest:
    return load(splits_dir)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature; tests must not change it."""
    root = tmp_path_factory.mktemp("ks") / "data"
    root.mkdir()
    miniature.write(root)
    return root


@pytest.fixture
def changed(small: Path, tmp_path: Path) -> Path:
    """A copy of the miniature, empty files in place of its media."""
    root = tmp_path / "root"
    for path in small.rglob("*.mp4"):
        (root / path.relative_to(small)).parent.mkdir(parents=True, exist_ok=True)
        (root / path.relative_to(small)).write_bytes(b"")
    for file in LISTS:
        shutil.copy(small / file, root)
    return root


def load(root: Path, **given: Any) -> Manifest:
    return ks.load_kinetics_sounds(DatasetRequest(root / "work", root=root, **given))


def write(root: Path, train: str | bytes = TRAIN, test: str | bytes = TEST) -> Path:
    for file, text in zip(LISTS, (train, test), strict=True):
        (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def refusal(root: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        load(root)
    return str(caught.value)


def by_id(manifest: Manifest) -> dict[str, Clip]:
    return {clip.clip_id: clip for clip in manifest.clips}


# The real lists


def test_counts_per_split_and_class_are_the_published_ones(real: Manifest) -> None:
    assert Counter(clip.split for clip in real.clips) == {"train": 14_799, "test": 2_597}
    train = Counter(clip.label for clip in real.clips if clip.split == "train")
    assert (len(train), min(train.values()), max(train.values())) == (31, 197, 690)
    assert (train["class-26"], train["class-01"]) == (197, 690)
    test = Counter(clip.label for clip in real.clips if clip.split == "test")
    assert (len(test), min(test.values()), max(test.values())) == (31, 63, 92)


def test_clips_have_the_order_of_the_lists_and_unique_ids(real: Manifest, splits_dir: Path) -> None:
    lines = [line for file in LISTS for line in (splits_dir / "kinetics_sounds" / file).read_text().split()]
    assert [f"{c.clip_id},10,{real.classes.index(c.label)}" for c in real.clips] == lines
    assert len({clip.clip_id for clip in real.clips}) == 17_396
    assert real.clips[0].clip_id == "--4-0ihtnBU_000058_000068"


def test_both_forms_of_names_give_the_video_as_group(real: Manifest) -> None:
    clips = by_id(real)
    assert clips["--4-0ihtnBU_000058_000068"].group == "--4-0ihtnBU"
    assert clips["-3Mwkq-7TV4_2"].group == "-3Mwkq-7TV4"
    assert {len(clip.group) for clip in real.clips} == {11}


def test_no_video_is_on_both_sides_as_the_note_says(real: Manifest) -> None:
    split = make_split(real, ("kinetics-sounds",), "kinetics-sounds", Labels(PerClass(5)), target_part="test")
    assert (len(split.labeled), len(split.labeled) + len(split.unlabeled), len(split.test)) == (155, 14_799, 2_597)
    train = {real.clips[i].group for i in (*split.labeled, *split.unlabeled)}
    assert not train & {real.clips[i].group for i in split.test}
    assert "No video is in both lists" in ks.NOTE


def test_without_media_classes_are_numbered_and_paths_are_named(real: Manifest, splits_dir: Path) -> None:
    assert real.classes == ks.NUMBERED
    assert "class-00 to class-30" in ks.NOTE
    assert "because 0 of 31 classes have a folder of their own here" in real.notes[0]
    assert real.clips[0].media == {"video": splits_dir / "train" / "--4-0ihtnBU_000058_000068.mp4"}
    assert by_id(real)["-3Mwkq-7TV4_2"].media == {"video": splits_dir / "val" / "-3Mwkq-7TV4_2.mp4"}


# The miniature


def test_clips_give_features_and_one_without_sound_lacks_that_alone(small: Path) -> None:
    clips = load(small).clips
    for clip in (clips[0], clips[1], clips[-1], clips[-2]):
        found = extract_clip(clip, ("video", "flow", "audio"), ExtractSettings(), Clock())
        status = {modality: (record.status, record.code) for modality, (_, record) in found.items()}
        there = (Status.PRESENT, "")
        mute = clip.clip_id == miniature.MUTE
        assert status == {
            "video": there,
            "flow": there,
            "audio": (Status.ABSENT, "no_audio_stream") if mute else there,
        }
        assert found["video"][1].facts["num_frames"] == miniature.NUM_FRAMES
    assert clips[0].clip_id == miniature.MUTE


def test_classes_are_named_after_their_folders(small: Path) -> None:
    manifest = load(small)
    assert (manifest.classes, manifest.notes) == (miniature.CLASSES, ())
    assert len(manifest.clips) == 93
    assert all(clip.media["video"].is_file() for clip in manifest.clips)
    assert all(clip.media["video"].parent.name == clip.label for clip in manifest.clips)


def test_underscores_in_folder_names_are_spaces(changed: Path) -> None:
    for folder in (changed / "train").iterdir():
        folder.rename(folder.with_name(folder.name.replace(" ", "_")))
    assert load(changed).classes == miniature.CLASSES


def test_clips_of_one_video_share_a_group(small: Path) -> None:
    groups = Counter(clip.group for clip in load(small).clips if clip.split == "train")
    assert sorted(Counter(groups.values()).items()) == [(1, 32), (2, 15)]


@pytest.mark.parametrize("layout", ["parts", "root", "classes"])
def test_files_may_lie_flat_or_without_parts(small: Path, changed: Path, layout: str) -> None:
    for path in sorted(changed.rglob("*.mp4")):
        part, name, file = path.relative_to(changed).parts
        place = {"parts": changed / part, "root": changed, "classes": changed / name}[layout] / file
        place.parent.mkdir(exist_ok=True)
        path.rename(place)
    if layout != "parts":
        shutil.rmtree(changed / "train")
        shutil.rmtree(changed / "val")
    manifest = load(changed)
    assert all(clip.media["video"].is_file() for clip in manifest.clips)
    assert manifest.classes == (miniature.CLASSES if layout == "classes" else ks.NUMBERED)
    assert [c.clip_id for c in manifest.clips] == [c.clip_id for c in load(small).clips]


def test_a_missing_file_is_named_where_its_class_lies(small: Path, changed: Path) -> None:
    clips = load(changed).clips
    gone = clips[-1].media["video"]
    gone.unlink()
    assert load(changed).clips[-1].media["video"] == gone
    assert load(changed).digest == load(small).digest


def test_one_class_without_a_folder_makes_all_classes_numbered(changed: Path) -> None:
    for part in ("train", "val"):
        shutil.rmtree(changed / part / miniature.CLASSES[7])
    manifest = load(changed)
    assert manifest.classes == ks.NUMBERED
    assert sum(clip.media["video"].is_file() for clip in manifest.clips) == 90
    assert "because 30 of 31 classes have a folder" in manifest.notes[0]


def test_a_list_of_classes_gives_the_same_manifest_with_and_without_media(small: Path, changed: Path) -> None:
    (changed / "classes.txt").write_bytes(("\ufeff" + "\r\n".join(miniature.CLASSES) + "\r\n").encode())
    assert load(changed).digest == load(small).digest
    for part in ("train", "val"):
        shutil.rmtree(changed / part)
    assert load(changed).digest == load(small).digest


def test_a_list_of_classes_must_fit(changed: Path) -> None:
    names = list(miniature.CLASSES)
    listing = changed / "classes.txt"
    listing.write_text("\n".join(names[:30]))
    assert "has 30 names, 30 of them different; write one class name a line" in refusal(changed)
    listing.write_text("\n".join([*names[:30], names[0]]))
    assert "has 31 names, 30 of them different" in refusal(changed)
    listing.write_text("\n".join([names[1], names[0], *names[2:]]))
    message = refusal(changed)
    assert "contradicts the folders" in message
    assert "class 0 is 'playing instrument 1' there, its files lie in folders 'playing instrument 0'" in message
    assert message.count("class ") == 2


def test_files_in_the_folder_of_another_class_are_named(changed: Path) -> None:
    one = next((changed / "train" / miniature.CLASSES[4]).iterdir())
    one.rename(changed / "train" / miniature.CLASSES[5] / one.name)
    for part in ("train", "val"):
        for path in (changed / part / miniature.CLASSES[9]).iterdir():
            path.rename(changed / part / miniature.CLASSES[8] / path.name)
    message = refusal(changed)
    assert "folders contradict the lists' class numbers" in message
    assert (
        "class 4: 2 files lie in folders 'playing instrument 4', 1 in 'playing instrument 5' "
        f"(train/playing instrument 5/{one.name})"
    ) in message
    assert "classes 8 and 9 both lie in folders 'playing instrument 8'" in message


def test_of_two_copies_the_one_in_the_likelier_part_is_taken(changed: Path) -> None:
    clip = load(changed).clips[-1]
    path = clip.media["video"]
    copy = changed / "train" / path.parent.name / path.name
    shutil.copy(path, copy)
    assert load(changed).clips[-1].media["video"] == path
    path.unlink()
    assert load(changed).clips[-1].media["video"] == copy


def test_the_miniature_is_small(small: Path) -> None:
    assert sum(path.stat().st_size for path in small.rglob("*") if path.is_file()) < 4_000_000


# What is said about faults


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_mark_line_endings_and_spaces(tmp_path: Path, end: str, mark: str) -> None:
    text = end.join([f"{mark}{TRAIN}", "", " , , ", " ab_12345_67_000000_000010 , 10 , 0 "])
    clips = load(write(tmp_path, text)).clips
    assert [(clip.clip_id, clip.label, clip.group) for clip in clips] == [
        ("-00nar1nEPc_000033_000043", "class-13", "-00nar1nEPc"),
        ("ab_12345_67_000000_000010", "class-00", "ab_12345_67"),
        ("-3Mwkq-7TV4_2", "class-23", "-3Mwkq-7TV4"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("-00nar1nEPc_000133_000143,10", "2 values where a name, the seconds and a class number belong"),
        ("-00nar1nEPc_000133_000143,10,31", "class '31' of -00nar1nEPc_000133_000143 is none; classes: 0 to 30"),
        ("-00nar1nEPc_000133_000143,10,-1", "class '-1'"),
        ("-00nar1nEPc_000133_000143,10,²", "class '²'"),
        ("-00nar1nEPc_000133_000143,ten,3", "'ten' is no length of -00nar1nEPc_000133_000143"),
        ("-00nar1nEPc_000133_000143,0,3", "'0' is no length"),
        ("-00nar1nEPc_000133_000144,10,3", "goes from 133 s to 144 s, its length is given as 10 s"),
        ("00nar1nEPc_000133_000143,10,3", "'00nar1nEPc_000133_000143' is no name {youtube id}_{start}_{end}"),
        ("../../../abc_000133_000143,10,3", "is no name"),
        (TRAIN, "the clip of -00nar1nEPc at 33 s stands in my_train.txt line 1 already"),
        ("-00nar1nEPc_33,10,3", "the clip of -00nar1nEPc at 33 s stands in my_train.txt line 1 already"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, row: str, message: str) -> None:
    text = refusal(write(tmp_path, f"{TRAIN}\n{row}\n"))
    assert "my_train.txt line 2: " in text
    assert message in text


def test_faulty_lines_of_both_lists_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, f"a,10,1\n{TRAIN}\nb\n", f"{TEST}\n{TEST}\n"))
    assert "3 faulty of 5 rows" in message
    assert re.findall(r"(\S+ line \d): ", message) == [
        "my_train.txt line 1",
        "my_train.txt line 3",
        "my_test.txt line 2",
    ]


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "my_test.txt is empty; download it again" in refusal(write(tmp_path, test=b"\r\n"))
    assert "my_train.txt is not UTF-8 text" in refusal(write(tmp_path, train="é".encode("latin-1")))


def test_missing_lists_are_named_with_the_places_and_the_publisher(tmp_path: Path) -> None:
    (tmp_path / "my_train.txt").write_text(TRAIN)
    with pytest.raises(UsageError, match=r"kinetics-sounds: my_test\.txt not found in .*where the other lists are"):
        load(tmp_path)
    (tmp_path / "my_train.txt").unlink()
    wanted = (
        r"my_train\.txt, my_test\.txt not found in --root .*; looked in \./, splits/, lists/, kinetics_sounds/\. .*"
    )
    with pytest.raises(UsageError, match=wanted + r"https://github\.com/cvdfoundation/kinetics-dataset"):
        load(tmp_path)


def test_root_and_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--dataset kinetics-sounds needs --root"):
        ks.load_kinetics_sounds(DatasetRequest(tmp_path))
    with pytest.raises(UsageError, match="is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="kinetics-sounds has no options"):
        load(tmp_path, options={"split": "1"})
