"""Compact features: principal components of a run's source training clips, fitted without labels and kept on disk.

Translators of full-size features are nine tenths of a training step; a few hundred components make sweeps cheap. What
a projection is fitted on is what ``pipeline.bank.Standardiser`` is: the clean view of the run's labeled and unlabeled
clips. It depends on the sources only, so runs that differ in seed, budget or method share it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.bank import FeatureBank, Standardiser
from pipeline.errors import UsageError, nearest
from pipeline.types import Manifest, canonical_json, digest
from pipeline.weights import save_tensors

REVISION = 1  # of the rules in this file: a changed rule is another key, so no older file is taken for its result
BLOCK_VALUES = 2**22  # float32 values that ``Projection.apply`` holds at a time, 16 MiB
ProjectionKind = Literal["pca", "pca-white"]
KINDS = get_args(ProjectionKind)
ALLOWED = "none, pca:WIDTH and pca-white:WIDTH, for example pca:256"


@dataclass(frozen=True)
class ProjectionSpec:
    """What to project to; as text ``pca:256``."""

    kind: ProjectionKind  # pca: relative variances stay; pca-white: every component has unit variance
    width: int  # components to keep, at most

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.width < 1:
            raise UsageError(f"projection '{self}': the kind is unknown or the width below 1. Allowed: {ALLOWED}")

    def __str__(self) -> str:
        return f"{self.kind}:{self.width}"


def parse_projection(text: str) -> ProjectionSpec | None:
    """Read ``pca:256`` or ``pca-white:256``; ``none`` or nothing means features of full size.

    Raises:
        UsageError: anything else.
    """
    if text in ("", "none"):
        return None
    kind, _, width = text.partition(":")
    if kind not in KINDS:
        guess = nearest(kind, ("none", *KINDS))
        raise UsageError(f"projection {text!r} is of unknown kind {kind!r}.{guess} Allowed: {ALLOWED}")
    if not width:
        raise UsageError(f"projection {text!r} has no width; write for example {kind}:256. Allowed: {ALLOWED}")
    # One spelling per width: the text is part of a run's identity.
    if not (width.isascii() and width.isdecimal()) or width.startswith("0"):
        raise UsageError(
            f"projection {text!r} has the width {width!r}; it must be a whole number of at least 1, in plain digits. "
            f"Allowed: {ALLOWED}"
        )
    return ProjectionSpec("pca-white" if kind == "pca-white" else "pca", int(width))


@dataclass(frozen=True)
class Projection:
    """Standardisation and rotation of one modality's features."""

    mean: Tensor  # (dim,) float32, of the pool
    scale: Tensor  # (dim,) float32, 1 / standard deviation of the pool; 0 where a feature carries nothing
    matrix: Tensor  # (dim, width) float32, from standardised to compact features
    variance_kept: float  # share of the standardised features' variance over the pool, 0..1
    clips: int  # clips it was fitted on
    spec: ProjectionSpec  # what was asked for; ``width`` is what the features had to give

    def __post_init__(self) -> None:
        shapes = tuple(self.mean.shape), tuple(self.scale.shape), tuple(self.matrix.shape)
        fits = len(shapes[2]) == 2 and shapes[0] == shapes[1] == shapes[2][:1] and 1 <= self.width <= self.spec.width
        if not fits or {self.mean.dtype, self.scale.dtype, self.matrix.dtype} != {torch.float32}:
            raise ValueError(
                f"mean, scale and matrix of projection {self.spec} have shapes {shapes}; they must be (dim,), (dim,) "
                f"and (dim, width) in float32, with a width of 1 to {self.spec.width}"
            )

    @property
    def width(self) -> int:
        """Number of compact features: what was asked for, or the rank of the pool's features if that is smaller."""
        return int(self.matrix.shape[1])

    @cached_property
    def digest(self) -> str:
        """sha256 over the bytes of the tensors and over all other fields, hex."""
        facts = {"spec": str(self.spec), "clips": self.clips, "variance_kept": self.variance_kept}
        state = hashlib.sha256(canonical_json(facts).encode())
        for tensor in (self.mean, self.scale, self.matrix):
            state.update(canonical_json(list(tensor.shape)).encode())
            state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return state.hexdigest()

    def apply(self, x: Tensor, present: Tensor) -> Tensor:
        """Standardise and project features, a block of clips at a time.

        Args:
            x: ``(clips, views, dim)`` float16, on any device.
            present: ``(clips,)`` bool.

        Returns:
            ``(clips, views, width)`` float16 on the same device; rows of absent clips are zero. What float16 cannot
            hold (a feature that the pool hardly has and this clip has) stops at its largest number, 65504.

        Raises:
            ValueError: features of another dim.
        """
        if x.shape[-1] != len(self.mean):
            raise ValueError(f"features have {x.shape[-1]} dims; this projection was fitted on {len(self.mean)}")
        mean, scale, matrix = (t.to(x.device) for t in (self.mean, self.scale, self.matrix))
        out = torch.empty((*x.shape[:-1], self.width), dtype=torch.float16, device=x.device)
        limit = torch.finfo(torch.float16).max
        size = max(1, BLOCK_VALUES // max(1, math.prod(x.shape[1:])))
        # Blocks are cut by position, not by presence: then other clips' presence does not touch a clip's rounding.
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            compact = (x[part].float().sub_(mean).mul_(scale) @ matrix).clamp_(-limit, limit)
            out[part] = compact.masked_fill_(~present[part, None, None], 0.0)
        return out


def fit_projection(
    features: Tensor, present: Tensor, pool: Sequence[int], clean_view: int, spec: ProjectionSpec
) -> Projection:
    """Principal components of the standardised clean view of the pool's clips that have the modality.

    No other clip and no other view is read, and no label is known. The width is the smallest of ``spec.width``, dim
    and rank; the rank counts components with more variance than rounding to float16 would give them. ``pca`` divides
    all components by one number, so that their mean square over the pool is 1; ``pca-white`` gives each unit variance.
    The largest entry of every component is positive. The order of the pool does not matter, and the work is done on
    the CPU, so that with one thread the same clips give the same bits wherever the features are.

    Args:
        features: ``(clips, views, dim)`` float16, on any device.
        present: ``(clips,)`` bool.
        pool: positions of the run's labeled and unlabeled clips.
        clean_view: position of the clean view on the view axis.
        spec: kind and width.

    Raises:
        UsageError: the pool's clips with the modality are none, or one, or all alike: there is nothing to project.
    """
    rows = torch.tensor(sorted(pool), dtype=torch.int64, device=features.device)
    rows = rows[present[rows]]
    if len(rows) == 0:
        raise UsageError(
            f"projection {spec}: none of the {len(pool)} source training clips has features of the modality; leave it "
            "out, or add clips that have it"
        )
    values = features[rows, clean_view].cpu()
    mean, scale = _standardisation(values)
    carries = scale > 0
    values, carried_scale = values[:, carries], scale[carries].double()
    standard = (values.double() - mean[carries].double()) * carried_scale
    standard -= standard.mean(0)  # the mean was rounded to float32
    # Float16 steps; capped because numpy overflows at the largest numbers, whose step is that of 2**15.
    step = torch.from_numpy(np.spacing(values.abs().clamp(max=2.0**15).numpy())).double() * carried_scale
    variances, axes = _principal_axes(standard, step.square().mean(0) / 12)
    if len(variances) == 0:
        raise UsageError(
            f"projection {spec}: the source training clips that have the modality ({len(rows)}) differ in none of its "
            f"{len(scale)} features, so there is nothing to project; use at least 2 clips that differ, leave the "
            "modality out, or use the projection none"
        )
    variances, axes = variances[: spec.width], axes[:, : spec.width]
    matrix = torch.zeros(len(scale), len(variances))
    matrix[carries] = (axes / (variances if spec.kind == "pca-white" else variances.mean()).sqrt()).float()
    kept = float(variances.sum() / standard.square().mean(0).sum())
    return Projection(mean, scale, matrix, min(1.0, kept), len(rows), spec)


def _standardisation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale ``(dim,)`` float32 of ``(clips, dim)``, by the rule that full-size features are scaled with."""
    here = torch.ones(len(values), dtype=torch.bool)
    standardiser = Standardiser(FeatureBank({"": values[:, None]}, {"": here}, ("clean0",)), [range(len(values))])
    return standardiser.mean[""][0, 0], standardiser.scale[""][0, 0]


def _principal_axes(x: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Components of centred ``x`` ``(clips, dim)`` float64 that carry more than rounding, largest variance first.

    Args:
        x: values with mean zero.
        rounding: ``(dim,)`` variance that the rounding of the stored features adds to each of them.

    Returns:
        Variances ``(rank,)`` and orthonormal axes ``(dim, rank)``, float64.
    """
    clips, dim = x.shape
    if dim == 0:
        return x.new_empty(0), x.new_empty(0, 0)
    by_clips = clips < dim
    variances, vectors = torch.linalg.eigh((x @ x.T if by_clips else x.T @ x) / clips)
    variances, vectors = variances.flip(0), vectors.flip(1)
    solved = variances > torch.finfo(torch.float64).eps * max(clips, dim) * variances[0]
    variances, vectors = variances[solved], vectors[:, solved]
    axes = x.T @ vectors if by_clips else vectors
    axes = axes / axes.norm(dim=0)
    # Largest variance that noise of this size can show in a component (Marchenko and Pastur 1967).
    noise = (axes.square().T @ rounding) * (1 + math.sqrt(dim / clips)) ** 2
    carries = variances > noise
    variances, axes = variances[carries], axes[:, carries]
    size = axes.abs()
    # The first of equally large entries: whichever rounding makes larger would toss the sign.
    largest = (size >= (1 - 1e-9) * size.amax(0)).byte().argmax(0)
    return variances, axes * axes.gather(0, largest[None]).sign()


def projection_key(
    features_digest: str, modality: str, sources: Sequence[str], pool_ids: Sequence[str], spec: ProjectionSpec
) -> str:
    """32 hex digits of everything a projection depends on, this module's revision included.

    Args:
        features_digest: digest of the modality's cached features.
        modality: its name.
        sources: source domains, in any order.
        pool_ids: clip ids of the labeled and unlabeled clips, in any order.
        spec: kind and width.
    """
    facts = {
        "revision": REVISION,
        "features": features_digest,
        "modality": modality,
        "sources": sorted(sources),
        "pool": sorted(pool_ids),
        "spec": str(spec),
    }
    return digest(facts)[:32]


def stored_projection(folder: Path, key: str, fit: Callable[[], Projection]) -> Projection:
    """Read ``<folder>/<key>.safetensors``, or fit and write it atomically.

    A file that is damaged, or was not written under this key, is fitted again and replaced.
    """
    path = folder / f"{key}.safetensors"
    found = _read(path, key) if path.exists() else None
    if found is not None:
        return found
    projection = fit()
    tensors = {"mean": projection.mean, "scale": projection.scale, "matrix": projection.matrix}
    facts: dict[str, Any] = {
        "key": key,
        "digest": projection.digest,
        "spec": str(projection.spec),
        "clips": projection.clips,
        "variance_kept": projection.variance_kept,
    }
    save_tensors(path, tensors, {"projection": canonical_json(facts)})
    return projection


def _read(path: Path, key: str) -> Projection | None:
    """What ``stored_projection`` wrote under this key; ``None`` if the file is damaged or something else's."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["projection"])
            mean, scale, matrix = (file.get_tensor(name) for name in ("mean", "scale", "matrix"))
        spec = parse_projection(facts["spec"])
        if spec is None or facts["key"] != key:
            return None
        projection = Projection(mean, scale, matrix, facts["variance_kept"], facts["clips"], spec)
        return projection if projection.digest == facts["digest"] else None
    except (SafetensorError, UsageError, AttributeError, KeyError, TypeError, ValueError):
        return None  # fitted again, nothing is lost but time


@dataclass(frozen=True)
class CompactBank:
    """Compact features of a stack whose runs may have different sources, so different projections."""

    features: Mapping[str, Tensor]  # per modality (sets, clips, views, width) float16, standardised and projected
    present: Mapping[str, Tensor]  # per modality (clips,) bool
    views: tuple[str, ...]  # names of the view axis
    sets: tuple[tuple[str, ...], ...]  # source domains of each set

    @classmethod
    def from_bank(
        cls, bank: FeatureBank, sets: Sequence[tuple[str, ...]], projections: Sequence[Mapping[str, Projection]]
    ) -> CompactBank:
        """Project a bank once per set of sources.

        Where the projections of a modality have different widths (their pools have different ranks), all are cut to
        the smallest. A run's numbers then depend on who is beside it: stack runs of equal widths to avoid that.

        Args:
            bank: features of full size; the compact ones are on the same device.
            sets: source domains of each set.
            projections: per set and modality, in the order of ``sets``.

        Raises:
            ValueError: no set, not one mapping per set, or a modality without a projection.
        """
        if not sets or len(sets) != len(projections):
            raise ValueError(f"{len(sets)} sets of sources and {len(projections)} projections; give one per set, >= 1")
        features = {}
        for modality, x in bank.features.items():
            own = [p[modality] for p in projections if modality in p]
            if len(own) < len(sets):
                raise ValueError(f"{len(sets) - len(own)} of {len(sets)} sets have no projection of {modality}")
            width = min(p.width for p in own)
            out = torch.empty((len(sets), *x.shape[:-1], width), dtype=torch.float16, device=x.device)
            for position, projection in enumerate(own):
                out[position] = projection.apply(x, bank.present[modality])[..., :width]
            features[modality] = out
        return cls(features, bank.present, bank.views, tuple(sets))

    @property
    def dims(self) -> tuple[tuple[str, int], ...]:
        """(modality, width) in fusion order."""
        return self._as_bank.dims

    def usable(self, manifest: Manifest) -> set[str]:
        """Ids of clips with features in at least one modality."""
        return self._as_bank.usable(manifest)

    def view_positions(self, kind: str) -> list[int]:
        """Positions on the view axis of all views of a kind."""
        return self._as_bank.view_positions(kind)

    @property
    def _as_bank(self) -> FeatureBank:
        """For what a bank says of presence, views and the last axis; its features have no axis of sets."""
        return FeatureBank(self.features, self.present, self.views)
