"""Optical flow between frames, and its 8-bit form: the one table of methods.

Published flow data sets (EPIC-Kitchens, Kinetics as used by mmaction) hold TV-L1 clipped to 20 pixels and quantised to
256 levels. ``tvl1`` computes that, here or on a GPU. DIS (Kroeger et al. 2016, OpenCV) takes a thirtieth of its time on
a CPU and, at its medium setting, differs by 0.1 to 0.7 pixels on average on real video (tests/bench/flow.py). The
method is part of the identity of what is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extractors import raft, tv_l1
from extractors.encoder import Backbone
from extractors.loading import Weights, load_network
from extractors.published import Published

BUDGET_BYTES = 2**30  # for the pairs that a method is given at once

_DIS_SMALLEST_SIDE = 32  # DIS reads outside its pyramid, and may crash the process, in smaller images
_OPENCV_BYTES = 32  # per pixel of a pair that OpenCV works on: grey images, flow, levels

# Maps uint8 RGB (pairs, height, width, 3), the frames after them and a network to float32 (pairs, 2, height, width).
_Compute = Callable[[Tensor, Tensor, nn.Module | None], Tensor]


@dataclass(frozen=True)
class FlowMethod:
    """One way to compute flow."""

    name: str
    description: str  # one line
    devices: tuple[str, ...]  # kinds of device that it computes on; frames elsewhere make a detour over the CPU
    compute: _Compute
    pair_bytes: Callable[[int, int], int]  # memory of a pair of so many rows and columns, about
    network: Backbone | None = None  # the network that it needs, as ``loading.choose_weights`` wants to know it
    missing: Callable[[], str] = lambda: ""  # what has to be installed, one clause; "" where nothing has

    @property
    def needs_weights(self) -> bool:
        """Whether ``compute_flow`` wants a network of ``flow_network``."""
        return self.network is not None

    @property
    def published(self) -> tuple[Published, ...]:
        """Its weight files, the default first."""
        return self.network.published if self.network else ()


def find_flow_method(name: str) -> FlowMethod:
    """Return a method that can be used here.

    Raises:
        ValueError: there is no such method, or what it needs is not installed.
    """
    if name not in FLOW_METHODS:
        raise ValueError(f"flow method {name!r}; allowed: {', '.join(FLOW_METHODS)}")
    method = FLOW_METHODS[name]
    if missing := method.missing():
        raise ValueError(f"flow method {name!r} {missing}")
    return method


def flow_network(method: str, weights: Weights, device: torch.device | str) -> nn.Module:
    """Load the network of a method onto a device, in evaluation mode; the caller keeps it.

    Args:
        method: a key of ``FLOW_METHODS`` that needs weights.
        weights: as ``loading.choose_weights(FLOW_METHODS[method].network, choice, folder)`` returns them.
        device: where the frames will be.

    Raises:
        ValueError: an unknown method, or one without a network.
        WeightsError: the file changed since it was chosen, or its tensors are not the network's.
        CheckpointError: the file cannot be read.
    """
    spec = find_flow_method(method).network
    if spec is None:
        raise ValueError(f"flow method {method!r} has no network; those that have one: {_with_networks()}")
    return load_network(spec, weights).requires_grad_(False).to(device)


def compute_flow(
    frames_a: Tensor | NDArray[np.uint8],
    frames_b: Tensor | NDArray[np.uint8],
    method: str,
    bound: float = 20.0,
    *,
    network: nn.Module | None = None,
) -> Tensor:
    """Compute the flow from each frame of ``frames_a`` to the frame of ``frames_b`` beside it.

    Flow is computed at the given size; images that are too small for a method are extended by their border for the
    computation. On a CPU a pair's result does not depend on the other pairs; networks on a GPU may round differently in
    another batch. Pairs are computed in groups that fit ``BUDGET_BYTES``.

    Args:
        frames_a: uint8 RGB `(n, height, width, 3)`; a numpy array is on the CPU.
        frames_b: the same shape and device; usually the next frame of each.
        method: a key of ``FLOW_METHODS``.
        bound: largest displacement that is kept, pixels.
        network: of ``flow_network``, on the frames' device, for the methods that need one.

    Returns:
        uint8 `(n, 2, height, width)` on the frames' device, see ``quantise``; channel 0 is u (positive to the right),
        1 is v (positive down).

    Raises:
        ValueError: a method that is unknown or not installed, frames of other or different shapes, types or devices, a
            bound that is not positive, a network too many or too few.
    """
    way = find_flow_method(method)
    first, second = _as_tensor(frames_a), _as_tensor(frames_b)
    _check(first, second, bound)
    if network is None and way.needs_weights:
        raise ValueError(f"flow method {method!r} needs a network: flow_network({method!r}, weights, device)")
    if network is not None and not way.needs_weights:
        raise ValueError(f"flow method {method!r} takes no network; those that take one: {_with_networks()}")
    count, height, width = first.shape[:3]
    levels = torch.empty(count, 2, height, width, dtype=torch.uint8, device=first.device)
    there = first.device if first.device.type in way.devices else torch.device("cpu")
    step = max(1, BUDGET_BYTES // way.pair_bytes(height, width))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        flow = way.compute(first[rows].to(there), second[rows].to(there), network)
        levels[rows] = quantise(flow, bound).to(levels.device)
    return levels


@overload
def quantise(flow: Tensor, bound: float = 20.0) -> Tensor: ...
@overload
def quantise(flow: NDArray[np.float32], bound: float = 20.0) -> NDArray[np.uint8]: ...
def quantise(flow: Tensor | NDArray[np.float32], bound: float = 20.0) -> Tensor | NDArray[np.uint8]:
    """Map -bound..bound pixels linearly to levels 0..255, uint8; what is beyond is clipped.

    No motion is level 128: 127.5 rounded to even, as in the published data sets. Arrays and tensors of any shape and
    device, float32, give the same levels.
    """
    # In this order no motion is exactly 127.5, whatever the bound.
    scale = np.float32(255 / (2 * bound))
    if isinstance(flow, Tensor):
        return flow.mul(float(scale)).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    levels: NDArray[np.float32] = np.rint(flow * scale + np.float32(127.5))
    return np.clip(levels, 0, 255).astype(np.uint8)


def grey(frames: Tensor) -> Tensor:
    """Grey levels `(..., height, width)`, uint8, of RGB frames `(..., height, width, 3)`, uint8: OpenCV's, to the bit.

    Its weights of 0.299, 0.587 and 0.114 are multiples of 2^-15; all sums here are whole numbers below 2^24 and so
    exact in float32.
    """
    red, green, blue = frames.unbind(-1)
    level = red.float().mul_(9798).add_(green, alpha=19235).add_(blue, alpha=3735)
    return level.add_(16384).mul_(2**-15).floor_().to(torch.uint8)


def _as_tensor(frames: Tensor | NDArray[np.uint8]) -> Tensor:
    """Frames as a tensor, without a copy where torch can do without one."""
    if isinstance(frames, Tensor):
        return frames
    if not frames.flags.writeable or any(stride < 0 for stride in frames.strides):
        frames = frames.copy()  # torch knows neither mirrored nor read-only memory
    return torch.from_numpy(frames)


def _check(first: Tensor, second: Tensor, bound: float) -> None:
    """ValueError unless these are two batches of frames that belong together."""
    if first.shape != second.shape or first.ndim != 4 or first.shape[3] != 3 or 0 in first.shape[1:3]:
        raise ValueError(
            f"frames have shapes {tuple(first.shape)} and {tuple(second.shape)}; both must be (n, height, width, 3)"
        )
    if first.dtype != torch.uint8 or second.dtype != torch.uint8:
        raise ValueError(f"frames have types {first.dtype} and {second.dtype}; allowed: torch.uint8")
    if first.device != second.device:
        raise ValueError(f"frames are on {first.device} and {second.device}; both must be on one device")
    if not bound > 0:
        raise ValueError(f"bound is {bound}; allowed: more than 0 pixels")


def _with_networks() -> str:
    return ", ".join(method.name for method in FLOW_METHODS.values() if method.needs_weights)


def _opencv_flow(
    make: Callable[[], Any], smallest_side: int, first: Tensor, second: Tensor, network: nn.Module | None
) -> Tensor:
    """Flow of OpenCV, pair by pair.

    Each pair has an engine of its own: one of DIS that saw other small images before gives other flow (measured at 33
    to 64 rows: up to 0.006 pixels), one of TV-L1 keeps the number of scales of the smallest image it saw.
    """
    count, height, width = first.shape[:3]
    flow = torch.empty(count, 2, height, width)
    for i in range(count):
        a, b = (_opencv_grey(frames[i].numpy(), smallest_side) for frames in (first, second))
        # No array for the result: DIS would start its search from what is in it.
        found = make().calc(a, b, None)[:height, :width]
        flow[i] = torch.from_numpy(found).permute(2, 0, 1)
    return flow


def _opencv_grey(frame: NDArray[np.uint8], smallest_side: int) -> NDArray[np.uint8]:
    """Grey image of an RGB frame, extended to the right and below to the smallest side that a method can take."""
    image = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    below, right = (max(0, smallest_side - side) for side in image.shape)
    if below or right:
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(image, dtype=np.uint8)


def _own_tv_l1(first: Tensor, second: Tensor, network: nn.Module | None) -> Tensor:
    return tv_l1.tv_l1_flow(grey(first), grey(second))


def _raft(first: Tensor, second: Tensor, network: nn.Module | None) -> Tensor:
    """Flow of a network; on a CPU one pair at a time, so that its bits do not depend on the batch."""
    if network is None:
        raise ValueError("RAFT needs a network")
    if first.device.type != "cpu":
        return raft.raft_flow(network, first, second)
    return torch.cat([raft.raft_flow(network, a[None], b[None]) for a, b in zip(first, second, strict=True)])


def _make_opencv_tv_l1() -> Any:
    contrib: Any = cv2
    return contrib.optflow.DualTVL1OpticalFlow_create()


def _opencv_contrib_missing() -> str:
    if hasattr(cv2, "optflow"):
        return ""
    return (
        "needs cv2.optflow, which this OpenCV was built without; install opencv-contrib-python-headless in place of "
        "opencv-python-headless, or use 'tvl1'"
    )


def _opencv_bytes(height: int, width: int) -> int:
    return _OPENCV_BYTES * height * width


def _dis(name: str, preset: int, speed: str) -> FlowMethod:
    """OpenCV's DIS with one of its presets."""
    return FlowMethod(
        name=name,
        description=f"dense inverse search (Kroeger et al. 2016), OpenCV's {speed} preset",
        devices=("cpu",),
        compute=partial(_opencv_flow, partial(cv2.DISOpticalFlow.create, preset), _DIS_SMALLEST_SIDE),
        pair_bytes=_opencv_bytes,
    )


def _raft_method(network: Backbone, size: str) -> FlowMethod:
    """One of torchvision's RAFT networks."""
    return FlowMethod(
        name=network.name,
        description=f"RAFT (Teed and Deng 2020), torchvision's {size} network",
        devices=("cpu", "cuda"),
        compute=_raft,
        pair_bytes=raft.pair_bytes,
        network=network,
    )


_ROWS = (
    _dis("dis-medium", cv2.DISOPTICAL_FLOW_PRESET_MEDIUM, "medium"),
    _dis("dis-fast", cv2.DISOPTICAL_FLOW_PRESET_FAST, "fast"),
    _dis("dis-ultrafast", cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, "ultrafast"),
    FlowMethod(
        name="tvl1",
        description="dual TV-L1 (Zach et al. 2007) with OpenCV's default parameters, in torch",
        devices=("cpu", "cuda"),
        compute=_own_tv_l1,
        pair_bytes=lambda height, width: tv_l1.BYTES_PER_PIXEL * height * width,
    ),
    FlowMethod(
        name="tvl1-opencv",
        description="dual TV-L1 (Zach et al. 2007), OpenCV's own; its last bits depend on OpenCV's version",
        devices=("cpu",),
        compute=partial(_opencv_flow, _make_opencv_tv_l1, tv_l1.SMALLEST_SIDE),
        pair_bytes=_opencv_bytes,
        missing=_opencv_contrib_missing,
    ),
    *(_raft_method(network, name.removeprefix("raft-")) for name, network in raft.NETWORKS.items()),
)

FLOW_METHODS: dict[str, FlowMethod] = {row.name: row for row in _ROWS}
