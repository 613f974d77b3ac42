"""What `pipe runs` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipeline.console import out
from pipeline.types import RunResult

if TYPE_CHECKING:
    import pandas

# Columns of the list, where they differ between runs; what all share stands once above the table.
SETTINGS = (
    *("dataset", "method", "target", "modalities", "backbones", "budget", "split_seed", "init_seed"),
    *("steps", "selection", "protocol", "projection", "precision", "status"),
)
ALWAYS = ("run_id", "target/fused")
MOST_HPARAMS = 4  # columns of hyperparameters that differ
MOST_CURVES_PER_CLASS = 12  # classes; of more, curves per class are counted and not drawn
MOST_CLASSES = 16  # of a confusion matrix that is drawn whole
MOST_PAIRS = 15  # confused pairs of classes
MOST_SKIPPED = 5
CURVE_ORDER = ("target", "val", "folds", "loss", "pseudo")
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 40  # characters
LABEL_WIDTH = 12  # characters of a class over a column


def show_runs_list(frame: pandas.DataFrame, limit: int, columns: Sequence[str] = ()) -> None:
    """The first rows of a table of runs.

    Args:
        frame: see ``pipeline.runs.runs_frame``.
        limit: rows, at most.
        columns: what to show; empty: what differs between the runs, and their target accuracy.
    """
    if frame.empty:
        out.print("No runs.")
        return
    shown = list(columns) or _telling_columns(frame)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in shown:
        numbers = frame[name].dtype.kind in "iuf"
        whole = name == ALWAYS[0]
        table.add_column(escape(name), justify="right" if numbers else "left", overflow="fold", no_wrap=whole)
    for row in frame[shown].head(limit).itertuples(index=False, name=None):
        table.add_row(*(escape(_cell(value)) for value in row))
    out.print(table)
    rest = len(frame) - limit
    out.print(f"{len(frame)} runs" + (f", {rest} of them not shown (--limit)" if rest > 0 else ""))


def _telling_columns(frame: pandas.DataFrame) -> list[str]:
    """Columns that tell the runs apart; prints what all runs share."""
    there = [name for name in SETTINGS if name in frame.columns]
    differs = {name: frame[name].nunique(dropna=False) > 1 for name in there}
    shared = ", ".join(f"{name} {_cell(frame[name].iloc[0])}" for name in there if not differs[name])
    if shared:
        out.print(escape(f"All: {shared}"))
    hparams = [n for n in frame.columns if n.startswith("h.") and frame[n].nunique() > 1]  # where methods have them
    if len(hparams) > MOST_HPARAMS:
        out.print(escape(f"Also different: {', '.join(hparams[MOST_HPARAMS:])} (--columns shows them)"))
    settings = [name for name in there if differs[name]]
    return [n for n in (ALWAYS[0], *settings, *hparams[:MOST_HPARAMS], *ALWAYS[1:]) if n in frame.columns]


def _cell(value: Any) -> str:
    """Text of a cell; - where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_skipped(skipped: Sequence[tuple[Path, str]]) -> None:
    """Files of results that this version cannot read."""
    if not skipped:
        return
    out.print(f"Skipped: {len(skipped)} files that are no results of this version (move them away and run again)")
    for path, reason in skipped[:MOST_SKIPPED]:
        out.print(escape(f"  {path}: {reason}"))
    if len(skipped) > MOST_SKIPPED:
        out.print(f"  ... and {len(skipped) - MOST_SKIPPED} more")


def show_run(result: RunResult) -> None:
    """Everything about one run."""
    spec = result.spec
    sources = "+".join(spec.sources)
    out.print(escape(f"Run {spec.run_id}: {spec.method} on {spec.dataset}, {sources} -> {spec.target}"))
    out.print(escape(f"{result.status}, {result.seconds:.1f} s; {_named(result.sizes)} clips"))
    for note in result.notes:
        out.print(escape(f"Note: {note}"))
    hidden = {"dataset", "method", "sources", "target", "features", "hparams", "classes", "labeled_ids"}
    settings = {name: value for name, value in spec.to_json().items() if name not in hidden}
    settings["labeled_ids"] = f"{len(spec.labeled_ids)} given" if spec.labeled_ids else "drawn"
    _show_pairs("Settings", settings)
    for modality, features in spec.features.items():
        out.print(escape(f"Features of {modality}: {_named(features)}"))
    _show_pairs("Hyperparameters", dict(sorted(spec.hparams.items())))
    _show_curves(result)
    _show_confusion(result)
    _show_pairs("Environment", dict(result.environment))


def _named(values: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _show_pairs(title: str, values: dict[str, Any]) -> None:
    """Names and values, three a line."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    texts = [(name, _cell("+".join(map(str, v)) if isinstance(v, list) else v)) for name, v in values.items()]
    rows = -(-len(texts) // 3)
    for row in range(rows):
        table.add_row(*(escape(text) for pair in texts[row::rows] for text in pair))
    out.print(table)


def sparkline(values: Sequence[float | None]) -> str:
    """A curve in a line of text, its lowest and highest value at the bottom and the top; · where there is none.

    Curves longer than ``SPARK_WIDTH`` are averaged over stretches of equal length.
    """
    parts = min(len(values), SPARK_WIDTH)
    bounds = [len(values) * i // parts for i in range(parts + 1)] if parts else [0]
    stretches = [[v for v in values[a:b] if v is not None] for a, b in pairwise(bounds)]
    means = [sum(stretch) / len(stretch) if stretch else None for stretch in stretches]
    known = [mean for mean in means if mean is not None]
    if not known:
        return "·" * parts
    low, span = min(known), max(known) - min(known)
    levels = [None if m is None else round((m - low) / span * (len(SPARKS) - 1)) if span else 3 for m in means]
    return "".join("·" if level is None else SPARKS[level] for level in levels)


def _show_curves(result: RunResult) -> None:
    """All curves with their last and their selected value."""
    steps = [step for step in result.curves.get("step", ()) if step is not None]
    if not steps:
        return
    many = len(result.spec.classes) > MOST_CURVES_PER_CLASS
    places = {start: place for place, start in enumerate(CURVE_ORDER)}
    names = sorted(n for n in result.curves if n != "step")
    names.sort(key=lambda name: places.get(name.partition("/")[0].partition("_")[0], len(places)))
    left_out = [name for name in names if many and "/class/" in name]
    selected = result.metrics.get("selected_step")
    chosen = "" if selected is None else f", selected by {result.selection}: step {selected:g}"
    title = f"Curves: {len(steps)} evaluations, steps {steps[0]:g} to {steps[-1]:g}{chosen}"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("curve", "", "lowest", "highest", "last", "selected"):
        table.add_column(heading, justify="left" if heading in ("curve", "") else "right", overflow="fold")
    for name in names:
        if name in left_out:
            continue
        series = result.curves[name]
        known = [value for value in series if value is not None]
        ends = (min(known), max(known)) if known else (None, None)
        cells = (*ends, series[-1], result.metrics.get(name))
        table.add_row(escape(name), sparkline(series), *(_cell(None if v is None else float(v)) for v in cells))
    out.print(table)
    if left_out:
        out.print(f"{len(left_out)} curves per class are not shown; `pipe runs export` writes them")


def _show_confusion(result: RunResult) -> None:
    """The confusion matrix on the target, or of many classes what is confused most."""
    if not result.confusion:
        return
    classes, rows = result.spec.classes, result.confusion
    if len(classes) > MOST_CLASSES:
        pairs = [(n, classes[i], classes[j]) for i, row in enumerate(rows) for j, n in enumerate(row) if i != j and n]
        pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
        out.print(f"Target clips that are confused most, of {sum(map(sum, rows))}:")
        for number, true, predicted in pairs[:MOST_PAIRS]:
            out.print(escape(f"  {number} of {true} taken for {predicted}"))
        return
    title = "Target clips at the selected evaluation: true class, predicted as"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("class")
    for label in classes:
        table.add_column(escape(label[:LABEL_WIDTH]), justify="right")
    table.add_column("right", justify="right")
    for i, (label, row) in enumerate(zip(classes, rows, strict=True)):
        share = f"{row[i] / sum(row):.0%}" if sum(row) else "-"
        table.add_row(escape(label), *(str(n) if n else "." for n in row), share)
    out.print(table)
