"""Label-budget curves: target accuracy against the number of labels, one panel per thing that is otherwise equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.reports.choice import KEPT, best, left_out
from pipeline.reports.drawing import INK, draw_bars, empty_figure, finish_axes, house_style, svg_text
from pipeline.reports.figures import PANEL, Panel, PanelFigure, Style, draw_line, legend_of, padded, styles
from pipeline.reports.results import METRIC, Column, Seed, columns_of, finished_values, seed_averages
from pipeline.reports.settings import UPPER_BOUNDS, Setting, Variant, label_variants, runs_by_variant, setting_titles
from pipeline.reports.statistics import mean_and_standard_error
from pipeline.reports.wording import percent
from pipeline.types import PerClass, RunResult, parse_budget

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Groups = Sequence[tuple[Setting, Sequence[RunResult]]]
UNITS = {True: "labeled clips per class and source domain", False: "labeled share of each class, %"}
LOGARITHMIC = 4  # from this ratio of the largest to the smallest budget on
CHANCE = Style(INK, (1, 2), "", filled=False)
DODGE = 0.012  # of the axis, between lines that would cover each other


@dataclass(frozen=True, slots=True)
class BudgetPoint:
    """Accuracy (0..1) of one method with one budget: mean over n seeds of the average over the targets."""

    size: float  # clips per class and source domain, or percent of each class
    mean: float
    se: float | None  # None for n < 2
    n: int


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """One method over the budgets; an upper bound does not depend on them and has one point, of size 0."""

    label: str
    variant: Variant
    points: tuple[BudgetPoint, ...]  # by increasing size


@dataclass(frozen=True, slots=True)
class BudgetPanel:
    """Everything that differs only in the budget."""

    title: str
    unit: str
    sizes: tuple[float, ...]  # budgets that were run, increasing
    lines: tuple[BudgetLine, ...]
    bounds: tuple[BudgetLine, ...]
    chance: float  # 0..1


def budget_panels(groups: Groups) -> list[BudgetPanel]:
    """Sort settings into panels: those that agree in all but the budget, have the same targets, and are two or more."""
    families: dict[tuple[Setting, bool, tuple[Column, ...]], dict[float, Sequence[RunResult]]] = {}
    for setting, runs in groups:
        budget = parse_budget(setting.budget)
        per_class = isinstance(budget, PerClass)
        size = float(budget.count) if isinstance(budget, PerClass) else 100 * budget.share
        key = (replace(setting, budget=""), per_class, tuple(columns_of(runs)))
        families.setdefault(key, {})[size] = runs
    shown = {key: of_size for key, of_size in families.items() if len(of_size) > 1}
    titles = setting_titles([setting for setting, _, _ in shown], _name)
    panels = []
    for title, ((setting, per_class, columns), of_size) in zip(titles, shown.items(), strict=True):
        twins = [key for other, key in zip(titles, shown, strict=True) if other == title]
        more = ["per class" if per_class else "share of each class"] if len({kind for _, kind, _ in twins}) > 1 else []
        if len({targets for _, _, targets in twins}) > 1:
            more.append(f"targets {', '.join(target for target, _ in columns)}")
        lines, bounds = _lines(of_size, columns)
        if lines:
            whole = f"{title} ({', '.join(more)})" if more else title
            sizes = tuple(sorted(of_size))
            panels.append(BudgetPanel(whole, UNITS[per_class], sizes, lines, bounds, setting.chance))
    return panels


def _name(setting: Setting) -> str:
    return f"{setting.dataset}: {' + '.join(setting.modalities)}"


def _lines(
    of_size: Mapping[float, Sequence[RunResult]], columns: Sequence[Column]
) -> tuple[tuple[BudgetLine, ...], tuple[BudgetLine, ...]]:
    """Lines of the methods and of the upper bounds; those without any value are left out."""
    averages: dict[Variant, dict[float, dict[Seed, float]]] = {}
    for size in sorted(of_size):
        for variant, runs in runs_by_variant(of_size[size]).items():
            found = seed_averages(finished_values(runs, METRIC), columns)
            if found:
                averages.setdefault(variant, {})[size] = found
    lines, bounds = [], []
    for variant, label in label_variants(averages).items():
        if variant.method in UPPER_BOUNDS:
            bounds.append(BudgetLine(label, variant, (_point(0, _pooled(averages[variant])),)))
        else:
            points = tuple(_point(size, found) for size, found in averages[variant].items())
            lines.append(BudgetLine(label, variant, points))
    return tuple(lines), tuple(bounds)


def _pooled(of_size: Mapping[float, Mapping[Seed, float]]) -> dict[Seed, float]:
    """Mean over the budgets per seed: an upper bound is given all labels whatever its budget says."""
    seeds = sorted({seed for found in of_size.values() for seed in found})
    of_seed = {seed: [found[seed] for found in of_size.values() if seed in found] for seed in seeds}
    return {seed: sum(values) / len(values) for seed, values in of_seed.items()}


def _point(size: float, averages: Mapping[Seed, float]) -> BudgetPoint:
    mean, se = mean_and_standard_error(averages.values())
    return BudgetPoint(size, mean, se, len(averages))


@house_style()
def budget_figure(
    groups: Groups, prefix: str = "budgets", look: Mapping[Variant, Style] | None = None, baseline: str = "erm"
) -> PanelFigure:
    """Draw mean accuracy ± one standard error over seeds against the budget, with upper bounds as horizontal lines.

    Args:
        groups: runs by setting.
        prefix: start of every id in the drawings; different for every figure of a page.
        look: styles shared by the figures of a page.
        baseline: method that is drawn even where there are too many.
    """
    whole = budget_panels(groups)
    found = [panel for panel in whole if max(len(line.points) for line in panel.lines) > 1]
    notes = [f"{p.title}: not drawn, no method has a value for two budgets." for p in whole if p not in found]
    if not found:
        return PanelFigure((), (), tuple(notes))
    look = look or styles(line.variant for panel in found for line in (*panel.lines, *panel.bounds))
    drawn, said = _chosen(found, baseline)
    limits = padded(*_edges(drawn))
    panels = []
    for i, panel in enumerate(drawn):
        words = describe_budgets(panel)
        panels.append(Panel(panel.title, words, svg_text(_draw(panel, look, limits), f"{prefix}-{i}", words)))
    entries = {line.label: look[line.variant] for panel in drawn for line in (*panel.lines, *panel.bounds)}
    if any(100 * panel.chance >= limits[0] for panel in drawn):
        entries["chance"] = CHANCE
    gaps = [text for panel in drawn for text in _gaps(panel)]
    return PanelFigure(tuple(panels), tuple(legend_of(entries, prefix)), (*notes, *said, *gaps))


def _draw(panel: BudgetPanel, look: Mapping[Variant, Style], limits: tuple[float, float]) -> Figure:
    figure, axes = empty_figure(PANEL)
    if 100 * panel.chance >= limits[0]:
        axes.axhline(100 * panel.chance, color=CHANCE.colour, lw=0.8, dashes=CHANCE.dashes, zorder=1)
    for line in panel.bounds:
        _draw_bound(axes, line, look[line.variant])
    for order, line in enumerate(panel.lines):
        _draw_line(axes, line, look[line.variant], (order - (len(panel.lines) - 1) / 2) * DODGE, panel.sizes)
    finish_axes(axes, panel.unit, "target accuracy, %", limits)
    _budget_axis(axes, panel.sizes)
    return figure


def _chosen(panels: Sequence[BudgetPanel], baseline: str) -> tuple[list[BudgetPanel], tuple[str, ...]]:
    """The panels with the lines that are drawn, the same methods in all of them, and what is said of the others."""
    means: dict[str, list[float]] = {}
    for panel in panels:
        for line in panel.lines:
            means.setdefault(line.label, []).append(sum(p.mean for p in line.points) / len(line.points))
    always = {line.label for panel in panels for line in panel.lines if line.variant.method == baseline}
    kept = best(
        {label: sum(values) / len(values) for label, values in means.items()}, always if len(always) == 1 else ()
    )
    rest = [label for label in means if label not in kept]
    what = f"the {KEPT} with the highest mean accuracy over budgets and panels, and the baseline"
    drawn = [replace(panel, lines=tuple(line for line in panel.lines if line.label in kept)) for panel in panels]
    return [panel for panel in drawn if panel.lines], (left_out(rest, len(kept), what),) if rest else ()


def _gaps(panel: BudgetPanel) -> list[str]:
    """What is said of values that are missing."""
    gaps = []
    for line in panel.lines:
        missing = [f"{size:g}" for size in panel.sizes if size not in {point.size for point in line.points}]
        if missing:
            gaps.append(f"{line.label} at {', '.join(missing)}")
    return [f"{panel.title}: no value of {'; '.join(gaps)}."] if gaps else []


def _edges(panels: Sequence[BudgetPanel]) -> tuple[float, float]:
    """Lowest and highest value with its error that may be drawn, in percent."""
    points = [point for panel in panels for line in (*panel.lines, *panel.bounds) for point in line.points]
    values = [100 * (point.mean + sign * (point.se or 0)) for point in points for sign in (-1, 1)]
    return min(values), max(values)


def _draw_bound(axes: Axes, line: BudgetLine, style: Style) -> None:
    (point,) = line.points
    mean, error = 100 * point.mean, 100 * (point.se or 0)
    axes.axhspan(mean - error, mean + error, color=style.colour, alpha=0.12, lw=0, zorder=1)
    axes.axhline(mean, color=style.colour, dashes=style.dashes or (None, None), zorder=2)


def _draw_line(axes: Axes, line: BudgetLine, style: Style, shift: float, sizes: Sequence[float]) -> None:
    """One method with error bars, a little beside the others."""
    wide = sizes[-1] / sizes[0]
    moved = [
        p.size * wide**shift if _logarithmic(sizes) else p.size + shift * (sizes[-1] - sizes[0]) for p in line.points
    ]
    means = [100 * point.mean for point in line.points]
    draw_bars(axes, means, [100 * (point.se or 0) for point in line.points], moved, style.colour)
    draw_line(axes, moved, means, style)


def _logarithmic(sizes: Sequence[float]) -> bool:
    return sizes[-1] >= LOGARITHMIC * sizes[0]


def _budget_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """A tick for every budget, on a logarithmic axis where they span much."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if _logarithmic(sizes):
        axes.set_xscale("log")
        axes.set_xlim(sizes[0] / (sizes[-1] / sizes[0]) ** 0.08, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.08)
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))


def describe_budgets(panel: BudgetPanel) -> str:
    """One paragraph for those who cannot see the drawing: every value."""

    def text(point: BudgetPoint) -> str:
        return percent(point.mean) if point.se is None else f"{percent(point.mean)} ± {percent(point.se)}"

    lines = [
        f"{line.label} {', '.join(f'{text(point)} at {point.size:g} (n={point.n})' for point in line.points)}"
        for line in panel.lines
    ]
    lines += [f"{line.label} {text(line.points[0])} with all labels" for line in panel.bounds]
    return (
        f"Line chart of target accuracy in %, average over the targets, over {panel.unit}, {panel.title}. "
        f"{'; '.join(lines)}."
    )
