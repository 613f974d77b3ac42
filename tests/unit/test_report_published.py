"""Published numbers: complete, numbered by source, placed beside ours, and part of nothing that is computed."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.reports import ReportInputs, render_page
from pipeline.reports.published import PublishedCell, published_notes, published_rows, refuse_twice
from pipeline.reports.results import ResultTable, result_table
from pipeline.reports.tables import to_markdown
from pipeline.reports.wording import lines
from pipeline.types import RunResult, RunSpec

COLUMNS = ("A", "B", "average")
GIVEN = PublishedCell("fixmatch", "A", 63.25, "Sohn et al. 2020, table 9", "their encoders are trained")


def run(method: str, target: str, accuracy: float, **hparams: float) -> RunResult:
    """A finished run of seed 0."""
    spec = RunSpec(
        dataset="tiny",
        manifest_digest="m",
        classes=("walk", "run"),
        sources=("C",),
        target=target,
        modalities=("video",),
        features={"video": {"backbone": "v", "digest": "1"}},
        budget="5",
        method=method,
        hparams=hparams,
        split_seed=0,
        init_seed=0,
        steps=100,
        batch_labeled=4,
        batch_unlabeled=8,
        eval_every=50,
    )
    return RunResult(spec, {"target/fused": accuracy}, {}, "last", {}, 1.0)


def table(*published: PublishedCell) -> ResultTable:
    accuracies = {"erm": 0.5, "fixmatch": 0.6, "ssmdg": 0.7}
    results = [run(method, target, value) for method, value in accuracies.items() for target in ("A", "B")]
    return result_table(results, published=published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"percent": 100.5}, "is 100.5; it must be in percent, 0 to 100"),
        ({"percent": -1.0}, "it must be in percent"),
        ({"percent": math.nan}, "it must be in percent"),
        ({"source": " "}, "has no source; name the authors"),
        ({"difference": ""}, "does not say how its protocol differs"),
    ],
)
def test_an_incomplete_number_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"published number of 'fixmatch' for 'A' .*{message}"):
        replace(GIVEN, **change)


@pytest.mark.parametrize(
    ("percent", "text"), [(63.25, "63.25"), (60, "60.0"), (60.0, "60.0"), (7.5, "7.5"), (0, "0.0")]
)
def test_digits_are_kept_as_published(percent: float, text: str) -> None:
    assert replace(GIVEN, percent=percent).percent_text == text


def test_a_row_per_method_and_source_in_the_order_of_declaration() -> None:
    other = replace(GIVEN, percent=50.0, source="Others 2021")
    cells = [
        replace(GIVEN, method="ssmdg", target_or_average="average"),
        GIVEN,
        other,
        replace(GIVEN, target_or_average="B", percent=61.0),
        replace(other, difference="another split"),
    ]
    rows = published_rows(cells, COLUMNS)
    assert [(row.method, row.label) for row in rows] == [
        ("ssmdg", "SSMDG, published [1]"),
        ("fixmatch", "FixMatch, published [1]"),
        ("fixmatch", "FixMatch, published [2]"),
        ("fixmatch", "FixMatch, published [3]"),
    ]
    percents = [[cell.percent if cell else None for cell in row.cells] for row in rows]
    assert percents == [[None, None, 63.25], [63.25, 61.0, None], [50.0, None, None], [50.0, None, None]]
    assert published_notes(cells, COLUMNS) == [
        "[1] Published, not measured here: Sohn et al. 2020, table 9. Difference in protocol: their encoders are "
        "trained.",
        "[2] Published, not measured here: Others 2021. Difference in protocol: their encoders are trained.",
        "[3] Published, not measured here: Others 2021. Difference in protocol: another split.",
        "Published numbers are in no rank, mark, difference or test.",
    ]


def test_a_number_without_a_column_is_said_and_not_dropped_in_silence() -> None:
    elsewhere = replace(GIVEN, target_or_average="Z", percent=12.0)
    assert published_rows([elsewhere], COLUMNS) == []
    assert published_notes([elsewhere], COLUMNS)[-1] == "FixMatch, published [1]: 12.0 for Z, no column here."
    assert "FixMatch, published [1]: 12.0 for Z, no column here." in to_markdown(table(elsewhere))


def test_a_number_given_twice_is_refused() -> None:
    refuse_twice([GIVEN, replace(GIVEN, target_or_average="B"), replace(GIVEN, source="Others 2021")])
    with pytest.raises(UsageError, match=r"'fixmatch' for 'A' from 'Sohn .*' is given twice, as 63.25 and 10.0"):
        table(GIVEN, replace(GIVEN, percent=10.0))


def test_it_stands_below_its_method_and_methods_not_run_here_come_last() -> None:
    shown = table(replace(GIVEN, method="co-training"), GIVEN, replace(GIVEN, method="erm"))
    assert [(line.label, line.published) for line in lines(shown)] == [
        ("Labeled only (ERM)", False),
        ("Labeled only (ERM), published [1]", True),
        ("FixMatch", False),
        ("FixMatch, published [1]", True),
        ("SSMDG", False),
        ("co-training, published [1]", True),
    ]
    assert {len(line.cells) for line in lines(shown)} == {4}


def test_it_stands_below_the_last_variant_of_its_method() -> None:
    results = [run("erm", "A", 0.5), run("fixmatch", "A", 0.6, lr=0.1), run("fixmatch", "A", 0.7, lr=0.2)]
    shown = result_table(results, published=[GIVEN])
    assert [line.label for line in lines(shown)] == [
        "Labeled only (ERM)",
        "FixMatch, lr 0.1",
        "FixMatch, lr 0.2",
        "FixMatch, published [1]",
    ]


def test_nothing_that_is_computed_knows_of_it() -> None:
    best = table(replace(GIVEN, percent=99.0), replace(GIVEN, method="ssmdg", target_or_average="average"))
    plain = table()
    for field in fields(ResultTable):
        if field.name != "published":
            assert getattr(best, field.name) == getattr(plain, field.name)
    assert [best.ranks(column) for column in range(3)] == [(0, 2, 1)] * 3
    found = [line for line in lines(best) if not line.published]
    assert found == lines(plain)
    assert all(rank == 0 for line in lines(best) if line.published for _, rank in line.cells)


def test_without_any_nothing_is_said() -> None:
    assert "ublished" not in to_markdown(table())
    assert published_rows([], COLUMNS) == []
    assert published_notes([], COLUMNS) == []


def test_the_page_sets_its_rows_apart() -> None:
    results = [run("fixmatch", "A", 0.6)]
    page = render_page(ReportInputs(results, published=[replace(GIVEN, source="<b>")]))
    assert '<tr class="published"><th scope="row">FixMatch, published [1]</th><td>63.25</td>' in page
    assert page.count('class="published"') == 1
    assert "measured here: &lt;b&gt;. Difference" in page
