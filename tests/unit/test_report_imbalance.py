"""Accuracy of single modalities over steps: averages by hand, gaps, and what has nothing to show."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.reports import ReportInputs, render_page
from pipeline.reports.imbalance_figure import head_curves, head_styles, imbalance_figure
from pipeline.reports.settings import variant_labels
from pipeline.types import RunResult
from tests.report_runs import label_of, make_run

Curve = Sequence[float | None]


def run(target: str, seed: int, fused: Curve, video: Curve, audio: Curve, **changes: object) -> RunResult:
    curves = {"step": [50, 100], "target/fused": fused, "target/video": video, "target/audio": audio}
    return make_run("erm", target, seed, curves=curves, **changes)


def two() -> list[RunResult]:
    return [
        run("A", 0, [0.4, 0.6], [0.3, 0.5], [0.2, 0.2]),
        run("B", 0, [0.6, 0.8], [0.5, 0.5], [0.2, 0.4]),
        run("A", 1, [0.5, 0.5], [0.2, 0.4], [0.1, 0.3]),
        run("B", 1, [0.5, 0.9], [0.2, 0.6], [0.3, 0.3]),
    ]


def test_curves_are_means_over_seeds_of_averages_over_targets() -> None:
    (found,) = head_curves(two(), variant_labels(two()), "target")
    assert found.label == "Labeled only (ERM)"
    assert [name for name, _ in found.heads] == ["fused", "video", "audio"]
    fused, video, audio = (band for _, band in found.heads)
    assert fused.steps == (50, 100)
    assert fused.mean == pytest.approx((0.5, 0.7))  # seeds 0.5, 0.5; then 0.7, 0.7
    assert fused.se == pytest.approx((0.0, 0.0))
    assert video.mean == pytest.approx((0.3, 0.5))  # 0.4, 0.2; then 0.5, 0.5
    assert video.se == pytest.approx((0.1, 0.0))
    assert audio.mean == pytest.approx((0.2, 0.3))
    assert fused.n == (2, 2)


def test_a_step_counts_only_the_seeds_that_have_every_target_there() -> None:
    runs = [*two()[:3], run("B", 1, [0.5], [0.2], [0.3])]  # stopped early
    (found,) = head_curves(runs, variant_labels(runs), "target")
    fused = found.heads[0][1]
    assert fused.n == (2, 1)
    assert fused.mean == pytest.approx((0.5, 0.7))
    gap = [*two()[:3], run("B", 1, [0.5, None], [0.2, 0.6], [0.3, 0.3])]
    fused = head_curves(gap, variant_labels(gap), "target")[0].heads[0][1]
    assert fused.n == (2, 1)


def test_a_run_given_twice_counts_once_and_a_diverged_one_not_at_all() -> None:
    runs = [*two(), *two(), make_run("ssmdg", "A", 0, None)]
    (found,) = head_curves(runs, variant_labels(runs), "target")
    assert found.heads[0][1].n == (2, 2)


def test_the_words_name_the_last_values() -> None:
    figure = imbalance_figure(two(), variant_labels(two()))
    (panel,) = figure.panels
    assert panel.title == "Labeled only (ERM)"
    assert label_of(panel) == (
        "Line chart of accuracy of every modality alone and of their fusion on the target in % over training steps, "
        "Labeled only (ERM), average over the targets. Last values: fused 70.0 at step 100, video 50.0 at step 100, "
        "audio 30.0 at step 100."
    )
    assert [label for label, _ in figure.legend] == ["fused", "video", "audio"]


def test_validation_curves_are_a_figure_of_their_own() -> None:
    curves = {"step": [50, 100], "val/fused": [0.5, 0.9], "val/video": [0.5, 0.8], "target/fused": [0.1, 0.1]}
    runs = [make_run("erm", "A", 0, curves=curves)]
    assert imbalance_figure(runs, variant_labels(runs)).panels == ()
    (panel,) = imbalance_figure(runs, variant_labels(runs), "val").panels
    assert "on the sources' validation clips" in panel.description
    assert "fused 90.0 at step 100, video 80.0 at step 100" in panel.description


def test_methods_without_curves_are_named() -> None:
    runs = [*two(), *(make_run("ncm", t, s, curves={"step": [0], "target/fused": [0.5]}) for t in "AB" for s in (0, 1))]
    figure = imbalance_figure(runs, variant_labels(runs))
    assert [panel.title for panel in figure.panels] == ["Labeled only (ERM)"]
    assert figure.notes == ("Without curves of single modalities: Nearest class mean.",)


@pytest.mark.parametrize(
    "changes", [{"modalities": ("video",)}, {"curves": {"step": [50, 100], "target/fused": [0.1, 0.2]}}]
)
def test_one_modality_or_no_curve_of_one_makes_no_section(changes: dict[str, object]) -> None:
    if "curves" in changes:
        runs = [make_run("erm", "A", 0, **changes)]  # type: ignore[arg-type]
    else:
        runs = [run("A", 0, [0.1, 0.2], [0.1, 0.2], [0.1, 0.2], **changes)]
    figure = imbalance_figure(runs, variant_labels(runs))
    assert figure.panels == figure.notes == ()
    assert "Single modalities and their fusion" not in render_page(ReportInputs(runs))


def test_the_page_has_both_parts() -> None:
    page = render_page(ReportInputs(two()))
    assert "Single modalities and their fusion" in page
    assert "Accuracy on the target of every modality" in page
    assert "Accuracy on the sources&#39; validation clips" not in page


def test_heads_look_the_same_everywhere() -> None:
    one = head_styles(dict.fromkeys(["fused", "video", "depth"]))
    two = head_styles(dict.fromkeys(["fused", "audio", "video", "depth", "touch"]))
    assert one["video"] == two["video"]
    assert one["depth"] == two["depth"]
    assert len(set(two.values())) == 5
