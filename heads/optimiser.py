"""AdamW over the run axis: learning rate and weight decay per run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LANES = 64  # a multiple of every processor's vector length, in elements


class StackedAdamW:
    """PyTorch's fused AdamW (betas 0.9 and 0.999, eps 1e-8), one parameter group per run where rates differ.

    The update is element-wise, but the fused kernel rounds the ragged end of a tensor in another way than the rest.
    Parameters whose size per run is no multiple of ``LANES`` are updated in a padded copy, so that an element's
    rounding does not depend on the number of runs before it.
    """

    def __init__(
        self, parameters: Sequence[Tensor], learning_rate: Sequence[float], weight_decay: Sequence[float]
    ) -> None:
        self.parameters = list(parameters)
        self.flat = [self._padded(p.detach()) for p in self.parameters]
        rates = list(zip(learning_rate, weight_decay, strict=True))
        self.cuts: list[slice] = [slice(None)] if len(set(rates)) == 1 else [slice(r, r + 1) for r in range(len(rates))]
        self.views = [[flat[cut] for flat in self.flat] for cut in self.cuts]
        groups = [
            {"params": views, "lr": lr, "weight_decay": decay}
            for views, (lr, decay) in zip(self.views, rates, strict=False)
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)

    @staticmethod
    def _padded(tensor: Tensor) -> Tensor:
        """``(runs, ...)`` as ``(runs, size)``: the same memory where the size fits, else a padded copy."""
        flat = tensor.reshape(len(tensor), -1)
        return flat if flat.shape[1] % LANES == 0 else torch.nn.functional.pad(flat, (0, -flat.shape[1] % LANES))

    def step(self) -> None:
        """Update all parameters from their ``.grad`` and drop the gradients."""
        self._read()
        gradients = [None if p.grad is None else self._padded(p.grad) for p in self.parameters]
        for cut, views in zip(self.cuts, self.views, strict=True):
            for gradient, view in zip(gradients, views, strict=True):
                view.grad = None if gradient is None else gradient[cut]
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
