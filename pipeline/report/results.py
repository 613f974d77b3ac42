"""Run results to one table per setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.report.settings import METHOD_NAMES, UPPER_BOUNDS, Setting, Variant, group_by_setting, variant_labels
from pipeline.report.statistics import Paired, mean_and_standard_error, paired_difference
from pipeline.types import RunResult

Seed = tuple[int, int]  # (split seed, init seed)
Column = tuple[str, tuple[str, ...]]  # (target, sources)

AVERAGE = "average"
METRIC = "target/fused"
LISTED = 6  # missing runs named in a note before "and n more"


@dataclass(frozen=True, slots=True)
class Cell:
    """Mean accuracy (0..1) over n seeds; the standard error uses the sample deviation (divisor n - 1)."""

    mean: float | None  # None: no finished run
    se: float | None  # None for n < 2
    n: int
    values: tuple[float, ...] = ()  # the n single values, in order of the seeds


@dataclass(frozen=True, slots=True)
class Row:
    """One method (with one set of hyperparameters)."""

    method: str
    label: str
    variant: Variant
    cells: tuple[Cell, ...]  # one per column of the table, the average last
    paired: Paired | None  # per-seed averages minus the baseline's; None for the baseline itself or without a pair

    @property
    def average(self) -> Cell:
        """Mean over the seeds of the per-seed average over all targets."""
        return self.cells[-1]


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Accuracies of one setting."""

    setting: Setting
    metric: str  # key of RunResult.metrics
    baseline: str  # method of the paired differences
    columns: tuple[str, ...]  # targets, then "average"
    rows: tuple[Row, ...]
    chance: float  # 0..1
    seeds: tuple[Seed, ...]  # all seeds that occur, diverged runs included
    diverged: tuple[str, ...]  # ids of runs that are in no mean
    notes: tuple[str, ...]  # what is incomplete

    @property
    def baseline_label(self) -> str:
        """Name of the baseline."""
        return METHOD_NAMES.get(self.baseline, self.baseline)

    def ranks(self, column: int) -> tuple[int, ...]:
        """Rank of every row in a column: 1 best, 2 second (from three ranked rows on), 0 unmarked.

        Equal at the printed digit is equal. Cells of fewer seeds than the fullest cell of the column are not ranked,
        nor are upper bounds, nor is anything in a column with a single ranked cell.
        """
        cells = [row.cells[column] for row in self.rows]
        fullest = max((cell.n for cell in cells), default=0)
        printed = [None if c.mean is None or c.n < fullest else round(100 * c.mean, 1) for c in cells]
        printed = [None if row.method in UPPER_BOUNDS else p for row, p in zip(self.rows, printed, strict=True)]
        ranked = [value for value in printed if value is not None]
        if len(ranked) < 2:
            return (0,) * len(cells)
        order = sorted(set(ranked), reverse=True)
        marks = {order[0]: 1}
        if len(ranked) > 2 and len(order) > 1 and ranked.count(order[0]) == 1:
            marks[order[1]] = 2
        return tuple(0 if value is None else marks.get(value, 0) for value in printed)


def seed_text(seed: Seed) -> str:
    """A seed in words; one number where the split seed and the init seed agree."""
    return str(seed[0]) if seed[0] == seed[1] else f"split {seed[0]} / init {seed[1]}"


def result_table(results: Sequence[RunResult], baseline: str = "erm", metric: str = METRIC) -> ResultTable:
    """Put the runs of one setting into a table.

    Means and standard errors are over seeds. The average over the targets is taken per seed, of seeds that have every
    target only; the paired difference to the baseline compares these averages seed by seed. Diverged runs are in no
    mean and are listed.

    Raises:
        UsageError: no results.
        ValueError: the runs are of different settings.
    """
    if not results:
        raise UsageError("there are no results to report; run `pipe train-heads` first")
    groups = group_by_setting(results)
    if len(groups) > 1:
        raise ValueError(f"results of {len(groups)} settings; group_by_setting() first, one table holds one setting")
    setting, runs = groups[0]
    notes = []
    if len(unique_runs(runs)) < len(runs):
        notes.append(f"{len(runs)} runs were given, {len(unique_runs(runs))} of them different; each counts once.")
        runs = unique_runs(runs)
    columns = sorted({(run.spec.target, run.spec.sources) for run in runs})
    labels = variant_labels(runs)
    values = {variant: _values([run for run in runs if Variant.of(run) == variant], metric) for variant in labels}
    averages = {variant: _seed_averages(values[variant], columns) for variant in labels}
    seeds = sorted({_seed(run) for run in runs})
    rows = []
    for variant, label in labels.items():
        cells = [_cell({s: v for (c, s), v in values[variant].items() if c == column}) for column in columns]
        reference = _reference(variant, list(labels), baseline)
        paired = _paired(averages[variant], averages[reference]) if reference else None
        rows.append(Row(variant.method, label, variant, (*cells, _cell(averages[variant])), paired))
        notes += _incomplete(label, runs, variant, values[variant], columns, seeds)
        if variant.method != baseline and reference is None and any(v.method == baseline for v in labels):
            notes.append(f"{label}: no single variant of the baseline fits, so no difference is given.")
    return ResultTable(
        setting=setting,
        metric=metric,
        baseline=baseline,
        columns=(*_column_labels(columns), AVERAGE),
        rows=tuple(rows),
        chance=setting.chance,
        seeds=tuple(seeds),
        diverged=tuple(run.spec.run_id for run in runs if run.status == "diverged"),
        notes=tuple(notes),
    )


def _seed(run: RunResult) -> Seed:
    return (run.spec.split_seed, run.spec.init_seed)


def unique_runs(results: Sequence[RunResult]) -> list[RunResult]:
    """Keep one run per method, targets and seed of a setting, so that a run given twice is not two measurements."""
    kept: dict[tuple[Variant, Column, Seed], RunResult] = {}
    for run in sorted(results, key=lambda run: run.spec.run_id):
        kept.setdefault((Variant.of(run), (run.spec.target, run.spec.sources), _seed(run)), run)
    return list(kept.values())


def _column_labels(columns: Sequence[Column]) -> list[str]:
    """Targets; where one target occurs with several source sets, the sources are named too."""
    targets = [target for target, _ in columns]
    if len(set(targets)) == len(targets):
        return targets
    return [f"{', '.join(sources)} → {target}" for target, sources in columns]


def _values(runs: Sequence[RunResult], metric: str) -> dict[tuple[Column, Seed], float]:
    """The metric of every finished run that has it."""
    values = {}
    for run in runs:
        value = run.metrics.get(metric)
        if run.status == "finished" and value is not None and math.isfinite(value):
            values[((run.spec.target, run.spec.sources), _seed(run))] = float(value)
    return values


def _seed_averages(values: Mapping[tuple[Column, Seed], float], columns: Sequence[Column]) -> dict[Seed, float]:
    """Average over the targets per seed, for the seeds that have all of them."""
    seeds = sorted({seed for _, seed in values})
    complete = [seed for seed in seeds if all((column, seed) in values for column in columns)]
    return {seed: math.fsum(values[(column, seed)] for column in columns) / len(columns) for seed in complete}


def _cell(values: Mapping[Seed, float]) -> Cell:
    if not values:
        return Cell(None, None, 0)
    ordered = tuple(values[seed] for seed in sorted(values))
    mean, se = mean_and_standard_error(ordered)
    return Cell(mean, se, len(ordered), ordered)


def _paired(values: Mapping[Seed, float], baseline: Mapping[Seed, float]) -> Paired | None:
    return paired_difference(values, baseline) if values.keys() & baseline.keys() else None


def _reference(variant: Variant, variants: Sequence[Variant], baseline: str) -> Variant | None:
    """The baseline variant to compare with: the only one, or the only one that agrees in all shared hyperparameters."""
    if variant.method == baseline:
        return None
    candidates = [other for other in variants if other.method == baseline]
    if len(candidates) > 1:
        own = dict(variant.hparams)
        candidates = [c for c in candidates if all(own.get(name, value) == value for name, value in c.hparams)]
    return candidates[0] if len(candidates) == 1 else None


def _incomplete(
    label: str,
    runs: Sequence[RunResult],
    variant: Variant,
    values: Mapping[tuple[Column, Seed], float],
    columns: Sequence[Column],
    seeds: Sequence[Seed],
) -> list[str]:
    """Say which runs of a row are missing and over how many seeds its average is."""
    status = {
        ((r.spec.target, r.spec.sources), _seed(r)): "diverged" if r.status == "diverged" else "no value"
        for r in runs
        if Variant.of(r) == variant
    }
    names = dict(zip(columns, _column_labels(columns), strict=True))
    missing = [
        f"{names[column]} seed {seed_text(seed)} ({status.get((column, seed), 'not run')})"
        for column in columns
        for seed in seeds
        if (column, seed) not in values
    ]
    if not missing:
        return []
    complete = len(_seed_averages(values, columns))
    more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
    return [
        f"{label}: incomplete; the average is over {complete} of {len(seeds)} seeds. "
        f"Missing: {', '.join(missing[:LISTED])}{more}."
    ]
