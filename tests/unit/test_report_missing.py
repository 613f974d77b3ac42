"""Heat maps of missing modalities: means by hand, gaps, one scale, and what is said of what was not evaluated."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pipeline.reports import ReportInputs, render_page
from pipeline.reports.heat import ink_on, luminance, shade
from pipeline.reports.missing_figure import missing_figure, missing_tables
from pipeline.reports.settings import variant_labels
from pipeline.types import RunResult
from tests.report_runs import EVIL, label_of, make_run

BOTH, VIDEO = ("video", "audio"), ("video",)


@dataclass(frozen=True)
class Row:
    kept: tuple[str, ...]
    filler: str
    accuracy: float | None


def evaluated(method: str = "erm") -> tuple[list[RunResult], dict[str, list[Row]]]:
    """Two targets, two seeds; both modalities and video alone, two fillers."""
    runs = [make_run(method, target, seed) for target in ("A", "B") for seed in (0, 1)]
    values = {("A", 0): 0.2, ("B", 0): 0.4, ("A", 1): 0.6, ("B", 1): 0.8}
    rows = {}
    for run in runs:
        value = values[run.spec.target, run.spec.split_seed]
        rows[run.spec.run_id] = [
            Row(VIDEO, "zero", value),
            Row(BOTH, "zero", value + 0.1),
            Row(BOTH, "mean", value + 0.2),
            Row(VIDEO, "mean", None if run.spec.target == "A" and run.spec.split_seed else value),
        ]
    return runs, rows


def test_cells_are_means_over_seeds_of_averages_over_targets() -> None:
    runs, rows = evaluated()
    (table,) = missing_tables(runs, variant_labels(runs), rows)
    assert (table.subsets, table.fillers) == ((BOTH, VIDEO), ("zero", "mean"))
    assert table.means[VIDEO, "zero"] == pytest.approx((0.3 + 0.7) / 2)
    assert table.means[BOTH, "zero"] == pytest.approx(0.6)
    assert table.means[VIDEO, "mean"] == pytest.approx(0.3)  # seed 1 has no clip of A left
    assert (table.runs, table.of) == (4, 4)


def test_the_words_and_the_cells_hold_every_value() -> None:
    runs, rows = evaluated()
    (panel,) = missing_figure(runs, variant_labels(runs), rows).panels
    assert label_of(panel) == (
        "Heat map of target accuracy in % by present modalities and filler, Labeled only (ERM). video+audio: zero "
        "60.0, mean 70.0; video: zero 50.0, mean 30.0."
    )
    for text in (">60.0<", ">70.0<", ">50.0<", ">30.0<", ">video+audio<", ">video<", ">zero<", ">mean<", ">present<"):
        assert text in panel.svg


def test_methods_share_one_scale() -> None:
    runs, rows = evaluated()
    more, others = evaluated("ssmdg")
    better = {run_id: [Row(r.kept, r.filler, (r.accuracy or 0) / 20) for r in own] for run_id, own in others.items()}
    figure = missing_figure([*runs, *more], variant_labels([*runs, *more]), rows | better)
    assert [label for label, _ in figure.legend] == ["2 %", "19 %", "36 %", "53 %", "70 %"]
    erm, ssmdg = figure.panels
    assert shade(1, (0, 1)) in erm.svg
    assert shade(1, (0, 1)) not in ssmdg.svg
    assert shade(0, (0, 1)) in ssmdg.svg


def test_runs_that_were_not_evaluated_are_said() -> None:
    runs, rows = evaluated()
    other = make_run("ncm", "A", 0)
    some = {run.spec.run_id: rows[run.spec.run_id] for run in runs if run.spec.split_seed == 0}
    figure = missing_figure([*runs, other], variant_labels([*runs, other]), some)
    assert figure.notes == (
        "Labeled only (ERM): over the 2 of 4 runs that were evaluated.",
        "Not evaluated with missing modalities: Nearest class mean.",
    )
    assert "zero 30.0" in figure.panels[0].description
    one = {run.spec.run_id: rows[run.spec.run_id] for run in runs[:1]}
    figure = missing_figure(runs, variant_labels(runs), one)
    assert figure.panels == ()
    assert figure.notes == ("Labeled only (ERM): not drawn, no seed was evaluated on every target (1 of 4 runs were).",)


def test_a_cell_without_a_value_is_left_empty() -> None:
    runs, rows = evaluated()
    gone = {
        run_id: [Row(r.kept, r.filler, None if r.filler == "mean" and r.kept == VIDEO else r.accuracy) for r in own]
        for run_id, own in rows.items()
    }
    (panel,) = missing_figure(runs, variant_labels(runs), gone).panels
    assert "video: zero 50.0." in panel.description
    assert panel.svg.count("<rect") == 4
    assert panel.svg.count('fill="none"') == 1


def test_without_records_there_is_no_section() -> None:
    runs, rows = evaluated()
    assert "Missing modalities" not in render_page(ReportInputs(runs))
    assert "Missing modalities" in render_page(ReportInputs(runs, missing_rows=rows))


def test_hostile_names_are_escaped() -> None:
    runs, rows = evaluated(EVIL)
    evil = {run_id: [Row((EVIL,), EVIL, 0.5), Row(("a\0b",), "x", 0.5)] for run_id in rows}
    page = render_page(ReportInputs(runs, missing_rows=evil))
    assert "<script>" not in page
    assert all("\0" not in panel.svg for panel in missing_figure(runs, variant_labels(runs), evil).panels)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0])
def test_numbers_can_be_read_on_every_colour(share: float) -> None:
    colour = shade(share, (0.0, 1.0))
    one, two = luminance(colour) + 0.05, luminance(ink_on(colour)) + 0.05
    assert max(one, two) / min(one, two) >= 4.5


def test_the_scale_grows_lighter_throughout_and_ends_where_it_should() -> None:
    lightness = [luminance(shade(i / 20, (0.0, 1.0))) for i in range(21)]
    assert lightness == sorted(lightness)
    assert shade(-1, (0, 1)) == shade(0, (0, 1)) == "#00224e"
    assert shade(2, (0, 1)) == shade(1, (0, 1)) == "#fee838"
    assert shade(0.4, (0.4, 0.4)) == shade(0.5, (0, 1))
