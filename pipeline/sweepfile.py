"""A sweep as a file: what is trained, what is varied, and what its table is compared with.

``[sweep]`` says what it is, ``[features]`` and ``[run]`` hold settings, ``[axes]`` lists, ``[[cases]]`` settings that
change together, ``[random]`` ranges that are drawn from, ``[[published]]`` numbers of others.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.axes import MODALITY_AXIS, Axes, Case, Drawn, change, modality_names
from pipeline.config import checked_value, overlay, read_toml
from pipeline.errors import UsageError, choose
from pipeline.plan import AXES, SweepSettings

TABLES = ("sweep", "features", "run", "axes", "cases", "random", "published")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SIZES = ("steps", "eval_every", "batch", "batch_labeled", "batch_unlabeled")


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
    """A number that others published; a file may also give several that share the rest, as ``[published.percents]``."""

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
            number
            for entry in _entries(tables, "published", path)
            for number in _published(entry, f"{path} [[published]]")
        ),
    )


def _published(entry: Mapping[str, Any], where: str) -> list[PublishedNumber]:
    """One number; or, with a table ``percents`` of numbers by method, several that share everything else."""
    plain = dict(entry)
    if "percents" not in plain:
        return [overlay(PublishedNumber(), plain, where)]
    percents = checked_value(plain.pop("percents"), Mapping[str, float], f"{where}: percents")
    both = [key for key in ("method", "percent") if key in plain]
    if both:
        raise UsageError(f"{where} has percents, which name the methods, and {both[0]}; keep one of them")
    shared = overlay(PublishedNumber(), plain, where)
    return [replace(shared, method=method, percent=percent) for method, percent in percents.items()]


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
    random = _table(tables, "random", path)
    for key in random:
        choose(f"setting of {path} [random]", key, ("draws", "seed", "ranges"))
    ranges = _table(random, "ranges", path)
    drawn = {name: _drawn(values, f"{path} [random.ranges] {name}") for name, values in ranges.items()}
    draws, seed = (checked_value(random.get(key, 0), int, f"{path} [random]: {key}") for key in ("draws", "seed"))
    return Axes(lists, tuple(cases), drawn, draws, seed)


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
    """A sweep whose axes the command line replaces, one by one; an axis with one value sets it.

    Of the cases that set an axis themselves those stay whose value is named.

    Raises:
        UsageError: no case is left.
    """
    lists = {**sweep.axes.lists, **axes.lists}
    drawn = {**sweep.axes.drawn, **axes.drawn}
    draws = axes.draws or sweep.axes.draws
    cases = tuple(case for case in (_chosen_case(case, axes) for case in sweep.axes.cases) if case)
    if sweep.axes.cases and not cases:
        named = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in axes.lists.items())
        raise UsageError(f"no case of {sweep.name} is left with {named}")
    return replace(sweep, axes=Axes(lists, cases, drawn, draws, axes.draw_seed if axes.draws else sweep.axes.draw_seed))


def _chosen_case(case: Case, axes: Axes) -> Case | None:
    """A case with what the axes leave of its own lists; ``None`` if it sets something else than they name."""
    changes = dict(case.changes)
    for name, values in axes.lists.items():
        if name not in changes or not values:  # no value: all of them
            continue
        own = changes[name]
        if name in AXES:
            changes[name] = [value for value in own if value in values]
            own_is_named = bool(changes[name])
        elif name == MODALITY_AXIS:
            own_is_named = modality_names(own) in [modality_names(value) for value in values]
        else:
            own_is_named = (tuple(own) if isinstance(own, list) else own) in values
        if not own_is_named:
            return None
    return Case(case.name, changes)


def shortened(sweep: SweepFile, domains: Sequence[str]) -> SweepFile:
    """A sweep in little for a data set with these domains, to see whether it runs: one seed, few draws and steps.

    Axes, values and cases stay, but for what is counted in steps and clips, and for targets: where no case has its own,
    the first domain is the target. Domains that the file names become these, in the order in which it names them,
    targets first.
    """
    parts = [dataclasses.asdict(sweep.settings), *(case.changes for case in sweep.axes.cases)]
    targets = [name for part in parts for name in part.get("targets", ())] + [*sweep.axes.lists.get("targets", ())]
    sets = [part.get("unlabeled_domains", ()) for part in parts] + [*sweep.axes.lists.get("unlabeled_domains", ())]
    named = dict.fromkeys([*(targets or [""]), *(name for names in sets for name in names)])
    new = {name: domains[i % len(domains)] for i, name in enumerate(named)}
    lists = {k: v for k, v in sweep.axes.lists.items() if k not in _SIZES}
    if "unlabeled_domains" in lists:
        renamed = [tuple(new[name] for name in names) for names in lists["unlabeled_domains"]]
        lists["unlabeled_domains"] = tuple(dict.fromkeys(renamed))
    unlabeled = [new[name] for name in sweep.settings.unlabeled_domains]
    settings = change(
        sweep.settings, {"steps": 4, "eval_every": 2, "batch": 4, "unlabeled_domains": unlabeled}, "shortened"
    )
    axes = replace(
        sweep.axes,
        lists={**lists, "seeds": (0,), "targets": tuple(domains[:1])},
        cases=tuple(Case(case.name, _shortened_case(case.changes, new)) for case in sweep.axes.cases),
        draws=min(sweep.axes.draws, 2),
    )
    return replace(sweep, settings=settings, axes=axes)


def _shortened_case(changes: Mapping[str, Any], new: Mapping[str, str]) -> dict[str, Any]:
    """What a case changes, with other names of domains, and without sizes and seeds."""
    kept = {k: v for k, v in changes.items() if k not in (*_SIZES, "seeds")}
    return kept | {k: [new[name] for name in kept[k]] for k in ("targets", "unlabeled_domains") if k in kept}
