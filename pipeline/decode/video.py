"""Frames of a video file: any of them, exactly, in one decoding pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.decode.container import DECODER, PYAV_ERRORS, Closing, Facts, media_errors, open_container, video_stream
from pipeline.decode.scan import VideoScan, scan_video
from pipeline.errors import MediaFailed

_EPSILON_SECONDS = 1e-6  # a stretch that starts at a frame's time, rounded, includes that frame

Sink = Callable[[int, VideoFrame], None]


class VideoReader(Closing):
    """The frames of a video file with start <= time < end.

    Times are presentation times in seconds since the file's first frame. Pixels have the file's own size and are
    turned upright where the file says that it was filmed rotated.

    Args:
        path: the file.
        start_seconds: start of the stretch; ``None``: from the beginning.
        end_seconds: end of the stretch, exclusive; ``None``: to the end.
        min_frames: fewer frames in the stretch are an error; motion needs 2.

    Raises:
        MediaAbsent: ``no_video_stream``.
        MediaFailed: ``missing_file``, ``zero_bytes``, ``not_media``, ``truncated``, ``no_frames``, ``past_end``,
            ``one_frame``, ``decode_error``.
    """

    def __init__(
        self,
        path: Path,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        min_frames: int = 2,
    ) -> None:
        self._path = path
        self._scan = scan_video(path)
        self._first, self._stop = _stretch(self._scan, start_seconds, end_seconds, path)
        self.num_frames = self._stop - self._first
        if self.num_frames < min_frames:
            raise MediaFailed(
                "one_frame", f"{path.name} has {self.num_frames} frame in the stretch; at least {min_frames} are needed"
            )
        self._container: InputContainer | None = None
        self._stream: VideoStream | None = None
        self._reformatter = VideoReformatter()
        span = int(self._scan.pts[self._stop - 1] - self._scan.pts[self._first]) * self._scan.time_base
        self.rate_hz: float | None = float((self.num_frames - 1) / span) if self.num_frames > 1 else None
        try:
            probe = self._probe()
        except MediaFailed:
            self.close()
            raise
        self._turns = probe.rotation // 90 if probe.rotation % 90 == 0 else 0
        self._coded_size = (probe.height, probe.width)
        self._size = self._coded_size[::-1] if self._turns % 2 else self._coded_size
        self.facts = self._facts(probe, end_seconds)

    def close(self) -> None:
        """Close the file; reading again opens it again."""
        if self._container is not None:
            self._container.close()
        self._container = self._stream = None

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
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(indices):
            if not 0 <= index < self.num_frames:
                raise IndexError(f"frame {index} is outside 0..{self.num_frames - 1}")
            rows.setdefault(self._first + int(index), []).append(row)
        frames = np.empty((len(indices), *self._size, 3), np.uint8)

        def keep(position: int, frame: VideoFrame) -> None:
            frames[rows[position]] = self._pixels(frame)

        if rows:
            self._deliver(sorted(rows), keep)
        return frames

    def _facts(self, probe: VideoFrame, end_seconds: float | None) -> Facts:
        times = self._scan.times
        period = 1 / self.rate_hz if self.rate_hz else 0.0
        content_end = float(times[self._stop - 1]) + period
        missing = 0.0 if end_seconds is None or self._stop < len(times) else end_seconds - content_end
        facts: Facts = {
            "decoder": DECODER,
            "container": self._scan.container,
            "codec": self._scan.codec,
            "pixel_format": probe.format.name,
            "height": self._size[0],
            "width": self._size[1],
            "rotation": probe.rotation,  # degrees anticlockwise, applied where a multiple of 90
            "num_frames": self.num_frames,
            "first_frame": self._first,
            "first_seconds": float(times[self._first]),
            "seconds": content_end - float(times[self._first]),
            "missing_seconds": max(0.0, missing),  # how far the stretch reaches past the last frame
            "file_frames": len(times),
            "header_frames": self._scan.header_frames,
            "leading_frames": self._scan.leading_frames,
            "addressing": "order" if self._scan.by_order else "timestamps",
        }
        if self.rate_hz is not None:
            facts["rate_hz"] = self.rate_hz
        return facts

    def _pixels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """`(height, width, 3)` RGB, upright."""
        if (frame.height, frame.width) != self._coded_size:
            raise MediaFailed(
                "decode_error",
                f"{self._path.name}: frame size changes from {self._coded_size[1]}x{self._coded_size[0]} "
                f"to {frame.width}x{frame.height}",
            )
        with media_errors("decode_error", f"{self._path.name}: conversion to RGB"):
            rgb = np.asarray(self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), np.uint8)
        return np.rot90(rgb, self._turns) if self._turns else rgb

    def _probe(self) -> VideoFrame:
        """Decode the first frame that a pass for the start of the stretch meets: it knows size and rotation."""
        for seek_to, _ in self._approaches(self._first):
            with suppress(MediaFailed):  # damage is judged by the pass from the start
                if self._seek(seek_to):
                    for frame in self._frames():
                        return frame
        self._rewind()
        for frame in self._frames():
            return frame
        raise MediaFailed("decode_error", f"{self._path.name}: {len(self._scan.pts)} packets, no frame comes out")

    def _deliver(self, wanted: list[int], keep: Sink) -> None:
        """Hand every wanted position's frame to ``keep``: from the nearest key frame, else from the start."""
        for seek_to, start in self._approaches(wanted[0]):
            with suppress(MediaFailed):  # damage is judged by the pass from the start
                if self._seek(seek_to) and self._by_timestamp(wanted, keep, start, trusted=False):
                    return
        self._rewind()
        if self._scan.by_order:
            complete = self._by_position(wanted, keep)
        else:
            complete = self._by_timestamp(wanted, keep, int(self._scan.pts[0]), trusted=True)
        if not complete:
            raise MediaFailed(
                "decode_error",
                f"{self._path.name}: not all of frames {wanted[0]}..{wanted[-1]} come out of the decoder, "
                f"{len(self._scan.pts)} are in the file",
            )

    def _by_position(self, wanted: list[int], keep: Sink) -> bool:
        """Pick frames by their position in the decoder's output; False: it ended before the last one."""
        remaining = set(wanted)
        for position, frame in enumerate(self._frames()):
            self._check(frame, position)
            if position in remaining:
                remaining.discard(position)
                keep(position, frame)
            if not remaining:
                return True
        return False

    def _by_timestamp(self, wanted: list[int], keep: Sink, start: int, *, trusted: bool) -> bool:
        """Pick frames by presentation timestamp, in one forward pass.

        Args:
            wanted: ascending positions.
            keep: receives position and frame.
            start: timestamp of the key frame the pass starts at; frames shown before it are leading pictures of an
                open group of pictures and not decodable from here.
            trusted: the pass starts at the beginning of the file; otherwise every frame from ``start`` on has to come
                out, in order and beginning with the key frame itself, a whole picture (with intra refresh it is not),
                or else the seek is not trusted.

        Returns:
            Whether all wanted frames came.
        """
        pts, queue, previous = self._scan.pts, list(reversed(wanted)), start - 1
        expected = int(np.searchsorted(pts, start))
        for frame in self._frames():
            if frame.pts is None or frame.pts < start:
                continue
            if frame.pts <= previous:
                return False
            previous = frame.pts
            position = int(np.searchsorted(pts, frame.pts))
            if not trusted and (position != expected or (frame.pts == start and frame.pict_type != PictureType.I)):
                return False
            expected = position + 1
            self._check(frame, position)
            if int(pts[queue[-1]]) == frame.pts:
                keep(queue.pop(), frame)
            elif position > queue[-1]:
                return False
            if not queue:
                return True
        return False

    def _check(self, frame: VideoFrame, position: int) -> None:
        """Damage before a wanted frame spoils it too: it is predicted from what precedes it."""
        if frame.is_corrupt:
            raise MediaFailed("decode_error", f"{self._path.name}: frame {position} is damaged")

    def _frames(self) -> Iterator[VideoFrame]:
        """Decode from where the container stands."""
        container, stream = self._opened()
        with media_errors("decode_error", f"{self._path.name}: decoding"):
            for packet in container.demux(stream):
                yield from packet.decode()

    def _approaches(self, position: int) -> list[tuple[int, int]]:
        """Where to seek for a position, and the key frame to trust frames from: timestamps, best first.

        The key frame is the last one shown at or before the position. Because it is chosen by the time it is shown
        at, a frame that precedes a key frame on the screen and follows it in the file (a leading picture of an open
        group) is decoded from the key frame before. Some containers seek too far; then seeking to the key frame
        before helps.
        """
        if self._scan.by_order:
            return []
        keys = self._scan.keys
        last = int(np.searchsorted(keys, self._scan.pts[position], side="right")) - 1
        if last < 0:
            return []
        return [(int(keys[i]), int(keys[last])) for i in dict.fromkeys((last, max(0, last - 1)))]

    def _opened(self) -> tuple[InputContainer, VideoStream]:
        if self._container is None or self._stream is None:
            self._container = open_container(self._path)
            self._stream = video_stream(self._container, self._path)
        return self._container, self._stream

    def _rewind(self) -> None:
        """Stand at the first packet; opening anew is exact in every container, seeking to the start is not."""
        self.close()
        self._opened()

    def _seek(self, key: int) -> bool:
        """Stand at the key frame with this timestamp or an earlier one; False: the container cannot seek."""
        container, stream = self._opened()
        try:
            container.seek(key, stream=stream, backward=True)
        except PYAV_ERRORS:
            return False
        return True


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
