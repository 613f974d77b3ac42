"""Confusion matrices: sums and shares by hand, the pairs that are listed, and labels that mean harm."""

from __future__ import annotations

import pytest

from pipeline.reports import ReportInputs, render_page
from pipeline.reports.confusion_figure import Confusion, confusion_figure, confusions
from pipeline.reports.settings import variant_labels
from pipeline.types import RunResult
from tests.report_runs import EVIL, label_of, make_run


def two() -> list[RunResult]:
    """Walk 8 of 10 right, run 3 of 6 right, over two targets and a seed each."""
    return [
        make_run("erm", "A", 0, confusion=((5, 1), (1, 2))),
        make_run("erm", "B", 1, confusion=((3, 1), (2, 1))),
    ]


def test_counts_are_summed_over_targets_and_seeds() -> None:
    (found,) = confusions(two(), variant_labels(two()))
    assert found == Confusion("Labeled only (ERM)", ("walk", "run"), ((8, 2), (3, 3)), 2, 2)
    assert found.shares() == ((0.8, 0.2), (0.5, 0.5))
    assert found.confused(5) == [("run", "walk", 3, 0.5), ("walk", "run", 2, 0.2)]
    assert found.confused(1) == [("run", "walk", 3, 0.5)]


def test_a_class_without_clips_has_no_shares() -> None:
    found = Confusion("x", ("walk", "run"), ((0, 0), (1, 3)), 1, 1)
    assert found.shares() == ((None, None), (0.25, 0.75))
    (panel,) = confusion_figure([found]).panels
    assert "Right: walk –, run 75.0." in panel.description  # noqa: RUF001
    assert panel.svg.count('fill="none"') == 2


def test_runs_without_a_matrix_and_diverged_ones_are_not_in_it() -> None:
    runs = [*two(), make_run("erm", "A", 1), make_run("erm", "B", 0, None, confusion=((9, 9), (9, 9)))]
    (found,) = confusions(runs, variant_labels(runs))
    assert (found.counts, found.runs, found.of) == (((8, 2), (3, 3)), 2, 3)
    assert confusion_figure([found]).notes == ("Labeled only (ERM): 2 of 3 runs recorded theirs.",)


def test_a_run_given_twice_counts_once() -> None:
    (found,) = confusions([*two(), *two()], variant_labels(two()))
    assert found.counts == ((8, 2), (3, 3))


def test_the_words_and_the_cells_hold_the_numbers() -> None:
    figure = confusion_figure(confusions(two(), variant_labels(two())))
    (panel,) = figure.panels
    assert label_of(panel) == (
        "Confusion matrix of Labeled only (ERM), % of each true class, 16 predictions. Right: walk 80.0, run 50.0. "
        "Most confused: run taken for walk 50.0; walk taken for run 20.0."
    )
    assert [panel.svg.count(f">{number}<") for number in (80, 20, 50)] == [1, 1, 2]
    assert [label for label, _ in figure.legend] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert figure.notes == ()


def test_a_matrix_of_another_size_is_refused() -> None:
    runs = [make_run("erm", "A", 0, confusion=((1, 0, 0), (0, 1, 0), (0, 0, 1)))]
    with pytest.raises(ValueError, match=f"run {runs[0].spec.run_id}: its confusion matrix does not fit its 2 classes"):
        confusions(runs, variant_labels(runs))


def many(classes: int) -> RunResult:
    names = tuple(f"class {i}" for i in range(classes))
    counts = tuple(tuple(10 if i == j else (4 if j == i + 1 else 0) for j in range(classes)) for i in range(classes))
    return make_run("erm", "A", 0, classes=names, confusion=counts)


def test_large_matrices_carry_no_numbers_and_name_the_pairs() -> None:
    runs = [many(20)]
    figure = confusion_figure(confusions(runs, variant_labels(runs)))
    assert ">71<" not in figure.panels[0].svg
    assert figure.notes[0].startswith(
        "Labeled only (ERM), most confused, % of the true class: class 0 taken for class 1 28.6; class 1 taken"
    )
    page = render_page(ReportInputs(runs))
    assert 'class="panels wide"' in page


def test_of_more_classes_than_can_be_drawn_the_pairs_are_a_table() -> None:
    page = render_page(ReportInputs([many(31)]))
    assert "Confusion matrix" not in page
    assert "Labeled only (ERM): the 10 pairs of 31 classes most often confused." in page
    assert '<tr><th scope="row">class 0</th><td>class 1</td><td>4</td><td>28.6</td></tr>' in page


def test_without_matrices_there_is_no_section() -> None:
    assert "Confusion between classes" not in render_page(ReportInputs([make_run()]))
    assert "Confusion between classes" in render_page(ReportInputs(two()))


def test_long_and_hostile_class_names_are_cut_and_escaped() -> None:
    classes = (EVIL, "a class name that is far too long for its place")
    runs = [make_run("erm", "A", 0, classes=classes, confusion=((1, 1), (0, 2)))]
    page = render_page(ReportInputs(runs))
    assert "<script>" not in page
    assert ">a class name that…<title>a class name that is far too long for its place</title>" in page
