"""Precomputed optical flow: two grey picture sequences, horizontal (u) and vertical (v) motion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode.container import Closing, Facts
from pipeline.decode.decoders import AUTO
from pipeline.decode.frames import FrameFolder
from pipeline.decode.video import VideoReader
from pipeline.errors import MediaFailed

if TYPE_CHECKING:
    import torch

_PAIRS = (("u", "v"), ("flow_x", "flow_y"))  # horizontal, vertical


class FlowReader(Closing):
    """A clip's stretch of optical flow; ``open_flow`` makes it.

    Args:
        horizontal: the u component.
        vertical: the v component.
        path: what the user named, for messages.

    Raises:
        MediaFailed: ``frame_gap``, the components differ in number or size of their frames.
    """

    def __init__(self, horizontal: FrameFolder | VideoReader, vertical: FrameFolder | VideoReader, path: Path) -> None:
        self._components = (horizontal, vertical)
        self.num_frames: int = horizontal.num_frames
        self.rate_hz: float | None = horizontal.rate_hz
        self.device = horizontal.device
        both = (horizontal.facts, vertical.facts)
        for name in ("num_frames", "width", "height"):
            u, v = (facts[name] for facts in both)
            if u != v:
                self.close()
                raise MediaFailed(
                    "frame_gap", f"{path.name}: {name} is {u} in the horizontal flow and {v} in the vertical"
                )

    @property
    def facts(self) -> Facts:
        """Those of the horizontal component; where the vertical one was decoded with trouble, they say so too."""
        u, v = (component.facts for component in self._components)
        return {**u, **{name: v[name] for name in ("fallback", "complaint") if name in v}}

    def close(self) -> None:
        """Close the files."""
        for component in self._components:
            component.close()

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Decode flow of the stretch.

        Args:
            indices: positions in the stretch, 0 <= index < ``num_frames``, in any order, with or without repeats.

        Returns:
            `(indices, 2, height, width)` uint8; channel 0 is u (horizontal), 1 is v (vertical); 128 is no motion in
            the usual encoding.

        Raises:
            MediaFailed: ``bad_image``, ``decode_error``.
            IndexError: an index outside the stretch.
        """
        return np.stack([_grey(component.read(indices)) for component in self._components], axis=1)

    def read_tensor(self, indices: Sequence[int]) -> torch.Tensor:
        """The flow of ``read`` as a tensor on ``device``; it is made grey on the CPU, where it is exact."""
        import torch

        return torch.from_numpy(self.read(indices)).to(self.device)

    def check(self) -> None:
        """Decode every picture of both components once; keeps none of them.

        Raises:
            MediaFailed: ``bad_image``, ``decode_error``.
        """
        for component in self._components:
            component.check()


def open_flow(
    path: Path,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    rate_hz: float | None = None,
    numbers: tuple[int, int] | None = None,
    *,
    decoder: str = AUTO,
    device: str = "cpu",
) -> FlowReader:
    """Open precomputed optical flow.

    Args:
        path: a folder with the folders ``u`` and ``v`` or ``flow_x`` and ``flow_y``; one of such two folders, or a
            folder inside one (``u/<video>``); or one of two videos ``..._flow_x.mp4`` and ``..._flow_y.mp4``.
        start_seconds: start of the stretch; ``None``: from the beginning.
        end_seconds: end of the stretch, exclusive; ``None``: to the end.
        rate_hz: rate of the flow pictures; needed with a start or an end of a folder.
        numbers: of a folder, the stretch as (first number, number behind the last) instead of times.
        decoder: of files, a name of ``DECODERS``, or ``auto``. On a GPU flow files are decoded by the CPU all the
            same: levels are displacements, and a GPU's colours differ by a few levels.
        device: where ``read_tensor`` of the reader puts the pixels, ``cpu`` or ``cuda:N``.

    Raises:
        MediaFailed: ``no_flow``, ``frame_gap`` and whatever reading the frames of either component raises.
        UsageError: no such decoder here.
    """
    first, second = _components(path)
    if path.is_file():
        return _flow_files(first, second, (start_seconds, end_seconds), path, decoder, device)
    stretch = (start_seconds, end_seconds, rate_hz)
    u = FrameFolder(first, *stretch, numbers=numbers, grey=True, min_frames=1)
    v = FrameFolder(second, *stretch, numbers=numbers, grey=True, min_frames=1)
    if u.numbers != v.numbers:
        raise MediaFailed(
            "frame_gap",
            f"{path.name}: {first.name} has frames {u.numbers[0]}..{u.numbers[-1]}, "
            f"{second.name} has {v.numbers[0]}..{v.numbers[-1]}",
        )
    return FlowReader(u, v, path)


def _flow_files(
    first: Path, second: Path, stretch: tuple[float | None, float | None], path: Path, decoder: str, device: str
) -> FlowReader:
    """Open two videos; they are decoded on the CPU."""
    u = VideoReader(first, *stretch, 1, decoder=decoder)
    try:
        v = VideoReader(second, *stretch, 1, decoder=decoder)
    except BaseException:
        u.close()
        raise
    u.device = v.device = device
    return FlowReader(u, v, path)


def _components(path: Path) -> tuple[Path, Path]:
    """Paths of u and v."""
    if not path.exists():
        raise MediaFailed("missing_file", f"{path.name} does not exist in {path.parent}")
    pair = _pair_of_file(path) if path.is_file() else _pair_of_folder(path)
    if pair is None:
        raise MediaFailed(
            "no_flow",
            f"{path.name} is no optical flow; expected a folder with u/ and v/ or flow_x/ and flow_y/, "
            "or a file named ..._flow_x with a sibling ..._flow_y",
        )
    for component in pair:
        if not component.exists():
            raise MediaFailed("no_flow", f"{path.name}: {component.name} is missing in {component.parent.name}")
    return pair


def _pair_of_file(path: Path) -> tuple[Path, Path] | None:
    for own, other in (("_flow_x", "_flow_y"), ("_flow_y", "_flow_x")):
        if path.stem.endswith(own):
            sibling = path.with_name(path.stem.removesuffix(own) + other + path.suffix)
            return (path, sibling) if own == "_flow_x" else (sibling, path)
    return None


def _pair_of_folder(path: Path) -> tuple[Path, Path] | None:
    for u, v in _PAIRS:
        if (path / u).is_dir() or (path / v).is_dir():
            return path / u, path / v
    for u, v in _PAIRS:  # published flow often has u/<video> and v/<video>
        for depth, part in enumerate(reversed(path.parts)):
            if part in (u, v) and depth <= 2:
                head, tail = path.parts[: -depth - 1], path.parts[len(path.parts) - depth :]
                return Path(*head, u, *tail), Path(*head, v, *tail)
    return None


def _grey(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`(n, height, width)` luminance of RGB frames; grey ones stay as they are."""
    if frames.ndim == 3:
        return frames
    grey = np.empty(frames.shape[:3], np.uint8)
    for row, frame in enumerate(frames):
        grey[row] = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return grey
