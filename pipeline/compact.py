"""Compact features of a stack: the projection of every set of sources, fitted once and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.bank import FeatureBank
from pipeline.projection import (
    CompactBank,
    Projection,
    fit_projection,
    parse_projection,
    projection_key,
    stored_projection,
)
from pipeline.stack import run_split
from pipeline.types import Manifest, RunSpec

Projections = dict[tuple[str, ...], dict[str, Projection]]  # source domains -> modality -> projection


def fitted_projections(specs: Sequence[RunSpec], manifest: Manifest, bank: FeatureBank, folder: Path) -> Projections:
    """Read or fit the projections of runs that share one ``projection``.

    A projection is fitted on the clean views of all source training clips, labeled or not; the seed does not move
    them, so runs with the same sources share it.

    Args:
        specs: runs.
        manifest: the data set.
        bank: its full features.
        folder: where projections are kept, one file each.
    """
    spec_of = parse_projection(specs[0].projection)
    if spec_of is None:
        return {}
    clean = bank.view_positions("clean")[0]
    found: Projections = {}
    for spec in specs:
        if spec.sources in found:
            continue
        # Of the whole run also for its folds: what a fold holds back is held back as labels, not as features.
        split = run_split(replace(spec, fold=-1), manifest, bank)
        pool = sorted((*split.labeled, *split.unlabeled))
        ids = [manifest.clips[i].clip_id for i in pool]
        found[spec.sources] = {
            modality: stored_projection(
                folder,
                projection_key(spec.features[modality]["digest"], modality, spec.sources, ids, spec_of),
                partial(fit_projection, x, bank.present[modality], pool, clean, spec_of),
            )
            for modality, x in bank.features.items()
        }
    return found


def compact_bank(bank: FeatureBank, projections: Projections, specs: Sequence[RunSpec]) -> FeatureBank | CompactBank:
    """The features as a stack trains on them: compact, once per set of sources that it has, or as they are."""
    if not projections:
        return bank
    sets = list(dict.fromkeys(spec.sources for spec in specs))
    return CompactBank.from_bank(bank, sets, [projections[sources] for sources in sets])


def compact_dims(bank: FeatureBank, projections: Projections, spec: RunSpec) -> tuple[tuple[str, int], ...]:
    """(modality, size) of the features that a run trains on."""
    found = projections.get(spec.sources)
    return tuple((m, found[m].width) for m in bank.features) if found else bank.dims


def projection_notes(spec: RunSpec, projections: Projections) -> tuple[str, ...]:
    """What a reader must know about a run's compact features."""
    return tuple(
        f"{modality}: {spec.projection} leaves {found.width} of {len(found.mean)} values and "
        f"{found.variance_kept:.1%} of the variance of the training clips of {', '.join(spec.sources)}"
        for modality, found in projections.get(spec.sources, {}).items()
    )


def projection_digests(spec: RunSpec, projections: Projections) -> dict[str, str]:
    """Digest of every projection of a run, for its record."""
    return {f"projection_{m}": found.digest for m, found in projections.get(spec.sources, {}).items()}
