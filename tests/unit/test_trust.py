"""Trust levels of predictions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.trust import Trust, judge


def probs(*rows: tuple[int, float]) -> Tensor:
    """Rows of three classes with a class and its confidence; the others share the rest."""
    found = torch.zeros(len(rows), 3)
    for row, (label, confidence) in enumerate(rows):
        found[row] = (1 - confidence) / 2
        found[row, label] = confidence
    return found


def judged(fused: Tensor, alone: dict[str, Tensor], present: dict[str, list[bool]], threshold: float) -> list[Trust]:
    return judge(fused, alone, {m: torch.tensor(here, dtype=torch.bool) for m, here in present.items()}, threshold)


def test_every_level_with_who_supports_and_who_contradicts() -> None:
    fused = probs((0, 0.9), (0, 0.9), (0, 0.9), (0, 0.7), (0, 0.9))
    alone = {
        "video": probs((0, 0.9), (1, 0.9), (0, 0.7), (0, 0.9), (1, 0.9)),
        "audio": probs((2, 0.9), (0, 0.7), (0, 0.7), (1, 0.9), (0, 0.9)),
    }
    here = {"video": [True] * 5, "audio": [True] * 5}
    assert judged(fused, alone, here, 0.8) == [
        Trust("consensus", ("video",), ("audio",)),
        Trust("disagreement", (), ("video",)),
        Trust("disagreement", (), ()),
        Trust("low", ("video",), ("audio",)),
        Trust("consensus", ("audio",), ("video",)),
    ]


def test_the_threshold_itself_is_enough() -> None:
    half = torch.tensor([[0.5, 0.25, 0.25]])
    assert judged(half, {"video": half}, {"video": [True]}, 0.5) == [Trust("consensus", ("video",), ())]
    above = float(torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)))
    assert judged(half, {"video": half}, {"video": [True]}, above) == [Trust("low", (), ())]


def test_what_stands_where_a_modality_is_missing_is_ignored() -> None:
    fused, missing = probs((0, 0.9), (0, 0.9)), torch.full((1, 3), torch.nan)
    alone = {"video": torch.cat([missing, probs((0, 0.9))]), "audio": probs((0, 0.99), (1, 0.99))}
    found = judged(fused, alone, {"video": [False, True], "audio": [False, False]}, 0.8)
    assert found == [Trust("disagreement", (), ()), Trust("consensus", ("video",), ())]


def test_a_row_without_a_prediction_is_low() -> None:
    nothing = torch.full((1, 3), torch.nan)
    (found,) = judged(nothing, {"video": probs((0, 0.9))}, {"video": [True]}, 0.0)
    assert found == Trust("low", (), ())


def test_a_single_modality_can_agree_with_itself_alone() -> None:
    fused = probs((1, 0.9), (1, 0.9))
    found = judged(fused, {"audio": probs((1, 0.9), (2, 0.9))}, {"audio": [True, True]}, 0.8)
    assert [f.level for f in found] == ["consensus", "disagreement"]


def test_nothing_is_judged_of_no_rows() -> None:
    assert judged(torch.zeros(0, 3), {"video": torch.zeros(0, 3)}, {"video": []}, 0.8) == []


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(UsageError, match="must be a confidence from 0 to 1"):
        judge(probs((0, 0.9)), {}, {}, threshold)
