"""Tiny frozen backbones that need no download: fixed motion and spectrum filters, then seeded random convolutions.

Nothing here was trained. The first layer is analytic (space-time Gabor pairs whose energy answers to oriented motion,
after Adelson and Bergen 1985; contrast-normalised spectrogram patches for sound), the layers above are convolutions
with weights drawn from a seed. They are informative enough to run the whole pipeline anywhere; they are no substitute
for pretrained networks.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = "random:0"
WEIGHTS_NOTE = (
    "analytic filters and convolutions drawn from seed 0; nothing was pretrained, so absolute accuracies say nothing "
    "about pretrained backbones"
)
FRAME_DIM = 160
AUDIO_DIM = 160


def _random_weight(name: str, *shape: int) -> Tensor:
    """Draw a convolution's weights from its name: normal, scaled for ReLU (He et al. 2015), zero mean per filter."""
    seed = int.from_bytes(hashlib.sha256(f"{WEIGHTS}/{name}".encode()).digest()[:8], "big")
    values = np.random.Generator(np.random.Philox(seed)).standard_normal(shape)
    axes = tuple(range(1, len(shape)))
    values -= values.mean(axis=axes, keepdims=True)
    return torch.from_numpy(values * math.sqrt(2 / math.prod(shape[1:]))).float()


def _random_conv(name: str, inputs: int, outputs: int, kernel: tuple[int, ...], stride: int) -> nn.Module:
    """Convolution without bias with seeded weights, padded to keep the size before the stride."""
    kind: Any = {1: nn.Conv1d, 3: nn.Conv3d}[len(kernel)]
    layer: nn.Module = kind(inputs, outputs, kernel, stride=stride, padding=tuple(k // 2 for k in kernel), bias=False)
    layer.weight = nn.Parameter(_random_weight(name, outputs, inputs, *kernel))
    return layer


def _rhythm(series: Tensor) -> Tensor:
    """Magnitude spectrum over time of ``(rows, channels, time)``, flattened, without the mean: tempo, not phase."""
    centred = series - series.mean(-1, keepdim=True)
    magnitude: Tensor = torch.fft.rfft(centred).abs() / series.shape[-1]
    return magnitude[..., 1:].flatten(1)


def _foreground(maps: Tensor, saliency: Tensor) -> Tensor:
    """Series of what moves against the background, ``(rows, channels + 5, time)``.

    Args:
        maps: signed maps ``(rows, channels, time, height, width)``.
        saliency: how much each place stands out, ``(rows, time, height, width)``, non-negative.

    Returns:
        The saliency-weighted mean of every map, and the salient region's centre (x, y), spread (x, y) and strength.
    """
    height, width = saliency.shape[-2:]
    weight = saliency / (saliency.sum((2, 3), keepdim=True) + 1e-6)
    y = torch.linspace(-1, 1, height, device=maps.device)[:, None]
    x = torch.linspace(-1, 1, width, device=maps.device)
    means = (maps * weight[:, None]).sum((3, 4))
    centre_x, centre_y = (weight * x).sum((2, 3)), (weight * y).sum((2, 3))
    spread_x = (weight * (x - centre_x[..., None, None]) ** 2).sum((2, 3))
    spread_y = (weight * (y - centre_y[..., None, None]) ** 2).sum((2, 3))
    region = torch.stack([centre_x, centre_y, spread_x.sqrt(), spread_y.sqrt(), saliency.mean((2, 3))], 1)
    return torch.cat([means, region], 1)


class _Summary(nn.Module):
    """Pool signed series and non-negative maps into a vector.

    The vector holds the mean, the deviation and the mean magnitude of every series, a seeded random projection of
    their rhythms, and the pooled responses of two seeded random convolutions over the maps.
    """

    width = 16  # channels of the last convolution; the projection fills what moments and convolutions leave of dim

    def __init__(self, name: str, series: int, channels: int, time: int, axes: int, dim: int) -> None:
        super().__init__()
        rhythm = dim - 3 * series - 2 * self.width
        self.first = _random_conv(f"{name}/first", channels, 48, (3,) * axes, 2)
        self.second = _random_conv(f"{name}/second", 48, self.width, (3,) * axes, 2)
        self.register_buffer("projection", _random_weight(f"{name}/rhythm", rhythm, series * (time // 2)))

    def forward(self, series: Tensor, maps: Tensor) -> Tensor:
        """Map ``(rows, series, time)`` and ``(rows, channels, time, ...)`` to ``(rows, dim)``."""
        moments = [series.mean(-1), series.std(-1, correction=0), series.abs().mean(-1)]
        rhythm = _rhythm(series) @ self.get_buffer("projection").T
        h = self.second(self.first(maps).relu()).relu().flatten(2)
        return torch.cat([*moments, rhythm, h.mean(-1), h.std(-1, correction=0)], -1)


class MotionEnergy(nn.Module):
    """RGB frames ``(rows, 3, 16, 64, 64)`` to ``(rows, FRAME_DIM)``: oriented motion energy and what lies on it."""

    wavelengths = (6.0, 12.0)  # pixels
    orientations = 4
    rates = (-0.25, -0.125, 0.0, 0.125, 0.25)  # cycles per sampled frame

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spatial", self._spatial_filters())
        self.register_buffer("temporal", self._temporal_filters(16))
        bands = len(self.wavelengths) * self.orientations
        self.summary = _Summary("rgb", 2 * bands + 5, bands * len(self.rates), time=16, axes=3, dim=FRAME_DIM)

    def _spatial_filters(self) -> Tensor:
        """Complex Gabor filters as ``(2 * filters, 1, 13, 13)``: cosine parts, then sine parts, each zero mean."""
        axis = torch.arange(13) - 6
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        parts = []
        for wavelength in self.wavelengths:
            envelope = torch.exp(-(x**2 + y**2) / (2 * (0.4 * wavelength) ** 2))
            for k in range(self.orientations):
                angle = math.pi * k / self.orientations
                phase = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wavelength
                for wave in (phase.cos(), phase.sin()):
                    even = wave - (wave * envelope).sum() / envelope.sum()
                    parts.append(even * envelope / (even * envelope).abs().sum())
        filters = torch.stack(parts).view(-1, 2, 1, 13, 13)
        return torch.cat([filters[:, 0], filters[:, 1]])

    def _temporal_filters(self, time: int) -> Tensor:
        """Complex filters of five taps as matrices ``(2, time, rates * time)``; ends repeat the outermost frame."""
        taps = torch.arange(5) - 2
        phase = 2 * math.pi * torch.tensor(self.rates)[:, None] * taps
        window = torch.hann_window(7, periodic=False)[1:-1]
        kernels = torch.stack([phase.cos(), phase.sin()]) * window / window.sum()  # (2, rates, taps)
        matrix = torch.zeros(2, time, len(self.rates), time)
        for output in range(time):
            for tap, offset in enumerate(taps.tolist()):
                matrix[:, min(max(output + offset, 0), time - 1), :, output] += kernels[:, :, tap]
        return matrix.flatten(2)

    def energy(self, x: Tensor) -> Tensor:
        """Motion energy ``(rows, channels, time, 16, 16)``, divided by its mean over the clip."""
        rows, _, time, height, width = x.shape
        grey = x.mean(1).reshape(rows * time, 1, height, width)
        response = F.conv2d(grey, self.get_buffer("spatial"), stride=4, padding=6)
        side = response.shape[-2:]
        parts = response.view(rows, time, 2, -1, *side).permute(2, 0, 3, 4, 5, 1).reshape(2, -1, time)
        cosine, sine = self.get_buffer("temporal")
        real = parts[0] @ cosine - parts[1] @ sine
        imaginary = parts[0] @ sine + parts[1] @ cosine
        magnitude = (real.square_() + imaginary.square_()).sqrt_().view(rows, -1, *side, len(self.rates), time)
        maps = magnitude.permute(0, 1, 4, 5, 2, 3).flatten(1, 2)
        relative: Tensor = maps / (maps.mean((1, 2, 3, 4), keepdim=True) + 1e-6)
        return relative

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, 3, 16, 64, 64)`` to ``(rows, FRAME_DIM)``."""
        maps = self.energy(x)
        rows, _, time, height, width = maps.shape
        energy = maps.view(rows, -1, len(self.rates), time, height, width)
        # Opponent energy is signed: motion one way minus motion the other way, slow and fast.
        opponent = torch.cat([energy[:, :, 3] - energy[:, :, 1], energy[:, :, 4] - energy[:, :, 0]], 1)
        background = opponent.flatten(3).median(-1).values[..., None, None]
        relative = opponent - background
        return self.summary(_foreground(relative, relative.abs().mean(1) ** 2), maps)  # type: ignore[no-any-return]


class FlowField(nn.Module):
    """Optical flow ``(rows, 2, 8, 64, 64)`` to ``(rows, FRAME_DIM)``: directions, expansion and rotation, rectified."""

    def __init__(self) -> None:
        super().__init__()
        self.summary = _Summary("flow", 13, 12, time=8, axes=3, dim=FRAME_DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, 2, 8, 64, 64)`` to ``(rows, FRAME_DIM)``."""
        rows, _, time, height, width = x.shape
        small = F.avg_pool2d(x.reshape(rows, 2 * time, height, width), 2) * 10
        small = small.view(rows, 2, time, height // 2, width // 2)
        camera = small.flatten(3).median(-1).values  # (rows, 2, time)
        relative = small - camera[..., None, None]
        u, v = relative[:, 0], relative[:, 1]
        ux, vx = (F.pad(f[..., 1:] - f[..., :-1], (0, 1)) for f in (u, v))
        uy, vy = (F.pad(f[..., 1:, :] - f[..., :-1, :], (0, 0, 0, 1)) for f in (u, v))
        signed = torch.stack([u, v, ux + vy, vx - uy, ux - vy, vx + uy], 1)
        series = torch.cat([camera, _foreground(signed, u**2 + v**2)], 1)
        maps = torch.cat([signed.relu(), (-signed).relu()], 1)
        return self.summary(series, F.avg_pool3d(maps, (1, 2, 2)))  # type: ignore[no-any-return]


class BandEnergy(nn.Module):
    """Log spectrogram ``(rows, 1, 257, time)`` to ``(rows, AUDIO_DIM)``: bands on a mel-like scale and their rhythm."""

    bands = 32
    frames = 128  # time steps after resampling the band series

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", self._filters())
        self.summary = _Summary("audio", self.bands, 2 * self.bands, self.frames, axes=1, dim=AUDIO_DIM)

    def _filters(self) -> Tensor:
        """Triangular filters ``(bands, 257)``, narrow below 1 kHz and wide above, each summing to one."""
        edges = torch.logspace(math.log10(1.5), math.log10(256), self.bands + 2)
        bins = torch.arange(257)
        rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
        filters = torch.minimum(rise, fall).clamp(min=0)
        nearest = F.one_hot(edges[1:-1].round().long(), 257)
        filters = torch.where(filters.sum(1, keepdim=True) > 0.5, filters, nearest.to(filters))
        return filters / filters.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, 1, 257, time)`` to ``(rows, AUDIO_DIM)``."""
        bands = self.get_buffer("filters") @ x[:, 0]
        series = F.interpolate(bands, self.frames, mode="linear", align_corners=False)
        rise = F.pad(series[..., 1:] - series[..., :-1], (1, 0))
        maps = torch.cat([series.exp().clamp(max=20), rise.relu()], 1)
        return self.summary(series, maps)  # type: ignore[no-any-return]


def build_rgb() -> nn.Module:
    """Network of ``tiny-rgb``."""
    return MotionEnergy()


def build_flow() -> nn.Module:
    """Network of ``tiny-flow``."""
    return FlowField()


def build_audio() -> nn.Module:
    """Network of ``tiny-audio``."""
    return BandEnergy()
