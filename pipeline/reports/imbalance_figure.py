"""Modality imbalance: how well every modality alone and their fusion do, while they train together.

As in figure 1 of B-MM (arXiv 2510.10986): a modality that is learned early can keep the others from being learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.reports.drawing import BLUE, INK, empty_figure, finish_axes, house_style, svg_text
from pipeline.reports.figures import (
    COLOURS,
    DASHES,
    PANEL,
    Panel,
    PanelFigure,
    Series,
    Style,
    describe,
    draw_series,
    extent,
    legend_of,
    padded,
    style_at,
)
from pipeline.reports.results import Column, Seed, columns_of, seed_of, unique_runs
from pipeline.reports.settings import Variant, runs_by_variant
from pipeline.reports.statistics import Band, band
from pipeline.types import RunResult

FUSED = "fused"
HEADS = {  # always the same look; other modalities take what follows
    FUSED: Style(INK, (), "o"),
    "video": Style(BLUE, DASHES[1], "s"),
    "flow": Style(COLOURS[2], DASHES[2], "^"),
    "audio": Style(COLOURS[3], DASHES[3], "D"),
}
PARTS = {"target": "on the target", "val": "on the sources' validation clips"}


@dataclass(frozen=True, slots=True)
class HeadCurves:
    """Accuracy over steps of every head of one method."""

    label: str
    heads: tuple[tuple[str, Band], ...]  # fused first, then the modalities in fusion order


def head_curves(runs: Sequence[RunResult], labels: Mapping[Variant, str], part: str) -> list[HeadCurves]:
    """Accuracies of the heads of every method, averaged over the targets seed by seed.

    Args:
        runs: of one setting; diverged ones are left out.
        labels: names of the variants wanted.
        part: ``target`` or ``val``.

    Returns:
        One entry per variant that has two evaluations or more and a modality's own curve; mean and standard error are
        over the seeds that have every target at that step.
    """
    finished = [run for run in unique_runs(runs) if run.status == "finished" and len(run.curves.get("step", ())) > 1]
    columns = columns_of(runs)
    found = []
    for variant, own in runs_by_variant(finished).items():
        names = [name for name in (FUSED, *own[0].spec.modalities) if any(f"{part}/{name}" in r.curves for r in own)]
        if variant in labels and len(own[0].spec.modalities) > 1 and any(name != FUSED for name in names):
            bands = ((name, _seed_band(own, f"{part}/{name}", columns)) for name in names)
            heads = tuple((name, one) for name, one in bands if any(one.n))
            if heads:
                found.append(HeadCurves(labels[variant], heads))
    return found


def _seed_band(runs: Sequence[RunResult], name: str, columns: Sequence[Column]) -> Band:
    """Mean over the seeds of the average over the targets, step by step."""
    by_seed: dict[Seed, dict[float, list[float]]] = {}
    for run in runs:
        at_step = by_seed.setdefault(seed_of(run), {})
        for step, value in zip(run.curves["step"], run.curves.get(name, ()), strict=False):
            if step is not None and value is not None:
                at_step.setdefault(step, []).append(value)
    curves = []
    for at_step in by_seed.values():
        whole = {step: sum(values) / len(values) for step, values in at_step.items() if len(values) == len(columns)}
        curves.append((tuple(whole), tuple(whole.values())))
    return band(curves)


@house_style()
def imbalance_figure(
    runs: Sequence[RunResult], labels: Mapping[Variant, str], part: str = "target", prefix: str = "heads"
) -> PanelFigure:
    """Draw one panel per method with a line per head: mean over the seeds, band of ± one standard error.

    Args:
        runs: of one setting.
        labels: names of the variants that are drawn.
        part: ``target`` or ``val``: which clips the accuracies are of.
        prefix: start of every id in the drawings.
    """
    found = head_curves(runs, labels, part)
    edges = [value for one in found for _, line in one.heads for value in extent(line)]
    if not edges:
        return PanelFigure((), ())
    looks = head_styles(dict.fromkeys(name for one in found for name, _ in one.heads))
    limits = padded(min(edges), max(edges))
    panels = []
    for i, one in enumerate(found):
        figure, axes = empty_figure(PANEL)
        series = [Series(name, looks[name], line) for name, line in one.heads]
        for order, line in enumerate(series):
            draw_series(axes, line, order, len(series))
        finish_axes(axes, "step", "accuracy, %", limits)
        title = f"{one.label}, average over the targets" if len(columns_of(runs)) > 1 else one.label
        words = describe(f"accuracy of every modality alone and of their fusion {PARTS[part]}", title, series)
        panels.append(Panel(one.label, words, svg_text(figure, f"{prefix}-{i}", words)))
    drawn = {one.label for one in found}
    without = [label for label in labels.values() if label not in drawn]
    notes = (f"Without curves of single modalities: {'; '.join(without)}.",) if without else ()
    return PanelFigure(tuple(panels), tuple(legend_of(looks, prefix)), notes)


def head_styles(names: Mapping[str, None]) -> dict[str, Style]:
    """A style for every head; the usual ones always look the same."""
    others = [name for name in names if name not in HEADS]
    return {name: HEADS[name] if name in HEADS else style_at(len(HEADS) + others.index(name)) for name in names}
