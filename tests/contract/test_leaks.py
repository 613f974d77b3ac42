"""Training sees the labels of labeled clips and the features of source training clips, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from heads.methods import METHODS
from heads.network import Labeled, Unlabeled
from pipeline.bank import FeatureBank
from pipeline.train import StackTrainer
from pipeline.types import Manifest
from tests.contract.conftest import make_spec

every_method = pytest.mark.parametrize("method", METHODS)
PARTS = ("labeled", "unlabeled", "val", "test")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trainer(manifest: Manifest, bank: FeatureBank, method: str) -> StackTrainer:
    return StackTrainer([make_spec(manifest, bank, method, steps=12)], manifest, bank)


def trained(stack: StackTrainer) -> dict[str, Tensor]:
    """Parameters and prototypes after training, and the statistics that features are normalised with."""
    stack.train(lambda amount: None)
    statistics = {f"mean/{m}": value for m, value in stack.data.standardise.mean.items()}
    return {**stack.method.state_dict(), **statistics}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def with_noise(bank: FeatureBank, rows: Sequence[int]) -> FeatureBank:
    """The same bank with noise instead of the features of some clips."""
    generator = torch.Generator().manual_seed(0)
    features = {}
    for modality, values in bank.features.items():
        features[modality] = values.clone()
        drawn = torch.randn(len(rows), *values.shape[1:], generator=generator)
        features[modality][list(rows)] = drawn.half() * bank.present[modality][list(rows), None, None]
    return replace(bank, features=features)


@every_method
@pytest.mark.parametrize("part", PARTS)
def test_only_labels_of_labeled_clips_reach_the_parameters(
    manifest: Manifest, bank: FeatureBank, method: str, part: str
) -> None:
    honest, shuffled = trainer(manifest, bank, method), trainer(manifest, bank, method)
    rows = torch.tensor(getattr(shuffled.data.splits[0], part), dtype=torch.int64)
    labels = shuffled.data.labels.clone()
    labels[rows] = (labels[rows] + 1) % len(manifest.classes)  # every one of them is wrong
    shuffled.data.labels = labels
    assert same(trained(honest), trained(shuffled)) == (part != "labeled")


@every_method
@pytest.mark.parametrize("part", PARTS)
def test_only_features_of_source_training_clips_reach_the_parameters(
    manifest: Manifest, bank: FeatureBank, method: str, part: str
) -> None:
    """Unlabeled clips reach even the labeled-only method, through the statistics of the normalisation."""
    honest = trainer(manifest, bank, method)
    rows = getattr(honest.data.splits[0], part)
    noisy = trainer(manifest, with_noise(bank, rows), method)
    assert same(trained(honest), trained(noisy)) == (part in ("val", "test") or not rows)


@every_method
def test_no_feature_of_the_target_domain_reaches_the_parameters(
    manifest: Manifest, bank: FeatureBank, method: str
) -> None:
    """All clips of the domain, whatever their published split."""
    rows = [i for i, clip in enumerate(manifest.clips) if clip.domain == "studio"]
    assert len(rows) == 36
    honest, noisy = trainer(manifest, bank, method), trainer(manifest, with_noise(bank, rows), method)
    assert same(trained(honest), trained(noisy))


def test_an_unlabeled_batch_has_no_place_for_labels(manifest: Manifest, bank: FeatureBank) -> None:
    assert {field.name for field in fields(Unlabeled)} == {field.name for field in fields(Labeled)} - {"x", "y"} | {
        "weak",
        "strong",
    }
    stack = trainer(manifest, bank, "ssmdg")
    rows = torch.tensor(stack.data.splits[0].unlabeled)[None]
    batch = stack.data.unlabeled(rows, torch.zeros_like(rows))
    assert set(vars(batch)) == {field.name for field in fields(Unlabeled)}
    for modality in bank.features:
        for values in (batch.weak[modality], batch.strong[modality]):
            assert values.shape == (1, rows.shape[1], bank.features[modality].shape[-1])
    assert torch.equal(batch.domain, stack.data.domains[:, rows[0]])
    assert set(batch.domain.flatten().tolist()) == {0, 1}


@every_method
def test_the_losses_are_given_labels_of_labeled_clips_only(
    manifest: Manifest, bank: FeatureBank, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = trainer(manifest, bank, method)
    seen: set[tuple[float, ...]] = set()
    losses = stack.method.losses

    def watch(labeled: Labeled, *rest: object) -> dict[str, Tensor]:
        seen.update(tuple(row) for row in labeled.x["video"][0].tolist() if any(row))
        return losses(labeled, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stack.method, "losses", watch)
    stack.train(lambda amount: None)
    rows = torch.tensor(stack.data.splits[0].labeled)[None]
    allowed: set[tuple[float, ...]] = set()
    for view in stack.data.weak:
        x, _ = stack.data.take(rows, torch.full_like(rows, view))
        allowed.update(tuple(row) for row in x["video"][0].tolist())
    assert seen
    assert seen <= allowed
