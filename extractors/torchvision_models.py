"""Networks of torchvision: its ResNets on frames and spectrograms, and any of its classifiers as a frozen backbone.

torchvision is imported when a network is made or a model is looked up, not with this module: it takes a second.
"""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from extractors.encoder import Backbone
from extractors.inputs import FrameInput
from extractors.published import Published, Tensors

PREFIX = "torchvision:"
RESNET_DEPTHS = (18, 50)
IMAGE_FRAMES = 8  # frames of a clip that image models see
IMAGE_RATE_HZ = 1.0  # of them per second; a shorter clip spreads them

# Frames and step of a clip at the 30 frames per second of Kinetics, by the beginning of the model's name. torchvision
# states clip_len and frame_rate (15 or 7.5 per second) in the documentation of each weight file. S3D's 128 there are
# those of its evaluation; it was trained on 64 (torchvision/models/video/README.md), which are used here.
_SAMPLING = {"mvit": (16, 4), "swin3d": (32, 2), "s3d": (64, 2), "r3d": (16, 2), "mc3": (16, 2), "r2plus1d": (16, 2)}
_DIGEST = re.compile(r"-([0-9a-f]{8,})\.pth$")
_OLD_NAMES = (  # files of DenseNet and ViT keep the names of older versions
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers that only training uses (GoogLeNet, Inception)


class _ResNet(nn.Module):
    """torchvision's ResNet on pictures, under its own tensor names, that can be cut before the last stage."""

    def __init__(self, depth: int, channels: int = 3) -> None:
        super().__init__()
        if depth not in RESNET_DEPTHS:
            raise ValueError(f"depth of a ResNet is {depth}; allowed: {', '.join(map(str, RESNET_DEPTHS))}")
        if channels < 1:
            raise ValueError(f"channels is {channels}; allowed: at least 1")
        self.channels = channels
        for name, child in _classifier(f"resnet{depth}").named_children():
            self.add_module(name, child)
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map pictures `(rows, channels, height, width)` to the one map behind the third stage.

        Returns:
            `(rows, 256, height / 16, width / 16)` for depth 18, 1024 channels for depth 50, sizes rounded up.

        Raises:
            ValueError: pictures of another shape.
        """
        _check_shape(x, (self.channels, "height", "width"))
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
            x = self.get_submodule(name)(x)
        return (x,)

    def finish(self, maps: Sequence[Tensor]) -> Tensor:
        """Map what ``maps`` returned to the embedding `(rows, dim)`, float32 whatever the convolutions' precision."""
        (only,) = maps
        return F.adaptive_avg_pool2d(self.get_submodule("layer4")(only).float(), 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map what ``maps`` takes to the embedding `(rows, dim)`, float32."""
        return self.finish(self.maps(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings `(rows, dim)` to the logits `(rows, 1000)` of the classes of ImageNet."""
        logits: Tensor = self.get_submodule("fc")(embedding)
        return logits


class FrameResNet(_ResNet):
    """A ResNet that sees every frame alone; the embedding is the mean of the frames' pooled features.

    The names of its tensors are torchvision's. Depth 18 gives embeddings of 512 values, 50 of 2048.

    Args:
        depth: 18 or 50.
        channels: of a frame: 3 for RGB, 2 for optical flow.

    Raises:
        ValueError: another depth, or no channels.
    """

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map frames `(rows, channels, frames, height, width)` to the one map behind the third stage.

        Returns:
            `(rows, 256, frames, height / 16, width / 16)` for depth 18, 1024 channels for depth 50, rounded up.

        Raises:
            ValueError: frames of another shape.
        """
        _check_shape(x, (self.channels, "frames", "height", "width"))
        (maps,) = super().maps(x.transpose(1, 2).flatten(0, 1))
        return (maps.reshape(len(x), -1, *maps.shape[1:]).transpose(1, 2),)

    def finish(self, maps: Sequence[Tensor]) -> Tensor:
        """Map what ``maps`` returned to the embedding `(rows, dim)`, float32 whatever the convolutions' precision."""
        (only,) = maps
        frames = super().finish([only.transpose(1, 2).flatten(0, 1)])
        return frames.view(len(only), -1, frames.shape[1]).mean(1)


class SpectrogramResNet(_ResNet):
    """A ResNet that sees spectrograms `(rows, 1, frequency, time)`, under torchvision's tensor names.

    Args:
        depth: 18 or 50.

    Raises:
        ValueError: another depth.
    """

    def __init__(self, depth: int = 18) -> None:
        super().__init__(depth, 1)


def build_resnet18() -> nn.Module:
    """ResNet-18 on RGB frames."""
    return FrameResNet(18)


def build_resnet50() -> nn.Module:
    """ResNet-50 on RGB frames."""
    return FrameResNet(50)


def build_resnet18_flow() -> nn.Module:
    """ResNet-18 on optical flow, u and v as two channels of a frame."""
    return FrameResNet(18, 2)


def build_resnet18_spec() -> nn.Module:
    """ResNet-18 on spectrograms."""
    return SpectrogramResNet(18)


def read_resnet(channels: int = 3) -> Callable[[Mapping[str, object]], Tensors]:
    """Return how torchvision's ResNet files are read into a network whose pictures have so many channels.

    With other channels than three the first convolution is that of the cross-modality initialisation of temporal
    segment networks (Wang et al., arXiv 1608.00859): the mean over red, green and blue, repeated for every channel.
    It is scaled by ``3 / channels``: a picture that is the same in all channels gives the response that a grey one
    gives in the RGB network, so that the statistics of the batch normalisation behind it stay right. The paper states
    no scale. A file whose first convolution has ``channels`` inputs already is left as it is.

    The returned function raises ValueError where the content is not a ResNet's.
    """
    return partial(_read_resnet, channels)


def _read_resnet(channels: int, content: Mapping[str, object]) -> Tensors:
    """Tensors of a ResNet's file with its first convolution for so many channels."""
    tensors = _all_tensors(content)
    weight = tensors.get("conv1.weight")
    if weight is None or weight.ndim != 4 or weight.shape[1] not in (3, channels):
        seen = "is missing" if weight is None else f"has shape {tuple(weight.shape)}"
        raise ValueError(f"conv1.weight {seen}; allowed: (64, 3, 7, 7) or (64, {channels}, 7, 7)")
    if weight.shape[1] != channels:
        grey = weight.mean(1, keepdim=True) * (3 / channels)
        tensors["conv1.weight"] = grey.repeat(1, channels, 1, 1)
    return tensors


class TorchvisionNetwork(nn.Module):
    """A torchvision classifier without its last layer, for clips `(rows, 3, frames, side, side)`.

    Args:
        model: the model without its head.
        by_frame: the model takes pictures; it sees every frame alone, and the embedding is the mean over them.
    """

    def __init__(self, model: nn.Module, by_frame: bool) -> None:
        super().__init__()
        self.model = model
        self.by_frame = by_frame

    def forward(self, x: Tensor) -> Tensor:
        """Map frames `(rows, 3, frames, side, side)` to the embedding `(rows, dim)`, float32.

        Raises:
            ValueError: frames of another shape.
        """
        _check_shape(x, (3, "frames", "height", "width"))
        if not self.by_frame:
            clips: Tensor = self.model(x)
            return clips.float()
        frames: Tensor = self.model(x.transpose(1, 2).flatten(0, 1))
        return frames.float().view(len(x), -1, frames.shape[1]).mean(1)


@lru_cache(maxsize=32)
def backbone_of(name: str) -> Backbone:
    """Make a backbone of a torchvision classifier of images or video.

    Image models see ``IMAGE_FRAMES`` frames at ``IMAGE_RATE_HZ``, video models the frames of their training. The
    embedding is the input of the last linear layer; where the classifier is a convolution, the mean of its input over
    all places. Sizes, mean and deviation are those that belong to the weights; pictures are always resized as all
    others are (short side, bilinear, antialiased), also where the weights' own recipe is bicubic or sets both sides.

    Args:
        name: ``torchvision:MODEL``, or ``torchvision:MODEL@WEIGHTS`` for weights that want other sizes than the
            default ones (``torchvision:vit_b_16@imagenet1k_swag_e2e_v1``).

    Raises:
        ValueError: no such model or weights; the nearest names are told.
    """
    model, _, chosen = name.removeprefix(PREFIX).partition("@")
    by_frame = _is_image_model(model)
    members = _weights_of(model)
    default = next(iter(members))
    if chosen and chosen not in members:
        raise ValueError(f"torchvision model {model} has no weights {chosen!r}; allowed: {', '.join(members)}")
    member = members[chosen or default]
    fitting = {n: m for n, m in members.items() if n == chosen or _recipe(m) == _recipe(member)}
    wanted = _input_of(model, member, by_frame)
    with torch.device("meta"):
        whole = _classifier(model, wanted.size).eval()
        params = sum(p.numel() for p in whole.parameters())
        frames = torch.empty(1, 3, 1 if by_frame else wanted.num_frames, wanted.size, wanted.size)
        gflops = _gflops(TorchvisionNetwork(whole, by_frame), frames) * (wanted.num_frames if by_frame else 1)
        head, dim = _head(model, whole)
    return Backbone(
        name=PREFIX + model + (f"@{chosen}" if chosen not in ("", default) else ""),
        modality="video",
        dim=dim,
        input=wanted,
        params=params,
        gflops=round(gflops, 3),
        licence="BSD-3-Clause (torchvision)",
        source=f"torchvision; {member.meta['recipe']}",
        build=partial(_build, model, wanted.size),
        published=tuple(_published(n, fitting[n], head) for n in sorted(fitting, key=lambda n: n != chosen)),
    )


def _is_image_model(model: str) -> bool:
    """Whether a classifier takes pictures, not clips; ValueError where it is no classifier of torchvision."""
    from torchvision import models

    images, videos = models.list_models(module=models), models.list_models(module=models.video)
    if model in images or model in videos:
        return model in images
    if model in models.list_models():
        raise ValueError(f"torchvision model {model!r} does not classify images or video, so it has no embedding")
    near = difflib.get_close_matches(model, [*images, *videos], 3)
    hint = f"nearest: {', '.join(near)}" if near else f"for example: {', '.join((*images[:3], *videos[:3]))}"
    raise ValueError(f"torchvision has no model {model!r} that classifies images or video; {hint}")


def _weights_of(model: str) -> dict[str, Any]:
    """Weights of a model by name, the default first, without those that lack what the embedding is made of."""
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(model)
    whole = [member for member in weights if member.meta["categories"] is not None]  # VGG16's features lack the rest
    return {member.name.lower(): member for member in sorted(whole, key=lambda m: m != weights.DEFAULT)}


def _recipe(member: Any) -> tuple[tuple[float, ...], ...]:
    """What weights want to see: crop, resize, mean, deviation."""
    preset = member.transforms()
    return tuple(tuple(values) for values in (preset.crop_size, preset.resize_size, preset.mean, preset.std))


def _input_of(model: str, member: Any, by_frame: bool) -> FrameInput:
    """Frames that a model with these weights sees."""
    crop, resize, mean, std = _recipe(member)
    num_frames, interval = IMAGE_FRAMES, 1
    if not by_frame:
        num_frames, interval = next(v for k, v in _SAMPLING.items() if model.startswith(k))
    return FrameInput(
        num_frames=num_frames,
        interval=interval,
        resize_short=int(min(resize)),
        size=int(crop[0]),
        clean_size=int(crop[0]),
        mean=tuple(round(255 * level, 6) for level in mean),
        std=tuple(round(255 * level, 6) for level in std),
        rate_hz=IMAGE_RATE_HZ if by_frame else None,
    )


class _CountsOnCpu(TorchFunctionMode):
    """Makes small number tensors on the CPU inside ``torch.device("meta")``: RegNet reads its widths from some."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}  # a layer's tensors name a device, if only None
        cpu = {"device": "cpu"} if func in (torch.arange, torch.tensor) and "device" not in kwargs else {}
        return func(*args, **kwargs, **cpu)


def _classifier(model: str, side: int = 224) -> nn.Module:
    """A torchvision model as its published weights want it, without weights."""
    from torchvision.models import get_model

    options: dict[str, Any] = {}
    if model in ("googlenet", "inception_v3"):
        # Their weights came from another library and want another normalisation, which the model makes itself.
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    if model.startswith("vit_"):
        options = {"image_size": side}
    with _CountsOnCpu() if model.startswith("regnet_") else nullcontext():
        made: nn.Module = get_model(model, **options)
    return made


def _head(model: str, whole: nn.Module) -> tuple[str, int]:
    """Name of the module that makes logits of the embedding, and the embedding's size."""
    linear = [(name, layer) for name, layer in whole.named_modules() if isinstance(layer, nn.Linear)]
    if linear:
        name, last = linear[-1]
        return name, last.in_features
    convolutions = [m for m in whole.get_submodule("classifier").modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    return "classifier", convolutions[-1].in_channels


def _build(model: str, side: int) -> nn.Module:
    """Network of a model: its last layer is gone."""
    whole = _classifier(model, side)
    by_frame = _is_image_model(model)
    head, _ = _head(model, whole)
    # S3D averages over places after its classifier, SqueezeNet inside it.
    whole.set_submodule(head, nn.AdaptiveAvgPool2d(1) if model.startswith("squeezenet") else nn.Identity())
    if model.startswith("mnasnet"):
        # Its own class refuses tensors that carry no version.
        layers = ("layers", whole.get_submodule("layers")), ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten())
        whole = nn.Sequential(OrderedDict(layers))
    return TorchvisionNetwork(whole, by_frame)


def _gflops(network: nn.Module, x: Tensor) -> float:
    """1e9 floating-point operations of convolutions and matrix products on ``x``."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(x)
    return float(counter.get_total_flops()) / 1e9


def _published(name: str, member: Any, head: str) -> Published:
    """The weight file of a member of a torchvision enumeration."""
    file = member.url.rsplit("/", 1)[1]
    data = next(iter(member.meta["_metrics"]))
    before = "Instagram pictures and their hashtags (SWAG), then " if "swag" in name else ""
    before = "ImageNet-22K, then " if "imagenet22k" in name else before
    licence = "CC BY-NC 4.0 (SWAG)" if "license" in member.meta else "BSD-3-Clause (torchvision)"
    return Published(
        name=name,
        file=file,
        url=member.url,
        digest="".join(_DIGEST.findall(file)),
        trained_on=f"{before}{data}",
        licence=f"{licence}; weights trained on {data}, whose terms apply",
        source=member.meta["recipe"],
        read=partial(_read_model, head),
    )


def _read_model(head: str, content: Mapping[str, object]) -> Tensors:
    """Tensors of a classifier's file under the names of ``TorchvisionNetwork``, those of its head left out."""
    left_out = (f"{head}.", *_AUXILIARY)
    kept = {name: value for name, value in _all_tensors(content).items() if not name.startswith(left_out)}
    for pattern, now in _OLD_NAMES:
        kept = {pattern.sub(now, name): value for name, value in kept.items()}
    return {f"model.{name}": value for name, value in kept.items()}


def _all_tensors(content: Mapping[str, object]) -> Tensors:
    """The content of a file, which must be tensors by name; old files lack the step counts of batch normalisation."""
    tensors: Tensors = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name!r} is a {type(value).__name__}; a torchvision file holds tensors by name")
        tensors[name] = value.detach()
    for name in [n for n in tensors if n.endswith("running_mean")]:
        tensors.setdefault(name.removesuffix("running_mean") + "num_batches_tracked", torch.tensor(0))
    return tensors


def _check_shape(x: Tensor, wanted: tuple[int | str, ...]) -> None:
    """ValueError unless ``x`` has rows and the wanted axes; the first of these has a fixed size, the others a name."""
    if x.ndim != len(wanted) + 1 or x.shape[1] != wanted[0]:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (rows, {', '.join(map(str, wanted))})")
