"""Figures as inline SVG: one small panel per target, so that a page can lay them out for any width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.reports.drawing import (
    BLUE,
    INK,
    MARKED,
    PAPER,
    draw_band,
    draw_bars,
    empty_figure,
    finish_axes,
    house_style,
    legend_sample,
    svg_text,
)
from pipeline.reports.results import METRIC, ResultTable, unique_runs
from pipeline.reports.settings import METHOD_NAMES, Setting, Variant, method_order, variant_labels
from pipeline.reports.statistics import Band, band
from pipeline.reports.tables import percent
from pipeline.types import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours without yellow, which is too pale for lines; the first stands for their black.
COLOURS = (INK, BLUE, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (8, 2, 2, 2), (2, 1.5), (10, 3))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

PANEL = (3.1, 2.2)  # inches
POINTS_PANEL = (2.4, 0.56)  # inches, plus the rows
POINTS_ROW = 0.26  # inches per method


@dataclass(frozen=True, slots=True)
class Style:
    """How a series is drawn; told apart by colour, dashes and marker."""

    colour: str
    dashes: tuple[float, ...]  # on, off, ... in points; empty: solid
    marker: str  # matplotlib's name
    filled: bool = True  # markers filled, or open


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing with what it shows in words."""

    title: str  # plain text, to be escaped by whoever prints it
    description: str  # plain text; also the drawing's aria-label
    svg: str


@dataclass(frozen=True, slots=True)
class PanelFigure:
    """Panels that share their axes and one legend; without panels there was nothing to draw."""

    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...]  # (label as plain text, SVG sample)
    notes: tuple[str, ...] = ()  # plain sentences that stand below it, or in its place


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart with its band."""

    label: str
    style: Style
    band: Band


def styles(variants: Iterable[Variant]) -> dict[Variant, Style]:
    """One style per variant; the known methods always look the same."""
    variants = sorted(set(variants), key=lambda variant: variant.order)
    unknown = sorted({v.method for v in variants if v.method not in METHOD_NAMES}, key=method_order)
    first = {method: i for i, method in enumerate([*METHOD_NAMES, *unknown])}
    taken: set[int] = set()
    chosen = {}
    for variant in variants:
        i = first[variant.method]
        while i in taken:
            i = max(len(first), i + 1)
        taken.add(i)
        chosen[variant] = style_at(i)
    return chosen


def shared_styles(tables: Iterable[ResultTable]) -> dict[Variant, Style]:
    """One style per variant for several tables: what has one name in different tables looks the same in them.

    A default that depends on the modalities makes a method another variant for each set of them.
    """
    stands_for: dict[Variant, Variant] = {}
    named: dict[str, Variant] = {}
    for table in sorted(tables, key=lambda table: -len(table.rows)):
        here: set[Variant] = set()
        for row in table.rows:
            known = stands_for.get(row.variant, named.get(row.label, row.variant))
            if known in here:  # two rows of a table never look the same
                known = row.variant
            here.add(known)
            stands_for[row.variant] = known
            named.setdefault(row.label, known)
    chosen = styles(stands_for.values())
    return {variant: chosen[known] for variant, known in stands_for.items()}


def style_at(i: int) -> Style:
    """The i-th style; every round of the colours has other markers."""
    rounds = i // len(COLOURS)
    return Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[(i + rounds) % len(MARKERS)])


def learning_curves(
    results: Sequence[RunResult],
    prefix: str = "curves",
    look: Mapping[Variant, Style] | None = None,
    labels: Mapping[Variant, str] | None = None,
) -> PanelFigure:
    """Draw target accuracy over steps: mean over seeds and a band of ± one standard error, one panel per target.

    Args:
        results: runs of one setting; diverged runs are left out.
        prefix: start of every id in the drawings; different for every figure of a page.
        look: styles shared by the figures of a page.
        labels: names of the variants that are drawn; None: of all.
    """
    if not results:
        return PanelFigure((), ())
    chance = Setting.of(results[0]).chance
    shown = labels or variant_labels(results)
    return _figure(results, _fused, "target accuracy", prefix, look or styles(shown), shown, chance=chance)


def pseudo_label_curves(
    results: Sequence[RunResult],
    prefix: str = "pseudo",
    look: Mapping[Variant, Style] | None = None,
    labels: Mapping[Variant, str] | None = None,
) -> tuple[PanelFigure, PanelFigure]:
    """Draw coverage and precision of the pseudo-labels over steps, one panel per target each.

    Where no run accepted a pseudo-label the precision has a gap. Arguments as for ``learning_curves``.
    """
    shown = labels or variant_labels(results)
    look = look or styles(shown)
    coverage = _figure(results, _masks("coverage"), "coverage", f"{prefix}-coverage", look, shown, bottom=0)
    precision = _figure(
        results, _masks("precision"), "precision", f"{prefix}-precision", look, shown, bottom=0, top=100
    )
    return coverage, precision


@house_style()
def result_points(
    table: ResultTable, prefix: str = "points", look: Mapping[Variant, Style] | None = None
) -> PanelFigure:
    """Draw every seed's accuracy with mean and standard error: one panel per target, and one for their average."""
    look = look or styles(row.variant for row in table.rows)
    drawn = [100 * value for row in table.rows for cell in row.cells for value in cell.values]
    if not drawn:
        return PanelFigure((), ())
    drawn += [100 * (c.mean + s * c.se) for r in table.rows for c in r.cells if c.mean and c.se for s in (-1, 1)]
    limits = padded(min(drawn), max(drawn))
    panels = []
    for column, name in enumerate(table.columns if len(table.columns) > 2 else table.columns[:1]):
        figure, axes = empty_figure((POINTS_PANEL[0], POINTS_PANEL[1] + POINTS_ROW * len(table.rows)), left=0.05)
        for place, row in enumerate(table.rows):
            cell, style = row.cells[column], look[row.variant]
            values = [100 * value for value in cell.values]
            axes.plot(values, [place + 0.22] * len(values), "o", color=style.colour, alpha=0.5, ms=3.2, mew=0)
            if cell.mean is not None:
                mean, error = [100 * cell.mean], [100 * (cell.se or 0)]
                draw_bars(axes, mean, error, [place - 0.12], style.colour, horizontal=True)
                axes.plot(mean, [place - 0.12], color=style.colour, marker=style.marker, ms=5)
        finish_axes(axes, "accuracy, %", "", limits, horizontal=True)
        axes.set_ylim(len(table.rows) - 0.35, -0.6)
        axes.set_yticks([])
        means = ", ".join(f"{row.label} {percent(row.cells[column].mean)}" for row in table.rows)
        target = name if "→" in name else f"target {name}"
        title = target if column < len(table.columns) - 1 else "average over the targets"
        description = f"Dot plot of accuracy in % per seed, {title}. Means: {means}."
        panels.append(Panel(title, description, svg_text(figure, f"{prefix}-{column}", description)))
    samples = [legend_sample(look[row.variant], f"{prefix}-key-{i}") for i, row in enumerate(table.rows)]
    return PanelFigure(tuple(panels), tuple(zip((row.label for row in table.rows), samples, strict=True)))


_Curves = Callable[[RunResult], dict[str, Sequence[float | None]]]  # mask name ("" for none) -> curve


def _fused(result: RunResult) -> dict[str, Sequence[float | None]]:
    curve = result.curves.get(METRIC)
    return {} if curve is None else {"": curve}


def _masks(kind: str) -> _Curves:
    def read(result: RunResult) -> dict[str, Sequence[float | None]]:
        parts = ((name.split("/"), curve) for name, curve in result.curves.items())
        found = {p[1]: curve for p, curve in parts if len(p) == 3 and p[0] == "pseudo" and p[2] == kind}
        return dict(sorted(found.items()))

    return read


def _series(
    results: Sequence[RunResult], curves: _Curves, labels: Mapping[Variant, str], look: Mapping[Variant, Style]
) -> list[Series]:
    """Bands of all variants and masks of one target."""
    found: dict[tuple[Variant, str], list[tuple[Sequence[float | None], Sequence[float | None]]]] = {}
    for result in results:
        for mask, curve in curves(result).items():
            found.setdefault((Variant.of(result), mask), []).append((result.curves["step"], curve))
    series = []
    for variant, label in labels.items():
        for place, mask in enumerate(sorted(mask for v, mask in found if v == variant)):
            style = look[variant]
            if place:  # a second mask keeps the method's colour
                style = Style(style.colour, (1, 1.6 * place), style.marker, filled=False)
            text = f"{label}, {mask.replace('nonconsensus', 'non-consensus')}" if mask else label
            series.append(Series(text, style, band(found[(variant, mask)])))
    return series


@house_style()
def _figure(
    results: Sequence[RunResult],
    curves: _Curves,
    quantity: str,
    prefix: str,
    look: Mapping[Variant, Style],
    labels: Mapping[Variant, str],
    *,
    chance: float | None = None,
    bottom: float | None = None,
    top: float | None = None,
) -> PanelFigure:
    """Panels of one quantity with shared limits; see ``learning_curves``."""
    finished = [run for run in unique_runs(results) if run.status == "finished" and "step" in run.curves]
    pairs = sorted({(result.spec.target, result.spec.sources) for result in finished})
    single = len({target for target, _ in pairs}) == len(pairs)
    drawn: list[tuple[str, list[Series]]] = []
    for target, sources in pairs:
        runs = [r for r in finished if (r.spec.target, r.spec.sources) == (target, sources)]
        title = f"target {target}" if single else f"{', '.join(sources)} → {target}"
        series = [one for one in _series(runs, curves, labels, look) if any(n > 0 for n in one.band.n)]
        if series:
            drawn.append((title, series))
    values = [v for _, series in drawn for s in series for v in extent(s.band)]
    if not values:
        return PanelFigure((), ())
    low, high = padded(min([*values, *([100 * chance] if chance else [])]), max(values))
    limits = (low if bottom is None else bottom, high if top is None else top)
    panels = []
    for i, (title, series) in enumerate(drawn):
        figure, axes = empty_figure(PANEL)
        if chance is not None:
            axes.axhline(100 * chance, color=INK, lw=0.8, dashes=(1, 2), zorder=1)
        for order, one in enumerate(series):
            draw_series(axes, one, order, len(series))
        finish_axes(axes, "step", f"{quantity}, %", limits)
        description = describe(quantity, title, series)
        panels.append(Panel(title, description, svg_text(figure, f"{prefix}-{i}", description)))
    legend = legend_of({one.label: one.style for _, series in drawn for one in series}, prefix)
    if chance is not None:
        legend.append(("chance", legend_sample(Style(INK, (1, 2), "", filled=False), f"{prefix}-key-chance")))
    return PanelFigure(tuple(panels), tuple(legend))


def legend_of(entries: Mapping[str, Style], prefix: str) -> list[tuple[str, str]]:
    """Label and sample of every line."""
    return [(label, legend_sample(style, f"{prefix}-key-{i}")) for i, (label, style) in enumerate(entries.items())]


def extent(band: Band) -> list[float]:
    """Lower and upper edges of a band, in percent."""
    rows = zip(band.mean, band.se, strict=True)
    return [100 * (mean + sign * (se or 0)) for mean, se in rows if mean is not None for sign in (-1, 1)]


def padded(low: float, high: float) -> tuple[float, float]:
    """Limits in percent with a margin; half a point above 100 at most, so that a line at 100 is not cut."""
    margin = max(1.0, 0.06 * (high - low))
    return max(0.0, low - margin), min(100.0 + 0.5, high + margin)


def draw_series(axes: Axes, series: Series, order: int, count: int) -> None:
    """Draw one mean line with its band; markers are sparse and staggered so that overlapping lines stay legible."""
    nan = float("nan")
    steps, style = series.band.steps, series.style
    mean = [nan if value is None else 100 * value for value in series.band.mean]
    error = [nan if value is None else 100 * value for value in series.band.se]
    lower = [m - e for m, e in zip(mean, error, strict=True)]
    upper = [m + e for m, e in zip(mean, error, strict=True)]
    draw_band(axes, steps, lower, upper, style.colour)
    every = max(1, -(-len(steps) // MARKED))
    alone = {
        i
        for i, value in enumerate(mean)
        if value == value and all(mean[j] != mean[j] for j in (i - 1, i + 1) if 0 <= j < len(mean))
    }
    start = order * every // max(1, count)
    marked = sorted({*range(start, len(steps), every), *alone})
    axes.plot(
        steps,
        mean,
        color=style.colour,
        dashes=style.dashes or (None, None),
        marker=style.marker,
        markevery=marked,
        markerfacecolor=style.colour if style.filled else PAPER,
        zorder=3 + order,
    )


def draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], style: Style) -> None:
    """Draw a line with a marker at every point."""
    face = style.colour if style.filled else PAPER
    dashes = style.dashes or (None, None)
    axes.plot(x, y, color=style.colour, dashes=dashes, marker=style.marker, markerfacecolor=face, zorder=3)


def describe(quantity: str, title: str, series: Sequence[Series]) -> str:
    """One paragraph for those who cannot see the drawing."""
    ends = []
    for one in series:
        last = [(step, mean) for step, mean in zip(one.band.steps, one.band.mean, strict=True) if mean is not None][-1]
        ends.append(f"{one.label} {100 * last[1]:.1f} at step {last[0]:g}")
    return f"Line chart of {quantity} in % over training steps, {title}. Last values: {', '.join(ends) or 'none'}."
