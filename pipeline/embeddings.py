"""Learned embeddings of a trained run: every modality of its clips, and the prototypes where the method has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.methods import METHODS
from pipeline.compact import compact_bank, fitted_projections
from pipeline.errors import UsageError
from pipeline.extraction import ExtractSettings
from pipeline.hparams import head_shape, stacked_hparams
from pipeline.records import ResultStore
from pipeline.running import load_bank
from pipeline.splits import named_generator
from pipeline.stack import StackData, check_clips
from pipeline.types import Manifest, RunSpec
from pipeline.weights import load_weights

MOST_CLIPS = 1500  # a map of more is not read, and takes minutes
SEED = 0  # of the clips drawn from more than that
ROWS = 512  # clips per forward pass


@dataclass(frozen=True)
class Embeddings:
    """What the heads of one run make of its clips: the clean view, without dropout, as at test time."""

    spec: RunSpec
    clip_ids: tuple[str, ...]
    values: dict[str, NDArray[np.float32]]  # per modality (clips, dim), zero where the clip does not have it
    present: dict[str, NDArray[np.bool_]]  # per modality (clips,)
    labels: NDArray[np.int64]  # (clips,) positions in the run's classes
    domains: NDArray[np.int64]  # (clips,) positions in ``domain_names``
    domain_names: tuple[str, ...]  # of the data set
    # Per modality (source domains, classes, dim): unit vectors, NaN where no labeled clip has reached one.
    prototypes: dict[str, NDArray[np.float32]] | None
    total: int  # clips of the run that these were drawn from
    seed: int = SEED  # of the draw


def embed_run(
    spec: RunSpec,
    manifest: Manifest,
    settings: ExtractSettings,
    cache: Path | str,
    results: Path,
    most: int = MOST_CLIPS,
) -> Embeddings:
    """Compute the embeddings of a finished run from its kept weights.

    All clips of its split are candidates: labeled, unlabeled, validation and test. Of more than ``most`` that many are
    drawn, the same ones for every run with the same candidates.

    Args:
        spec: a finished run.
        manifest: its data set.
        settings: how the features were extracted; the modalities are taken from the run.
        cache: root folder of all caches.
        results: folder of the runs.
        most: clips, at most.

    Raises:
        UsageError: a method without embeddings, a run of other clips, or a run without kept weights.
        CacheError: the features have changed since the run.
    """
    if spec.method not in METHODS:
        raise UsageError(
            f"run {spec.run_id} is {spec.method!r}, which learns no embeddings; give a run of trained heads"
        )
    check_clips(spec, manifest)
    bank = load_bank([spec], manifest, dataclasses.replace(settings, modalities=spec.modalities), cache)
    projections = fitted_projections([spec], manifest, bank, results / "projections")
    data = StackData([spec], manifest, compact_bank(bank, projections, [spec]))
    method = METHODS[spec.method].build(head_shape(spec, data.bank.dims), stacked_hparams([spec]), [spec.init_seed])
    method.load_state_dict(load_weights({spec.run_id: ResultStore(results).weights_path(spec.run_id)}))
    method.to(data.device).requires_grad_(False)
    split = data.splits[0]
    candidates = sorted((*split.labeled, *split.unlabeled, *split.val, *split.test))
    chosen = _drawn(candidates, most)
    values: dict[str, list[Tensor]] = {m: [] for m in spec.modalities}
    present: dict[str, list[Tensor]] = {m: [] for m in spec.modalities}
    for rows in torch.split(torch.tensor([chosen], device=data.device), ROWS, 1):
        x, here = data.take(rows, torch.full_like(rows, data.clean))
        for name, z in method.network.embed(x, here).items():
            values[name].append(z[0])
            present[name].append(here[name][0])
    return Embeddings(
        spec=spec,
        clip_ids=tuple(manifest.clips[i].clip_id for i in chosen),
        values={m: torch.cat(parts).float().cpu().numpy() for m, parts in values.items()},
        present={m: torch.cat(parts).cpu().numpy() for m, parts in present.items()},
        labels=np.array(manifest.label_indices())[chosen],
        domains=np.array(manifest.domain_indices())[chosen],
        domain_names=manifest.domains,
        prototypes=_prototypes(method, spec.modalities),
        total=len(candidates),
    )


def _drawn(candidates: Sequence[int], most: int) -> list[int]:
    """At most so many of them, in their order."""
    if len(candidates) <= most:
        return list(candidates)
    picks = named_generator("embeddings", SEED).choice(len(candidates), most, replace=False)
    return [candidates[i] for i in sorted(picks.tolist())]


def _prototypes(method: torch.nn.Module, modalities: Sequence[str]) -> dict[str, NDArray[np.float32]] | None:
    """Prototypes of the only run of a stack."""
    own = getattr(method, "prototypes", None)
    if own is None:
        return None
    found = {}
    for name in modalities:
        vectors, reached = own.vectors(name)[0], own.counts(name)[0] > 0
        found[name] = torch.where(reached[..., None], vectors, torch.nan).float().cpu().numpy()
    return found
