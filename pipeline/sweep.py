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
from pipeline.config import overlay, read_toml
from pipeline.encode import ExtractSettings
from pipeline.errors import CacheMissing, UsageError, choose
from pipeline.locks import only_writer
from pipeline.records import ResultStore
from pipeline.select import SELECTION
from pipeline.train import StackTrainer, head_shape, resolve_hparams
from pipeline.types import Manifest, RunResult, RunSpec, digest, parse_budget
from pipeline.workers import Advance, run_tasks

STACK_BYTES_CPU = 2 * 2**30  # memory of a stack's parameters, gradients and moments
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
    target_part: str = "all"
    selection: str = "last"
    hparams: Mapping[str, float | str] = field(default_factory=dict)  # overrides, for every method that has them

    def __post_init__(self) -> None:
        for method in self.methods:
            choose("method", method, METHODS)
        choose("selection rule", self.selection, SELECTION)
        choose("target part", self.target_part, ("all", "test"))
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


def plan_runs(manifest: Manifest, tables: Mapping[str, FeatureTable], settings: SweepSettings) -> list[RunSpec]:
    """Resolve the cross product of the axes.

    Raises:
        UsageError: unknown target, a data set of one domain, or an unknown hyperparameter.
    """
    if len(manifest.domains) < 2:
        raise UsageError(
            f"{manifest.dataset} has one domain, {manifest.domains[0]!r}; a target domain needs at least one other as "
            "its source. Name the site or recording condition of every clip in the column `domain`"
        )
    dims = [(m, int(t.features.shape[-1])) for m, t in tables.items()]
    features = {
        m: {"backbone": t.identity.backbone, "weights": t.identity.weights, "digest": t.digest}
        for m, t in tables.items()
    }
    specs = []
    for method in settings.methods:
        hparams = resolve_hparams(method, dims, _own_overrides(method, dims, settings))
        for target in settings.targets or manifest.domains:
            choose(f"domain of {manifest.dataset}", target, manifest.domains)
            for seed in settings.seeds:
                specs.append(
                    RunSpec(
                        dataset=manifest.dataset,
                        manifest_digest=manifest.digest,
                        classes=manifest.classes,
                        sources=tuple(d for d in manifest.domains if d != target),
                        target=target,
                        modalities=tuple(tables),
                        features=features,
                        budget=str(parse_budget(settings.labels)),
                        method=method,
                        hparams=hparams,
                        split_seed=seed,
                        init_seed=seed,
                        steps=settings.steps,
                        batch_labeled=settings.batch_labeled,
                        batch_unlabeled=settings.batch_unlabeled,
                        eval_every=settings.eval_every,
                        target_part="all" if settings.target_part == "all" else "test",
                        selection=settings.selection,
                        version=version("pipe-features"),
                    )
                )
    return specs


def _own_overrides(method: str, dims: Sequence[tuple[str, int]], settings: SweepSettings) -> dict[str, float | str]:
    """The overrides that a method knows; one that no chosen method knows is an error."""
    known = {m: resolve_hparams(m, dims, {}) for m in settings.methods}
    for name in settings.hparams:
        if not any(name in names for names in known.values()):
            choose("hyperparameter", name, sorted({n for names in known.values() for n in names}))
    return {k: v for k, v in settings.hparams.items() if k in known[method]}


def stack_runs(
    specs: Sequence[RunSpec], dims: Sequence[tuple[str, int]], workers: int, budget: int
) -> list[list[RunSpec]]:
    """Group runs that share shapes into stacks that fit ``budget`` bytes, at least one per worker, costly ones first.

    Numbers do not depend on the grouping, only time and memory do.
    """
    groups: dict[tuple[object, ...], list[RunSpec]] = defaultdict(list)
    for spec in specs:
        key = (spec.method, head_shape(spec, dims), spec.classes, spec.steps, spec.eval_every)
        groups[(*key, spec.batch_labeled, spec.batch_unlabeled)].append(spec)
    stacks: list[tuple[int, list[RunSpec]]] = []
    for members in groups.values():
        parameters = count_parameters(members[0], dims)
        fitting = max(1, budget // (parameters * 4 * COPIES))
        pieces = max(-(-len(members) // fitting), min(workers, len(members)))
        size = -(-len(members) // pieces)
        cost = parameters * members[0].steps
        stacks += [(cost * size, members[i : i + size]) for i in range(0, len(members), size)]
    stacks.sort(key=lambda item: -item[0])
    return [members for _, members in stacks]


def count_parameters(spec: RunSpec, dims: Sequence[tuple[str, int]]) -> int:
    """Number of trainable parameters of one run."""
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

    @property
    def checkpoint(self) -> Path:
        """File of this stack's state; its name is the identity of exactly these runs."""
        return self.results / "checkpoints" / f"{digest([s.run_id for s in self.specs])[:16]}.safetensors"


def run_stack(task: StackTask, advance: Advance) -> int:
    """Train one stack and write its results; returns the number of runs that diverged."""
    torch.set_num_threads(1)
    tables = load_tables(task.manifest, task.settings, task.cache)
    for modality, table in tables.items():
        if table.digest != task.specs[0].features[modality]["digest"]:
            raise CacheError(f"the {modality} features changed while runs were waiting; run the same command again")
    bank = FeatureBank.from_tables(task.manifest, tables, torch.device(task.settings.device))
    results = StackTrainer(task.specs, task.manifest, bank).train(advance, task.checkpoint)
    store = ResultStore(task.results)
    for result in results:
        store.write(result)
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
    """
    store = ResultStore(results)
    with only_writer(results, "training into"):
        missing = store.missing(specs)
        dims = [(m, int(t.features.shape[-1])) for m, t in tables.items()]
        budget = STACK_BYTES_CPU
        if settings.device.startswith("cuda"):
            budget = int(torch.cuda.mem_get_info(settings.device)[0] * 0.6)
        stacks = stack_runs(missing, dims, workers, budget)
        on_start(len(missing), len(stacks), sum(stack[0].steps for stack in stacks))
        tasks = [StackTask(tuple(s), manifest, settings, cache, results) for s in stacks]
        for _ in run_tasks(run_stack, tasks, workers, advance):
            pass
    return [store.read(spec) for spec in specs]
