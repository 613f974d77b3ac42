"""Values for a network without a weight file: a seed and the names of its tensors decide all of them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Set

import numpy as np
import torch
from torch import Tensor, nn

_LAST_OF_BLOCK = 0.25  # scale of what a residual block adds, so that a hundred of them stay bounded
_STATISTICS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def initialise(network: nn.Module, seed: int, name: str) -> None:
    """Set every parameter and the normalisation statistics of a network from a seed.

    A tensor's values depend on the seed, ``name`` and its key alone: not on torch or its generators, nor on what
    other tensors there are. Weights of two or more axes are normal and scaled for ReLU (He et al. 2015), biases 0,
    normalisations 1, the last one of a residual block 0.25, all other parameters normal times 0.02.

    Args:
        network: whatever its values are; on a CPU or another device that holds values.
        seed: a whole number.
        name: of the network; two networks with the same keys get different values.
    """
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for key, parameter in parameters.items():
            _set(parameter, key, parameters.keys(), f"random:{seed}/{name}/{key}")
        for key, buffer in network.named_buffers():
            value = _STATISTICS.get(key.rpartition(".")[2])
            if value is not None:
                buffer.fill_(value)


def _set(parameter: Tensor, key: str, keys: Set[str], source: str) -> None:
    """Set one parameter."""
    if key.endswith("bias"):
        parameter.zero_()
    elif key.endswith("weight") and parameter.ndim >= 2:
        _draw(parameter, source, math.sqrt(2 / math.prod(parameter.shape[1:])))
    elif key.endswith("weight"):
        parameter.fill_(_LAST_OF_BLOCK if _ends_block(key, keys) else 1)
    else:
        _draw(parameter, source, 0.02)


def _draw(parameter: Tensor, source: str, scale: float) -> None:
    """Fill with normal values; the generator's key is the sha256 of the source."""
    key = int.from_bytes(hashlib.sha256(source.encode()).digest()[:16], "big")
    values = np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(parameter.shape), np.float32)
    parameter.copy_(torch.as_tensor(values).mul_(scale))


def _ends_block(key: str, keys: Set[str]) -> bool:
    """Whether a normalisation is the last of a residual block: the third, or the second of a block of two."""
    found = re.fullmatch(r"((?:.*\.)?\d+\.)(?:bn2|conv2\.bn)\.weight", key)
    if found is None:
        return re.search(r"(^|\.)(?:bn3|conv3\.bn)\.weight$", key) is not None
    return not any(f"{found[1]}{third}.weight" in keys for third in ("bn3", "conv3", "conv3.bn", "conv3.conv"))
