"""A small set of features in memory, for tests of methods and of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from heads.method import CHOICES
from heads.methods import METHODS
from pipeline.bank import FeatureBank
from pipeline.hparams import STRUCTURE, resolve_hparams
from pipeline.types import Clip, Manifest, RunSpec

CLASSES = ("wave", "spin", "drop")
DOMAINS = ("kitchen", "yard", "studio")
DIMS = {"video": 13, "flow": 10, "audio": 7}  # odd on purpose: ragged ends of tensors round differently
VIEWS = ("clean0", "weak0", "weak1", "strong0", "strong1")


@pytest.fixture
def manifest() -> Manifest:
    clips = [
        Clip(f"{d}-{c}-{i}", d, c, "train" if i < 9 else "test", f"{d}-{c}-{i}", {"video": Path("x.mp4")})
        for d in DOMAINS
        for c in CLASSES
        for i in range(12)
    ]
    return Manifest("small", CLASSES, DOMAINS, tuple(clips), Path())


@pytest.fixture
def bank(manifest: Manifest) -> FeatureBank:
    """Features with a class signal, a domain shift, noise between views, and missing modalities."""
    rng = np.random.default_rng(5)
    labels, domains = np.array(manifest.label_indices()), np.array(manifest.domain_indices())
    features, present = {}, {}
    for name, dim in DIMS.items():
        clean = rng.normal(size=(3, dim))[labels] * 1.5 + rng.normal(size=(3, dim))[domains]
        clean = clean + rng.normal(size=clean.shape)
        strength = np.array([0, 0.3, 0.3, 0.8, 0.8])[None, :, None]
        views = clean[:, None] + strength * rng.normal(size=(len(labels), 5, dim))
        here = rng.random(len(labels)) > 0.1
        features[name] = torch.from_numpy((views * here[:, None, None]).astype(np.float16))
        present[name] = torch.from_numpy(here)
    return FeatureBank(features, present, VIEWS)


def make_spec(
    manifest: Manifest,
    bank: FeatureBank,
    method: str = "ssmdg",
    target: str = "studio",
    seed: int = 0,
    **changes: object,
) -> RunSpec:
    """A run on the small features, with a threshold low enough that pseudo-labels occur at once."""
    overrides: dict[str, float | str] = {"fused_hidden": 19, "translator_hidden": 14}
    hparams = changes.pop("hparams", {})
    assert isinstance(hparams, Mapping)
    defaults = METHODS[method].hparams
    if "threshold" in defaults:
        overrides["threshold"] = 0.5
    if defaults.get("mixing") == "bmm":
        overrides["mix_warmup_epochs"] = 1.0
    values: dict[str, object] = {
        "dataset": "small",
        "manifest_digest": manifest.digest,
        "classes": manifest.classes,
        "sources": tuple(d for d in manifest.domains if d != target),
        "target": target,
        "modalities": tuple(bank.features),
        "features": {m: {"backbone": "none", "weights": "none", "digest": "0"} for m in bank.features},
        "budget": "3",
        "method": method,
        "hparams": resolve_hparams(method, bank.dims, {**overrides, **hparams}),
        "split_seed": seed,
        "init_seed": seed,
        "steps": 30,
        "batch_labeled": 7,
        "batch_unlabeled": 11,
        "eval_every": 12,
    }
    return RunSpec(**{**values, **changes})  # type: ignore[arg-type]


def tensors(values: Mapping[str, float | str], runs: int) -> dict[str, torch.Tensor]:
    """Hyperparameters that may differ between runs, the same for all of them."""
    plain = {k: float(CHOICES[k].index(str(v))) if k in CHOICES else v for k, v in values.items() if k not in STRUCTURE}
    return {k: torch.full((runs,), float(v)) for k, v in plain.items()}
