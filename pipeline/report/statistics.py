"""Means, standard errors and paired differences: pure functions over numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Seed = TypeVar("Seed", bound=Hashable)

TIE = 1e-9  # differences of accuracies (0..1) up to this size are rounding, not a win


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences to a baseline, seed by seed; ``n`` counts the seeds that both have."""

    mean: float  # mean of the n differences, in the unit of the values
    se: float | None  # sample standard deviation (n - 1) of the n differences / sqrt(n); None for n = 1
    wins: int  # seeds with a difference above 0
    ties: int  # seeds with a difference of 0, up to rounding
    losses: int  # seeds with a difference below 0
    n: int


@dataclass(frozen=True, slots=True)
class Band:
    """Curves of several runs, summarised at every step that any of them has."""

    steps: tuple[float, ...]  # increasing
    mean: tuple[float | None, ...]  # mean over the runs with a number at that step; None where there are none
    se: tuple[float | None, ...]  # sample standard deviation (n - 1) / sqrt(n); None where n < 2
    n: tuple[int, ...]  # runs with a number at that step


def mean_and_standard_error(values: Iterable[float]) -> tuple[float, float | None]:
    """Return the mean of n values and its standard error.

    The standard error is the sample standard deviation (divisor n - 1) divided by sqrt(n), where n is the number of
    values; for n = 1 it is unknown and returned as None, never as 0.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    numbers = [float(value) for value in values]
    n = len(numbers)
    if n == 0:
        raise ValueError("the mean of no values is not defined")
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"values are {numbers}; every one must be finite")
    mean = math.fsum(numbers) / n
    if n == 1:
        return mean, None
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (n - 1)
    return mean, math.sqrt(variance / n)


def paired_difference(values: Mapping[Seed, float], baseline: Mapping[Seed, float]) -> Paired:
    """Compare with a baseline over the n seeds that both have; seeds of only one side are not used.

    Mean and standard error are those of the n per-seed differences ``values[seed] - baseline[seed]``, with the sample
    deviation (divisor n - 1) as in ``mean_and_standard_error``.

    Raises:
        ValueError: no seed in common.
    """
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    if not differences:
        raise ValueError("no seed is in both groups, so there is no pair to compare")
    mean, se = mean_and_standard_error(differences)
    wins = sum(difference > TIE for difference in differences)
    losses = sum(difference < -TIE for difference in differences)
    n = len(differences)
    return Paired(mean=mean, se=se, wins=wins, ties=n - wins - losses, losses=losses, n=n)


def band(curves: Iterable[tuple[Sequence[float | None], Sequence[float | None]]]) -> Band:
    """Summarise (steps, values) pairs, one per run, step by step.

    At each step n is the number of runs with a number there (a value may be None), the mean is over these n, and the
    standard error uses their sample deviation (divisor n - 1).
    """
    at_step: dict[float, list[float]] = {}
    for steps, values in curves:
        for step, value in zip(steps, values, strict=True):
            if step is None:
                continue
            numbers = at_step.setdefault(float(step), [])
            if value is not None and math.isfinite(value):
                numbers.append(value)
    order = tuple(sorted(at_step))
    summaries = [mean_and_standard_error(at_step[step]) if at_step[step] else (None, None) for step in order]
    return Band(
        steps=order,
        mean=tuple(mean for mean, _ in summaries),
        se=tuple(se for _, se in summaries),
        n=tuple(len(at_step[step]) for step in order),
    )
