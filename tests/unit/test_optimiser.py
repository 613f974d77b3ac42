"""AdamW over the run axis: equal to PyTorch's, and the same bits for every stack."""

from __future__ import annotations

import pytest
import torch

from heads.optimiser import StackedAdamW

SHAPES = [(1, 6), (37, 11), (1, 64), (16, 32)]


def trained(runs: list[int], rates: dict[int, float], steps: int = 60) -> list[torch.Tensor]:
    """Parameters of some runs after training on gradients that are a function of run and step only."""
    torch.set_num_threads(1)
    parameters = []
    for shape in SHAPES:
        parts = [torch.randn(shape, generator=torch.Generator().manual_seed(run)) for run in runs]
        parameters.append(torch.nn.Parameter(torch.stack(parts)))
    optimiser = StackedAdamW(parameters, [rates[r] for r in runs], [0.01] * len(runs))
    for step in range(steps):
        for parameter in parameters:
            draws = [
                torch.randn(parameter.shape[1:], generator=torch.Generator().manual_seed(1000 * run + step))
                for run in runs
            ]
            parameter.grad = torch.stack(draws) * 0.1
        optimiser.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("rates", [dict.fromkeys(range(7), 1e-3), {r: 1e-3 * (1 + r % 3) for r in range(7)}])
def test_a_run_gets_the_same_bits_alone_and_in_a_stack(rates: dict[int, float]) -> None:
    together = trained(list(range(7)), rates)
    for run in range(7):
        for alone, stacked in zip(trained([run], rates), together, strict=True):
            assert torch.equal(alone[0], stacked[run])


def test_it_is_adamw() -> None:
    ours = torch.nn.Parameter(torch.linspace(-1, 1, 14).view(2, 1, 7).double())
    theirs = torch.nn.Parameter(ours.detach().clone())
    stacked = StackedAdamW([ours], [1e-2, 1e-2], [0.1, 0.1])
    plain = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    for step in range(20):
        ours.grad = torch.sin(ours.detach() * step)
        theirs.grad = torch.sin(theirs.detach() * step)
        stacked.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_its_state_can_be_stored_and_restored() -> None:
    def fresh() -> tuple[torch.nn.Parameter, StackedAdamW]:
        parameter = torch.nn.Parameter(torch.ones(2, 1, 5))
        return parameter, StackedAdamW([parameter], [1e-2, 2e-2], [0.0, 0.0])

    def advance(parameter: torch.nn.Parameter, optimiser: StackedAdamW, first: int, last: int) -> None:
        for step in range(first, last):
            parameter.grad = torch.full_like(parameter, 0.1 * step)
            optimiser.step()

    whole, optimiser = fresh()
    advance(whole, optimiser, 0, 6)
    half, before = fresh()
    advance(half, before, 0, 3)
    resumed, after = fresh()
    resumed.data.copy_(half.detach())
    after.load_tensors({k: v.clone() for k, v in before.tensors().items()})
    advance(resumed, after, 3, 6)
    assert torch.equal(whole, resumed)
