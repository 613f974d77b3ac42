"""The critical-difference diagram of Demsar (JMLR 7, 2006, figure 1), upright so that it fits a narrow page."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from pipeline.reports.drawing import BLUE, INK, empty_figure, house_style, svg_text
from pipeline.reports.figures import Panel
from pipeline.reports.ranking import Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.4  # inches
ROW = 0.17  # inches per line of text
HEAD = 0.36  # inches above the axis
GAP = 0.06  # inches between two labels
OVER = 0.03  # inches that a bar is longer than its group, at both ends
LETTERS = 32  # of a label's line
CD_X, AXIS_X, BAR_X, LANE = 0.12, 0.5, 0.62, 0.075  # inches from the left: CD, axis, first bar; between two bars
FIGURE_SPACE = "\u2007"  # as wide as a digit; not collapsed in a page
INDENT = FIGURE_SPACE * 3


@house_style()
def rank_diagram(ranking: Ranking, prefix: str = "ranks") -> Panel:
    """Draw the average ranks on an axis with 1, the best, on top; bars join methods that are not told apart.

    Args:
        ranking: what is drawn.
        prefix: start of every id in the drawing; different for every figure of a page.
    """
    k = len(ranking.methods)
    named = ", ".join(f"{m} {r:.2f}" for m, r in zip(ranking.methods, ranking.average_ranks, strict=True))
    joined = "; ".join(" to ".join((ranking.methods[a], ranking.methods[b])) for a, b in ranking.groups)
    description = (
        f"Critical-difference diagram of {k} methods over {ranking.blocks} blocks. Average ranks, best first: {named}. "
        f"Critical difference {ranking.critical_difference:.2f} at {ranking.alpha:g}. "
        f"Not told apart: {joined or 'none'}."
    )
    title = f"average rank over {ranking.blocks} blocks"
    return Panel(title, description, svg_text(draw_ranks(ranking), prefix, description))


def draw_ranks(ranking: Ranking) -> Figure:
    """The diagram as a matplotlib figure; x and y of its axes are inches from the upper left corner."""
    wide = 5 if ranking.average_ranks[-1] >= 9.995 else 4
    labels = [
        textwrap.wrap(
            f"{f'{rank:.2f}'.rjust(wide, FIGURE_SPACE)}{FIGURE_SPACE}{method}", LETTERS, subsequent_indent=INDENT
        )
        for method, rank in zip(ranking.methods, ranking.average_ranks, strict=True)
    ]
    tops = [HEAD + sum(ROW * len(text) + GAP for text in labels[:i]) for i in range(len(labels))]
    height = tops[-1] + ROW * len(labels[-1]) + 0.1
    figure, axes = empty_figure((WIDTH, height))
    axes.set_position((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    longest = max(len(ranking.methods) - 1.0, ranking.critical_difference)
    scale = (height - HEAD - 0.18) / longest

    def place(rank: float) -> float:
        return HEAD + ROW / 2 + (rank - 1) * scale

    _draw_axis(axes, ranking, place(1), scale)
    right = _draw_bars(axes, ranking, place(1), scale)
    for text, top, rank in zip(labels, tops, ranking.average_ranks, strict=True):
        y = top + ROW / 2
        axes.plot([AXIS_X, right, right + 0.22, right + 0.3], [place(rank), place(rank), y, y], color=INK, lw=0.7)
        axes.plot([AXIS_X], [place(rank)], "o", color=INK, ms=3.2)
        axes.text(right + 0.35, top, "\n".join(text), va="top", parse_math=False, linespacing=1.15)
    return figure


def _draw_axis(axes: Axes, ranking: Ranking, top: float, scale: float) -> None:
    """The axis of the ranks with its numbers, and the critical difference beside it."""
    k = len(ranking.methods)
    axes.plot([AXIS_X, AXIS_X], [top, top + (k - 1) * scale], color=INK, lw=0.9)
    step = 1 if scale > 0.13 else 2
    for rank in range(1, k + 1, step):
        y = top + (rank - 1) * scale
        axes.plot([AXIS_X - 0.05, AXIS_X], [y, y], color=INK, lw=0.7)
        axes.text(AXIS_X - 0.08, y, str(rank), ha="right", va="center")
    bottom = top + ranking.critical_difference * scale
    axes.plot([CD_X, CD_X], [top, bottom], color=INK, lw=1.4)
    for y in (top, bottom):
        axes.plot([CD_X - 0.04, CD_X + 0.04], [y, y], color=INK, lw=1.4)
    told = f"CD = {ranking.critical_difference:.2f} at level {ranking.alpha:g}, {ranking.blocks} blocks"
    axes.text(CD_X - 0.04, 0.1, told, va="center", parse_math=False)


def _draw_bars(axes: Axes, ranking: Ranking, top: float, scale: float) -> float:
    """One thick bar per group, side by side where they overlap; returns where the last one ends, in inches."""
    lanes: list[float] = []  # where the last bar of each lane ends, in inches
    for first, last in ranking.groups:
        low, high = (top + (ranking.average_ranks[i] - 1) * scale for i in (first, last))
        start, end = low - OVER, high + OVER
        lane = next((i for i, taken in enumerate(lanes) if taken + OVER < start), len(lanes))
        lanes[lane : lane + 1] = [end]
        x = BAR_X + lane * LANE
        axes.plot([x, x], [start, end], color=BLUE, lw=3.2, solid_capstyle="butt")
    return BAR_X + max(0, len(lanes) - 1) * LANE + 0.08
