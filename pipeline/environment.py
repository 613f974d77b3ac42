"""What a number may depend on beside its spec."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import torch


def environment(device: torch.device, stack: int) -> dict[str, Any]:
    """Versions, device and the number of runs that were trained together."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "pipe": version("pipe-features"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads(),
        "stack": stack,
    }
