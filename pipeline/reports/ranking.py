"""Average ranks of methods over many settings, with the Friedman and Nemenyi tests (Demsar, JMLR 7, 2006, 1-30)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.reports.results import METRIC, Column, Seed, finished_values, random_weights_note, seed_of
from pipeline.reports.settings import (
    METHOD_NAMES,
    UPPER_BOUNDS,
    Setting,
    Variant,
    group_by_setting,
    runs_by_variant,
    variant_labels,
)
from pipeline.reports.statistics import ROUNDING
from pipeline.reports.wording import ALPHA, p_text
from pipeline.types import RunResult

Treatment = str | Variant  # what is ranked: a method, or a method with one set of hyperparameters
Block = tuple[Setting, Column, Seed]

FEWEST_METHODS = 3  # two are compared by the paired test of their table
FEWEST_BLOCKS = 2
MOST_RANKED = 40  # more are not readable, and a critical difference of so many tells nothing apart


@dataclass(frozen=True, slots=True)
class Ranking:
    """Methods by their average rank over ``blocks`` measurements, each of which has a value of every method."""

    methods: tuple[str, ...]  # best first
    average_ranks: tuple[
        float, ...
    ]  # increasing, 1..k; rank 1 is the highest value, ties share the mean of their ranks
    blocks: int
    chi_square: float  # Friedman's statistic, k - 1 degrees of freedom
    f: float  # Iman and Davenport's statistic; inf where all blocks agree
    p: float  # of f
    alpha: float  # significance level
    critical_difference: float  # of two average ranks, at alpha
    groups: tuple[tuple[int, int], ...]  # first and last place of every group that is not told apart
    notes: tuple[str, ...] = ()

    @property
    def rejected(self) -> bool:
        """Whether the Friedman test rejects that all methods are ranked alike."""
        return self.p < self.alpha

    def indistinct(self, place: int) -> list[str]:
        """Methods that share a group with the one at this place."""
        near = {i for first, last in self.groups if first <= place <= last for i in range(first, last + 1)}
        return [self.methods[i] for i in sorted(near - {place})]


def mid_ranks(values: Sequence[float]) -> list[float]:
    """Rank values from 1, the highest; values that are equal up to rounding share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    ranks = [0.0] * len(values)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end - 1]] - values[order[end]] > ROUNDING:
            for place in order[start:end]:
                ranks[place] = (start + 1 + end) / 2
            start = end
    return ranks


def friedman(average_ranks: Sequence[float], blocks: int) -> tuple[float, float, float]:
    """Return Friedman's chi square, Iman and Davenport's F and the p value of F, for k average ranks over n blocks.

    chi square = 12 n / (k (k + 1)) (sum of squared average ranks - k (k + 1)^2 / 4) (Friedman, JASA 32, 1937), without
    a correction for ties, which would make it larger; F = (n - 1) chi square / (n (k - 1) - chi square), with k - 1 and
    (k - 1)(n - 1) degrees of freedom (Iman and Davenport, Communications in Statistics A 9, 1980). Where all blocks
    agree F is infinite, and p is the exact probability of that, k! to the power of 1 - n.
    """
    from scipy import stats

    k = len(average_ranks)
    spread = math.fsum(rank**2 for rank in average_ranks) - k * (k + 1) ** 2 / 4
    chi_square = max(0.0, 12 * blocks / (k * (k + 1)) * spread)
    rest = blocks * (k - 1) - chi_square
    if rest <= ROUNDING * blocks * k:
        return chi_square, math.inf, float(math.factorial(k)) ** (1 - blocks)
    f = (blocks - 1) * chi_square / rest
    return chi_square, f, float(stats.f.sf(f, k - 1, (k - 1) * (blocks - 1)))


def nemenyi_difference(methods: int, blocks: int, alpha: float = ALPHA) -> float:
    """Return the critical difference of the average ranks of k methods over n blocks: q sqrt(k (k + 1) / (6 n)).

    q is the upper alpha quantile of the Studentized range of k values with infinitely many degrees of freedom, divided
    by sqrt(2) (Nemenyi, Distribution-free multiple comparisons, thesis, Princeton, 1963; Demsar 2006, section 3.2.2).
    """
    from scipy import stats

    q = float(stats.studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def maximal_groups(increasing: Sequence[float], critical_difference: float) -> list[tuple[int, int]]:
    """First and last place of every maximal run of at least two ranks that differ by less than the critical one."""
    groups: list[tuple[int, int]] = []
    for first, low in enumerate(increasing):
        last = max(
            i for i, rank in enumerate(increasing) if i >= first and (i == first or rank - low < critical_difference)
        )
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups


def rank_scores(methods: Sequence[str], scores: Sequence[Sequence[float]], alpha: float = ALPHA) -> Ranking:
    """Rank methods by scores of ``(blocks, methods)``, of which the highest is the best.

    If the Friedman test does not reject at ``alpha``, nothing is told apart and all methods are one group; otherwise
    the groups are those of the Nemenyi test.

    Raises:
        ValueError: fewer than 3 methods or 2 blocks, or a block with another number of scores.
    """
    k, n = len(methods), len(scores)
    if k < FEWEST_METHODS or n < FEWEST_BLOCKS or any(len(block) != k for block in scores):
        raise ValueError(
            f"{n} blocks of {k} methods; need {FEWEST_BLOCKS} blocks and {FEWEST_METHODS} methods or more, "
            "and in every block one score per method"
        )
    ranks = [mid_ranks(block) for block in scores]
    averages = [math.fsum(block[i] for block in ranks) / n for i in range(k)]
    order = sorted(range(k), key=lambda i: averages[i])
    increasing = tuple(averages[i] for i in order)
    chi_square, f, p = friedman(increasing, n)
    difference = nemenyi_difference(k, n, alpha)
    return Ranking(
        methods=tuple(methods[i] for i in order),
        average_ranks=increasing,
        blocks=n,
        chi_square=chi_square,
        f=f,
        p=p,
        alpha=alpha,
        critical_difference=difference,
        groups=tuple(maximal_groups(increasing, difference)) if p < alpha else ((0, k - 1),),
    )


def rankings(results: Sequence[RunResult], metric: str = METRIC, alpha: float = ALPHA) -> list[Ranking]:
    """``rank_settings`` of runs."""
    return rank_settings(group_by_setting(results), metric, alpha)[0]


def rank_settings(
    groups: Sequence[tuple[Setting, Sequence[RunResult]]], metric: str = METRIC, alpha: float = ALPHA
) -> tuple[list[Ranking], list[str]]:
    """Rank the methods over all settings: one ranking per protocol and selection rule, where there is enough for one.

    A block is one (setting, target, seed) in which every method has a value; the others are left out and counted.
    Upper bounds are not ranked.

    Returns:
        The rankings, and a sentence for each that would have more than ``MOST_RANKED`` methods.
    """
    apart: dict[tuple[str, str], list[tuple[Setting, list[RunResult]]]] = {}
    for setting, runs in groups:
        ranked = [run for run in runs if run.spec.method not in UPPER_BOUNDS]
        apart.setdefault((setting.protocol, setting.selection), []).append((setting, ranked))
    found, refused = [], []
    for protocol, selection in sorted(apart):
        settings = apart[protocol, selection]
        treatments = _treatments([runs for _, runs in settings])
        if len(treatments) > MOST_RANKED:
            refused.append(
                f"Protocol {protocol}, selection rule {selection}: {len(treatments)} methods with their "
                f"hyperparameters are not ranked; a ranking holds {MOST_RANKED}."
            )
            continue
        everything = [
            run
            for setting, runs in groups
            if (setting.protocol, setting.selection) == (protocol, selection)
            for run in runs
        ]
        ranking = _rank_runs(settings, treatments, everything, metric, alpha)
        found += [ranking] if ranking else []
    return found, refused


def _rank_runs(
    ranked: Sequence[tuple[Setting, list[RunResult]]],
    labels: Mapping[Treatment, str],
    everything: Sequence[RunResult],
    metric: str,
    alpha: float,
) -> Ranking | None:
    """The ranking of settings of one protocol and selection rule; None where too few methods or blocks are left."""
    scores, blocks = _scores(ranked, labels, metric)
    complete = [block for block in blocks if all((block, treatment) in scores for treatment in labels)]
    if len(labels) < FEWEST_METHODS or len(complete) < FEWEST_BLOCKS:
        return None
    table = [[scores[block, treatment] for treatment in labels] for block in complete]
    ranking = rank_scores(list(labels.values()), table, alpha)
    excluded = sorted({run.spec.method for run in everything} & UPPER_BOUNDS)
    notes = _notes(ranking, ranked[0][0], metric, len(blocks), excluded)
    return replace(ranking, notes=(*notes, *random_weights_note(everything)))


def _treatments(settings: Sequence[Sequence[RunResult]]) -> dict[Treatment, str]:
    """What is ranked and its label: methods, or their variants where a setting has several of one method."""
    variants = [{Variant.of(run) for run in runs} for runs in settings]
    labels = variant_labels([run for runs in settings for run in runs])
    if any(len({variant.method for variant in found}) < len(found) for found in variants):
        return dict[Treatment, str](labels.items())
    return {variant.method: METHOD_NAMES.get(variant.method, variant.method) for variant in labels}


def _scores(
    settings: Sequence[tuple[Setting, Sequence[RunResult]]], treatments: Mapping[Treatment, str], metric: str
) -> tuple[dict[tuple[Block, Treatment], float], list[Block]]:
    """The value of every treatment in every block, and all blocks that any run belongs to."""
    scores: dict[tuple[Block, Treatment], float] = {}
    blocks: dict[Block, None] = {}
    for setting, runs in settings:
        blocks |= {(setting, (run.spec.target, run.spec.sources), seed_of(run)): None for run in runs}
        for variant, own in runs_by_variant(runs).items():
            treatment = variant if variant in treatments else variant.method
            found = finished_values(own, metric)
            scores |= {((setting, column, seed), treatment): value for (column, seed), value in found.items()}
    return scores, list(blocks)


def _notes(ranking: Ranking, setting: Setting, metric: str, blocks: int, excluded: Sequence[str]) -> list[str]:
    """The sentences that belong beside a ranking."""
    k, n = len(ranking.methods), ranking.blocks
    quantity = "accuracy of the fused prediction" if metric == METRIC else metric
    notes = [
        f"Average rank by {quantity} over {n} blocks, 1 is best, ties share the mean of their ranks. A block is one "
        "setting, target and seed in which every method has a value.",
        f"Selection rule: {setting.selection_text}. Protocol: {setting.protocol}.",
    ]
    if blocks > n:
        notes.append(f"{blocks - n} of {blocks} blocks lack a value of some method and are left out.")
    verdict = "rejects" if ranking.rejected else "does not reject"
    end = "" if ranking.rejected else ", so no two of them are told apart"
    notes += [
        f"Friedman test with the correction of Iman and Davenport: F({k - 1}, {(k - 1) * (n - 1)}) = {ranking.f:.2f}, "
        f"p {p_text(ranking.p)}; it {verdict} at {ranking.alpha:g} that all methods are ranked alike{end}.",
        "Nemenyi test: average ranks that differ by less than the critical difference, CD = "
        f"{ranking.critical_difference:.2f}, are not told apart at {ranking.alpha:g} (Demsar 2006).",
        "Blocks that differ only in the seed share their clips. The tests take them as independent, so they find "
        "differences too easily, and they say nothing about other data sets.",
    ]
    if excluded:
        names = ", ".join(METHOD_NAMES.get(method, method) for method in excluded)
        notes.append(f"Not ranked, as it sees labels that the others do not: {names}.")
    return notes
