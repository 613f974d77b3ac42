"""What of this machine works with pipe and what does not, as facts with an advice each; nothing is printed here."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.checks import Check, State
from pipeline.errors import UsageError
from pipeline.process import default_workers

MOST_LISTED = 3  # files that a sentence names
LITTLE_BYTES = 2 * 2**30  # of memory or disk; below, a warning
# Distribution -> module that has to load.
REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "numpy": "numpy",
    "zarr": "zarr",
    "av": "av",
    "opencv-contrib-python-headless": "cv2",
    "scikit-learn": "sklearn",
}
# Distribution -> what it is for, and the extra of pipe that brings it; "" where pip installs it by its own name.
OPTIONAL = {
    "torchcodec": ("another decoder, also NVDEC", "torchcodec"),
    "decord2": ("a decoder for comparisons", "decord"),
    "soxr": ("--resampler soxr-hq", "soxr"),
    "dask": ("reading caches as dask arrays", "arrays"),
    "xarray": ("reading caches as xarray", "arrays"),
    "distributed": ("--cluster", "cluster"),
    "s3fs": ("caches at s3:// addresses", "s3"),
    "onnx": ("pipe export --onnx", "onnx"),
    "onnxruntime": ("checking what pipe export --onnx wrote", "onnx"),
}


@dataclass(frozen=True)
class Question:
    """What to look at."""

    work: Path
    cache: Path | str  # root of all caches
    weights: Path  # folder of weight files
    device: str = "cpu"  # cpu or cuda:N
    deep: bool = False  # read every weight file


def examine(question: Question, advance: Callable[[str], None] = lambda section: None) -> list[Check]:
    """All facts, section by section; what cannot be looked at is a fact too, and nothing is raised for it.

    Args:
        question: what to look at.
        advance: called with the name of every section before it is looked at.
    """
    from pipeline.doctor_media import flow_checks, sound_checks, video_checks

    sections: dict[str, Callable[[], Sequence[Check]]] = {
        "versions": versions,
        "machine": lambda: machine(question),
        "video": lambda: video_checks(question.device),
        "sound": sound_checks,
        "optical flow": lambda: flow_checks(question.weights),
        "cache": lambda: caches(question.cache),
        "weights": lambda: weights(question.weights, question.deep),
        "workspace": lambda: leftovers([question.work, question.weights]),
    }
    found: list[Check] = []
    for name, look in sections.items():
        advance(name)
        try:
            found += look()
        except Exception as error:  # the other sections may tell why
            found.append(
                Check(
                    name, name, "broken", f"looking at it failed: {type(error).__name__}: {error}", "please report it"
                )
            )
    return found


def failed(checks: Sequence[Check]) -> bool:
    """Whether something is broken."""
    return any(check.state == "broken" for check in checks)


def to_json(checks: Sequence[Check], results: Sequence[Any] = ()) -> str:
    """One JSON object: ``checks``, ``golden`` (of ``pipeline.selftest``) and ``broken``."""
    golden = [asdict(result) for result in results]
    broken = failed(checks) or any(result.state == "fail" for result in results)
    plain = {"schema": 1, "broken": broken, "checks": [check.to_json() for check in checks], "golden": golden}
    return json.dumps(plain, indent=1, allow_nan=False)


def versions() -> list[Check]:
    """Python, pipe, and the packages that it needs or can use."""
    section = "versions"
    found = [Check(section, "Python", "ok", f"{platform.python_version()} on {platform.platform()}")]
    found.append(_pipe(section))
    found += [_required(section, name, module) for name, module in REQUIRED.items()]
    for name, (purpose, extra) in OPTIONAL.items():
        try:
            found.append(Check(section, name, "ok", version(name)))
        except PackageNotFoundError:
            advice = f"pip install 'pipe-features[{extra}]'"
            found.append(Check(section, name, "missing", f"not installed; it is for {purpose}", advice))
    return found


def _pipe(section: str) -> Check:
    try:
        return Check(section, "pipe", "ok", version("pipe-features"))
    except PackageNotFoundError:
        return Check(section, "pipe", "broken", "not installed as a package", "run `pip install -e .` in its folder")


def _required(section: str, name: str, module: str) -> Check:
    """A package that must be there and load."""
    try:
        number = version(name)
    except PackageNotFoundError:
        number = ""
    try:
        importlib.import_module(module)
    except ImportError as error:
        advice = "run `pip install -e .` in pipe's folder, or `uv sync`"
        return Check(section, name, "broken", f"{number or 'not installed'}: {_first_line(error)}", advice)
    except (OSError, RuntimeError, AttributeError) as error:
        advice = "its build does not fit this machine or the other packages; install pipe into a fresh environment"
        return Check(section, name, "broken", f"{number} does not load: {_first_line(error)}", advice)
    if not number:  # another build of the same library, for example opencv-python
        return Check(section, name, "warning", f"{module} loads, but not from this package", "install pipe's own")
    return Check(section, name, "ok", number)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def machine(question: Question) -> list[Check]:
    """Processor, GPUs, memory and free disk."""
    section = "machine"
    found = [_processor(section), *_gpus(section)]
    total, free = _memory()
    if total:
        state: State = "ok" if free >= LITTLE_BYTES else "warning"
        advice = "" if state == "ok" else "close other programs, or use fewer --workers"
        found.append(Check(section, "memory", state, f"{_gib(free)} of {_gib(total)} free", advice))
    places = {
        "work folder": question.work,
        "weights folder": question.weights,
        "temporary files": Path(tempfile.gettempdir()),
    }
    return found + [_disk(section, name, folder) for name, folder in places.items()]


def _processor(section: str) -> Check:
    import torch

    from pipeline.features import fast_precision

    precision = fast_precision("cpu")
    half = "bfloat16 is fast" if precision == "bfloat16" else "bfloat16 is slow, float32 is used"
    threads = f"{torch.get_num_threads()} threads per process"
    detail = f"{default_workers()} of {os.cpu_count()} processors, {threads}, {half}"
    if torch.get_num_threads() > 1 and "OMP_NUM_THREADS" in os.environ:
        advice = "pipe's workers are processes: unset OMP_NUM_THREADS, or set it to 1"
        return Check(section, "CPU", "warning", detail, advice)
    return Check(section, "CPU", "ok", detail)


def _gpus(section: str) -> list[Check]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        driver = bool(shutil.which("nvidia-smi"))
        detail = f"PyTorch {torch.__version__} (built for CUDA {built}) sees no CUDA device"
        if driver:
            return [Check(section, "GPU", "warning", detail, "nvidia-smi is here: does the driver fit this PyTorch?")]
        return [Check(section, "GPU", "missing", detail, "everything works on the CPU, more slowly")]
    found = []
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        half = "bfloat16" if facts.major >= 8 else "no bfloat16"
        detail = f"{facts.name}, {_gib(facts.total_memory)}, compute {facts.major}.{facts.minor}, {half}"
        try:
            sound = float(
                (torch.ones(64, 64, device=f"cuda:{number}") @ torch.ones(64, 64, device=f"cuda:{number}"))[0, 0]
            )
        except RuntimeError as error:
            found.append(
                Check(section, f"cuda:{number}", "broken", f"{detail}; {_first_line(error)}", "see the driver")
            )
            continue
        state: State = "ok" if sound == 64 else "broken"
        found.append(Check(section, f"cuda:{number}", state, detail))
    return found


def _memory() -> tuple[int, int]:
    """Bytes of all memory, and of what can be had now; 0 where the system does not tell."""
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0, 0
    try:  # the cache of files counts as free
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        available = page * free
    return page * total, available


def _disk(section: str, name: str, folder: Path) -> Check:
    """Room for a folder, which may not exist yet."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Check(
            section, name, "broken", f"{there} cannot be written to", "name another folder, or see to its rights"
        )
    if free < LITTLE_BYTES:
        return Check(section, name, "warning", f"{_gib(free)} free for {folder}", "make room, or name another folder")
    return Check(section, name, "ok", f"{_gib(free)} free for {folder}")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def caches(root: Path | str) -> list[Check]:
    """Groups of cached features."""
    from cache.layout import CacheError
    from pipeline.cachetool import find_groups, list_groups

    section = "cache"
    try:
        if not find_groups(root):
            return [Check(section, "groups", "missing", f"no cached features in {root}", "`pipe extract` makes them")]
        rows = list_groups(root)
    except (CacheError, UsageError, OSError) as error:
        return [Check(section, "groups", "broken", str(error), "is the folder or address right, and can it be read?")]
    found = []
    for row in rows:
        name = str(row.group)
        if row.identity is None:
            advice = f"`pipe cache verify {name}` tells what is wrong; `--repair` makes the damaged part todo again"
            found.append(Check(section, name, "broken", row.problem, advice))
            continue
        counts = ", ".join(f"{number} {state}" for state, number in row.counts.items() if number)
        todo = row.counts.get("todo", 0)
        advice = "`pipe extract` goes on where it stopped" if todo else ""
        state: State = "warning" if todo else "ok"
        found.append(Check(section, name, state, f"{row.num_bytes / 2**20:.1f} MiB, clips: {counts or 'none'}", advice))
    found.append(
        Check(section, "contents", "ok", f"{len(rows)} groups, not read here", "`pipe cache verify` reads every file")
    )
    return found


def weights(folder: Path, deep: bool) -> list[Check]:
    """Published weight files that are here, missing or damaged."""
    from extractors.backbone import all_published
    from extractors.weights import WeightsFolder

    section, own = "weights", WeightsFolder(folder)
    published = list(all_published())
    here = [p for p in published if (folder / p.file).is_file()]
    found = []
    if deep:
        from pipeline.weight_files import check_files

        sound, faults = check_files(own)
        found += [
            Check(section, file.published.file, "ok", f"sha256 {str(file.sha256)[:12]} as recorded") for file in sound
        ]
        found += [Check(section, "file", "broken", fault, "`pipe weights fetch` or `add` it again") for fault in faults]
    else:
        names = dict.fromkeys([*(p.file for p in here), *own.recorded_files()])
        found += [_weight_file(section, folder, name) for name in names]
    absent = [p.file for p in published if p not in here]
    if absent:
        listed = ", ".join(absent[:MOST_LISTED]) + (", ..." if len(absent) > MOST_LISTED else "")
        detail = f"{len(absent)} of {len(published)} published files are not in {folder}: {listed}"
        advice = "`pipe weights fetch NAME` for the backbones you use (`pipe weights list`); tiny ones need none"
        found.append(Check(section, "not here", "missing", detail, advice))
    return found


def _weight_file(section: str, folder: Path, name: str) -> Check:
    """A file by its size and its record, unread."""
    size = (folder / name).stat().st_size
    advice = f"`pipe weights fetch {name}` or `pipe weights add` after deleting it"
    try:
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        expected, digest = int(record["bytes"]), str(record["sha256"])
    except FileNotFoundError:
        return Check(
            section,
            name,
            "warning",
            f"{size} bytes, no record of where it came from",
            f"`pipe weights add {folder / name}`",
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Check(section, name, "broken", "its record cannot be read", f"`pipe weights add {folder / name}`")
    if size != expected:
        return Check(section, name, "broken", f"{size} bytes, recorded were {expected}: cut off or replaced", advice)
    return Check(section, name, "ok", f"{size / 2**20:.1f} MiB, recorded sha256 {digest[:12]}; --deep reads it")


def leftovers(folders: Sequence[Path]) -> list[Check]:
    """Locks that are held and files that an interrupted process left."""
    section = "workspace"
    found = []
    for folder in folders:
        if not folder.is_dir():
            found.append(
                Check(section, str(folder), "missing", "the folder does not exist yet; it is made when needed")
            )
            continue
        held = [lock for lock in _files(folder, (".lock",)) if _held(lock)]
        parts = list(_files(folder, (".part", ".tmp")))
        for lock in held:
            found.append(Check(section, str(lock.parent), "warning", "another process works in it now", "wait for it"))
        if parts and not held:
            size = sum(path.stat().st_size for path in parts if path.exists())
            listed = ", ".join(map(str, parts[:MOST_LISTED])) + (", ..." if len(parts) > MOST_LISTED else "")
            detail = f"{len(parts)} unfinished files, {size / 2**20:.1f} MiB: {listed}"
            advice = "the interrupted command goes on from a .part; without it, delete them"
            found.append(Check(section, str(folder), "warning", detail, advice))
        elif not held:
            found.append(Check(section, str(folder), "ok", "no lock held, nothing unfinished"))
    return found


def _files(folder: Path, ends: tuple[str, ...]) -> Iterator[Path]:
    """Files with one of these endings, outside the arrays of caches, whose number is large."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.endswith(".zarr"))
        yield from (Path(parent) / name for name in sorted(files) if name.endswith(ends))


def _held(lock: Path) -> bool:
    """Whether a process holds a lock, asked without taking it away from one that wants it."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
