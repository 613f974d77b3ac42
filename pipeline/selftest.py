"""The golden numbers on this machine: how far our results on a device, in a precision, are from the reference's.

Files and rules are those of the README beside the numbers. What does not depend on the device (label draws) is left to
the tests.
"""

from __future__ import annotations

import json
import math
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors.inputs import FrameInput
from extractors.spectrogram import fit_length, log_spectrogram
from extractors.views.flow import render_flow
from extractors.views.plan import plan_frames
from extractors.views.sampling import clean_offset, frame_indices
from extractors.views.video import render_video
from pipeline.errors import UsageError, choose
from pipeline.selftest_networks import BACKBONE_CASES, backbone_case
from pipeline.selftest_step import step_cases

GoldenState = Literal["pass", "fail", "absent", "skipped", "unknown"]
Archive = Mapping[str, NDArray[Any]]
PRECISIONS = ("float32", "bfloat16")
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}  # of the networks; measured on a CPU: 6e-7 and 8e-3
EXAMPLE_WAV = "FwVYUHKoLtQ_000034.wav"
SAMPLES = 160_000  # of a spectrogram's input
SILENT = ("empty_segment", "zeros_2s", "constant_0.25_2s")
RGB = FrameInput(2, 1, 256, 224, 224, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
FLOW = FrameInput(2, 1, 256, 224, 256, mean=(128.0, 128.0), std=(128.0, 128.0))
FRAME_SHAPES = {"rgb": (32, 2), "flow": (8, 4)}  # frames and their distance
PIXEL_SEEDS = {
    "rgb/256x456": 5001,
    "rgb/240x320": 5002,
    "rgb/720x1280": 5003,
    "flow/256x456": 5004,
    "flow/240x320": 5005,
}
COMPANIONS = {
    "README.md": "the rules",
    "label_budgets.json": "label draws; they depend on no device and are left to the tests",
    "backbones_state_dict_keys.json": "shapes of the backbones' weights, read with backbones.npz",
}


@dataclass(frozen=True)
class GoldenResult:
    """One golden file's case, or group of cases, on this machine."""

    name: str  # file and case
    state: GoldenState
    largest: float = 0.0  # of all differences the one that uses most of its tolerance
    tolerance: float = 0.0  # that belongs to it
    unit: str = ""  # of both
    detail: str = ""


class Worst:
    """Of many differences the one that uses most of its tolerance; a NaN is worse than any number."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.largest, self.tolerance, self.share = 0.0, 0.0, -1.0
        self.faults: list[str] = []

    def add(self, ours: object, theirs: object, tolerance: float) -> None:
        """Compare arrays of one shape."""
        a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        if a.shape != b.shape:
            self.faults.append(f"shape {a.shape} instead of {b.shape}")
            return
        found = float(np.abs(a - b).max(initial=0.0))
        share = found / tolerance if tolerance else (0.0 if found == 0 else math.inf)
        share = math.inf if math.isnan(share) else share
        if share > self.share:
            self.largest, self.tolerance, self.share = found, tolerance, share

    def expect(self, right: bool, fault: str) -> None:
        """Something that is right or wrong."""
        if not right:
            self.faults.append(fault)

    def result(self, detail: str = "") -> GoldenResult:
        """What was found."""
        failed = bool(self.faults) or self.share > 1
        largest = self.largest if math.isfinite(self.largest) else 1e308  # JSON knows no NaN
        told = "; ".join([*dict.fromkeys(self.faults), *([detail] if detail else [])])
        return GoldenResult(self.name, "fail" if failed else "pass", largest, self.tolerance, self.unit, told)


def run_golden(
    folder: Path, device: str = "cpu", precision: str = "float32", advance: Callable[[str], None] = lambda name: None
) -> list[GoldenResult]:
    """Compare with every golden file of a folder.

    Args:
        folder: of the golden files.
        device: ``cpu`` or ``cuda:N``.
        precision: of backbones and of the training step: ``float32`` or ``bfloat16``.
        advance: called with the name of every file before it is compared.

    Raises:
        UsageError: no such folder, or nothing known in it.
    """
    choose("precision", precision, PRECISIONS)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not set(names) & set(FILES):
        raise UsageError(f"{folder} holds no golden numbers; expected files: {', '.join(FILES)}")
    where = Where(folder, torch.device(device), precision)
    found: list[GoldenResult] = []
    for name, compare in FILES.items():
        if name not in names:
            found.append(GoldenResult(name, "absent", detail="not in the folder"))
            continue
        advance(name)
        try:
            found += compare(where)
        except Exception as error:  # a damaged file must not hide what the others tell
            found.append(GoldenResult(name, "fail", detail=f"{type(error).__name__}: {error}"))
    for name in names:
        if name in COMPANIONS:
            if name == "label_budgets.json":
                found.append(GoldenResult(name, "skipped", detail=COMPANIONS[name]))
        elif name not in FILES:
            found.append(GoldenResult(name, "unknown", detail="this version of pipe does not know the file"))
    return found


@dataclass(frozen=True)
class Where:
    """Where the numbers are, and where ours are computed."""

    folder: Path
    device: torch.device
    precision: str

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """All arrays of an archive."""
        # Opened here: numpy leaves the file of a damaged archive open.
        with (self.folder / name).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}


def sampling(where: Where) -> list[GoldenResult]:
    """Frame indices, exactly."""
    golden = json.loads((where.folder / "sampling.json").read_text(encoding="utf-8"))
    worst = Worst("sampling.json", "frames")
    for modality, (count, interval) in FRAME_SHAPES.items():
        window = count * interval
        seed = golden["train_mode_indices"]["numpy_legacy_seed_before_each_call"]
        for text, expected in golden["test_mode_indices"][modality].items():
            total = int(text)
            worst.add(frame_indices(total, count, interval, clean_offset(total, window)), expected, 0)
        for text, expected in golden["train_mode_indices"][modality].items():
            total = int(text)
            offset = np.random.RandomState(seed).randint(total - window + 1) if total >= window else 0
            worst.add(frame_indices(total, count, interval, int(offset)), expected, 0)
    return [worst.result()]


def _golden_frames(channels: int, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """The two frames of a case, ``(2, height, width, channels)``."""
    frames = []
    for i in range(2):
        rng = np.random.default_rng(10 * seed + i)
        a, p = rng.uniform(2, 9, (2, channels)), rng.uniform(0, 6.28, (2, channels))
        x, y = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
        pattern = 127.5 + 80 * np.sin(a[0] * 6.28 * x + p[0]) * np.cos(a[1] * 6.28 * y + p[1])
        noisy = pattern + 30 * rng.standard_normal((height, width, channels))
        frames.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    return np.stack(frames)


def preprocess(where: Where) -> list[GoldenResult]:
    """Resizing, cropping and normalisation on the device, to one grey level."""
    golden = where.arrays("preprocess.npz")
    found = []
    for case, seed in PIXEL_SEEDS.items():
        modality, size = case.split("/")
        if f"{case}/output_shape" not in golden:
            found.append(GoldenResult(f"preprocess.npz {case}", "absent", detail="no such case in the file"))
            continue
        height, width = map(int, size.split("x"))
        rgb = modality == "rgb"
        frames = _golden_frames(3 if rgb else 2, height, width, seed)
        level = (1 / 57 if rgb else 1 / 128) + 1e-6
        worst = Worst(f"preprocess.npz {case}", "normalised grey levels")
        check = int(golden[f"{case}/input_check"][0])
        worst.expect(int(frames.sum(dtype=np.int64)) == check, "the input was not regenerated as the README says")
        spec, rows = (RGB, FLOW)[not rgb], np.arange(2)
        plans = plan_frames("c", 2, spec, [("clean", 0)], 0, "video" if rgb else "flow")
        pixels = torch.from_numpy(frames).to(where.device)
        if rgb:
            ours = render_video(pixels, rows, plans, spec, antialias=False)[0]
        else:
            ours = render_flow(pixels.permute(0, 3, 1, 2).contiguous(), rows, plans, spec, antialias=False)[0]
        worst.expect(tuple(ours.shape[-2:]) == tuple(golden[f"{case}/output_shape"][-2:]), f"size {tuple(ours.shape)}")
        worst.add(ours[:, :, ::4, ::4].cpu(), golden[f"{case}/output_t01_strided"][0], level)
        values = ours.double().cpu()
        worst.add([values.mean(), values.std(correction=0)], golden[f"{case}/output_mean_std"], 0.2 * level)
        found.append(worst.result())
    return found


def _signal(case: Mapping[str, Any], folder: Path) -> NDArray[np.float64] | None:
    """The signal of a spectrogram's case; ``None`` where its file is not here."""
    if case.get("src") == "wav":
        paths = [folder / EXAMPLE_WAV, folder.parent / "media" / EXAMPLE_WAV]
        path = next((p for p in paths if p.is_file()), None)
        if path is None:
            return None
        with wave.open(str(path)) as file:
            return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2") / 32768.0
    count = round(case["sr"] * case["dur"])
    if case.get("zeros"):
        return np.zeros(count)
    if "const" in case:
        return np.full(count, float(case["const"]))
    t = np.arange(count) / case["sr"]
    tones = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 3000 * t)
    noisy: NDArray[np.float64] = tones + 0.1 * np.random.default_rng(case["seed"]).standard_normal(count)
    return noisy * float(case.get("gain", 1.0))


def spectrogram(where: Where) -> list[GoldenResult]:
    """The log spectrogram in float64 and float32."""
    golden = where.arrays("spectrogram.npz")
    found = []
    for name, case in json.loads(str(golden["meta_json"])).items():
        x = _signal(case, where.folder)
        if x is None:
            told = f"{EXAMPLE_WAV} is neither beside the numbers nor in ../media"
            found.append(GoldenResult(f"spectrogram.npz {name}", "skipped", detail=told))
            continue
        segment = torch.from_numpy(x[case["start_sample"] : case["stop_sample_exclusive"]].copy()).to(where.device)
        for kind, tolerance in ((torch.float64, 2e-6), (torch.float32, 1e-4)):
            # The stored value of silence is the rounding of a mean, divided by 1e-9; ours is exactly 0.
            allowed = 2e-5 if name in SILENT else tolerance
            worst = Worst(f"spectrogram.npz {name} {str(kind).removeprefix('torch.')}", "standard deviations")
            values = log_spectrogram(fit_length(segment.to(kind), SAMPLES)[None], case["sample_rate"])[0]
            ours = values.double().cpu().numpy()
            worst.add(ours[::4, ::8], golden[f"{name}/spectrogram_strided"], allowed)
            worst.add(ours.mean(1), golden[f"{name}/row_mean"], allowed)
            worst.add(ours.mean(0), golden[f"{name}/col_mean"], allowed)
            found.append(worst.result())
    return found


def train_step(where: Where) -> list[GoldenResult]:
    """Losses, masks, gradients and updates of SSMDG's step."""
    golden = where.arrays("train_step.npz")
    found = []
    for name, unit, compare in step_cases(golden, where.device, where.precision):
        worst = Worst(f"train_step.npz {name}", unit)
        compare(worst)
        found.append(worst.result())
    return found


def backbones(where: Where) -> list[GoldenResult]:
    """Maps, embeddings and logits of the frozen networks."""
    golden = where.arrays("backbones.npz")
    keys = json.loads((where.folder / "backbones_state_dict_keys.json").read_text(encoding="utf-8"))
    readme = (where.folder / "README.md").read_text(encoding="utf-8")
    found = []
    for modality in BACKBONE_CASES:
        for name, results in backbone_case(modality, golden, keys["state_dict_shapes"], readme, where):
            worst = Worst(f"backbones.npz {name}", "of the largest value")
            for part, ours in results.items():
                _compare_tensor(worst, golden, f"{name}/{part}", ours, TOLERANCES[where.precision])
            found.append(worst.result())
    return found


def _compare_tensor(worst: Worst, golden: Archive, name: str, ours: Tensor, tolerance: float) -> None:
    """A tensor with what is stored of it, in units of its largest value."""
    values = ours.double().cpu().numpy()
    worst.expect(list(values.shape) == golden[f"{name}/shape"].tolist(), f"{name} is {values.shape}")
    statistics = golden[f"{name}/mean_std_min_max"]
    largest = max(abs(statistics[2]), abs(statistics[3]))
    if name in golden:
        worst.add(values / largest, golden[name] / largest, tolerance)
    else:
        sample = golden[f"{name}/sample"]
        stride = int(golden[f"{name}/sample_stride"])
        worst.add(values.reshape(-1)[::stride][: len(sample)] / largest, sample / largest, tolerance)
    own = np.array([values.mean(), values.std(), values.min(), values.max()])
    worst.add(own / largest, statistics / largest, tolerance)


FILES: dict[str, Callable[[Where], list[GoldenResult]]] = {
    "sampling.json": sampling,
    "preprocess.npz": preprocess,
    "spectrogram.npz": spectrogram,
    "train_step.npz": train_step,
    "backbones.npz": backbones,
}
