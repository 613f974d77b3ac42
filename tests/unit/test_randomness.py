"""Random numbers per run: uniform, and a function of seed, step and place alone."""

from __future__ import annotations

import pytest
import torch

from heads.layers import dropout
from heads.randomness import RunStreams

CPU = torch.device("cpu")


def test_a_run_draws_the_same_numbers_in_every_stack() -> None:
    alone = RunStreams([7], CPU).bits(3, "here", 5, 11)
    stacked = RunStreams([1, 7, 9], CPU).bits(3, "here", 5, 11)
    assert torch.equal(alone[0], stacked[1])


def test_seed_step_and_place_each_change_the_numbers() -> None:
    reference = RunStreams([1], CPU).bits(3, "here", 1000)
    others = [
        RunStreams([2], CPU).bits(3, "here", 1000),
        RunStreams([1], CPU).bits(4, "here", 1000),
        RunStreams([1], CPU).bits(3, "there", 1000),
    ]
    for other in others:
        assert (reference == other).float().mean() < 0.01


def test_the_numbers_are_uniform_and_neighbours_unrelated() -> None:
    draws = torch.stack([RunStreams([5], CPU).bits(step, "here", 20_000)[0] for step in range(20)]).double()
    scaled = (draws + 32768) / 65536
    assert scaled.mean().item() == pytest.approx(0.5, abs=0.003)
    counts = torch.histc(scaled.flatten(), 64, 0, 1) / scaled.numel() * 64
    assert (counts - 1).abs().max() < 0.06
    centred = scaled - 0.5
    for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):  # within a step, between steps
        assert abs((a * b).mean().item() * 12) < 0.01


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    x = torch.ones(2, 300, 200)
    out = dropout(x, torch.tensor([rate, 0.0]), RunStreams([0, 1], CPU), 0, "here")
    assert (out[0] == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert out[0].mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(out[1], x[1])
