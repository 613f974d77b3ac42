"""The state of a stack in training, as safetensors: a run that is killed goes on to the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from heads.optimiser import StackedOptimiser
from pipeline.weights import save_tensors

Curves = dict[str, list[float | None]]  # name -> evaluations


@dataclass(frozen=True)
class Progress:
    """How far a stack is."""

    step: int  # steps done
    curves: list[Curves]  # one per run
    stopped: list[bool]  # runs that have stopped early
    confusion: Tensor  # (runs, classes, classes) int64 on the CPU, of every run's selected evaluation


def save_checkpoint(
    path: Path, method: nn.Module, optimiser: StackedOptimiser, kept: Mapping[str, Tensor], progress: Progress
) -> None:
    """Write parameters, prototypes, optimiser state, kept states and the progress, atomically.

    Random streams and batches are functions of seed and step, so no generator has to be saved.
    """
    record = {"confusion": progress.confusion}
    parts = {"method": method.state_dict(), "optimiser": optimiser.tensors(), "kept": kept, "progress": record}
    tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    text = json.dumps({"step": progress.step, "curves": progress.curves, "stopped": progress.stopped})
    save_tensors(path, tensors, {"progress": text})


def load_checkpoint(
    path: Path, method: nn.Module, optimiser: StackedOptimiser, kept: dict[str, Tensor]
) -> Progress | None:
    """Restore what ``save_checkpoint`` wrote; ``None`` if there is none, or if it is cut off or something else's."""
    if not path.exists():
        return None
    tensors: dict[str, dict[str, Tensor]] = {"method": {}, "optimiser": {}, "kept": {}, "progress": {}}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                part, name = key.split("/", 1)
                tensors[part][name] = file.get_tensor(key)
            rest = json.loads(file.metadata()["progress"])
        progress = Progress(**rest, confusion=tensors["progress"]["confusion"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None  # training starts over, nothing is lost but time
    own = method.state_dict()
    shapes = {name: value.shape for name, value in own.items()}
    if {name: value.shape for name, value in tensors["method"].items()} != shapes or tensors[
        "kept"
    ].keys() != kept.keys():
        return None
    method.load_state_dict(tensors["method"])
    optimiser.load_tensors(tensors["optimiser"])
    for name, value in tensors["kept"].items():
        kept[name].copy_(value)
    return progress
