"""Label subsets as files: what is written is read back, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.labelsets import LabelSet, read_label_sets
from pipeline.plan import SweepSettings, _draws
from pipeline.splits import Labels, make_split
from pipeline.types import PerClass
from tests.unit.test_splits import clips_of, manifest

SMALL = manifest(clips_of(train=6, test=3))


def label_set(target: str = "studio", seed: int = 0) -> LabelSet:
    sources = tuple(d for d in SMALL.domains if d != target)
    return LabelSet.of(make_split(SMALL, sources, target, Labels(PerClass(2), seed)), SMALL, "2", seed)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    sets = [label_set(target, seed) for target in SMALL.domains for seed in (0, 1)]
    paths = [given.write(tmp_path) for given in sets]
    assert len(set(paths)) == 6
    assert sorted(map(repr, read_label_sets([tmp_path], SMALL))) == sorted(map(repr, sets))
    assert read_label_sets(paths[:1], SMALL) == sets[:1]


def test_training_with_it_uses_exactly_its_clips(tmp_path: Path) -> None:
    given = label_set(seed=3)
    (read,) = read_label_sets([given.write(tmp_path)], SMALL)
    split = make_split(SMALL, read.sources, read.target, Labels(PerClass(2), ids=read.labeled))
    assert split == make_split(SMALL, given.sources, given.target, Labels(PerClass(2), 3))


def test_the_digest_covers_every_field() -> None:
    base = label_set()
    for name, value in {"dataset": "x", "budget": "3", "seed": 9, "labeled": ("a",), "protocol": "paper"}.items():
        changed = LabelSet(**{**{k: getattr(base, k) for k in base.__dataclass_fields__}, name: value})
        assert changed.digest != base.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["labeled"].pop(), "was changed after it was written"),
        (lambda d: d.pop("seed"), "is no label subset"),
        (lambda d: d.update(schema=7), "is no label subset"),
        (lambda d: d.update(budget="many"), "is no label subset"),
        (lambda d: d.update(extra=1), "is no label subset"),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path: Path, change: object, message: str) -> None:
    path = label_set().write(tmp_path)
    plain = json.loads(path.read_text())
    change(plain)  # type: ignore[operator]
    path.write_text(json.dumps(plain))
    with pytest.raises(UsageError, match=message):
        read_label_sets([path], SMALL)


def test_no_file_no_json_another_data_set_and_two_for_one_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no label subsets"):
        read_label_sets([tmp_path], SMALL)
    with pytest.raises(UsageError, match="does not exist"):
        read_label_sets([tmp_path / "none.json"], SMALL)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match="is no label subset"):
        read_label_sets([tmp_path / "broken.json"], SMALL)
    path = label_set().write(tmp_path / "a")
    other = manifest(clips_of(train=1, test=3))
    with pytest.raises(UsageError, match="clips that small does not have"):
        read_label_sets([path], other)
    with pytest.raises(UsageError, match="was given already"):
        read_label_sets([path, path], SMALL)


def test_labels_made_for_another_protocol_are_refused() -> None:
    with pytest.raises(UsageError, match="was made for the protocol 'strict', and --protocol is 'paper'"):
        _draws(SMALL, SweepSettings(protocol="paper"), [label_set()])
    assert _draws(SMALL, SweepSettings(), [label_set(seed=4)]) == [("studio", 4, label_set(seed=4))]
