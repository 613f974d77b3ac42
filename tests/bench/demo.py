"""``pipe demo`` from nothing, again, and the start of ``pipe --help``: ``python -m tests.bench.demo``.

Wall seconds by stage (from what appears in the workspace), peak memory of the whole process tree (proportional set
size where the system tells it, so shared pages count once), and the median of ten starts.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PIPE = [sys.executable, "-m", "pipeline"]
# What has appeared when a stage is over.
MARKS = {"data": "data/demo/manifest.csv", "features and probe": "results", "runs": "report"}


def tree_bytes(process: psutil.Process) -> int:
    """Memory of a process and its children."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            info = member.memory_full_info()
            total += getattr(info, "pss", info.uss)
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def run(work: Path) -> tuple[dict[str, float], float, int]:
    """Run the demo; returns when each mark appeared, the end, and the peak memory."""
    start = time.perf_counter()
    process = psutil.Popen([*PIPE, "demo", "--work", str(work)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: dict[str, float] = {}
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_bytes(process))
        for name, mark in MARKS.items():
            if name not in seen and (work / mark).exists():
                seen[name] = time.perf_counter() - start
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"pipe demo ended with exit code {process.returncode}")
    return seen, time.perf_counter() - start, peak


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        seen, seconds, peak = run(Path(name) / "work")
        before = 0.0
        for stage, at in [*seen.items(), ("report", seconds)]:
            print(f"{stage}: {at - before:.1f} s")
            before = at
        print(f"pipe demo: {seconds:.1f} s, peak memory {peak / 2**30:.2f} GiB")
        _, seconds, peak = run(Path(name) / "work")
        print(f"pipe demo, second call: {seconds:.1f} s, peak memory {peak / 2**30:.2f} GiB")
    starts = []
    for _ in range(10):
        start = time.perf_counter()
        subprocess.run([*PIPE, "--help"], stdout=subprocess.DEVNULL, check=True)
        starts.append(time.perf_counter() - start)
    print(f"pipe --help: median {statistics.median(starts):.2f} s of {len(starts)} starts")


if __name__ == "__main__":
    main()
