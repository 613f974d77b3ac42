"""What a change of settings costs or gains: cases against a reference, and one hyperparameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields

from pipeline.reports.results import (
    METRIC,
    ResultTable,
    Row,
    columns_of,
    finished_values,
    seed_averages,
    seed_of,
)
from pipeline.reports.settings import METHOD_NAMES, Setting
from pipeline.reports.statistics import Paired, mean_and_standard_error, paired_difference
from pipeline.types import RunResult

Fact = tuple[str, Hashable]  # name and value of something that is fixed in a comparison
Cases = dict[str, list[RunResult]]  # runs by case, in the order in which the cases are named
TITLED = {"dataset", "budget", "modalities", "features", "manifest_digest", "classes"}  # said, or meant, by a title


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of an ablation."""

    label: str
    mean: float  # accuracy (0..1), average over the targets, over its own seeds
    paired: Paired  # to the reference, seed by seed


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is compared with one reference; all else is equal."""

    title: str
    reference: str
    reference_mean: float | None  # accuracy (0..1), average over the targets; None where it is another per bar
    bars: tuple[Bar, ...]  # without the reference


@dataclass(frozen=True, slots=True)
class SweptPoint:
    """Accuracy (0..1) with one value of a hyperparameter, average over the targets."""

    value: float
    mean: float
    se: float | None  # None for n < 2
    n: int  # seeds


@dataclass(frozen=True, slots=True)
class SweptLine:
    """A method with one hyperparameter varied and all others fixed."""

    label: str
    points: tuple[SweptPoint, ...]  # by increasing value, two or more


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One numeric hyperparameter of one setting."""

    title: str
    name: str
    lines: tuple[SweptLine, ...]


def ablations(results: Sequence[RunResult], cases: Mapping[str, str]) -> tuple[list[Ablation], list[str]]:
    """Compare every case with the one that is named first.

    What some case has with several values (budgets of a list, say) is an axis that the cases were crossed with: every
    value has a comparison of its own. What differs from case to case alone is what the cases change.

    Args:
        results: runs; those without a case are left out.
        cases: name of the case per run id, in the order in which the cases are named.

    Returns:
        The comparisons, and sentences on what could not be compared.
    """
    mine: Cases = {name: [] for name in cases.values()}
    for run_id, run in {run.spec.run_id: run for run in results}.items():
        if run_id in cases:
            mine[cases[run_id]].append(run)
    found: list[Ablation] = []
    said: list[str] = []
    for fixed, part in _crossed(mine, _setting_facts):
        for more, panel in _crossed(part, lambda run: dict(run.spec.hparams)):
            ablation, notes = _compare(panel, [*fixed, *more], next(iter(mine)))
            found += [ablation] if ablation else []
            said += notes
    return found, said


def _setting_facts(run: RunResult) -> dict[str, Hashable]:
    setting = Setting.of(run)
    return {"method": run.spec.method, **{field.name: getattr(setting, field.name) for field in fields(Setting)}}


def _crossed(cases: Cases, facts_of: Callable[[RunResult], dict[str, Hashable]]) -> list[tuple[list[Fact], Cases]]:
    """Split cases by every fact of which some case has several values."""
    of_case = {case: [(facts_of(run), run) for run in runs] for case, runs in cases.items()}
    names = list(dict.fromkeys(name for rows in of_case.values() for facts, _ in rows for name in facts))
    axes = [name for name in names if any(len({facts.get(name) for facts, _ in rows}) > 1 for rows in of_case.values())]
    parts: dict[tuple[Hashable, ...], Cases] = {}
    for case, rows in of_case.items():
        for facts, run in rows:
            part = parts.setdefault(tuple(facts.get(name) for name in axes), {})
            part.setdefault(case, []).append(run)
    return [(list(zip(axes, values, strict=True)), part) for values, part in parts.items()]


def _compare(cases: Cases, fixed: Sequence[Fact], reference: str) -> tuple[Ablation | None, list[str]]:
    """Bars of all cases but the reference; ``fixed`` tells the panels of one figure apart."""
    runs = next(iter(cases.values())) if reference not in cases else cases[reference]
    said = [f"{name.replace('_', ' ')} {value}" for name, value in fixed if name not in TITLED | {"method"}]
    methods = [METHOD_NAMES.get(str(value), str(value)) for name, value in fixed if name == "method"]
    title = ", ".join([Setting.of(runs[0]).title, *methods, *said])
    columns = columns_of([run for own in cases.values() for run in own])
    averages = {}
    for case, own in cases.items():
        if len({(run.spec.target, run.spec.sources, seed_of(run)) for run in own}) < len(own):
            return None, [f"{title}: not drawn, {case!r} has several runs of one target and seed."]
        averages[case] = seed_averages(finished_values(own, METRIC), columns)
    if not averages.get(reference):
        return None, [f"{title}: not drawn, the reference {reference!r} has no seed with every target."]
    bars, lost = [], []
    for case, of_seed in averages.items():
        if case != reference and of_seed.keys() & averages[reference].keys():
            mean, _ = mean_and_standard_error(of_seed.values())
            bars.append(Bar(case, mean, paired_difference(of_seed, averages[reference])))
        elif case != reference:
            lost.append(case)
    notes = [f"{title}: left out, without a seed that has every target and the reference too: {'; '.join(lost)}."]
    mean, _ = mean_and_standard_error(averages[reference].values())
    return (Ablation(title, reference, mean, tuple(bars)) if bars else None), notes if lost else []


def sensitivities(tables: Sequence[tuple[str, ResultTable]]) -> list[Sensitivity]:
    """Every numeric hyperparameter in which variants of a method differ while all others agree.

    Args:
        tables: (title, table) of every setting.
    """
    found = []
    for title, table in tables:
        lines: dict[str, list[SweptLine]] = {}
        for name, label, rows in _swept(table):
            points = [
                SweptPoint(float(value), row.average.mean, row.average.se, row.average.n)
                for value, row in rows
                if not isinstance(value, str) and row.average.mean is not None
            ]
            if len(points) == len(rows):
                lines.setdefault(name, []).append(SweptLine(label, tuple(sorted(points, key=lambda p: p.value))))
        found += [Sensitivity(title, name, tuple(own)) for name, own in lines.items()]
    return found


def choices(tables: Sequence[tuple[str, ResultTable]]) -> list[Ablation]:
    """Every hyperparameter that is a name, value by value against the baseline of the same setting."""
    found = []
    for title, table in tables:
        for name, label, rows in _swept(table):
            if any(isinstance(value, str) for value, _ in rows):
                bars = [
                    Bar(f"{name} {value}", row.average.mean, row.paired)
                    for value, row in rows
                    if row.paired and row.average.mean is not None
                ]
                if bars:
                    found.append(Ablation(f"{title}, {label}", table.baseline_label, None, tuple(bars)))
    return found


def _swept(table: ResultTable) -> list[tuple[str, str, list[tuple[float | str, Row]]]]:
    """(hyperparameter, label of what is fixed, values with their rows) of all rows that differ in nothing else."""
    found = []
    for method in dict.fromkeys(row.method for row in table.rows):
        rows = [row for row in table.rows if row.method == method and row.average.mean is not None]
        values: dict[str, set[float | str]] = {}
        for row in rows:
            for name, value in row.variant.hparams:
                values.setdefault(name, set()).add(value)
        varied = [name for name, seen in values.items() if len(seen) > 1]
        for name in varied:
            groups: dict[tuple[tuple[str, float | str], ...], list[tuple[float | str, Row]]] = {}
            for row in rows:
                own = dict(row.variant.hparams)
                if name in own:
                    fixed = tuple(pair for pair in row.variant.hparams if pair[0] != name)
                    groups.setdefault(fixed, []).append((own[name], row))
            for fixed, members in groups.items():
                if len(members) > 1:
                    rest = [f"{other} {value}" for other, value in fixed if other in varied and len(values[other]) > 1]
                    found.append((name, ", ".join([METHOD_NAMES.get(method, method), *rest]), members))
    return found
