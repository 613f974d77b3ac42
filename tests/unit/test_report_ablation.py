"""Ablations and sensitivity: what is compared with what, differences by hand, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.reports import ReportInputs, render_page, result_table
from pipeline.reports.ablation import ablations, choices, sensitivities
from pipeline.reports.ablation_figure import MOST_BARS, MOST_PANELS, ablation_figure, sensitivity_figure
from pipeline.reports.results import ResultTable
from pipeline.reports.settings import group_by_setting
from pipeline.reports.statistics import bootstrap_interval
from pipeline.types import RunResult
from tests.report_runs import EVIL, label_of, make_run
from tests.unit.test_report_tables import run

TARGETS = ("A", "B")
Case = dict[int, tuple[float, float]]  # seed -> accuracies on A and B


def case(name: str, of_seed: Case, method: str = "ssmdg", **changes: object) -> tuple[list[RunResult], dict[str, str]]:
    runs = [
        make_run(method, target, seed, accuracy, **changes)  # type: ignore[arg-type]
        for seed, pair in of_seed.items()
        for target, accuracy in zip(TARGETS, pair, strict=True)
    ]
    return runs, {run.spec.run_id: name for run in runs}


def together(*parts: tuple[list[RunResult], dict[str, str]]) -> tuple[list[RunResult], dict[str, str]]:
    return [run for runs, _ in parts for run in runs], {k: v for _, names in parts for k, v in names.items()}


FULL: Case = {0: (0.5, 0.7), 1: (0.4, 0.6), 2: (0.6, 0.6)}  # averages 0.6, 0.5, 0.6
LESS: Case = {0: (0.4, 0.6), 1: (0.4, 0.4), 2: (0.5, 0.6)}  # averages 0.5, 0.4, 0.55


def three() -> tuple[list[RunResult], dict[str, str]]:
    return together(
        case("complete", FULL, hparams={"weight": 1.0}),
        case("without prototypes", LESS, hparams={"weight": 0.0}),
        case("labeled only", {0: (0.5, 0.5), 1: (0.5, 0.5)}, "erm"),
    )


def tables_of(runs: list[RunResult], baseline: str = "erm") -> list[tuple[str, ResultTable]]:
    return [(setting.title, result_table(own, baseline)) for setting, own in group_by_setting(runs)]


def test_cases_are_compared_with_the_first_seed_by_seed() -> None:
    (found,), notes = ablations(*three())
    assert notes == []
    assert (found.reference, found.reference_mean) == ("complete", pytest.approx(1.7 / 3))
    assert found.title == "tiny: 5 labeled clips per class and source domain, video + audio"
    less, labeled = found.bars
    assert (less.label, labeled.label) == ("without prototypes", "labeled only")
    assert less.paired.mean == pytest.approx((-0.1 - 0.1 - 0.05) / 3)
    assert less.paired.interval == pytest.approx(bootstrap_interval([-0.1, -0.1, -0.05]))
    assert less.mean == pytest.approx(1.45 / 3)
    assert (labeled.paired.n, labeled.paired.interval) == (2, None)  # seeds 0 and 1
    assert labeled.paired.mean == pytest.approx((-0.1 + 0.0) / 2)


def test_the_order_of_the_names_decides_and_not_that_of_the_runs() -> None:
    runs, names = three()
    assert ablations(runs[::-1], names)[0] == ablations(runs, names)[0]
    turned = dict(sorted(names.items(), key=lambda item: item[1] != "labeled only"))
    (found,), _ = ablations(runs, turned)
    assert found.reference == "labeled only"
    assert [bar.label for bar in found.bars] == ["complete", "without prototypes"]


def test_an_axis_that_the_cases_are_crossed_with_has_a_comparison_per_value() -> None:
    parts = [
        case(name, of_seed, method, budget=budget, hparams=hparams)
        for name, of_seed, extra in (("default", FULL, {}), ("low", LESS, {"threshold": 0.5}))
        for method in ("fixmatch", "ssmdg")
        for budget in ("5", "10")
        for hparams in [{"threshold": 0.9, "own": method, **extra}]
    ]
    found, notes = ablations(*together(*parts))
    assert notes == []
    assert [one.title.removeprefix("tiny: ") for one in found] == [
        f"{budget} labeled clips per class and source domain, video + audio, {method}"
        for method in ("FixMatch", "SSMDG")
        for budget in (5, 10)
    ]
    assert [[bar.label for bar in one.bars] for one in found] == [["low"]] * 4


def test_a_hyperparameter_of_a_list_is_an_axis_too() -> None:
    parts = [
        case(name, FULL, hparams={"weight": weight, "rate": rate})
        for name, weight in (("complete", 1.0), ("without", 0.0))
        for rate in (0.1, 0.2)
    ]
    found, _ = ablations(*together(*parts))
    assert [one.title.rpartition(", ")[2] for one in found] == ["rate 0.1", "rate 0.2"]


def test_what_cannot_be_compared_is_said() -> None:
    runs, names = three()
    lost = [replace(r, status="diverged", metrics={}) if r.spec.hparams == {"weight": 0.0} else r for r in runs]
    (found,), notes = ablations(lost, names)
    title = "tiny: 5 labeled clips per class and source domain, video + audio"
    assert [bar.label for bar in found.bars] == ["labeled only"]
    assert notes == [
        f"{title}: left out, without a seed that has every target and the reference too: without prototypes."
    ]
    lost = [replace(r, status="diverged", metrics={}) if r.spec.hparams == {"weight": 1.0} else r for r in runs]
    assert ablations(lost, names) == (
        [],
        [f"{title}: not drawn, the reference 'complete' has no seed with every target."],
    )
    both = together(three(), case("complete", {0: (0.1, 0.1)}, hparams={"weight": 1.0}, unlabeled_domains=("C",)))
    named = {**both[1], **three()[1]}
    assert ablations(both[0], dict.fromkeys(named, "complete"))[0] == []


def test_runs_without_a_case_are_in_no_bar() -> None:
    runs, names = three()
    extra, _ = case("", {0: (0.9, 0.9)}, "fixmatch")
    assert ablations([*runs, *extra], names) == ablations(runs, names)
    assert ablations(extra, names) == ([], [])


def test_the_words_hold_every_difference() -> None:
    runs, names = three()
    figure = ablation_figure(runs, names, tables_of(runs))
    (panel,) = figure.panels
    low, high = bootstrap_interval([-0.1, -0.1, -0.05]) or (0, 0)
    assert label_of(panel) == (
        "Bar chart of differences of target accuracy to complete, 56.7 %, in percentage points, average over the "
        "targets, paired by seed, tiny: 5 labeled clips per class and source domain, video + audio. without prototypes "
        f"−8.3 [−{-100 * low:.1f}, −{-100 * high:.1f}] (n=3); labeled only −5.0 (n=2)."  # noqa: RUF001
    )
    assert figure.notes == ()
    few = [run for run in runs if run.spec.split_seed < 2]
    assert ablation_figure(few, names, []).notes == ("No confidence intervals: the bootstrap needs 3 seeds or more.",)


def test_of_many_bars_the_largest_differences_are_drawn() -> None:
    parts = [
        case(f"case {i}", {0: (0.5 + i / 100, 0.5 + i / 100)}, hparams={"weight": float(i)})
        for i in range(MOST_BARS + 2)
    ]
    runs, names = together(*parts)
    figure = ablation_figure(runs, names, [])
    assert "Drawn: 12 of 25, those with the largest differences." in figure.notes[0]
    assert "case 25 +25.0" in figure.panels[0].description
    assert "case 13 " not in figure.panels[0].description


def swept(**values: float) -> list[RunResult]:
    return [
        make_run(method, target, seed, 0.5 + value / 10 + seed / 10, hparams={"rate": value, "decay": 0.1})
        for method, value in ((name.rstrip("_"), value) for name, value in values.items())
        for target in TARGETS
        for seed in (0, 1)
    ]


def test_one_hyperparameter_with_all_else_fixed_is_a_line() -> None:
    runs = [*swept(ssmdg=0.0, ssmdg_=1.0), *swept(ssmdg=3.0), *swept(fixmatch=1.0)]
    (found,) = sensitivities(tables_of(runs))
    assert (found.name, [line.label for line in found.lines]) == ("rate", ["SSMDG"])
    points = found.lines[0].points
    assert [(p.value, p.n) for p in points] == [(0, 2), (1, 2), (3, 2)]
    assert [p.mean for p in points] == pytest.approx([0.55, 0.65, 0.85])
    assert [p.se for p in points] == pytest.approx([0.05] * 3)
    figure = sensitivity_figure(tables_of(runs))
    assert label_of(figure.panels[0]) == (
        "Line chart of target accuracy in % over rate, tiny: 5 labeled clips per class and source domain, video + "
        "audio. SSMDG 55.0 ± 5.0 at 0 (n=2), 65.0 ± 5.0 at 1 (n=2), 85.0 ± 5.0 at 3 (n=2)."
    )
    assert sensitivity_figure(tables_of(runs), fewest=4).panels == ()


def test_a_grid_of_two_hyperparameters_has_a_line_per_value_of_the_other() -> None:
    runs = [
        make_run("ssmdg", t, 0, 0.5, hparams={"rate": rate, "decay": decay})
        for t in TARGETS
        for rate in (1.0, 2.0)
        for decay in (0.1, 0.2, 0.3)
    ]
    found = {one.name: [(line.label, len(line.points)) for line in one.lines] for one in sensitivities(tables_of(runs))}
    assert found == {
        "rate": [("SSMDG, decay 0.1", 2), ("SSMDG, decay 0.2", 2), ("SSMDG, decay 0.3", 2)],
        "decay": [("SSMDG, rate 1.0", 3), ("SSMDG, rate 2.0", 3)],
    }


def test_draws_that_differ_in_two_hyperparameters_are_no_line() -> None:
    runs = [
        make_run("ssmdg", t, 0, 0.5, hparams={"rate": rate, "decay": rate**2}) for t in TARGETS for rate in (1.0, 2.0)
    ]
    assert sensitivities(tables_of(runs)) == []
    page = render_page(ReportInputs(runs))
    assert "One hyperparameter at a time" not in page
    assert "Ablation" not in page


def test_choices_by_name_are_bars_against_the_baseline() -> None:
    runs = [
        make_run("ssmdg", t, 0, accuracy, hparams={"fusion": fusion})
        for t in TARGETS
        for fusion, accuracy in (("sum", 0.6), ("concat", 0.4))
    ]
    assert choices(tables_of(runs)) == []
    runs += [make_run("erm", t, 0, 0.5) for t in TARGETS]
    (found,) = choices(tables_of(runs))
    assert (found.reference, found.reference_mean) == ("Labeled only (ERM)", None)
    assert [(bar.label, bar.paired.mean) for bar in found.bars] == [
        ("fusion concat", pytest.approx(-0.1)),
        ("fusion sum", pytest.approx(0.1)),
    ]
    assert sensitivities(tables_of(runs)) == []


def test_more_comparisons_than_a_page_holds_are_counted() -> None:
    table = tables_of(swept(ssmdg=0.0, ssmdg_=1.0))
    figure = sensitivity_figure([(f"setting {i}", table[0][1]) for i in range(MOST_PANELS + 1)])
    assert len(figure.panels) == MOST_PANELS
    assert figure.notes == ("The first 24 of 25 comparisons are drawn; a report of fewer runs shows the others.",)


def test_hostile_names_are_escaped() -> None:
    runs, names = together(case(EVIL, FULL, hparams={EVIL: 1.0}), case(f"no {EVIL}\n\0", LESS, hparams={EVIL: 0.0}))
    page = render_page(ReportInputs(runs, cases=names))
    assert "<script>" not in page
    assert "Difference of target accuracy to “&lt;script&gt;alert" in page
    page = render_page(ReportInputs(runs))
    assert "<script>" not in page
    assert "One hyperparameter at a time" in page


GAINS = {"all of it": 0.0, "without prototypes": -0.1, "without translation": 0.05}
WEIGHTS = {"all of it": (1.0, 1.0), "without prototypes": (0.0, 1.0), "without translation": (1.0, 0.0)}


def crossed(budgets: tuple[str, ...] = ("5", "10"), lost: tuple[str, str, int] | None = None) -> list[RunResult]:
    """Every case with every budget, two targets, three seeds; one run may have diverged."""
    return [
        run(
            "ssmdg",
            target,
            seed,
            None if lost == (case, target, seed) else 0.4 + 0.1 * (budget == "10") + gain + 0.01 * seed,
            budget=budget,
            hparams={"weight_prototype": WEIGHTS[case][0], "weight_translation": WEIGHTS[case][1]},
        )
        for case, gain in GAINS.items()
        for budget in budgets
        for target in ("A", "B")
        for seed in (0, 1, 2)
    ]


def named(results: list[RunResult]) -> dict[str, str]:
    """The case of every run, told by its weights."""
    by_weights = {weights: case for case, weights in WEIGHTS.items()}
    return {
        r.spec.run_id: by_weights[
            float(r.spec.hparams["weight_prototype"]), float(r.spec.hparams["weight_translation"])
        ]
        for r in results
    }


def test_every_budget_has_a_comparison_of_its_own() -> None:
    results = crossed()
    found, said = ablations(results, named(results))
    assert said == []
    assert len(found) == 2
    for ablation, base in zip(sorted(found, key=lambda a: a.reference_mean or 0), (0.41, 0.51), strict=True):
        assert ablation.reference == "all of it"
        assert ablation.reference_mean == pytest.approx(base)
        assert {b.label: round(b.paired.mean, 9) for b in ablation.bars} == {
            "without prototypes": -0.1,
            "without translation": 0.05,
        }
        assert all(b.paired.n == 3 for b in ablation.bars)


def test_a_seed_that_diverged_is_in_no_pair() -> None:
    results = crossed(("5",), lost=("without prototypes", "A", 1))
    (ablation,), _ = ablations(results, named(results))
    assert {b.label: b.paired.n for b in ablation.bars} == {"without prototypes": 2, "without translation": 3}


def test_runs_without_a_case_and_no_cases_at_all_give_nothing() -> None:
    results = crossed()
    assert ablations(results, {}) == ([], [])


def test_a_reference_without_any_whole_seed_is_said() -> None:
    results = [r for r in crossed(("5",)) if not (r.spec.target == "B" and named([r])[r.spec.run_id] == "all of it")]
    found, said = ablations(results, named(results))
    assert found == []
    assert len(said) == 1
    assert "the reference 'all of it' has no seed with every target" in said[0]
