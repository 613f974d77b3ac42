"""Features of others, and float32: imported, named, trained on, and said under the table."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import h5py
import numpy as np
import zarr

from cache.store import FeatureGroup, stored_groups
from tests.e2e.conftest import here


def test_imported_features_are_trained_on_by_their_name(demo_run: tuple[Path, str], tmp_path: Path) -> None:
    made, _ = demo_run
    manifest = made / "data" / "demo" / "manifest.csv"
    shutil.copytree(manifest.parent, tmp_path / "data" / "demo")
    with manifest.open() as file:
        labels = {row["clip_id"]: row["label"] for row in csv.DictReader(file)}
    classes = sorted(set(labels.values()))
    noise = np.random.default_rng(0)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        for clip_id, label in labels.items():  # easy on purpose: what is tested is that these are what is trained on
            file[clip_id] = (np.eye(6)[classes.index(label)] * 8 + noise.normal(size=6)).astype(np.float32)
    where = ("--work", tmp_path)
    alone = ("--workers", "1")
    here("cache", "import", tmp_path / "theirs.h5", *where, "--dataset", "demo", "--modality", "video", "--backbone",
         "someones-net", "--manifest", tmp_path / "data" / "demo" / "manifest.csv")  # fmt: skip
    (group,) = stored_groups(tmp_path / "cache", "demo")
    common = (
        "--dataset",
        "demo",
        *where,
        "--method",
        "erm,fixmatch",
        "--labels",
        "2",
        "--seeds",
        "1",
        "--steps",
        "200",
        "--set",
        "learning_rate=0.02",
        *alone,
    )
    assert "no video features of demo" in here("train-heads", *common, "--modalities", "video", code=2).stderr
    text = here("train-heads", *common, "--features", group.place.name[:16]).stdout
    assert "someones-net: imported features, their provenance is declared and not checked" in " ".join(text.split())
    assert "no augmented views" in text
    table = here("runs", "ls", *where, "--columns", "method,target/fused").stdout
    assert min(float(word) for word in table.split() if word.startswith(("0.", "1."))) > 0.7  # chance is 0.17
    assert "names no group of demo" in here("train-heads", *common, "--features", "audio-x", code=2).stderr
    assert "leave it out" in here("extract", "--dataset", "demo", *where, "--features", "video", code=2).stderr


def test_float32_features(demo_run: tuple[Path, str], tmp_path: Path) -> None:
    made, _ = demo_run
    shutil.copytree(made / "data", tmp_path / "data")
    own = (
        "--dataset",
        "demo",
        "--work",
        tmp_path,
        "--modalities",
        "audio",
        "--feature-dtype",
        "float32",
        "--workers",
        "1",
    )
    here("extract", *own)
    (stored,) = stored_groups(tmp_path / "cache", "demo")
    assert stored.identity.dtype == "float32"
    assert zarr.open_group(str(stored.path), mode="r")["features"].dtype == np.float32
    (half,) = [g for g in stored_groups(made / "cache", "demo") if g.identity.modality == "audio"]
    full, rounded = FeatureGroup(stored.place).load(), FeatureGroup(half.place).load()
    assert full.clip_ids == rounded.clip_ids
    assert not np.array_equal(full.features, rounded.features)
    np.testing.assert_array_equal(full.features.astype(np.float16), rounded.features)
    assert (
        "3 runs"
        in here("train-heads", *own, "--method", "fixmatch", "--labels", "1", "--seeds", "1", "--steps", "10").stdout
    )
