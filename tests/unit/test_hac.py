"""HAC: the real lists give the published numbers, the miniature gives features, faults are said."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cache.layout import Status
from pipeline.datasets import hac
from pipeline.datasets.source import DatasetRequest
from pipeline.decoding import Clock
from pipeline.encode import extract_clip
from pipeline.errors import ManifestError, UsageError
from pipeline.extraction import ExtractSettings
from pipeline.splits import Labels, make_split
from pipeline.types import Clip, Manifest, PerClass
from tests.conftest import SHARED, _needed
from tests.miniatures import hac as miniature

LISTS = hac.SPLIT_FOLDER
MODALITIES = ("video", "flow", "audio")


@pytest.fixture(scope="module")
def splits_dir() -> Path:
    return _needed(SHARED / "splits", "split files") / "hac"


@pytest.fixture(scope="module")
def real(splits_dir: Path) -> Manifest:
    return load(splits_dir)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature; tests must not change it."""
    root = tmp_path_factory.mktemp("hac")
    miniature.write(root)
    return root


@pytest.fixture
def lists(small: Path, tmp_path: Path) -> Path:
    """A root with copies of the miniature's lists and no media."""
    root = tmp_path / "root"
    (root / LISTS).mkdir(parents=True)
    for path in (small / LISTS).glob("*.csv"):
        shutil.copy(path, root / LISTS)
    return root


def load(root: Path, **options: Any) -> Manifest:
    return hac.load_hac(DatasetRequest(root / "work", root=root, **options))


def refusal(root: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        load(root)
    return str(caught.value)


def rewrite(root: Path, text: str | bytes, file: str = "HAC_test_only_animal.csv") -> None:
    (root / LISTS / file).write_bytes(text if isinstance(text, bytes) else text.encode())


def part(manifest: Manifest, domain: str, split: str) -> list[Clip]:
    return [clip for clip in manifest.clips if (clip.domain, clip.split) == (domain, split)]


# The real lists


def test_counts_per_domain_split_and_class_are_the_published_ones(real: Manifest, golden_dir: Path) -> None:
    facts = json.loads((golden_dir / "label_budgets.json").read_text())["hac_facts"]
    assert list(real.classes) == [facts["class_names"][str(i)] for i in range(7)]
    assert real.domains == ("human", "animal", "cartoon")
    labels = zip(real.clips, real.label_indices(), strict=True)
    counts = Counter((f"{clip.domain}_{clip.split}", label) for clip, label in labels)
    expected = {(name, int(c)): n for name, fact in facts["splits"].items() for c, n in fact["per_class"].items()}
    assert counts == expected
    assert len(real.clips) == 3381


def test_clips_stand_in_the_order_of_the_lines_train_before_test(real: Manifest, splits_dir: Path) -> None:
    expected = [
        (f"{domain}-{split}-{line.split('.mp4')[0]}", hac.CLASSES[int(line.rstrip()[-1])])
        for domain in hac.DOMAINS
        for split in ("train", "test")
        for line in (splits_dir / f"HAC_{split}_only_{domain}.csv").read_text().splitlines()
    ]
    assert [(clip.clip_id, clip.label) for clip in real.clips] == expected
    assert len({clip.clip_id for clip in real.clips}) == len(real.clips)


def test_the_names_in_both_lists_have_two_ids_and_one_group(real: Manifest, golden_dir: Path) -> None:
    overlap = json.loads((golden_dir / "label_budgets.json").read_text())["hac_facts"]["train_test_name_overlap"]
    for domain in hac.DOMAINS:
        groups = [{clip.group for clip in part(real, domain, split)} for split in ("train", "test")]
        assert groups[0] & groups[1] == {f"{domain}/{name.removesuffix('.mp4')}" for name in overlap[domain]}
    assert f"{len(overlap['human'])} files are in both" in hac.NOTE
    stem = overlap["human"][0].removesuffix(".mp4")
    both = [clip for clip in real.clips if clip.group == f"human/{stem}"]
    assert [clip.clip_id for clip in both] == [f"human-train-{stem}", f"human-test-{stem}"]
    assert both[0].media == both[1].media


@pytest.mark.parametrize("target", hac.DOMAINS)
def test_no_file_is_on_two_sides_of_a_strict_split(real: Manifest, target: str) -> None:
    sources = tuple(domain for domain in hac.DOMAINS if domain != target)
    split = make_split(real, sources, target, Labels(PerClass(5)))
    sides = [
        {real.clips[i].media["video"] for i in members}
        for members in ((*split.labeled, *split.unlabeled), split.val, split.test)
    ]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    tests = sum(len(part(real, source, "test")) for source in sources)
    assert len(split.val) == tests - 24 * ("human" in sources)
    if "human" in sources:
        assert any(note.startswith("24 validation clips left out") for note in split.notes)


def test_the_note_counts_the_animal_clips_of_shared_videos(real: Manifest) -> None:
    def video(clip: Clip) -> str:
        return re.sub(r"-\d{3}$", "", clip.group)

    train = {video(clip) for clip in part(real, "animal", "train")}
    test = part(real, "animal", "test")
    shared = [video(clip) for clip in test if video(clip) in train]
    assert f"{len(shared)} of the {len(test)} animal test clips are cut from {len(set(shared))} videos" in hac.NOTE


def test_a_blank_in_a_real_name_stays(real: Manifest) -> None:
    clip = next(clip for clip in real.clips if " " in clip.clip_id)
    assert clip.media["video"].name == "drinking_54 .mp4"
    assert clip.media["flow"].name == "drinking_54 _flow_x.mp4"
    assert clip.media["audio"].name == "drinking_54 .wav"


# The miniature


def extracted(clip: Clip) -> dict[str, Any]:
    """Record per modality."""
    found = extract_clip(clip, MODALITIES, ExtractSettings(), Clock())
    return {modality: record for modality, (_, record) in found.items()}


def test_a_few_clips_give_features_of_all_their_frames(small: Path) -> None:
    manifest = load(small)
    assert len(manifest.clips) == 3 * 7 * 3
    for clip in (manifest.clips[0], part(manifest, "human", "train")[2], manifest.clips[-1]):
        records = extracted(clip)
        assert {record.status for record in records.values()} == {Status.PRESENT}
        assert records["video"].facts["num_frames"] == miniature.NUM_FRAMES
        assert records["flow"].facts["num_frames"] == miniature.NUM_FRAMES - 1
        assert records["flow"].facts["flow"] == "stored"
        assert records["audio"].facts["seconds"] == pytest.approx(miniature.NUM_FRAMES / 24, abs=0.001)


def test_the_miniature_has_a_name_in_both_lists(small: Path) -> None:
    groups = Counter(clip.group for clip in load(small).clips)
    assert [group for group, count in groups.items() if count == 2] == [f"human/{miniature.BOTH}"]


@pytest.mark.parametrize("place", ["HAC", "."])
@pytest.mark.parametrize("beside", [True, False])
def test_media_and_lists_may_lie_elsewhere(small: Path, lists: Path, place: str, beside: bool) -> None:
    (lists / place).mkdir(exist_ok=True)
    for domain in hac.DOMAINS:
        (lists / place / domain).symlink_to(small / LISTS / domain, target_is_directory=True)
    if beside:
        for path in (lists / LISTS).iterdir():
            path.rename(lists / path.name)
    (lists / "HAC" / "human" / "videos").mkdir(parents=True, exist_ok=True)  # an empty folder is no place
    manifest = load(lists)
    assert all(path.is_file() for clip in manifest.clips for path in clip.media.values())
    assert {record.status for record in extracted(manifest.clips[1]).values()} == {Status.PRESENT}


def test_missing_media_are_quarantined_with_a_reason(small: Path, lists: Path) -> None:
    shutil.copytree(small / LISTS / "cartoon", lists / LISTS / "cartoon")
    (lists / LISTS / "cartoon" / "flow" / "eating_1_flow_y.mp4").unlink()
    (lists / LISTS / "cartoon" / "audio" / "eating_1.wav").unlink()
    clips = {clip.clip_id: clip for clip in load(lists).clips}
    records = extracted(clips["cartoon-train-eating_1"])
    assert {m: (r.status, r.code) for m, r in records.items()} == {
        "video": (Status.PRESENT, ""),
        "flow": (Status.FAILED, "no_flow"),
        "audio": (Status.FAILED, "missing_file"),
    }
    gone = extracted(clips[f"human-test-{miniature.BOTH}"])
    assert {(r.status, r.code) for r in gone.values()} == {(Status.FAILED, "missing_file")}
    assert f"{LISTS}/human/videos" in gone["video"].detail


# What is said about faults


def test_a_root_is_needed_and_the_message_says_where_the_data_are() -> None:
    with pytest.raises(UsageError, match=r"--dataset hac needs --root.*https://github\.com/donghao51/SimMMDG"):
        hac.load_hac(DatasetRequest(Path("work")))


def test_a_wrong_root_is_told_the_layout(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert f"--root {tmp_path} holds no split file" in message
    assert "HAC_Splits/HAC_{train,test}_only_{human,animal,cartoon}.csv" in message


def test_half_a_download_names_what_is_missing(lists: Path) -> None:
    for domain in ("human", "cartoon"):
        (lists / LISTS / f"HAC_test_only_{domain}.csv").unlink()
    assert "lacks 2 of 6 split files: HAC_test_only_human.csv, HAC_test_only_cartoon.csv" in refusal(lists)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_mark_line_endings_spaces_and_quoted_commas(lists: Path, end: str) -> None:
    rewrite(lists, end.join(["\ufeffa.mp4 , 0", '"b, the second.mp4",3', "", "  ,  ", " c d.MP4,6", "ü.mp4,1"]))
    clips = part(load(lists), "animal", "test")
    assert [(clip.clip_id, clip.label) for clip in clips] == [
        ("animal-test-a", "sleeping"),
        ("animal-test-b, the second", "drinking"),
        ("animal-test-c d", "opening door"),
        ("animal-test-ü", "watching tv"),
    ]
    assert clips[1].media["flow"].name == "b, the second_flow_x.mp4"


def test_a_row_that_stands_twice_is_refused(lists: Path) -> None:
    rewrite(lists, "a.mp4,0\nb.mp4,1\na.mp4,0\n")
    assert "HAC_test_only_animal.csv line 3: a.mp4 stands in line 1 already" in refusal(lists)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.mp4", "1 values where a file name and a class number belong"),
        ("a, b.mp4,3", "3 values where a file name and a class number belong; put a name that holds a comma in double"),
        ("a.mp4,7", "class '7' of 'a.mp4' is none; classes: 0 sleeping, 1 watching tv"),
        ("a.mp4,-1", "class '-1'"),
        ("a.mp4,eating", "class 'eating'"),
        ("a.mp4,²", "class '²'"),
        ("a.avi,1", "'a.avi' is no file name ending in .mp4"),
        (".mp4,1", "'.mp4' is no file name"),
        ("../a.mp4,1", "'../a.mp4' is no plain file name"),
        ("a\x00.mp4,1", "no plain file name"),
        (f"{'ü' * 120}.mp4,1", "no plain file name of at most 200 bytes"),
    ],
)
def test_a_faulty_line_is_named(lists: Path, row: str, message: str) -> None:
    rewrite(lists, f"ok.mp4,2\n{row}\n")
    text = refusal(lists)
    assert "HAC_test_only_animal.csv line 2: " in text
    assert message in text


def test_faulty_lines_of_all_lists_are_named_at_once(lists: Path) -> None:
    rewrite(lists, "a.mp4,9\nb.mp4,1\nc.mp4\n")
    rewrite(lists, "d.mp4,x\n", "HAC_train_only_human.csv")
    message = refusal(lists)
    assert "3 faulty of" in message
    assert re.findall(r"(HAC_\S+ line \d): ", message) == [
        "HAC_train_only_human.csv line 1",
        "HAC_test_only_animal.csv line 1",
        "HAC_test_only_animal.csv line 3",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; download it again"),
        ("é.mp4,1".encode("latin-1"), "is not UTF-8 text"),
        (b"\x80\x04\x95", "is not UTF-8 text"),
        (b'"a.mp4,1\n' + b"x" * 200_000, "is a quotation mark left open?"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(lists: Path, data: bytes, message: str) -> None:
    rewrite(lists, data)
    assert message in refusal(lists)


def test_the_miniature_is_small(small: Path) -> None:
    assert sum(path.stat().st_size for path in small.rglob("*") if path.is_file()) < 5_000_000
