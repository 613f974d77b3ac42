"""Embeddings of trained runs: the numbers of the network by hand, which clips, prototypes, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bank import FeatureBank
from pipeline.compact import compact_bank, fitted_projections
from pipeline.embeddings import Embeddings, embed_run
from pipeline.errors import UsageError
from pipeline.missing import MissingEvaluation
from pipeline.running import load_bank
from pipeline.types import Manifest, RunResult
from pipeline.weights import load_weights
from tests.contract import conftest as contract
from tests.unit.test_missing import FULL, Place, write_cache

manifest, bank = contract.manifest, contract.bank


@pytest.fixture
def place(manifest: Manifest, bank: FeatureBank, tmp_path: Path) -> Place:
    return Place(manifest, write_cache(manifest, bank, tmp_path / "cache"), tmp_path / "cache", tmp_path / "results")


def embed(place: Place, run: RunResult, most: int = 1500) -> Embeddings:
    return embed_run(run.spec, place.manifest, place.settings, place.cache, place.results, most)


def evaluation(place: Place, run: RunResult) -> MissingEvaluation:
    """The run as the evaluation with missing modalities loads it."""
    spec = run.spec
    settings = replace(place.settings, modalities=spec.modalities)
    whole = load_bank([spec], place.manifest, settings, place.cache)
    projections = fitted_projections([spec], place.manifest, whole, place.results / "projections")
    features = compact_bank(whole, projections, [spec])
    return MissingEvaluation([spec], place.manifest, features, load_weights({spec.run_id: place.weights(run)}))


@pytest.mark.parametrize(
    ("modalities", "changes"),
    [(FULL, {"methods": ("ssmdg",)}), (("video", "audio"), {"methods": ("erm",), "projection": "pca:5"})],
)
def test_values_are_those_of_the_network_at_test_time(
    place: Place, modalities: tuple[str, ...], changes: dict[str, object]
) -> None:
    (run,) = place.train(modalities, **changes)
    found = embed(place, run)
    whole = evaluation(place, run)
    rows = torch.tensor([[[clip.clip_id for clip in place.manifest.clips].index(i) for i in found.clip_ids]])
    x, here = whole.data.take(rows, torch.full_like(rows, whole.data.clean))
    expected = whole.method.network.embed(x, here)
    assert tuple(found.values) == tuple(found.present) == modalities
    for name in modalities:
        assert found.values[name].dtype == np.float32
        assert np.array_equal(found.values[name], expected[name][0].numpy())
        assert np.array_equal(found.present[name], here[name][0].numpy())
        assert not found.values[name][~found.present[name]].any()


def test_all_clips_of_the_split_are_there_with_their_class_and_domain(place: Place) -> None:
    (run,) = place.train(methods=("erm",))
    found = embed(place, run)
    clips = {clip.clip_id: clip for clip in place.manifest.clips}
    assert found.total == len(found.clip_ids) == len(set(found.clip_ids)) == sum(run.sizes.values())
    named = [
        (place.manifest.classes[i], found.domain_names[j]) for i, j in zip(found.labels, found.domains, strict=True)
    ]
    assert named == [(clips[i].label, clips[i].domain) for i in found.clip_ids]
    assert {clips[i].domain for i in found.clip_ids} == set(place.manifest.domains)
    assert found.prototypes is None


def test_prototypes_are_the_methods_own(place: Place) -> None:
    (run,) = place.train(methods=("ssmdg",), steps=1, batch_labeled=2)  # two labeled clips in all
    found = embed(place, run)
    own = evaluation(place, run).method.prototypes
    assert found.prototypes is not None
    for name in FULL:
        reached = own.counts(name)[0].numpy() > 0
        assert found.prototypes[name].shape == (2, 3, found.values[name].shape[1])
        assert 1 <= reached.sum() <= 2
        assert np.array_equal(np.isfinite(found.prototypes[name]).all(-1), reached)
        assert np.array_equal(found.prototypes[name][reached], own.vectors(name)[0].numpy()[reached])


def test_of_many_clips_the_same_ones_are_drawn_for_every_run(place: Place) -> None:
    first, second = place.train(methods=("erm", "ssmdg"))
    one, two, whole = embed(place, first, 20), embed(place, second, 20), embed(place, first)
    assert one.clip_ids == two.clip_ids
    assert len(one.clip_ids) == 20
    assert one.total == whole.total > 20
    places = [whole.clip_ids.index(clip_id) for clip_id in one.clip_ids]
    assert places == sorted(places)
    assert places != list(range(20))
    assert np.array_equal(one.values["video"], whole.values["video"][places])
    assert np.array_equal(one.labels, whole.labels[places])


def test_what_has_no_embeddings_or_weights_is_refused(place: Place) -> None:
    (classical,) = place.train(methods=("ncm",))
    with pytest.raises(UsageError, match="is 'ncm', which learns no embeddings; give a run of trained heads"):
        embed(place, classical)
    (run,) = place.train(methods=("erm",))
    place.weights(run).unlink()
    with pytest.raises(UsageError, match=f"run {run.spec.run_id} has no weights"):
        embed(place, run)
    other = replace(place.manifest, clips=place.manifest.clips[1:])
    with pytest.raises(UsageError, match="was trained on other clips, labels or splits than small has now"):
        embed_run(run.spec, other, place.settings, place.cache, place.results)
