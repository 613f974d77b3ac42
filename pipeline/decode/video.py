"""Frames of a video file: any of them, exactly, in one decoding pass, through whichever library is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.container import Closing, Facts
from pipeline.decode.decoders import AUTO, DECODERS, Wanted, decoder_chain
from pipeline.decode.pyav_frames import PyavFrames
from pipeline.decode.scan import VideoScan, scan_and_open
from pipeline.decode.source import FrameSource
from pipeline.errors import MediaFailed

if TYPE_CHECKING:
    import torch

Pixels: TypeAlias = "NDArray[np.uint8] | torch.Tensor"

_EPSILON_SECONDS = 1e-6  # a stretch that starts at a frame's time, rounded, includes that frame
# What would be noticed of damage in codecs whose arithmetic code turns other bytes into other pictures and into no
# error; lost packets and holes always are.
_NOTICED = {"h264": "holes and most changes", "av1": "holes and most changes", "hevc": "holes", "vp8": "holes"}
_MOST_REPEATED = 0.25  # share of exact repeats in a stretch that the decoder complained about
_SKIPPED_SHARE = 0.25  # of the median packet: a smaller one may well say "as before"
_SKIPPED_BYTES = 64


class VideoReader(Closing):
    """The frames of a video file with start <= time < end.

    Times are presentation times in seconds since the file's first frame. Pixels have the file's own size and are
    turned upright where the file says that it was filmed rotated. The scan of the file's packets decides which frames
    there are, whichever library decodes them.

    Args:
        path: the file.
        start_seconds: start of the stretch; ``None``: from the beginning.
        end_seconds: end of the stretch, exclusive; ``None``: to the end.
        min_frames: fewer frames in the stretch are an error; motion needs 2.
        decoder: a name of ``DECODERS``, or ``auto``: the best one that can read this file, the next one where it
            fails, which the facts then tell under ``fallback``.
        device: where ``read_tensor`` puts the pixels, ``cpu`` or ``cuda:N``.

    Raises:
        MediaAbsent: ``no_video_stream``.
        MediaFailed: ``missing_file``, ``zero_bytes``, ``not_media``, ``truncated``, ``no_frames``, ``past_end``,
            ``one_frame``, ``decode_error``.
        UsageError: no such decoder here.
    """

    def __init__(
        self,
        path: Path,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        min_frames: int = 2,
        *,
        decoder: str = AUTO,
        device: str = "cpu",
    ) -> None:
        self._path, self._decoder, self.device = path, decoder, device
        self._fallback: list[str] = []
        self._source: FrameSource | None = None
        self._repeated = 0
        self._scan, container = scan_and_open(path)
        self._container = container
        try:
            self._first, self._stop = _stretch(self._scan, start_seconds, end_seconds, path)
            self.num_frames = self._stop - self._first
            if self.num_frames < min_frames:
                raise MediaFailed(
                    "one_frame",
                    f"{path.name} has {self.num_frames} frame in the stretch; at least {min_frames} are needed",
                )
            span = int(self._scan.pts[self._stop - 1] - self._scan.pts[self._first]) * self._scan.time_base
            self.rate_hz: float | None = float((self.num_frames - 1) / span) if self.num_frames > 1 else None
            self._names = list(decoder_chain(decoder, device, self._scan))
            self._source = self._open()
        except BaseException:
            self.close()
            raise
        self._end_seconds = end_seconds

    def close(self) -> None:
        """Close the file; reading again opens it again."""
        if self._source is not None:
            self._source.close()
        self._source = None
        self._close_container()

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Decode frames of the stretch.

        Args:
            indices: positions in the stretch, 0 <= index < ``num_frames``, in any order, with or without repeats.

        Returns:
            `(indices, height, width, 3)` uint8, RGB, in the order asked for.

        Raises:
            MediaFailed: ``decode_error``, a frame is damaged or does not come.
            IndexError: an index outside the stretch.
        """
        positions, rows = self._positions(indices)
        while True:
            source = self._source = self._source or self._open()
            try:
                frames = source.frames(positions)
                self._compare(source, positions, frames)
                repeated = self._repeats(source, positions, frames)
            except MediaFailed as error:
                self._next(source, error)
                continue
            self._repeated += repeated
            return frames if rows is None else frames[rows]

    def read_tensor(self, indices: Sequence[int]) -> torch.Tensor:
        """The frames of ``read`` as a tensor on ``device``; frames decoded there never leave it.

        Returns:
            `(indices, height, width, 3)` uint8, RGB.

        Raises:
            MediaFailed, IndexError: as ``read``.
        """
        import torch

        source = self._source = self._source or self._open()
        if source.device == "cpu":
            return torch.from_numpy(self.read(indices)).to(self.device)
        positions, rows = self._positions(indices)
        try:
            frames = source.tensor(positions)
            self._repeated += self._repeats(source, positions, frames)
        except MediaFailed as error:
            self._next(source, error)
            return self.read_tensor(indices)
        return frames if rows is None else frames[torch.from_numpy(rows).to(frames.device)]

    def check(self) -> None:
        """Decode every frame of the stretch once with PyAV, which tells what is damaged; keeps none of them.

        Raises:
            MediaFailed: ``decode_error``, a frame is damaged or does not come.
        """
        self._scan.check_damage(range(self._first, self._stop), self._path)
        with PyavFrames(self._path, self._scan, first=self._first) as source:
            source.check(self._first, self._stop)

    @property
    def facts(self) -> Facts:
        """What is known about the stretch and how it was decoded: plain JSON values."""
        source = self._source = self._source or self._open()
        times = self._scan.times
        period = 1 / self.rate_hz if self.rate_hz else 0.0
        content_end = float(times[self._stop - 1]) + period
        missing = 0.0 if self._end_seconds is None or self._stop < len(times) else self._end_seconds - content_end
        facts: Facts = {
            "decoder": source.label,
            "decode_device": source.device,
            "container": self._scan.container,
            "codec": self._scan.codec,
            "pixel_format": source.pixel_format,
            "height": source.size[0],
            "width": source.size[1],
            "rotation": source.rotation,  # degrees anticlockwise, applied where a multiple of 90
            "num_frames": self.num_frames,
            "first_frame": self._first,
            "first_seconds": float(times[self._first]),
            "seconds": content_end - float(times[self._first]),
            "missing_seconds": max(0.0, missing),  # how far the stretch reaches past the last frame
            "file_frames": len(times),
            "header_frames": self._scan.header_frames,
            "leading_frames": self._scan.leading_frames,
            "addressing": "order" if self._scan.by_order else "timestamps",
            "repeated_frames": self._repeated,  # delivered frames that are exact repeats of the one before
        }
        if self.rate_hz is not None:
            facts["rate_hz"] = self.rate_hz
        if source.complaint:
            facts["complaint"] = source.complaint  # what FFmpeg objects to though it marks no frame as damaged
        noticed = _NOTICED.get(self._scan.codec, "") if source.tells_damage else "nothing"
        if noticed:
            facts["damage_noticed"] = noticed  # which damage would be an error; absent: nearly all of it
        if self._fallback:
            facts["fallback"] = "; ".join(self._fallback)
        return facts

    def _positions(self, indices: Sequence[int]) -> tuple[list[int], NDArray[np.int64] | None]:
        """Ascending positions in the file without repeats, and each index's row among them; ``None``: as they are."""
        for index in indices:
            if not 0 <= index < self.num_frames:
                raise IndexError(f"frame {index} is outside 0..{self.num_frames - 1}")
        given = np.asarray(indices, np.int64).reshape(-1)
        unique, rows = np.unique(given, return_inverse=True)
        positions = [self._first + index for index in unique.tolist()]
        self._scan.check_damage(positions, self._path)
        return positions, None if len(unique) == len(given) and bool((np.diff(given) > 0).all()) else rows

    def _open(self) -> FrameSource:
        """Open the file with the first decoder that can; the others are noted."""
        while True:
            name = self._names[0]
            container, self._container = (self._container, None) if name == "pyav" else (None, self._container)
            wanted = Wanted(self._path, self._scan, container, self._first, self._stop, self.device)
            try:
                source = DECODERS[name].open(wanted)
            except MediaFailed as error:
                self._pass_over(error)
                continue
            self._close_container()
            return source

    def _close_container(self) -> None:
        container, self._container = getattr(self, "_container", None), None
        if container is not None:
            container.close()

    def _pass_over(self, error: MediaFailed) -> None:
        """Go on with the next decoder, or fail for the reason the last one gives."""
        if len(self._names) == 1:
            raise error
        self._fallback.append(f"{self._names.pop(0)}: {error.detail}")

    def _next(self, source: FrameSource, error: MediaFailed) -> None:
        self._pass_over(error)
        source.close()
        self._source = None

    def _compare(self, source: FrameSource, positions: list[int], frames: NDArray[np.uint8]) -> None:
        """Frames over which a decoder complained that marks no damage are compared with PyAV's, which does.

        Raises:
            MediaFailed: ``decode_error``, PyAV finds them damaged, or has other pixels.
        """
        if not source.complaint or isinstance(source, PyavFrames):
            return
        with DECODERS["pyav"].open(Wanted(self._path, self._scan, None, positions[0], self._stop, "cpu")) as judge:
            same = judge.frames(positions)
        if not np.array_equal(same, frames):
            raise MediaFailed("decode_error", f"{self._path.name}: {source.complaint}; PyAV has other pixels")
        source.complaint = ""

    def _repeats(self, source: FrameSource, positions: list[int], frames: Pixels) -> int:
        """Count delivered frames that repeat the one before.

        Raises:
            MediaFailed: ``decode_error``, they stand for damage.
        """
        repeats = [row for row in range(1, len(positions)) if _equal(frames[row - 1], frames[row])]
        if not repeats or len(repeats) <= _MOST_REPEATED * (len(positions) - 1):
            return len(repeats)
        sizes = self._scan.sizes
        small = max(_SKIPPED_BYTES, _SKIPPED_SHARE * float(np.median(sizes)))
        coded = sum(int(sizes[positions[row - 1] + 1 : positions[row] + 1].max()) > small for row in repeats)
        if source.complaint or (not source.tells_damage and coded > _MOST_REPEATED * (len(positions) - 1)):
            raise MediaFailed(
                "decode_error",
                f"{self._path.name}: {len(repeats)} of {len(positions)} frames repeat the one before, "
                f"{source.complaint or 'though their packets hold pictures'}",
            )
        return len(repeats)


def _equal(one: Pixels, other: Pixels) -> bool:
    """Whether two frames are equal; a few of their pixels usually tell that they are not."""
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one[::16, ::16], other[::16, ::16]) and np.array_equal(one, other))
    import torch

    as_tensor = torch.as_tensor(other)
    return torch.equal(one[::16, ::16], as_tensor[::16, ::16]) and torch.equal(one, as_tensor)


def _stretch(scan: VideoScan, start_seconds: float | None, end_seconds: float | None, path: Path) -> tuple[int, int]:
    """Positions [first, stop) of the frames with start <= time < end."""
    times = scan.times
    first = 0 if start_seconds is None else int(np.searchsorted(times, start_seconds - _EPSILON_SECONDS))
    stop = len(times) if end_seconds is None else int(np.searchsorted(times, end_seconds - _EPSILON_SECONDS))
    if first >= len(times):
        raise MediaFailed(
            "past_end", f"{path.name}: the stretch starts at {start_seconds} s, the last frame is at {times[-1]:.3f} s"
        )
    if stop <= first:
        raise MediaFailed("no_frames", f"{path.name} has no frame between {start_seconds} s and {end_seconds} s")
    return first, stop
