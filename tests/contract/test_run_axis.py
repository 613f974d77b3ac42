"""A run's numbers do not depend on who shares its stack."""

from __future__ import annotations

import pytest
import torch

from heads.methods import METHODS
from pipeline.bank import FeatureBank
from pipeline.train import StackTrainer
from pipeline.types import Manifest
from tests.contract.conftest import make_spec


def different_runs(manifest: Manifest, bank: FeatureBank, method: str) -> list:
    """Runs that differ in everything that may differ inside a stack."""
    own = {"threshold": 0.8} if "threshold" in METHODS[method].hparams else {}
    return [
        make_spec(manifest, bank, method, seed=0),
        make_spec(manifest, bank, method, target="yard", seed=1),
        make_spec(manifest, bank, method, target="kitchen", seed=2, budget="5"),
        make_spec(manifest, bank, method, seed=3, hparams={"learning_rate": 3e-3, "dropout_fused": 0.1, **own}),
        make_spec(manifest, bank, method, seed=3, hparams={"weight_decay": 0.1}),
        make_spec(manifest, bank, method, seed=4, budget="30%", target_part="test"),
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adapter", ["residual", "none"])
def test_alone_equals_inside_a_stack(manifest: Manifest, bank: FeatureBank, method: str, adapter: str) -> None:
    torch.set_num_threads(1)
    specs = [
        make_spec(
            manifest,
            bank,
            s.method,
            s.target,
            s.split_seed,
            budget=s.budget,
            target_part=s.target_part,
            hparams={k: v for k, v in s.hparams.items() if k != "adapter"} | {"adapter": adapter},
        )
        for s in different_runs(manifest, bank, method)
    ]
    stack = StackTrainer(specs, manifest, bank)
    together = stack.train(lambda n: None)
    for run, spec in enumerate(specs):
        single = StackTrainer([spec], manifest, bank)
        alone = single.train(lambda n: None)[0]
        assert alone.curves == together[run].curves, spec
        assert alone.metrics == together[run].metrics
        assert alone.confusion == together[run].confusion
        for (name, one), (_, many) in zip(
            single.method.named_parameters(), stack.method.named_parameters(), strict=True
        ):
            assert torch.equal(one[0], many[run]), name


def test_runs_of_a_stack_differ(manifest: Manifest, bank: FeatureBank) -> None:
    """The test above would pass for a stack that ignored its seeds; this one would not."""
    results = StackTrainer(different_runs(manifest, bank, "ssmdg"), manifest, bank).train(lambda n: None)
    losses = [tuple(r.curves["loss/labeled/fused"]) for r in results]
    assert len(set(losses)) == len(losses)
