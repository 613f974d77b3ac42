"""Which of many methods figures show, and that what has one name looks the same in every figure."""

from __future__ import annotations

from itertools import pairwise

from pipeline.reports import ReportInputs, render_page, result_table
from pipeline.reports.choice import best, drawn_rows, left_out
from pipeline.reports.figures import learning_curves, shared_styles, style_at, styles
from pipeline.reports.results import ResultTable
from pipeline.reports.settings import Variant, group_by_setting
from pipeline.types import RunResult
from tests.report_runs import make_run


def methods(number: int) -> list[RunResult]:
    """A baseline, an upper bound and others, the later the better; the baseline is the worst."""
    others = [make_run(f"m{i:02d}", "A", 0, 0.3 + i / 100) for i in range(number)]
    return [make_run("erm", "A", 0, 0.1), make_run("supervised", "A", 0, 0.9), *others]


def test_up_to_twelve_all_are_drawn() -> None:
    table = result_table(methods(10))
    kept, notes = drawn_rows(table)
    assert kept == [row.variant for row in table.rows]
    assert notes == ()


def test_of_more_the_best_eight_the_baseline_and_the_upper_bound() -> None:
    table = result_table(methods(20))
    kept, notes = drawn_rows(table)
    assert [variant.method for variant in kept] == ["erm", "supervised", *(f"m{i:02d}" for i in range(12, 20))]
    assert notes == (
        "Drawn: 10 of 22, the 8 with the highest average target accuracy, the baseline and upper bounds. Left out: "
        "m00; m01; m02; m03; m04; m05; m06; m07 and 4 more.",
    )


def test_values_that_are_missing_are_the_worst_and_ties_go_to_the_earlier() -> None:
    scores = {f"m{i}": None if i == 0 else 0.5 for i in range(13)}
    assert best(scores) == [f"m{i}" for i in range(1, 9)]
    assert best(scores, ["m0"]) == [f"m{i}" for i in range(9)]
    assert left_out(["a"], 3, "some") == "Drawn: 3 of 4, some. Left out: a."


def test_the_page_draws_them_and_says_so_and_its_table_has_all() -> None:
    page = render_page(ReportInputs(methods(20)))
    assert page.count("Drawn: 10 of 22") == 1
    assert '<th scope="row">m00</th>' in page
    figures = page[page.index("Every seed.") : page.index("How to repeat this")]
    assert ">m00<" not in figures
    assert "m00 " not in figures
    assert "m19 " in figures


def test_labels_in_figures_are_those_of_the_table() -> None:
    runs = methods(0) + [make_run("ssmdg", "A", 0, 0.2 + i / 100, hparams={"rate": float(i)}) for i in range(12)]
    page = render_page(ReportInputs(runs))
    assert "SSMDG, rate 11.0 31.0 at step 100" in page


def test_curves_of_chosen_variants_only() -> None:
    runs = methods(3)
    labels = {Variant.of(runs[0]): "first", Variant.of(runs[2]): "third"}
    assert [label for label, _ in learning_curves(runs, labels=labels).legend] == ["first", "third", "chance"]


def test_no_two_of_many_styles_are_alike() -> None:
    looks = [style_at(i) for i in range(35)]
    assert len(set(looks)) == 35
    assert len({(look.colour, look.marker) for look in looks}) == 35
    assert all(one.colour != two.colour for one, two in pairwise(looks))


def tables(*runs: RunResult) -> list[ResultTable]:
    return [result_table(own) for _, own in group_by_setting(runs)]


def test_a_method_whose_defaults_depend_on_the_setting_looks_the_same_in_all() -> None:
    wide = [make_run(m, "A", 0, hparams={"hidden": 512.0}) for m in ("erm", "ssmdg")]
    narrow = [make_run(m, "A", 0, modalities=("video",), hparams={"hidden": 96.0}) for m in ("erm", "ssmdg")]
    looks = shared_styles(tables(*wide, *narrow))
    erm, ssmdg = (styles([Variant.of(run)])[Variant.of(run)] for run in wide)
    assert [looks[Variant.of(run)] for run in (*wide, *narrow)] == [erm, ssmdg, erm, ssmdg]


def test_two_rows_of_one_table_never_look_the_same() -> None:
    low, high = {"rate": 0.1}, {"rate": 0.2}
    others = [make_run(m, "A", 0, budget=budget) for m in ("erm", "fixmatch") for budget in ("1", "2")]
    apart = [make_run("ssmdg", "A", 0, hparams=own, budget=budget) for own, budget in ((low, "1"), (high, "2"))]
    both = [make_run("ssmdg", "A", 0, hparams=own, budget="9") for own in (low, high)]
    found = tables(*others, *apart, *both)
    assert [[row.label for row in table.rows if row.method == "ssmdg"] for table in found] == [
        ["SSMDG"],
        ["SSMDG"],
        ["SSMDG, rate 0.1", "SSMDG, rate 0.2"],
    ]
    looks = shared_styles(found)
    assert looks[Variant.of(both[0])] != looks[Variant.of(both[1])]
