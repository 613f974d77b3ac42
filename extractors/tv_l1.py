"""Dual TV-L1 optical flow in torch, for a batch of pairs on any device.

The model is that of Zach, Pock and Bischof (A Duality Based Approach for Realtime TV-L1 Optical Flow, DAGM 2007), the
numerical scheme that of Sanchez Perez, Meinhardt-Llopis and Facciolo (TV-L1 Optical Flow Estimation, IPOL 2013). The
constants, the pyramid, the borders, the median filter and the stopping rule are those of OpenCV's
``DualTVL1OpticalFlow`` with default parameters, which made the flow of the published data sets. Short runs agree with
OpenCV 5.0 to 1e-6 pixels. In whole ones a single rounding that differs may end a warp an iteration sooner or later, and
each warp makes up to ten times more of it: 0.001 to 0.02 pixels on average on real video, which is what OpenCV's scheme
in another precision differs by. OpenCV 4 rounds the places of its warps to 1/32 pixel, which this module does not.

Where OpenCV keeps the flow u and the dual variable p, this module keeps U = (tau / theta) u and q = tau p. The scheme
is the same and its inner loop has fewer multiplications:

    U <- U + (tau / theta) grad I1 clamp(-rho / |grad I1|^2, -lambda theta, lambda theta) + div q
    q <- (q + tau grad U) / (1 + |grad U|)
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import torch
from torch import Tensor
from torch.nn import functional as F

TAU = 0.25  # time step of the dual scheme
LAMBDA = 0.15  # weight of the data term, grey levels 0..255
THETA = 0.3  # how closely the two halves of the problem are tied
SCALES = 5
SCALE_STEP = 0.8
WARPS = 5  # per scale
EPSILON = 0.01  # a warp ends when the root mean square change of an iteration falls to it, pixels
ROUNDS = 10  # at most, per warp; each begins with a median filter
ITERATIONS = 30  # at most, per round

SMALLEST_SIDE = 3  # pixels; a smaller image is extended by its border
BYTES_PER_PIXEL = 320  # of a pair while it is computed, most in the median filter; measured: 284
BUDGET_BYTES = 2**30  # for the pairs that are computed together on a GPU

_SMALLEST_COARSE_SIDE = 16  # of a scale but the finest
_FLOW_SCALE = TAU / THETA  # U = _FLOW_SCALE * u
_THRESHOLD = LAMBDA * THETA
_MEDIAN = 5  # side of the median filter's window
_BLOCK = 32768  # pixels that a pass runs over on a CPU, so that its temporaries stay in the cache


@torch.inference_mode()
def tv_l1_flow(first: Tensor, second: Tensor, *, pairs_at_once: int | None = None) -> Tensor:
    """Compute the flow from each image of ``first`` to the image of ``second`` beside it.

    A pair ends a warp when its own stopping rule says so, so its flow does not depend on the other pairs: not in one
    bit on a CPU with the default ``pairs_at_once``. On a GPU the rule is applied there, and the host asks once in
    30 iterations whether any pair still moves; all else is launched without waiting.

    Args:
        first: grey images `(pairs, height, width)`, levels 0..255, uint8 or floating point.
        second: the same shape and device.
        pairs_at_once: pairs that are computed together; default: 1 on a CPU, where a pair fills the cache, else what
            ``BUDGET_BYTES`` holds.

    Returns:
        float32 `(pairs, 2, height, width)`, pixels; channel 0 is u (positive to the right), 1 is v (positive down).

    Raises:
        ValueError: images of different or other shapes, or without pixels; ``pairs_at_once`` below 1.
    """
    if first.ndim != 3 or first.shape != second.shape or 0 in first.shape[1:]:
        raise ValueError(
            f"images have shapes {tuple(first.shape)} and {tuple(second.shape)}; both must be (pairs, height, width)"
        )
    if pairs_at_once is not None and pairs_at_once < 1:
        raise ValueError(f"pairs_at_once is {pairs_at_once}; allowed: at least 1")
    count, height, width = first.shape
    step = pairs_at_once or default_pairs_at_once(height, width, first.device)
    flow = torch.empty(count, 2, height, width, device=first.device)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        flow[rows] = _flow(first[rows].float(), second[rows].float()).transpose(0, 1)[..., :height, :width]
    return flow


def default_pairs_at_once(height: int, width: int, device: torch.device) -> int:
    """Pairs of so many pixels that are computed together on a device."""
    if device.type == "cpu":
        return 1
    return max(1, BUDGET_BYTES // (BYTES_PER_PIXEL * height * width))


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """Flow `(2, pairs, height, width)` of float32 images, coarse to fine; tiny images come back extended."""
    below, right = (max(0, SMALLEST_SIDE - side) for side in first.shape[1:])
    if below or right:
        first, second = (F.pad(image[None], (0, right, 0, below), mode="replicate")[0] for image in (first, second))
    scales = [(first, second)]
    while len(scales) < SCALES:
        sides = [round(side * SCALE_STEP) for side in scales[-1][0].shape[1:]]
        if min(sides) < _SMALLEST_COARSE_SIDE:
            break
        scales.append((_resize(scales[-1][0], sides, SCALE_STEP), _resize(scales[-1][1], sides, SCALE_STEP)))
    flow = first.new_zeros(2, *scales[-1][0].shape)
    for images in reversed(scales):
        if flow.shape[1:] != images[0].shape:
            flow = _resize(flow, list(images[0].shape[1:])).div_(SCALE_STEP)
        flow = _Scale(*images).solve(flow)
    return flow


class _Scale:
    """All warps of one scale.

    Planes lie one behind another without gaps. q has a margin of zeros in front, U one behind. The last column of q's
    first part and the last row of its second part stay 0, so that a difference to the left or upper neighbour is one
    subtraction of the whole buffer shifted by a pixel or a row: what it finds across an edge is 0, as it should be.
    """

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first = first
        pairs, height, width = self.shape = first.shape
        self.size = size = first.numel()
        self.masked = pairs > 1 or first.device.type != "cpu"
        self.limit = (EPSILON * _FLOW_SCALE) ** 2 * height * width  # of a pair's sum of squared changes of U
        self.second = torch.stack([second, *_centred_gradient(second)], 1).double()
        self.columns = torch.arange(width, device=first.device, dtype=torch.float32)
        self.rows = torch.arange(height, device=first.device, dtype=torch.float32)[:, None]
        self.flow = first.new_zeros(2, size + width)
        self.dual_x = first.new_zeros(2, 1 + size)
        self.dual_y = first.new_zeros(2, width + size)
        self.ratio = first.new_empty(size)  # constant part of -rho / |grad I1|^2
        self.slope = first.new_empty(2, size)  # its derivative by U
        self.gradient = first.new_empty(2, size)  # of the warped image, times tau / theta
        self.blocks = self._cut()

    def solve(self, flow: Tensor) -> Tensor:
        """Refine a flow `(2, pairs, height, width)` in pixels."""
        flow_here = self.flow[:, : self.size].view(2, *self.shape)
        torch.mul(flow, _FLOW_SCALE, out=flow_here)
        for _ in range(WARPS):
            self._warp(flow_here / _FLOW_SCALE)
            if self.masked:
                self._relax_all(flow_here)
            else:
                self._relax_one(flow_here)
        return flow_here / _FLOW_SCALE

    def _warp(self, flow: Tensor) -> None:
        """Set the constants of the data term around a flow in pixels."""
        _, height, width = self.shape
        # Places are rounded to float32 as in OpenCV, but scaled to -1..1 in double precision: rounding there would move
        # them by 1e-5 pixels, and the scheme makes 0.007 pixels of that.
        x = (flow[0] + self.columns).double().mul_(2).add_(1).div_(width).sub_(1)
        y = (flow[1] + self.rows).double().mul_(2).add_(1).div_(height).sub_(1)
        warped = F.grid_sample(self.second, torch.stack([x, y], -1), "bicubic", "zeros", align_corners=False)
        image, ix, iy = warped.float().unbind(1)
        # Where nothing is known of the motion, ix and iy are 0 and so is the step, whatever the quotient is.
        inverse = (ix * ix).addcmul_(iy, iy).clamp_min_(1e-20).reciprocal_().neg_()
        rho = (image - ix * flow[0]).sub_(iy * flow[1]).sub_(self.first)
        torch.mul(rho, inverse, out=self.ratio.view(self.shape))
        for c, slope in enumerate((ix, iy)):
            torch.mul(slope, _FLOW_SCALE, out=self.gradient[c].view(self.shape))
            torch.mul(slope, inverse, out=self.slope[c].view(self.shape)).div_(_FLOW_SCALE)

    def _relax_one(self, flow: Tensor) -> None:
        """Iterate a single pair on the CPU until it stops."""
        for _ in range(ROUNDS):
            for plane in flow[:, 0].numpy():
                cv2.medianBlur(plane, _MEDIAN, plane)  # the values of ``_median``, some 15 times faster on a CPU
            for _ in range(ITERATIONS):
                change = sum(block.move_flow() for block in self.blocks)
                for block in self.blocks:
                    block.move_dual()
                if change <= self.limit:
                    return

    def _relax_all(self, flow: Tensor) -> None:
        """Iterate all pairs together; one that has stopped is held by multiplying its changes by 0."""
        (block,) = self.blocks
        moving = torch.ones(self.shape[0], 1, device=flow.device)
        for _ in range(ROUNDS):
            filtered = torch.stack([_median(plane) for plane in flow])
            flow.copy_(torch.where(moving[..., None] > 0, filtered, flow))
            for _ in range(ITERATIONS):
                change = block.move_flows(moving)
                block.move_duals(moving)
                moving.mul_(change.view(-1, 1) > self.limit)
            if not bool(moving.any()):
                return

    def _cut(self) -> list[_Block]:
        """Cut the passes over the planes into blocks of whole rows; pairs that are masked go in one."""
        pairs, height, width = self.shape
        lines = pairs * height
        step = lines if self.masked else max(1, min(lines, _BLOCK // width))
        spare = self.flow.new_empty(7, step * width)
        return [_Block.of(self, spare, line * width, min(line + step, lines) * width) for line in range(0, lines, step)]


@dataclass(frozen=True)
class _Block:
    """Views of whole rows of a scale's planes, and temporaries of their size; `(2, pixels)` unless told otherwise."""

    pairs: int
    flow: Tensor
    flow_right: Tensor  # of the neighbours
    flow_below: Tensor
    dual_x: Tensor
    dual_x_left: Tensor
    dual_y: Tensor
    dual_y_above: Tensor
    ratio: Tensor  # (pixels,)
    slope: Tensor
    gradient: Tensor
    step: Tensor  # temporary (pixels,)
    change: Tensor  # temporary
    dx: Tensor  # temporary
    dy: Tensor  # temporary
    last_column: Tensor  # of dx
    last_row: Tensor  # of dy, (2, pairs, width); empty where the block has none

    @classmethod
    def of(cls, scale: _Scale, spare: Tensor, start: int, stop: int) -> _Block:
        """The block of the pixels from ``start`` to before ``stop``."""
        pairs, height, width = scale.shape
        size = stop - start
        here = slice(start, stop)
        dx, dy, change = (spare.flatten()[i * 2 * size : (i + 1) * 2 * size].view(2, size) for i in range(3))
        whole = scale.masked or size == height * width
        last = dy.view(2, -1, height, width)[:, :, -1] if whole else dy.view(2, -1, width)[:, -1:]
        return cls(
            pairs=pairs,
            flow=scale.flow[:, here],
            flow_right=scale.flow[:, start + 1 : stop + 1],
            flow_below=scale.flow[:, start + width : stop + width],
            dual_x=scale.dual_x[:, start + 1 : stop + 1],
            dual_x_left=scale.dual_x[:, here],
            dual_y=scale.dual_y[:, start + width : stop + width],
            dual_y_above=scale.dual_y[:, here],
            ratio=scale.ratio[here],
            slope=scale.slope[:, here],
            gradient=scale.gradient[:, here],
            step=spare.flatten()[6 * size : 7 * size],
            change=change,
            dx=dx,
            dy=dy,
            last_column=dx.view(2, -1, width)[:, :, -1],
            last_row=last if stop == scale.size else last[:, :0],
        )

    def move_flow(self) -> float:
        """Take the primal step; the sum of squared changes."""
        self._find_change()
        self.flow.add_(self.change)
        flat = self.change.flatten()
        return float(torch.dot(flat, flat))

    def move_dual(self) -> None:
        """Take the dual step."""
        self._find_slopes()
        self._take_dual_step()

    def move_flows(self, moving: Tensor) -> Tensor:
        """Take the primal step of the pairs that move, `(pairs, 1)` 0 or 1; the sums of squared changes `(pairs,)`."""
        self._find_change()
        change = self.change.view(2, self.pairs, -1)
        change.mul_(moving)
        self.flow.add_(self.change)
        length: Tensor = torch.linalg.vector_norm(change, dim=(0, 2))
        return length.square_()

    def move_duals(self, moving: Tensor) -> None:
        """Take the dual step of the pairs that move."""
        self._find_slopes()
        self.dx.view(2, self.pairs, -1).mul_(moving)
        self.dy.view(2, self.pairs, -1).mul_(moving)
        self._take_dual_step()

    def _find_change(self) -> None:
        """Set ``change`` to the primal step of U."""
        torch.addcmul(self.ratio, self.slope[0], self.flow[0], out=self.step)
        self.step.addcmul_(self.slope[1], self.flow[1]).clamp_(-_THRESHOLD, _THRESHOLD)
        torch.sub(self.dual_x, self.dual_x_left, out=self.change)
        self.change.add_(self.dual_y).sub_(self.dual_y_above).addcmul_(self.gradient, self.step)

    def _find_slopes(self) -> None:
        """Set ``dx`` and ``dy`` to the forward differences of U, 0 across the border."""
        torch.sub(self.flow_right, self.flow, out=self.dx)
        self.last_column.zero_()
        torch.sub(self.flow_below, self.flow, out=self.dy)
        self.last_row.zero_()

    def _take_dual_step(self) -> None:
        length = torch.mul(self.dx, self.dx, out=self.change).addcmul_(self.dy, self.dy).sqrt_().add_(1)
        self.dual_x.add_(self.dx, alpha=TAU).div_(length)
        self.dual_y.add_(self.dy, alpha=TAU).div_(length)


def _centred_gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """Half the differences of the neighbours `(pairs, height, width)`; at a border the pixel is its own neighbour."""
    wide = F.pad(image[None], (1, 1, 0, 0), mode="replicate")[0]
    high = F.pad(image[None], (0, 0, 1, 1), mode="replicate")[0]
    return (wide[..., 2:] - wide[..., :-2]).mul_(0.5), (high[:, 2:] - high[:, :-2]).mul_(0.5)


def _resize(planes: Tensor, sides: list[int], scale: float | None = None) -> Tensor:
    """Bilinear without antialiasing, pixel centres at halves; ``scale`` stands for the exact ratio of the sides.

    Rounded as OpenCV does it: weights in double precision, a product and a sum at once, columns before rows.
    """
    for axis, side in zip((-1, -2), reversed(sides), strict=True):
        old = planes.shape[axis]
        at = (torch.arange(side, dtype=torch.float64) + 0.5) * (old / side if scale is None else 1 / scale) - 0.5
        at.clamp_(0, old - 1)
        low = at.long()
        weight = (at - low).float().double().to(planes.device)
        low = low.to(planes.device)
        lower = planes.index_select(axis, low)
        rise = planes.index_select(axis, (low + 1).clamp_(max=old - 1)).sub_(lower)
        planes = lower.double().addcmul_(rise.double(), weight if axis == -1 else weight[:, None]).float()
    return planes


def _median(planes: Tensor) -> Tensor:
    """Median of 5 x 5 pixels `(..., height, width)`, the border repeated.

    Columns are sorted once for the five windows that hold them, pairs of columns merged once for two (the idea of
    Adams, Fast Median Filters using Separable Sorting Networks, 2021): about 120 minima and maxima.
    """
    height, width = planes.shape[-2:]
    padded = F.pad(planes.reshape(1, -1, height, width), (2, 2, 2, 2), mode="replicate")[0]
    column = _sort([padded[:, i : i + height] for i in range(5)])
    two = _merge([c[..., :-1] for c in column], [c[..., 1:] for c in column])
    left, right = [t[..., :width] for t in two], [t[..., 2 : width + 2] for t in reversed(two)]
    # The lower and the upper ten of the twenty values; each half first falls and then rises, or the other way.
    low = [torch.minimum(a, b) for a, b in zip(left, right, strict=True)]
    high = [torch.maximum(a, b) for a, b in zip(left, right, strict=True)]
    low = _sort([torch.maximum(a, b) for a, b in zip(low[:5], low[5:], strict=True)])
    high = _sort([torch.minimum(a, b) for a, b in zip(high[:5], high[5:], strict=True)])
    # With five more to come, the median is one of the ranks 7 to 12 of the twenty, or of the five.
    middle, last = low[2:] + high[:3], [c[..., 4:] for c in column]
    found = middle[5]
    for a, b in zip(middle[:5], reversed(last), strict=True):
        found = torch.minimum(found, torch.maximum(a, b))
    return found.reshape(planes.shape)


def _sort(values: list[Tensor]) -> list[Tensor]:
    """Sort tensors of one shape element by element, the least first."""
    if len(values) < 2:
        return values
    middle = len(values) // 2
    return _merge(_sort(values[:middle]), _sort(values[middle:]))


def _merge(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Merge two sorted lists of tensors (Batcher's odd-even merge)."""
    if not a or not b:
        return a or b
    if len(a) == len(b) == 1:
        return [torch.minimum(a[0], b[0]), torch.maximum(a[0], b[0])]
    even, odd = _merge(a[::2], b[::2]), _merge(a[1::2], b[1::2])
    merged = even[:1]
    for x, y in zip(odd, even[1:], strict=False):
        merged += [torch.minimum(x, y), torch.maximum(x, y)]
    return merged + odd[len(even) - 1 :] + even[len(odd) + 1 :]
