"""Names and numbers of modalities and source domains are data: every method and fusion takes them as they come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heads.fusion import FUSIONS
from heads.methods import METHODS
from pipeline.bank import FeatureBank
from pipeline.errors import UsageError
from pipeline.hparams import resolve_hparams
from pipeline.train import StackTrainer
from pipeline.types import Clip, Manifest, RunSpec
from tests.contract.conftest import VIEWS, make_spec

SETS = {
    "two": ({"gyroscope": 5, "thermal": 9}, 2),
    "four of four domains": ({"video": 8, "depth": 3, "left ear": 6, "right ear": 6}, 4),
    "three of one domain": ({"video": 8, "flow": 5, "audio": 4}, 1),
}


def features(dims: dict[str, int], sources: int) -> tuple[Manifest, FeatureBank]:
    domains = (*(f"site-{k}" for k in range(sources)), "studio")
    clips = tuple(
        Clip(f"{d}-{c}-{i}", d, c, "train" if i < 7 else "test", f"{d}-{c}-{i}", {"video": Path("x.mp4")})
        for d in domains
        for c in ("wave", "spin", "drop")
        for i in range(9)
    )
    rng = np.random.default_rng(3)
    manifest = Manifest("small", ("wave", "spin", "drop"), domains, clips, Path())
    labels = np.array(manifest.label_indices())
    x = {
        name: torch.from_numpy(
            (rng.normal(size=(3, 1, dim))[labels] + rng.normal(size=(len(clips), 5, dim))).astype("f2")
        )
        for name, dim in dims.items()
    }
    present = {name: torch.from_numpy(rng.random(len(clips)) > 0.2) for name in dims}
    return manifest, FeatureBank(x, present, VIEWS)


def trained(manifest: Manifest, bank: FeatureBank, spec: RunSpec) -> StackTrainer:
    torch.set_num_threads(1)
    stack = StackTrainer([spec], manifest, bank)
    (result,) = stack.train(lambda amount: None)
    assert result.status == "finished"
    assert {f"target/{m}" for m in ("fused", *bank.features)} <= set(result.metrics)
    assert all(value.isfinite().all() for value in stack.method.state_dict().values())
    return stack


@pytest.mark.parametrize("case", SETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method(case: str, method: str) -> None:
    manifest, bank = features(*SETS[case])
    stack = trained(manifest, bank, make_spec(manifest, bank, method, steps=4, eval_every=4))
    if method == "ssmdg":
        names = list(bank.features)
        assert set(stack.method.translators) == {f"{a}_to_{b}" for a in names for b in names if a != b}
        assert stack.method.prototypes.counts(names[0]).shape[1] == SETS[case][1]


@pytest.mark.parametrize("case", SETS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("method", ["bmm", "ssmdg"])
def test_every_fusion(case: str, fusion: str, method: str) -> None:
    manifest, bank = features(*SETS[case])
    trained(manifest, bank, make_spec(manifest, bank, method, steps=4, eval_every=4, hparams={"fusion": fusion}))


@pytest.mark.parametrize(("method", "fusion"), [("ssmdg", "concat"), ("erm", "film"), ("erm", "bi-gated")])
def test_what_needs_two_modalities_says_so(method: str, fusion: str) -> None:
    with pytest.raises(UsageError, match="needs at least 2 modalities, and there is only video"):
        resolve_hparams(method, [("video", 8)], {"fusion": fusion})


@pytest.mark.parametrize("method", [name for name, recipe in METHODS.items() if recipe.fewest_modalities == 1])
def test_one_modality_is_enough_for_the_others(method: str) -> None:
    manifest, bank = features({"video": 8, "audio": 4}, 2)
    bank = replace(bank, features={"video": bank.features["video"]}, present={"video": bank.present["video"]})
    trained(manifest, bank, make_spec(manifest, bank, method, steps=4, eval_every=4))
