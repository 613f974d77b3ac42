"""UCF-101: lists of the real format, three splits, stored or computed flow, videos or frames; faults are said."""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from cache.layout import Status
from pipeline.datasets import ucf101
from pipeline.datasets.source import DatasetRequest
from pipeline.decoding import Clock
from pipeline.encode import extract_clip
from pipeline.errors import ManifestError, UsageError
from pipeline.extraction import ExtractSettings
from pipeline.splits import Labels, make_split
from pipeline.types import Clip, Manifest, PerClass
from tests.miniatures import ucf101 as miniature

CLASSES = "1 ApplyEyeMakeup\r\n2 Archery\r\n"
TRAIN = "Archery/v_Archery_g08_c01.avi 2"
TEST = "Archery/v_Archery_g01_c01.avi"
THERE = (Status.PRESENT, "")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature; tests must not change it."""
    root = tmp_path_factory.mktemp("ucf") / "data"
    miniature.write(root)
    return root


@pytest.fixture
def lists(small: Path, tmp_path: Path) -> Path:
    """A root with copies of the miniature's lists and no media."""
    shutil.copytree(small / "ucfTrainTestlist", tmp_path / "root" / "ucfTrainTestlist")
    return tmp_path / "root"


def load(root: Path, **options: str) -> Manifest:
    return ucf101.load_ucf101(DatasetRequest(root / "work", root=root, options=options))


def write(root: Path, train: str | bytes = TRAIN, test: str = TEST, classes: str = CLASSES) -> Path:
    for file, text in (("classInd.txt", classes), ("trainlist01.txt", train), ("testlist01.txt", test)):
        (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def refusal(root: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        load(root)
    return str(caught.value)


def extracted(clip: Clip) -> dict[str, tuple[Status, str]]:
    found = extract_clip(clip, ("video", "flow", "audio"), ExtractSettings(), Clock())
    return {modality: (record.status, record.code) for modality, (_, record) in found.items()}


# Lists and options


def test_clips_have_the_order_of_the_lists_and_their_numbers(small: Path) -> None:
    manifest = load(small)
    rows = (small / "ucfTrainTestlist/trainlist01.txt").read_text().splitlines()
    train = [clip for clip in manifest.clips if clip.split == "train"]
    assert manifest.clips[: len(rows)] == tuple(train)
    for clip, row in zip(train, rows, strict=True):
        file, number = row.split()
        assert clip.clip_id.casefold() == Path(file).stem.casefold()
        assert manifest.classes.index(clip.label) + 1 == int(number)
    tests = (small / "ucfTrainTestlist/testlist01.txt").read_text().split()
    assert [f"{c.label}/{c.clip_id}.avi".casefold() for c in manifest.clips[len(rows) :]] == [
        t.casefold() for t in tests
    ]
    assert manifest.classes == miniature.CLASSES


def test_the_three_splits_hold_the_same_clips_and_test_others(small: Path) -> None:
    manifests = {n: load(small, split=n) for n in ("1", "2", "3")}
    ids = {frozenset(clip.clip_id for clip in manifest.clips) for manifest in manifests.values()}
    assert [len(members) for members in ids] == [48]
    tested = [{c.clip_id for c in m.clips if c.split == "test"} for m in manifests.values()]
    assert sum(map(len, tested)) == len(set.union(*tested)) == 48
    assert [m.dataset for m in manifests.values()] == ["ucf101", "ucf101-split2", "ucf101-split3"]


@pytest.mark.parametrize("split", ["1", "2", "3"])
def test_a_group_is_one_video_of_a_class_and_on_one_side(small: Path, split: str) -> None:
    manifest = load(small, split=split)
    sides: dict[str, set[str]] = defaultdict(set)
    for clip in manifest.clips:
        assert re.fullmatch(rf"v_{clip.group}_c\d\d", clip.clip_id)
        assert re.fullmatch(rf"{clip.label}_g\d\d", clip.group)
        sides[clip.group].add(clip.split)
    assert Counter(len(found) for found in sides.values()) == {1: 24}
    made = make_split(manifest, ("ucf101",), "ucf101", Labels(PerClass(2)), target_part="test")
    assert (len(made.labeled), len(made.unlabeled), len(made.test)) == (8, 24, 16)


def test_options_say_which_media_are_read_and_are_in_the_name(small: Path) -> None:
    stem = "v_Archery_g03_c01"

    def of(**options: str) -> tuple[str, Clip]:
        manifest = load(small, **options)
        return manifest.dataset, next(clip for clip in manifest.clips if clip.clip_id == stem)

    avi, flow, frames = (
        small / "UCF-101/Archery" / f"{stem}.avi",
        small / "tvl1_flow/u" / stem,
        small / "jpegs_256" / stem,
    )
    name, clip = of()
    assert (name, clip.media, clip.rate_hz) == ("ucf101", {"video": avi, "flow": flow}, 25)
    name, clip = of(flow="computed")
    assert (name, clip.media, clip.rate_hz) == ("ucf101-computed-flow", {"video": avi}, None)
    name, clip = of(frames="jpegs")
    assert (name, clip.media, clip.rate_hz) == ("ucf101-jpegs", {"video": frames, "audio": avi, "flow": flow}, 25)
    name, clip = of(split="3", flow="computed", frames="jpegs")
    assert (name, clip.media) == ("ucf101-split3-computed-flow-jpegs", {"video": frames, "audio": avi})
    assert clip.rate_hz == 25


def test_handstand_pushups_has_one_name_however_it_is_spelled(small: Path, lists: Path) -> None:
    expected = [clip.clip_id for clip in load(small).clips]
    assert "v_HandstandPushups_g03_c01" in expected
    for path in (lists / "ucfTrainTestlist").glob("*list0*.txt"):
        path.write_text(path.read_text().replace("HandstandPushups/", "HandStandPushups/"))
    manifest = load(lists)
    assert [clip.clip_id for clip in manifest.clips] == expected
    assert manifest.digest == load(small).digest
    for folder in ("UCF-101", "jpegs_256", "tvl1_flow"):
        (lists / folder).symlink_to(small / folder, target_is_directory=True)
    clips = load(lists, frames="jpegs").clips
    assert all(path.exists() for clip in clips for path in clip.media.values())


def test_names_on_the_disk_may_be_spelled_otherwise(lists: Path) -> None:
    (lists / "tvl1_flow/u/v_HandstandPushups_g03_c01").mkdir(parents=True)
    (lists / "UCF-101/HandStandPushups").mkdir(parents=True)
    (lists / "UCF-101/HandStandPushups/v_HandstandPushups_g03_c01.avi").write_bytes(b"")
    clip = next(c for c in load(lists).clips if c.clip_id == "v_HandstandPushups_g03_c01")
    assert all(path.exists() for path in clip.media.values())


def test_media_that_are_missing_are_named_where_they_would_be(lists: Path) -> None:
    clip = load(lists).clips[0]
    assert clip.media == {
        "video": lists / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g03_c01.avi",
        "flow": lists / "tvl1_flow/u/v_ApplyEyeMakeup_g03_c01",
    }
    assert "audio" not in load(lists, frames="jpegs").clips[0].media
    assert set(extracted(clip).values()) == {(Status.FAILED, "missing_file")}


# Features of the miniature


@pytest.mark.parametrize("options", [{}, {"flow": "computed"}, {"frames": "jpegs"}])
def test_clips_give_features_and_lack_the_sound_that_their_class_has_not(small: Path, options: dict[str, str]) -> None:
    clips = {clip.clip_id: clip for clip in load(small, **options).clips}
    for name in ("v_HandstandPushups_g03_c01", "v_PlayingDaf_g02_c02"):
        assert extracted(clips[name]) == {"video": THERE, "flow": THERE, "audio": THERE}
    absent = (Status.ABSENT, "no_audio_stream")
    assert extracted(clips["v_Archery_g06_c02"]) == {"video": THERE, "flow": THERE, "audio": absent}


def test_flow_is_read_where_it_is_stored_and_made_where_it_is_computed(small: Path) -> None:
    facts = {}
    for flow in ("stored", "computed"):
        clip = load(small, flow=flow).clips[0]
        features, record = extract_clip(clip, ("flow",), ExtractSettings(), Clock())["flow"]
        assert features is not None
        facts[flow] = (record.facts["flow"], record.facts["codec"], record.facts["num_frames"])
    assert facts["stored"] == ("stored", "jpeg", miniature.NUM_FRAMES - 1)
    assert facts["computed"][:2] == ("dis-medium", "mpeg4")


def test_without_the_videos_frames_have_no_sound(small: Path, lists: Path) -> None:
    (lists / "jpegs_256").symlink_to(small / "jpegs_256", target_is_directory=True)
    clip = load(lists, frames="jpegs", flow="computed").clips[-1]
    assert extracted(clip) == {"video": THERE, "flow": THERE, "audio": (Status.ABSENT, "no_audio_path")}


def test_the_miniature_is_small(small: Path) -> None:
    assert sum(path.stat().st_size for path in small.rglob("*") if path.is_file()) < 5_000_000


# What is said about faults


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_mark_line_endings_and_spaces(tmp_path: Path, end: str, mark: str) -> None:
    train = end.join([f"{mark}{TRAIN} ", "", "  ", " ApplyEyeMakeup/v_ApplyEyeMakeup_g09_c02.avi\t1"])
    write(tmp_path, train, TEST + end, mark + CLASSES.replace("\r\n", end))
    manifest = load(tmp_path)
    assert manifest.classes == ("ApplyEyeMakeup", "Archery")
    assert [(clip.clip_id, clip.label) for clip in manifest.clips] == [
        ("v_Archery_g08_c01", "Archery"),
        ("v_ApplyEyeMakeup_g09_c02", "ApplyEyeMakeup"),
        ("v_Archery_g01_c01", "Archery"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Archery/v_Archery_g09_c01.avi", "1 values where a path and a class number belong"),
        ("Archery/v_Archery_g09_c01.avi 2 3", "3 values where a path and a class number belong"),
        ("Archery/v_Archery_g09_c01.avi 1", "class number '1' of Archery/v_Archery_g09_c01.avi; Archery has number 2"),
        ("Archery/v_Archery_g09_c01.mp4 2", "'Archery/v_Archery_g09_c01.mp4' is no path {class}/v_{class}_g{group}"),
        ("../Archery/v_Archery_g09_c01.avi 2", "is no path"),
        ("Archer/v_Archer_g09_c01.avi 2", "class 'Archer' of Archer/v_Archer_g09_c01.avi is not in classInd.txt. Did"),
        ("ApplyEyeMakeup/v_Archery_g09_c01.avi 1", "folder 'ApplyEyeMakeup' of ApplyEyeMakeup/v_Archery_g09_c01.avi"),
        (TRAIN, "v_Archery_g08_c01 stands in trainlist01.txt line 1 already"),
        ("ARCHERY/v_archery_g08_c01.avi 2", "v_Archery_g08_c01 stands in trainlist01.txt line 1 already"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, row: str, message: str) -> None:
    text = refusal(write(tmp_path, f"{TRAIN}\r\n{row}\r\n"))
    assert "trainlist01.txt line 2: " in text
    assert message in text


def test_faulty_lines_of_both_lists_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, f"x 1\n{TRAIN}\nArchery/v_Archery_g09_c01.avi\n", f"{TEST} 2\n{TRAIN[:-2]}\n"))
    assert "4 faulty of 5 rows" in message
    assert re.findall(r"(\S+ line \d): ", message) == [
        "trainlist01.txt line 1",
        "trainlist01.txt line 3",
        "testlist01.txt line 1",
        "testlist01.txt line 2",
    ]
    assert "testlist01.txt line 1: 2 values where a path alone belongs" in message


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("1 ApplyEyeMakeup\n3 Archery\n", "classInd.txt line 2: class number '3'; number 2 belongs here"),
        ("1 Archery\n2 archery\n", "classInd.txt line 2: class 'archery' stands there twice"),
        ("1 Apply Eye Makeup\n", "classInd.txt line 1: 4 values where a class number and a class name belong"),
        ("", "classInd.txt is empty"),
    ],
)
def test_a_faulty_list_of_classes_is_refused(tmp_path: Path, classes: str, message: str) -> None:
    assert message in refusal(write(tmp_path, classes=classes))


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    assert "trainlist01.txt is not UTF-8 text" in refusal(write(tmp_path, "é".encode("latin-1")))


def test_missing_lists_are_named_with_the_places_and_the_publisher(lists: Path, tmp_path: Path) -> None:
    (lists / "ucfTrainTestlist/testlist02.txt").unlink()
    assert len(load(lists).clips) == 48
    with pytest.raises(UsageError, match=r"ucf101: testlist02\.txt not found in .*where the other lists are"):
        load(lists, split="2")
    wanted = (
        r"classInd\.txt, trainlist01\.txt, testlist01\.txt not found in .*; looked in ucfTrainTestlist/, \./, splits/"
    )
    with pytest.raises(UsageError, match=wanted + r".*https://www\.crcv\.ucf\.edu/data/UCF101\.php"):
        load(tmp_path)


def test_root_and_options_are_checked(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--dataset ucf101 needs --root"):
        ucf101.load_ucf101(DatasetRequest(tmp_path))
    with pytest.raises(UsageError, match="is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"'4' is not a value of ucf101's option split. Allowed: 1, 2, 3"):
        load(small, split="4")
    with pytest.raises(UsageError, match=r"'flows' is not a option of ucf101. Did you mean 'flow'\?"):
        load(small, flows="stored")
