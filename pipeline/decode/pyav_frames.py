"""Frames decoded with PyAV: the reader that every other one is measured by, because it tells what was damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.decode.container import (
    DECODER,
    PYAV_ERRORS,
    explain,
    is_flush,
    media_errors,
    open_container,
    read_only,
    video_stream,
)
from pipeline.decode.scan import VideoScan
from pipeline.decode.source import FrameSource
from pipeline.errors import MediaFailed

# FFmpeg's own VP8 and VP9 decoders turn damaged data into pictures and say nothing; libvpx notices. Pixels are equal.
_NOTICING = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_SHORTEST_JUMP = 8  # frames; a seek throws away those that the decoder holds back to reorder them
# An invalid bit stream is an error instead of a picture; checksums, where HEVC streams carry them, are compared.
_STRICT = {"err_detect": "explode+crccheck"}


class PyavFrames(FrameSource):
    """The pixels of a video file through PyAV and the FFmpeg it brings.

    Args:
        path: the file.
        scan: its scan.
        container: the file, open, from the scan.
        first: position that frames will be asked from; the frame met on the way there tells size and rotation.

    Raises:
        MediaFailed: ``decode_error``, no frame comes out.
    """

    label = DECODER

    def __init__(self, path: Path, scan: VideoScan, container: InputContainer | None = None, first: int = 0) -> None:
        self._path, self._scan = path, scan
        self._strict = True
        self._container: InputContainer | None = None
        self._stream: VideoStream | None = None
        self._codec: VideoCodecContext | None = None
        self._own_codec = False
        self._reformatter = VideoReformatter()
        self._run: _Run | None = None
        if container is not None:
            self._take(container)
        try:
            probe = self._probe(first)
        except MediaFailed:
            self.close()
            raise
        self.rotation = self._rotation(probe)
        self._turns = self.rotation // 90 if self.rotation % 90 == 0 else 0
        self._coded_size = (probe.height, probe.width)
        self.size = self._coded_size[::-1] if self._turns % 2 else self._coded_size
        self.pixel_format = probe.format.name

    def close(self) -> None:
        """Close the file; reading again opens it again."""
        self._run = None
        if self._container is not None:
            self._container.close()
        self._container = self._stream = self._codec = None

    def frames(self, positions: Sequence[int]) -> NDArray[np.uint8]:
        """Decode frames in one forward pass: from the nearest key frame, else from the start of the file.

        Args:
            positions: ascending, without repeats.

        Returns:
            `(positions, height, width, 3)` uint8 RGB, upright.

        Raises:
            MediaFailed: ``decode_error``, a frame is damaged or does not come.
        """
        pixels = np.empty((len(positions), *self.size, 3), np.uint8)
        for begin, end in self._passes(positions):
            self._decode_leniently(positions[begin:end], pixels[begin:end])
        return pixels

    def check(self, first: int, stop: int) -> None:
        """Decode all frames of a stretch in one pass, without making pictures of them.

        Raises:
            MediaFailed: ``decode_error``, a frame is damaged or does not come.
        """
        self._decode_leniently(range(first, stop), None)

    def _decode_leniently(self, positions: Sequence[int], pixels: NDArray[np.uint8] | None) -> None:
        """What FFmpeg objects to may still be a whole picture: without strictness damaged ones carry a mark."""
        try:
            self._decode(positions, pixels)
        except _Objection as objection:
            self.complaint = str(objection)
            self._strict = False
            self.close()
            self._decode(positions, pixels)

    def _passes(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """Split ascending positions where it is shorter to go on from a later key frame."""
        if not positions:
            return []
        jumps = (
            []
            if self._scan.by_order
            else [
                row
                for row in range(1, len(positions))
                if positions[row] - positions[row - 1] > _SHORTEST_JUMP
                and self._scan.key_before(positions[row]) - positions[row - 1] > _SHORTEST_JUMP
            ]
        )
        return list(pairwise([0, *jumps, len(positions)]))

    def _decode(self, positions: Sequence[int], pixels: NDArray[np.uint8] | None) -> None:
        """Fill rows of pixels in one forward pass; ``None``: only make sure that all frames come."""
        ways, self._run = self._beginnings(positions[0]), None  # nothing goes on behind damage
        for begin in ways:
            with suppress(MediaFailed):  # damage is judged by the pass from the start
                run = begin()
                if run is not None and self._fill(run, positions, pixels):
                    self._run = run
                    return
        run = self._from_start()
        if self._fill(run, positions, pixels):
            self._run = run
        else:
            raise MediaFailed(
                "decode_error",
                f"{self._path.name}: not all of frames {positions[0]}..{positions[-1]} come out of the decoder, "
                f"{len(self._scan.pts)} are in the file",
            )

    def _fill(self, run: _Run, positions: Sequence[int], pixels: NDArray[np.uint8] | None) -> bool:
        """Take the wanted frames from a run; False: one of them does not come."""
        for row, position in enumerate(positions):
            while run.position < position:
                if not run.step():
                    return False
            if run.position != position or run.frame is None:
                return False
            if pixels is not None:
                pixels[row] = self._pixels(run.frame)
        return True

    def _pixels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """`(height, width, 3)` RGB, upright."""
        if (frame.height, frame.width) != self._coded_size:
            raise MediaFailed(
                "decode_error",
                f"{self._path.name}: frame size changes from {self._coded_size[1]}x{self._coded_size[0]} "
                f"to {frame.width}x{frame.height}",
            )
        with media_errors("decode_error", f"{self._path.name}: conversion to RGB"):
            plane = self._reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
        rgb = rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
        return np.rot90(rgb, self._turns) if self._turns else rgb

    def _probe(self, first: int) -> VideoFrame:
        """Decode the first frame that a pass for a position meets; reading goes on from there."""
        for begin in self._beginnings(first):
            with suppress(_Objection, MediaFailed):
                run = begin()
                if run is not None and run.step() and run.frame is not None:
                    self._run = run
                    return run.frame
        with suppress(_Objection):
            run = self._from_start()
            if run.step() and run.frame is not None:
                self._run = run
                return run.frame
        self._strict = False
        for frame in self._from_start().decoded():
            self._strict = True
            self.close()
            return frame
        raise MediaFailed("decode_error", f"{self._path.name}: {len(self._scan.pts)} packets, no frame comes out")

    def _rotation(self, probe: VideoFrame) -> int:
        """Degrees anticlockwise; a decoder that is not the container's own does not know it."""
        if not self._own_codec:
            return probe.rotation
        with open_container(self._path) as container, suppress(*PYAV_ERRORS):
            for frame in container.decode(video_stream(container, self._path)):
                return frame.rotation
        return 0

    def _beginnings(self, position: int) -> list[Callable[[], _Run | None]]:
        """Ways to start a pass that reaches a position, best first, without the start of the file.

        The key frame to start from is the last one shown at or before the position. Because it is chosen by the time
        it is shown at, a frame that precedes a key frame on the screen and follows it in the file (a leading picture
        of an open group) is decoded from the key frame before. Some containers seek too far; then seeking to the key
        frame before helps.
        """
        ways: list[Callable[[], _Run | None]] = []
        run = self._run
        key = 0 if self._scan.by_order else self._scan.key_before(position)
        if run is not None and key <= run.position <= position:
            ways.append(lambda: run)
        if self._scan.by_order:
            return ways
        keys = self._scan.keys
        last = int(np.searchsorted(keys, self._scan.pts[position], side="right")) - 1
        if last >= 0:
            start = int(keys[last])
            ways += [partial(self._from_key, int(keys[i]), start) for i in dict.fromkeys((last, max(0, last - 1)))]
        return ways

    def _from_key(self, target: int, start: int) -> _Run | None:
        """A run after seeking to a timestamp; ``None``: the container cannot seek."""
        return _Run(self._decoded, self._scan, self._path, start, trusted=False) if self._seek(target) else None

    def _from_start(self) -> _Run:
        self._rewind()
        return _Run(self._decoded, self._scan, self._path, int(self._scan.pts[0]), trusted=True)

    def _decoded(self, start: int) -> Iterator[VideoFrame]:
        """Decode from where the container stands; what precedes ``start`` on the screen may be undecodable."""
        container, stream, codec = self._opened()
        with media_errors("decode_error", f"{self._path.name}: decoding"):
            for packet in container.demux(stream):
                flush = is_flush(packet)
                early = packet.pts is not None and packet.pts < start and not self._scan.by_order
                try:
                    frames = codec.decode(None if flush else packet)
                except PYAV_ERRORS as error:
                    if early:
                        continue
                    if self._strict:
                        raise _Objection(explain(error)) from error
                    raise
                yield from frames

    def _opened(self) -> tuple[InputContainer, VideoStream, VideoCodecContext]:
        if self._container is None or self._stream is None or self._codec is None:
            self._take(open_container(self._path))
            return self._opened()
        return self._container, self._stream, self._codec

    def _take(self, container: InputContainer) -> None:
        """Make an open container this source's own, with a decoder on one thread."""
        stream = video_stream(container, self._path)
        read_only(container, stream)
        codec: VideoCodecContext = stream.codec_context
        wanted = _NOTICING.get(self._scan.codec)
        self._own_codec = wanted is not None and wanted in av.codecs_available
        if wanted is not None and self._own_codec:
            made = cast(VideoCodecContext, CodecContext.create(wanted, "r"))
            made.extradata = codec.extradata
            made.thread_count = 1
            codec = made
        if self._strict:
            codec.options = dict(_STRICT)
        self._container, self._stream, self._codec = container, stream, codec

    def _rewind(self) -> None:
        """Stand at the first packet; opening anew is exact in every container, seeking to the start is not."""
        self.close()
        self._opened()

    def _seek(self, key: int) -> bool:
        """Stand at the key frame with this timestamp or an earlier one; False: the container cannot seek."""
        container, stream, codec = self._opened()
        try:
            container.seek(key, stream=stream, backward=True)
            if self._own_codec and codec.is_open:
                codec.flush_buffers()
        except PYAV_ERRORS:
            return False
        return True


class _Objection(Exception):
    """FFmpeg refuses a packet in its strict mode."""


class _Run:
    """One forward pass of the decoder; it stands at a frame and goes on from there.

    Args:
        decoded: decodes from where the container stands.
        scan: the file's scan.
        path: the file, for messages.
        start: timestamp of the key frame the pass starts at; frames shown before it are leading pictures of an open
            group of pictures and not decodable from here.
        trusted: the pass starts at the beginning of the file; otherwise every frame from ``start`` on has to come
            out, in order and beginning with the key frame itself, a whole picture (with intra refresh it is not), or
            else the seek is not trusted.
    """

    def __init__(
        self, decoded: Callable[[int], Iterator[VideoFrame]], scan: VideoScan, path: Path, start: int, *, trusted: bool
    ) -> None:
        self._scan, self._path, self._start, self._trusted = scan, path, start, trusted
        self._frames = decoded(start)
        self._previous = start - 1
        self._expected = 0 if scan.by_order else int(np.searchsorted(scan.pts, start))
        self.position = -1  # of the frame it stands at
        self.frame: VideoFrame | None = None

    def decoded(self) -> Iterator[VideoFrame]:
        """What comes out of the decoder, unchecked."""
        return self._frames

    def step(self) -> bool:
        """Go to the next frame; False: there is none, or not the one that should follow.

        Raises:
            MediaFailed: ``decode_error``, it is damaged. Damage before a wanted frame spoils it too: it is predicted
                from what precedes it.
        """
        for frame in self._frames:
            position = self._position(frame)
            if position == -1:
                continue
            if position is None:
                return False
            if frame.is_corrupt:
                raise MediaFailed("decode_error", f"{self._path.name}: frame {position} is damaged")
            self.position, self.frame, self._expected = position, frame, position + 1
            return True
        return False

    def _position(self, frame: VideoFrame) -> int | None:
        """A frame's position; -1: it is not counted; ``None``: it should not come here."""
        if self._scan.by_order:
            return self._expected
        if frame.pts is None or frame.pts < self._start:
            return -1
        if frame.pts <= self._previous:
            return None
        self._previous = frame.pts
        position = int(np.searchsorted(self._scan.pts, frame.pts))
        is_known = position < len(self._scan.pts) and int(self._scan.pts[position]) == frame.pts
        if self._trusted:
            return position if is_known else -1
        whole = frame.pts != self._start or frame.pict_type == PictureType.I
        return position if is_known and whole and position == self._expected else None
