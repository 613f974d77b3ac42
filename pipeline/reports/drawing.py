"""matplotlib to inline SVG: nothing asked from outside, ids that do not clash, colours left to a style sheet."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED = 7  # markers along a line, about
# Stand-ins in the drawings; the page's style sheet decides, so that they follow light, dark and print.
INK, GRID, PAPER = "#010203", "#d0d1d2", "#fdfcfb"
BLUE = "#0072b2"  # Okabe and Ito's; too dark on a dark page
# Tol's muted colours, told apart with any colour vision; the page takes his light ones on a dark ground.
CLASS_COLOURS = ("#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677", "#aa4499", "#44aa99", "#882255", "#999933")
SHEET = {
    INK: "currentColor",
    GRID: "var(--grid, #d9d9d9)",
    PAPER: "var(--paper, #ffffff)",
    BLUE: f"var(--blue, {BLUE})",
    **{colour: f"var(--class-{i}, {colour})" for i, colour in enumerate(CLASS_COLOURS)},
}

RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.2,
    "lines.markeredgewidth": 1.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


class Look(Protocol):
    """What a legend sample needs to know of a series."""

    @property
    def colour(self) -> str:
        """Line colour."""

    @property
    def dashes(self) -> tuple[float, ...]:
        """On, off, ... in points; empty for a solid line."""

    @property
    def marker(self) -> str:
        """matplotlib's name of the marker."""

    @property
    def filled(self) -> bool:
        """Whether markers are filled."""


_STYLED = ContextVar("styled", default=False)  # setting the style takes longer than most drawings


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw with ``RC`` and matplotlib's defaults, whatever the user's own settings are; inside another, do nothing."""
    if _STYLED.get():
        yield
        return
    import matplotlib

    token = _STYLED.set(True)
    try:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC)
            yield
    finally:
        _STYLED.reset(token)


def empty_figure(size: tuple[float, float], left: float = 0.14) -> tuple[Figure, Axes]:
    """A figure of ``size`` inches with one pair of axes in a fixed place, so that panels of a row line up."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    bottom = 0.4 / size[1]
    return figure, figure.add_axes((left, bottom, 0.97 - left, 1 - bottom - 0.06 / size[1]))


def finish_axes(
    axes: Axes, x_label: str, y_label: str, limits: tuple[float, float], *, horizontal: bool = False
) -> None:
    """Label the axes, set the limits of the axis with the values and draw its grid lines."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x_label, parse_math=False, labelpad=2)
    axes.set_ylabel(y_label, parse_math=False, labelpad=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    (axes.set_xlim if horizontal else axes.set_ylim)(*limits)
    axes.grid(axis="x" if horizontal else "y")
    axes.spines["left"].set_visible(not horizontal)


def short(text: str, letters: int) -> str:
    """One line of text without control characters, which no SVG may hold, cut to so many letters."""
    words = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    return words if len(words) <= letters else f"{words[: letters - 1]}…"


def words_of(description: str | None) -> dict[str, str]:
    """Attributes that tell screen readers what a drawing shows, or that hide it where there is nothing to tell."""
    if description is None:
        return {"aria-hidden": "true"}
    return {"role": "img", "aria-label": short(description, len(description))}


def swatch(colour: str, *, framed: bool = False) -> str:
    """A small field of a colour, for a legend."""
    style = f"fill: {SHEET.get(colour, colour)}" + ("; stroke: currentColor; stroke-width: 0.5" if framed else "")
    root = ElementTree.Element("svg", {"class": "plot", "viewBox": "0 0 30 10", "aria-hidden": "true"})
    ElementTree.SubElement(root, "rect", {"x": "6", "y": "1", "width": "18", "height": "8", "style": style})
    return ElementTree.tostring(root, encoding="unicode")


def marker_sample(marker: str, prefix: str) -> str:
    """An open marker alone, for a legend of shapes."""
    return _sample(INK, None, marker, False).replace(SAMPLE_PREFIX, prefix)


SAMPLE_PREFIX = "§"


def legend_sample(look: Look, prefix: str) -> str:
    """A short piece of a series' line with its marker."""
    return _sample(look.colour, look.dashes, look.marker, look.filled).replace(SAMPLE_PREFIX, prefix)


@cache
@house_style()
def _sample(colour: str, dashes: tuple[float, ...] | None, marker: str, filled: bool) -> str:
    """A marker on a line of these dashes; without dashes, None, it is larger and alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.42, 0.14))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    if dashes is not None:
        axes.plot([0.0, 0.5, 1.0], [0.5] * 3, color=colour, dashes=dashes or (None, None), lw=1.5)
    face = colour if filled else PAPER
    size = 4.6 if dashes is not None else 7.5
    axes.plot([0.5], [0.5], marker=marker, color=colour, ms=size, mew=1.0, markerfacecolor=face)
    return svg_text(figure, SAMPLE_PREFIX, None)


def draw_bars(
    axes: Axes,
    centres: Sequence[float],
    errors: Sequence[float],
    places: Sequence[float],
    colour: str,
    *,
    horizontal: bool = False,
) -> None:
    """Bars of ± one error as one line with gaps, which is many times faster than matplotlib's own error bars."""
    ends = [end for c, e in zip(centres, errors, strict=True) for end in (c - e, c + e, float("nan"))]
    along = [place for place in places for _ in range(3)]
    x, y = (ends, along) if horizontal else (along, ends)
    axes.plot(x, y, color=colour, lw=1.1, solid_capstyle="butt", zorder=2)


def draw_band(axes: Axes, x: Sequence[float], lower: Sequence[float], upper: Sequence[float], colour: str) -> None:
    """A translucent band between two curves, with a gap where either is not a number."""
    from matplotlib.patches import Polygon

    part: list[int] = []
    for i in range(len(x) + 1):
        if i < len(x) and lower[i] == lower[i] and upper[i] == upper[i]:
            part.append(i)
        elif part:
            edge = [(x[j], lower[j]) for j in part] + [(x[j], upper[j]) for j in reversed(part)]
            axes.add_patch(Polygon(edge, facecolor=colour, alpha=0.16, linewidth=0, zorder=2))
            part = []


def svg_text(figure: Figure, prefix: str, description: str | None) -> str:
    """SVG element of a figure, ready to stand inside HTML.

    Ids that nothing refers to are dropped and the others begin with ``prefix``; names of fonts, the XML head and
    matplotlib's page-wide style are removed. ``description`` becomes the aria-label; None hides the drawing from
    screen readers.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():  # letters that matplotlib's font lacks; the page's reader has others
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    used = set(re.findall(r"#([\w.-]+)", " ".join(v for node in root.iter() for v in _references(node))))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}style") or child.tag.endswith("}metadata"):
                parent.remove(child)
        parent.tag = parent.tag.rpartition("}")[2]
        parent.attrib = _attributes(parent.attrib, prefix, used)
    view = root.attrib["viewBox"]
    root.attrib = {"class": "plot", "viewBox": view, **words_of(description)}
    return ElementTree.tostring(root, encoding="unicode")


def _references(node: ElementTree.Element) -> list[str]:
    """Attribute values that may point to an id."""
    return [value for name, value in node.attrib.items() if name.endswith("href") or value.startswith("url(")]


def _attributes(found: dict[str, str], prefix: str, used: set[str]) -> dict[str, str]:
    """Attributes without namespaces, with prefixed ids, colours for the style sheet and two decimals."""
    kept = {}
    for full_name, text in found.items():
        name = full_name.rpartition("}")[2]
        value = text
        if name == "id":
            if value not in used:
                continue
            value = f"{prefix}-{value}"
        elif name == "href" or value.startswith("url("):
            value = value.replace("#", f"#{prefix}-", 1)
        elif name == "style":
            value = re.sub(r"\s*font-family:[^;]*;?", "", value)
            value = re.sub("|".join(SHEET), lambda match: SHEET[match[0]], value)
        elif name in ("d", "x", "y", "width", "height", "transform"):
            value = re.sub(r"(\.\d\d)\d+", r"\1", value)
        kept[name] = " ".join(value.split())
    return kept
