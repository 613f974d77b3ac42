"""Trained weights of a run beside its result: safetensors, which cannot run code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.types import RunSpec, canonical_json


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that it is either there whole or as before; no half stays behind.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(save({name: value.contiguous() for name, value in tensors.items()}, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_weights(path: Path, spec: RunSpec, tensors: Mapping[str, Tensor]) -> None:
    """Write a run's parameters and buffers, without a ``runs`` axis; the spec goes with them."""
    save_tensors(path, tensors, {"run_id": spec.run_id, "spec": canonical_json(spec.to_json())})


def load_weights(paths: Mapping[str, Path]) -> dict[str, Tensor]:
    """Read the weights of runs of one shape as a stack: every tensor ``(runs, ...)``.

    Args:
        paths: file per run id.

    Raises:
        UsageError: a file is missing, damaged, or another run's.
    """
    states = []
    for run_id, path in paths.items():
        again = "move the run's result away and train it again"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            states.append(load_file(path))
        except FileNotFoundError:
            raise UsageError(
                f"run {run_id} has no weights in {path.parent}: it was trained without keeping them; {again}"
            ) from None
        except (SafetensorError, OSError) as error:
            raise UsageError(f"the weights {path} are damaged ({error}); {again}") from error
        if metadata.get("run_id") != run_id:
            raise UsageError(f"the weights {path} are not those of run {run_id}; {again}")
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
