"""Axes -> run specs -> stacks; runs only what is missing."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from cache.layout import CacheError
from cache.store import FeatureGroup, FeatureTable
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
from pipeline.config import overlay, read_toml
from pipeline.encode import ExtractSettings
from pipeline.errors import CacheMissing, UsageError, choose
from pipeline.hparams import STRUCTURE, head_shape, resolve_hparams
from pipeline.labelsets import LabelSet
from pipeline.locks import only_writer
from pipeline.projection import parse_projection
from pipeline.records import ResultStore
from pipeline.select import SELECTION
from pipeline.train import StackTrainer
from pipeline.types import Manifest, RunResult, RunSpec, digest, parse_budget
from pipeline.weights import save_weights
from pipeline.workers import Advance, run_tasks

STACK_BYTES_CPU = 2 * 2**30  # memory of a stack's parameters, gradients and moments
Dims = Sequence[tuple[str, int]]  # (modality, feature size) in fusion order
COPIES = 6  # parameters, two task gradients, the merged one, two moments


@dataclass(frozen=True)
class SweepSettings:
    """Axes and settings of a set of runs: methods x targets x seeds."""

    methods: tuple[str, ...] = ("erm", "fixmatch", "ssmdg")
    targets: tuple[str, ...] = ()  # empty: every domain once, the others are its sources
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    labels: str = "5"  # as ``parse_budget`` reads it
    steps: int = 400
    batch_labeled: int = 32
    batch_unlabeled: int = 32
    eval_every: int = 50
    target_part: str = ""  # all or test; empty: test in the paper protocol and inside a single domain, else all
    selection: str = "last"
    variant: str = "strict"  # paper: every method's switches as its authors' release has them
    projection: str = "none"  # compact features: pca:N or pca-white:N
    precision: str = "float32"  # or bfloat16
    patience: int = 0  # evaluations without a better validation accuracy before a run stops; 0: never
    keep_weights: bool = True  # beside every result, for `pipe eval`; no part of a run's identity
    protocol: str = "strict"  # or paper
    unlabeled_domains: tuple[str, ...] = ()  # sources of which no clip is labeled
    folds: int = 5  # of the selection rule label-honest
    hparams: Mapping[str, float | str] = field(default_factory=dict)  # overrides, for every method that has them

    def __post_init__(self) -> None:
        for method in self.methods:
            choose("method", method, [*METHODS, *CLASSICAL])
        choose("variant", self.variant, ("strict", "paper"))
        choose("precision", self.precision, ("float32", "bfloat16"))
        parse_projection(self.projection)
        choose("selection rule", self.selection, SELECTION)
        choose("protocol", self.protocol, ("strict", "paper"))
        if self.folds < 2:
            raise UsageError(f"folds is {self.folds}; cut the labeled clips into at least 2")
        choose("target part", self.target_part, ("", "all", "test"))
        parse_budget(self.labels)
        if not self.methods or not self.seeds:
            raise UsageError("there is nothing to run: give at least one method and one seed")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UsageError(f"seeds {self.seeds}: they must differ and be 0 or more")


AXES = ("methods", "targets", "seeds")


def read_sweep(path: Path) -> SweepSettings:
    """Read a configuration file: ``[run]`` holds settings, ``[axes]`` the lists whose product is run.

    Raises:
        UsageError: another table, an unknown key, a value of the wrong type, or a value that is not allowed.
    """
    tables = read_toml(path)
    for name in tables:
        choose(f"table of {path}", name, ("run", "axes"))
    settings = SweepSettings()
    for name in ("run", "axes"):
        values = tables.get(name, {})
        if not isinstance(values, dict):
            raise UsageError(f"{path}: {name} is {values!r}; write it as a table, [{name}]")
        misplaced = [key for key in values if (key in AXES) != (name == "axes")]
        if misplaced and misplaced[0] in (f.name for f in dataclasses.fields(SweepSettings)):
            other = "run" if name == "axes" else "axes"
            raise UsageError(f"{path}: {misplaced[0]!r} stands in [{name}]; it belongs into [{other}]")
        settings = overlay(settings, values, f"{path} [{name}]")
    return settings


def load_tables(manifest: Manifest, settings: ExtractSettings, cache: Path) -> dict[str, FeatureTable]:
    """Read the cached features of every modality.

    Raises:
        CacheMissing: a modality has not been extracted with these settings.
    """
    tables = {}
    for modality in settings.modalities:
        path = cache / settings.identity(manifest.dataset, modality).folder
        if not (path / "clips.json").exists():
            raise CacheMissing(
                f"there are no {modality} features of {manifest.dataset} from {settings.backbones[modality]} in "
                f"{cache}; run `pipe extract --dataset ...` with the same options first"
            )
        tables[modality] = FeatureGroup(path).load()
    return tables


def plan_runs(
    manifest: Manifest,
    tables: Mapping[str, FeatureTable],
    settings: SweepSettings,
    label_sets: Sequence[LabelSet] = (),
) -> list[RunSpec]:
    """Resolve the cross product of the axes.

    A data set of one domain is trained on its train part and tested on its test part.

    Args:
        manifest: the data set.
        tables: its cached features.
        settings: axes and settings.
        label_sets: labeled clips to use instead of a draw; their targets and seeds take the place of the axes.

    Raises:
        UsageError: unknown target, a data set of one domain without a test part, or an unknown hyperparameter.
    """
    inside = len(manifest.domains) == 1
    if inside and not any(clip.split == "test" for clip in manifest.clips):
        raise UsageError(
            f"{manifest.dataset} has one domain, {manifest.domains[0]!r}, and no test part; a target domain needs at "
            "least one other as its source. Name the site or recording condition of every clip in the column `domain`"
        )
    dims = nominal_dims(tables, settings.projection)
    features = {
        m: {"backbone": t.identity.backbone, "weights": t.identity.weights, "digest": t.digest}
        for m, t in tables.items()
    }
    part = settings.target_part or ("test" if inside or settings.protocol == "paper" else "all")
    specs = []
    for method in settings.methods:
        overrides = _own_overrides(method, dims, settings)
        hparams = resolve_hparams(method, dims, overrides, "paper" if settings.variant == "paper" else "strict")
        for target, seed, given in _draws(manifest, settings, label_sets):
            choose(f"domain of {manifest.dataset}", target, manifest.domains)
            sources = tuple(d for d in manifest.domains if d != target or inside)
            specs.append(
                RunSpec(
                    dataset=manifest.dataset,
                    manifest_digest=manifest.digest,
                    classes=manifest.classes,
                    sources=sources,
                    target=target,
                    modalities=tuple(tables),
                    features=features,
                    budget=given.budget if given else str(parse_budget(settings.labels)),
                    method=method,
                    hparams=hparams,
                    split_seed=seed,
                    init_seed=seed,
                    steps=settings.steps,
                    batch_labeled=settings.batch_labeled,
                    batch_unlabeled=settings.batch_unlabeled,
                    eval_every=settings.eval_every,
                    protocol="paper" if settings.protocol == "paper" else "strict",
                    target_part="all" if part == "all" else "test",
                    selection=settings.selection,
                    projection=settings.projection,
                    precision="bfloat16" if settings.precision == "bfloat16" else "float32",
                    patience=settings.patience,
                    unlabeled_domains=settings.unlabeled_domains,
                    labeled_ids=given.labeled if given else (),
                    folds=settings.folds if settings.selection == "label-honest" else 0,
                    version=version("pipe-features"),
                )
            )
    return specs


def _draws(
    manifest: Manifest, settings: SweepSettings, label_sets: Sequence[LabelSet]
) -> list[tuple[str, int, LabelSet | None]]:
    """(target, seed, labeled clips if given) of the runs of one method."""
    if label_sets and settings.unlabeled_domains:
        raise UsageError("label subsets say which clips are labeled; leave --unlabeled-domains out")
    if label_sets:
        return [(given.target, given.seed, given) for given in label_sets]
    for name in settings.unlabeled_domains:
        choose(f"domain of {manifest.dataset}", name, manifest.domains)
    return [(target, seed, None) for target in settings.targets or manifest.domains for seed in settings.seeds]


def fold_runs(specs: Sequence[RunSpec]) -> dict[str, list[RunSpec]]:
    """The runs that the rule label-honest needs, per id of the run that is selected by it."""
    return {
        spec.run_id: [dataclasses.replace(spec, selection="last", patience=0, fold=k) for k in range(spec.folds)]
        for spec in specs
        if spec.folds and spec.method in METHODS
    }


def fold_curve(results: Sequence[RunResult]) -> list[float | None]:
    """Mean validation accuracy of finished folds at every evaluation; ``None`` where no fold has a value."""
    series = [result.curves["val/fused"] for result in results if result.status == "finished"]
    means: list[float | None] = []
    for values in zip(*series, strict=True):
        known = [value for value in values if value is not None]
        means.append(math.fsum(known) / len(known) if known else None)
    return means


def nominal_dims(tables: Mapping[str, FeatureTable], projection: str) -> list[tuple[str, int]]:
    """(modality, feature size) before it is known how many values a projection of few clips can have."""
    spec = parse_projection(projection)
    sizes = {m: int(t.features.shape[-1]) for m, t in tables.items()}
    return [(m, size if spec is None else min(size, spec.width)) for m, size in sizes.items()]


def _own_overrides(method: str, dims: Sequence[tuple[str, int]], settings: SweepSettings) -> dict[str, float | str]:
    """The overrides that a method knows; one that no chosen method knows is an error."""
    # Choices such as the optimiser bring hyperparameters of their own.
    choices = {k: v for k, v in settings.hparams.items() if k in STRUCTURE}
    known = {m: resolve_hparams(m, dims, {} if m in CLASSICAL else choices) for m in settings.methods}
    for name in settings.hparams:
        if not any(name in names for names in known.values()):
            choose("hyperparameter", name, sorted({n for names in known.values() for n in names}))
    return {k: v for k, v in settings.hparams.items() if k in known[method]}


def stack_runs(
    specs: Sequence[RunSpec], dims_of: Callable[[RunSpec], Dims], workers: int, budget: int
) -> list[list[RunSpec]]:
    """Group runs that share shapes into stacks that fit ``budget`` bytes, at least one per worker, costly ones first.

    Numbers do not depend on the grouping, only time and memory do.

    Args:
        specs: the runs.
        dims_of: (modality, feature size) that a run trains on.
        workers: number of processes.
        budget: bytes of a stack's parameters, gradients and moments.
    """
    groups: dict[tuple[object, ...], list[RunSpec]] = defaultdict(list)
    for spec in specs:
        # Everything that is one value per stack and not one per run.
        dims = tuple(dims_of(spec))
        shape = dims if spec.method in CLASSICAL else (head_shape(spec, dims), spec.hparams["optimizer"])
        key = (spec.method, shape, spec.classes, spec.steps, spec.eval_every, spec.batch_labeled, spec.batch_unlabeled)
        groups[(*key, spec.projection, spec.precision, spec.patience)].append(spec)
    stacks: list[tuple[int, list[RunSpec]]] = []
    for members in groups.values():
        parameters = count_parameters(members[0], dims_of(members[0]))
        fitting = max(1, budget // (parameters * 4 * COPIES))
        pieces = max(-(-len(members) // fitting), min(workers, len(members)))
        size = -(-len(members) // pieces)
        cost = parameters * members[0].steps
        stacks += [(cost * size, members[i : i + size]) for i in range(0, len(members), size)]
    stacks.sort(key=lambda item: -item[0])
    return [members for _, members in stacks]


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
    cache: Path
    results: Path
    projections: Path
    keep_weights: bool = True
    fold_curves: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """File of this stack's state; its name is the identity of exactly these runs."""
        return self.results / "checkpoints" / f"{digest([s.run_id for s in self.specs])[:16]}.safetensors"


def load_bank(specs: Sequence[RunSpec], manifest: Manifest, settings: ExtractSettings, cache: Path) -> FeatureBank:
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


def run_stack(task: StackTask, advance: Advance) -> int:
    """Train one stack and write its results; returns the number of runs that diverged."""
    torch.set_num_threads(1)
    # The moments of dead units decay towards zero for ever; numbers too small for the usual form make every update
    # of the optimiser several times slower.
    torch.set_flush_denormal(True)
    bank = load_bank(task.specs, task.manifest, task.settings, task.cache)
    projections = fitted_projections(task.specs, task.manifest, bank, task.projections)
    store = ResultStore(task.results)
    features = compact_bank(bank, projections, task.specs)
    if task.specs[0].method in CLASSICAL:
        results, trainer = fit_classical(task.specs, task.manifest, features, advance), None
    else:
        trainer = StackTrainer(task.specs, task.manifest, features, task.fold_curves)
        results = trainer.train(advance, task.checkpoint)
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


def run_missing(
    specs: Sequence[RunSpec],
    manifest: Manifest,
    tables: Mapping[str, FeatureTable],
    settings: ExtractSettings,
    cache: Path,
    results: Path,
    workers: int,
    on_start: Callable[[int, int, int], None],
    advance: Advance,
    keep_weights: bool = True,
) -> list[RunResult]:
    """Train the runs that are not finished yet and return the results of all, in the order of ``specs``.

    Args:
        specs: resolved runs.
        manifest: the data set.
        tables: its cached features.
        settings: how they were extracted, so that workers find them.
        cache: root folder of all caches.
        results: folder of results.
        workers: processes; on a GPU one is right.
        on_start: called once with (missing runs, stacks, steps over all stacks).
        advance: called with numbers of stack steps done.
        keep_weights: whether every run's weights are written beside its result.
    """
    store, folds = ResultStore(results), results / "folds"
    with only_writer(results, "training into"):
        missing = store.missing(specs)
        needed = fold_runs(missing)
        first = ResultStore(folds).missing([fold for of_run in needed.values() for fold in of_run])
        if not missing:
            on_start(0, 0, 0)
            return [store.read(spec) for spec in specs]
        bank = FeatureBank.from_tables(manifest, tables, torch.device("cpu"))
        # Here once, so that the workers do not all fit the same.
        projections = fitted_projections(missing, manifest, bank, results / "projections")
        dims_of = stack_dims(bank, projections)
        del bank
        budget = STACK_BYTES_CPU
        if settings.device.startswith("cuda"):
            budget = int(torch.cuda.mem_get_info(settings.device)[0] * 0.6)
        stages = [stack_runs(first, dims_of, workers, budget), stack_runs(missing, dims_of, workers, budget)]
        steps = sum(stack[0].steps for stacks in stages for stack in stacks)
        on_start(len(missing), len(stages[0]) + len(stages[1]), steps)
        for stacks, folder, keep in zip(stages, (folds, results), (False, keep_weights), strict=True):
            curves: dict[str, list[float | None]] = {}
            if folder == results:
                curves = {run: fold_curve([ResultStore(folds).read(f) for f in of]) for run, of in needed.items()}
            tasks = [
                StackTask(
                    tuple(stack),
                    manifest,
                    settings,
                    cache,
                    folder,
                    results / "projections",
                    keep,
                    {spec.run_id: curves[spec.run_id] for spec in stack if spec.run_id in curves},
                )
                for stack in stacks
            ]
            for _ in run_tasks(run_stack, tasks, workers, advance):
                pass
    return [store.read(spec) for spec in specs]
