"""Reading the packets of a video without decoding them: which frames there are, when they are shown, what is cut off.

Headers are promises. The scan counts what is really in the file, so that a truncated video is found out before
anything is decoded, and frames are addressed by the times they are shown at, not by a guess from a frame rate.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.decode.bitstream import packet_check
from pipeline.decode.container import (
    file_size,
    is_flush,
    media_errors,
    open_container,
    read_only,
    tagged_seconds,
    video_stream,
)
from pipeline.errors import MediaFailed

# XviD and DivX put two frames into one packet and follow it by a packet of a few bytes that holds none.
_EMPTY_MPEG4_BYTES = 8
_DEFAULT_RATE_HZ = Fraction(25)  # FFmpeg's own guess for raw streams that state no rate


class _Packet(NamedTuple):
    """What the scan keeps of a packet."""

    pts: int | None
    dts: int | None
    duration: int
    size: int
    is_key: bool
    is_discarded: bool  # before the start of an edit list: decoded, never shown
    is_corrupt: bool  # the container lost a part of it
    damage: str  # what shows in its bytes; "": nothing


@dataclass(frozen=True)
class VideoScan:
    """The frames of a video file, in the order they are shown."""

    pts: NDArray[np.int64]  # (frames,) ascending, in units of `time_base`
    keys: NDArray[np.int64]  # (keys,) ascending presentation timestamps of the key frames
    time_base: Fraction  # seconds per unit
    by_order: bool  # timestamps are invented or missing: a frame is known by its position in the decoder's output
    header_frames: int  # number of frames the header states; 0: it states none
    leading_frames: int  # packets shown before the first key frame: they cannot be decoded and are not counted
    container: str
    codec: str
    stream_index: int  # of the track in the file
    pixel_format: str  # as the header states it
    coded_size: tuple[int, int]  # height, width as the header states them, before any rotation
    order: NDArray[np.int64]  # (frames,) place of each frame's packet in the file
    sizes: NDArray[np.int64]  # (frames,) bytes of each frame's packet; 0 where only the order is known
    damaged: NDArray[np.int64]  # (damaged packets,) ascending places in the file
    damage: tuple[str, ...]  # what is wrong with each of them

    @property
    def times(self) -> NDArray[np.float64]:
        """`(frames,)` seconds since the first frame."""
        unit = self.time_base
        seconds: NDArray[np.float64] = (self.pts - self.pts[0]) * float(unit.numerator) / float(unit.denominator)
        return seconds

    @property
    def has_open_groups(self) -> bool:
        """Whether frames are shown before a key frame that they follow in the file."""
        is_key = np.isin(self.pts, self.keys)
        last_place = np.maximum.accumulate(self.order)  # of a frame and all that are shown before it
        return bool((last_place[is_key] > self.order[is_key]).any())

    def key_before(self, position: int) -> int:
        """Position of the last key frame shown at or before a position; 0: the key frame itself is not shown."""
        last = int(np.searchsorted(self.keys, self.pts[position], side="right")) - 1
        return 0 if last < 0 else min(int(np.searchsorted(self.pts, self.keys[last])), position)

    def check_damage(self, positions: Sequence[int], path: Path) -> None:
        """Refuse frames whose packets are damaged, or another one since the key frame that they are decoded from.

        Args:
            positions: of the wanted frames.
            path: the file, for messages.

        Raises:
            MediaFailed: ``decode_error``.
        """
        for position in positions if len(self.damaged) else ():
            begin, end = self.order[self.key_before(position)], self.order[position]
            hit = np.flatnonzero((self.damaged >= begin) & (self.damaged <= end))
            if len(hit):
                where = np.flatnonzero(self.order == self.damaged[hit[0]])
                name = f"frame {int(where[0])}" if len(where) else f"packet {int(self.damaged[hit[0]])}"
                raise MediaFailed("decode_error", f"{path.name}: {name} is damaged: {self.damage[int(hit[0])]}")


_KEPT_SCANS = 16  # many clips can lie in one long file
_scans: OrderedDict[tuple[Path, int, int], VideoScan] = OrderedDict()
_lock = threading.Lock()


def scan_video(path: Path) -> VideoScan:
    """Scan a video file, or return the scan made before if the file has not changed.

    Raises:
        MediaAbsent: ``no_video_stream``.
        MediaFailed: ``missing_file``, ``zero_bytes``, ``not_media``, ``truncated``, ``no_frames``; ``decode_error``
            for a file whose frames can only be counted by decoding it.
    """
    scan, container = scan_and_open(path)
    if container is not None:
        container.close()
    return scan


def scan_and_open(path: Path) -> tuple[VideoScan, InputContainer | None]:
    """Scan a video file; where that had to open it, the container comes along, at its end: opening twice costs.

    Raises:
        MediaAbsent, MediaFailed: as ``scan_video``.
    """
    size = file_size(path)
    key = (path, size, path.stat().st_mtime_ns)
    with _lock:
        known = _scans.get(key)
        if known is not None:
            _scans.move_to_end(key)
            return known, None
    container = open_container(path)
    try:
        scan = _scan(container, path, size)
    except BaseException:
        container.close()
        raise
    with _lock:
        _scans[key] = scan
        while len(_scans) > _KEPT_SCANS:
            _scans.popitem(last=False)
    return scan, container


def _scan(container: InputContainer, path: Path, size: int) -> VideoScan:
    stream = video_stream(container, path)
    read_only(container, stream)
    packets = _packets(container, stream, path)
    _check_complete(container, stream, packets, path, size)
    first = next((packet for packet in packets if packet.is_key), packets[0])
    name, codec = container.format.name, stream.codec_context.name
    rate_hz = stream.average_rate or stream.guessed_rate or _DEFAULT_RATE_HZ
    time_base, leading = stream.time_base, 0
    damage = {place: found for place, p in enumerate(packets) if (found := _damage_of(p))}
    shown = [(p.pts, place, p.size) for place, p in enumerate(packets) if not p.is_discarded and p.size > 0]
    by_order = _by_order(name, codec, packets)
    keys: list[int] = []
    if by_order or time_base is None:
        if damage:
            place, what = next(iter(damage.items()))
            raise MediaFailed("decode_error", f"{path.name}: packet {place} is damaged: {what}")
        stamps, time_base = _decoded_timestamps(path, time_base, rate_hz)
        frames = [(stamp, place, 0) for place, stamp in enumerate(stamps)]
        by_order = True
    else:
        start = first.pts if first.pts is not None else 0
        frames = sorted((pts, place, bytes_) for pts, place, bytes_ in shown if pts is not None and pts >= start)
        leading = len(shown) - len(frames)
        keys = sorted({p.pts for p in packets if p.is_key and p.pts is not None})
    if not frames:
        raise MediaFailed("no_frames", f"{path.name} has a {codec} track and {len(packets)} packets, none is shown")
    pts, order, sizes = np.asarray(frames, np.int64).T.copy()
    for column in (pts, order, sizes):
        column.flags.writeable = False
    return VideoScan(
        pts=pts,
        keys=np.asarray(keys, np.int64),
        time_base=time_base,
        by_order=by_order,
        header_frames=stream.frames,
        leading_frames=leading,
        container=name,
        codec=codec,
        stream_index=stream.index,
        pixel_format=stream.codec_context.pix_fmt or "",
        coded_size=(stream.codec_context.height, stream.codec_context.width),
        order=order,
        sizes=sizes,
        damaged=np.asarray(sorted(damage), np.int64),
        damage=tuple(damage[place] for place in sorted(damage)),
    )


def _damage_of(packet: _Packet) -> str:
    return "a part of it is missing" if packet.is_corrupt else packet.damage


def _packets(container: InputContainer, stream: VideoStream, path: Path) -> list[_Packet]:
    """All packets of the track in decoding order."""
    packets: list[_Packet] = []
    context = stream.codec_context
    check = packet_check(context.name, context.extradata)
    with media_errors("truncated", f"{path.name} cannot be read to its end"):
        for p in container.demux(stream):
            if not is_flush(p):
                damage = check(bytes(p))
                packets.append(
                    _Packet(p.pts, p.dts, p.duration or 0, p.size, p.is_keyframe, p.is_discard, p.is_corrupt, damage)
                )
    if not packets and stream.frames:
        raise MediaFailed("truncated", f"{path.name}: header states {stream.frames} frames, 0 are in the file")
    if not packets:
        raise MediaFailed("no_frames", f"{path.name} has a {stream.codec_context.name} track without any frame")
    return packets


def _check_complete(
    container: InputContainer, stream: VideoStream, packets: list[_Packet], path: Path, size: int
) -> None:
    """Compare what the headers promise with what is there."""
    content, header = len(packets), stream.frames
    if packets[-1].is_corrupt:
        raise MediaFailed(
            "truncated",
            f"{path.name}: frame {content} is cut off at the end of the file ({size} bytes), header states {header}",
        )
    name = container.format.name
    if name.startswith("mov"):
        # The index leaves out what an edit list cuts off, the number in the header does not.
        header = len(stream.index_entries) or header
    elif name == "avi":
        # Slots of dropped frames are counted by the header and hold no packet.
        content = max(content, 1 + max((p.pts for p in packets if p.pts is not None), default=0))
    if content < header:
        raise MediaFailed("truncated", f"{path.name}: header states {header} frames, {content} are in the file")
    promised, unit = tagged_seconds(stream), stream.time_base
    if promised is not None and unit is not None:
        there = float(max((p.pts + p.duration for p in packets if p.pts is not None), default=0) * unit)
        if promised - there > max(0.1, 2 * there / content):  # two frames: the last one's duration may be unknown
            raise MediaFailed(
                "truncated",
                f"{path.name}: header states {promised:.2f} s of video, the last frame ends at {there:.2f} s",
            )


def _by_order(container: str, codec: str, packets: list[_Packet]) -> bool:
    """Whether timestamps cannot be trusted to name frames."""
    pts = [p.pts for p in packets]
    if None in pts or len(set(pts)) != len(pts):
        return True
    if container == "avi":
        # AVI stores no presentation times; those FFmpeg derives run backwards where there are B-frames.
        return any(p.pts != p.dts for p in packets) or _has_empty_mpeg4(codec, packets)
    return _has_empty_mpeg4(codec, packets)


def _has_empty_mpeg4(codec: str, packets: list[_Packet]) -> bool:
    return codec == "mpeg4" and any(p.size <= _EMPTY_MPEG4_BYTES for p in packets)


def _decoded_timestamps(path: Path, time_base: Fraction | None, rate_hz: Fraction) -> tuple[list[int], Fraction]:
    """Timestamps of the frames that the decoder delivers, from one pass over the whole file.

    Frames are counted, not packets, because in these files the numbers differ. Where the frames have no distinct
    timestamps they are numbered at the mean rate.

    Raises:
        MediaFailed: ``decode_error``; damage anywhere would shift the positions of all later frames.
    """
    stamps: list[int | None] = []
    with open_container(path) as container, media_errors("decode_error", f"{path.name} cannot be decoded to its end"):
        for frame in container.decode(video_stream(container, path)):
            if frame.is_corrupt:
                raise MediaFailed("decode_error", f"{path.name}: frame {len(stamps)} is damaged")
            stamps.append(frame.pts)
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if time_base is not None and len(known) == len(stamps) == len(set(known)):
        return known, time_base
    return list(range(len(stamps))), 1 / rate_hz
