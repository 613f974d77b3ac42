"""The same clips through every decoder that is here: do they give the same frames and the same sound?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import AUTO, DECODERS, RESAMPLERS, available_decoders, check_decoder, open_frames, read_sound
from pipeline.decode.container import Facts
from pipeline.errors import MediaAbsent, MediaError, UsageError
from pipeline.types import Clip, Manifest
from pipeline.workers import Death, Progress, run_tasks

REFERENCE = "pyav"  # what the others are compared with: it tells what is damaged
DEADLINE_SECONDS = 300.0  # for one clip through all decoders
FRAMES = 8  # per clip, spread over it at random
_SOUND_SECONDS = 2.0  # of a clip's sound, at most


@dataclass(frozen=True)
class Difference:
    """What one decoder, or resampler, gives for one clip, compared with the reference."""

    decoder: str
    failure: str = ""  # why it gives nothing, "code: detail"; empty: it gives something
    only_one: bool = False  # either it or the reference fails, not both
    largest: float = 0.0  # largest difference of any value: grey levels of frames, full scale 1 of sound
    mean: float = 0.0  # mean difference, in the same unit
    differing: float = 0.0  # share of the frames, or samples, that differ at all
    decode_device: str = ""  # where the frames were decoded
    fallback: str = ""  # which decoder was passed over, and why

    @property
    def badness(self) -> tuple[bool, float, float]:
        """Orders by how bad it is, ascending."""
        return self.only_one, self.largest, self.mean


@dataclass(frozen=True)
class ClipVerdict:
    """One clip through all decoders."""

    clip_id: str
    num_frames: int  # frames compared; 0: the clip has no frames, or the reference fails
    reference_failure: str  # why the reference gives no frames; empty: it does
    frames: tuple[Difference, ...]  # per decoder
    sound: tuple[Difference, ...]  # per resampler, at the model's rate, compared with the first; empty: no sound

    @property
    def badness(self) -> tuple[bool, float, float]:
        """That of the worst decoder; resamplers differ by design."""
        return max((difference.badness for difference in self.frames), default=(False, 0.0, 0.0))


@dataclass(frozen=True)
class VerifyReport:
    """All clips that were compared."""

    dataset: str
    reference: str
    decoders: tuple[str, ...]  # that were compared with the reference
    unavailable: dict[str, str]  # other decoders and why they were left out
    clips: tuple[ClipVerdict, ...]  # the worst first

    @property
    def identical(self) -> bool:
        """Whether every decoder gave the reference's frames for every clip, or failed where it fails."""
        return not any(d.only_one or d.largest for clip in self.clips for d in clip.frames)

    def summary(self) -> tuple[Difference, ...]:
        """Per decoder the largest difference, the means over clips, and a failure that only it or the reference has."""
        return tuple(
            _summed(name, [d for c in self.clips for d in c.frames if d.decoder == name]) for name in self._names
        )

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(d.decoder for clip in self.clips for d in clip.frames))


def verify_decode(
    manifest: Manifest,
    clips: int,
    seed: int,
    decoders: Sequence[str] = (),
    device: str = "cpu",
    *,
    rate_hz: int = 16000,
    advance: Callable[[int], None] = lambda amount: None,
) -> VerifyReport:
    """Decode the same frames of random clips with each decoder and compare them with PyAV's.

    Args:
        manifest: the data set.
        clips: how many of its clips, at most.
        seed: of the choice of clips and frames; the same choice on every machine.
        decoders: names of ``DECODERS``, or ``auto``; none: ``auto`` and all that are here.
        device: ``cpu`` or ``cuda:N``; on a GPU folders of JPEG pictures are decoded by it too.
        rate_hz: rate at which resamplers are compared.
        advance: called with numbers of clips done.

    Raises:
        UsageError: a decoder that is not here, or fewer than one clip.
    """
    if clips < 1:
        raise UsageError(f"{clips} clips cannot be compared; give 1 or more")
    here = available_decoders()
    chosen = tuple(dict.fromkeys(check_decoder(name) for name in decoders)) or (
        AUTO,
        *(name for name, why in here.items() if not why and name != REFERENCE),
    )
    order = sorted(manifest.clips, key=lambda clip: clip.clip_id)
    picked = Random(seed).sample(order, min(clips, len(order)))
    tasks = [_Task(clip, chosen, seed, device, rate_hz) for clip in picked]
    verdicts = [verdict for _, verdict in run_tasks(_verdict, tasks, 1, advance, _given_up)]
    verdicts.sort(key=lambda verdict: verdict.badness, reverse=True)
    unavailable = {name: why for name, why in here.items() if why and name not in chosen}
    return VerifyReport(manifest.dataset, REFERENCE, chosen, unavailable, tuple(verdicts))


@dataclass(frozen=True)
class _Task:
    """One clip for a process that may die of it."""

    clip: Clip
    decoders: tuple[str, ...]
    seed: int
    device: str
    rate_hz: int
    death: Death | None = None


def _verdict(task: _Task, progress: Progress) -> ClipVerdict:
    """Compare one clip under a deadline; what brought two processes down is not touched again."""
    if task.death is not None:
        died = Difference("any", failure=f"{task.death.code}: {task.death}", only_one=True)
        verdict = ClipVerdict(task.clip.clip_id, 0, "", (died,), ())
    else:
        with progress.guard(DEADLINE_SECONDS):
            verdict = verify_clip(task.clip, task.decoders, task.seed, task.device, task.rate_hz)
    progress(1)
    return verdict


def _given_up(task: _Task, death: Death) -> _Task:
    return replace(task, death=death)


def verify_clip(
    clip: Clip, decoders: Sequence[str], seed: int, device: str = "cpu", rate_hz: int = 16000
) -> ClipVerdict:
    """Compare one clip; see ``verify_decode``."""
    frames: list[Difference] = []
    reference: _Decoded | MediaError | None = None
    if "video" in clip.media:
        reference = _decode(clip, REFERENCE, "cpu", seed)
        frames = [_difference(name, _decode(clip, name, device, seed), reference) for name in decoders]
    failed = isinstance(reference, MediaError)
    return ClipVerdict(
        clip_id=clip.clip_id,
        num_frames=len(reference.pixels) if isinstance(reference, _Decoded) else 0,
        reference_failure=str(reference) if failed else "",
        frames=tuple(frames),
        sound=_sound(clip, rate_hz),
    )


@dataclass(frozen=True)
class _Decoded:
    pixels: NDArray[np.uint8]  # (n, height, width, 3)
    facts: Facts


def _decode(clip: Clip, decoder: str, device: str, seed: int) -> _Decoded | MediaError:
    """Some frames of a clip, the same ones for every decoder, or why there are none."""
    on_cpu = decoder in DECODERS and not decoder.endswith("cuda")
    try:
        with open_frames(
            clip.media["video"],
            clip.start_seconds,
            clip.end_seconds,
            clip.rate_hz,
            clip.frame_numbers,
            decoder=decoder,
            device="cpu" if on_cpu else device,
        ) as reader:
            random = Random(f"{seed} {clip.clip_id}")
            wanted = sorted(random.sample(range(reader.num_frames), min(FRAMES, reader.num_frames)))
            on_host = on_cpu or device == "cpu"
            pixels = reader.read(wanted) if on_host else reader.read_tensor(wanted).cpu().numpy()
            return _Decoded(pixels, reader.facts)
    except MediaError as error:
        return error


def _difference(name: str, given: _Decoded | MediaError, reference: _Decoded | MediaError) -> Difference:
    if isinstance(given, MediaError) or isinstance(reference, MediaError):
        both = isinstance(given, MediaError) and isinstance(reference, MediaError)
        return Difference(name, failure=str(given) if isinstance(given, MediaError) else "", only_one=not both)
    device, fallback = str(given.facts.get("decode_device", "")), str(given.facts.get("fallback", ""))
    if given.pixels.shape != reference.pixels.shape:
        shapes = f"{_size(given.pixels)} instead of {_size(reference.pixels)}"
        return Difference(name, f"other frames: {shapes}", True, decode_device=device, fallback=fallback)
    apart = np.abs(given.pixels.astype(np.int16) - reference.pixels)
    return Difference(
        name,
        largest=float(apart.max(initial=0)),
        mean=float(apart.mean()) if apart.size else 0.0,
        differing=float((apart.reshape(len(apart), -1).max(axis=1, initial=0) > 0).mean()) if len(apart) else 0.0,
        decode_device=device,
        fallback=fallback,
    )


def _size(pixels: NDArray[np.uint8]) -> str:
    return f"{len(pixels)} frames of {pixels.shape[2]}x{pixels.shape[1]}"


def _sound(clip: Clip, rate_hz: int) -> tuple[Difference, ...]:
    """The first seconds of a clip's sound through each resampler, compared with the first of them."""
    path = clip.media.get("audio") or clip.media.get("video")
    if path is None or path.is_dir():
        return ()
    start = clip.start_seconds or 0.0
    end = min(start + _SOUND_SECONDS, clip.end_seconds or np.inf)
    names = [name for name, resampler in RESAMPLERS.items() if not resampler.why_not()]
    try:
        samples = [read_sound(path, rate_hz, start, float(end), resampler=name).samples for name in names]
    except MediaAbsent:
        return ()
    except MediaError as error:
        return tuple(Difference(name, failure=str(error)) for name in names)
    length = min(len(part) for part in samples)
    apart = [np.abs(part[:length] - samples[0][:length]) for part in samples]
    return tuple(
        Difference(name, largest=float(a.max(initial=0)), mean=float(a.mean()), differing=float((a > 0).mean()))
        for name, a in zip(names, apart, strict=True)
    )


def _summed(name: str, found: list[Difference]) -> Difference:
    compared = [d for d in found if not d.failure and not d.only_one]
    odd = next((d for d in found if d.only_one), None)
    return Difference(
        name,
        failure=odd.failure if odd is not None else "",
        only_one=odd is not None,
        largest=max((d.largest for d in compared), default=0.0),
        mean=float(np.mean([d.mean for d in compared])) if compared else 0.0,
        differing=float(np.mean([d.differing for d in compared])) if compared else 0.0,
        decode_device=", ".join(sorted({d.decode_device for d in compared if d.decode_device})),
        fallback=next((d.fallback for d in found if d.fallback), ""),
    )
