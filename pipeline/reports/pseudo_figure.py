"""Pseudo-labels under the microscope: coverage and precision per class and domain, and what single modalities say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.reports.drawing import GRID, PAPER, draw_bars, empty_figure, finish_axes, house_style, short, svg_text
from pipeline.reports.figures import Panel, PanelFigure, Style, legend_of
from pipeline.reports.results import unique_runs
from pipeline.reports.settings import Variant, runs_by_variant
from pipeline.reports.statistics import mean_and_standard_error
from pipeline.reports.wording import percent
from pipeline.types import RunResult

WIDTH = 3.1  # inches
MOST_GROUPS = 30  # rows of a panel; beyond, those of the lowest values are drawn
LETTERS = 16  # of a row's label
LETTER = 0.074  # inches of one, about
KINDS = {  # (group, quantity): what a panel shows
    ("class", "coverage"): "coverage per true class",
    ("class", "precision"): "precision per pseudo-class",
    ("domain", "coverage"): "coverage per source domain",
    ("domain", "precision"): "precision per source domain",
    ("modality", "agree"): "agreement of each modality",
    ("modality", "right"): "accuracy of each modality alone",
}


@dataclass(frozen=True, slots=True)
class Dot:
    """A share (0..1) at the last evaluation: mean over n runs that have a number there."""

    mean: float
    se: float | None  # None for n < 2
    n: int


@dataclass(frozen=True, slots=True)
class Dots:
    """One method's shares per class, domain or modality."""

    label: str
    variant: Variant
    second: int  # 0 for the first of a method's masks, then 1, 2, ...
    of_group: Mapping[str, Dot]


def microscope(runs: Sequence[RunResult], labels: Mapping[Variant, str]) -> dict[tuple[str, str], list[Dots]]:
    """Read the last evaluation of every run: (group, quantity) -> one entry per method and mask.

    Args:
        runs: of one setting; diverged ones are left out.
        labels: names of the variants wanted.
    """
    found: dict[tuple[str, str], list[Dots]] = {}
    finished = [run for run in unique_runs(runs) if run.status == "finished"]
    for variant, own in runs_by_variant(finished).items():
        if variant not in labels:
            continue
        values: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
        for run in own:
            for name, curve in run.curves.items():
                parsed = parse_curve(name)
                if parsed and curve and curve[-1] is not None:
                    kind, mask, group = parsed
                    values.setdefault(kind, {}).setdefault(mask, {}).setdefault(group, []).append(curve[-1])
        for kind, of_mask in values.items():
            for place, mask in enumerate(sorted(of_mask)):
                dots = {group: Dot(*mean_and_standard_error(v), len(v)) for group, v in of_mask[mask].items()}
                label = (
                    f"{labels[variant]}, {mask.replace('nonconsensus', 'non-consensus')}" if mask else labels[variant]
                )
                found.setdefault(kind, []).append(Dots(label, variant, place, dots))
    return found


def parse_curve(name: str) -> tuple[tuple[str, str], str, str] | None:
    """((group, quantity), mask, name of the class, domain or modality) of a curve; None if it is none of these.

    Names of classes and domains may hold slashes.
    """
    parts = name.split("/", 3)
    if parts[0] != "pseudo":
        return None
    if len(parts) == 4 and parts[2] in ("class", "domain"):
        group, _, quantity = parts[3].rpartition("/")
        return ((parts[2], quantity), parts[1], group) if (parts[2], quantity) in KINDS else None
    if len(parts) == 3 and ("modality", parts[1]) in KINDS:
        return ("modality", parts[1]), "", parts[2]
    return None


@house_style()
def microscope_figure(
    runs: Sequence[RunResult],
    labels: Mapping[Variant, str],
    look: Mapping[Variant, Style],
    prefix: str = "microscope",
) -> PanelFigure:
    """Draw one dot per method and class, domain or modality, with a bar of ± one standard error over the runs.

    Args:
        runs: of one setting.
        labels: names of the variants that are drawn.
        look: styles shared by the figures of a page.
        prefix: start of every id in the drawings; different for every figure of a page.
    """
    found = microscope(runs, labels)
    classes = runs[0].spec.classes if runs else ()
    panels: list[Panel] = []
    notes: list[str] = []
    entries: dict[str, Style] = {}
    masked = {dots.variant for (group, _), series in found.items() if group != "modality" for dots in series}
    for kind, title in KINDS.items():
        series = found.get(kind, [])
        names = list(dict.fromkeys(name for dots in series for name in dots.of_group))
        order = [name for name in classes if name in names] if kind[0] == "class" else sorted(names)
        rows = _lowest(order, series)
        if not rows:
            continue
        if len(rows) < len(order):
            notes.append(f"{title}: the {len(rows)} lowest of {len(order)} are drawn.")
        styles = {dots.label: _style(look[dots.variant], dots.second) for dots in series}
        own = [dots for dots in series if kind[0] != "modality" or dots.variant not in masked]
        entries |= {dots.label: styles[dots.label] for dots in own}
        words = _describe(title, rows, series)
        panels.append(Panel(title, words, _dots(rows, series, styles, f"{prefix}-{len(panels)}", words)))
    return PanelFigure(tuple(panels), tuple(legend_of(entries, prefix)), tuple(notes))


def _style(style: Style, second: int) -> Style:
    """A second mask keeps the method's colour and marker, and is open."""
    return Style(style.colour, (), style.marker, filled=not second)


def _lowest(names: Sequence[str], series: Sequence[Dots]) -> list[str]:
    """All names, or those with the lowest means over the methods, in their order."""
    if len(names) <= MOST_GROUPS:
        return list(names)
    means = {n: [dots.of_group[n].mean for dots in series if n in dots.of_group] for n in names}
    kept = set(sorted(names, key=lambda name: sum(means[name]) / len(means[name]))[:MOST_GROUPS])
    return [name for name in names if name in kept]


def _dots(rows: Sequence[str], series: Sequence[Dots], styles: Mapping[str, Style], prefix: str, words: str) -> str:
    """A row per class, domain or modality; the methods lie below each other in it."""
    step = 0.085  # inches between two methods
    height = max(0.2, step * (len(series) + 0.8))
    names = [short(name, LETTERS) for name in rows]
    left = max(0.2, (LETTER * max(map(len, names)) + 0.1) / WIDTH)
    figure, axes = empty_figure((WIDTH, 0.5 + height * len(rows)), left)
    axes.hlines([place + 0.5 for place in range(len(rows) - 1)], -2, 102, color=GRID, lw=0.6)
    for i, dots in enumerate(series):
        style, shift = styles[dots.label], (i - (len(series) - 1) / 2) * step / height
        known = [(place + shift, dots.of_group[name]) for place, name in enumerate(rows) if name in dots.of_group]
        means, places = [100 * dot.mean for _, dot in known], [place for place, _ in known]
        errors = [100 * (dot.se or 0) for _, dot in known]
        draw_bars(axes, means, errors, places, style.colour, horizontal=True)
        face = style.colour if style.filled else PAPER
        axes.plot(means, places, style.marker, color=style.colour, markerfacecolor=face, zorder=3)
    finish_axes(axes, "%", "", (-2, 102), horizontal=True)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)))
    for label in axes.set_yticklabels(names):
        label.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    return svg_text(figure, prefix, words)


def _describe(title: str, rows: Sequence[str], series: Sequence[Dots]) -> str:
    """One paragraph for those who cannot see the drawing: every mean."""
    lines = []
    for dots in series:
        known = [f"{name} {percent(dots.of_group[name].mean)}" for name in rows if name in dots.of_group]
        lines.append(f"{dots.label}: {', '.join(known)}")
    return f"Dot plot of pseudo-labels at the last evaluation, {title}, %. {'; '.join(lines)}."
