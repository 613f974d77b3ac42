"""An embedded synthetic audio-visual data set: real mp4 files, made in minutes, the same bytes every time.

Importing this costs nothing: NumPy, OpenCV and the encoder are loaded by the first call of `write_demo`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.datasets.demo.plan import CLASSES, DOMAINS, ClipPlan, DemoSpec, plan_clips

__all__ = ["CLASSES", "DOMAINS", "ClipPlan", "DemoSpec", "plan_clips", "recorded_spec", "write_demo"]


def write_demo(
    root: Path, spec: DemoSpec, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write the data set below root and return the path of manifest.csv.

    Files that are there are kept, so a call that was interrupted is finished by the next one, and a call on a
    finished data set returns at once. The bytes do not depend on ``workers``.

    Args:
        root: folder of the data set; made if missing.
        spec: what to make.
        workers: processes that render; 1 renders in this process.
        progress: called in this process with (clips that are there, clips in total).

    Raises:
        UsageError: root holds another data set, or another process is writing there, or workers < 1.
        PipeError: this installation cannot encode H.264 and AAC.
    """
    from pipeline.datasets.demo.write import write

    return write(Path(root), spec, workers, progress)


def recorded_spec(root: Path) -> DemoSpec:
    """Return the spec of the demo data set below root, or the default one where nothing is recorded yet.

    Raises:
        UsageError: the record cannot be read.
    """
    from pipeline.datasets.demo.write import read_spec

    return read_spec(Path(root)) or DemoSpec()
