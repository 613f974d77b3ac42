"""The paper protocol's labeled clips of EPIC-Kitchens, row for row as the authors' code draws them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets import DatasetRequest, load_dataset
from pipeline.splits import Labels, make_split, reference_draw
from pipeline.types import Budget, Manifest, PerClass, Ratio

DOMAINS = ("D1", "D2", "D3")


@pytest.fixture(scope="module")
def budgets(golden_dir: Path) -> dict[str, Any]:
    return json.loads((golden_dir / "label_budgets.json").read_text())


@pytest.fixture(scope="module")
def epic(splits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_dataset("epic", DatasetRequest(tmp_path_factory.mktemp("work"), root=splits_dir / "epic"))


def budget_of(text: str) -> Budget:
    kind, _, value = text.partition("=")
    return PerClass(int(value)) if kind == "number" else Ratio(float(value))


def positions_in_list(epic: Manifest, domain: str) -> dict[int, int]:
    """Position in the manifest -> row of the domain's training pickle."""
    rows = [i for i, clip in enumerate(epic.clips) if clip.domain == domain and clip.split == "train"]
    return {i: row for row, i in enumerate(rows)}


def test_every_budget_of_the_golden_set(budgets: dict[str, Any], epic: Manifest) -> None:
    assert budgets["epic_budgets"]
    for text, of_domains in budgets["epic_budgets"].items():
        for target in DOMAINS:
            sources = [d for d in DOMAINS if d != target]
            split = make_split(
                epic, sources, target, Labels(budget_of(text), seed=3), target_part="test", protocol="paper"
            )
            for domain in sources:
                row_of = positions_in_list(epic, domain)
                expected = of_domains[domain]
                labeled = sorted(row_of[i] for i in split.labeled if i in row_of)
                unlabeled = sorted(row_of[i] for i in split.unlabeled if i in row_of)
                assert labeled == expected["labelled_positions_sorted"], (text, domain)
                assert len(unlabeled) == expected["n_unlabelled"]
                assert sorted(labeled + unlabeled) == list(range(expected["n_total"]))
                counts = [0] * 8
                for i in split.labeled:
                    if epic.clips[i].domain == domain:
                        counts[epic.classes.index(epic.clips[i].label)] += 1
                assert counts == [expected["labelled_per_class"][str(c)] for c in range(8)]


def test_the_order_of_the_draw_too(budgets: dict[str, Any], epic: Manifest) -> None:
    labels = epic.label_indices()
    for text, of_domains in budgets["epic_budgets"].items():
        for domain in DOMAINS:
            row_of = positions_in_list(epic, domain)
            drawn = []
            for number in range(8):
                rows = [row for i, row in row_of.items() if labels[i] == number]
                drawn += [rows[k] for k in reference_draw(len(rows), budget_of(text))]
            assert drawn == of_domains[domain]["labelled_positions_dataset_order"], (text, domain)


def test_a_whole_domain_without_labels(budgets: dict[str, Any], epic: Manifest) -> None:
    split = make_split(
        epic, ("D1", "D2"), "D3", Labels(Ratio(1.0), unlabeled_domains=("D2",)), target_part="test", protocol="paper"
    )
    expected = budgets["epic_domain_setting"]
    assert len(split.labeled) == expected["D1"]["if_labelled"]["n_labelled"]
    assert len(split.unlabeled) == expected["D2"]["if_unlabelled"]["n_unlabelled"]
    assert not {epic.clips[i].domain for i in split.labeled} & {"D2", "D3"}
