"""Splits: what the budget takes, what stays unlabeled, what the target is kept from, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.splits import Labels, make_split
from pipeline.types import Budget, Clip, Manifest, PerClass, Ratio, Split, parse_budget

CLASSES = ("spin", "wave")
DOMAINS = ("kitchen", "studio", "yard")
TWO = PerClass(2)


def clip(domain: str, label: str, split: str, number: int, group: str = "") -> Clip:
    name = f"{domain}/{label}/{split}{number}"
    return Clip(name, domain, label, split, group or name, {"video": Path("x.mp4")})


def manifest(clips: list[Clip]) -> Manifest:
    return Manifest("small", CLASSES, DOMAINS, tuple(clips), Path())


def clips_of(train: int, test: int, val: int = 0, domains: tuple[str, ...] = DOMAINS) -> list[Clip]:
    """So many clips per class in every domain."""
    sizes = {"train": train, "val": val, "test": test}
    return [clip(d, c, s, i) for d in domains for c in CLASSES for s, size in sizes.items() for i in range(size)]


def draw(source: Manifest, budget: Budget = TWO, seed: int = 0, **options: object) -> Split:
    return make_split(source, ("kitchen", "yard"), "studio", Labels(budget, seed), **options)  # type: ignore[arg-type]


def ids(source: Manifest, positions: tuple[int, ...]) -> set[str]:
    return {source.clips[i].clip_id for i in positions}


def per_cell(source: Manifest, positions: tuple[int, ...]) -> dict[tuple[str, str], int]:
    """Number of clips per (domain, class)."""
    found: dict[tuple[str, str], int] = {}
    for i in positions:
        key = source.clips[i].domain, source.clips[i].label
        found[key] = found.get(key, 0) + 1
    return found


SOURCE_CELLS = [(d, c) for d in ("kitchen", "yard") for c in CLASSES]


def test_labeled_and_unlabeled_are_the_training_clips_of_the_sources() -> None:
    small = manifest(clips_of(train=5, test=3))
    split = draw(small)
    training = {c.clip_id for c in small.clips if c.split == "train" and c.domain != "studio"}
    assert ids(small, split.labeled) | ids(small, split.unlabeled) == training
    assert not set(split.labeled) & set(split.unlabeled)
    assert per_cell(small, split.labeled) == dict.fromkeys(SOURCE_CELLS, 2)
    assert split.notes == ()


@pytest.mark.parametrize(("part", "count"), [("all", 8), ("test", 3)])
def test_the_target_is_in_test_and_nowhere_else(part: str, count: int) -> None:
    small = manifest(clips_of(train=5, test=3))
    split = draw(small, target_part=part)
    assert per_cell(small, split.test) == {("studio", "spin"): count, ("studio", "wave"): count}
    for positions in (split.labeled, split.unlabeled, split.val):
        assert positions
        assert {small.clips[i].domain for i in positions} == {"kitchen", "yard"}


def test_validation_is_the_val_part_and_the_test_part_only_without_one() -> None:
    with_val, without = manifest(clips_of(train=4, test=3, val=2)), manifest(clips_of(train=4, test=3))
    for small, part, count in ((with_val, "val", 2), (without, "test", 3)):
        split = draw(small)
        assert {small.clips[i].split for i in split.val} == {part}
        assert per_cell(small, split.val) == dict.fromkeys(SOURCE_CELLS, count)


def test_a_smaller_budget_is_a_subset_of_a_larger_one() -> None:
    small = manifest(clips_of(train=12, test=1))
    sets = [set(draw(small, budget).labeled) for budget in (PerClass(1), Ratio(0.25), PerClass(7), Ratio(1))]
    for smaller, larger in pairwise(sets):
        assert smaller < larger


def test_the_seed_decides_the_draw() -> None:
    small = manifest(clips_of(train=12, test=1))
    draws = [draw(small, PerClass(3), seed).labeled for seed in range(6)]
    assert len(set(draws)) == 6
    assert [draw(small, PerClass(3), seed).labeled for seed in range(6)] == draws


def test_domains_and_classes_are_drawn_independently() -> None:
    """Neither leaving out a domain nor a larger class elsewhere moves the draw of a (domain, class)."""
    small = manifest(clips_of(train=9, test=1))
    more = manifest([*small.clips, *(clip("kitchen", "spin", "train", i) for i in range(9, 20))])
    alone = make_split(small, ("yard",), "studio", Labels(PerClass(3)))
    for other, split in ((small, draw(small, PerClass(3))), (more, draw(more, PerClass(3)))):
        assert {c for c in ids(other, split.labeled) if c.startswith("yard/")} == ids(small, alone.labeled)
    numbers = {
        cell: sorted(c.rsplit("/", 1)[1] for c in ids(small, draw(small, PerClass(3)).labeled) if c.startswith(cell))
        for cell in ("kitchen/spin", "kitchen/wave", "yard/spin", "yard/wave")
    }
    assert len(set(map(tuple, numbers.values()))) == 4


def test_manifests_with_one_digest_give_one_split() -> None:
    """The digest stands for the manifest in a run's identity: one run_id must not stand for two splits."""
    small = manifest(clips_of(train=9, test=1))
    reordered = replace(small, clips=small.clips[::-1])
    parts = ("labeled", "unlabeled", "val", "test")
    here, there = draw(small), draw(reordered)
    same = all(ids(small, getattr(here, part)) == ids(reordered, getattr(there, part)) for part in parts)
    assert same or reordered.digest != small.digest


@pytest.mark.parametrize(
    ("budget", "size", "labeled"),
    [("5%", 40, 2), ("5%", 59, 2), ("5%", 60, 3), ("5%", 3, 1), ("0.1%", 10, 1), ("50%", 7, 3), ("100%", 7, 7)],
)
def test_a_ratio_rounds_down_and_labels_at_least_one(budget: str, size: int, labeled: int) -> None:
    small = manifest(clips_of(train=size, test=1))
    assert per_cell(small, draw(small, parse_budget(budget)).labeled) == dict.fromkeys(SOURCE_CELLS, labeled)


def test_a_percentage_of_a_hundred_clips_is_that_many() -> None:
    small = manifest([clip("kitchen", "spin", "train", i) for i in range(100)] + clips_of(train=0, test=1))
    splits = {n: make_split(small, ("kitchen",), "studio", Labels(parse_budget(f"{n}%"))) for n in range(1, 101)}
    assert {n: len(split.labeled) for n, split in splits.items() if len(split.labeled) != n} == {}


def test_a_class_too_small_for_the_budget_is_reported() -> None:
    small = manifest([*clips_of(train=5, test=1, domains=("kitchen", "studio")), clip("yard", "wave", "train", 0)])
    split = draw(small, PerClass(4))
    assert per_cell(small, split.labeled) == {("kitchen", "spin"): 4, ("kitchen", "wave"): 4, ("yard", "wave"): 1}
    assert split.notes == (
        "yard/spin has 0 training clips for a budget of 4",
        "yard/wave has 1 training clips for a budget of 4",
    )


def test_a_group_of_training_is_left_out_of_validation_and_test() -> None:
    shared = [
        clip("kitchen", "spin", "train", 90, group="film 1"),
        clip("yard", "spin", "test", 91, group="film 1"),
        clip("studio", "spin", "test", 92, group="film 1"),
    ]
    small = manifest([*clips_of(train=3, test=2), *shared])
    split = draw(small)
    assert shared[0].clip_id in ids(small, (*split.labeled, *split.unlabeled))
    assert not {shared[1].clip_id, shared[2].clip_id} & ids(small, (*split.val, *split.test))
    assert split.notes == (
        "1 validation clips left out: their group is on another side",
        "1 test clips left out: their group is on another side",
    )


def test_a_group_of_validation_is_left_out_of_test() -> None:
    shared = [clip("yard", "spin", "test", 91, group="film 1"), clip("studio", "spin", "test", 92, group="film 1")]
    small = manifest([*clips_of(train=3, test=2), *shared])
    split = draw(small)
    assert shared[0].clip_id in ids(small, split.val)
    assert shared[1].clip_id not in ids(small, split.test)
    assert split.notes == ("1 test clips left out: their group is on another side",)


def test_unusable_clips_are_in_no_part() -> None:
    small = manifest(clips_of(train=5, test=3))
    usable = {c.clip_id for c in small.clips if not c.clip_id.endswith(("train0", "test1"))}
    split = draw(small, usable=usable)
    assert ids(small, (*split.labeled, *split.unlabeled, *split.val, *split.test)) == usable


@pytest.mark.parametrize(
    ("sources", "target", "message"),
    [
        (("kitchen", "yards"), "studio", "'yards' is not a domain of small. Did you mean 'yard'"),
        (("kitchen",), "studo", "'studo' is not a domain of small. Did you mean 'studio'"),
        (("kitchen", "studio"), "studio", "target 'studio' is also a source"),
    ],
)
def test_a_wrong_domain_is_refused(sources: tuple[str, ...], target: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_split(manifest(clips_of(train=2, test=1)), sources, target, Labels(PerClass(1)))


def test_a_source_without_training_clips_is_refused() -> None:
    small = manifest([*clips_of(train=3, test=2, domains=("kitchen", "studio")), clip("yard", "spin", "test", 0)])
    with pytest.raises(UsageError, match="source domain 'yard' of small has no usable training clips"):
        draw(small)


def test_a_target_without_usable_clips_is_refused() -> None:
    small = manifest(clips_of(train=3, test=2))
    usable = {c.clip_id for c in small.clips if c.domain != "studio"}
    with pytest.raises(UsageError, match="target domain 'studio' of small has no usable clips to test on"):
        draw(small, usable=usable)


def test_a_split_with_a_clip_on_two_sides_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="clip 3 is in unlabeled and test"):
        Split(("kitchen",), "studio", labeled=(1,), unlabeled=(2, 3), val=(), test=(3,))


@pytest.mark.parametrize(("text", "budget"), [("5", PerClass(5)), ("5%", Ratio(0.05)), ("2.5%", Ratio(0.025))])
def test_a_budget_is_read_and_written_alike(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget
    assert str(budget) == text


@pytest.mark.parametrize("text", ["0", "-1", "0%", "101%", "nan%", "inf%", "2.5", "five", "", "%"])
def test_an_impossible_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="labels: "):
        parse_budget(text)
