"""CREMA-D: the real lists give the published numbers, the options their splits, the miniature features."""

from __future__ import annotations

import functools
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cache.layout import Status
from pipeline.datasets import crema_d
from pipeline.datasets.source import DatasetRequest
from pipeline.decoding import Clock
from pipeline.encode import extract_clip
from pipeline.errors import ManifestError, UsageError
from pipeline.extraction import ExtractSettings
from pipeline.splits import Labels, make_split
from pipeline.types import Manifest, PerClass
from tests.conftest import SHARED, _needed
from tests.miniatures import crema_d as miniature

CHOICES = [
    {},
    {"split": "actors"},
    {"domains": "actors"},
    {"split": "actors", "domains": "actors"},
]


@pytest.fixture(scope="module")
def splits_dir() -> Path:
    return _needed(SHARED / "splits", "split files")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature; tests must not change it."""
    root = tmp_path_factory.mktemp("crema") / "data"
    miniature.write(root)
    return root


@functools.cache
def loaded(root: Path, options: tuple[tuple[str, str], ...]) -> Manifest:
    return load(root, **dict(options))


def real(splits_dir: Path, **options: str) -> Manifest:
    """The manifest of the real lists, read once for each choice of options."""
    return loaded(splits_dir, tuple(options.items()))


def load(root: Path, **options: str) -> Manifest:
    return crema_d.load_crema_d(DatasetRequest(root / "work", root=root, options=options))


def write(root: Path, train: str | bytes, test: str | bytes = "1091_IEO_NEU_XX,NEU\n") -> Path:
    for file, text in (("train.csv", train), ("test.csv", test)):
        (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def refusal(root: Path, train: str | bytes, test: str | bytes = "1091_IEO_NEU_XX,NEU\n") -> str:
    with pytest.raises(ManifestError) as caught:
        load(write(root, train, test))
    return str(caught.value)


def actor(clip_id: str) -> int:
    return int(clip_id[:4])


# The real lists


def test_counts_per_split_and_emotion_are_the_published_ones(splits_dir: Path) -> None:
    manifest = real(splits_dir)
    assert Counter(clip.split for clip in manifest.clips) == {"train": 6698, "test": 744}
    assert manifest.classes == ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
    assert Counter(clip.label for clip in manifest.clips) == {"NEU": 1087} | dict.fromkeys(manifest.classes[1:], 1271)
    test = Counter(clip.label for clip in manifest.clips if clip.split == "test")
    assert test == {"NEU": 114, "HAP": 123, "SAD": 140, "FEA": 133, "DIS": 129, "ANG": 105}
    assert (manifest.dataset, manifest.domains) == ("crema-d", ("crema-d",))


@pytest.mark.parametrize("options", CHOICES)
def test_clips_have_the_order_of_the_lists_and_unique_ids_whatever_the_options(
    splits_dir: Path, options: dict[str, str]
) -> None:
    manifest = real(splits_dir, **options)
    lines = [line for file in ("train", "test") for line in (splits_dir / f"crema_d/{file}.csv").read_text().split()]
    assert [f"{clip.clip_id},{clip.label}" for clip in manifest.clips] == lines
    assert len({clip.clip_id for clip in manifest.clips}) == 7442


def test_the_official_lists_have_all_actors_on_both_sides_as_the_note_says(splits_dir: Path) -> None:
    manifest = real(splits_dir)
    sides = [{actor(c.clip_id) for c in manifest.clips if c.split == split} for split in ("train", "test")]
    assert sides[0] == sides[1] == set(crema_d.ACTORS)
    assert "the same actors are in training and test" in crema_d.NOTE
    assert all(clip.group == clip.clip_id for clip in manifest.clips)


def test_the_split_by_actors_has_no_actor_on_both_sides(splits_dir: Path) -> None:
    manifest = real(splits_dir, split="actors")
    sides = [{actor(c.clip_id) for c in manifest.clips if c.split == split} for split in ("train", "test")]
    assert not sides[0] & sides[1]
    assert sides[1] == {1003, 1009, 1011, 1019, 1024, 1044, 1050, 1068, 1073}  # fixed: results depend on it
    assert len(sides[0]) == 82
    assert Counter(clip.split for clip in manifest.clips) == {"train": 6716, "test": 726}
    assert manifest.dataset == "crema-d-actors"
    for part in ("train", "test"):
        assert {clip.label for clip in manifest.clips if clip.split == part} == set(manifest.classes)


def test_a_split_inside_the_one_domain_keeps_actors_apart(splits_dir: Path) -> None:
    manifest = real(splits_dir, split="actors")
    split = make_split(manifest, ("crema-d",), "crema-d", Labels(PerClass(10)), target_part="test")
    train = {actor(manifest.clips[i].clip_id) for i in (*split.labeled, *split.unlabeled)}
    assert (len(split.labeled), len(split.labeled) + len(split.unlabeled), len(split.test)) == (60, 6716, 726)
    assert not train & {actor(manifest.clips[i].clip_id) for i in split.test}


@pytest.mark.parametrize("split", ["official", "actors"])
def test_domains_are_blocks_of_actors(splits_dir: Path, split: str) -> None:
    manifest = real(splits_dir, split=split, domains="actors")
    assert manifest.domains == ("actors-1001-1023", "actors-1024-1046", "actors-1047-1069", "actors-1070-1091")
    for clip in manifest.clips:
        first, last = (int(text) for text in clip.domain.split("-")[1:])
        assert first <= actor(clip.clip_id) <= last
        assert clip.group == f"actor-{actor(clip.clip_id)}"
    assert Counter(clip.domain for clip in manifest.clips) == dict(
        zip(manifest.domains, (1867, 1886, 1886, 1803), strict=True)
    )
    cells = Counter((clip.domain, clip.split) for clip in manifest.clips)
    assert len(cells) == 8
    assert manifest.dataset == ("crema-d-actor-domains" if split == "official" else "crema-d-actors-actor-domains")


@pytest.mark.parametrize("split", ["official", "actors"])
@pytest.mark.parametrize("target", crema_d.ACTOR_DOMAINS)
def test_a_strict_split_over_domains_keeps_every_actor_on_one_side(splits_dir: Path, split: str, target: str) -> None:
    manifest = real(splits_dir, split=split, domains="actors")
    sources = tuple(domain for domain in manifest.domains if domain != target)
    made = make_split(manifest, sources, target, Labels(PerClass(5)))
    sides = [
        {actor(manifest.clips[i].clip_id) for i in part}
        for part in ((*made.labeled, *made.unlabeled), made.val, made.test)
    ]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert len(made.labeled) == 5 * 6 * 3
    assert bool(made.val) == (split == "actors")  # as the note says


def test_every_choice_of_options_gives_another_manifest(splits_dir: Path) -> None:
    digests = {real(splits_dir, **options).digest for options in CHOICES}
    assert len(digests) == 4


# The miniature


@pytest.mark.parametrize("name", ["1002_IEO_NEU_XX", "1091_IEO_ANG_HI", "1040_ITH_SAD_XX"])
def test_a_few_clips_give_features_of_faces_and_voices(small: Path, name: str) -> None:
    clip = next(clip for clip in load(small).clips if clip.clip_id == name)
    found = extract_clip(clip, ("video", "flow", "audio"), ExtractSettings(), Clock())
    assert {record.status for _, record in found.values()} == {Status.PRESENT}
    assert found["video"][1].facts["codec"] == "flv"
    assert found["video"][1].facts["num_frames"] == miniature.NUM_FRAMES
    assert found["audio"][1].facts["seconds"] == pytest.approx(miniature.NUM_FRAMES / miniature.RATE_HZ)


def test_a_file_published_under_another_name_is_found(small: Path) -> None:
    clip = next(clip for clip in load(small).clips if clip.clip_id == "1040_ITH_SAD_XX")
    assert [path.name for path in clip.media.values()] == ["1040_ITH_SAD_X.flv", "1040_ITH_SAD_X.wav"]


@pytest.mark.parametrize("options", CHOICES)
def test_every_option_works_on_the_miniature(small: Path, options: dict[str, str]) -> None:
    manifest = load(small, **options)
    assert len(manifest.clips) == 49
    assert {clip.split for clip in manifest.clips} == {"train", "test"}
    assert {clip.domain for clip in manifest.clips} == set(manifest.domains)
    assert all(path.is_file() for clip in manifest.clips for path in clip.media.values())


@pytest.mark.parametrize("folder", ["splits", "lists", "crema_d"])
def test_lists_may_lie_in_folders_and_videos_in_another_form(small: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    for file in ("train.csv", "test.csv"):
        shutil.copy(small / file, tmp_path / folder / file)
    (tmp_path / "VideoMP4").mkdir()
    (tmp_path / "VideoMP4" / "1002_IEO_NEU_XX.mp4").write_bytes(b"")
    media = {clip.clip_id: clip.media for clip in load(tmp_path).clips}
    assert media["1002_IEO_NEU_XX"]["video"] == tmp_path / "VideoMP4" / "1002_IEO_NEU_XX.mp4"
    assert media["1003_IEO_NEU_XX"]["video"] == tmp_path / "VideoFlash" / "1003_IEO_NEU_XX.flv"
    assert media["1003_IEO_NEU_XX"]["audio"] == tmp_path / "AudioWAV" / "1003_IEO_NEU_XX.wav"
    assert load(tmp_path).digest == load(small).digest


def test_the_miniature_is_small(small: Path) -> None:
    assert sum(path.stat().st_size for path in small.rglob("*") if path.is_file()) < 4_000_000


# What is said about faults


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_mark_line_endings_and_spaces(tmp_path: Path, end: str, mark: str) -> None:
    text = end.join([f"{mark}1001_IEO_NEU_XX , NEU", "", " , ", "  1002_TIE_SAD_MD,SAD  "])
    clips = load(write(tmp_path, text)).clips
    assert [(clip.clip_id, clip.label, clip.split) for clip in clips] == [
        ("1001_IEO_NEU_XX", "NEU", "train"),
        ("1002_TIE_SAD_MD", "SAD", "train"),
        ("1091_IEO_NEU_XX", "NEU", "test"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1001_IEO_NEU_XX", "1 values where a name and an emotion belong"),
        ("1001_IEO_NEU_XX,NEU,1", "3 values where a name and an emotion belong"),
        ("1001_IEO_NEU_XX,NEW", "emotion 'NEW' of 1001_IEO_NEU_XX is none. Did you mean 'NEU'? Emotions: NEU, HAP"),
        ("1001_IEO_NEU_XX,SAD", "emotion SAD contradicts the name 1001_IEO_NEU_XX; correct one of them"),
        ("1001_IEO_NEU_XX.wav,NEU", "'1001_IEO_NEU_XX.wav' is no name {actor}_{sentence}_{emotion}_{level}"),
        ("../1001_IEO_NEU_XX,NEU", "'../1001_IEO_NEU_XX' is no name"),
        ("1092_IEO_NEU_XX,NEU", "actor 1092 of 1092_IEO_NEU_XX is none; actors: 1001 to 1091"),
        ("1004_IEO_NEU_XX,NEU", "1004_IEO_NEU_XX stands in train.csv line 1 already; remove one of them"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, row: str, message: str) -> None:
    assert f"train.csv line 2: {message}" in refusal(tmp_path, f"1004_IEO_NEU_XX,NEU\n{row}\n")


def test_faulty_lines_of_both_lists_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, "1001_IEO_NEU_XX,SAD\n1002_IEO_NEU_XX,NEU\nx,NEU\n", "1002_IEO_NEU_XX,NEU\n1003_IEO_NEU_XX,NEU\n"
    )
    assert "3 faulty of 5 rows" in message
    assert re.findall(r"(\S+ line \d): ", message) == ["train.csv line 1", "train.csv line 3", "test.csv line 1"]
    assert "stands in train.csv line 2 already" in message


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "is empty; download it again"), ("é,NEU".encode("latin-1"), "is not UTF-8 text")]
)
def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refusal(tmp_path, data)


def test_missing_lists_are_named_with_the_places_and_the_publisher(tmp_path: Path) -> None:
    root = re.escape(str(tmp_path))
    wanted = rf"train\.csv, test\.csv not found in --root {root}; looked in \./, splits/, lists/, crema_d/"
    with pytest.raises(UsageError, match=wanted + r"\. .*https://github\.com/CheyneyComputerScience/CREMA-D"):
        load(tmp_path)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.csv").write_text("1001_IEO_NEU_XX,NEU\n")
    with pytest.raises(UsageError, match=r"crema-d: test\.csv not found in \S+splits, where the other lists are"):
        load(tmp_path)


def test_a_root_is_needed_and_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--dataset crema-d needs --root.*CREMA-D"):
        crema_d.load_crema_d(DatasetRequest(tmp_path))
    with pytest.raises(UsageError, match="is not a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "actor"}, "'actor' is not a value of crema-d's option split. Did you mean 'actors'?"),
        ({"spilt": "actors"}, "'spilt' is not a option of crema-d. Did you mean 'split'? Allowed: split, domains"),
    ],
)
def test_wrong_options_are_named(small: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load(small, **options)


def test_a_name_replaces_the_default_one(small: Path) -> None:
    request = DatasetRequest(small, root=small, name="mine", options={"split": "actors"})
    assert crema_d.load_crema_d(request).dataset == "mine"
