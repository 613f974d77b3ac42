"""What delivers the pixels of a video file's frames; which frames there are is decided by the scan of its packets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.container import Closing
from pipeline.decode.scan import VideoScan
from pipeline.errors import MediaFailed

if TYPE_CHECKING:
    import torch


class FrameSource(Closing):
    """The pixels of one video file, at its own size and upright, by the positions of its scan.

    A position is the same frame in every source: each frame's time of presentation is compared with the scan's.
    """

    label: str  # name and version of the library
    device: str = "cpu"  # where it decodes
    tells_damage: bool = True  # whether damaged or concealed pictures are reported, by an error or by `complaint`
    rotation: int = 0  # degrees anticlockwise that the file asks for
    pixel_format: str = ""
    size: tuple[int, int] = (0, 0)  # height, width, upright
    complaint: str = ""  # what the decoder objected to while it delivered the frames of this source

    @abstractmethod
    def frames(self, positions: Sequence[int]) -> NDArray[np.uint8]:
        """Decode frames.

        Args:
            positions: ascending, without repeats.

        Returns:
            `(positions, height, width, 3)` uint8 RGB.

        Raises:
            MediaFailed: ``decode_error``.
        """

    def tensor(self, positions: Sequence[int]) -> torch.Tensor:
        """The frames of ``frames`` as a tensor, on the device that decodes."""
        import torch

        return torch.from_numpy(self.frames(positions))


def check_times(
    scan: VideoScan, positions: Sequence[int], seconds: NDArray[np.float64], path: Path, label: str
) -> None:
    """Compare the times of delivered frames with the scan's.

    Args:
        scan: the scan.
        positions: what was asked for.
        seconds: `(positions,)` presentation times as the library tells them, on the file's own clock.
        path: the file, for messages.
        label: the library, for messages.

    Raises:
        MediaFailed: ``decode_error``; other frames than those asked for were delivered.
    """
    unit = float(scan.time_base)
    expected = scan.pts[np.asarray(positions, np.int64)] * unit
    wrong = np.flatnonzero(~(np.abs(seconds - expected) < max(unit / 2, 1e-6 * (1 + np.abs(expected).max(initial=0)))))
    if len(wrong):
        first = int(wrong[0])
        raise MediaFailed(
            "decode_error",
            f"{path.name}: {label} delivers the frame at {seconds[first]:.4f} s for the one at {expected[first]:.4f} s",
        )
