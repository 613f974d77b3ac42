"""The paper protocol, a single domain, unlabeled domains, given labels, and folds of the labeled clips."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.splits import Labels, make_split, reference_draw
from pipeline.types import Manifest, PerClass, Ratio, Split
from tests.unit.test_splits import clip, clips_of, ids, manifest, per_cell

SOURCES = ("kitchen", "yard")


def draw(source: Manifest, labels: Labels, **options: object) -> Split:
    return make_split(source, SOURCES, "studio", labels, **options)  # type: ignore[arg-type]


def test_the_reference_draw_is_numpys_with_seed_42_for_every_class() -> None:
    expected = np.random.RandomState(42).choice(20, size=5, replace=False).tolist()
    assert reference_draw(20, PerClass(5)) == expected
    assert reference_draw(20, Ratio(0.25)) == expected
    assert reference_draw(20, Ratio(0.01)) == expected[:1]
    assert reference_draw(3, PerClass(5)) == [0, 1, 2]
    assert reference_draw(0, PerClass(5)) == []


def test_the_papers_labels_do_not_move_with_the_seed() -> None:
    small = manifest(clips_of(train=12, test=4))
    splits = [draw(small, Labels(PerClass(3), seed), protocol="paper", target_part="test") for seed in range(4)]
    assert len(set(splits)) == 1
    assert splits[0].protocol == "paper"
    assert len({draw(small, Labels(PerClass(3), seed)) for seed in range(4)}) == 4


def test_the_paper_protocol_validates_on_the_sources_test_parts_and_tests_on_the_targets() -> None:
    small = manifest(clips_of(train=6, test=4))
    split = draw(small, Labels(PerClass(3)), protocol="paper", target_part="test")
    parts = {
        name: {(small.clips[i].domain, small.clips[i].split) for i in getattr(split, name)} for name in ("val", "test")
    }
    assert parts == {"val": {("kitchen", "test"), ("yard", "test")}, "test": {("studio", "test")}}
    assert len(split.labeled) == 12
    assert len(split.unlabeled) == 12


def test_the_paper_protocol_draws_from_all_listed_clips_and_says_what_has_no_features() -> None:
    small = manifest(clips_of(train=6, test=4))
    full = draw(small, Labels(PerClass(3)), protocol="paper")
    lost = small.clips[full.labeled[0]].clip_id
    usable = {c.clip_id for c in small.clips} - {lost}
    split = draw(small, Labels(PerClass(3)), usable=usable, protocol="paper")
    assert set(split.labeled) == set(full.labeled) - {full.labeled[0]}
    assert split.notes == ("1 labeled clips left out: they have no features",)


def test_the_paper_protocol_does_not_look_at_groups() -> None:
    clips = [replace(c, group="one") for c in clips_of(train=4, test=3)]
    with pytest.raises(UsageError, match="no usable clips to test on"):
        draw(manifest(clips), Labels(PerClass(1)))
    assert len(draw(manifest(clips), Labels(PerClass(1)), protocol="paper").val) == 12


def test_a_single_domain_is_tested_on_its_own_test_part() -> None:
    clips = tuple(clips_of(train=6, test=4, domains=("studio",)))
    small = replace(manifest(clips_of(train=1, test=1)), domains=("studio",), clips=clips)
    split = make_split(small, ("studio",), "studio", Labels(PerClass(2)), target_part="test")
    assert {small.clips[i].split for i in (*split.labeled, *split.unlabeled)} == {"train"}
    assert {small.clips[i].split for i in split.test} == {"test"}
    assert split.val == ()
    assert split.notes == (
        "studio is the only domain: trained on its train part, tested on its test part, no new domain",
    )
    with pytest.raises(UsageError, match="--target-part test"):
        make_split(small, ("studio",), "studio", Labels(PerClass(2)))


def test_groups_stay_whole_inside_a_single_domain_too() -> None:
    clips = [clip("studio", "spin", "train", 0, "anna"), clip("studio", "wave", "train", 1, "bert")]
    clips += [clip("studio", "spin", "test", 2, "anna"), clip("studio", "wave", "test", 3, "carla")]
    small = replace(manifest(clips_of(train=1, test=1)), domains=("studio",), clips=tuple(clips))
    split = make_split(small, ("studio",), "studio", Labels(PerClass(1)), target_part="test")
    assert ids(small, split.test) == {"studio/wave/test3"}


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_an_unlabeled_domain_gives_unlabeled_clips_only(protocol: str) -> None:
    small = manifest(clips_of(train=6, test=4))
    split = draw(small, Labels(Ratio(1.0), 0, ("yard", "studio")), protocol=protocol)
    assert {small.clips[i].domain for i in split.labeled} == {"kitchen"}
    assert {small.clips[i].domain for i in split.unlabeled} == {"yard"}
    assert len(split.labeled) == len(split.unlabeled) == 12
    assert "no clip of yard is labeled" in split.notes
    with pytest.raises(UsageError, match="no clip of kitchen, yard is labeled"):
        draw(small, Labels(PerClass(1), 0, SOURCES), protocol=protocol)
    with pytest.raises(UsageError, match="'yrad' is not a domain"):
        draw(small, Labels(PerClass(1), 0, ("yrad",)))


def test_given_labels_are_used_and_everything_else_is_unlabeled() -> None:
    small = manifest(clips_of(train=5, test=4))
    given = ("yard/spin/train0", "kitchen/wave/train3")
    split = draw(small, Labels(PerClass(5), ids=given))
    assert ids(small, split.labeled) == set(given)
    assert len(split.unlabeled) == 18
    for wrong in ("studio/spin/train0", "yard/spin/test0", "nobody"):
        with pytest.raises(UsageError, match="1 listed labeled clips are no training clips"):
            draw(small, Labels(PerClass(5), ids=(*given, wrong)))


def test_folds_cut_the_labeled_clips_into_disjoint_parts_of_every_cell() -> None:
    small = manifest(clips_of(train=9, test=4))
    whole = draw(small, Labels(PerClass(6), 1))
    folds = [draw(small, Labels(PerClass(6), 1, folds=3, fold=k)) for k in range(3)]
    assert Counter(i for fold in folds for i in fold.val) == Counter(whole.labeled)
    for fold in folds:
        assert set(fold.labeled) | set(fold.val) == set(whole.labeled)
        assert fold.unlabeled == whole.unlabeled
        assert fold.test == whole.test
        assert set(per_cell(small, fold.val).values()) == {2}


def test_a_fold_keeps_groups_whole() -> None:
    clips = [replace(c, group=f"{c.domain}-{c.clip_id[-1]}") if c.split == "train" else c for c in clips_of(6, 2)]
    small = manifest(clips)
    for k in range(2):
        fold = draw(small, Labels(Ratio(1.0), folds=2, fold=k))
        groups = [{small.clips[i].group for i in part} for part in (fold.labeled, fold.val)]
        assert not groups[0] & groups[1]


def test_too_few_labels_for_folds_are_refused() -> None:
    small = manifest(clips_of(train=4, test=4))
    with pytest.raises(UsageError, match="cannot be cut into 5 folds"):
        draw(small, Labels(PerClass(1), ids=("yard/spin/train0",), folds=5, fold=0))
