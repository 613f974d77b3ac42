"""Decoders, codecs, resamplers and optical flow, each tried for real on media that are made here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from extractors.optical_flow import FLOW_METHODS, compute_flow
from pipeline.checks import Check
from pipeline.datasets.demo.encode import encode
from pipeline.decode import DECODERS, RESAMPLERS, available_decoders, open_frames, read_sound
from pipeline.errors import MediaError, PipeError
from pipeline.types import Clip, Manifest
from pipeline.verify_decode import REFERENCE, Difference, VerifyReport, verify_decode

SIDE, FRAMES, RATE_HZ = 128, 12, 12  # pixels, frames and frames per second of the clips that are made
SOUND_HZ = 44100
FARTHEST = 16.0  # grey levels, mean: a lossy codec at a good quality is nearer to what was encoded
GPU_FARTHEST = 8.0  # grey levels, at most: NVDEC's colours differ a little from the CPU's
# Codec, its name in FFmpeg, and the encoders to try; the container is Matroska, which takes all of them.
CODECS: dict[str, tuple[str, tuple[str, ...]]] = {
    "H.264": ("h264", ("libx264", "libopenh264")),
    "HEVC": ("hevc", ("libx265",)),
    "VP9": ("vp9", ("libvpx-vp9",)),
    "AV1": ("av1", ("libaom-av1", "libsvtav1")),
    "MPEG-4": ("mpeg4", ("mpeg4",)),
}
OPTIONS = {
    "libx264": {"crf": "18"},
    "libx265": {"crf": "18", "x265-params": "log-level=none"},
    "libvpx-vp9": {"crf": "20", "b": "0"},
    "libaom-av1": {"crf": "20", "cpu-used": "8"},
}
INSTALL = {
    "torchcodec": "pip install 'pipe-features[torchcodec]' and FFmpeg's shared libraries (apt-get install ffmpeg)",
    "torchcodec-cuda": "it needs an NVIDIA GPU, a CUDA build of torchcodec, and FFmpeg built with NVDEC",
    "decord": "pip install 'pipe-features[decord]'; nothing needs it",
}


def pictures() -> NDArray[np.uint8]:
    """A smooth pattern that moves one pixel a frame, ``(frames, side, side, 3)`` RGB."""
    t, y, x = np.meshgrid(np.arange(FRAMES), np.arange(SIDE), np.arange(SIDE), indexing="ij")
    waves = [np.sin((x - t) / 9 + k) * np.cos(y / (7 + 2 * k)) for k in range(3)]
    made: NDArray[np.uint8] = np.clip(128 + 90 * np.stack(waves, -1), 0, 255).astype(np.uint8)
    return made


def tone(rate_hz: int, seconds: float = 1.0) -> NDArray[np.float32]:
    """A tone of 440 Hz, ``(samples,)`` in -1..1."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def video_checks(device: str) -> list[Check]:
    """Codecs by PyAV, and every other decoder against PyAV on the same files."""
    with tempfile.TemporaryDirectory(prefix="pipe-doctor-") as folder:
        clips, found = _made(Path(folder))
        if not clips:
            return [*found, Check("video", "decoders", "broken", "no file could be made to try them with", _REINSTALL)]
        manifest = Manifest("doctor", ("none",), ("none",), tuple(clips), Path(folder))
        here = available_decoders()
        usable = [name for name, why in here.items() if not why and name != REFERENCE]
        report = verify_decode(manifest, len(clips), 0, usable, device) if usable else None
        return found + _decoders(here, report, len(clips))


_REINSTALL = "install the PyAV wheel from PyPI: pip install --force-reinstall av"


def _made(folder: Path) -> tuple[list[Clip], list[Check]]:
    """A clip per codec that can be encoded and decoded here, and what is to be said of all codecs."""
    clips: list[Clip] = []
    found: list[Check] = []
    for name, (codec, encoders) in CODECS.items():
        section, title = "video", f"codec {name}"
        encoder = next((e for e in encoders if _has(e, "w")), None)
        if not _has(codec, "r"):
            found.append(Check(section, title, "broken", f"PyAV {av.__version__} has no decoder for it", _REINSTALL))
            continue
        if encoder is None:
            detail = "PyAV has a decoder and no encoder to try it with"
            found.append(
                Check(section, title, "warning", detail, "`pipe verify-decode` compares decoders on your files")
            )
            continue
        path = folder / f"{codec}.mkv"
        try:
            if codec == "h264":  # with sound, as `pipe demo` makes its files
                path = folder / "h264.mp4"
                encode(path, pictures(), RATE_HZ, tone(SOUND_HZ), SOUND_HZ)
            else:
                _write(path, encoder)
            away = _apart(path)
        except (MediaError, PipeError, OSError, ValueError) as error:
            found.append(Check(section, title, "broken", f"{encoder}: {error}", _REINSTALL))
            continue
        right = away <= FARTHEST
        detail = (
            f"{'decoded' if right else 'decoded wrongly'} by PyAV, mean {away:.1f} grey levels from what was encoded"
        )
        found.append(Check(section, title, "ok" if right else "broken", detail, "" if right else _REINSTALL))
        clips.append(Clip(codec, "none", "none", "train", codec, {"video": path}))
    return clips, found


def _has(name: str, mode: str) -> bool:
    try:
        av.codec.Codec(name, "w" if mode == "w" else "r")
    except ValueError:  # what PyAV's UnknownCodecError is
        return False
    return True


def _write(path: Path, encoder: str) -> None:
    os.environ.setdefault("SVT_LOG", "1")  # or SVT-AV1 prints its settings; 1: errors alone
    with av.open(str(path), "w") as container:
        stream = cast(VideoStream, container.add_stream(encoder, rate=RATE_HZ, options=OPTIONS.get(encoder, {})))
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.bit_rate = 2_000_000
        for number, picture in enumerate(pictures()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE_HZ)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _apart(path: Path) -> float:
    """Mean difference in grey levels between what was encoded and what PyAV decodes.

    Raises:
        MediaError: it cannot be decoded, or has other frames.
    """
    with open_frames(path, decoder=REFERENCE) as reader:
        pixels = reader.read(list(range(reader.num_frames)))
    made = pictures()
    if pixels.shape != made.shape:
        raise MediaError("other_frames", f"{pixels.shape[0]} frames of {pixels.shape[2]}x{pixels.shape[1]} came back")
    return float(np.abs(pixels.astype(np.int16) - made).mean())


def _decoders(here: dict[str, str], report: VerifyReport | None, files: int) -> list[Check]:
    """What is to be said of every decoder."""
    found = []
    for name in DECODERS:
        title = f"decoder {name}"
        if why := here[name]:
            found.append(Check("video", title, "missing", why, INSTALL.get(name, "")))
        elif name == REFERENCE:
            found.append(Check("video", title, "ok", "the reference; codecs above were decoded by it"))
        elif report is not None:
            rows = [(clip.clip_id, d) for clip in report.clips for d in clip.frames if d.decoder in (name, "any")]
            found.append(_decoder(title, name, rows, files))
    return found


def _decoder(title: str, name: str, rows: Sequence[tuple[str, Difference]], files: int) -> Check:
    """One decoder by its differences, codec by codec."""
    limit = GPU_FARTHEST if name.endswith("cuda") else 0.0
    bad = [(codec, d) for codec, d in rows if d.only_one or d.largest > limit]
    largest = max((d.largest for _, d in rows), default=0.0)
    if not bad:
        return Check("video", title, "ok", f"{files} codecs, at most {largest:g} grey levels from PyAV")
    first = bad[0][1].failure or f"{bad[0][1].largest:g} grey levels from PyAV"
    told = f"{', '.join(codec for codec, _ in bad)}: {first}"
    # Nothing but what a user names by hand depends on it: `auto` goes on to the next decoder.
    return Check("video", title, "warning", told, "use --decoder auto or pyav for such files")


def sound_checks() -> list[Check]:
    """A file's sound through every resampler."""
    found = []
    with tempfile.TemporaryDirectory(prefix="pipe-doctor-") as folder:
        path = Path(folder) / "tone.mp4"
        try:
            encode(path, pictures(), RATE_HZ, tone(SOUND_HZ), SOUND_HZ)
        except (PipeError, OSError, ValueError) as error:
            return [Check("sound", "AAC", "broken", str(error), _REINSTALL)]
        for name, resampler in RESAMPLERS.items():
            if why := resampler.why_not():
                found.append(Check("sound", f"resampler {name}", "missing", why, "pip install 'pipe-features[soxr]'"))
                continue
            try:
                samples = read_sound(path, 16000, 0.2, 0.8, resampler=name).samples
            except (MediaError, OSError, ValueError, RuntimeError) as error:
                found.append(Check("sound", f"resampler {name}", "broken", str(error), _REINSTALL))
                continue
            peak = _loudest_hz(samples, 16000)
            sound = abs(len(samples) - 9600) <= 2 and abs(peak - 440) < 5
            detail = f"{len(samples)} samples of 0.6 s at 16 kHz, tone of 440 Hz found at {peak:.0f} Hz"
            found.append(Check("sound", f"resampler {name}", "ok" if sound else "broken", detail))
    return found


def _loudest_hz(samples: NDArray[np.float32], rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate_hz / len(samples)) if len(samples) else 0.0


def flow_checks(weights: Path) -> list[Check]:
    """Every method on a pattern that moves one pixel to the right."""
    frames = pictures()
    found = []
    for name, method in FLOW_METHODS.items():
        title = f"flow {name}"
        if why := method.missing():
            found.append(Check("optical flow", title, "missing", why))
            continue
        if method.needs_weights:
            found.append(_network(title, weights, [p.file for p in method.published]))
            continue
        try:
            levels = compute_flow(frames[:1], frames[1:2], name, 20.0)
        except (ValueError, RuntimeError) as error:
            found.append(Check("optical flow", title, "broken", str(error)))
            continue
        inner = levels[0, :, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4].double().mean((1, 2))
        u, v = ((float(value) - 128) * 20 / 128 for value in inner)
        right = abs(u - 1) < 0.3 and abs(v) < 0.3
        detail = f"a motion of (1, 0) pixels found as ({u:.2f}, {v:.2f})"
        advice = "" if right else "use another --flow; `pip install --force-reinstall opencv-contrib-python-headless`"
        found.append(Check("optical flow", title, "ok" if right else "broken", detail, advice))
    return found


def _network(title: str, weights: Path, files: Sequence[str]) -> Check:
    """A method that is a network: whether a weight file of it is here."""
    here = [file for file in files if (weights / file).is_file()]
    if here:
        return Check("optical flow", title, "ok", f"weights here: {', '.join(here)}; not run")
    return Check("optical flow", title, "missing", "no weights of it are here", f"`pipe weights fetch {files[0]}`")
