"""The libraries that decode video files, by name, and which of them are here.

PyNvVideoCodec is not among them: it numbers frames by a demuxer of its own, whose times it does not tell, so that its
frames could not be checked against the scan; torchcodec drives the same hardware.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from av.container import InputContainer

from pipeline.decode.decord_frames import DecordFrames, why_not_decord
from pipeline.decode.pyav_frames import PyavFrames
from pipeline.decode.scan import VideoScan
from pipeline.decode.source import FrameSource
from pipeline.decode.torchcodec_frames import UNNOTICED, TorchcodecFrames, why_not_torchcodec, why_not_torchcodec_cuda
from pipeline.errors import UsageError, choose

AUTO = "auto"
# Pixel formats that every version of FFmpeg converts to the same RGB.
_EXACT = ("yuv444p", "yuvj444p", "gbrp")
_EXACT_IF_EVEN = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p")  # of an even height


@dataclass(frozen=True)
class Wanted:
    """What a source is opened for."""

    path: Path
    scan: VideoScan
    container: InputContainer | None  # the file, open, where the scan had to open it
    first: int  # first position that will be read
    stop: int  # behind the last one
    device: str  # cpu or cuda:N


@dataclass(frozen=True)
class Decoder:
    """One library."""

    why_not: Callable[[], str]  # why it cannot be used here; empty: it can. May import the library
    open: Callable[[Wanted], FrameSource]
    about: str  # one line for `pipe` to print


def _cuda(device: str) -> str:
    return device if device.startswith("cuda") else "cuda:0"


DECODERS: dict[str, Decoder] = {
    "pyav": Decoder(
        lambda: "",
        lambda w: PyavFrames(w.path, w.scan, w.container, w.first),
        "brings its own FFmpeg; reports damaged and concealed frames",
    ),
    "torchcodec": Decoder(
        why_not_torchcodec,
        lambda w: TorchcodecFrames(w.path, w.scan, w.first, w.stop),
        "needs FFmpeg's shared libraries",
    ),
    "torchcodec-cuda": Decoder(
        why_not_torchcodec_cuda,
        lambda w: TorchcodecFrames(w.path, w.scan, w.first, w.stop, _cuda(w.device)),
        "decodes with NVDEC; colours differ from the CPU's by a few levels",
    ),
    "decord": Decoder(
        why_not_decord,
        lambda w: DecordFrames(w.path, w.scan),
        "decord2, for comparisons; never chosen by auto",
    ),
}
# What `auto` tries. On a CPU PyAV alone: torchcodec gives the same frames no faster (docs/benchmarks.md), takes two
# seconds to import in every worker, and does not tell which frames FFmpeg made up over damage.
_BY_DEVICE = {"cpu": ("pyav",), "cuda": ("torchcodec-cuda", "torchcodec", "pyav")}


def available_decoders() -> dict[str, str]:
    """Every decoder's name and why it cannot be used here; an empty reason: it can. Imports the libraries."""
    return {name: decoder.why_not() for name, decoder in DECODERS.items()}


def check_decoder(name: str) -> str:
    """Return a decoder's name, or ``auto``, if it can be used here.

    Raises:
        UsageError: there is none of that name, or it cannot be used here and why.
    """
    choose("decoder", name, (AUTO, *DECODERS))
    if name != AUTO and (reason := DECODERS[name].why_not()):
        here = ", ".join(other for other, why in available_decoders().items() if not why)
        raise UsageError(f"decoder {name!r} cannot be used here: {reason}; here are: {here}")
    return name


def decoder_chain(name: str, device: str, scan: VideoScan) -> tuple[str, ...]:
    """The decoders to try, best first: the one that is named, or under ``auto`` all that fit.

    ``auto`` never tries torchcodec on a CPU where frames are known by their order only, where it would not notice
    damage, and where the version of FFmpeg changes pixels: chroma planes that do not fit the picture, or more than 8
    bits, go through FFmpeg's scaler, whose results differ by up to 90 levels at edges between versions and filters.

    Args:
        name: a name of ``DECODERS``, or ``auto``.
        device: where the pixels are wanted, ``cpu`` or ``cuda:N``.
        scan: of the file.

    Raises:
        UsageError: as ``check_decoder``.
    """
    if check_decoder(name) != AUTO:
        return (name,)
    names = _BY_DEVICE["cuda" if device.startswith("cuda") else "cpu"]
    exact = scan.pixel_format in _EXACT or (scan.pixel_format in _EXACT_IF_EVEN and scan.coded_size[0] % 2 == 0)
    if scan.by_order:
        return ("pyav",)
    if scan.codec in UNNOTICED or not exact:
        names = tuple(n for n in names if n != "torchcodec")
    return tuple(n for n in names if not DECODERS[n].why_not())
