"""Means, standard errors and paired differences against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from pipeline.report.statistics import band, mean_and_standard_error, paired_difference


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
    assert (paired.wins, paired.ties, paired.losses, paired.n) == (2, 1, 1, 4)


def test_pairing_removes_what_the_seeds_share() -> None:
    baseline = {seed: 0.1 * seed for seed in range(5)}
    values = {seed: value + 0.02 for seed, value in baseline.items()}
    paired = paired_difference(values, baseline)
    assert paired.mean == pytest.approx(0.02)
    assert paired.se == pytest.approx(0, abs=1e-12)


def test_rounding_is_a_tie() -> None:
    assert paired_difference({0: 0.1 + 0.2}, {0: 0.3}).ties == 1


def test_one_pair_has_no_standard_error() -> None:
    assert paired_difference({"a": 0.5}, {"a": 0.25}).se is None


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
