"""Means, intervals and tests against numbers worked out by hand, scipy's and statsmodels'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.errors import UsageError
from pipeline.reports.statistics import (
    EXACT,
    PERMUTED,
    Paired,
    PairedTest,
    Record,
    band,
    bootstrap_interval,
    holm,
    mean_and_standard_error,
    paired_difference,
    paired_test,
    pairs_needed,
    smallest_p,
    win_tie_loss,
)

SHARES = st.floats(0, 1, allow_nan=False)
P_VALUES = st.lists(st.none() | SHARES, max_size=12)


def test_mean_and_standard_error_by_hand() -> None:
    # 2, 4, 6: mean 4, squared deviations 4 + 0 + 4, divided by n - 1 = 2 gives 4, standard error sqrt(4 / 3)
    mean, se = mean_and_standard_error([2, 4, 6])
    assert mean == 4
    assert se == pytest.approx(math.sqrt(4 / 3))


def test_five_seeds_by_hand() -> None:
    # deviations from 0.5: -0.04 -0.02 0 0.02 0.04; squares sum to 0.004; / 4 = 0.001; / 5 = 0.0002
    mean, se = mean_and_standard_error([0.46, 0.48, 0.50, 0.52, 0.54])
    assert mean == pytest.approx(0.5)
    assert se == pytest.approx(math.sqrt(0.0002))


def test_one_value_has_no_standard_error() -> None:
    assert mean_and_standard_error([0.3]) == (0.3, None)


def test_equal_values_have_standard_error_zero() -> None:
    assert mean_and_standard_error([0.25] * 4) == (0.25, 0.0)


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf")]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"mean of no values|finite"):
        mean_and_standard_error(values)


def test_paired_difference_by_hand() -> None:
    values = {0: 0.50, 1: 0.44, 2: 0.61, 3: 0.30, 9: 0.99}
    baseline = {0: 0.40, 1: 0.44, 2: 0.50, 3: 0.33, 8: 0.01}
    # differences 0.10, 0, 0.11, -0.03; mean 0.045; squared deviations .003025 + .002025 + .004225 + .005625 = .0149
    paired = paired_difference(values, baseline)
    assert paired.mean == pytest.approx(0.045)
    assert paired.se == pytest.approx(math.sqrt(0.0149 / 3 / 4))
    assert paired.n == 4
    # sums of the 16 sign patterns of 0.10, 0, 0.11, 0.03: 0.18 is reached or passed by 0.18 and 0.24 and their mirror
    # images, each twice for the zero: 8 of 16
    assert paired.p == 0.5
    assert paired.interval == pytest.approx(bootstrap_interval([0.10, 0.0, 0.11, -0.03]))


def test_pairing_removes_what_the_seeds_share() -> None:
    baseline = {seed: 0.1 * seed for seed in range(5)}
    values = {seed: value + 0.02 for seed, value in baseline.items()}
    paired = paired_difference(values, baseline)
    assert paired.mean == pytest.approx(0.02)
    assert paired.se == pytest.approx(0, abs=1e-12)


def test_one_pair_has_no_standard_error_interval_or_test() -> None:
    assert paired_difference({"a": 0.5}, {"a": 0.25}) == Paired(mean=0.25, se=None, n=1, interval=None, p=None)


def test_no_common_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="no seed"):
        paired_difference({0: 0.5}, {1: 0.5})


def test_band_by_hand() -> None:
    summary = band([([0, 10, 20], [0.2, None, 0.4]), ([0, 10, 20], [0.4, None, None])])
    assert summary.steps == (0, 10, 20)
    assert summary.mean == (pytest.approx(0.3), None, 0.4)
    assert summary.se == (pytest.approx(0.1), None, None)  # 0.2, 0.4: deviation 0.1414 (n - 1), / sqrt(2)
    assert summary.n == (2, 0, 1)


def test_band_joins_curves_of_different_steps() -> None:
    assert band([([0, 20], [0.1, 0.2]), ([10], [0.5])]).steps == (0, 10, 20)


SAMPLES = [[59, 61, 64, 67, 77], [13, 13, 115], [40, 45, 46, 49, 52, 58, 59, 67, 91, 102]]  # of 128: sums are exact


@pytest.mark.parametrize("values", [[value / 128 for value in sample] for sample in SAMPLES])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_interval_is_the_one_of_scipy_on_the_same_resamples(values: list[float], level: float) -> None:
    found = stats.bootstrap(
        (np.array(values),),
        np.mean,
        n_resamples=10_000,
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(7),
    )
    assert bootstrap_interval(values, level, seed=7) == pytest.approx(tuple(found.confidence_interval))


def test_interval_is_drawn_anew_only_by_another_seed() -> None:
    values = [0.4102, 0.5713, 0.4845, 0.5098, 0.6661, 0.3917, 0.4431, 0.7103]
    assert bootstrap_interval(values) == bootstrap_interval(values) == bootstrap_interval(values[::-1])
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    low, high = bootstrap_interval(values) or (0, 0)
    assert bootstrap_interval([100 * value for value in values]) == pytest.approx((100 * low, 100 * high))
    assert bootstrap_interval([value - 0.3 for value in values]) == pytest.approx((low - 0.3, high - 0.3))


def test_fewer_than_three_values_have_no_interval() -> None:
    assert bootstrap_interval([]) is bootstrap_interval([0.5]) is bootstrap_interval([0.1, 0.9]) is None


def test_equal_values_have_an_interval_of_length_zero() -> None:
    assert bootstrap_interval([0.25] * 3) == (0.25, 0.25)
    low, high = bootstrap_interval([0.1 + 0.2, 0.3, 0.3]) or (0, 1)
    assert low == high == pytest.approx(0.3)


@pytest.mark.parametrize(("values", "level"), [([1.0, 2.0, 3.0], 1.0), ([1.0, 2.0, 3.0], 95), ([1, 2, math.nan], 0.9)])
def test_an_interval_that_cannot_be_is_refused(values: list[float], level: float) -> None:
    with pytest.raises(ValueError, match=r"level is|finite"):
        bootstrap_interval(values, level)


def test_the_share_of_normal_means_that_five_seeds_cover_is_the_one_that_reports_state() -> None:
    draws = np.random.default_rng(0).normal(size=(600, 5))
    intervals = [bootstrap_interval(row.tolist()) or (1, 0) for row in draws]
    assert np.mean([low <= 0 <= high for low, high in intervals]) == pytest.approx(0.83, abs=0.045)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.01, 0.02, 0.03], 2 / 8),  # all of one sign: only the pattern itself and its mirror image
        ([0.01, -0.02, 0.03], 6 / 8),  # sums 6 4 2 0 and mirrored; |2| is reached by all but the two zeros
        ([0.02, 0.02, -0.02, 0.02], 10 / 16),  # |sum| 4 or 8 of 0, 4, 8: 16 minus 6 patterns with two of each sign
        ([0.1, 0.1], 2 / 4),
        ([0.0, 0.0, 0.0], 1),
        ([0.1 + 0.2 - 0.3, 0.0], 1),  # rounding
    ],
)
def test_permutation_p_by_hand(differences: list[float], p: float) -> None:
    assert paired_test(differences, [0.0] * len(differences)) == p


@pytest.mark.parametrize("n", [2, 5, 9, EXACT])
def test_exact_permutation_p_is_the_one_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.integers(40, 60, n) / 100, rng.integers(38, 58, n) / 100
    found = stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired_test(a.tolist(), b.tolist()) == pytest.approx(found.pvalue, rel=1e-12)


def test_drawn_permutation_p_is_near_the_exact_one_and_never_zero() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.53, 0.07, EXACT + 1), rng.normal(0.5, 0.07, EXACT + 1)
    found = stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    p = paired_test(a.tolist(), b.tolist()) or 0.0
    assert 0.01 < found < 0.5
    assert p == pytest.approx(found, abs=4 * math.sqrt(found / PERMUTED))
    assert (p * (1 + PERMUTED)) % 1 == pytest.approx(0, abs=1e-6)
    assert p == paired_test(a.tolist(), b.tolist())
    assert p != paired_test(a.tolist(), b.tolist(), seed=1)
    assert paired_test([0.6] * 40, [0.5] * 40) == 1 / (1 + PERMUTED) == smallest_p(40)


def test_wilcoxon_by_hand() -> None:
    # ranks of 1..6 by size, the second negative: W- = 2; of 64 patterns W- <= 2 in 3 ({}, {1}, {2}), two-sided 6 / 64
    assert paired_test([1, -2, 3, 4, 5, 6], [0] * 6, "wilcoxon") == 6 / 64
    # what differs only by rounding is tied: four equal differences, p = 2 / 2^4
    assert paired_test([0.1 + 0.2, 0.4, 0.5, 0.6], [0.2, 0.3, 0.4, 0.5], "wilcoxon") == 2 / 16
    assert paired_test([0.5, 0.5], [0.5, 0.5], "wilcoxon") == 1


def test_fewer_than_two_pairs_have_no_p() -> None:
    assert paired_test([], []) is paired_test([0.5], [0.4]) is paired_test([0.5], [0.4], "wilcoxon") is None


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(ValueError, match="3 values against 2"):
        paired_test([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="finite"):
        paired_test([1, math.inf], [1, 2])
    with pytest.raises(UsageError, match="paired test 't' is not known; tests: permutation, wilcoxon"):
        paired_test([1, 2], [1, 2], "t")  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=8))
@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
def test_p_is_the_same_with_sides_and_order_changed_and_never_below_the_smallest(
    test: PairedTest, pairs: list[tuple[float, float]]
) -> None:
    a, b = zip(*pairs, strict=True)
    p = paired_test(a, b, test)
    assert p is not None
    assert smallest_p(len(pairs), test) <= p <= 1
    assert paired_test(b, a, test) == pytest.approx(p)
    assert paired_test(a[::-1], b[::-1], test) == pytest.approx(p)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 10])
@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
def test_the_smallest_p_is_reached(n: int, test: PairedTest) -> None:
    values = [0.5 + 0.01 * i for i in range(n)]
    assert paired_test(values, [0.3] * n, test) == pytest.approx(smallest_p(n, test))


def test_how_many_pairs_it_takes() -> None:
    assert smallest_p(5) == 0.0625
    assert [pairs_needed(m, 0.05) for m in (1, 2, 3, 9)] == [6, 7, 7, 9]
    for m in (1, 2, 3, 9, 20):
        n = pairs_needed(m, 0.05)
        assert m * smallest_p(n) <= 0.05 < m * smallest_p(n - 1)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [  # statsmodels 0.15.0, multipletests(..., method="holm"); the second are the values of Demsar 2006, section 3.2.2
        ([0.01, 0.04, 0.03, 0.005, 0.2], [0.04, 0.09, 0.09, 0.025, 0.2]),
        ([0.016, 0.019, 0.607], [0.048, 0.048, 0.607]),
        ([0.0625, 0.0625, 0.5, 1.0, 0.125, 0.03], [0.3125, 0.3125, 1.0, 1.0, 0.375, 0.18]),
        ([0.3, 0.3, 0.3], [0.9, 0.9, 0.9]),
    ],
)
def test_holm_is_the_one_of_statsmodels(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(tuple(adjusted))


def test_holm_keeps_none_and_does_not_count_it() -> None:
    assert holm([None, 0.02, None, 0.04]) == (None, 0.04, None, 0.04)
    assert holm([None]) == (None,)
    assert holm([]) == ()


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(p: float) -> None:
    with pytest.raises(ValueError, match=r"every one must be in 0\.\.1"):
        holm([0.5, p])


@given(P_VALUES)
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p_values: Sequence[float | None]) -> None:
    adjusted = holm(p_values)
    assert [p is None for p in adjusted] == [p is None for p in p_values]
    pairs = sorted((p, q) for p, q in zip(p_values, adjusted, strict=True) if p is not None and q is not None)
    assert all(p <= q <= min(1, len(pairs) * p) for p, q in pairs)
    assert all(first[1] <= second[1] for first, second in pairwise(pairs))


@given(P_VALUES, st.randoms())
def test_holm_does_not_depend_on_the_order(p_values: list[float | None], random: object) -> None:
    places = list(range(len(p_values)))
    random.shuffle(places)  # type: ignore[attr-defined]
    adjusted = holm(p_values)
    assert holm([p_values[i] for i in places]) == tuple(adjusted[i] for i in places)


def test_a_difference_that_prints_as_zero_is_a_tie() -> None:
    differences = [0.0006, 0.0005, 0.00049, 0.0, 0.1 + 0.2 - 0.3, -0.00049, -0.0005, -0.2]
    assert win_tie_loss(differences) == Record(wins=2, ties=4, losses=2)
    assert win_tie_loss(differences, tie=0.15) == Record(wins=0, ties=7, losses=1)
    assert win_tie_loss([0.5005 - 0.5, 0.5 - 0.5005]) == Record(1, 0, 1)  # 0.05 points, up to rounding
    assert win_tie_loss([]) == Record(0, 0, 0)
