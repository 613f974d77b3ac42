"""ResNet-18 for log spectrograms, trained on VGGSound (Chen et al., ICASSP 2020, arXiv 2004.14368).

The tensors are named as in the published checkpoint (average pooling, 309 classes), so that it loads as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 309  # of VGGSound
DIM = 512


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions, the first of which strides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            pointwise = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(pointwise, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(rows, inputs, height, width)` to `(rows, outputs, height, width)`, strided."""
        skip = x if self.downsample is None else self.downsample(x)
        hidden: Tensor = self.bn1(self.conv1(x))
        y: Tensor = self.bn2(self.conv2(hidden.relu_())) + skip
        return y.relu_()


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two blocks."""
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))


def _pool(maps: Tensor) -> Tensor:
    """Average `(rows, channels, height, width)` over all places to `(rows, channels)`, in float32."""
    return maps.float().mean((2, 3))


class _ResNet(nn.Module):
    """Holds the layers under their names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 1)
        self.layer2 = _stage(64, 128, 2)
        self.layer3 = _stage(128, 256, 2)
        self.layer4 = _stage(256, DIM, 2)
        self.fc = nn.Linear(DIM, CLASSES)


class VggSoundResNet18(nn.Module):
    """ResNet-18 with one input channel; embedding of 512 values."""

    def __init__(self) -> None:
        super().__init__()
        self.audnet = _ResNet()

    def maps(self, x: Tensor) -> tuple[Tensor]:
        """Map log spectrograms to what the last stage takes.

        Args:
            x: `(rows, 1, frequency, time)`, standardised; the weights were trained on 257 x 1004.

        Returns:
            Maps `(rows, 256, frequency / 16, time / 16)`; sides are rounded up.

        Raises:
            ValueError: another number of axes or channels.
        """
        if x.ndim != 4:
            raise ValueError(f"spectrogram with {x.ndim} axes; VggSoundResNet18 takes 4: rows, 1, frequency, time")
        if x.shape[1] != 1:
            raise ValueError(f"spectrogram with {x.shape[1]} channels; VggSoundResNet18 takes 1")
        net = self.audnet
        hidden: Tensor = net.bn1(net.conv1(x))
        pooled = F.max_pool2d(hidden.relu_(), 3, 2, 1)
        return (net.layer3(net.layer2(net.layer1(pooled))),)

    def finish(self, maps: Sequence[Tensor]) -> Tensor:
        """Map what ``maps`` returned to embeddings `(rows, 512)` float32."""
        (last,) = maps
        return _pool(self.audnet.layer4(last))

    def forward(self, x: Tensor) -> Tensor:
        """Map log spectrograms `(rows, 1, frequency, time)` to embeddings `(rows, 512)`; raises as ``maps`` does."""
        return self.finish(self.maps(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embeddings `(rows, 512)` to the logits of VGGSound, `(rows, 309)`."""
        logits: Tensor = self.audnet.fc(embedding)
        return logits


class AudioLastStage(nn.Module):
    """Last stage and classifier apart from the rest, as SSMDG trains them on the maps of a frozen network.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer4 = _stage(256, DIM, 2)
        self.fc = nn.Linear(DIM, classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Map what layer 3 puts out, `(rows, 256, height, width)`, to embeddings `(rows, 512)` and logits."""
        embedding = _pool(self.layer4(maps))
        return embedding, self.fc(embedding)


def build_vggsound_r18() -> nn.Module:
    """Network of VGGSound's ResNet-18 with average pooling."""
    return VggSoundResNet18()
