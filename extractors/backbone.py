"""The contract of a frozen backbone, and the table of those that are here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from extractors import tiny
from extractors.inputs import AudioInput, FrameInput


class Encoder:
    """A loaded backbone: evaluation mode, no gradients, a row's features do not depend on its batch."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Map network inputs ``(rows, ...)`` float32 to features ``(rows, dim)`` float32 on the CPU."""
        features: Tensor = self.network(x.to(self.device)).float().cpu()
        return features


@dataclass(frozen=True)
class Backbone:
    """What a frozen backbone is and wants."""

    name: str
    modality: str  # video, flow or audio
    dim: int  # of the pooled feature
    input: FrameInput | AudioInput
    weights: str  # digest of the weights, or the name of the rule that makes them
    weights_note: str  # where the weights come from, one plain sentence
    licence: str
    source: str
    build: Callable[[], nn.Module]
    revision: int = 1  # goes up whenever the same weights give other features

    def load(self, device: torch.device) -> Encoder:
        """Build the network with its weights on a device."""
        return Encoder(self.build(), device)


BACKBONES: dict[str, Backbone] = {
    "tiny-rgb": Backbone(
        name="tiny-rgb",
        modality="video",
        dim=tiny.FRAME_DIM,
        input=FrameInput(
            num_frames=16,
            interval=2,
            resize_short=72,
            size=64,
            clean_size=64,
            mean=(123.675, 116.28, 103.53),
            std=(58.395, 57.12, 57.375),
            min_scale=0.5,
        ),
        weights=tiny.WEIGHTS,
        weights_note=tiny.WEIGHTS_NOTE,
        licence="Apache-2.0",
        source="this package",
        build=tiny.build_rgb,
    ),
    "tiny-flow": Backbone(
        name="tiny-flow",
        modality="flow",
        dim=tiny.FRAME_DIM,
        input=FrameInput(
            num_frames=8,
            interval=4,
            resize_short=72,
            size=64,
            clean_size=64,
            mean=(128.0, 128.0),
            std=(128.0, 128.0),
            min_scale=0.5,
        ),
        weights=tiny.WEIGHTS,
        weights_note=tiny.WEIGHTS_NOTE,
        licence="Apache-2.0",
        source="this package",
        build=tiny.build_flow,
    ),
    "tiny-audio": Backbone(
        name="tiny-audio",
        modality="audio",
        dim=tiny.AUDIO_DIM,
        input=AudioInput(rate_hz=16_000, num_samples=40_000),
        weights=tiny.WEIGHTS,
        weights_note=tiny.WEIGHTS_NOTE,
        licence="Apache-2.0",
        source="this package",
        build=tiny.build_audio,
    ),
}

DEFAULT_BACKBONES: dict[str, str] = {"video": "tiny-rgb", "flow": "tiny-flow", "audio": "tiny-audio"}
