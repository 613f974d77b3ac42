"""A sweep's runs: planned from its file, and remembered, so that a report knows which runs are its own."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cache.layout import write_atomically
from cache.store import FeatureTable
from pipeline.axes import MODALITY_AXIS, SHORT_NAMES, Axes, expand
from pipeline.bank import FeatureBank
from pipeline.classical import CLASSICAL
from pipeline.errors import UsageError, choose, nearest
from pipeline.hparams import all_names
from pipeline.plan import SweepSettings, plan_runs
from pipeline.running import Stack
from pipeline.sweepfile import PublishedNumber, SweepFile, SweepTitle
from pipeline.train import StackTrainer
from pipeline.types import MODALITIES, Manifest, RunSpec

SCHEMA = 1
TIMED_STEPS = 4  # of a stack, for the estimate of a dry run
TIMED_RUNS = 4


@dataclass(frozen=True)
class SweepRecord:
    """What is kept of a sweep beside its runs' results."""

    name: str
    about: SweepTitle
    run_ids: tuple[str, ...]
    cases: Mapping[str, str] = field(default_factory=dict)  # run id -> name of its case
    published: tuple[PublishedNumber, ...] = ()
    axes: Mapping[str, Any] = field(default_factory=dict)  # for the reader

    def to_json(self) -> dict[str, Any]:
        """Plain values, as written to disk."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> SweepRecord:
        """Read what ``to_json`` wrote."""
        about: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain["about"].items()}
        return cls(
            name=plain["name"],
            about=SweepTitle(**about),
            run_ids=tuple(plain["run_ids"]),
            cases=plain["cases"],
            published=tuple(PublishedNumber(**entry) for entry in plain["published"]),
            axes=plain["axes"],
        )


def record_path(results: Path, name: str) -> Path:
    """File of a sweep's record."""
    return results / "sweeps" / f"{name}.json"


def write_record(results: Path, record: SweepRecord) -> Path:
    """Write a sweep's record; one of an earlier call is replaced, its runs stay."""
    path = record_path(results, record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record.to_json(), indent=1))  # unsorted: cases stay in their order
    return path


def has_record(results: Path, name: str) -> bool:
    """Whether there is a sweep of that name."""
    return bool(name) and "/" not in name and record_path(results, name).exists()


def read_record(results: Path, name: str) -> SweepRecord:
    """Read a sweep's record.

    Raises:
        UsageError: there is none of that name, or it cannot be read.
    """
    path = record_path(results, name)
    there = sorted(p.stem for p in path.parent.glob("*.json"))
    if name not in there:
        listed = ", ".join(there) or "none yet"
        raise UsageError(f"there is no sweep {name!r} in {results}.{nearest(name, there)} Sweeps: {listed}")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["schema"] != SCHEMA:
            raise ValueError(f"schema {plain['schema']}, this version reads {SCHEMA}")
        return SweepRecord.from_json(plain)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not the record of a sweep ({error}); run the sweep again") from error


def sweep_modalities(sweep: SweepFile, default: Sequence[str]) -> tuple[str, ...]:
    """Every modality that a cell of a sweep uses, in the order of ``MODALITIES``."""
    found = {m for cell in expand(sweep.settings, tuple(default), sweep.axes) for m in cell.modalities}
    return tuple(m for m in MODALITIES if m in found)


def plan_sweep(
    sweep: SweepFile, manifest: Manifest, tables: Mapping[str, FeatureTable], default: Sequence[str]
) -> tuple[list[RunSpec], dict[str, str]]:
    """Resolve every cell; runs that several cells share stand once.

    Args:
        sweep: what is varied.
        manifest: the data set.
        tables: cached features of every modality that a cell uses.
        default: modalities of cells that do not name their own.

    Returns:
        The runs, and the name of the case per run id where it has one.

    Raises:
        UsageError: an axis, a value or a combination that is not allowed.
    """
    check_names(sweep.axes)
    specs: dict[str, RunSpec] = {}
    cases: dict[str, str] = {}
    for cell in expand(sweep.settings, tuple(default), sweep.axes):
        mine = {choose("modality with features", m, tables): tables[m] for m in cell.modalities}
        for spec in plan_runs(manifest, mine, cell.settings):
            specs.setdefault(spec.run_id, spec)
            if cell.case:
                cases.setdefault(spec.run_id, cell.case)
    return list(specs.values()), cases


def check_names(axes: Axes) -> None:
    """Check that every axis, case and range names something that can be varied.

    Raises:
        UsageError: one does not; the nearest name is told.
    """
    settings = {f.name for f in dataclasses.fields(SweepSettings)} | {"batch", MODALITY_AXIS}
    allowed = settings | set(SHORT_NAMES) | all_names()
    for name in [*axes.lists, *axes.drawn, *(key for case in axes.cases for key in case.changes)]:
        if name not in allowed:
            raise UsageError(
                f"{name!r} is neither a setting nor a hyperparameter.{nearest(name, allowed)} Settings: "
                f"{', '.join(sorted(settings - {'hparams'}))}; `pipe methods` lists hyperparameters"
            )


def plain_axes(axes: Axes) -> dict[str, Any]:
    """Axes and draws as plain values, for a record: other values are another sweep."""
    plain: dict[str, Any] = {name: list(values) for name, values in axes.lists.items()}
    plain |= {name: dataclasses.asdict(drawn) for name, drawn in axes.drawn.items()}
    if axes.draws:
        plain["random"] = {"draws": axes.draws, "seed": axes.draw_seed}
    if axes.cases:
        plain["cases"] = [{"name": case.name, **case.changes} for case in axes.cases]
    return plain


@dataclass(frozen=True)
class StackEstimate:
    """What stacks of one method and size will cost."""

    method: str
    modalities: tuple[str, ...]
    stacks: int
    runs: int
    bytes: int  # of the largest stack
    seconds: float | None  # of one process for all of them; None: nothing to time


def estimate(
    stacks: Sequence[Stack], manifest: Manifest, tables: Mapping[str, FeatureTable], device: str
) -> list[StackEstimate]:
    """Estimate memory and time by training a few runs of every kind of stack for a few steps.

    Stacks on compact features and scikit-learn's methods are counted and not timed.
    """
    kinds: dict[tuple[str, tuple[str, ...], int], list[Stack]] = {}
    for stack in stacks:
        spec = stack.specs[0]
        kinds.setdefault((spec.method, spec.modalities, stack.parameters), []).append(stack)
    banks: dict[tuple[str, ...], FeatureBank] = {}
    rows = []
    for (method, modalities, _), members in kinds.items():
        seconds = None
        if method not in CLASSICAL and members[0].specs[0].projection == "none":
            if modalities not in banks:
                mine = {m: tables[m] for m in modalities}
                banks[modalities] = FeatureBank.from_tables(manifest, mine, torch.device(device))
            timed = members[0].specs[:TIMED_RUNS]
            per_step = _seconds_per_step(timed, manifest, banks[modalities]) / len(timed)
            seconds = sum(per_step * len(stack.specs) * stack.specs[0].steps for stack in members)
        runs = sum(len(stack.specs) for stack in members)
        rows.append(StackEstimate(method, modalities, len(members), runs, max(s.bytes for s in members), seconds))
    return rows


def _seconds_per_step(specs: Sequence[RunSpec], manifest: Manifest, bank: FeatureBank) -> float:
    """Seconds of one step of these runs together: a longer short training minus a shorter one."""
    spent = []
    for steps in (1, 1 + TIMED_STEPS):
        short = [dataclasses.replace(s, steps=steps, eval_every=steps, selection="last", folds=0) for s in specs]
        trainer = StackTrainer(short, manifest, bank)
        start = time.perf_counter()
        trainer.train(lambda _: None)
        spent.append(time.perf_counter() - start)
    return max(spent[1] - spent[0], 1e-6) / TIMED_STEPS
