"""What `pipe sweep` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipeline.console import duration, out, size
from pipeline.show import show_table
from pipeline.sweepfile import SweepFile
from pipeline.sweeping import SweepRun
from pipeline.sweeps import StackEstimate


def show_about(sweep: SweepFile) -> None:
    """One line about a sweep, and the rows of its table that cannot be run."""
    if sweep.about.title:
        source = f" ({sweep.about.source})" if sweep.about.source else ""
        out.print(escape(f"{sweep.name}: {sweep.about.title}{source}"))
    if sweep.about.not_built:
        out.print(escape(f"Not built here, so not in the table: {', '.join(sweep.about.not_built)}"))


def show_estimate(sweep: SweepFile, runs: int, missing: int, rows: Sequence[StackEstimate]) -> None:
    """What a sweep would cost."""
    show_about(sweep)
    out.print(f"{runs} runs, {runs - missing} of them finished, {missing} to train")
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD)
    for name in ("method", "modalities"):
        table.add_column(name)
    for name in ("runs", "stacks", "largest stack", "time of one process"):
        table.add_column(name, justify="right")
    for row in rows:
        time = "not timed" if row.seconds is None else duration(row.seconds)
        cells = (row.method, "+".join(row.modalities), str(row.runs), str(row.stacks), size(row.bytes), time)
        table.add_row(*(escape(cell) for cell in cells))
    out.print(table)
    known = [row.seconds for row in rows if row.seconds is not None]
    rest = "" if len(known) == len(rows) else ", and what was not timed (compact features, scikit-learn)"
    out.print(
        escape(
            f"Together about {duration(sum(known))} of one process{rest}: a few steps of every kind were timed, "
            "evaluations are not counted. Nothing was trained."
        )
    )


def show_sweep(run: SweepRun) -> None:
    """The table of a finished sweep, and what can be done with it."""
    done = len(run.results) - run.new
    diverged = [r.spec.run_id for r in run.results if r.status == "diverged"]
    out.print(f"{len(run.results)} runs: {run.new} trained now, {done} were there already")
    if diverged:
        listed = ", ".join(diverged[:8]) + (f" and {len(diverged) - 8} more" if len(diverged) > 8 else "")
        out.print(escape(f"Diverged, and in no mean: {listed}"))
    show_table(run.results)
    if run.record.about.not_built:
        out.print(escape(f"Not built here, so not in the table: {', '.join(run.record.about.not_built)}"))
    out.print(escape(f"Sweep {run.record.name}: {run.path}; `pipe report {run.record.name}` writes its page"))
