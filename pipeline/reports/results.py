"""Run results to one table per setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import UsageError
from pipeline.reports.published import PublishedCell, refuse_twice
from pipeline.reports.settings import (
    METHOD_NAMES,
    UPPER_BOUNDS,
    Setting,
    Variant,
    group_by_setting,
    label_variants,
    runs_by_variant,
)
from pipeline.reports.statistics import (
    Interval,
    Paired,
    PairedTest,
    Record,
    bootstrap_interval,
    holm,
    mean_and_standard_error,
    paired_difference,
    win_tie_loss,
)
from pipeline.types import RunResult

Seed = tuple[int, int]  # (split seed, init seed)
Column = tuple[str, tuple[str, ...]]  # (target, sources)
Values = Mapping[tuple[Column, Seed], float]  # the metric of every finished run of one variant

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
    interval: Interval | None  # bootstrap interval of the average; None for n < 3
    paired: Paired | None  # per-seed averages minus the baseline's; None for the baseline itself or without a pair
    record: Record | None  # over all pairs of target and seed that the baseline has too; None without one
    p_holm: float | None = None  # the p of ``paired``, adjusted for all comparisons of the table

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
    test: PairedTest  # of the paired differences
    columns: tuple[str, ...]  # targets, then "average"
    rows: tuple[Row, ...]
    chance: float  # 0..1
    seeds: tuple[Seed, ...]  # all seeds that occur, diverged runs included
    diverged: tuple[str, ...]  # ids of runs that are in no mean
    warnings: tuple[str, ...]  # what must stand under every table of these numbers
    notes: tuple[str, ...]  # what is incomplete
    published: tuple[PublishedCell, ...] = ()
    not_built: tuple[str, ...] = ()  # rows of the table it stands for whose methods are not in this package
    source: str = ""  # paper and table that it stands for

    @property
    def baseline_label(self) -> str:
        """Name of the baseline."""
        return METHOD_NAMES.get(self.baseline, self.baseline)

    @property
    def comparisons(self) -> int:
        """How many p values the table holds; the correction is for so many."""
        return sum(row.p_holm is not None for row in self.rows)

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


def random_weights_note(runs: Sequence[RunResult]) -> list[str]:
    """What stands beside every number that comes from backbones without pretrained weights."""
    features = [found for run in runs for found in run.spec.features.values()]
    names = sorted({f["backbone"] for f in features if f.get("weights", "").startswith("random:")})
    if not names:
        return []
    return [
        f"Backbones with RANDOM WEIGHTS: {', '.join(names)}; nothing in them was pretrained, so accuracies say nothing "
        "about pretrained networks."
    ]


def result_table(
    results: Sequence[RunResult],
    baseline: str = "erm",
    metric: str = METRIC,
    *,
    published: Sequence[PublishedCell] = (),
    not_built: Sequence[str] = (),
    source: str = "",
    test: PairedTest = "permutation",
) -> ResultTable:
    """Put the runs of one setting into a table.

    Means and standard errors are over seeds. The average over the targets is taken per seed, of seeds that have every
    target only; the paired difference to the baseline compares these averages seed by seed, and its p value is
    adjusted for all comparisons of the table. Wins, ties and losses count the pairs of target and seed that both
    have. Diverged runs are in no mean and are listed. Published numbers are shown and used for nothing; ``not_built``
    names the rows of ``source``, the table that this one stands for, whose methods are not in this package.

    Raises:
        UsageError: no results, an unknown test, or a published number given twice.
        ValueError: the runs are of different settings.
    """
    if not results:
        raise UsageError("there are no results to report; run `pipe train-heads` first")
    refuse_twice(published)
    groups = group_by_setting(results)
    if len(groups) > 1:
        raise ValueError(f"results of {len(groups)} settings; group_by_setting() first, one table holds one setting")
    setting, runs = groups[0][0], unique_runs(groups[0][1])
    given = len(groups[0][1])
    notes = [f"{given} runs were given, {len(runs)} of them different; each counts once."] if len(runs) < given else []
    columns = columns_of(runs)
    seeds = sorted({seed_of(run) for run in runs})
    groups_of = runs_by_variant(runs)
    values = {variant: finished_values(own, metric) for variant, own in groups_of.items()}
    references = [variant for variant in groups_of if variant.method == baseline]
    rows = []
    for variant, label in label_variants(groups_of).items():
        reference = _reference(variant, references, baseline)
        rows.append(_row(variant, label, values[variant], values[reference] if reference else None, columns, test))
        notes += _incomplete(label, groups_of[variant], values[variant], columns, seeds)
        if variant.method != baseline and reference is None and references:
            notes.append(f"{label}: no single variant of the baseline fits, so no difference is given.")
    adjusted = holm([row.paired.p if row.paired else None for row in rows])
    return ResultTable(
        setting=setting,
        metric=metric,
        baseline=baseline,
        test=test,
        columns=(*column_labels(columns), AVERAGE),
        rows=tuple(replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)),
        chance=setting.chance,
        seeds=tuple(seeds),
        diverged=tuple(run.spec.run_id for run in runs if run.status == "diverged"),
        warnings=tuple(random_weights_note(runs)),
        notes=tuple(notes),
        published=tuple(published),
        not_built=tuple(not_built),
        source=source,
    )


def _row(
    variant: Variant,
    label: str,
    values: Values,
    baseline: Values | None,
    columns: Sequence[Column],
    test: PairedTest,
) -> Row:
    """One row, compared with the values of its baseline where it has one."""
    averages = seed_averages(values, columns)
    cells = [_cell({s: v for (c, s), v in values.items() if c == column}) for column in columns]
    paired = record = None
    if baseline is not None:
        references = seed_averages(baseline, columns)
        if averages.keys() & references.keys():
            paired = paired_difference(averages, references, test)
        differences = [value - baseline[key] for key, value in values.items() if key in baseline]
        record = win_tie_loss(differences) if differences else None
    interval = bootstrap_interval(averages.values())
    return Row(variant.method, label, variant, (*cells, _cell(averages)), interval, paired, record)


def seed_of(run: RunResult) -> Seed:
    """Split seed and init seed of a run."""
    return (run.spec.split_seed, run.spec.init_seed)


def unique_runs(results: Sequence[RunResult]) -> list[RunResult]:
    """Keep one run per method, targets and seed of a setting, so that a run given twice is not two measurements."""
    kept: dict[tuple[Variant, Column, Seed], RunResult] = {}
    for run in sorted(results, key=lambda run: run.spec.run_id):
        kept.setdefault((Variant.of(run), (run.spec.target, run.spec.sources), seed_of(run)), run)
    return list(kept.values())


def columns_of(runs: Sequence[RunResult]) -> list[Column]:
    """Every target with its sources, sorted."""
    return sorted({(run.spec.target, run.spec.sources) for run in runs})


def column_labels(columns: Sequence[Column]) -> list[str]:
    """Targets; where one target occurs with several source sets, the sources are named too."""
    targets = [target for target, _ in columns]
    if len(set(targets)) == len(targets):
        return targets
    return [f"{', '.join(sources)} → {target}" for target, sources in columns]


def finished_values(runs: Sequence[RunResult], metric: str) -> dict[tuple[Column, Seed], float]:
    """The metric of every finished run that has it, by (target, sources) and seed."""
    values = {}
    for run in runs:
        value = run.metrics.get(metric)
        if run.status == "finished" and value is not None and math.isfinite(value):
            values[((run.spec.target, run.spec.sources), seed_of(run))] = float(value)
    return values


def seed_averages(values: Values, columns: Sequence[Column]) -> dict[Seed, float]:
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


def _reference(variant: Variant, references: Sequence[Variant], baseline: str) -> Variant | None:
    """The baseline variant to compare with: the only one that agrees wherever the baseline's variants differ.

    What all of them share may differ from ``variant``: it is what makes its method another one (mixing in MM).
    """
    if variant.method == baseline:
        return None
    own = dict(variant.hparams)
    varying = {name for c in references for name, _ in set(c.hparams).symmetric_difference(references[0].hparams)}
    fitting = [c for c in references if all(own.get(n, v) == v for n, v in c.hparams if n in varying)]
    return fitting[0] if len(fitting) == 1 else None


def _incomplete(
    label: str, runs: Sequence[RunResult], values: Values, columns: Sequence[Column], seeds: Sequence[Seed]
) -> list[str]:
    """Say which runs of a row are missing and over how many seeds its average is."""
    status = {
        ((r.spec.target, r.spec.sources), seed_of(r)): "diverged" if r.status == "diverged" else "no value"
        for r in runs
    }
    names = dict(zip(columns, column_labels(columns), strict=True))
    missing = [
        f"{names[column]} seed {seed_text(seed)} ({status.get((column, seed), 'not run')})"
        for column in columns
        for seed in seeds
        if (column, seed) not in values
    ]
    if not missing:
        return []
    complete = len(seed_averages(values, columns))
    more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
    return [
        f"{label}: incomplete; the average is over {complete} of {len(seeds)} seeds. "
        f"Missing: {', '.join(missing[:LISTED])}{more}."
    ]
