"""The state of a stack in training, as safetensors: a run that is killed goes on to the same numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from heads.optimiser import StackedAdamW


def save_checkpoint(path: Path, method: nn.Module, optimiser: StackedAdamW, step: int, curves: Any) -> None:
    """Write parameters, prototypes, optimiser state, the step and the curves so far, atomically.

    Random streams and batches are functions of seed and step, so no generator has to be saved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"method/{k}": v.contiguous() for k, v in method.state_dict().items()}
    tensors |= {f"optimiser/{k}": v.contiguous() for k, v in optimiser.tensors().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "curves": json.dumps(curves)})
    temporary.replace(path)


def load_checkpoint(path: Path, method: nn.Module, optimiser: StackedAdamW) -> tuple[int, Any] | None:
    """Restore what ``save_checkpoint`` wrote; ``None`` if there is none, or if it is cut off or something else's."""
    if not path.exists():
        return None
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            for key in file.keys():  # noqa: SIM118 - not a dict
                tensors[key] = file.get_tensor(key)
        step, curves = int(metadata["step"]), json.loads(metadata["curves"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None  # training starts over, nothing is lost but time
    state = {k.removeprefix("method/"): v for k, v in tensors.items() if k.startswith("method/")}
    own = method.state_dict()
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in own.items()}:
        return None
    method.load_state_dict(state)
    optimiser.load_tensors({k.removeprefix("optimiser/"): v for k, v in tensors.items() if k.startswith("optimiser/")})
    return step, curves
