"""The frozen networks of the golden numbers, with weights drawn by the README's rule."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extractors.audio_resnet import AudioLastStage, VggSoundResNet18, build_vggsound_r18
from extractors.slowfast import SlowFast, SlowOnly, build_slowfast_r101, build_slowonly_r50_flow

BACKBONE_CASES = ("rgb", "flow", "audio")
UNUSED = "cls_head.fc_reduce."  # in the reference's code, in no published checkpoint, never computed with
Shapes = Mapping[str, list[int]]


class Place(Protocol):
    """Where and how it is computed."""

    @property
    def device(self) -> torch.device:
        """Of the networks."""

    @property
    def precision(self) -> str:
        """``float32`` or ``bfloat16``."""


def _draw(key: str, shape: Iterable[int], tag: str) -> NDArray[np.float64]:
    """A tensor by the README's rule."""
    size = tuple(shape)
    rng = np.random.default_rng(zlib.crc32((tag + key).encode()))
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(size)
    if last in ("running_mean", "bias"):
        return 0.1 * rng.standard_normal(size)
    if last == "running_var":
        return rng.uniform(0.5, 1.5, size)
    if len(size) == 1:
        closing = key.endswith((".conv3.bn.weight", ".bn2.weight"))
        return rng.uniform(0.5, 1.5, size) * (0.25 if closing else 1.0)
    return rng.standard_normal(size) * math.sqrt(2 / math.prod(size[1:]))


def _loaded(network: nn.Module, shapes: Shapes, device: torch.device, tag: str = "") -> Any:
    """A network with weights by the rule, in evaluation mode on a device."""
    state = {}
    for key, shape in shapes.items():
        kind = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
        state[key] = torch.from_numpy(_draw(key, shape, tag)).to(kind)
    network.load_state_dict(state, strict=True)
    return network.to(device).eval().requires_grad_(False)


def backbone_case(
    modality: str, golden: Mapping[str, NDArray[Any]], shapes: Mapping[str, Shapes], readme: str, place: Place
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Results of one network for each of its inputs.

    Args:
        modality: one of ``BACKBONE_CASES``.
        golden: arrays of ``backbones.npz``.
        shapes: of the weights, per network.
        readme: text of the golden README, whose table names seed and shape of every input.
        place: device and precision.

    Yields:
        Name of the case, and its tensors by name.

    Raises:
        ValueError: the README names no seed for a case, or an input comes out otherwise than stored.
    """
    names = sorted({"/".join(key.split("/")[:2]) for key in golden if key.startswith(f"{modality}/")})
    rows = re.findall(r"^\| `((?:rgb|flow|audio)/\w+)` \| (\d+) \| \(([\d, ]+)\) \|", readme, re.MULTILINE)
    inputs = {name: (int(seed), tuple(int(n) for n in shape.split(","))) for name, seed, shape in rows}
    run = {"rgb": _rgb, "flow": _flow, "audio": _audio}[modality](shapes, place.device) if names else None
    for name in names:
        if name not in inputs or run is None:
            raise ValueError(f"the README gives no seed and shape for {name}")
        seed, shape = inputs[name]
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        check = x.astype(np.float64)
        values = [check.sum(), (check**2).sum(), check.flat[0], check.flat[-1]]
        if not np.allclose(values, golden[f"{name}/input_check"], rtol=1e-9):
            raise ValueError(f"the input of {name} was not regenerated as the README says")
        half = place.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(place.device.type, torch.bfloat16, enabled=half):
            yield name, run(torch.from_numpy(x).to(place.device))


def _rgb(shapes: Mapping[str, Shapes], device: torch.device) -> Any:
    kept = {k: v for k, v in shapes["slowfast_r101"].items() if not k.startswith(UNUSED)}
    network: SlowFast = _loaded(build_slowfast_r101(), kept, device)

    def run(x: Tensor) -> dict[str, Tensor]:
        slow, fast = network.maps(x)
        embedding = network.finish((slow, fast))
        return {
            "slow_before_layer4": slow,
            "fast_before_layer4": fast,
            "slow_layer4": network.backbone.slow_path.layer4(slow),
            "fast_layer4": network.backbone.fast_path.layer4(fast),
            "embedding": embedding,
            "logits": network.classify(embedding),
        }

    return run


def _flow(shapes: Mapping[str, Shapes], device: torch.device) -> Any:
    network: SlowOnly = _loaded(build_slowonly_r50_flow(), shapes["slowonly_r50_flow"], device)

    def run(x: Tensor) -> dict[str, Tensor]:
        (maps,) = network.maps(x)
        embedding = network.finish((maps,))
        return {
            "before_layer4": maps,
            "layer4": network.backbone.layer4(maps),
            "embedding": embedding,
            "logits": network.classify(embedding),
        }

    return run


def _audio(shapes: Mapping[str, Shapes], device: torch.device) -> Any:
    network: VggSoundResNet18 = _loaded(build_vggsound_r18(), shapes["avenet_resnet18"], device)
    wanted = shapes["audio_att_gen_module"]
    last: AudioLastStage = _loaded(AudioLastStage(wanted["fc.bias"][0]), wanted, device, "audio_cls_model.")

    def run(x: Tensor) -> dict[str, Tensor]:
        (maps,) = network.maps(x)
        embedding = network.finish((maps,))
        trained, logits = last(maps)
        return {
            "avenet_layer3": maps,
            "avenet_embedding": embedding,
            "avenet_logits": network.classify(embedding),
            "attgen_embedding": trained,
            "attgen_logits": logits,
        }

    return run
