"""Trained weights of a run beside its result: safetensors, which cannot run code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.types import RunSpec, canonical_json


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata=metadata)
    temporary.replace(path)


def save_weights(path: Path, spec: RunSpec, tensors: Mapping[str, Tensor]) -> None:
    """Write a run's parameters and buffers, without a ``runs`` axis; the spec goes with them."""
    save_tensors(path, tensors, {"run_id": spec.run_id, "spec": canonical_json(spec.to_json())})


def load_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Read the weights of runs of one shape as a stack: every tensor ``(runs, ...)``.

    Raises:
        UsageError: a file is missing or damaged.
    """
    states = []
    for path in paths:
        try:
            states.append(load_file(path))
        except FileNotFoundError:
            raise UsageError(
                f"run {path.stem} has no weights in {path.parent}: it was trained without keeping them. Move its "
                "result away and train it again"
            ) from None
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"the weights {path} are damaged ({error}); move the run's result away and train it again"
            ) from error
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
