"""Cases against their reference, and one hyperparameter at a time: numbers by hand."""

from __future__ import annotations

import pytest

from pipeline.reports.ablation import ablations
from pipeline.types import RunResult
from tests.unit.test_report_tables import run

GAINS = {"all of it": 0.0, "without prototypes": -0.1, "without translation": 0.05}
WEIGHTS = {"all of it": (1.0, 1.0), "without prototypes": (0.0, 1.0), "without translation": (1.0, 0.0)}


def crossed(budgets: tuple[str, ...] = ("5", "10"), lost: tuple[str, str, int] | None = None) -> list[RunResult]:
    """Every case with every budget, two targets, three seeds; one run may have diverged."""
    return [
        run(
            "ssmdg",
            target,
            seed,
            None if lost == (case, target, seed) else 0.4 + 0.1 * (budget == "10") + gain + 0.01 * seed,
            budget=budget,
            hparams={"weight_prototype": WEIGHTS[case][0], "weight_translation": WEIGHTS[case][1]},
        )
        for case, gain in GAINS.items()
        for budget in budgets
        for target in ("A", "B")
        for seed in (0, 1, 2)
    ]


def named(results: list[RunResult]) -> dict[str, str]:
    """The case of every run, told by its weights."""
    by_weights = {weights: case for case, weights in WEIGHTS.items()}
    return {
        r.spec.run_id: by_weights[
            float(r.spec.hparams["weight_prototype"]), float(r.spec.hparams["weight_translation"])
        ]
        for r in results
    }


def test_every_budget_has_a_comparison_of_its_own() -> None:
    results = crossed()
    found, said = ablations(results, named(results))
    assert said == []
    assert len(found) == 2
    for ablation, base in zip(sorted(found, key=lambda a: a.reference_mean or 0), (0.41, 0.51), strict=True):
        assert ablation.reference == "all of it"
        assert ablation.reference_mean == pytest.approx(base)
        assert {b.label: round(b.paired.mean, 9) for b in ablation.bars} == {
            "without prototypes": -0.1,
            "without translation": 0.05,
        }
        assert all(b.paired.n == 3 for b in ablation.bars)


def test_a_seed_that_diverged_is_in_no_pair() -> None:
    results = crossed(("5",), lost=("without prototypes", "A", 1))
    (ablation,), _ = ablations(results, named(results))
    assert {b.label: b.paired.n for b in ablation.bars} == {"without prototypes": 2, "without translation": 3}


def test_runs_without_a_case_and_no_cases_at_all_give_nothing() -> None:
    results = crossed()
    assert ablations(results, {}) == ([], [])


def test_a_reference_without_any_whole_seed_is_said() -> None:
    results = [r for r in crossed(("5",)) if not (r.spec.target == "B" and named([r])[r.spec.run_id] == "all of it")]
    found, said = ablations(results, named(results))
    assert found == []
    assert len(said) == 1
    assert "the reference 'all of it' has no seed with every target" in said[0]
