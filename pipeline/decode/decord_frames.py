"""Frames decoded with decord (the maintained fork, decord2), for comparisons; nothing chooses it by itself.

It gives neighbouring frames for files with open groups of pictures and for cut files, and the times it tells are those
of its table, not of the frames it decoded: such files are refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.complaints import LogLibrary, complaints, log_library
from pipeline.decode.scan import VideoScan
from pipeline.decode.source import FrameSource, check_times
from pipeline.decode.torchcodec_frames import UNNOTICED
from pipeline.errors import MediaFailed


def _errors() -> tuple[type[Exception], ...]:
    """What decord raises for media it cannot read."""
    import decord

    return decord.DECORDError, RuntimeError, ValueError, IndexError


@cache
def why_not_decord() -> str:
    """Why decord cannot be used here; empty: it can."""
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        return f"it is not installed or does not load ({str(error).strip().splitlines()[:1]})"
    decord.logging.set_level(decord.logging.QUIET)
    return ""


@cache
def _library() -> LogLibrary | None:
    return log_library("decord2.libs")


class DecordFrames(FrameSource):
    """The pixels of a video file through decord.

    Args:
        path: the file.
        scan: its scan.

    Raises:
        MediaFailed: ``decode_error``, decord cannot open the file or counts other frames than the scan.
    """

    def __init__(self, path: Path, scan: VideoScan) -> None:
        import decord

        self.label = f"decord {decord.__version__}"
        self._path, self._scan = path, scan
        if scan.by_order:
            raise MediaFailed("decode_error", f"{path.name}: its frames are known by their order only, not by times")
        if scan.has_open_groups:
            raise MediaFailed("decode_error", f"{path.name} has open groups of pictures; decord gives other frames")
        self._library = _library()
        self.tells_damage = self._library is not None and scan.codec not in UNNOTICED
        try:
            self._reader: Any = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
            count = len(self._reader)
            if count != len(scan.pts):
                raise MediaFailed("decode_error", f"{path.name}: decord counts {count} frames, {len(scan.pts)} there")
            self.size = tuple(self._reader[0].shape[:2])
        except _errors() as error:
            raise MediaFailed("decode_error", f"{path.name}: decord: {_reason(error)}") from error

    def close(self) -> None:
        """Release the file."""
        self._reader = None

    def frames(self, positions: Sequence[int]) -> NDArray[np.uint8]:
        """Decode frames.

        Args:
            positions: ascending, without repeats.

        Returns:
            `(positions, height, width, 3)` uint8 RGB.

        Raises:
            MediaFailed: ``decode_error``.
        """
        if not positions:
            return np.empty((0, *self.size, 3), np.uint8)
        if self._reader is None:
            raise MediaFailed("decode_error", f"{self._path.name} is closed")
        try:
            if self._library is None:
                batch = self._reader.get_batch(list(positions))
            else:
                with complaints(self._library) as said:
                    batch = self._reader.get_batch(list(positions))
                if said and not self.complaint:
                    self.complaint = said[0]
            frames = np.asarray(batch.asnumpy(), np.uint8)
            times = np.asarray(self._reader.get_frame_timestamp(list(positions)))[:, 0]
        except _errors() as error:
            raise MediaFailed("decode_error", f"{self._path.name}: decord: {_reason(error)}") from error
        origin = float(self._scan.pts[0]) * float(self._scan.time_base)
        check_times(self._scan, positions, times - _origin_seconds(self._reader) + origin, self._path, "decord")
        return frames


def _reason(error: Exception) -> str:
    """The first line of decord's message without time and place in its source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition("Check failed: ")[-1][:200] or (
        type(error).__name__
    )


def _origin_seconds(reader: Any) -> float:
    """Time of the first frame as decord tells it, in seconds; some containers do not start at 0."""
    return float(np.asarray(reader.get_frame_timestamp([0]))[0, 0])
