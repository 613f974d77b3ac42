"""SlowFast and SlowOnly video networks in the 8x8 setting (Feichtenhofer et al., ICCV 2019, arXiv 1812.03982).

The tensors are named as in the checkpoints of mmaction, so that these load as they are. Two families of published
SlowFast weights compute different things, and a network has to be built for the one its weights come from:

* mmaction: the lateral convolutions are bare, and the slow path takes frames 0, 4, 8, ... of the clip;
* PySlowFast and pytorchvideo: each lateral convolution is followed by normalisation and ReLU, and the slow path's
  frames are spread from the clip's first to its last (0, 4, 8, 13, 17, 22, 26, 31 of 32). Their ResNet-101 has lateral
  kernels of 5 frames, all others here of 7.

Common to all: the spatial stride of a stage sits in the 3x3 convolution of its first block, every normalisation has
eps 1e-5, and nothing strides in time but the lateral convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 400  # of Kinetics-400
SLOW_DIM = 2048
FAST_DIM = 256

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_SPEED = 4  # frames of the fast path per frame of the slow path
_SLOW_KERNELS = (1, 1, 1, 3, 3)  # in time: of the stem, then of the first convolution of each stage's blocks
_FAST_KERNELS = (5, 3, 3, 3, 3)
_SLOW_WIDTH = 64
_FAST_WIDTH = 8
_WINDOW = 8  # slow frames that the published weights were trained on


class ConvNorm(nn.Module):
    """Convolution without bias, normalisation and ReLU; the last two can be left out."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        norm: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(outputs) if norm else None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map `(rows, inputs, time, height, width)` to `(rows, outputs, time, height, width)`, strided."""
        y: Tensor = self.conv(x)
        if self.bn is not None:
            y = self.bn(y)
        return y.relu_() if self.relu else y


class Bottleneck(nn.Module):
    """Residual block of three convolutions: in time, in space, pointwise to four times the width."""

    def __init__(self, inputs: int, width: int, time_kernel: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = ConvNorm(inputs, width, (time_kernel, 1, 1))
        self.conv2 = ConvNorm(width, width, (1, 3, 3), (1, stride, stride))
        self.conv3 = ConvNorm(width, outputs, (1, 1, 1), relu=False)
        self.downsample = None
        if inputs != outputs or stride > 1:
            self.downsample = ConvNorm(inputs, outputs, (1, 1, 1), (1, stride, stride), relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(rows, inputs, time, height, width)` to `(rows, 4 * width, time, height, width)`, strided in space."""
        skip = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.conv3(self.conv2(self.conv1(x))) + skip
        return y.relu_()


def _stage(inputs: int, width: int, blocks: int, time_kernel: int, stride: int) -> nn.Sequential:
    """Blocks of one width; the first of them strides in space."""
    rest = [Bottleneck(4 * width, width, time_kernel, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, width, time_kernel, stride), *rest)


class Pathway(nn.Module):
    """3-D ResNet without its classifier.

    Args:
        depth: 50 or 101 layers.
        channels: of the input.
        width: channels of the stem; stage k puts out ``width * 2 ** (k + 1)``.
        time_kernels: of the stem and the four stages.
        joined: whether a quarter as many lateral channels is put after the input of every stage.
    """

    def __init__(
        self, depth: int, channels: int, width: int, time_kernels: tuple[int, int, int, int, int], joined: bool = False
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth {depth}; allowed: {', '.join(map(str, _BLOCKS))}")
        blocks = _BLOCKS[depth]

        def inputs(own: int) -> int:
            return own + own // 4 if joined else own

        self.conv1 = ConvNorm(channels, width, (time_kernels[0], 7, 7), (1, 2, 2))
        self.layer1 = _stage(inputs(width), width, blocks[0], time_kernels[1], 1)
        self.layer2 = _stage(inputs(4 * width), 2 * width, blocks[1], time_kernels[2], 2)
        self.layer3 = _stage(inputs(8 * width), 4 * width, blocks[2], time_kernels[3], 2)
        self.layer4 = _stage(inputs(16 * width), 8 * width, blocks[3], time_kernels[4], 2)

    def stem(self, x: Tensor) -> Tensor:
        """Map a clip `(rows, channels, time, height, width)` to `(rows, width, time, height / 4, width / 4)`."""
        return F.max_pool3d(self.conv1(x), (1, 3, 3), (1, 2, 2), (0, 1, 1))


class SlowPath(Pathway):
    """Slow path of SlowFast with the convolutions that bring the fast path's maps to its rate."""

    def __init__(self, depth: int, lateral_norm: bool, lateral_kernel: int) -> None:
        super().__init__(depth, 3, _SLOW_WIDTH, _SLOW_KERNELS, joined=True)

        def lateral(fast: int) -> ConvNorm:
            kernel, stride = (lateral_kernel, 1, 1), (_SPEED, 1, 1)
            return ConvNorm(fast, 2 * fast, kernel, stride, norm=lateral_norm, relu=lateral_norm)

        self.conv1_lateral = lateral(_FAST_WIDTH)
        self.layer1_lateral = lateral(4 * _FAST_WIDTH)
        self.layer2_lateral = lateral(8 * _FAST_WIDTH)
        self.layer3_lateral = lateral(16 * _FAST_WIDTH)


class _Paths(nn.Module):
    """Holds the two paths under their names."""

    def __init__(self, slow_path: SlowPath, fast_path: Pathway) -> None:
        super().__init__()
        self.slow_path = slow_path
        self.fast_path = fast_path


class _Head(nn.Module):
    """Holds the classifier under its name."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(dim, CLASSES)


def _check_clip(x: Tensor, channels: int, least: int, step: int, name: str) -> None:
    """Refuse what the network's weights do not know."""
    if x.ndim != 5:
        raise ValueError(f"clip with {x.ndim} axes; {name} takes 5: rows, channels, time, height, width")
    if x.shape[1] != channels:
        raise ValueError(f"clip with {x.shape[1]} channels; {name} takes {channels}")
    if x.shape[2] < least or x.shape[2] % step:
        multiple = f", a multiple of {step}" if step > 1 else ""
        raise ValueError(f"clip of {x.shape[2]} frames; {name} takes {least} or more{multiple}")


def _pool(maps: Tensor) -> Tensor:
    """Average `(rows, channels, time, height, width)` over time and space to `(rows, channels)`, in float32."""
    return maps.float().mean((2, 3, 4))


def spread_frames(frames: int) -> tuple[int, ...]:
    """Frames that PySlowFast's slow path takes of a clip: a quarter as many, evenly from the first to the last."""
    count = frames // _SPEED
    return tuple(i * (frames - 1) // (count - 1) for i in range(count))


class SlowFast(nn.Module):
    """SlowFast 8x8: 32 frames or more, every fourth of them in the slow path; embedding of 2304 values, fast first.

    Args:
        depth: 50 or 101 layers.
        lateral_norm: the family of PySlowFast and pytorchvideo instead of mmaction's (see the module).
        lateral_kernel: frames that a lateral convolution sees, odd.

    Raises:
        ValueError: no network of that depth or kernel.
    """

    def __init__(self, depth: int, lateral_norm: bool = False, lateral_kernel: int = 7) -> None:
        super().__init__()
        if lateral_kernel < 1 or lateral_kernel % 2 == 0:
            raise ValueError(f"lateral kernel of {lateral_kernel} frames; allowed: odd numbers")
        self.lateral_norm = lateral_norm
        fast = Pathway(depth, 3, _FAST_WIDTH, _FAST_KERNELS)
        self.backbone = _Paths(SlowPath(depth, lateral_norm, lateral_kernel), fast)
        self.cls_head = _Head(FAST_DIM + SLOW_DIM)

    def _slow_frames(self, x: Tensor) -> Tensor:
        """Frames of the slow path, `(rows, 3, time / 4, height, width)`."""
        if not self.lateral_norm:
            return x[:, :, ::_SPEED]
        return torch.stack([x[:, :, i] for i in spread_frames(x.shape[2])], 2)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map clips to what the last stages take.

        Args:
            x: RGB frames `(rows, 3, time, height, width)`, normalised; time a multiple of 4, at least 32.

        Returns:
            Slow maps `(rows, 1280, time / 4, height / 16, width / 16)`, of which the last 256 channels are lateral,
            and fast maps `(rows, 128, time, height / 16, width / 16)`; sides are rounded up.

        Raises:
            ValueError: another number of axes, channels or frames.
        """
        _check_clip(x, 3, _SPEED * _WINDOW, _SPEED, "SlowFast")
        slow, fast = self.backbone.slow_path, self.backbone.fast_path
        s, f = slow.stem(self._slow_frames(x)), fast.stem(x)
        s = torch.cat([s, slow.conv1_lateral(f)], 1)
        s, f = slow.layer1(s), fast.layer1(f)
        s = torch.cat([s, slow.layer1_lateral(f)], 1)
        s, f = slow.layer2(s), fast.layer2(f)
        s = torch.cat([s, slow.layer2_lateral(f)], 1)
        s, f = slow.layer3(s), fast.layer3(f)
        return torch.cat([s, slow.layer3_lateral(f)], 1), f

    def finish(self, maps: Sequence[Tensor]) -> Tensor:
        """Map what ``maps`` returned to embeddings `(rows, 2304)` float32: 256 fast values, then 2048 slow ones."""
        slow, fast = maps
        paths = self.backbone
        return torch.cat([_pool(paths.fast_path.layer4(fast)), _pool(paths.slow_path.layer4(slow))], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map clips `(rows, 3, time, height, width)` to embeddings `(rows, 2304)` float32; raises as ``maps`` does."""
        return self.finish(self.maps(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings `(rows, 2304)` to the logits of Kinetics-400, `(rows, 400)`."""
        logits: Tensor = self.cls_head.fc_cls(embedding)
        return logits


class SlowOnly(nn.Module):
    """SlowOnly 8x8, the slow path alone: 8 frames or more; embedding of 2048 values.

    Args:
        depth: 50 or 101 layers.
        channels: of a frame, 2 for optical flow.

    Raises:
        ValueError: no network of that depth.
    """

    def __init__(self, depth: int = 50, channels: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.backbone = Pathway(depth, channels, _SLOW_WIDTH, _SLOW_KERNELS)
        self.cls_head = _Head(SLOW_DIM)

    def maps(self, x: Tensor) -> tuple[Tensor]:
        """Map clips to what the last stage takes.

        Args:
            x: frames `(rows, channels, time, height, width)`, normalised; time at least 8.

        Returns:
            Maps `(rows, 1024, time, height / 16, width / 16)`; sides are rounded up.

        Raises:
            ValueError: another number of axes, channels or frames.
        """
        _check_clip(x, self.channels, _WINDOW, 1, "SlowOnly")
        path = self.backbone
        return (path.layer3(path.layer2(path.layer1(path.stem(x)))),)

    def finish(self, maps: Sequence[Tensor]) -> Tensor:
        """Map what ``maps`` returned to embeddings `(rows, 2048)` float32."""
        (slow,) = maps
        return _pool(self.backbone.layer4(slow))

    def forward(self, x: Tensor) -> Tensor:
        """Map clips `(rows, channels, time, height, width)` to embeddings `(rows, 2048)`; raises as ``maps`` does."""
        return self.finish(self.maps(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings `(rows, 2048)` to the logits of Kinetics-400, `(rows, 400)`."""
        logits: Tensor = self.cls_head.fc_cls(embedding)
        return logits


def build_slowfast_r101() -> nn.Module:
    """Network of mmaction's SlowFast-R101 8x8."""
    return SlowFast(101)


def build_slowfast_r50() -> nn.Module:
    """Network of mmaction's SlowFast-R50 8x8."""
    return SlowFast(50)


def build_slowfast_r101_normed() -> nn.Module:
    """Network of pytorchvideo's SlowFast-R101 8x8."""
    return SlowFast(101, lateral_norm=True, lateral_kernel=5)


def build_slowfast_r50_normed() -> nn.Module:
    """Network of PySlowFast's and pytorchvideo's SlowFast-R50 8x8."""
    return SlowFast(50, lateral_norm=True)


def build_slowonly_r50_flow() -> nn.Module:
    """Network of mmaction's SlowOnly-R50 8x8 for optical flow."""
    return SlowOnly(50, 2)
