"""Missing modalities at test time: a heat map per method, present subsets by fillers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.reports.figures import Panel, PanelFigure
from pipeline.reports.heat import HeatMap, draw_heat_map, scale_legend
from pipeline.reports.inputs import MissingCell
from pipeline.reports.results import Column, Seed, columns_of, seed_averages, seed_of, unique_runs
from pipeline.reports.settings import Variant, runs_by_variant
from pipeline.reports.statistics import mean_and_standard_error
from pipeline.reports.wording import percent
from pipeline.types import RunResult

Kept = tuple[str, ...]  # modalities that are present


@dataclass(frozen=True, slots=True)
class MissingTable:
    """Accuracies (0..1) of one method with missing modalities."""

    label: str
    subsets: tuple[Kept, ...]  # all modalities first
    fillers: tuple[str, ...]
    means: Mapping[tuple[Kept, str], float]  # over the seeds, of the average over the targets
    runs: int  # runs that were evaluated
    of: int  # runs that there are


def missing_tables(
    runs: Sequence[RunResult], labels: Mapping[Variant, str], rows: Mapping[str, Sequence[MissingCell]]
) -> list[MissingTable]:
    """Average the evaluated runs of every method; seeds that lack a target are in no mean.

    Args:
        runs: of one setting; diverged ones are left out.
        labels: names of the variants wanted.
        rows: accuracies per run id.
    """
    finished = [run for run in unique_runs(runs) if run.status == "finished"]
    columns = columns_of(finished)
    found = []
    for variant, own in runs_by_variant(finished).items():
        evaluated = [run for run in own if rows.get(run.spec.run_id)]
        if variant not in labels or not evaluated:
            continue
        values: dict[tuple[Kept, str], dict[tuple[Column, Seed], float]] = {}
        for run in evaluated:
            for row in rows[run.spec.run_id]:
                cell = values.setdefault((tuple(row.kept), row.filler), {})
                if row.accuracy is not None:
                    cell[(run.spec.target, run.spec.sources), seed_of(run)] = row.accuracy
        averages = {key: seed_averages(cell, columns) for key, cell in values.items()}
        means = {key: mean_and_standard_error(of.values())[0] for key, of in averages.items() if of}
        subsets = sorted(dict.fromkeys(kept for kept, _ in values), key=lambda kept: -len(kept))
        fillers = tuple(dict.fromkeys(filler for _, filler in values))
        found.append(MissingTable(labels[variant], tuple(subsets), fillers, means, len(evaluated), len(own)))
    return found


def missing_figure(
    runs: Sequence[RunResult],
    labels: Mapping[Variant, str],
    rows: Mapping[str, Sequence[MissingCell]],
) -> PanelFigure:
    """Draw a heat map per method, all on one scale, with the accuracy in every cell.

    Args:
        runs: of one setting.
        labels: names of the variants that are drawn.
        rows: accuracies per run id.
    """
    tables = missing_tables(runs, labels, rows)
    shown = [table for table in tables if table.means]
    notes = [
        f"{table.label}: not drawn, no seed was evaluated on every target ({table.runs} of {table.of} runs were)."
        for table in tables
        if not table.means
    ]
    if not shown:
        return PanelFigure((), (), tuple(notes))
    values = [value for table in shown for value in table.means.values()]
    limits = (min(values), max(values))
    panels = []
    for table in shown:
        cells = tuple(tuple(table.means.get((kept, filler)) for filler in table.fillers) for kept in table.subsets)
        heat = HeatMap(
            rows=tuple("+".join(kept) for kept in table.subsets),
            columns=table.fillers,
            values=cells,
            texts=tuple(tuple("" if value is None else percent(value) for value in row) for row in cells),
            corner="present",
        )
        words = _describe(table, heat)
        panels.append(Panel(table.label, words, draw_heat_map(heat, limits, words)))
        if table.runs < table.of:
            notes.append(f"{table.label}: over the {table.runs} of {table.of} runs that were evaluated.")
    without = [label for label in labels.values() if label not in {table.label for table in tables}]
    if without:
        notes.append(f"Not evaluated with missing modalities: {'; '.join(without)}.")
    return PanelFigure(tuple(panels), scale_legend(limits), tuple(notes))


def _describe(table: MissingTable, heat: HeatMap) -> str:
    """One paragraph for those who cannot see the drawing: every value."""
    lines = []
    for name, texts in zip(heat.rows, heat.texts, strict=True):
        known = [f"{filler} {text}" for filler, text in zip(heat.columns, texts, strict=True) if text]
        lines.append(f"{name}: {', '.join(known) or 'no value'}")
    return f"Heat map of target accuracy in % by present modalities and filler, {table.label}. {'; '.join(lines)}."
