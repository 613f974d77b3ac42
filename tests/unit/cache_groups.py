"""Groups that tests of the cache share."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.layout import ClipRecord, Identity, Status
from cache.store import FeatureGroup

VIEWS = ("clean0", "weak0", "strong0")
DIM = 5
UNIT = 4
CLIPS = tuple(f"dir/clip {i:02d} ü" for i in range(10))  # ids as they come: slashes, spaces, letters
STATES = {CLIPS[1]: Status.ABSENT, CLIPS[6]: Status.FAILED}
NOTES = {"weights": "made for a test"}


def make_identity(**changes: object) -> Identity:
    """An identity, with some fields changed."""
    plain: dict[str, object] = {
        "dataset": "small",
        "modality": "video",
        "backbone": "tiny",
        "weights": "random:0",
        "tap": "pool",
        "views": VIEWS,
        "view_seed": 0,
        "settings": {"input": {"size": 64}, "resize": "bilinear"},
    }
    return Identity(**{**plain, **changes})  # type: ignore[arg-type]


def values(clip_id: str, views: int = len(VIEWS), dim: int = DIM) -> NDArray[np.float16]:
    """Features ``(views, dim)`` of a clip, unlike any other's."""
    return np.random.default_rng(zlib.crc32(clip_id.encode())).normal(size=(views, dim)).astype(np.float16)


def record(clip_id: str, status: Status = Status.PRESENT) -> ClipRecord:
    """What is known about a clip."""
    code, detail = ("", "") if status is Status.PRESENT else ("no_track", f"why {clip_id} has none")
    return ClipRecord(clip_id, status, code, detail, f"media of {clip_id}", {"decoder": "pyav", "frames": 32})


def fill(
    group: FeatureGroup, states: Mapping[str, Status] = STATES, units: Sequence[int] | None = None
) -> FeatureGroup:
    """Write the units that are todo, or some of them."""
    for unit in group.todo_units() if units is None else units:
        records = [record(c, states.get(c, Status.PRESENT)) for c in group.unit_clips(unit)]
        features = np.stack([values(r.clip_id, len(group.identity.views), group.dim) for r in records])
        features = features.astype(group.identity.dtype)
        features[[r.status is not Status.PRESENT for r in records]] = np.nan
        group.write_unit(unit, features, records)
    return group


def make_group(
    root: Path,
    clips: Sequence[str] = CLIPS,
    states: Mapping[str, Status] = STATES,
    grown: int = 0,
    dim: int = DIM,
    unit: int = UNIT,
    **changes: object,
) -> FeatureGroup:
    """A finished group; with ``grown`` its first clips were there before the others."""
    identity = make_identity(**changes)
    for known in [clips[:grown], clips] if grown else [clips]:
        group = FeatureGroup.open_or_create(
            root, identity, known, dim, unit, {"pipe-features": "0", "zarr": "3"}, NOTES
        )
        fill(group, states)
    return group


def reopen(group: FeatureGroup) -> FeatureGroup:
    """The group as it lies on the disk now."""
    return FeatureGroup(group.path)


def flip(path: Path, byte: int, bit: int = 0) -> None:
    """Turn over one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << bit
    replace_bytes(path, bytes(raw))


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file anew, not through a hard link that it may share."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Content of every file in a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def restore(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder hold just these files again."""
    shutil.rmtree(folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def chunk(group: FeatureGroup, unit: int, view: int = 0) -> Path:
    """File of a chunk of features."""
    return group.path / "features" / "c" / str(unit) / str(view) / "0"
