"""Optimisers over the run axis: equal to PyTorch's, and the same bits for every stack."""

from __future__ import annotations

import pytest
import torch

from heads.optimiser import OPTIMISERS, SCHEDULES, Rate, StackedOptimiser

SHAPES = [(1, 6), (37, 11), (1, 64), (16, 32)]


def trained(kind: str, runs: list[int], rates: dict[int, float], steps: int = 60) -> list[torch.Tensor]:
    """Parameters of some runs after training on gradients that are a function of run and step only."""
    torch.set_num_threads(1)
    parameters = []
    for shape in SHAPES:
        parts = [torch.randn(shape, generator=torch.Generator().manual_seed(run)) for run in runs]
        parameters.append(torch.nn.Parameter(torch.stack(parts)))
    optimiser = StackedOptimiser(kind, parameters, [Rate(rates[r], 0.01, momentum=0.9 * (kind == "sgd")) for r in runs])
    for step in range(steps):
        for parameter in parameters:
            draws = [
                torch.randn(parameter.shape[1:], generator=torch.Generator().manual_seed(1000 * run + step))
                for run in runs
            ]
            parameter.grad = torch.stack(draws) * 0.1
        optimiser.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("rates", [dict.fromkeys(range(7), 1e-3), {r: 1e-3 * (1 + r % 3) for r in range(7)}])
def test_a_run_gets_the_same_bits_alone_and_in_a_stack(kind: str, rates: dict[int, float]) -> None:
    together = trained(kind, list(range(7)), rates)
    for run in range(7):
        for alone, stacked in zip(trained(kind, [run], rates), together, strict=True):
            assert torch.equal(alone[0], stacked[run])


PLAIN = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, weight_decay=0.1, momentum=0.9),
}


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_it_is_pytorchs(kind: str) -> None:
    ours = torch.nn.Parameter(torch.linspace(-1, 1, 14).view(2, 1, 7).double())
    theirs = torch.nn.Parameter(ours.detach().clone())
    stacked = StackedOptimiser(kind, [ours], [Rate(1e-2, 0.1, momentum=0.9 * (kind == "sgd"))] * 2)
    plain = PLAIN[kind]([theirs])
    for step in range(20):
        ours.grad = torch.sin(ours.detach() * step)
        theirs.grad = torch.sin(theirs.detach() * step)
        stacked.step(step)
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_its_state_can_be_stored_and_restored(kind: str) -> None:
    rates = [Rate(1e-2, momentum=0.9), Rate(2e-2, momentum=0.9, schedule="cosine", steps=6)]

    def fresh() -> tuple[torch.nn.Parameter, StackedOptimiser]:
        parameter = torch.nn.Parameter(torch.ones(2, 1, 5))
        return parameter, StackedOptimiser(kind, [parameter], rates)

    def advance(parameter: torch.nn.Parameter, optimiser: StackedOptimiser, first: int, last: int) -> None:
        for step in range(first, last):
            parameter.grad = torch.full_like(parameter, 0.1 * step)
            optimiser.step(step)

    whole, optimiser = fresh()
    advance(whole, optimiser, 0, 6)
    half, before = fresh()
    advance(half, before, 0, 3)
    resumed, after = fresh()
    resumed.data.copy_(half.detach())
    after.load_tensors({k: v.clone() for k, v in before.tensors().items()})
    advance(resumed, after, 3, 6)
    assert torch.equal(whole, resumed)


def test_schedules() -> None:
    plain = {name: Rate(2.0, schedule=name, steps=10) for name in SCHEDULES}
    assert [plain["constant"].at(k) for k in (0, 5, 10)] == [2.0, 2.0, 2.0]
    assert [plain["linear"].at(k) for k in (0, 5, 10)] == [2.0, 1.0, 0.0]
    assert [plain["cosine"].at(k) for k in (0, 5, 10)] == pytest.approx([2.0, 1.0, 0.0])
    assert plain["cosine"].at(2) > plain["linear"].at(2)
    warm = Rate(2.0, schedule="linear", warmup_steps=4, steps=12)
    assert [warm.at(k) for k in (0, 1, 3, 4, 8, 12)] == [0.5, 1.0, 2.0, 2.0, 1.0, 0.0]


def test_every_run_follows_its_own_schedule() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, 1, 4))
    rates = [Rate(0.1), Rate(0.1, schedule="linear", steps=4), Rate(0.1, warmup_steps=2)]
    optimiser = StackedOptimiser("sgd", [parameter], rates)
    for step in range(4):
        parameter.grad = torch.ones_like(parameter)
        optimiser.step(step)
    expected = [-sum(rate.at(step) for step in range(4)) for rate in rates]
    assert parameter[:, 0, 0].tolist() == pytest.approx(expected)
