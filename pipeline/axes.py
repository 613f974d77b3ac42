"""Axes of a sweep: lists, ranges and random draws of settings -> the settings of every cell of the product.

An axis is a setting of ``SweepSettings``, ``modalities``, or any hyperparameter of the chosen methods. A method that
does not have a hyperparameter is run once, not once per value.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import numpy as np

from pipeline.config import checked_value
from pipeline.errors import UsageError, choose
from pipeline.plan import AXES, SweepSettings
from pipeline.types import MODALITIES

Value = str | float | int
SHORT_NAMES = {  # as on the command line
    "method": "methods",
    "seed": "seeds",
    "target": "targets",
    "project": "projection",
    "budget": "labels",
}
LETTERS = {"v": "video", "f": "flow", "a": "audio"}
MODALITY_AXIS = "modalities"
SCALES = ("linear", "log")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_DRAWN = re.compile(r"(linear|log):([^.]+(?:\.\d+)?(?:[eE][-+]?\d+)?)\.\.(.+)")
MOST_CELLS = 100_000


@dataclass(frozen=True)
class Drawn:
    """A setting that random search draws: uniformly between two numbers, or on a logarithmic scale, or of a list."""

    low: float = 0.0
    high: float = 1.0
    scale: str = "linear"
    choices: tuple[Value, ...] = ()  # instead of low and high

    def __post_init__(self) -> None:
        choose("scale", self.scale, SCALES)
        if not self.choices and not (self.low < self.high and math.isfinite(self.low) and math.isfinite(self.high)):
            raise UsageError(f"a range from {self.low} to {self.high}; the lower end comes first")
        if not self.choices and self.scale == "log" and self.low <= 0:
            raise UsageError(f"a logarithmic range from {self.low}; it must begin above 0")

    def value(self, name: str, seed: int, draw: int) -> Value:
        """The value of one draw: a pure function of its arguments, so that no other setting or draw changes it."""
        key = hashlib.sha256(f"random-search/{seed}/{name}/{draw}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(int.from_bytes(key[:8], "big")))
        if self.choices:
            return self.choices[int(generator.integers(len(self.choices)))]
        if self.scale == "log":
            return float(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        return float(generator.uniform(self.low, self.high))


@dataclass(frozen=True)
class Case:
    """Settings that are changed together, under a name: a row of an ablation. They beat axes and draws."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Axes:
    """What is varied. The cells are cases x draws x the product of the lists."""

    lists: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    drawn: Mapping[str, Drawn] = field(default_factory=dict)
    draws: int = 0
    draw_seed: int = 0

    def __post_init__(self) -> None:
        for name, values in self.lists.items():
            if not values and name != "targets":
                raise UsageError(f"axis {name} has no values; the product would be empty")
            if len(set(values)) < len(values):
                raise UsageError(f"axis {name} names a value twice: {', '.join(map(str, values))}")
        if self.draws < 0:
            raise UsageError(f"random search of {self.draws} draws; there must be 1 or more")
        names = [case.name for case in self.cases]
        if len(set(names)) < len(names):
            raise UsageError(f"two cases have one name: {', '.join(sorted(n for n in names if names.count(n) > 1))}")


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep: settings whose methods, targets and seeds are still lists."""

    settings: SweepSettings
    modalities: tuple[str, ...]
    case: str = ""  # name of its case


def expand(base: SweepSettings, modalities: tuple[str, ...], axes: Axes) -> list[Cell]:
    """Every cell of a sweep.

    Args:
        base: what the axes do not change.
        modalities: of every cell, where they are no axis.
        axes: what is varied.

    Raises:
        UsageError: an axis that does not exist, a value that is not allowed, ranges without draws or draws without
            ranges, or an unreasonable number of cells.
    """
    if bool(axes.drawn) != bool(axes.draws):
        what = "ranges but no number of draws" if axes.drawn else f"{axes.draws} draws but nothing to draw"
        raise UsageError(f"random search has {what}; give both, for example learning_rate=log:1e-4..1e-2 --random 20")
    lists = dict(axes.lists)
    subsets = [modality_names(value) for value in lists.pop(MODALITY_AXIS, ())] or [modalities]
    native = {name: lists.pop(name) for name in AXES if name in lists}
    base = change(base, native, "axes")
    draws: list[dict[str, Value]] = [
        {name: drawn.value(name, axes.draw_seed, k) for name, drawn in axes.drawn.items()} for k in range(axes.draws)
    ]
    cases = axes.cases or (Case("", {}),)
    count = len(subsets) * len(cases) * max(1, len(draws)) * math.prod(len(v) for v in lists.values())
    if count > MOST_CELLS:
        raise UsageError(
            f"the axes make {count} cells; at most {MOST_CELLS} are planned at once, cut the sweep in parts"
        )
    cells = []
    for case, draw in itertools.product(cases, draws or [{}]):
        own = dict(case.changes)
        mine = [modality_names(own.pop(MODALITY_AXIS))] if MODALITY_AXIS in own else subsets
        settings = change(base, {**draw, **own}, f"case {case.name!r}" if case.name else "random search")
        free = {name: values for name, values in lists.items() if name not in own}  # what the case leaves open
        for values in itertools.product(*free.values()):
            cell = change(settings, dict(zip(free, values, strict=True)), "axes")
            cells += [Cell(cell, subset, case.name) for subset in mine]
    return cells


def change(settings: SweepSettings, values: Mapping[str, Any], where: str) -> SweepSettings:
    """Replace settings by name; a name that is no setting is a hyperparameter.

    Raises:
        UsageError: a value of the wrong type, or one that is not allowed.
    """
    hints = get_type_hints(SweepSettings)
    fields: dict[str, Any] = {}
    hparams = dict(settings.hparams)
    for name, value in values.items():
        if name == "batch":
            fields |= {"batch_labeled": int(value), "batch_unlabeled": int(value)}
        elif name in hints and name != "hparams":
            plain = list(value) if isinstance(value, tuple) else value
            fields[name] = checked_value(plain, hints[name], f"{where}: {name}")
        elif name == "hparams":
            hparams |= value
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            hparams[name] = float(value) if not isinstance(value, str) else value
        else:
            raise UsageError(f"{where}: {name} is {value!r}; a hyperparameter is a number or a text")
    return dataclasses.replace(settings, **fields, hparams=hparams)


def parse_axes(texts: Sequence[str], draws: int = 0, draw_seed: int = 0) -> Axes:
    """Read axes from the command line: ``labels=5,10 seed=0..9 modalities=va,vfa learning_rate=log:1e-4..1e-2``.

    Raises:
        UsageError: a text without a sign, a name given twice, or a range that cannot be read.
    """
    lists: dict[str, tuple[Any, ...]] = {}
    drawn: dict[str, Drawn] = {}
    for text in texts:
        name, sign, values = text.partition("=")
        name = SHORT_NAMES.get(name.strip().replace("-", "_"), name.strip().replace("-", "_"))
        if not sign or not name or not values.strip():
            raise UsageError(f"axis {text!r}: write name=value,value, for example labels=5,10 or seed=0..9")
        if name in lists or name in drawn:
            raise UsageError(f"axis {name} is given twice; write all its values in one list")
        found = _DRAWN.fullmatch(values.strip())
        if found:
            drawn[name] = Drawn(_number(found[2], text), _number(found[3], text), found[1])
        else:
            lists[name] = _parsed(name, values)
    return Axes(lists, (), drawn, draws, draw_seed)


def _parsed(name: str, text: str) -> tuple[Any, ...]:
    """Values of one axis; numbers for numeric settings and for hyperparameters that look like one."""
    if name == "targets" and text.strip() == "all":
        return ()
    hints = get_type_hints(SweepSettings)
    values: list[Any] = []
    for part in (p.strip() for p in text.split(",")):
        found = _RANGE.fullmatch(part)
        if found:
            first, last = int(found[1]), int(found[2])
            if last < first:
                raise UsageError(f"axis {name}: the range {part} ends before it begins")
            values += list(range(first, last + 1))
        elif name == "unlabeled_domains":
            values.append(tuple(d for d in part.split("+") if d and d != "none"))
        elif part:
            values.append(_typed(part, hints.get(name)))
    if name == "labels":
        values = [str(value) for value in values]
    return tuple(values)


def _typed(text: str, hint: Any) -> Value:
    """A text as the type that a setting has; whatever is no setting becomes a number where it looks like one."""
    if hint is str or hint == tuple[str, ...]:
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"axis {whole!r}: {text!r} is not a number; write for example log:1e-4..1e-2") from None


def modality_names(value: object) -> tuple[str, ...]:
    """``va``, ``video+audio`` or a list of names -> names, in the order of ``MODALITIES``.

    Raises:
        UsageError: anything else.
    """
    if isinstance(value, str):
        letters = set(value) <= LETTERS.keys()
        parts = [LETTERS[c] for c in value] if letters else [part.strip() for part in value.split("+")]
    elif isinstance(value, list | tuple):
        parts = [str(part) for part in value]
    else:
        raise UsageError(f"modalities: {value!r}; write va, vfa or video+audio")
    for part in parts:
        choose("modality", part, MODALITIES)
    if len(set(parts)) < len(parts) or not parts:
        raise UsageError(f"modalities: {value!r} names one twice, or none")
    return tuple(m for m in MODALITIES if m in parts)
