"""Hyperparameters of a run: names, defaults, overrides; and the shape that runs of a stack share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, tensor

from heads.adapters import ADAPTERS
from heads.fusion import FUSIONS
from heads.method import CHOICES, SHARED_HPARAMS
from heads.methods import METHODS
from heads.mixing import MIXING_HPARAMS, MIXINGS
from heads.network import HeadShape
from heads.optimiser import OPTIMISERS, Rate
from pipeline.classical import CLASSICAL
from pipeline.errors import UsageError, choose
from pipeline.types import RunSpec

Variant = Literal["strict", "paper"]
Value = float | str
# Hyperparameters that decide shapes or what is computed; runs of a stack share them.
STRUCTURE: Mapping[str, Sequence[str] | None] = {
    "adapter": tuple(ADAPTERS),
    "adapter_width": None,
    "fusion": tuple(FUSIONS),
    "fused_hidden": None,
    "translator_hidden": None,
    "mixing": MIXINGS,
    "optimizer": OPTIMISERS,
}
ALL_CHOICES: Mapping[str, Sequence[str]] = {**CHOICES, **{k: v for k, v in STRUCTURE.items() if v is not None}}


def resolve_hparams(
    method: str,
    dims: Sequence[tuple[str, int]],
    overrides: Mapping[str, Value],
    variant: Variant = "strict",
) -> dict[str, Value]:
    """Every hyperparameter of a run with its value.

    Hidden sizes default to the paper's 512 and 1028, or to the summed and the largest feature dim where those are
    smaller. Mixing and SGD bring hyperparameters of their own.

    Args:
        method: a key of ``METHODS`` or ``CLASSICAL``.
        dims: (modality, feature dim) in fusion order.
        overrides: values that replace defaults.
        variant: ``paper`` takes the method's switches as its authors' release has them.

    Raises:
        UsageError: unknown method, hyperparameter or choice, a value that is not allowed, or too few modalities.
    """
    choose("method", method, [*METHODS, *CLASSICAL])
    choose("variant", variant, ("strict", "paper"))
    if method in CLASSICAL:
        known: dict[str, Value] = dict(CLASSICAL[method].hparams)
    else:
        known = _defaults(method, dims, overrides, variant)
    for name, value in overrides.items():
        choose(f"hyperparameter of {method}", name, known)
        known[name] = _checked(name, value)
    if method in METHODS:
        _enough_modalities(method, str(known["fusion"]), [name for name, _ in dims])
    return known


def all_names() -> set[str]:
    """Names of every hyperparameter that some method has under some choice."""
    names = {*STRUCTURE, *SHARED_HPARAMS, "momentum"}
    for hparams in (*MIXING_HPARAMS.values(), *(recipe.hparams for recipe in (METHODS | CLASSICAL).values())):
        names |= set(hparams)
    return names


def _enough_modalities(method: str, fusion: str, modalities: Sequence[str]) -> None:
    needs = {
        f"method {method!r}": METHODS[method].fewest_modalities,
        f"fusion {fusion!r}": FUSIONS[fusion].fewest_modalities,
    }
    for name, fewest in needs.items():
        if len(modalities) < fewest:
            raise UsageError(
                f"{name} needs at least {fewest} modalities, and there is only {', '.join(modalities)}; add one with "
                "--modalities, or choose another"
            )


def _defaults(
    method: str, dims: Sequence[tuple[str, int]], overrides: Mapping[str, Value], variant: str
) -> dict[str, Value]:
    """Values before the overrides; which names there are depends on the choice of mixing and optimiser."""
    recipe = METHODS[method]
    sizes = [dim for _, dim in dims]
    mixing = str(overrides.get("mixing", recipe.hparams.get("mixing", "none")))
    optimizer = str(overrides.get("optimizer", recipe.hparams.get("optimizer", "adamw")))
    adapter = str(overrides.get("adapter", "residual"))
    width = int(_checked("adapter_width", overrides.get("adapter_width", 256))) if adapter == "project" else 0
    embedding = [width] * len(sizes) if width else sizes
    return {
        "adapter": adapter,
        **({"adapter_width": width} if width else {}),
        "fusion": "concat",
        "fused_hidden": min(512, sum(embedding)),
        "translator_hidden": min(1028, max(embedding)),
        "mixing": mixing,
        "optimizer": optimizer,
        **SHARED_HPARAMS,
        **({"momentum": 0.9} if optimizer == "sgd" else {}),
        **MIXING_HPARAMS[choose("mixing", mixing, MIXINGS)],
        **recipe.hparams,
        **(recipe.paper if variant == "paper" else {}),
    }


def _checked(name: str, value: Value) -> Value:
    """A value as a spec holds it."""
    if name in ALL_CHOICES:
        return choose(name, str(value), ALL_CHOICES[name])
    if isinstance(value, str) or not math.isfinite(value):
        raise UsageError(f"hyperparameter {name} is {value!r}; it must be a finite number")
    if name in ("learning_rate", "weight_decay", "momentum", "warmup_steps") and value < 0:
        raise UsageError(f"hyperparameter {name} is {value}; it must be 0 or more")
    if name.startswith("dropout_") and not 0 <= value < 1:
        raise UsageError(f"hyperparameter {name} is {value}; a dropout probability is at least 0 and less than 1")
    if name in STRUCTURE and not (value >= 1 and value == int(value)):
        raise UsageError(f"hyperparameter {name} is {value}; it must be a whole number of at least 1")
    return int(value) if name in STRUCTURE else float(value)


def head_shape(spec: RunSpec, dims: Sequence[tuple[str, int]]) -> HeadShape:
    """The shape that runs of a stack share."""
    return HeadShape(
        dims=tuple(dims),
        classes=len(spec.classes),
        domains=len(spec.sources),
        adapter=str(spec.hparams["adapter"]),
        fused_hidden=int(spec.hparams["fused_hidden"]),
        translator_hidden=int(spec.hparams["translator_hidden"]),
        fusion=str(spec.hparams["fusion"]),
        adapter_width=int(spec.hparams.get("adapter_width", 256)),
        mixing=str(spec.hparams["mixing"]),
    )


def stacked_hparams(specs: Sequence[RunSpec]) -> dict[str, Tensor]:
    """The hyperparameters that may differ between the runs of a stack, each ``(runs,)``; a choice is its position."""
    names = [name for name in specs[0].hparams if name not in STRUCTURE]
    return {name: tensor([_number(name, spec.hparams[name]) for spec in specs]) for name in names}


def _number(name: str, value: Value) -> float:
    return float(CHOICES[name].index(str(value))) if name in CHOICES else float(value)


def rate(spec: RunSpec) -> Rate:
    """How fast a run learns."""
    values = spec.hparams
    return Rate(
        learning_rate=float(values["learning_rate"]),
        weight_decay=float(values["weight_decay"]),
        momentum=float(values.get("momentum", 0.0)),
        schedule=str(values["schedule"]),
        warmup_steps=int(values["warmup_steps"]),
        steps=spec.steps,
    )
