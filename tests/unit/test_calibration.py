"""Temperatures and calibration errors, by hand-computed numbers and against definitions."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from pipeline.bundlespec import Temperature
from pipeline.calibration import (
    FOLDS,
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    cross_fitted,
    expected_calibration_error,
    fit_temperature,
    fold_numbers,
    negative_log_likelihood,
)
from pipeline.measuring import (
    Examples,
    Outcome,
    Temperatures,
    constant,
    filler_accuracies,
    fitted,
    held_out,
    measure,
    run_model,
)
from tests.bundles import CLASSES, a_head, a_plan


def drawn(clips: int, temperature: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from their softmax at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(clips, 5, generator=generator)
    labels = torch.multinomial(torch.softmax(logits.double() / temperature, 1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    logits, labels = drawn(20_000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.04)


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_the_least_likelihood(seed: int) -> None:
    logits, labels = drawn(37, 2.0, seed)
    found = fit_temperature(logits, labels)
    best = minimize_scalar(
        lambda t: negative_log_likelihood(logits, labels, t), bounds=(0.05, 100), options={"xatol": 1e-10}
    )
    assert found == pytest.approx(best.x, rel=1e-5)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(seed))
    assert fit_temperature(logits[order], labels[order]) == pytest.approx(found, rel=1e-12)
    assert fit_temperature(logits, labels) == found


def test_the_likelihood_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    one = -torch.log_softmax(torch.tensor([1.0, 0.0], dtype=torch.float64), 0)
    wanted = float(one[0] + one[1]) / 2
    assert negative_log_likelihood(logits, torch.tensor([0, 0]), 2.0) == pytest.approx(wanted, rel=1e-15)


def test_a_temperature_ends_where_the_search_does() -> None:
    logits, labels = torch.eye(5), torch.arange(5)
    assert fit_temperature(logits, labels) == LEAST_TEMPERATURE
    assert fit_temperature(logits, labels.roll(1)) == MOST_TEMPERATURE
    with pytest.raises(ValueError, match="needs clips"):
        fit_temperature(logits[:0], labels[:0])


def test_the_calibration_error_by_hand() -> None:
    # Confidence 0.6 falls into (8/15, 9/15], 0.95 into the last bin.
    probs = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6], [0.95, 0.05]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1])
    wanted = (3 * abs(2 / 3 - 0.6) + 1 * abs(0 - 0.95)) / 4
    assert expected_calibration_error(probs, labels) == pytest.approx(wanted, rel=1e-12)
    assert expected_calibration_error(probs, labels, bins=1) == pytest.approx(abs(2 / 4 - (3 * 0.6 + 0.95) / 4))
    assert expected_calibration_error(probs[:0], labels[:0]) is None


def test_the_upper_edge_belongs_to_a_bin() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.51, 0.49]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    # Two bins, (0, 0.5] and (0.5, 1]: the two errors do not cancel.
    assert expected_calibration_error(probs, labels, bins=2) == pytest.approx((0.5 + 0.51) / 2)
    sure = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert expected_calibration_error(sure, torch.tensor([0])) == 0.0


def test_folds_depend_on_the_ids_alone() -> None:
    ids = [f"clip-{i}" for i in range(43)]
    folds = fold_numbers(ids)
    assert sorted(folds.bincount().tolist()) == [8, 8, 9, 9, 9]
    turned = fold_numbers(ids[::-1])
    assert turned.flip(0).tolist() == folds.tolist()
    assert folds.tolist() != (torch.arange(43) % FOLDS).tolist()


def test_a_clip_has_no_say_in_its_own_temperature() -> None:
    logits, labels = drawn(50, 2.0)
    folds = torch.arange(50) % FOLDS
    found = cross_fitted(logits, labels, folds)
    for fold in range(FOLDS):
        others = folds != fold
        assert float(found[fold]) == fit_temperature(logits[others], labels[others])
        wrong = torch.where(others, labels, (labels + 1) % 5)
        changed = cross_fitted(logits, wrong, folds)
        assert changed[fold] == found[fold]
        assert (changed != found).sum() == FOLDS - 1


def outcome_of(clips: int) -> Outcome:
    """A random model on random examples, of which some lack audio; it is right about most of them."""
    head = a_head(a_plan(("video", "audio")))
    head.set_temperatures(dict.fromkeys(head.plan.subsets, 1.0), dict.fromkeys(head.modalities, 1.0))
    generator = torch.Generator().manual_seed(0)
    present = {"video": torch.ones(clips, dtype=torch.bool), "audio": torch.arange(clips) % 4 != 0}
    features = {m: torch.randn(clips, dim, generator=generator).half() for m, dim in head.dims.items()}
    ids = tuple(f"c{i}" for i in range(clips))
    labels = torch.zeros(clips, dtype=torch.int64)
    logits = run_model(head, Examples(ids, features, present, labels), "translate")
    votes = torch.stack([*logits.fused.values(), *logits.alone.values()]).nan_to_num().argmax(-1)
    for clip in range(clips):
        right = torch.rand(1, generator=generator) < 0.8
        labels[clip] = (
            votes[clip % len(votes), clip] if right else torch.randint(len(CLASSES), (1,), generator=generator)
        )
    return run_model(head, Examples(ids, features, present, labels), "translate")


def test_every_subset_is_what_the_model_says_of_it() -> None:
    head = a_head(a_plan(("video", "audio")))
    head.set_temperatures(dict.fromkeys(head.plan.subsets, 1.0), dict.fromkeys(head.modalities, 1.0))
    outcome = outcome_of(30)
    examples = outcome.examples
    whole = outcome.probs(("video", "audio"), None)
    said = head(examples.features, examples.present, "translate")
    torch.testing.assert_close(whole.float(), said.probs, rtol=0, atol=1e-6)
    silent = {**examples.present, "audio": torch.zeros(30, dtype=torch.bool)}
    taken = outcome.probs(("video",), None)
    torch.testing.assert_close(taken.float(), head(examples.features, silent, "translate").probs, rtol=0, atol=1e-6)
    assert outcome.probs(("audio",), None).isnan().any(1).tolist() == (~examples.present["audio"]).tolist()
    alone = torch.softmax(outcome.alone["audio"], 1)
    torch.testing.assert_close(alone, said.alone["audio"], rtol=0, atol=1e-6, equal_nan=True)


def test_temperatures_are_fitted_per_subset_on_the_clips_that_have_it() -> None:
    outcome = outcome_of(80)
    fused, alone = fitted(outcome)
    labels, sound = outcome.examples.labels, outcome.examples.present["audio"]
    assert fused["video",].clips == 80
    assert fused["video", "audio"].clips == fused["audio",].clips == alone["audio"].clips == 60
    both = outcome.fused["video", "audio"]
    assert fused["video", "audio"].value == fit_temperature(both[sound], labels[sound])
    assert alone["video"].value == fit_temperature(outcome.alone["video"], labels)
    assert len({t.value for t in (*fused.values(), *alone.values())}) == 5


def test_too_few_clips_fit_no_temperature_and_say_so() -> None:
    outcome = outcome_of(24)
    fused, alone = fitted(outcome)
    assert fused["video",].value != 1
    assert (fused["audio",].value, fused["audio",].clips, alone["audio"].value) == (1.0, 18, 1.0)
    assert fused["audio",].note.startswith("not fitted: 18 clips")
    folds = fold_numbers(outcome.examples.clip_ids)
    crossed = held_out(fused, alone, outcome, folds)
    assert crossed.fused["audio",].tolist() == crossed.alone["audio"].tolist() == [1.0] * 24
    assert len(set(crossed.fused["video",].tolist())) == FOLDS
    nothing, _ = fitted(outcome_of(0))
    assert {t.value for t in nothing.values()} == {1.0}


def test_held_back_clips_are_measured_without_their_own_fold() -> None:
    outcome = outcome_of(60)
    fused, alone = fitted(outcome)
    folds = fold_numbers(outcome.examples.clip_ids)
    crossed = held_out(fused, alone, outcome, folds)
    record = measure(outcome, crossed, 0.5, "held back")
    probs = torch.full((60, 3), torch.nan, dtype=torch.float64)
    for fold in range(FOLDS):
        for kept, logits in outcome.fused.items():
            having, others = outcome.having(kept), folds != fold
            t = fit_temperature(logits[having & others], outcome.examples.labels[having & others])
            rows = having & ~others & (len(kept) == 2 or ~outcome.examples.present["audio"])
            if kept != ("audio",):
                probs[rows] = torch.softmax(logits[rows].double() / t, 1)
    wanted = expected_calibration_error(probs, outcome.examples.labels)
    assert record.subsets["video+audio"].ece_after == pytest.approx(wanted)
    inside = measure(outcome, constant(fused, alone, outcome.examples), 0.5, "held back")
    assert inside.subsets["video+audio"].ece_after != record.subsets["video+audio"].ece_after
    assert inside.subsets["video+audio"].ece_before == record.subsets["video+audio"].ece_before


def test_measured_figures_are_those_of_the_predictions() -> None:
    outcome = outcome_of(40)
    ones = {kept: Temperature(1.0, 40) for kept in outcome.fused}
    record = measure(
        outcome,
        constant(ones, {"video": Temperature(1.0, 40), "audio": Temperature(1.0, 40)}, outcome.examples),
        0.6,
        "x",
    )
    labels, sound = outcome.examples.labels, outcome.examples.present["audio"]
    audio = record.subsets["audio"]
    right = outcome.fused["audio",][sound].argmax(1) == labels[sound]
    assert (audio.clips, audio.accuracy) == (30, pytest.approx(float(right.double().mean())))
    assert audio.ece_before == audio.ece_after
    assert record.alone["audio"].clips == 30
    assert sum(found.clips for found in record.levels.values()) == 40
    assert sum(found.share or 0 for found in record.levels.values()) == pytest.approx(1)
    confident = outcome.probs(("video", "audio"), None).max(1).values >= 0.6
    assert record.levels["low"].clips == int((~confident).sum())
    hits = sum((found.accuracy or 0) * found.clips for found in record.levels.values())
    assert hits / 40 == pytest.approx(record.subsets["video+audio"].accuracy)


def test_nothing_is_measured_of_no_clips() -> None:
    outcome = outcome_of(0)
    record = measure(
        outcome, Temperatures(*[{k: torch.ones(0) for k in part} for part in (outcome.fused, outcome.alone)]), 0.5, ""
    )
    assert record.subsets["video"].accuracy is None
    assert (record.levels["low"].clips, record.levels["low"].share) == (0, None)


def test_fillers_are_compared_on_the_subsets_that_lack_something() -> None:
    head = a_head(a_plan(("video", "audio")))
    head.set_temperatures(dict.fromkeys(head.plan.subsets, 1.0), dict.fromkeys(head.modalities, 1.0))
    examples = outcome_of(40).examples
    found = filler_accuracies(head, examples)
    assert list(found) == ["zero", "mean", "prototype", "translate", "translate-raw", "renormalise"]
    values = []
    for kept, other in (("video", "audio"), ("audio", "video")):
        here = {kept: examples.present[kept], other: torch.zeros(40, dtype=torch.bool)}
        probs = head(examples.features, here, "mean").probs[here[kept]]
        values.append(float((probs.argmax(1) == examples.labels[here[kept]]).double().mean()))
    assert found["mean"] == pytest.approx(sum(values) / 2)
    assert filler_accuracies(a_head(a_plan(("video",))), examples) == {}
    nothing = Examples((), {m: x[:0] for m, x in examples.features.items()}, examples.present, examples.labels[:0])
    assert filler_accuracies(head, nothing) == {}
