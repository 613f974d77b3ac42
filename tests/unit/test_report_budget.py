"""Label-budget curves: which settings share a panel, every point by hand, what is left out and said."""

from __future__ import annotations

import math

import pytest

from pipeline.reports import ReportInputs, render_page
from pipeline.reports.budget_figure import BudgetPoint, budget_figure, budget_panels
from pipeline.reports.settings import group_by_setting
from pipeline.types import RunResult
from tests.report_runs import EVIL, label_of, make_run

# budget -> target -> accuracies of seeds 0 and 1
ERM = {"1": {"A": (0.2, 0.3), "B": (0.4, 0.3)}, "5": {"A": (0.5, 0.6), "B": (0.5, 0.4)}}


def erm(**changes: object) -> list[RunResult]:
    return [
        make_run("erm", target, seed, accuracy, budget=budget, **changes)
        for budget, of_target in ERM.items()
        for target, pair in of_target.items()
        for seed, accuracy in enumerate(pair)
    ]


def supervised(budget: str, *accuracies: float) -> list[RunResult]:
    return [
        make_run("supervised", target, seed, accuracy, budget=budget)
        for target in ("A", "B")
        for seed, accuracy in enumerate(accuracies)
    ]


def test_every_point_is_the_mean_over_seeds_of_averages_over_targets() -> None:
    (panel,) = budget_panels(group_by_setting(erm()))
    (line,) = panel.lines
    assert (panel.title, line.label, panel.sizes, panel.chance) == (
        "tiny: video + audio",
        "Labeled only (ERM)",
        (1, 5),
        0.5,
    )
    # budget 1: seeds 0.30 and 0.30; budget 5: seeds 0.50 and 0.50
    assert [(point.size, point.n) for point in line.points] == [(1, 2), (5, 2)]
    assert [point.mean for point in line.points] == pytest.approx([0.3, 0.5])
    assert [point.se for point in line.points] == pytest.approx([0.0, 0.0])
    more = [*erm(), make_run("erm", "A", 2, 0.8, budget="5"), make_run("erm", "B", 2, 0.6, budget="5")]
    (line,) = budget_panels(group_by_setting(more))[0].lines
    assert line.points[1].n == 3
    assert line.points[1].mean == pytest.approx((0.5 + 0.5 + 0.7) / 3)
    assert line.points[1].se == pytest.approx(math.sqrt(0.04 / 3) / math.sqrt(3))  # deviations -1/15, -1/15, 2/15


def test_a_seed_without_every_target_is_in_no_point() -> None:
    runs = [r for r in erm() if (r.spec.budget, r.spec.target, r.spec.split_seed) != ("5", "B", 1)]
    (line,) = budget_panels(group_by_setting(runs))[0].lines
    assert line.points[1] == BudgetPoint(5, 0.5, None, 1)


def test_upper_bounds_are_pooled_over_the_budgets_they_do_not_depend_on() -> None:
    runs = [*erm(), *supervised("1", 0.7, 0.9), *supervised("5", 0.8, 0.9)]
    (panel,) = budget_panels(group_by_setting(runs))
    ((point,),) = (line.points for line in panel.bounds)
    assert (point.size, point.n) == (0, 2)
    assert point.mean == pytest.approx((0.75 + 0.9) / 2)
    assert [line.label for line in panel.lines] == ["Labeled only (ERM)"]


def test_what_differs_in_more_than_the_budget_is_in_another_panel() -> None:
    runs = [*erm(), *erm(steps=200), *erm(modalities=("video",))]
    assert [panel.title for panel in budget_panels(group_by_setting(runs))] == [
        "tiny: video + audio (steps 100)",
        "tiny: video + audio (steps 200)",
        "tiny: video",
    ]


def test_shares_and_counts_are_never_on_one_axis() -> None:
    runs = [*erm(), *(make_run("erm", t, 0, 0.5, budget=b) for t in ("A", "B") for b in ("10%", "50%"))]
    panels = budget_panels(group_by_setting(runs))
    assert [(panel.title, panel.sizes) for panel in panels] == [
        ("tiny: video + audio (per class)", (1, 5)),
        ("tiny: video + audio (share of each class)", (10, 50)),
    ]
    assert panels[1].unit == "labeled share of each class, %"


def test_budgets_of_other_targets_are_apart() -> None:
    runs = [*erm(), make_run("erm", "A", 0, 0.9, budget="20"), make_run("erm", "A", 0, 0.9, budget="50")]
    panels = budget_panels(group_by_setting(runs))
    assert [(panel.title, panel.sizes) for panel in panels] == [
        ("tiny: video + audio (targets A, B)", (1, 5)),
        ("tiny: video + audio (targets A)", (20, 50)),
    ]


def test_the_words_hold_every_value() -> None:
    figure = budget_figure(group_by_setting([*erm(), *supervised("5", 0.7, 0.9)]))
    (panel,) = figure.panels
    assert label_of(panel) == (
        "Line chart of target accuracy in %, average over the targets, over labeled clips per class and source domain, "
        "tiny: video + audio. Labeled only (ERM) 30.0 ± 0.0 at 1 (n=2), 50.0 ± 0.0 at 5 (n=2); Fully supervised (upper "
        "bound) 80.0 ± 10.0 with all labels."
    )
    assert [label for label, _ in figure.legend] == ["Labeled only (ERM)", "Fully supervised (upper bound)", "chance"]
    assert figure.notes == ()


def test_what_is_missing_is_said() -> None:
    runs = [*erm(), *(make_run("ssmdg", t, 0, 0.4, budget="1") for t in ("A", "B"))]
    assert budget_figure(group_by_setting(runs)).notes == ("tiny: video + audio: no value of SSMDG at 5.",)
    lost = [r if r.spec.budget == "1" else make_run("erm", r.spec.target, 0, None, budget="5") for r in erm()]
    figure = budget_figure(group_by_setting(lost))
    assert figure.panels == ()
    assert figure.notes == ("tiny: video + audio: not drawn, no method has a value for two budgets.",)


def test_of_many_methods_the_best_eight_and_the_baseline_are_drawn() -> None:
    runs = erm()
    for i in range(13):
        runs += [make_run(f"m{i:02d}", t, 0, 0.5 + i / 100, budget=b) for t in ("A", "B") for b in ("1", "5")]
    figure = budget_figure(group_by_setting(runs))
    best = [f"m{i:02d}" for i in range(5, 13)]
    assert [label for label, _ in figure.legend] == ["Labeled only (ERM)", *best, "chance"]
    assert figure.notes == (
        "Drawn: 9 of 14, the 8 with the highest mean accuracy over budgets and panels, and the baseline. Left out: "
        "m00; m01; m02; m03; m04.",
    )


def test_one_budget_makes_no_section() -> None:
    runs = [run for run in erm() if run.spec.budget == "1"]
    assert budget_panels(group_by_setting(runs)) == []
    assert "Label budgets" not in render_page(ReportInputs(runs))
    assert "Label budgets" in render_page(ReportInputs(erm()))


def test_hostile_names_are_escaped() -> None:
    page = render_page(ReportInputs([*erm(dataset=EVIL), *(make_run(EVIL, "A", 0, 0.3, budget=b) for b in ("1", "5"))]))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
