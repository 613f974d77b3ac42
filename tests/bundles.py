"""Small models with random weights, and their bundles: nothing was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heads.network import HeadShape
from pipeline.bundle import Bundle, load_bundle, write_bundle
from pipeline.bundlespec import (
    BundleSpec,
    Calibration,
    FeatureFacts,
    FillerChoice,
    LevelCount,
    Measured,
    ModalityFacts,
    PartRecord,
    Temperature,
    TrainingRecord,
    joined,
)
from pipeline.extraction import ExtractSettings
from pipeline.headmodel import HeadInput, HeadModel, HeadPlan
from pipeline.hparams import resolve_hparams
from pipeline.types import RunSpec, canonical_json

CLASSES = ("open", "close", "turn")
DIMS = {"video": 12, "flow": 10, "audio": 7}
WIDTHS = {"video": 5, "flow": 4, "audio": 3}


def a_plan(
    modalities: tuple[str, ...] = ("video", "flow", "audio"), projected: bool = False, **changes: Any
) -> HeadPlan:
    inputs = tuple(HeadInput(m, DIMS[m], WIDTHS[m] if projected else DIMS[m]) for m in modalities)
    shape = HeadShape(tuple((i.modality, i.width) for i in inputs), len(CLASSES), 2, "residual", 8, 9)
    values = {"translators": True, "filler": "translate", "threshold": 0.7, **changes}
    return HeadPlan(CLASSES, inputs, shape, projected, **values)


def a_head(plan: HeadPlan | None = None, seed: int = 0) -> HeadModel:
    """A model whose every tensor is random, and every temperature another."""
    head = HeadModel(plan or a_plan())
    generator = torch.Generator().manual_seed(seed)
    shapes = head.shapes()
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if name.endswith("weight") and len(shape) == 2:
            tensors[name] /= shape[0] ** 0.5
        if name.startswith(("scale_", "filler_length")):
            tensors[name] = tensors[name].abs() + 0.1
    head.load_tensors(tensors)
    fused = {kept: 0.5 + 0.25 * k for k, kept in enumerate(head.plan.subsets)}
    head.set_temperatures(fused, {m: 2.0 + k for k, m in enumerate(head.modalities)})
    return head


def a_batch(head: HeadModel, rows: int = 16, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features of random rows, every subset of modalities among them, none as well."""
    generator = torch.Generator().manual_seed(seed)
    features = {m: torch.randn(rows, dim, generator=generator).half() for m, dim in head.dims.items()}
    subsets = torch.arange(rows) % 2 ** len(head.dims)
    return features, {m: (subsets >> k) % 2 == 1 for k, m in enumerate(head.modalities)}


def a_spec(head: HeadModel, **changes: Any) -> BundleSpec:
    """What `bundle.json` may say of a model of ``a_head``; figures are made up."""
    modalities, subsets = head.modalities, [joined(kept) for kept in head.plan.subsets]
    measured = Measured(30, 0.5, 0.2, 0.1)
    part = PartRecord(
        "30 clips",
        dict.fromkeys(subsets, measured),
        dict.fromkeys(modalities, measured),
        {level: LevelCount(10, 1 / 3, 0.5) for level in ("consensus", "disagreement", "low")},
    )
    run = a_run(head)
    fused = {joined(kept): _temperature(head, kept) for kept in head.plan.subsets}
    alone = {m: Temperature(float(head.temperature_alone[k]), 30) for k, m in enumerate(modalities)}
    values = {
        "schema": 1,
        "run_id": run.run_id,
        "run": run,
        "classes": CLASSES,
        "modalities": tuple(a_modality(i) for i in head.plan.inputs),
        "features": FeatureFacts("strict", "dis-medium", "", "", "swresample", "auto", 2.5),
        "translators": head.plan.translators,
        "filler": FillerChoice(head.filler, "made up", {}),
        "threshold": head.threshold,
        "calibration": Calibration("30 held-back clips.", 30, fused, alone, 15, 5),
        "held_back": part,
        "target": part,
        "training": TrainingRecord({"target/fused": 0.5}, "last", {"test": 30}, (), {"torch": "2"}, 0.5),
        "notes": ("made up",),
        "files": {},
    }
    return BundleSpec(**{**values, **changes})


def a_modality(wanted: HeadInput) -> ModalityFacts:
    settings = ExtractSettings()
    identity = settings.identity("made-up", wanted.modality)
    weights = settings.weights_of(wanted.modality)
    return ModalityFacts(
        modality=wanted.modality,
        backbone=identity.backbone,
        weights=weights.identity,
        weights_note=weights.note,
        licence="Apache-2.0",
        tap="pool",
        precision="float32",
        dim=wanted.dim,
        width=wanted.width,
        dtype=wanted.dtype,
        digest="0" * 64,
        settings=json.loads(canonical_json(identity.settings)),
    )


def a_run(head: HeadModel) -> RunSpec:
    shape = head.plan.shape
    sizes = {"fused_hidden": shape.fused_hidden, "translator_hidden": shape.translator_hidden}
    overrides: dict[str, float | str] = {"adapter": shape.adapter, "fusion": shape.fusion, **sizes}
    return RunSpec(
        dataset="made-up",
        manifest_digest="0" * 64,
        classes=head.classes,
        sources=("kitchen", "garage"),
        target="street",
        modalities=head.modalities,
        features={m: {"backbone": "b", "weights": "w", "digest": "0" * 64} for m in head.modalities},
        budget="5",
        method="ssmdg",
        hparams=resolve_hparams("ssmdg", shape.dims, overrides),
        split_seed=0,
        init_seed=0,
        steps=10,
        batch_labeled=4,
        batch_unlabeled=4,
        eval_every=10,
        projection="pca:5" if head.plan.projected else "none",
    )


def _temperature(head: HeadModel, kept: tuple[str, ...]) -> Temperature:
    return Temperature(float(head.temperature[sum(1 << head.modalities.index(m) for m in kept)]), 30)


def a_bundle(folder: Path, head: HeadModel | None = None, **changes: Any) -> Bundle:
    """A bundle on the disk."""
    head = head or a_head()
    write_bundle(folder, a_spec(head, **changes), head, "# A model\n")
    return load_bundle(folder)


def rows_of(part: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {m: values[rows] for m, values in part.items()}
