"""Sound of a media file as mono samples at one rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from pipeline.decode.container import (
    DECODER,
    PYAV_ERRORS,
    Facts,
    audio_stream,
    explain,
    file_size,
    media_errors,
    open_container,
    read_only,
    riff_missing_share,
    tagged_seconds,
)
from pipeline.decode.resample import RESAMPLERS, check_resampler
from pipeline.errors import MediaAbsent, MediaFailed

_SEEK_AFTER_SECONDS = 2.0  # a stretch that starts earlier is decoded from the start of the file
_PREROLL_SECONDS = 1.0  # decoded before a stretch: overlapping windows and bit reservoirs need a predecessor
_MARGIN_SECONDS = 0.25  # handed to the resampler on both sides of a stretch; its filter is far shorter
_RESYNC_SECONDS = 0.1  # a larger difference between timestamps and counted samples is a gap
_LONGEST_GAP_SECONDS = 10.0  # a longer one is damage: filled with zeros it could take any amount of memory
_SILENT_BELOW = 1e-5
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "wav")  # containers whose index leads to an exact sample
_COUNTED = ("avi", "mp3", "aac")  # containers without timestamps worth the name: samples are counted
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1000, 768_000  # a rate outside is a damaged header
_MOST_PLANES = 8  # PyAV reads past the end of FFmpeg's table of planes if there are more
_INTEGER_SCALE = {"s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}


@dataclass(frozen=True)
class Sound:
    """A stretch of sound."""

    samples: NDArray[np.float32]  # (num_samples,) mono, full scale -1..1
    rate_hz: int
    facts: Facts  # codec, container, native_rate_hz, channels, seconds, resampler, silent, ...


@dataclass(frozen=True)
class _Native:
    """Mono samples at the file's own rate; positions count from the first sample of the track."""

    samples: NDArray[np.float32]  # (num_samples,)
    start: int  # position of the first one
    rate_hz: int
    channels: int
    content_end: int | None  # samples in the track; None: not read to its end
    gap_seconds: float  # how much of `samples` is not in the file: zero there
    header_seconds: float | None  # length of the track that the header states
    facts: Facts  # container and codec


def read_sound(
    path: Path,
    rate_hz: int,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    *,
    resampler: str = "swresample",
) -> Sound:
    """Decode the first sound track, mix it to mono (mean of the channels) and resample it.

    The stretch is cut at ``round(start * rate_hz)`` and ``round(end * rate_hz)``, times counted from the track's
    first sample; it is shorter where the track ends before. 16 bit samples that need no resampling come out as
    ``value / 32768`` exactly.

    Args:
        path: a sound file, or a video file with sound.
        rate_hz: rate of the result.
        start_seconds: start of the stretch; ``None``: from the beginning.
        end_seconds: end of the stretch, exclusive; ``None``: to the end.
        resampler: a name of ``RESAMPLERS``; of no effect where the file has the wanted rate.

    Raises:
        MediaAbsent: ``no_audio_stream``.
        MediaFailed: ``missing_file``, ``zero_bytes``, ``not_media``, ``truncated``, ``no_samples``, ``past_end``,
            ``decode_error``.
        UsageError: no such resampler here.
    """
    check_resampler(resampler)
    if path.is_dir():
        raise MediaAbsent("no_audio_stream", f"{path.name} is a folder of pictures; it has no sound")
    size = file_size(path)
    start = start_seconds or 0.0
    native = _collect(path, start, end_seconds, seek=start > _SEEK_AFTER_SECONDS)
    _check_complete(native, riff_missing_share(path, size), path)
    samples, offset = _resampled(native, rate_hz, resampler, path)
    first = round(start * rate_hz)
    stop = offset + len(samples) if end_seconds is None else round(end_seconds * rate_hz)
    cut = samples[first - offset : stop - offset] if stop > first else samples[:0]
    if not len(cut):
        raise _empty(native, start, end_seconds, path)
    if not np.isfinite(cut).all():
        raise MediaFailed("decode_error", f"{path.name}: some of its samples are not finite numbers")
    facts: Facts = {
        "decoder": DECODER,
        **native.facts,
        "native_rate_hz": native.rate_hz,
        "channels": native.channels,
        "mix": "mean",
        "resampler": "none" if native.rate_hz == rate_hz else resampler,
        "seconds": len(cut) / rate_hz,
        "missing_seconds": (stop - first - len(cut)) / rate_hz,  # how far the stretch reaches past the last sample
        "header_seconds": native.header_seconds or 0.0,  # 0: the header states none
        "gap_seconds": native.gap_seconds,
        "silent": bool(np.abs(cut).max() < _SILENT_BELOW),
    }
    return Sound(np.ascontiguousarray(cut), rate_hz, facts)


def _header_seconds(stream: AudioStream) -> float | None:
    """Length of the track that the header states; FFmpeg's estimates from a bit rate are not promises."""
    if stream.container.format.name in ("mp3", "aac", "avi"):
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return tagged_seconds(stream)


def _collect(path: Path, start: float, end: float | None, *, seek: bool) -> _Native:
    """Decode the stretch and a margin on both sides of it; memory is bounded by the stretch, not by the file."""
    with open_container(path) as container:
        stream = audio_stream(container, path)
        read_only(container, stream)
        frames = _frames(container, stream, path)
        first = next(frames, None)
        if isinstance(first, MediaFailed):
            raise first
        if first is None:
            if promised := _header_seconds(stream):
                raise MediaFailed("truncated", f"{path.name}: header states {promised:.2f} s of sound, 0 s are there")
            raise MediaFailed("no_samples", f"{path.name} has an audio track without samples")
        gather = _Gather(container, stream, first, start, end, path)
        if seek and gather.can_seek:
            target = gather.origin + int((start - _PREROLL_SECONDS) / gather.unit)
            with media_errors("decode_error", f"{path.name}: seeking to {start} s"):
                container.seek(target, stream=stream, backward=True)
            native = gather.run(_frames(container, stream, path), None)
        else:
            native = gather.run(chain([first], frames), 0)
    # A seek that landed behind the stretch, or at its very end, is not trusted.
    return native if native is not None else _collect(path, start, end, seek=False)


def _frames(container: InputContainer, stream: AudioStream, path: Path) -> Iterator[AudioFrame | MediaFailed]:
    """Decode from where the container stands; damage is handed out in its place, for the caller to judge."""
    with media_errors("truncated", f"{path.name} cannot be read to its end"):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                yield MediaFailed("truncated", f"{path.name}: its sound is cut off in the middle of a packet")
                continue
            try:
                frames = packet.decode()
            except PYAV_ERRORS as error:
                yield MediaFailed("decode_error", f"{path.name}: decoding sound: {explain(error)}")
                continue
            yield from frames


class _Gather:
    """Keeps the part of a track that a stretch needs."""

    def __init__(
        self,
        container: InputContainer,
        stream: AudioStream,
        first: AudioFrame,
        start: float,
        end: float | None,
        path: Path,
    ) -> None:
        self.rate_hz = first.sample_rate
        if not _LOWEST_RATE_HZ <= self.rate_hz <= _HIGHEST_RATE_HZ:
            raise MediaFailed("decode_error", f"{path.name}: its header states a sample rate of {self.rate_hz} Hz")
        self.channels = first.layout.nb_channels
        self.unit = stream.time_base or Fraction(1, self.rate_hz)
        self.origin = first.pts or 0
        self.path = path
        self.counted = container.format.name in _COUNTED
        ticks = self.unit * self.rate_hz  # samples per unit of time: a coarse unit cannot name a sample
        self.can_seek = container.format.name in _SEEKABLE and (ticks <= 1 or ticks.denominator == 1)
        self.keep_from = int(max(0.0, start - _MARGIN_SECONDS) * self.rate_hz)
        self.keep_to = math.inf if end is None else math.ceil((end + _MARGIN_SECONDS) * self.rate_hz)
        self.kept: list[tuple[int, NDArray[np.float32]]] = []
        self.gap = 0
        self.header_seconds = _header_seconds(stream)
        self.facts: Facts = {"container": container.format.name, "codec": stream.codec_context.name}

    def run(self, items: Iterable[AudioFrame | MediaFailed], position: int | None) -> _Native | None:
        """Take frames until the stretch is complete.

        Args:
            items: what ``_frames`` hands out.
            position: position of the first frame; ``None`` after a seek: its timestamp tells.

        Returns:
            The samples, or ``None`` if the first frame is already behind the start of the stretch.
        """
        sought, damaged = position is None, False
        for item in items:
            if isinstance(item, MediaFailed):
                # Before the stretch damage is harmless as long as timestamps tell where the next frame belongs.
                if self.counted or (position is not None and position >= self.keep_from):
                    raise item
                damaged = True
                continue
            position = self._place(item, position, damaged)
            if sought and not self.kept and position > self.keep_from:
                return None
            damaged = False
            position = self._keep(item, position)
            if position >= self.keep_to:
                return self._native(None)
        if position is None:
            return None
        return self._native(position)

    def _place(self, frame: AudioFrame, expected: int | None, resync: bool) -> int:
        """Position of a frame's first sample: counted, unless its timestamp is clearly elsewhere."""
        if frame.pts is None or (self.counted and expected is not None):
            return expected or 0
        stamp = round((frame.pts - self.origin) * self.unit * self.rate_hz)
        if expected is None or resync:
            return stamp
        if abs(stamp - expected) <= _RESYNC_SECONDS * self.rate_hz:
            return expected
        if abs(stamp - expected) > _LONGEST_GAP_SECONDS * self.rate_hz:
            raise MediaFailed(
                "decode_error",
                f"{self.path.name}: timestamps of the sound jump from {expected / self.rate_hz:.2f} s "
                f"to {stamp / self.rate_hz:.2f} s",
            )
        if self.keep_from <= max(stamp, expected) and min(stamp, expected) < self.keep_to:
            self.gap += max(0, stamp - expected)
        return stamp

    def _keep(self, frame: AudioFrame, position: int) -> int:
        """Keep a frame if the stretch needs it; return the position behind it."""
        if frame.sample_rate != self.rate_hz:
            raise MediaFailed(
                "decode_error", f"{self.path.name}: sample rate changes from {self.rate_hz} to {frame.sample_rate} Hz"
            )
        channels = frame.layout.nb_channels
        if channels > _MOST_PLANES and frame.format.is_planar:
            raise MediaFailed(
                "decode_error", f"{self.path.name}: {channels} channels of {frame.format.name}; at most 8 can be read"
            )
        behind = position + frame.samples
        if behind > self.keep_from and position < self.keep_to:
            if frame.is_corrupt:
                raise MediaFailed(
                    "decode_error", f"{self.path.name}: sound is damaged at {position / self.rate_hz:.2f} s"
                )
            with media_errors("decode_error", f"{self.path.name}: reading decoded sound"):
                self.kept.append((position, _mono(frame)))
        return behind

    def _native(self, content_end: int | None) -> _Native:
        """Lay the kept frames out in one array."""
        start = self.keep_from
        stop = max((position + len(mono) for position, mono in self.kept), default=start)
        samples = np.zeros(max(0, stop - start), np.float32)
        for position, mono in self.kept:
            skip = max(0, start - position)
            samples[position + skip - start : position - start + len(mono)] = mono[skip:]
        gap_seconds = self.gap / self.rate_hz
        return _Native(
            samples, start, self.rate_hz, self.channels, content_end, gap_seconds, self.header_seconds, self.facts
        )


def _mono(frame: AudioFrame) -> NDArray[np.float32]:
    """`(samples,)` mean of the channels, full scale -1..1."""
    values = frame.to_ndarray()
    channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    name = frame.format.name.rstrip("p")
    if name == "u8":
        values = (values.astype(np.float32) - 128) / 128
    elif name in _INTEGER_SCALE:
        values = (values / _INTEGER_SCALE[name]).astype(np.float32)
    return np.asarray(values.mean(axis=0), np.float32)


def _resampled(native: _Native, rate_hz: int, name: str, path: Path) -> tuple[NDArray[np.float32], int]:
    """Resample; return the samples and the position of the first one at the new rate."""
    if native.rate_hz == rate_hz or not len(native.samples):
        return native.samples, round(native.start * rate_hz / native.rate_hz)
    # Starting at a multiple of the rates' common period makes a stretch equal to the same part of the whole.
    period = native.rate_hz // math.gcd(native.rate_hz, rate_hz)
    skip = -native.start % period
    with media_errors("decode_error", f"{path.name}: resampling from {native.rate_hz} to {rate_hz} Hz"):
        samples = RESAMPLERS[name].run(native.samples[skip:], native.rate_hz, rate_hz)
    return samples, (native.start + skip) * rate_hz // native.rate_hz


def _check_complete(native: _Native, riff_missing: float, path: Path) -> None:
    """Compare the length that the headers promise with what was decoded, where decoding met the track's end."""
    if native.content_end is None:
        return
    there = native.content_end / native.rate_hz
    promised = max(native.header_seconds or 0.0, there / (1 - riff_missing))
    missing = promised - there
    if missing > 0.5 or (missing > 0.1 and missing > 0.1 * promised):
        raise MediaFailed("truncated", f"{path.name}: header states {promised:.2f} s of sound, {there:.2f} s are there")


def _empty(native: _Native, start: float, end: float | None, path: Path) -> MediaFailed:
    """Why a stretch has no samples."""
    if native.content_end is not None and start * native.rate_hz >= native.content_end:
        there = native.content_end / native.rate_hz
        return MediaFailed("past_end", f"{path.name}: the stretch starts at {start} s, the sound ends at {there:.3f} s")
    return MediaFailed("no_samples", f"{path.name} has no sample between {start} s and {end} s")
