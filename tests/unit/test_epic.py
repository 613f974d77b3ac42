"""EPIC-Kitchens: the real split files give the published numbers, the miniature gives features, faults are said."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cache.layout import Status
from pipeline.datasets import epic
from pipeline.datasets.pickles import read_frame
from pipeline.datasets.source import DatasetRequest
from pipeline.decoding import Clock
from pipeline.encode import extract_clip
from pipeline.errors import ManifestError, UsageError
from pipeline.extraction import ExtractSettings
from pipeline.types import Clip, Manifest
from tests.conftest import SHARED, _needed
from tests.miniatures import epic as miniature

PICKLES = epic.SPLIT_FOLDER
MODALITIES = ("video", "flow", "audio")


@pytest.fixture(scope="module")
def splits_dir() -> Path:
    return _needed(SHARED / "splits", "split files") / "epic"


@pytest.fixture(scope="module")
def real(splits_dir: Path) -> Manifest:
    return load(splits_dir)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature; tests must not change it."""
    root = tmp_path_factory.mktemp("epic")
    miniature.write(root)
    return root


def load(root: Path, **options: Any) -> Manifest:
    return epic.load_epic(DatasetRequest(root / "work", root=root, **options))


def refusal(root: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        load(root)
    return str(caught.value)


def linked(source: Path, root: Path, **places: str) -> Path:
    """A root that holds copies of the pickles, and the parts of the miniature at the places named."""
    shutil.copytree(source / PICKLES, root / PICKLES)
    for part, place in places.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(source / part, target_is_directory=True)
    return root


def rewrite(root: Path, file: str, change: dict[str, Any], row: int = 0) -> None:
    """Change values of one row of a split file."""
    path = root / PICKLES / file
    columns = read_frame(path)
    table = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    table[row] |= change
    miniature.write_table(path, table)


# The real split files


def test_counts_per_domain_split_and_class_are_the_published_ones(real: Manifest, golden_dir: Path) -> None:
    facts = json.loads((golden_dir / "label_budgets.json").read_text())["epic_facts"]
    assert list(real.classes) == [facts["class_names"][str(i)] for i in range(8)]
    assert facts["domain_participant"] == epic.DOMAINS
    assert real.domains == ("D1", "D2", "D3")
    labels = zip(real.clips, real.label_indices(), strict=True)
    counts = Counter((f"{clip.domain}_{clip.split}", label) for clip, label in labels)
    expected = {(part, int(c)): n for part, fact in facts["splits"].items() for c, n in fact["per_class"].items()}
    assert counts == expected
    assert len(real.clips) == sum(fact["n_clips"] for fact in facts["splits"].values()) == 10_094
    for part, fact in facts["splits"].items():
        groups = {clip.group for clip in real.clips if f"{clip.domain}_{clip.split}" == part}
        assert sorted(groups) == fact["video_ids"]


def test_clips_stand_in_the_order_of_the_rows_train_before_test(real: Manifest, splits_dir: Path) -> None:
    expected = [
        f"{domain}-{split}-{uid}"
        for domain in ("D1", "D2", "D3")
        for split in ("train", "test")
        for uid in read_frame(splits_dir / f"{domain}_{split}.pkl")["uid"]
    ]
    assert [clip.clip_id for clip in real.clips] == expected
    assert len(set(expected)) == len(expected)


def test_frame_and_flow_numbers_are_the_golden_ones(real: Manifest, golden_dir: Path) -> None:
    for example in json.loads((golden_dir / "sampling.json").read_text())["epic_examples"]:
        part = [c for c in real.clips if (c.domain, c.split) == (example["domain"], example["split"])]
        clip = part[example["row_position"]]
        start, first = example["rgb_start_index"], example["flow_start_index"]
        assert clip.frame_numbers == (start, start + example["rgb_total_frames"])
        assert clip.flow_numbers == (first, first + example["flow_total_frames"])
        assert clip.label == epic.CLASSES[example["verb_class"]]
        assert clip.group == example["video_id"]
        for text, seconds in (("start_timestamp", clip.start_seconds), ("stop_timestamp", clip.end_seconds)):
            hours, minutes, rest = example[text].split(":")
            assert seconds == pytest.approx(int(hours) * 3600 + int(minutes) * 60 + float(rest), abs=1e-9)


def test_times_agree_with_frames_and_the_note_with_the_clips(real: Manifest) -> None:
    short = 0
    videos: dict[str, set[str]] = {"train": set(), "test": set()}
    for clip in real.clips:
        assert clip.frame_numbers is not None
        assert clip.start_seconds is not None
        assert clip.end_seconds is not None
        assert abs(clip.frame_numbers[0] - clip.start_seconds * miniature.RATE_HZ) < 1.001
        assert abs(clip.frame_numbers[1] - clip.end_seconds * miniature.RATE_HZ) < 1.001
        short += clip.frame_numbers[1] - clip.frame_numbers[0] < 64
        videos[clip.split].add(clip.group)
    assert f"{short} of the {len(real.clips)} clips are shorter" in epic.NOTE
    assert not videos["train"] & videos["test"]


def test_every_clip_names_all_its_media_even_where_none_is_there(real: Manifest, splits_dir: Path) -> None:
    assert {tuple(sorted(clip.media)) for clip in real.clips} == {("audio", "flow", "video")}
    clip = next(c for c in real.clips if c.group == "P01_11")
    assert clip.media["video"] == splits_dir.resolve() / "rgb" / "test" / "D2" / "P01_11"


# The miniature


def extracted(clip: Clip) -> dict[str, Any]:
    """Record per modality."""
    found = extract_clip(clip, MODALITIES, ExtractSettings(), Clock())
    return {modality: record for modality, (_, record) in found.items()}


def test_a_few_clips_give_features_of_the_right_pictures(small: Path) -> None:
    manifest = load(small)
    assert len(manifest.clips) == 3 * 8 * 3
    for clip in (manifest.clips[0], manifest.clips[6], manifest.clips[-1]):
        assert clip.frame_numbers is not None
        assert clip.flow_numbers is not None
        records = extracted(clip)
        assert {record.status for record in records.values()} == {Status.PRESENT}
        for modality, (first, behind) in (("video", clip.frame_numbers), ("flow", clip.flow_numbers)):
            facts = records[modality].facts
            assert (facts["num_frames"], facts["first_number"], facts["last_number"]) == (
                behind - first,
                first,
                behind - 1,
            )
        start, stop = clip.frame_numbers
        assert records["flow"].facts["num_frames"] == (stop - start) // 2
        assert records["audio"].facts["seconds"] == pytest.approx((stop - start) / miniature.RATE_HZ, abs=0.01)
        assert not records["audio"].facts["silent"]


@pytest.mark.parametrize(
    "places",
    [
        {"rgb": f"{PICKLES}/rgb", "flow": f"{PICKLES}/flow"},
        {"rgb": "frames_rgb_flow/rgb", "flow": "frames_rgb_flow/flow"},
        {"rgb": f"{PICKLES}/rgb", "flow": "flow"},
    ],
)
def test_frames_may_lie_beside_or_inside_the_split_folder(small: Path, tmp_path: Path, places: dict[str, str]) -> None:
    manifest = load(linked(small, tmp_path / "root", **places))
    for clip in manifest.clips:
        assert all(path.exists() for path in clip.media.values())
    assert {r.status for r in extracted(manifest.clips[3]).values()} == {Status.PRESENT}
    assert manifest.digest == load(small).digest  # a place is no part of what splits depend on


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_sound_may_have_a_folder_of_its_own(small: Path, tmp_path: Path, deep: bool, inside: bool) -> None:
    root = tmp_path / "root"
    shutil.copytree(small / PICKLES, root / PICKLES)
    folder = (root / PICKLES if inside else root) / "audio"
    for path in small.glob("rgb/*/*/*.wav"):
        target = folder / path.relative_to(small / "rgb") if deep else folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    manifest = load(root)
    assert all(clip.media["audio"].is_file() for clip in manifest.clips)
    assert manifest.clips[0].media["video"] == root / "rgb" / "train" / "D1" / "P08_01"  # named, though not there


def test_the_split_folder_may_be_the_root(small: Path, tmp_path: Path) -> None:
    root = linked(small, tmp_path / "root", rgb=f"{PICKLES}/rgb", flow=f"{PICKLES}/flow") / PICKLES
    assert all(path.exists() for clip in load(root).clips for path in clip.media.values())


def test_missing_media_are_quarantined_with_a_reason(small: Path, tmp_path: Path) -> None:
    clips = {clip.domain: clip for clip in load(linked(small, tmp_path / "root", flow="flow")).clips}
    records = extracted(clips["D1"])
    assert {m: (r.status, r.code) for m, r in records.items()} == {
        "video": (Status.FAILED, "missing_file"),
        "flow": (Status.PRESENT, ""),
        "audio": (Status.FAILED, "missing_file"),
    }
    assert "P08_09" in records["video"].detail


def test_a_gap_in_the_frames_is_quarantined(small: Path, tmp_path: Path) -> None:
    root = linked(small, tmp_path / "root", flow="flow")
    shutil.copytree(small / "rgb", root / "rgb")
    clip = load(root).clips[0]
    assert clip.frame_numbers is not None
    (clip.media["video"] / f"frame_{clip.frame_numbers[0] + 2:010d}.jpg").unlink()
    records = extracted(clip)
    assert (records["video"].status, records["video"].code) == (Status.FAILED, "frame_gap")
    assert records["flow"].status == Status.PRESENT


# What is said about faults


def test_a_root_is_needed_and_the_message_says_where_the_data_are() -> None:
    with pytest.raises(UsageError, match=r"--dataset epic needs --root.*https://data\.bris\.ac\.uk"):
        epic.load_epic(DatasetRequest(Path("work")))


def test_a_wrong_root_is_told_the_layout(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert f"--root {tmp_path} holds no split file" in message
    assert "MM-SADA_Domain_Adaptation_Splits/{D1,D2,D3}_{train,test}.pkl" in message
    assert "github.com/jonmun/MM-SADA_Domain_Adaptation_Splits" in message


def test_half_a_download_names_what_is_missing(small: Path, tmp_path: Path) -> None:
    root = linked(small, tmp_path / "root")
    (root / PICKLES / "D2_test.pkl").unlink()
    assert "lacks 1 of 6 split files: D2_test.pkl; all are needed" in refusal(root)


def test_a_malicious_split_file_is_refused_and_runs_nothing(small: Path, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return subprocess.check_output, (["touch", str(tmp_path / "was-here")],)

    root = linked(small, tmp_path / "root")
    (root / PICKLES / "D1_test.pkl").write_bytes(pickle.dumps(Runs()))
    message = refusal(root)
    assert "D1_test.pkl asks for 'subprocess.check_output'" in message
    assert "was not loaded" in message
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verb_class": 8}, "verb_class is 8; classes: 0 take, 1 put"),
        ({"verb_class": -1}, "verb_class is -1"),
        ({"participant_id": "P01"}, "participant_id is 'P01'; D1 is the kitchen of P08"),
        ({"video_id": "../../P08_01"}, "video_id is '../../P08_01'; videos of D1 are called P08_01 and so on"),
        ({"start_timestamp": "4.09"}, "start_timestamp is '4.09'; write HH:MM:SS.ss"),
        ({"stop_timestamp": "00:00:00.00"}, "stop 0.0 s is not after start"),
        ({"start_frame": 500}, "frame_numbers are (500, "),
        ({"stop_frame": 3}, "flow_numbers are (1, 1)"),
        ({"uid": 12_916}, "clip_id 'D1-train-12916' occurs twice"),
    ],
)
def test_a_faulty_row_is_named(small: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    root = linked(small, tmp_path / "root")
    rewrite(root, "D1_train.pkl", change)
    assert message in refusal(root)


def test_faulty_rows_of_all_files_are_listed_at_once(small: Path, tmp_path: Path) -> None:
    root = linked(small, tmp_path / "root")
    rewrite(root, "D1_train.pkl", {"verb_class": 9}, row=4)
    rewrite(root, "D3_test.pkl", {"video_id": "film"}, row=2)
    message = refusal(root)
    assert "2 faulty of 72 rows" in message
    assert "D1_train.pkl row 4: verb_class is 9" in message
    assert "D3_test.pkl row 2: video_id is 'film'" in message


def test_a_table_of_other_columns_is_refused(small: Path, tmp_path: Path) -> None:
    root = linked(small, tmp_path / "root")
    miniature.write_table(root / PICKLES / "D2_train.pkl", [{"uid": 1, "verb_klass": 2}])
    message = refusal(root)
    assert "D2_train.pkl lacks the column(s) participant_id, video_id" in message
    assert "Did you mean 'verb_klass'?" in message


def test_a_name_is_taken_over_if_folders_take_it(small: Path) -> None:
    assert load(small).dataset == "epic"
    assert load(small, name="kitchens").dataset == "kitchens"
    with pytest.raises(UsageError, match="becomes a folder's name"):
        load(small, name="a/b")


def test_the_miniature_is_small(small: Path) -> None:
    assert sum(path.stat().st_size for path in small.rglob("*") if path.is_file()) < 5_000_000
