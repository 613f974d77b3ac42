"""Writing the data set: atomically, resumably, with one process or several, the same bytes either way."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.datasets.demo.plan import ClipPlan, DemoSpec, plan_clips
from pipeline.errors import UsageError
from pipeline.locks import only_writer
from pipeline.types import digest
from pipeline.workers import Advance, run_tasks

MANIFEST = "manifest.csv"
SPEC_FILE = "demo.json"
COLUMNS = ("clip_id", "path", "label", "domain", "split", "group")
BLOCK_CLIPS = 4  # clips a process is given at a time
VERSION = 1  # goes up whenever the same spec would give other bytes
TEMPORARY = ".part"  # ending of files that are being written
BROKEN_SHARE = 0.55  # of the bytes of the cut-off file

Progress = Callable[[int, int], None]


def write(root: Path, spec: DemoSpec, workers: int, progress: Progress | None) -> Path:
    """Write what is missing of the data set; see `pipeline.datasets.demo.write_demo`."""
    if workers < 1:
        raise UsageError(f"demo workers is {workers}; give 1 or more")
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file; name a folder for the demo data set")
    plans = plan_clips(spec)
    manifest, text = root / MANIFEST, manifest_text(plans)
    # Without the lock: any number of processes may use a finished data set at the same time.
    finished = _is_claimed(root, spec) and manifest.exists() and manifest.read_bytes() == text.encode()
    if finished and _look(root, plans) == ([], []):
        if progress is not None:
            progress(len(plans), len(plans))
        return manifest
    with only_writer(root, "writing the demo data set into"):
        if not _is_claimed(root, spec):
            asked = _described(spec)
            _write_text(root / SPEC_FILE, json.dumps({**asked, "digest": digest(asked)}, indent=2) + "\n")
        missing, left_over = _look(root, plans)
        for path in left_over:
            path.unlink(missing_ok=True)
        _write_clips(root, spec, missing, len(plans), workers, progress)
        if not finished:
            _write_text(manifest, text)
    return manifest


def manifest_text(plans: list[ClipPlan]) -> str:
    """Return the manifest as CSV: one row per clip, paths relative to the root with forward slashes."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for plan in plans:
        writer.writerow([plan.clip_id, plan.path.as_posix(), plan.label, plan.domain, plan.split, plan.clip_id])
    return table.getvalue()


def write_clip(root: Path, spec: DemoSpec, plan: ClipPlan) -> None:
    """Render one clip and write its file, under a temporary name until it is complete."""
    from pipeline.datasets.demo.encode import encode
    from pipeline.datasets.demo.motion import draw_motion
    from pipeline.datasets.demo.scene import render
    from pipeline.datasets.demo.sound import synthesise

    motion = draw_motion(plan, spec.rate_hz)
    frames = render(plan, motion, spec.size, spec.rate_hz)
    sound = synthesise(plan, motion, spec.audio_rate_hz, spec.rate_hz) if plan.has_sound else None
    with _replacing(root / plan.path) as temporary:
        encode(temporary, frames, spec.rate_hz, sound, spec.audio_rate_hz)
        if plan.broken:
            os.truncate(temporary, int(BROKEN_SHARE * temporary.stat().st_size))


def _write_clips(
    root: Path, spec: DemoSpec, todo: list[ClipPlan], total: int, workers: int, progress: Progress | None
) -> None:
    from pipeline.datasets.demo.encode import video_encoder

    video_encoder()  # fails here with a clear message, before any process is started
    for folder in sorted({(root / plan.path).parent for plan in todo}):
        folder.mkdir(parents=True, exist_ok=True)
    done = total - len(todo)
    if progress is not None:
        progress(done, total)

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        if progress is not None:
            progress(done, total)

    blocks = [Block(root, spec, tuple(todo[i : i + BLOCK_CLIPS])) for i in range(0, len(todo), BLOCK_CLIPS)]
    for _ in run_tasks(write_block, blocks, workers, advance):
        pass


@dataclass(frozen=True)
class Block:
    """Clips that one process writes in one go."""

    root: Path
    spec: DemoSpec
    plans: tuple[ClipPlan, ...]


def write_block(block: Block, advance: Advance) -> None:
    """Write the clips of a block, one after the other, on one thread."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for plan in block.plans:
            write_clip(block.root, block.spec, plan)
            advance(1)
    finally:
        cv2.setNumThreads(threads)


def _look(root: Path, plans: list[ClipPlan]) -> tuple[list[ClipPlan], list[Path]]:
    """Return the clips without a file, and the files that an interrupted call left behind."""
    there: set[str] = set()
    left_over: list[Path] = []
    for folder in [root, *(root / folder for folder in sorted({plan.path.parent for plan in plans}))]:
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") and entry.name.endswith(TEMPORARY):
                    left_over.append(Path(entry.path))
                elif entry.is_file() and entry.stat().st_size:  # a power cut can leave an empty file
                    there.add(entry.name)
    return [plan for plan in plans if plan.path.name not in there], left_over


def _described(spec: DemoSpec) -> dict[str, object]:
    return {"version": VERSION, "spec": asdict(spec)}


def _is_claimed(root: Path, spec: DemoSpec) -> bool:
    """Return whether the folder is recorded as the data set of ``spec``; False where nothing is recorded yet.

    Raises:
        UsageError: the folder holds something else.
    """
    there = _record(root)
    if there is None:
        if (root / MANIFEST).exists():
            raise UsageError(
                f"{root} holds a {MANIFEST} but no {SPEC_FILE}, so it is not a demo data set; name another folder"
            )
        return False
    asked = _described(spec)
    if there != asked:
        raise UsageError(
            f"{root} holds the demo data set {_in_words(there)}, but {_in_words(asked)} was asked for; "
            "name another folder, or delete this one to make it anew"
        )
    return True


def read_spec(root: Path) -> DemoSpec | None:
    """Return the spec that a folder was started with; ``None`` where there is none.

    Raises:
        UsageError: the record cannot be read.
    """
    there = _record(root)
    if there is None:
        return None
    spec = there["spec"]
    if not isinstance(spec, dict):
        raise UsageError(f"{root / SPEC_FILE} has no spec; delete the folder {root} or name another one")
    return DemoSpec(**spec)


def _record(root: Path) -> dict[str, object] | None:
    """Return version and spec from the folder's record."""
    path = root / SPEC_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"version": found["version"], "spec": found["spec"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); delete the folder {root} or name another one") from error


def _in_words(described: dict[str, object]) -> str:
    spec = described["spec"]
    settings = ", ".join(f"{k}={v}" for k, v in spec.items()) if isinstance(spec, dict) else repr(spec)
    return f"({settings}; version {described['version']})"


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; what is written there becomes ``path`` if nothing fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    with _replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
