"""Optimisers over the run axis: learning rate, weight decay, momentum and schedule per run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LANES = 64  # a multiple of every processor's vector length, in elements
OPTIMISERS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class Rate:
    """Learning rate of one run over its steps, and what goes with it."""

    learning_rate: float
    weight_decay: float = 0.0
    momentum: float = 0.0  # of SGD
    schedule: str = "constant"  # constant, cosine (half a period down to 0) or linear (down to 0)
    warmup_steps: int = 0  # the rate rises linearly over these first steps
    steps: int = 0  # of the whole run, for the schedules that end at 0

    def at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        left = 1 - min(done, 1.0)
        return self.learning_rate * (left if self.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


class StackedOptimiser:
    """PyTorch's fused AdamW, Adam (betas 0.9 and 0.999, eps 1e-8) or SGD, a parameter group per run if rates differ.

    The update is element-wise, but the fused kernels round the ragged end of a tensor in another way than the rest.
    Parameters whose size per run is no multiple of ``LANES`` are updated in a padded copy, so that an element's
    rounding does not depend on the number of runs before it.

    Args:
        kind: one of ``OPTIMISERS``. Adam adds the decay to the gradient, AdamW to the step (Loshchilov, Hutter 2019).
        parameters: trainable tensors, each with a leading ``runs`` axis.
        rates: one per run.
    """

    def __init__(self, kind: str, parameters: Sequence[Tensor], rates: Sequence[Rate]) -> None:
        self.parameters = list(parameters)
        self.flat = [self._padded(p.detach()) for p in self.parameters]
        self.cuts: list[slice] = [slice(None)] if len(set(rates)) == 1 else [slice(r, r + 1) for r in range(len(rates))]
        self.rates = list(rates[: len(self.cuts)])
        self.views = [[flat[cut] for flat in self.flat] for cut in self.cuts]
        groups = [
            {"params": views, "lr": rate.learning_rate, "weight_decay": rate.weight_decay}
            | ({"momentum": rate.momentum} if kind == "sgd" else {})
            for views, rate in zip(self.views, self.rates, strict=True)
        ]
        self.optimiser: torch.optim.Optimizer
        if kind == "sgd":
            self.optimiser = torch.optim.SGD(groups, fused=True)
        else:
            choice = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
            self.optimiser = choice(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)

    @staticmethod
    def _padded(tensor: Tensor) -> Tensor:
        """``(runs, ...)`` as ``(runs, size)``: the same memory where the size fits, else a padded copy."""
        flat = tensor.reshape(len(tensor), -1)
        return flat if flat.shape[1] % LANES == 0 else torch.nn.functional.pad(flat, (0, -flat.shape[1] % LANES))

    def step(self, number: int = 0) -> None:
        """Update all parameters from their ``.grad`` and drop the gradients; ``number`` is the training step."""
        self._read()
        gradients = [None if p.grad is None else self._padded(p.grad) for p in self.parameters]
        for cut, views in zip(self.cuts, self.views, strict=True):
            for gradient, view in zip(gradients, views, strict=True):
                view.grad = None if gradient is None else gradient[cut]
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate.at(number)
        self.optimiser.step()
        for parameter, flat in zip(self.parameters, self.flat, strict=True):
            parameter.grad = None
            if flat.data_ptr() != parameter.data_ptr():
                values = flat[:, : parameter[0].numel()].view_as(parameter)
                parameter.detach().copy_(values)

    def _read(self) -> None:
        """Take over parameters that were changed elsewhere, for example by loading a checkpoint."""
        for parameter, flat in zip(self.parameters, self.flat, strict=True):
            if flat.data_ptr() != parameter.data_ptr():
                flat[:, : parameter[0].numel()] = parameter.detach().reshape(len(parameter), -1)

    def tensors(self) -> dict[str, Tensor]:
        """State as named tensors, for a checkpoint."""
        state = self.optimiser.state_dict()["state"]
        return {
            f"{index}.{name}": value
            for index, entry in state.items()
            for name, value in entry.items()
            if value is not None
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` returned."""
        plain = self.optimiser.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        plain["state"] = state
        self.optimiser.load_state_dict(plain)
