"""Run specs -> stacks -> results; runs only what is missing."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from cache.layout import CacheError
from cache.places import place_of
from cache.store import FeatureGroup, FeatureTable, stored_groups
from heads.methods import METHODS
from pipeline.bank import FeatureBank
from pipeline.classical import CLASSICAL, fit_classical
from pipeline.compact import (
    Projections,
    compact_bank,
    compact_dims,
    fitted_projections,
    projection_digests,
    projection_notes,
)
from pipeline.errors import CacheMissing
from pipeline.extraction import ExtractSettings
from pipeline.hparams import head_shape
from pipeline.locks import only_writer
from pipeline.plan import fold_curve, fold_runs
from pipeline.projection import parse_projection
from pipeline.records import ResultStore
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunResult, RunSpec, digest
from pipeline.weights import save_weights
from pipeline.workers import Advance, run_tasks

STACK_BYTES_CPU = 2 * 2**30  # memory of a stack's parameters, gradients and moments
Dims = Sequence[tuple[str, int]]  # (modality, feature size) in fusion order
_LATEST: dict[tuple[object, ...], tuple[dict[str, str], FeatureBank]] = {}  # the last features that were read
COPIES = 6  # parameters, two task gradients, the merged one, two moments


def load_tables(manifest: Manifest, settings: ExtractSettings, cache: Path | str) -> dict[str, FeatureTable]:
    """Read the cached features of every modality.

    Raises:
        CacheMissing: a modality has not been extracted with these settings.
    """
    tables = {}
    for modality in settings.modalities:
        place = place_of(cache).child(*settings.identity(manifest.dataset, modality).folder.parts)
        if not place.exists("clips.json"):
            raise CacheMissing(_no_features(manifest.dataset, modality, settings, cache))
        tables[modality] = FeatureGroup(place).load()
    return tables


def _no_features(dataset: str, modality: str, settings: ExtractSettings, cache: Path | str) -> str:
    """What to say where features are missing: what was wanted, and what there is instead."""
    weights, wanted = settings.weights_of(modality), settings.identity(dataset, modality)
    text = (
        f"there are no {modality} features of {dataset} from {wanted.backbone} ({weights.identity[:19]}, tap "
        f"{wanted.tap}, {settings.precision_of(modality)}, {len(wanted.views)} views, view seed {wanted.view_seed}) in "
        f"{cache}; run `pipe extract --dataset ...` with the same options first"
    )
    others = [group.identity for group in stored_groups(cache, dataset) if group.identity.modality == modality]
    if others:
        listed = "; ".join(
            f"--backbones {i.backbone} ({i.weights[:19]}, tap {i.tap}, {len(i.views)} views, view seed {i.view_seed})"
            for i in others
        )
        text += f". What the cache holds: {listed}"
    return text


@dataclass(frozen=True)
class Stack:
    """Runs that train together."""

    specs: tuple[RunSpec, ...]
    parameters: int  # of one run

    @property
    def bytes(self) -> int:
        """Memory of parameters, gradients and moments."""
        return self.parameters * 4 * COPIES * len(self.specs)

    @property
    def cost(self) -> int:
        """What its training costs, in parameters x runs x steps."""
        return self.parameters * len(self.specs) * self.specs[0].steps


def stack_runs(
    specs: Sequence[RunSpec], dims_of: Callable[[RunSpec], Dims], workers: int, budget: int, largest: int | None = None
) -> list[Stack]:
    """Group runs that share shapes into stacks that fit ``budget`` bytes, at least one per worker, costly ones first.

    Numbers do not depend on the grouping, only time and memory do.

    Args:
        specs: the runs.
        dims_of: (modality, feature size) that a run trains on.
        workers: number of processes.
        budget: bytes of a stack's parameters, gradients and moments.
        largest: runs in a stack, at most; ``None``: as many as fit.
    """
    groups: dict[tuple[object, ...], list[RunSpec]] = defaultdict(list)
    for spec in specs:
        # Everything that is one value per stack and not one per run.
        dims = tuple(dims_of(spec))
        shape = dims if spec.method in CLASSICAL else (head_shape(spec, dims), spec.hparams["optimizer"])
        key = (spec.method, shape, spec.classes, spec.steps, spec.eval_every, spec.batch_labeled, spec.batch_unlabeled)
        groups[(*key, spec.projection, spec.precision, spec.patience)].append(spec)
    stacks: list[Stack] = []
    for members in groups.values():
        parameters = count_parameters(members[0], dims_of(members[0]))
        fitting = max(1, budget // (parameters * 4 * COPIES))
        if largest is not None:
            fitting = min(fitting, largest)
        pieces = max(-(-len(members) // fitting), min(workers, len(members)))
        size = -(-len(members) // pieces)
        stacks += [Stack(tuple(members[i : i + size]), parameters) for i in range(0, len(members), size)]
    return sorted(stacks, key=lambda stack: -stack.cost)


def stack_dims(bank: FeatureBank, projections: Projections) -> Callable[[RunSpec], Dims]:
    """The feature sizes of runs, for ``stack_runs``."""
    return lambda spec: compact_dims(bank, projections, spec)


def count_parameters(spec: RunSpec, dims: Dims) -> int:
    """Number of trainable parameters of one run; 1 for a method that has none in this sense."""
    if spec.method in CLASSICAL:
        return 1
    names = {k: torch.zeros(1) for k in spec.hparams}
    with torch.device("meta"):
        method = METHODS[spec.method].build(head_shape(spec, dims), names, [])
    # With no runs every tensor has a leading axis of length zero; count the rest of its shape.
    return sum(math.prod(p.shape[1:]) for p in method.parameters())


@dataclass(frozen=True)
class StackTask:
    """A stack for a worker, with where its features are."""

    specs: tuple[RunSpec, ...]
    manifest: Manifest
    settings: ExtractSettings
    cache: Path | str
    results: Path
    projections: Path
    keep_weights: bool = True
    fold_curves: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """File of this stack's state; its name is the identity of exactly these runs."""
        return self.results / "checkpoints" / f"{digest([s.run_id for s in self.specs])[:16]}.safetensors"


def load_bank(
    specs: Sequence[RunSpec], manifest: Manifest, settings: ExtractSettings, cache: Path | str
) -> FeatureBank:
    """Read the cached features that runs were planned with.

    Raises:
        CacheError: the features have changed since.
    """
    tables = load_tables(manifest, settings, cache)
    for modality, table in tables.items():
        for spec in specs:
            if table.digest != spec.features[modality]["digest"]:
                raise CacheError(
                    f"the {modality} features are not those of run {spec.run_id}; they changed since it was planned. "
                    "Run `pipe train-heads` again with the same options"
                )
    return FeatureBank.from_tables(manifest, tables, torch.device(settings.device))


def _bank_of(task: StackTask) -> FeatureBank:
    """The features of a stack; those of the stack before, where they are the same."""
    modalities = task.settings.modalities
    key = (task.cache, task.manifest.dataset, task.manifest.digest, modalities, task.settings.device)
    wanted = [{m: spec.features[m]["digest"] for m in modalities} for spec in task.specs]
    if key not in _LATEST or any(digests != _LATEST[key][0] for digests in wanted):
        bank = load_bank(task.specs, task.manifest, task.settings, task.cache)
        _LATEST.clear()
        _LATEST[key] = (wanted[0], bank)
    return _LATEST[key][1]


def run_stack(task: StackTask, advance: Advance) -> int:
    """Train one stack and write its results; returns the number of runs that diverged."""
    torch.set_num_threads(1)
    bank = _bank_of(task)
    projections = fitted_projections(task.specs, task.manifest, bank, task.projections)
    store = ResultStore(task.results)
    features = compact_bank(bank, projections, task.specs)
    if task.specs[0].method in CLASSICAL:
        results, trainer = fit_classical(task.specs, task.manifest, features, advance), None
    else:
        trainer = StackTrainer(task.specs, task.manifest, features, task.fold_curves)
        # The moments of dead units decay towards zero for ever; numbers too small for the usual form make every update
        # of the optimiser several times slower.
        torch.set_flush_denormal(True)
        try:
            results = trainer.train(advance, task.checkpoint)
        finally:
            torch.set_flush_denormal(False)
    for run, result in enumerate(results):
        if task.keep_weights and trainer is not None and result.status == "finished":
            save_weights(store.weights_path(result.spec.run_id), result.spec, trainer.weights(run))
        store.write(
            dataclasses.replace(
                result,
                notes=(*result.notes, *projection_notes(result.spec, projections)),
                environment={**result.environment, **projection_digests(result.spec, projections)},
            )
        )
    task.checkpoint.unlink(missing_ok=True)
    return sum(result.status == "diverged" for result in results)


Executor = Callable[[Callable[[StackTask, Advance], int], Sequence[StackTask], Advance], Iterable[tuple[int, int]]]


def run_missing(
    specs: Sequence[RunSpec],
    manifest: Manifest,
    tables: Mapping[str, FeatureTable],
    settings: ExtractSettings,
    cache: Path | str,
    results: Path,
    workers: int,
    on_start: Callable[[int, int, int], None],
    advance: Advance,
    keep_weights: bool = True,
    largest: int | None = None,
    execute: Executor | None = None,
) -> list[RunResult]:
    """Train the runs that are not finished yet and return the results of all, in the order of ``specs``.

    Args:
        specs: resolved runs; their modalities may differ.
        manifest: the data set.
        tables: its cached features, of every modality that a run uses.
        settings: how they were extracted, so that workers find them.
        cache: root folder of all caches.
        results: folder of results.
        workers: processes; on a GPU one is right.
        on_start: called once with (missing runs, stacks, steps over all stacks).
        advance: called with numbers of stack steps done.
        keep_weights: whether every run's weights are written beside its result.
        largest: runs in a stack, at most.
        execute: what runs the stacks; ``None``: worker processes on this machine.
    """
    store, folds = ResultStore(results), results / "folds"
    if execute is None:
        execute = partial(_on_this_machine, workers)
    with only_writer(results, "training into"):
        missing = store.missing(specs)
        needed = fold_runs(missing)
        first = ResultStore(folds).missing([fold for of_run in needed.values() for fold in of_run])
        plan = partial(plan_stacks, manifest=manifest, tables=tables, results=results, workers=workers)
        stages = [plan(runs, device=settings.device, largest=largest) for runs in (first, missing)]
        steps = sum(stack.specs[0].steps for stacks in stages for stack in stacks)
        on_start(len(missing), len(stages[0]) + len(stages[1]), steps)
        for stacks, folder, keep in zip(stages, (folds, results), (False, keep_weights), strict=True):
            curves: dict[str, list[float | None]] = {}
            if folder == results:
                curves = {run: fold_curve([ResultStore(folds).read(f) for f in of]) for run, of in needed.items()}
            tasks = [
                StackTask(
                    stack.specs,
                    manifest,
                    dataclasses.replace(settings, modalities=stack.specs[0].modalities),
                    cache,
                    folder,
                    results / "projections",
                    keep,
                    {spec.run_id: curves[spec.run_id] for spec in stack.specs if spec.run_id in curves},
                )
                for stack in stacks
            ]
            for _ in execute(run_stack, tasks, advance):
                pass
    return [store.read(spec) for spec in specs]


def _on_this_machine(
    workers: int, function: Callable[[StackTask, Advance], int], tasks: Sequence[StackTask], advance: Advance
) -> Iterable[tuple[int, int]]:
    return run_tasks(function, tasks, workers, advance)


def plan_stacks(
    specs: Sequence[RunSpec],
    manifest: Manifest,
    tables: Mapping[str, FeatureTable],
    results: Path,
    workers: int,
    device: str,
    largest: int | None = None,
) -> list[Stack]:
    """Stacks of runs of any modalities and projections, costly ones first; fits projections that are not there yet.

    Projections are fitted here, once, so that the workers do not all fit the same.
    """
    budget = STACK_BYTES_CPU
    if device.startswith("cuda"):
        budget = int(torch.cuda.mem_get_info(device)[0] * 0.6)
    parts: dict[tuple[tuple[str, ...], str], list[RunSpec]] = defaultdict(list)
    for spec in specs:
        parts[(spec.modalities, spec.projection)].append(spec)
    stacks: list[Stack] = []
    for (modalities, projection), members in parts.items():
        mine = {m: tables[m] for m in modalities}
        if parse_projection(projection) is None:
            dims_of: Callable[[RunSpec], Dims] = partial(
                _plain_dims, tuple((m, int(t.features.shape[-1])) for m, t in mine.items())
            )
        else:
            bank = FeatureBank.from_tables(manifest, mine, torch.device("cpu"))
            dims_of = stack_dims(bank, fitted_projections(members, manifest, bank, results / "projections"))
        stacks += stack_runs(members, dims_of, workers, budget, largest)
    return sorted(stacks, key=lambda stack: -stack.cost)


def _plain_dims(dims: Dims, spec: RunSpec) -> Dims:
    return dims
