"""The contract of a frozen backbone: what it is, and how rows go through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.inputs import AudioInput, FrameInput
from extractors.published import Published

Build = Callable[[], nn.Module]

PRECISIONS = ("float32", "bfloat16")
POOL = "pool"
LAST_STAGE = "pre-layer4"


class Staged(Protocol):
    """A network whose last stage can be trained apart from the rest."""

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map network inputs to the feature maps `(rows, channels, [time,] height, width)` before the last stage."""
        ...

    def finish(self, maps: Sequence[Tensor]) -> Tensor:
        """Map what ``maps`` returned to the embedding `(rows, dim)`."""
        ...


@dataclass(frozen=True)
class Backbone:
    """What a frozen backbone is and wants.

    ``build`` makes the network with whatever values; its ``forward`` maps rows to the pooled embedding `(rows, dim)`.
    """

    name: str
    modality: str  # video, flow or audio
    dim: int  # of the pooled embedding
    input: FrameInput | AudioInput
    params: int  # number of parameters, classifier included
    gflops: float  # of one row at ``input.size``: 1e9 floating-point operations, a multiplication and an addition two
    licence: str
    source: str
    build: Build
    published: tuple[Published, ...] = ()  # weight files, the default first
    builtin: str = ""  # name of the weights that need no file; "" where a file is needed
    builtin_note: str = ""  # where they come from, one plain sentence
    staged: bool = False  # the network is ``Staged``
    bfloat16: bool = True  # whether bfloat16 serves it
    rows_on_cpu: int = 1  # rows at once on a CPU; 1: a row's bits cannot depend on its batch
    revision: int = 1  # goes up whenever the same weights give other features

    def row_shape(self, side: int | None = None) -> tuple[int, ...]:
        """Shape of one network input; ``side``: of square frames, default ``input.size``."""
        if isinstance(self.input, AudioInput):
            return 1, *self.input.shape
        size = side or self.input.size
        return self.input.channels, self.input.num_frames, size, size


@dataclass(frozen=True)
class Tap:
    """Where in a network the feature is taken: ``pool``, ``pre-layer4`` or ``pre-layer4@GRID``.

    ``pool`` is the embedding. ``pre-layer4`` are the feature maps before the last stage, flattened one after the
    other; with a grid they are averaged to GRID x GRID places first.
    """

    name: str

    def __post_init__(self) -> None:
        kind, at, grid = self.name.partition("@")
        plain = self.name in (POOL, LAST_STAGE)
        if not plain and not (kind == LAST_STAGE and at and grid.isdigit() and 1 <= int(grid) <= 64):
            raise ValueError(f"tap {self.name!r}; allowed: {POOL}, {LAST_STAGE}, {LAST_STAGE}@GRID with GRID 1 to 64")

    @property
    def pooled(self) -> bool:
        """Whether it is the embedding."""
        return self.name == POOL

    @property
    def grid(self) -> int | None:
        """Side of the grid that maps are averaged to."""
        _, _, grid = self.name.partition("@")
        return int(grid) if grid else None

    def shapes(self, backbone: Backbone) -> tuple[tuple[int, ...], ...]:
        """Shapes of one row's feature maps (or of its embedding), without computing any.

        Raises:
            ValueError: the network cannot be cut there, or its views have maps of different sizes.
        """
        self.check(backbone)
        if self.pooled:
            return ((backbone.dim,),)
        with torch.device("meta"):
            network = backbone.build().eval()
            maps = self.take(network, torch.empty(1, *backbone.row_shape()))
        return tuple(tuple(m.shape[1:]) for m in maps)

    def check(self, backbone: Backbone) -> None:
        """Check that a network can be cut there.

        Raises:
            ValueError: it cannot, or its views have maps of different sizes.
        """
        if self.pooled:
            return
        if not backbone.staged:
            raise ValueError(f"backbone {backbone.name} has no tap {self.name!r}; allowed: {POOL}")
        wanted = backbone.input
        if isinstance(wanted, FrameInput) and wanted.clean_size != wanted.size and self.grid is None:
            raise ValueError(
                f"{backbone.name} sees clean views at {wanted.clean_size} and the others at {wanted.size} pixels, so "
                f"their maps differ; name a grid that all are averaged to, for example {LAST_STAGE}@7"
            )

    def take(self, network: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (or the embedding) of network inputs ``x``."""
        if self.pooled:
            return (network(x),)
        maps: tuple[Tensor, ...] = network.maps(x)  # type: ignore[operator]
        if self.grid is None:
            return maps
        return tuple(_pool_to_grid(m, self.grid) for m in maps)

    def dim(self, backbone: Backbone) -> int:
        """Values of one row."""
        return sum(math.prod(shape) for shape in self.shapes(backbone))


def _pool_to_grid(maps: Tensor, grid: int) -> Tensor:
    """Average `(rows, channels, [time,] height, width)` to ``grid`` x ``grid`` places, in float32; time stays."""
    if maps.ndim == 4:
        return F.adaptive_avg_pool2d(maps.float(), grid)
    return F.adaptive_avg_pool3d(maps.float(), (maps.shape[2], grid, grid))


class Encoder:
    """A loaded backbone: evaluation mode, no gradients, a row's features do not depend on its batch.

    Args:
        network: the network with its weights.
        device: where it runs.
        tap: where features are taken.
        precision: of convolutions and matrix products; sums over places and what is returned stay float32.
        rows: rows at once; ``None``: all that are given.
        compiled: run it through ``torch.compile`` (worth its minutes on a GPU only).
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        *,
        tap: Tap | None = None,
        precision: str = "float32",
        rows: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device
        self.tap = tap or Tap(POOL)
        self.precision = precision
        self.rows = rows
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear)]
        if precision == "bfloat16":
            for layer in layers:  # once, not at every call as autocast would
                layer.to(torch.bfloat16)
        # On a CPU float32 convolutions in time are slower channels-last, all others faster (docs/benchmarks.md).
        deep = any(isinstance(layer, nn.Conv3d) for layer in layers)
        if not (deep and device.type == "cpu" and precision == "float32"):
            for layer in layers:
                if isinstance(layer, nn.Conv2d | nn.Conv3d):
                    kind = torch.channels_last_3d if isinstance(layer, nn.Conv3d) else torch.channels_last
                    layer.to(memory_format=kind)  # type: ignore[call-overload]
        self._take: Callable[[nn.Module, Tensor], tuple[Tensor, ...]] = self.tap.take
        if compiled:
            self._take = torch.compile(self.tap.take)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Map network inputs ``(rows, ...)`` float32 to features ``(rows, dim)`` float32 on the CPU."""
        pieces = [x] if self.rows is None else list(torch.split(x, self.rows))
        return torch.cat([self._encode(piece) for piece in pieces])

    def _encode(self, x: Tensor) -> Tensor:
        """Features of rows that go through the network together."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            maps = self._take(self.network, x.to(self.device))
        return torch.cat([m.float().flatten(1) for m in maps], 1).cpu()


class LastStage(nn.Module):
    """The last stage of a backbone for training: cached ``pre-layer4`` features in, embeddings out.

    Args:
        network: a ``Staged`` network with its weights; it is kept whole, gradients reach its last stage only.
        shapes: what ``Tap.shapes`` returned for the tap of the features.
    """

    def __init__(self, network: nn.Module, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.network = network
        self.shapes = tuple(shapes)

    def forward(self, features: Tensor) -> Tensor:
        """Map features `(rows, sum of the maps' sizes)` to embeddings `(rows, dim)`."""
        flat = torch.split(features.float(), [math.prod(s) for s in self.shapes], 1)
        maps = [part.reshape(-1, *shape) for part, shape in zip(flat, self.shapes, strict=True)]
        embedding: Tensor = self.network.finish(maps)  # type: ignore[operator]
        return embedding
