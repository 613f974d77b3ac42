"""Ablations as bars of the difference to a reference, and sensitivity to one hyperparameter as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.reports.ablation import Ablation, Bar, Sensitivity, SweptLine, ablations, choices, sensitivities
from pipeline.reports.choice import KEPT, MOST, best, left_out
from pipeline.reports.drawing import BLUE, INK, draw_bars, empty_figure, finish_axes, house_style, short, svg_text
from pipeline.reports.figures import (
    PANEL,
    Panel,
    PanelFigure,
    Style,
    draw_line,
    legend_of,
    padded,
    style_at,
)
from pipeline.reports.results import ResultTable
from pipeline.reports.wording import percent, signed_percent
from pipeline.types import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 3.4  # inches
ROW = 0.36  # inches per bar with its label above
MOST_BARS = 24
MOST_PANELS = 24
LETTERS = 46  # of a label
LOGARITHMIC = 20  # from this ratio of the largest to the smallest value on


@house_style()
def ablation_figure(
    results: Sequence[RunResult],
    cases: Mapping[str, str],
    tables: Sequence[tuple[str, ResultTable]],
    prefix: str = "ablation",
) -> PanelFigure:
    """Draw bars of the difference to a reference with the confidence interval of the paired difference over seeds.

    Args:
        results: all runs.
        cases: name of the case per run id, in the order in which they are named, the reference first; without cases
            the hyperparameters that are names are compared with the baseline.
        tables: (title, table) of every setting.
        prefix: start of every id in the drawings; different for every figure of a page.
    """
    found, notes = ablations(results, cases) if cases else (choices(tables), [])
    panels = []
    for i, one in enumerate(found[:MOST_PANELS]):
        shown = _largest(one)
        rest = [bar.label for bar in one.bars if bar not in set(shown)]
        if rest:
            notes.append(f"{one.title}: {left_out(rest, len(shown), 'those with the largest differences')}")
        words = describe_bars(one, shown)
        panels.append(Panel(one.title, words, _bars(shown, f"{prefix}-{i}", words)))
    if found and all(bar.paired.interval is None for one in found for bar in one.bars):
        notes.append("No confidence intervals: the bootstrap needs 3 seeds or more.")
    return PanelFigure(tuple(panels), (), (*notes, *_beyond(len(found))))


@house_style()
def sensitivity_figure(
    tables: Sequence[tuple[str, ResultTable]], fewest: int = 2, prefix: str = "sensitivity"
) -> PanelFigure:
    """Draw mean accuracy ± one standard error against the values of one hyperparameter, one panel for each.

    Args:
        tables: (title, table) of every setting.
        fewest: values of the longest line that make a panel worth while.
        prefix: start of every id in the drawings; different for every figure of a page.
    """
    found = [one for one in sensitivities(tables) if max(len(line.points) for line in one.lines) >= fewest]
    drawn = [(one, _best_lines(one)) for one in found[:MOST_PANELS]]
    labels = dict.fromkeys(line.label for _, lines in drawn for line in lines)
    looks = {label: style_at(i) for i, label in enumerate(labels)}
    edges = [
        100 * (p.mean + sign * (p.se or 0))
        for _, lines in drawn
        for line in lines
        for p in line.points
        for sign in (-1, 1)
    ]
    panels, notes = [], []
    for i, (one, lines) in enumerate(drawn):
        rest = [line.label for line in one.lines if line not in set(lines)]
        if rest:
            what = f"the {KEPT} lines with the highest mean accuracy"
            notes.append(f"{one.name}, {one.title}: {left_out(rest, len(lines), what)}")
        figure, axes = empty_figure(PANEL)
        for line in lines:
            _draw_line(axes, line, looks[line.label])
        finish_axes(axes, one.name, "target accuracy, %", padded(min(edges), max(edges)))
        _value_axis(axes, sorted({point.value for line in lines for point in line.points}))
        words = describe_lines(one, lines)
        panels.append(Panel(f"{one.name}, {one.title}", words, svg_text(figure, f"{prefix}-{i}", words)))
    return PanelFigure(tuple(panels), tuple(legend_of(looks, prefix)), (*notes, *_beyond(len(found))))


def _beyond(panels: int) -> tuple[str, ...]:
    if panels <= MOST_PANELS:
        return ()
    return (f"The first {MOST_PANELS} of {panels} comparisons are drawn; a report of fewer runs shows the others.",)


def _largest(one: Ablation) -> list[Bar]:
    """All bars, or those with the largest differences in their order."""
    if len(one.bars) <= MOST_BARS:
        return list(one.bars)
    order = sorted(one.bars, key=lambda bar: -abs(bar.paired.mean))
    kept = set(order[:MOST])
    return [bar for bar in one.bars if bar in kept]


def _best_lines(one: Sensitivity) -> list[SweptLine]:
    return best({line: sum(point.mean for point in line.points) / len(line.points) for line in one.lines})


def _bars(bars: Sequence[Bar], prefix: str, words: str) -> str:
    """Bars from zero, each below its label, with the interval as a line."""
    figure, axes = empty_figure((WIDTH, 0.5 + ROW * len(bars)), left=0.03)
    edges = [0.0]
    for place, bar in enumerate(bars):
        value = 100 * bar.paired.mean
        axes.barh([place + 0.2], [value], height=0.42, color=BLUE, alpha=0.75, linewidth=0)
        ends = [100 * end for end in bar.paired.interval] if bar.paired.interval else [value]
        edges += [value, *ends]
        if bar.paired.interval:
            axes.plot(ends, [place + 0.2] * 2, color=INK, lw=1.1, marker="|", ms=5, solid_capstyle="butt")
    low, high = min(edges), max(edges)
    margin = max(0.5, 0.08 * (high - low))
    limits = (low - margin, high + margin)
    for place, bar in enumerate(bars):
        axes.plot([0, 0], [place - 0.08, place + 0.48], color=INK, lw=0.9, solid_capstyle="butt")
        axes.text(limits[0], place - 0.2, short(bar.label, LETTERS), va="center", ha="left", parse_math=False)
        axes.text(limits[1], place - 0.2, signed_percent(bar.paired.mean), va="center", ha="right", parse_math=False)
    finish_axes(axes, "difference, percentage points", "", limits, horizontal=True)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_yticks([])
    return svg_text(figure, prefix, words)


def _draw_line(axes: Axes, line: SweptLine, style: Style) -> None:
    values, means = [point.value for point in line.points], [100 * point.mean for point in line.points]
    draw_bars(axes, means, [100 * (point.se or 0) for point in line.points], values, style.colour)
    draw_line(axes, values, means, style)


def _value_axis(axes: Axes, values: Sequence[float]) -> None:
    """A tick per value while they are few, on a logarithmic axis where all are positive and span much."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if values[0] > 0 and values[-1] >= LOGARITHMIC * values[0]:
        axes.set_xscale("log")
    if len(values) <= 6:
        axes.xaxis.set_major_locator(FixedLocator(list(values)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif axes.get_xscale() == "linear":
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(5))


def describe_bars(one: Ablation, bars: Sequence[Bar]) -> str:
    """One paragraph for those who cannot see the drawing: every difference with its interval."""
    texts = []
    for bar in bars:
        text = f"{bar.label} {signed_percent(bar.paired.mean)}"
        if bar.paired.interval:
            text += f" [{', '.join(map(signed_percent, bar.paired.interval))}]"
        texts.append(f"{text} (n={bar.paired.n})")
    reference = one.reference if one.reference_mean is None else f"{one.reference}, {percent(one.reference_mean)} %"
    return (
        f"Bar chart of differences of target accuracy to {reference}, in percentage points, average over the targets, "
        f"paired by seed, {one.title}. {'; '.join(texts)}."
    )


def describe_lines(one: Sensitivity, lines: Sequence[SweptLine]) -> str:
    """One paragraph for those who cannot see the drawing: every value."""

    def text(mean: float, se: float | None) -> str:
        return percent(mean) if se is None else f"{percent(mean)} ± {percent(se)}"

    parts = [
        f"{line.label} {', '.join(f'{text(p.mean, p.se)} at {p.value:g} (n={p.n})' for p in line.points)}"
        for line in lines
    ]
    return f"Line chart of target accuracy in % over {one.name}, {one.title}. {'; '.join(parts)}."
