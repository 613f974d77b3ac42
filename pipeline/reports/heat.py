"""Heat maps as SVG of our own: a page may hold hundreds of them, and matplotlib takes as long for one as for a chart.

The colours are matplotlib's cividis, made to look the same to readers with and without colour vision deficiency
(Nunez, Anderton and Renslow, PLOS ONE 13(7), 2018), and every cell carries its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from xml.etree import ElementTree

from pipeline.reports.drawing import short, swatch, words_of

WIDTH, WIDE = 223.2, 360.0  # points, as in the other figures; wide for more than COLUMNS columns
COLUMNS = 12
TEXT = 8.5  # points
LETTER = 5.2  # points that a letter of this size takes, about, in a wide font
LONGEST = 18  # letters of a label; longer ones are cut, with the whole text on hover
SHADES = 5  # samples of the scale in a legend
LIGHT, DARK = "#ffffff", "#000000"


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A table of numbers on a scale."""

    rows: tuple[str, ...]  # labels
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]  # (rows, columns); None: no value, left empty
    texts: tuple[tuple[str, ...], ...]  # what stands in the cells
    corner: str = ""  # what rows and columns are


@cache
def colours() -> tuple[str, ...]:
    """The 256 colours of the scale, dark to light."""
    import matplotlib

    scale = matplotlib.colormaps["cividis"]
    return tuple(
        f"#{int(255 * r + 0.5):02x}{int(255 * g + 0.5):02x}{int(255 * b + 0.5):02x}"
        for r, g, b, _ in (scale(i) for i in range(256))
    )


def shade(value: float, limits: tuple[float, float]) -> str:
    """Colour of a value on a scale from the lower to the upper limit; the middle one where they are equal."""
    low, high = limits
    share = 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))
    return colours()[round(255 * share)]


def luminance(colour: str) -> float:
    """Relative luminance of a colour ``#rrggbb``, 0..1 (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink_on(colour: str) -> str:
    """Black or white, whichever has the higher contrast on a colour: at least 4.5 to 1."""
    return LIGHT if 1.05 / (luminance(colour) + 0.05) > (luminance(colour) + 0.05) / 0.05 else DARK


def draw_heat_map(heat: HeatMap, limits: tuple[float, float], description: str) -> str:
    """Draw a heat map; colours are on the scale between ``limits``, which several maps may share.

    Args:
        heat: what is drawn.
        limits: values of the darkest and of the lightest colour.
        description: the drawing's aria-label.
    """
    width = WIDTH if len(heat.columns) <= COLUMNS else WIDE
    left = max(LETTER * min(LONGEST, max(map(len, heat.rows))) + 6, LETTER * len(heat.corner) * 0.9 + 4)
    side = (width - left) / len(heat.columns)
    upright = any(LETTER * len(name) > side - 2 for name in heat.columns)
    top = LETTER * min(LONGEST, max(map(len, heat.columns))) + 6 if upright else TEXT + 6
    height = min(side, max(16.0, side * 0.55)) if len(heat.columns) <= COLUMNS else side
    root = _drawing(width, top + height * len(heat.rows) + 1, description)
    if heat.corner:
        _text(root, heat.corner, left - 5, top - 4, "end", TEXT * 0.85)
    for j, name in enumerate(heat.columns):
        x = left + side * (j + 0.5)
        if upright:
            _text(root, name, x + TEXT * 0.35, top - 4, "start", TEXT, turned=True)
        else:
            _text(root, name, x, top - 4, "middle", TEXT)
    size = min(TEXT, side / (LETTER / TEXT * (max(len(t) for row in heat.texts for t in row) + 0.6)), height * 0.8)
    for i, (name, values, texts) in enumerate(zip(heat.rows, heat.values, heat.texts, strict=True)):
        y = top + height * i
        _text(root, name, left - 5, y + height / 2 + TEXT * 0.35, "end", min(TEXT, height))
        for j, (value, text) in enumerate(zip(values, texts, strict=True)):
            _cell(root, (left + side * j, y, side, height), None if value is None else shade(value, limits), text, size)
    return ElementTree.tostring(root, encoding="unicode")


def scale_legend(limits: tuple[float, float]) -> tuple[tuple[str, str], ...]:
    """Samples of the scale with their values in percent: (label, SVG)."""
    low, high = limits
    values = [low + (high - low) * i / (SHADES - 1) for i in range(SHADES)] if high > low else [low]
    return tuple((f"{100 * value:.0f} %", swatch(shade(value, limits))) for value in values)


def _drawing(width: float, height: float, description: str) -> ElementTree.Element:
    box = {"class": "plot", "viewBox": f"0 0 {width:g} {height:.1f}", **words_of(description)}
    return ElementTree.Element("svg", {**box, "font-size": f"{TEXT}", "fill": "currentColor"})


def _text(
    root: ElementTree.Element, text: str, x: float, y: float, anchor: str, size: float, turned: bool = False
) -> None:
    """One label; cut where it is long."""
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    if turned:
        place["transform"] = f"rotate(-90 {x:.1f} {y:.1f})"
    if size != TEXT:
        place["font-size"] = f"{size:.1f}"
    node = ElementTree.SubElement(root, "text", place)
    node.text = short(text, LONGEST)
    if node.text != short(text, len(text)):
        ElementTree.SubElement(node, "title").text = short(text, len(text))


def _cell(
    root: ElementTree.Element, place: tuple[float, float, float, float], colour: str | None, text: str, size: float
) -> None:
    """One cell with its number; empty ones have a thin frame."""
    x, y, width, height = place
    box = {"x": f"{x:.2f}", "y": f"{y:.2f}", "width": f"{width:.2f}", "height": f"{height:.2f}"}
    if colour is None:
        box |= {"fill": "none", "stroke": "var(--grid, #d9d9d9)", "stroke-width": "0.5"}
    else:
        box |= {"fill": colour, "stroke": "var(--paper, #ffffff)", "stroke-width": "0.5"}
    ElementTree.SubElement(root, "rect", box)
    if text:
        ink = {} if colour is None else {"fill": ink_on(colour)}
        middle = {"x": f"{x + width / 2:.1f}", "y": f"{y + height / 2 + size * 0.35:.1f}", "text-anchor": "middle"}
        ElementTree.SubElement(root, "text", {**middle, "font-size": f"{size:.1f}", **ink}).text = text
