"""`pipe predict` of demo clips: ``python -m tests.bench.predict MODEL FOLDER``.

Files per second against the bare backbones' forward passes over the same clips, decoded before; how long one clip of
10 s takes in a warm and in a fresh process; memory after 100 and after 1,000 files; and what windows cost that look
for the frames of their file anew.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import psutil
import torch

from pipeline.api import load_model
from pipeline.decode.scan import _scans
from pipeline.decoding import Clock, decode_clip
from pipeline.encode import encode_clips
from pipeline.inputs import InputOptions, MediaItem, media_items
from pipeline.predict import Predictor
from pipeline.process import default_workers
from pipeline.windows import Windowing, windows_of
from tests import media_corpus

TURNS = 3
FILES = 120


def median(turns: list[float]) -> float:
    """Median of some turns."""
    return statistics.median(turns)


def found(folder: Path) -> list[MediaItem]:
    """The media of a folder, in a fixed order."""
    return [item for item in media_items([folder], InputOptions()) if item is not None]


def throughput(predictor: Predictor, items: list[MediaItem]) -> tuple[float, float]:
    """Files per second of predicting, and of the bare forward passes over the same decoded clips, in one thread."""
    rates, bare = [], []
    decoded = [decode_clip(item.clip, predictor.settings.modalities, predictor.settings) for item in items]
    list(predictor.predict(iter(items[: 4 * predictor.workers])))  # processes start and load
    for _ in range(TURNS):
        start = time.perf_counter()
        count = sum(1 for _ in predictor.predict(iter(items)))
        rates.append(count / (time.perf_counter() - start))
        clock = Clock()
        for clip in decoded:
            encode_clips([clip], predictor.settings, clock)
        bare.append(len(items) / clock.seconds["backbone"])
    return median(rates), median(bare)


def latency(predictor: Predictor, model: Path, path: Path) -> tuple[float, float]:
    """Seconds of one clip in a process that is warm, and of the command from its start to its end."""
    item = MediaItem.from_path(str(path))
    warm, fresh = [], []
    list(predictor.predict(iter([item])))
    for _ in range(TURNS):
        start = time.perf_counter()
        list(predictor.predict(iter([item])))
        warm.append(time.perf_counter() - start)
        start = time.perf_counter()
        arguments = [sys.executable, "-m", "pipeline", "predict", str(model), str(path), "--json", "--window", "off"]
        subprocess.run(arguments, check=True, capture_output=True)
        fresh.append(time.perf_counter() - start)
    return median(warm), median(fresh)


def memory(predictor: Predictor, items: list[MediaItem], total: int = 1000) -> dict[int, list[float]]:
    """MiB of this process and of each worker after 100 and after all files."""
    used = {}
    for number, _ in enumerate(predictor.predict(islice(cycle(items), total)), 1):
        if number in (100, total):
            mine = psutil.Process(os.getpid())
            processes = [mine, *(p for p in mine.children() if p.memory_info().rss > 2**26)]
            used[number] = [p.memory_info().rss / 2**20 for p in processes]
    return used


def rescans(path: Path) -> tuple[int, float, float]:
    """Windows of a long video, and seconds to open its frames for all of them: scan kept, and scan made each time."""
    clip = MediaItem.from_path(str(path)).clip
    windows, _ = windows_of(clip, True, Windowing("fixed", 4.0, 2.0))
    seconds = []
    from pipeline.decode import open_frames

    for forget in (False, True):
        start = time.perf_counter()
        for a, b in windows:
            if forget:
                _scans.clear()
            open_frames(path, a, b).close()
        seconds.append(time.perf_counter() - start)
    return len(windows), *seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="what pipe export wrote")
    parser.add_argument("folder", type=Path, help="clips, for example the demo's")
    given = parser.parse_args()
    torch.set_num_threads(1)
    items = list(islice(cycle(found(given.folder)), FILES))
    with tempfile.TemporaryDirectory() as temporary:
        ten = media_corpus.write_video(Path(temporary, "ten.mp4"), 300, size=(320, 240), sound_seconds=10.0)
        long = media_corpus.write_video(
            Path(temporary, "long.mp4"), 9000, size=(96, 64), options={"preset": "ultrafast"}
        )
        for workers in (1, default_workers()):
            with load_model(given.model, workers=workers, window="off", device="cpu") as predictor:
                rate, bare = throughput(predictor, items)
                print(f"{workers} workers: {rate:.1f} files/s; bare backbones in one thread {bare:.1f} clips/s")
        with load_model(given.model, workers=default_workers(), window="off", device="cpu") as predictor:
            warm, fresh = latency(predictor, given.model, ten)
            print(f"one clip of 10 s, 320 x 240 with sound: {warm * 1e3:.0f} ms warm, {fresh:.2f} s in a fresh process")
            for number, values in memory(predictor, items).items():
                print(f"after {number} files: {', '.join(f'{value:.0f}' for value in values)} MiB")
        count, kept, anew = rescans(long)
        print(f"opening {count} windows of a video of 5 min: {kept:.2f} s with its scan kept, {anew:.2f} s without")


if __name__ == "__main__":
    main()
