"""Every file in configs/ is trained in little: the demo's domains and a few clips with features made from numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cache.layout import ClipRecord, Status
from cache.store import FeatureGroup
from pipeline.datasets import DATASETS
from pipeline.extraction import ExtractSettings
from pipeline.records import ResultStore
from pipeline.running import load_tables, run_missing
from pipeline.sweepfile import read_sweep_file, shortened
from pipeline.sweeps import plan_sweep, sweep_modalities
from pipeline.types import MODALITIES, Manifest
from tests.unit.test_configs import DEMO_DOMAINS, FILES, small_manifest

DIMS = {"video": 6, "flow": 5, "audio": 4}
SINGLE = ("crema-d", "kinetics-sounds", "ucf101")  # data sets of one domain


@dataclass(frozen=True)
class Small:
    """A data set in little and where its features are."""

    manifest: Manifest
    cache: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Small]:
    """With the demo's three domains, and with one; features hold the class, the domain and noise."""
    found = {}
    for single, domains in ((False, DEMO_DOMAINS), (True, DEMO_DOMAINS[:1])):
        manifest = small_manifest("demo", domains)
        cache = tmp_path_factory.mktemp("cache")
        rng = np.random.default_rng(0)
        labels, places = np.array(manifest.label_indices()), np.array(manifest.domain_indices())
        ids = [clip.clip_id for clip in manifest.clips]
        row = {clip_id: i for i, clip_id in enumerate(ids)}
        for modality, dim in DIMS.items():
            identity = ExtractSettings().identity("demo", modality)
            clean = rng.normal(size=(2, dim))[labels] * 2 + rng.normal(size=(3, dim))[places]
            features = clean[:, None] + 0.5 * rng.normal(size=(len(ids), len(identity.views), dim))
            group = FeatureGroup.open_or_create(cache, identity, ids, dim, 64, {})
            for unit in range(group.num_units):
                names = group.unit_clips(unit)
                values = features[[row[name] for name in names]].astype(np.float16)
                group.write_unit(unit, values, [ClipRecord(name, Status.PRESENT) for name in names])
        found[single] = Small(manifest, cache)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_runs(path: Path, data: dict[bool, Small], tmp_path: Path) -> None:
    sweep = read_sweep_file(path)
    dataset = sweep.about.dataset or "demo"
    assert dataset in DATASETS
    small = data[dataset in SINGLE]
    sweep = shortened(sweep, small.manifest.domains)
    default = sweep.features.modalities or MODALITIES
    settings = replace(ExtractSettings(), modalities=sweep_modalities(sweep, default))
    tables = load_tables(small.manifest, settings, small.cache)
    specs, cases = plan_sweep(sweep, small.manifest, tables, default)
    assert {case.name for case in sweep.axes.cases} == set(cases.values())
    results = run_missing(
        specs,
        small.manifest,
        tables,
        settings,
        small.cache,
        tmp_path,
        1,
        lambda *numbers: None,
        lambda amount: None,
        sweep.settings.keep_weights,
    )
    assert len(results) == len(specs) >= 1
    for result in results:
        assert result.status == "finished"
        assert result.curves["step"] == [2, 4]
        assert all(v is not None and math.isfinite(v) for v in result.curves["target/fused"])
    assert ResultStore(tmp_path).missing(specs) == []
    assert (tmp_path / "weights").exists() == sweep.settings.keep_weights
