"""Decoded clips -> features: views and backbones, many clips at once on a GPU, one after the other on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.layout import ClipRecord, Status
from extractors.encoder import Encoder
from extractors.loading import Weights, load_encoder
from extractors.views.audio import SoundClip, render_audio_batch
from extractors.views.batch import FrameClip
from extractors.views.flow import render_flow_batch
from extractors.views.geometry import stack_by_side
from extractors.views.plan import needed_indices
from extractors.views.video import render_video_batch
from pipeline.decoding import Clock, Decoded, Images, decode_clip, flow_between, frame_spec, places, sound_spec
from pipeline.extraction import ExtractSettings, usage_errors
from pipeline.types import Clip

Features = dict[str, tuple[NDArray[Any] | None, ClipRecord]]
Rendered = tuple[int, list[Tensor], Mapping[str, Any]]  # position of the clip, its views, facts


@lru_cache(maxsize=8)
def _encoder(backbone: str, weights: Weights, device: str, tap: str, precision: str, compiled: bool) -> Encoder:
    with usage_errors():
        return load_encoder(backbone, weights, device, tap, precision, compiled)


def encoder_of(settings: ExtractSettings, modality: str) -> Encoder:
    """The loaded encoder of a modality; each process loads it once."""
    return _encoder(
        settings.backbones[modality],
        settings.weights_of(modality),
        settings.device,
        settings.tap,
        settings.precision_of(modality),
        settings.compiled,
    )


def extract_clip(clip: Clip, modalities: Sequence[str], settings: ExtractSettings, clock: Clock) -> Features:
    """Features ``(views, dim)`` and the record of one clip, per modality; a bad track never raises."""
    (features,) = encode_clips([decode_clip(clip, modalities, settings)], settings, clock)
    return features


def encode_clips(clips: Sequence[Decoded], settings: ExtractSettings, clock: Clock) -> list[Features]:
    """Features ``(views, dim)`` of ``settings.dtype`` and the records of decoded clips, per modality.

    Args:
        clips: what ``decode_clip`` returned; their seconds are added to the clock.
        settings: modalities, backbones, views.
        clock: counts the time.

    Returns:
        Per clip and modality features, ``None`` where there are none, and the record.
    """
    out: list[Features] = []
    for clip in clips:
        out.append({modality: (None, record) for modality, record in clip.records.items()})
        for stage, seconds in clip.seconds.items():
            clock.seconds[stage] += seconds
    for modality in settings.modalities:
        rendered = _rendered(clips, modality, settings, clock)
        if not rendered:
            continue
        with clock.stage("backbone"):
            views = [view for _, mine, _ in rendered for view in mine]
            values = _encode(encoder_of(settings, modality), views, settings.dtype)
        start = 0
        for position, mine, facts in rendered:
            out[position][modality] = _result(
                values[start : start + len(mine)], clips[position], modality, facts, settings
            )
            start += len(mine)
    return out


def _result(
    values: NDArray[Any], clip: Decoded, modality: str, facts: Mapping[str, Any], settings: ExtractSettings
) -> tuple[NDArray[Any] | None, ClipRecord]:
    """Features of a clip and their record; what leaves the type that they are stored in is a failed track."""
    if np.isfinite(values).all():
        return values, ClipRecord(clip.clip_id, Status.PRESENT, "", "", clip.fingerprint, facts)
    detail = f"{modality} features of {settings.backbones[modality]} leave {settings.dtype} or are not numbers"
    return None, ClipRecord(clip.clip_id, Status.FAILED, "not_finite", detail, clip.fingerprint, facts)


def _rendered(clips: Sequence[Decoded], modality: str, settings: ExtractSettings, clock: Clock) -> list[Rendered]:
    """Network inputs of every clip that has a modality; a GPU makes those of all clips at once."""
    if modality == "audio":
        return _sound_views(clips, settings, clock)
    found = [(i, images) for i, clip in enumerate(clips) for images in clip.images if modality in images.plans]
    frames = [_frame_clip(images, modality, settings, clock) for _, images in found]
    render = render_video_batch if modality == "video" else render_flow_batch
    with clock.stage("views"):
        views = render(frames, frame_spec(settings, modality), variant=settings.views.variant)
    return [(position, mine, images.facts) for (position, images), mine in zip(found, views, strict=True)]


def _sound_views(clips: Sequence[Decoded], settings: ExtractSettings, clock: Clock) -> list[Rendered]:
    """Spectrograms of every clip that has sound."""
    found = [(i, clip.clip_id, clip.sound) for i, clip in enumerate(clips) if clip.sound is not None]
    names = [(view.kind, view.index) for view in settings.views.views()]
    with clock.stage("views"):
        sounds = [SoundClip(name, torch.from_numpy(sound.samples).to(settings.device)) for _, name, sound in found]
        views = render_audio_batch(
            sounds, names, settings.views.seed, sound_spec(settings), variant=settings.views.variant
        )
    return [(position, list(mine), sound.facts) for (position, _, sound), mine in zip(found, views, strict=True)]


def _frame_clip(images: Images, modality: str, settings: ExtractSettings, clock: Clock) -> FrameClip:
    """Pictures on the device, of which views are made; flow that is still missing is computed."""
    plans = images.plans[modality]
    pixels, numbers = images.pixels, images.numbers
    if modality == "flow" and not images.hold_flow:
        pairs = needed_indices(plans)
        with clock.stage("flow"):
            first, second = pixels[places(numbers, pairs)], pixels[places(numbers, pairs + 1)]
            flow = flow_between(first.to(settings.device), second.to(settings.device), settings)
            return FrameClip(flow, pairs, plans)
    with clock.stage("views"):
        own = needed_indices(plans)
        if len(own) < len(numbers):
            pixels, numbers = pixels[places(numbers, own)], own
        return FrameClip(pixels.to(settings.device), numbers, plans)


def _encode(encoder: Encoder, views: Sequence[Tensor], dtype: str) -> NDArray[Any]:
    """Features ``(views, dim)``; views of one shape go through the network together."""
    rows: dict[int, Tensor] = {}
    for positions, batch in stack_by_side(views).values():
        rows.update(zip(positions, encoder(batch), strict=True))
    with np.errstate(over="ignore"):  # an overflow becomes inf, which the caller reports
        return torch.stack([rows[i] for i in range(len(views))]).numpy().astype(dtype)
