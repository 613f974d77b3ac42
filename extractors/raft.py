"""RAFT (Teed and Deng, ECCV 2020), torchvision's networks for optical flow, with its published weights.

torchvision is imported when a network is made, not with this module: it takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.encoder import Backbone
from extractors.inputs import FrameInput
from extractors.published import Published, Tensors

SIDE_MULTIPLE = 8  # pixels; the networks see an eighth of the size
SMALLEST_SIDE = 128  # pixels; below, the coarsest level of the correlations has no two places
UPDATES = 12  # of the flow; torchvision's default

# Two frames, level / 127.5 - 1 in every channel (torchvision.transforms._presets.OpticalFlow); any size, not only 256.
_FRAMES = FrameInput(
    num_frames=2, interval=1, resize_short=256, size=256, clean_size=256, mean=(127.5,) * 3, std=(127.5,) * 3
)
_SINTEL = "FlyingChairs, FlyingThings3D, Sintel, KITTI and HD1K (optical flow)"
_KITTI = "FlyingChairs, FlyingThings3D, Sintel, HD1K and then KITTI (optical flow)"
_CHAIRS = "FlyingChairs and FlyingThings3D (optical flow)"
_SOURCES = {"v1": "https://github.com/princeton-vl/RAFT", "v2": "https://github.com/pytorch/vision"}


@torch.inference_mode()
def raft_flow(network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Compute the flow from each frame of ``first`` to the frame of ``second`` beside it, in one batch.

    Frames are extended to the right and below, by their border, to sides of at least 128 that 8 divides.

    Args:
        network: one of torchvision's, in evaluation mode and on the frames' device.
        first: uint8 RGB `(pairs, height, width, 3)`.
        second: the same shape and device.

    Returns:
        float32 `(pairs, 2, height, width)`, pixels.
    """
    height, width = first.shape[1:3]
    below, right = (_extended(side) - side for side in (height, width))
    images = (
        F.pad(frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1), (0, right, 0, below), mode="replicate")
        for frames in (first, second)
    )
    flow: Tensor = network(*images, num_flow_updates=UPDATES)[-1]
    return flow[..., :height, :width]


def pair_bytes(height: int, width: int) -> int:
    """Memory that a pair needs, about: features of both frames, and the correlations of all places with all places."""
    places = _extended(height) * _extended(width) // SIDE_MULTIPLE**2
    return 1024 * SIDE_MULTIPLE**2 * places + 10 * places**2


def build_large() -> nn.Module:
    """The large network: 5.3 million parameters."""
    from torchvision.models.optical_flow import raft_large

    network: nn.Module = raft_large()
    return network


def build_small() -> nn.Module:
    """The small network: 1.0 million parameters."""
    from torchvision.models.optical_flow import raft_small

    network: nn.Module = raft_small()
    return network


def _extended(side: int) -> int:
    """The side that the networks see."""
    return max(SMALLEST_SIDE, -(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE)


def _read(content: Mapping[str, object]) -> Tensors:
    """Tensors of a torchvision file of RAFT; ValueError where it holds something else."""
    tensors: Tensors = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name!r} is a {type(value).__name__}; a torchvision file holds tensors by name")
        tensors[name] = value.detach()
    for name in [n for n in tensors if n.endswith("running_mean")]:  # old files lack these counts
        tensors.setdefault(name.removesuffix("running_mean") + "num_batches_tracked", torch.tensor(0))
    return tensors


def _published(model: str, name: str, digest: str, trained_on: str) -> Published:
    """One of torchvision's weight files."""
    file = f"{model}_{name.upper()}-{digest}.pth"
    return Published(
        name=name,
        file=file,
        url=f"https://download.pytorch.org/models/{file}",
        digest=digest,
        trained_on=trained_on,
        licence="BSD-3-Clause (torchvision); the data sets' terms apply",
        source=_SOURCES[name[-2:]],
        read=_read,
    )


RAFT_LARGE = Backbone(
    name="raft-large",
    modality="flow",
    dim=2,
    input=_FRAMES,
    params=5_257_536,
    gflops=103.893,
    licence="BSD-3-Clause (torchvision)",
    source="torchvision; https://arxiv.org/abs/2003.12039",
    build=build_large,
    published=(
        _published("raft_large", "c_t_skht_v2", "ff5fadd5", _SINTEL),
        _published("raft_large", "c_t_skht_v1", "0b8c9e55", _SINTEL),
        _published("raft_large", "c_t_skht_k_v2", "b5c70766", _KITTI),
        _published("raft_large", "c_t_skht_k_v1", "4a6a5039", _KITTI),
        _published("raft_large", "c_t_v2", "1bb1363a", _CHAIRS),
        _published("raft_large", "c_t_v1", "22a6c225", _CHAIRS),
    ),
)
RAFT_SMALL = Backbone(
    name="raft-small",
    modality="flow",
    dim=2,
    input=_FRAMES,
    params=990_162,
    gflops=23.022,
    licence="BSD-3-Clause (torchvision)",
    source="torchvision; https://arxiv.org/abs/2003.12039",
    build=build_small,
    published=(
        _published("raft_small", "c_t_v2", "01064c6d", _CHAIRS),
        _published("raft_small", "c_t_v1", "ad48884c", _CHAIRS),
    ),
)

NETWORKS: dict[str, Backbone] = {network.name: network for network in (RAFT_LARGE, RAFT_SMALL)}
