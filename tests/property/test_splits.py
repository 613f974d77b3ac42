"""What holds for every manifest, budget and seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.splits import Labels, make_split
from pipeline.types import Clip, Manifest, PerClass, Ratio, Split

DOMAINS = ("A", "B", "C")
CLASSES = ("x", "y", "z")
SOURCES, TARGET = ("A", "B"), "C"

rows = st.tuples(
    st.sampled_from(DOMAINS),
    st.sampled_from(CLASSES),
    st.sampled_from(["train", "train", "val", "test"]),
    st.integers(0, 25),  # group
    st.integers(0, 9),  # 0: unusable
)
manifests = st.lists(rows, min_size=8, max_size=60)
budgets = st.one_of(st.integers(1, 6).map(PerClass), st.sampled_from([0.01, 0.05, 0.25, 0.5, 1.0]).map(Ratio))
seeds = st.integers(0, 2**40)
target_parts = st.sampled_from(["all", "test"])
many = settings(max_examples=60, deadline=None)
Rows = list[tuple[str, str, str, int, int]]


def build(drawn: Rows) -> tuple[Manifest, set[str]]:
    """A manifest, and the ids of its usable clips."""
    clips = [
        Clip(f"c{i}", domain, label, split, f"g{group}", {"video": Path("x.mp4")})
        for i, (domain, label, split, group, _) in enumerate(drawn)
    ]
    usable = {clip.clip_id for clip, row in zip(clips, drawn, strict=True) if row[-1]}
    return Manifest("random", CLASSES, DOMAINS, tuple(clips), Path()), usable


def split_of(drawn: Rows, budget: PerClass | Ratio, seed: int, part: str = "all") -> Split:
    manifest, usable = build(drawn)
    try:
        return make_split(manifest, SOURCES, TARGET, Labels(budget, seed), usable, part)
    except UsageError:  # a source or the target is empty
        assume(False)
        raise


@many
@given(manifests, budgets, seeds, target_parts)
def test_the_parts_are_disjoint_and_training_is_complete(
    drawn: Rows, budget: PerClass | Ratio, seed: int, part: str
) -> None:
    split = split_of(drawn, budget, seed, part)
    parts = (split.labeled, split.unlabeled, split.val, split.test)
    counts = Counter(i for positions in parts for i in positions)
    assert max(counts.values()) == 1
    training = {i for i, (d, _, s, _, usable) in enumerate(drawn) if usable and d in SOURCES and s == "train"}
    assert {*split.labeled, *split.unlabeled} == training


@many
@given(manifests, budgets, seeds, target_parts)
def test_the_target_and_only_the_target_is_in_test(drawn: Rows, budget: PerClass | Ratio, seed: int, part: str) -> None:
    split = split_of(drawn, budget, seed, part)
    assert {drawn[i][0] for i in split.test} == {TARGET}
    assert TARGET not in {drawn[i][0] for i in (*split.labeled, *split.unlabeled, *split.val)}
    if part == "test":
        assert {drawn[i][2] for i in split.test} == {"test"}
    assert all(drawn[i][-1] for i in (*split.val, *split.test))


@many
@given(manifests, budgets, seeds, target_parts)
def test_a_group_is_on_one_side_and_what_that_costs_is_counted(
    drawn: Rows, budget: PerClass | Ratio, seed: int, part: str
) -> None:
    split = split_of(drawn, budget, seed, part)
    sides = [{drawn[i][3] for i in side} for side in ((*split.labeled, *split.unlabeled), split.val, split.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    candidates = [d == TARGET and part in ("all", s) for d, _, s, _, usable in drawn if usable]
    lost = sum(int(note.split()[0]) for note in split.notes if "test clips left out" in note)
    assert len(split.test) + lost == sum(candidates)


@many
@given(manifests, budgets, seeds)
def test_every_class_of_every_source_gets_its_budget(drawn: Rows, budget: PerClass | Ratio, seed: int) -> None:
    split = split_of(drawn, budget, seed)
    pool = Counter(drawn[i][:2] for i in (*split.labeled, *split.unlabeled))
    labeled = Counter(drawn[i][:2] for i in split.labeled)
    for cell, size in pool.items():
        if isinstance(budget, PerClass):
            assert labeled[cell] == min(size, budget.count)
            short = f"{cell[0]}/{cell[1]} has {size} training clips for a budget of {budget.count}"
            assert (short in split.notes) == (size < budget.count)
        else:
            assert labeled[cell] == max(1, int(size * budget.share))


@many
@given(manifests, st.tuples(budgets, budgets), seeds)
def test_budgets_are_nested(drawn: Rows, pair: tuple[PerClass | Ratio, PerClass | Ratio], seed: int) -> None:
    one, two = (split_of(drawn, budget, seed) for budget in pair)
    for domain in SOURCES:
        for label in CLASSES:
            cells = [{i for i in split.labeled if drawn[i][:2] == (domain, label)} for split in (one, two)]
            smaller, larger = sorted(cells, key=len)
            assert smaller <= larger


@many
@given(manifests, budgets, seeds)
def test_the_hidden_labels_of_test_and_validation_move_nothing(
    drawn: Rows, budget: PerClass | Ratio, seed: int
) -> None:
    split = split_of(drawn, budget, seed)
    relabeled = [(d, "x" if d == TARGET or s != "train" else label, s, g, u) for d, label, s, g, u in drawn]
    assert split_of(relabeled, budget, seed) == split
