"""Frames decoded with torchcodec, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.complaints import LogLibrary, complaints, log_library
from pipeline.decode.scan import VideoScan
from pipeline.decode.source import FrameSource, check_times
from pipeline.errors import MediaFailed

if TYPE_CHECKING:
    import torch

_ERRORS = (RuntimeError, ValueError, IndexError)  # what torchcodec raises for media it cannot read
UNNOTICED = ("vp8", "vp9")  # FFmpeg's own decoders of these turn damaged data into pictures and say nothing
_MARGIN_GROUPS = 2  # groups of pictures before the stretch that the decoder is told of, so that it may seek to them


@cache
def why_not_torchcodec() -> str:
    """Why torchcodec cannot be used here; empty: it can. Imports torch where torchcodec is installed."""
    try:
        import torchcodec
    except ImportError as error:
        return f"it is not installed or does not load ({_first_line(error)})"
    except (OSError, RuntimeError) as error:
        return f"it does not load ({_first_line(error)})"
    if getattr(torchcodec, "ffmpeg_major_version", None) is None:
        return "it finds no FFmpeg libraries; install FFmpeg 4 to 9 (apt-get install ffmpeg)"
    return ""


@cache
def why_not_torchcodec_cuda() -> str:
    """Why torchcodec cannot decode on a GPU here; empty: it can."""
    if reason := why_not_torchcodec():
        return reason
    import torch

    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no CUDA device"
    return ""


@cache
def _library() -> LogLibrary | None:
    """Where the messages of torchcodec's FFmpeg come from; call it when torchcodec is imported."""
    return log_library("")


class TorchcodecFrames(FrameSource):
    """The pixels of a video file through torchcodec, addressed by the scan's own table of frames.

    The decoder gets the timestamps of the stretch from the scan instead of reading the whole file for them again.

    Args:
        path: the file.
        scan: its scan.
        first: first position that will be asked for.
        stop: behind the last one.
        device: ``cpu`` or ``cuda:N``.

    Raises:
        MediaFailed: ``decode_error``, torchcodec cannot open the file, or its frames are known by their order only.
    """

    def __init__(self, path: Path, scan: VideoScan, first: int, stop: int, device: str = "cpu") -> None:
        import torchcodec
        from torchcodec.decoders import VideoDecoder

        self.label = f"torchcodec {torchcodec.__version__}, FFmpeg {torchcodec.ffmpeg_major_version}"
        self._path, self._scan, self.device = path, scan, device
        if scan.by_order:
            raise MediaFailed("decode_error", f"{path.name}: its frames are known by their order only, not by times")
        self._library = _library() if device == "cpu" else None
        self.tells_damage = self._library is not None and scan.codec not in UNNOTICED
        self._offset, table = _table(scan, first, stop)
        try:
            self._decoder: Any = VideoDecoder(
                str(path.absolute()),
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device=device,
                stream_index=scan.stream_index,
                custom_frame_mappings=table,
            )
            on_cpu = device != "cpu" and bool(self._decoder.cpu_fallback)
        except _ERRORS as error:
            raise MediaFailed("decode_error", f"{path.name}: torchcodec: {_first_line(error)}") from error
        if on_cpu:
            raise MediaFailed("decode_error", f"{path.name}: {self._decoder.cpu_fallback}")
        told = self._decoder.metadata
        self.rotation = round(told.rotation or 0)
        self.pixel_format = told.pixel_format or ""
        self.size = (told.height or 0, told.width or 0)
        if self.rotation % 180:
            self.size = self.size[::-1]

    def close(self) -> None:
        """Release the file."""
        self._decoder = None

    def tensor(self, positions: Sequence[int]) -> torch.Tensor:
        """Decode frames.

        Args:
            positions: ascending, without repeats.

        Returns:
            `(positions, height, width, 3)` uint8 RGB on ``device``.

        Raises:
            MediaFailed: ``decode_error``.
        """
        import torch

        if not positions:
            return torch.empty((0, *self.size, 3), dtype=torch.uint8, device=self.device)
        if self._decoder is None:
            raise MediaFailed("decode_error", f"{self._path.name} is closed")
        indices = [position - self._offset for position in positions]
        try:
            if self._library is None:
                batch = self._decoder.get_frames_at(indices)
            else:
                with complaints(self._library) as said:
                    batch = self._decoder.get_frames_at(indices)
                if said and not self.complaint:
                    self.complaint = said[0]
        except _ERRORS as error:
            raise MediaFailed("decode_error", f"{self._path.name}: torchcodec: {_first_line(error)}") from error
        check_times(self._scan, positions, batch.pts_seconds.cpu().numpy(), self._path, "torchcodec")
        data: torch.Tensor = batch.data
        self.size = (int(data.shape[1]), int(data.shape[2]))
        return data

    def frames(self, positions: Sequence[int]) -> NDArray[np.uint8]:
        """The frames of ``tensor`` in host memory."""
        pixels: NDArray[np.uint8] = self.tensor(positions).cpu().numpy()
        return pixels


def _table(scan: VideoScan, first: int, stop: int) -> tuple[int, str]:
    """The scan's frames around a stretch in the JSON that torchcodec reads, and the position of the first of them."""
    begin = first
    for _ in range(_MARGIN_GROUPS):
        begin = scan.key_before(max(0, begin - 1))
    end = min(len(scan.pts), stop + 1)
    pts = scan.pts[begin:end]
    steps = np.diff(scan.pts[begin : end + 1])
    durations = np.append(steps, steps[-1:] if len(steps) else 1)[: len(pts)]
    is_key = np.isin(pts, scan.keys)
    rows = (
        f'{{"pts":{stamp},"duration":{max(1, length)},"key_frame":{int(key)}}}'
        for stamp, length, key in zip(pts.tolist(), durations.tolist(), is_key.tolist(), strict=True)
    )
    return begin, f'{{"frames":[{",".join(rows)}]}}'


def _first_line(error: BaseException) -> str:
    """The first line of what a library says: the rest is a stack of its own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
