"""A sweep as a file: what is trained, what is varied, and what its table is compared with.

``[sweep]`` says what it is, ``[features]`` and ``[run]`` hold settings, ``[axes]`` lists, ``[[cases]]`` settings that
change together, ``[random]`` ranges that are drawn from, ``[[published]]`` numbers of others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.axes import Axes, Case, Drawn, change
from pipeline.config import overlay, read_toml
from pipeline.errors import UsageError, choose
from pipeline.plan import SweepSettings

TABLES = ("sweep", "features", "run", "axes", "cases", "random", "published")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class SweepTitle:
    """What a sweep is."""

    title: str = ""
    source: str = ""  # paper and table that it stands for; empty: none
    dataset: str = ""  # name of a data set; empty: the command names one
    baseline: str = "erm"  # method of the paired differences
    not_built: tuple[str, ...] = ()  # rows of that table whose methods are not in this package
    notes: tuple[str, ...] = ()  # what a reader of its numbers must know


@dataclass(frozen=True)
class SweepFeatures:
    """Features of a sweep; what the command line says beats them."""

    modalities: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedNumber:
    """A number that others published, as a file declares it."""

    method: str = ""
    column: str = "average"  # a target domain, or average
    percent: float = 0.0
    source: str = ""
    difference: str = ""  # what its protocol does otherwise
    labels: str = ""  # of the tables it stands in; empty: all
    modalities: str = ""  # likewise, as the axis writes them


@dataclass(frozen=True)
class SweepFile:
    """A whole sweep."""

    name: str
    about: SweepTitle = field(default_factory=SweepTitle)
    features: SweepFeatures = field(default_factory=SweepFeatures)
    settings: SweepSettings = field(default_factory=SweepSettings)
    axes: Axes = field(default_factory=Axes)
    published: tuple[PublishedNumber, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"sweep name {self.name!r}; use letters, digits, dots, dashes and underscores")


def read_sweep_file(path: Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        UsageError: another table, an unknown key, a value of the wrong type, or a value that is not allowed.
    """
    tables = read_toml(path)
    for name in tables:
        choose(f"table of {path}", name, TABLES)
    return SweepFile(
        name=path.stem,
        about=overlay(SweepTitle(), _table(tables, "sweep", path), f"{path} [sweep]"),
        features=overlay(SweepFeatures(), _table(tables, "features", path), f"{path} [features]"),
        settings=overlay(SweepSettings(), _table(tables, "run", path), f"{path} [run]"),
        axes=_axes(tables, path),
        published=tuple(
            overlay(PublishedNumber(), entry, f"{path} [[published]]") for entry in _entries(tables, "published", path)
        ),
    )


def _table(tables: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    found = tables.get(name, {})
    if not isinstance(found, dict):
        raise UsageError(f"{path}: {name} is {found!r}; write it as a table, [{name}]")
    return found


def _entries(tables: Mapping[str, Any], name: str, path: Path) -> Sequence[Mapping[str, Any]]:
    found = tables.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UsageError(f"{path}: {name} must be a list of tables, each begun by [[{name}]]")
    return found


def _axes(tables: Mapping[str, Any], path: Path) -> Axes:
    """Read ``[axes]``, ``[[cases]]`` and ``[random]``."""
    lists = {}
    for name, values in _table(tables, "axes", path).items():
        if not isinstance(values, list):
            raise UsageError(f"{path} [axes]: {name} is {values!r}; an axis is a list, for example [5, 10]")
        lists[name] = tuple(tuple(v) if isinstance(v, list) else v for v in values)
    cases = []
    for entry in _entries(tables, "cases", path):
        given = dict(entry)
        name = given.pop("name", "")
        if not isinstance(name, str) or not name:
            raise UsageError(f'{path} [[cases]]: every case needs a name, for example name = "without prototypes"')
        cases.append(Case(name, given))
    random = dict(_table(tables, "random", path))
    ranges = random.pop("ranges", {})
    for key in random:
        choose(f"setting of {path} [random]", key, ("draws", "seed", "ranges"))
    drawn = {name: _drawn(values, f"{path} [random.ranges] {name}") for name, values in ranges.items()}
    return Axes(lists, tuple(cases), drawn, int(random.get("draws", 0)), int(random.get("seed", 0)))


def _drawn(values: object, where: str) -> Drawn:
    if not isinstance(values, dict):
        raise UsageError(
            f'{where} is {values!r}; write {{ low = 1e-4, high = 1e-2, scale = "log" }} or {{ choices = [..] }}'
        )
    plain = dict(values)
    choices = plain.pop("choices", [])
    if not isinstance(choices, list):
        raise UsageError(f"{where}: choices is {choices!r}; it must be a list")
    return replace(overlay(Drawn(), plain, where), choices=tuple(choices))


def with_axes(sweep: SweepFile, axes: Axes) -> SweepFile:
    """A sweep whose axes the command line replaces, one by one; an axis with one value sets it."""
    lists = {**sweep.axes.lists, **axes.lists}
    drawn = {**sweep.axes.drawn, **axes.drawn}
    draws = axes.draws or sweep.axes.draws
    return replace(
        sweep, axes=Axes(lists, sweep.axes.cases, drawn, draws, axes.draw_seed if axes.draws else sweep.axes.draw_seed)
    )


def shortened(sweep: SweepFile, domains: Sequence[str]) -> SweepFile:
    """A sweep in little for a data set with these domains: every axis and case stays, few seeds, targets and steps."""
    lists = {**sweep.axes.lists, "seeds": (0,), "targets": tuple(domains[:1])}
    settings = change(sweep.settings, {"steps": 4, "eval_every": 2, "batch": 4}, "shortened")
    settings = replace(settings, unlabeled_domains=settings.unlabeled_domains and tuple(domains[1:2]))
    if "unlabeled_domains" in lists:
        lists["unlabeled_domains"] = ((), tuple(domains[1:2]))
    return replace(sweep, settings=settings, axes=replace(sweep.axes, lists=lists))
