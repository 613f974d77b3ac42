"""What views cost: ``python -m tests.bench.views [--device cuda] [--clips 8] [--turns 5] [--only frames,sound]``.

* frames, sound: views per second of clips one by one and of all clips together, and the kernels that a view queues; on
  a CPU also in groups as on a GPU, which shows why it does not form them and how many kernels they save there.
* spectrograms: per second, ours against scipy's and librosa's, in a loop and as a batch, on the same float32 sound.

All ways of a row take turns in one process; medians. On a CPU seconds are those of the processor, of one thread.
Decoding and networks have benchmarks of their own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import librosa
import numpy as np
import torch
from scipy import signal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from extractors.backbone import BACKBONES
from extractors.encoder import Backbone
from extractors.inputs import AudioInput, FrameInput
from extractors.spectrogram import log_magnitude, log_mel, log_spectrogram
from extractors.views import audio, batch
from extractors.views.audio import SoundClip, render_audio, render_audio_batch
from extractors.views.batch import FrameClip
from extractors.views.flow import render_flow, render_flow_batch
from extractors.views.plan import needed_indices, plan_frames
from extractors.views.video import render_video, render_video_batch
from pipeline.process import configure_process
from tests.bench.backbones import seconds

VIEWS = [("clean", 0), ("weak", 0), ("weak", 1), ("strong", 0), ("strong", 1)]  # what is extracted by default
FRAMES = ("tiny-rgb", "slowfast-r101", "resnet18", "tiny-flow", "slowonly-r50-flow")
SOUND = ("tiny-audio", "vggsound-r18", "resnet18-spec", "resnet18-mel")
TOTAL, RATE_HZ, SHAPE = 150, 30.0, (256, 456)  # of a clip's frames
WAVEFORMS = 32
Ways = Mapping[str, Callable[[], object]]


class Kernels(TorchDispatchMode):
    """Counts operations that compute or copy; those that only look at memory in another way are left out."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        looks = func.is_view or func in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default)
        self.count += not looks
        return result


def in_groups(run: Callable[[], object]) -> Callable[[], object]:
    """The same in the groups that a GPU forms."""

    def call() -> object:
        kept = batch.views_at_once
        size = partial(kept, torch.device("cuda"))
        batch.views_at_once = audio.views_at_once = lambda device, values: size(values)
        try:
            return run()
        finally:
            batch.views_at_once = audio.views_at_once = kept

    return call


def medians(ways: Ways, device: torch.device, turns: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, and the first turn does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, run in ways.items():
            spent = seconds(run, device)
            if turn:
                found[name].append(spent)
    return {name: statistics.median(values) for name, values in found.items()}


def frame_ways(backbone: Backbone, clips: int, device: torch.device) -> Ways:
    """Rendering of clips of ``SHAPE``, of which only the planned frames are there."""
    spec, rng = backbone.input, np.random.default_rng(0)
    assert isinstance(spec, FrameInput)
    work = []
    for i in range(clips):
        plans = plan_frames(f"clip{i}", TOTAL, spec, VIEWS, 0, backbone.modality, RATE_HZ)
        rows = needed_indices(plans)
        shape = (len(rows), *SHAPE, 3) if backbone.modality == "video" else (len(rows), 2, *SHAPE)
        work.append(FrameClip(torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)).to(device), rows, plans))
    one, many = (render_video, render_video_batch) if backbone.modality == "video" else (render_flow, render_flow_batch)
    return {
        "one by one": lambda: [one(clip.images, clip.rows, clip.plans, spec) for clip in work],
        "batched": lambda: many(work, spec),
    }


def sound_ways(backbone: Backbone, clips: int, device: torch.device) -> Ways:
    """Rendering of clips of about the length that is kept."""
    spec, rng = backbone.input, np.random.default_rng(0)
    assert isinstance(spec, AudioInput)
    lengths = rng.integers(spec.num_samples // 2, spec.num_samples * 3 // 2, clips)
    sounds = [torch.from_numpy(rng.normal(0, 0.2, n).astype(np.float32)).to(device) for n in lengths]
    work = [SoundClip(f"clip{i}", sound) for i, sound in enumerate(sounds)]
    return {
        "one by one": lambda: [render_audio(clip.samples, VIEWS, clip.clip_id, 0, spec) for clip in work],
        "batched": lambda: render_audio_batch(work, VIEWS, 0, spec),
    }


def bench_views(names: tuple[str, ...], clips: int, device: torch.device, turns: int) -> None:
    """Print the lines of views."""
    print("\n| backbone | way | ms per view | views/s | against one by one | kernels per view |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        backbone = BACKBONES[name]
        make = frame_ways if isinstance(backbone.input, FrameInput) else sound_ways
        ways = dict(make(backbone, clips, device))
        if device.type == "cpu":
            ways["batched, in a GPU's groups"] = in_groups(ways["batched"])
        views = clips * len(VIEWS)
        found = medians(ways, device, turns)
        for way, spent in found.items():
            with Kernels() as kernels:
                ways[way]()
            print(
                f"| {name} | {way} | {spent / views * 1e3:.2f} | {views / spent:.0f} "
                f"| {found['one by one'] / spent:.2f} | {kernels.count / views:.1f} |"
            )


def spectrogram_ways(device: torch.device) -> dict[str, Ways]:
    """Ways to each spectrogram, of the same sounds."""
    rng = np.random.default_rng(0)
    long = rng.normal(0, 0.2, (WAVEFORMS, 160_000)).astype(np.float32)
    short = rng.normal(0, 0.2, (WAVEFORMS, 66_150)).astype(np.float32)
    ours_long, ours_short = (torch.from_numpy(x).to(device) for x in (long, short))

    def by_scipy(x: np.ndarray) -> np.ndarray:
        level = np.log(signal.spectrogram(x, 16_000, nperseg=512, noverlap=353)[2] + 1e-7)
        mean, std = level.mean((-2, -1), keepdims=True), level.std((-2, -1), keepdims=True)
        return (level - mean) / (std + 1e-9)

    def by_librosa(x: np.ndarray) -> np.ndarray:
        return np.log(np.abs(librosa.stft(x, n_fft=512, hop_length=353)) + 1e-7)

    def mel_by_librosa(x: np.ndarray) -> np.ndarray:
        return np.log(librosa.feature.melspectrogram(y=x, sr=22_050) + 1e-7)

    def ways(x: np.ndarray, theirs: Callable[[Any], object], y: Tensor, ours: Callable[[Tensor], Tensor]) -> Ways:
        return {
            "theirs, loop": lambda: [theirs(row) for row in x],
            "theirs, batch": lambda: theirs(x),
            "ours, loop": lambda: [ours(y[i : i + 1]) for i in range(len(y))],
            "ours, batch": lambda: ours(y),
        }

    return {
        "power, 257 x 1004, scipy": ways(long, by_scipy, ours_long, lambda x: log_spectrogram(x, 16_000)),
        "magnitude, 257 x 188, librosa": ways(short, by_librosa, ours_short, log_magnitude),
        "mel, 128 x 130, librosa": ways(short, mel_by_librosa, ours_short, lambda x: log_mel(x, 22_050)),
    }


def bench_spectrograms(device: torch.device, turns: int) -> None:
    """Print the lines of spectrograms."""
    print("\n| spectrogram, theirs | way | ms | per second | against their loop | largest difference to it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, ways in spectrogram_ways(device).items():
        found = medians(ways, device, turns)
        results = {way: run() for way, run in ways.items()}
        plain = {
            way: np.concatenate([np.atleast_3d(torch.as_tensor(row).cpu().numpy()).reshape(-1) for row in result])
            for way, result in results.items()
        }
        for way, spent in found.items():
            far = np.abs(plain[way] - plain["theirs, loop"]).max()
            print(
                f"| {name} | {way} | {spent / WAVEFORMS * 1e3:.2f} | {WAVEFORMS / spent:.0f} "
                f"| {found['theirs, loop'] / spent:.2f} | {far:.0e} |"
            )


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default="frames,sound,spectrograms")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    wanted = options.only.split(",")
    for part, names in (("frames", FRAMES), ("sound", SOUND)):
        if part in wanted:
            bench_views(names, options.clips, device, options.turns)
    if "spectrograms" in wanted:
        bench_spectrograms(device, options.turns)


if __name__ == "__main__":
    configure_process()
    main()
