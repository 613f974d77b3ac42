"""Axes -> run specs: settings, configuration files, and the resolved cross product."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from cache.store import FeatureTable
from heads.methods import METHODS
from pipeline.classical import CLASSICAL
from pipeline.config import overlay, read_toml
from pipeline.errors import UsageError, choose
from pipeline.hparams import STRUCTURE, resolve_hparams
from pipeline.labelsets import LabelSet
from pipeline.projection import parse_projection
from pipeline.select import SELECTION
from pipeline.types import Manifest, RunResult, RunSpec, parse_budget


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
    for given in label_sets:
        if given.protocol != settings.protocol:
            raise UsageError(
                f"the label subset for {given.target!r} with seed {given.seed} was made for the protocol "
                f"{given.protocol!r}, and --protocol is {settings.protocol!r}; give the one it was made for"
            )
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
