"""What a report stands for: its source, rows that are not built, published numbers, baseline; and how much it draws."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.reports import (
    PublishedCell,
    ReportInputs,
    illustrations,
    render_markdown,
    render_page,
    result_table,
    write_report,
)
from pipeline.reports.findings import find
from pipeline.reports.published import without_table
from pipeline.reports.ranking import MOST_RANKED, rank_settings
from pipeline.reports.settings import Setting, group_by_setting
from pipeline.reports.tables import to_csv, to_latex, to_markdown, to_rich
from pipeline.types import RunResult
from tests.report_runs import EVIL, make_run

NOT_BUILT = ["MMPareto", "Co-Training & friends"]
SENTENCE = "Rows of Authors 2026, table 3 whose methods are not in this package: MMPareto; Co-Training & friends."
GIVEN = PublishedCell("ssmdg", "average", 43.2, "Authors 2026, table 3", "their encoders are trained")


def runs(**changes: object) -> list[RunResult]:
    return [make_run(m, t, 0, 0.5, **changes) for m in ("erm", "ssmdg") for t in ("A", "B")]  # type: ignore[arg-type]


def about(results: list[RunResult], **changes: object) -> ReportInputs:
    inputs = ReportInputs(results, source="Authors 2026, table 3", not_built=NOT_BUILT, published=[GIVEN])
    return replace(inputs, **changes)  # type: ignore[arg-type]


def test_rows_that_are_not_built_are_named_in_every_format() -> None:
    table = result_table(runs(), not_built=NOT_BUILT, source="Authors 2026, table 3")
    assert f"- {SENTENCE.replace('&', '&amp;')}\n" in to_markdown(table)
    assert SENTENCE.replace("&", "\\&") in to_latex(table)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["label"] for row in rows[-2:]] == [f"{name}, not built here" for name in NOT_BUILT]
    assert all(value == "" for name, value in rows[-1].items() if name != "label")
    console = Console(file=io.StringIO(), width=300)
    with console.capture() as capture:
        console.print(to_rich(table))
    assert SENTENCE in " ".join(capture.get().split())
    assert "not in this package" not in to_markdown(result_table(runs()))
    unnamed = to_markdown(result_table(runs(), not_built=["X"]))
    assert "Rows of the table it stands for whose methods are not in this package: X." in unnamed


def test_the_report_says_what_it_stands_for() -> None:
    page, text = render_page(about(runs())), render_markdown(about(runs()))
    assert "<p>Set up after Authors 2026, table 3.</p>" in page
    assert "\nSet up after Authors 2026, table 3.\n" in text
    assert SENTENCE.replace("&", "&amp;") in page
    assert SENTENCE.replace("&", "&amp;") in text
    assert "Set up after" not in render_page(ReportInputs(runs()))


def test_published_numbers_stand_in_the_tables_they_belong_to() -> None:
    results = [*runs(), *runs(budget="10"), *runs(modalities=("video",))]
    cells = [
        replace(GIVEN, percent=41.0, budget="5"),
        replace(GIVEN, percent=42.0, budget="10", modalities=("video", "audio")),
        replace(GIVEN, percent=43.0, budget="20", modalities=("video",)),
    ]
    inputs = about(results, published=cells)
    found = find(inputs)
    assert [[cell.percent for cell in table.published] for _, table in found.tables] == [[41], [42], [41]]
    sentence = (
        "SSMDG, published: 43.0 for average, 20 labels, video (Authors 2026, table 3); there is no table of that here."
    )
    assert found.unplaced == (sentence,)
    assert sentence in render_page(inputs)
    assert sentence in render_markdown(inputs)
    settings = [Setting.of(run) for run in results]
    assert without_table(cells[:2], settings) == []


def test_differences_are_to_the_baseline_that_is_asked_for() -> None:
    page = render_page(about(runs(), baseline="ssmdg"))
    assert "Difference: to SSMDG, paired by seed" in page
    assert "Difference: to Labeled only (ERM)" not in page
    assert "Difference: to SSMDG" in render_markdown(about(runs(), baseline="ssmdg"))


def test_hostile_words_are_escaped() -> None:
    evil = about(runs(), source=EVIL, not_built=[EVIL], title=EVIL, published=[replace(GIVEN, source=EVIL)])
    page = render_page(evil)
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") > 4
    assert "<script>" not in render_markdown(evil)


def test_of_many_settings_the_first_have_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(illustrations, "ILLUSTRATED", 3)
    monkeypatch.setattr(illustrations, "CLOSER", 2)
    curves = {"step": [50, 100], "target/fused": [0.4, 0.5], "target/video": [0.3, 0.4]}
    results = [make_run("erm", "A", 0, budget=budget, curves=curves) for budget in ("1", "2", "3", "4")]
    page = render_page(ReportInputs(results))
    assert page.count("<h3>Single modalities and their fusion</h3>") == 2
    assert page.count("<h3>Learning curves</h3>") == 3
    assert page.count("Single modalities and pseudo-labels are drawn for the first 2 settings.") == 1
    assert page.count("No figures: this page draws those of its first 3 of 4 settings.") == 1
    assert page.count('<table class="results">') == 4


def test_more_methods_than_can_be_ranked_are_counted() -> None:
    results = [
        make_run("ssmdg", "A", seed, 0.5, hparams={"rate": float(i)}) for i in range(MOST_RANKED + 1) for seed in (0, 1)
    ]
    found, refused = rank_settings(group_by_setting(results))
    assert found == []
    assert refused == [
        "Protocol strict, selection rule last: 41 methods with their hyperparameters are not ranked; a ranking holds "
        "40."
    ]
    page = render_page(ReportInputs(results))
    assert f"<p>{refused[0]}</p>" in page
    assert "Methods ranked over all settings" in page
    few, refused = rank_settings(group_by_setting(results[: 2 * MOST_RANKED]))
    assert (len(few), refused) == (1, [])


def test_of_many_variants_the_hyperparameters_stand_per_method() -> None:
    results = [make_run("ssmdg", "A", 0, 0.5, hparams={"rate": float(i), "decay": 0.1}) for i in range(25)]
    results.append(make_run("erm", "A", 0, 0.5, hparams={"decay": 0.1}))
    page = render_page(ReportInputs(results))
    assert '<tr><th scope="row" class="code">rate</th><td>–</td><td>25 values</td></tr>' in page  # noqa: RUF001
    assert '<tr><th scope="row" class="code">decay</th><td>0.1</td><td>0.1</td></tr>' in page
    few = render_page(ReportInputs(results[:3]))
    assert '<tr><th scope="row" class="code">rate</th><td>0.0</td><td>1.0</td><td>2.0</td></tr>' in few


def test_every_figure_is_reached_from_the_contents() -> None:
    results = [*runs(), *runs(budget="10")]
    page = render_page(ReportInputs(results))
    assert '<a href="#overview-0">label budgets</a>.' in page
    assert '<h2 id="overview-0">Label budgets</h2>' in page


def test_the_files_agree(tmp_path: Path) -> None:
    paths = write_report(tmp_path, about(runs()))
    assert paths["report.html"].read_text(encoding="utf-8") == render_page(about(runs()))
    assert paths["results.md"].read_text(encoding="utf-8") == render_markdown(about(runs()))
    assert SENTENCE.replace("&", "\\&") in paths["tables.tex"].read_text(encoding="utf-8")
