"""AdamW over the run axis: learning rate and weight decay per run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StackedAdamW:
    """PyTorch's fused AdamW (betas 0.9 and 0.999, eps 1e-8), one parameter group per run where rates differ.

    The update is element-wise, so a run's parameters do not depend on how the groups are cut.
    """

    def __init__(
        self, parameters: Sequence[Tensor], learning_rate: Sequence[float], weight_decay: Sequence[float]
    ) -> None:
        self.parameters = list(parameters)
        rates = list(zip(learning_rate, weight_decay, strict=True))
        self.cuts: list[slice] = [slice(None)] if len(set(rates)) == 1 else [slice(r, r + 1) for r in range(len(rates))]
        self.views = [[p.detach()[cut] for p in self.parameters] for cut in self.cuts]
        groups = [
            {"params": views, "lr": lr, "weight_decay": decay}
            for views, (lr, decay) in zip(self.views, rates, strict=False)
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def step(self) -> None:
        """Update all parameters from their ``.grad`` and drop the gradients."""
        for cut, views in zip(self.cuts, self.views, strict=True):
            for parameter, view in zip(self.parameters, views, strict=True):
                view.grad = None if parameter.grad is None else parameter.grad[cut]
        self.optimiser.step()
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """State as named tensors, for a checkpoint."""
        state = self.optimiser.state_dict()["state"]
        return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` returned."""
        plain = self.optimiser.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        plain["state"] = state
        self.optimiser.load_state_dict(plain)
