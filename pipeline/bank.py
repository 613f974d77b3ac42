"""Features of a whole data set on the training device, and how a stack of runs takes its batches from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.store import FeatureTable
from pipeline.errors import UsageError
from pipeline.splits import named_generator
from pipeline.types import Manifest


@dataclass(frozen=True)
class FeatureBank:
    """All cached views of all clips of a manifest, in manifest order."""

    features: Mapping[str, Tensor]  # per modality (clips, views, dim) float16 or float32, zero where absent
    present: Mapping[str, Tensor]  # per modality (clips,) bool
    views: tuple[str, ...]  # names of the view axis

    @classmethod
    def from_tables(cls, manifest: Manifest, tables: Mapping[str, FeatureTable], device: torch.device) -> FeatureBank:
        """Put the tables of the chosen modalities on a device.

        Raises:
            CacheError: a clip of the manifest has not been extracted yet.
            UsageError: the tables were made with different views.
        """
        views = {table.identity.views for table in tables.values()}
        if len(views) != 1:
            raise UsageError(f"the modalities were extracted with different views ({views}); extract them alike")
        ids = [clip.clip_id for clip in manifest.clips]
        features, present = {}, {}
        for modality, table in tables.items():
            values, here = table.select(ids)
            features[modality] = torch.from_numpy(values).to(device)
            present[modality] = torch.from_numpy(here).to(device)
        return cls(features, present, views.pop())

    @property
    def dims(self) -> tuple[tuple[str, int], ...]:
        """(modality, feature dim) in fusion order."""
        return tuple((m, int(x.shape[-1])) for m, x in self.features.items())

    def usable(self, manifest: Manifest) -> set[str]:
        """Ids of clips with features in at least one modality."""
        some = torch.stack(list(self.present.values())).any(0).tolist()
        return {clip.clip_id for clip, here in zip(manifest.clips, some, strict=True) if here}

    def view_positions(self, kind: str) -> list[int]:
        """Positions on the view axis of all views of a kind."""
        return [i for i, name in enumerate(self.views) if name.rstrip("0123456789") == kind]


class Standardiser:
    """Per run and feature: subtract the mean, divide by the standard deviation of the run's source training clips.

    The one feature scaling that every method gets. Statistics use the clean view and no label.
    """

    def __init__(self, bank: FeatureBank, pools: Sequence[Sequence[int]]) -> None:
        self.mean: dict[str, Tensor] = {}
        self.scale: dict[str, Tensor] = {}
        clean = bank.view_positions("clean")[0]
        # Runs with the same sources share their statistics.
        places = {pool: k for k, pool in enumerate(dict.fromkeys(tuple(pool) for pool in pools))}
        for modality, features in bank.features.items():
            means, scales = [], []
            for pool in places:
                rows = torch.tensor(pool, device=features.device)
                rows = rows[bank.present[modality][rows]]
                if len(rows) == 0:
                    raise UsageError(f"no source training clip has {modality} features; leave {modality} out")
                values = features[rows, clean].double()
                mean, deviation = values.mean(0), values.std(0, correction=0)
                means.append(mean)
                # Below half a float16 step of the mean there is only rounding: such a feature is dropped, not blown up.
                carries = deviation > torch.clamp(5e-4 * mean.abs(), min=1e-6)
                scales.append(torch.where(carries, 1 / deviation, torch.zeros_like(deviation)))
            of_run = torch.tensor([places[tuple(pool)] for pool in pools], device=features.device)
            self.mean[modality] = torch.stack(means).float()[of_run, None]
            self.scale[modality] = torch.stack(scales).float()[of_run, None]

    def __call__(self, modality: str, x: Tensor, present: Tensor) -> Tensor:
        """Normalise ``(runs, batch, dim)``; rows where ``present`` ``(runs, batch)`` is not set become zero."""
        return (x.float() - self.mean[modality]) * self.scale[modality] * present[..., None]


class Sampler:
    """Batches of every run, as a function of (seed, step): shuffled passes over the run's own pool of clips."""

    def __init__(self, name: str, pools: Sequence[Sequence[int]], seeds: Sequence[int], batch: int, views: int) -> None:
        self.name, self.seeds, self.batch, self.views = name, seeds, batch, views
        self.pools = [np.asarray(pool, dtype=np.int64) for pool in pools]

    def block(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Clips and view numbers of steps ``first .. first + count - 1``, each ``(count, runs, batch)``."""
        clips = np.empty((count, len(self.pools), self.batch), dtype=np.int64)
        views = np.empty_like(clips)
        start, size = first * self.batch, count * self.batch
        for run, (pool, seed) in enumerate(zip(self.pools, self.seeds, strict=True)):
            passes = range(start // len(pool), -(-(start + size) // len(pool)))
            drawn = [self._pass(seed, number, pool) for number in passes]
            begin = start - passes[0] * len(pool)
            for out, part in ((clips, 0), (views, 1)):
                series = np.concatenate([d[part] for d in drawn])
                out[:, run] = series[begin : begin + size].reshape(count, self.batch)
        return clips, views

    def _pass(self, seed: int, number: int, pool: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Clips in the order of one pass, and the view of each."""
        generator = named_generator(self.name, seed, number)
        return pool[generator.permutation(len(pool))], generator.integers(self.views, size=len(pool))
