"""Pseudo-labels in closer view: which curves are read, means by hand, gaps, and many classes."""

from __future__ import annotations

import pytest

from pipeline.reports import ReportInputs, render_page
from pipeline.reports.figures import styles
from pipeline.reports.pseudo_figure import Dot, microscope, microscope_figure, parse_curve
from pipeline.reports.settings import variant_labels
from pipeline.types import RunResult
from tests.report_runs import EVIL, label_of, make_run

Values = dict[str, float | None]


def run(seed: int, values: Values, method: str = "fixmatch", **changes: object) -> RunResult:
    curves = {"step": [50, 100], "target/fused": [0.5, 0.5], **{name: [0.99, value] for name, value in values.items()}}
    return make_run(method, "A", seed, curves=curves, **changes)  # type: ignore[arg-type]


def two() -> list[RunResult]:
    return [
        run(
            0,
            {
                "pseudo/accepted/coverage": 0.5,
                "pseudo/accepted/class/walk/coverage": 0.2,
                "pseudo/accepted/class/run/coverage": 0.6,
                "pseudo/accepted/class/walk/precision": None,
                "pseudo/accepted/class/run/precision": 0.9,
                "pseudo/accepted/domain/B/coverage": 0.3,
                "pseudo/agree/video": 0.8,
                "pseudo/right/video": 0.6,
            },
        ),
        run(1, {"pseudo/accepted/class/walk/coverage": 0.4, "pseudo/accepted/class/walk/precision": 0.5}),
    ]


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("pseudo/accepted/class/walk/coverage", (("class", "coverage"), "accepted", "walk")),
        ("pseudo/accepted/class/put/down/precision", (("class", "precision"), "accepted", "put/down")),
        ("pseudo/nonconsensus/domain/D1/precision", (("domain", "precision"), "nonconsensus", "D1")),
        ("pseudo/agree/video", (("modality", "agree"), "", "video")),
        ("pseudo/right/audio", (("modality", "right"), "", "audio")),
        ("pseudo/accepted/coverage", None),
        ("pseudo/accepted/class/walk/other", None),
        ("target/video", None),
        ("loss/pseudo/class/walk/coverage", None),
    ],
)
def test_curves_are_told_apart_by_their_names(name: str, parsed: object) -> None:
    assert parse_curve(name) == parsed


def test_dots_are_means_over_the_runs_that_have_a_number_at_the_last_evaluation() -> None:
    found = microscope(two(), variant_labels(two()))
    (coverage,) = found["class", "coverage"]
    assert coverage.label == "FixMatch, accepted"
    assert coverage.of_group["walk"].mean == pytest.approx(0.3)
    assert coverage.of_group["walk"].se == pytest.approx(0.1)
    assert coverage.of_group["walk"].n == 2
    assert coverage.of_group["run"] == Dot(0.6, None, 1)
    (precision,) = found["class", "precision"]
    assert precision.of_group == {"run": Dot(0.9, None, 1), "walk": Dot(0.5, None, 1)}
    assert found["domain", "coverage"][0].of_group == {"B": Dot(0.3, None, 1)}
    assert found["modality", "agree"][0].of_group == {"video": Dot(0.8, None, 1)}
    assert ("domain", "precision") not in found


def test_a_second_mask_is_open_and_has_its_own_name() -> None:
    runs = [run(0, {f"pseudo/{m}/domain/B/coverage": 0.5 for m in ("accepted", "nonconsensus")}, "ssmdg")]
    figure = microscope_figure(runs, variant_labels(runs), styles(variant_labels(runs)))
    assert [label for label, _ in figure.legend] == ["SSMDG, accepted", "SSMDG, non-consensus"]
    one, two = microscope(runs, variant_labels(runs))["domain", "coverage"]
    assert (one.second, two.second) == (0, 1)


def test_the_words_hold_every_mean_in_the_order_of_the_classes() -> None:
    labels = variant_labels(two())
    figure = microscope_figure(two(), labels, styles(labels))
    assert [panel.title for panel in figure.panels] == [
        "coverage per true class",
        "precision per pseudo-class",
        "coverage per source domain",
        "agreement of each modality",
        "accuracy of each modality alone",
    ]
    assert label_of(figure.panels[0]) == (
        "Dot plot of pseudo-labels at the last evaluation, coverage per true class, %. FixMatch, accepted: walk 30.0, "
        "run 60.0."
    )
    assert [label for label, _ in figure.legend] == ["FixMatch, accepted"]
    assert figure.notes == ()


def test_of_many_classes_the_lowest_are_drawn() -> None:
    names = tuple(f"c{i:02d}" for i in range(40))
    runs = [run(0, {f"pseudo/accepted/class/{n}/coverage": i / 40 for i, n in enumerate(names)}, classes=names)]
    labels = variant_labels(runs)
    figure = microscope_figure(runs, labels, styles(labels))
    assert figure.notes == ("coverage per true class: the 30 lowest of 40 are drawn.",)
    assert "c29 72.5." in figure.panels[0].description
    assert "c30" not in figure.panels[0].description


def test_without_such_curves_there_is_no_section() -> None:
    runs = [make_run("erm")]
    labels = variant_labels(runs)
    figure = microscope_figure(runs, labels, styles(labels))
    assert figure.panels == figure.notes == ()
    assert "Pseudo-labels" not in render_page(ReportInputs(runs))
    page = render_page(ReportInputs(two()))
    assert "Pseudo-labels at the last evaluation, in closer view" in page


@pytest.mark.filterwarnings("error")
def test_hostile_and_foreign_class_names_are_escaped_and_kept() -> None:
    classes = (EVIL, "走る", "a\nb\0c")
    values: Values = {f"pseudo/accepted/class/{name}/coverage": 0.5 for name in classes}
    runs = [run(0, values, classes=classes)]
    labels = variant_labels(runs)
    (panel,) = microscope_figure(runs, labels, styles(labels)).panels
    assert "\0" not in panel.svg
    assert "走る" in panel.svg
    assert ">a bc<" in panel.svg
    page = render_page(ReportInputs(runs))
    assert "<script>" not in page
    assert "$a_b$" in page
