"""The plain loop that the benchmark measures against does what the stack does: same losses, same parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heads.network import HeadShape, Labeled, Unlabeled
from tests.bench.reference import Settings, batch_of, build_optimiser, build_stack, parameters_of, reference_of

DIMS = {"video": 12, "flow": 10, "audio": 6}
CLASSES, DOMAINS, RUNS = 3, 2, 2
SETTINGS = Settings(threshold=0.4, learning_rate=1e-2)
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def batches(step: int) -> tuple[Labeled, Unlabeled]:
    """Random clips with a class signal; all modalities are present."""
    generator = torch.Generator().manual_seed(step)
    means = {m: torch.randn(CLASSES, d, generator=torch.Generator().manual_seed(d)) for m, d in DIMS.items()}

    def draw(high: int, size: int) -> Tensor:
        return torch.randint(high, (RUNS, size), generator=generator)

    def views(y: Tensor, noise: float) -> dict[str, Tensor]:
        return {
            m: (mean[y] + noise * torch.randn(*y.shape, mean.shape[1], generator=generator)).double()
            for m, mean in means.items()
        }

    def here(size: int) -> dict[str, Tensor]:
        return {m: torch.ones(RUNS, size, dtype=torch.bool) for m in DIMS}

    y, hidden = draw(CLASSES, 9), draw(CLASSES, 14)
    return (
        Labeled(views(y, 0.5), here(9), y, draw(DOMAINS, 9)),
        Unlabeled(views(hidden, 0.5), views(hidden, 1.0), here(14), draw(DOMAINS, 14)),
    )


@pytest.mark.parametrize("adapter", ["none", "residual"])
def test_the_loop_and_the_stack_take_the_same_steps(adapter: str) -> None:
    shape = HeadShape(tuple(DIMS.items()), CLASSES, DOMAINS, adapter, fused_hidden=8, translator_hidden=7)
    method = build_stack(shape, seeds=range(RUNS), settings=SETTINGS, dtype=torch.float64)
    optimiser = build_optimiser(method, SETTINGS)
    loops = [reference_of(method, run, SETTINGS, dropout=0.0) for run in range(RUNS)]
    reports = []
    for step in range(3):
        labeled, unlabeled = batches(step)
        terms = method.losses(labeled, unlabeled, None, step)
        method.combine(method.objectives(terms))
        optimiser.step()
        for run, loop in enumerate(loops):
            report = loop.step(batch_of(labeled, unlabeled, run))
            reports.append(report)
            assert set(report.terms) == set(terms)
            for name, value in report.terms.items():
                torch.testing.assert_close(terms[name][run].item(), value, **EXACT, msg=name)
            ours, theirs = parameters_of(method, run), dict(loop.model.named_parameters())
            assert set(ours) == set(theirs)
            for name, parameter in theirs.items():
                torch.testing.assert_close(ours[name], parameter, **EXACT, msg=name)
            for name in DIMS:
                torch.testing.assert_close(method.prototypes.vectors(name)[run], loop.prototypes.vectors[name], **EXACT)
    # Without these the test would pass for a loop that leaves parts of the method out.
    assert all(report.consensus > 0 and report.nonconsensus > 0 for report in reports)
    assert {report.inner < 0 for report in reports if report.inner is not None} == {True, False}
