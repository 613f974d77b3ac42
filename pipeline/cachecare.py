"""Groups that nothing uses, and groups that move: `pipe cache gc` and `pipe cache cp`."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cache.layout import CacheError
from cache.packed import is_fresh, open_packed
from cache.places import LocalPlace, Place, place_of
from cache.store import FeatureGroup
from cache.verify import LEFTOVER, STALE_SECONDS
from pipeline.cachetool import GroupName, Root, alone, busy, find_groups, folder_bytes
from pipeline.errors import UsageError

DAYS = 14.0  # a group that was written to within so many days is in use, whatever results say
DELETED = ".deleted-"  # a group that is being deleted is called so first: a crash leaves no half group
DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Garbage:
    """Something in the cache that nothing uses."""

    path: Path
    kind: str  # group, packed copy, leftover
    reason: str  # one sentence
    num_bytes: int
    kept: str = ""  # why it is not deleted although nothing uses it
    deleted: bool = False


def used_digests(results: Path) -> set[str]:
    """Digests of cached features that finished runs name, of all data sets; also of runs of other versions.

    Args:
        results: folder with a folder of results per data set.
    """
    found: set[str] = set()
    for path in results.glob("*/*.json"):
        try:
            features = json.loads(path.read_text(encoding="utf-8"))["spec"]["features"]
            found |= {str(value["digest"]) for value in features.values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def collect_garbage(root: Path, results: Path, days: float = DAYS, delete: bool = False) -> list[Garbage]:
    """List what nothing uses, and delete it if asked to.

    A group is used if a finished run names its digest, or if it was written to within ``days``; one that is locked or
    leased is never touched. Copies that are packed go with their group, or when they are of an earlier state of it.
    What killed processes left is garbage once nobody has touched it for an hour.

    Args:
        root: folder of all caches.
        results: folder with a folder of results per data set.
        days: see above.
        delete: delete what is listed and not kept.
    """
    used = used_digests(results)
    found = []
    for group in find_groups(root):
        reason = _unused(group, used, days)
        if reason:
            found.append(_remove(group.path, "group", reason, delete))
        else:
            found += _leftovers(group.path, delete)
    for packed in sorted(root.glob("*/*.safetensors")):
        reason = _stale_copy(packed)
        if reason:
            found.append(_remove(packed, "packed copy", reason, delete))
    for left in [*root.glob(f"*/{DELETED}*"), *(p for p in root.glob("*/.*.tmp") if _age(p) > STALE_SECONDS)]:
        found.append(_remove(left, "leftover", "a killed process left it", delete))
    return found


def _unused(name: GroupName, used: set[str], days: float) -> str:
    """Why nothing uses a group; empty: something does, or nobody can know."""
    try:
        group = FeatureGroup(name.place)
        digest = group.digest()
    except FileNotFoundError:
        return "" if _age(name.path) < days * DAY_SECONDS else "it was never finished: clips.json is missing"
    except CacheError:
        return ""  # damaged: `pipe cache verify` may mend it
    if digest in used:
        return ""
    age = min((_age(p) for p in (name.path / "commits", name.path / "clips.json") if p.exists()), default=0.0)
    if age < days * DAY_SECONDS:
        return ""
    return (
        f"no finished run names its digest {digest[:12]}, and it was last written to {age / DAY_SECONDS:.0f} days ago"
    )


def _stale_copy(path: Path) -> str:
    group = path.with_suffix(".zarr")
    if not group.is_dir():
        return f"its group {group.name} is gone"
    try:
        return "" if is_fresh(open_packed(path), FeatureGroup(group)) else f"it is of an earlier state of {group.name}"
    except CacheError as error:
        return str(error)


def _leftovers(path: Path, delete: bool) -> list[Garbage]:
    """Files in a group that killed processes left."""
    files = [p for p in sorted(path.rglob("*")) if LEFTOVER.fullmatch(p.name) and p.is_file()]
    old = [p for p in files if _age(p) > STALE_SECONDS]
    return [_remove(p, "leftover", f"a killed process left it in {path.name}", delete, path) for p in old]


def _age(path: Path) -> float:
    """Seconds since a file or folder was changed; one that has vanished is new."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(path: Path, kind: str, reason: str, delete: bool, group: Path | None = None) -> Garbage:
    """List something, and delete it if asked to and nobody works on it."""
    size = folder_bytes(path) if path.is_dir() else path.stat().st_size
    owner = group or (path if kind == "group" else path.with_suffix(".zarr"))
    if not delete:
        kept = "a process works on it" if busy(owner) else ""
        return Garbage(path, kind, reason, size, kept)
    try:
        with alone(owner, "extracting into"):
            if path.is_dir():
                _delete(path)
            else:
                path.unlink()
    except UsageError:
        return Garbage(path, kind, reason, size, "a process works on it")
    return Garbage(path, kind, reason, size, deleted=True)


@dataclass(frozen=True)
class Copied:
    """What `pipe cache cp` did."""

    source: str
    target: str
    files: int  # of the group
    copied: int  # that were not there yet
    num_bytes: int
    moved: bool
    digest: str


def copy_group(
    name: GroupName,
    destination: Root,
    move: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Copied:
    """Copy a group to another root, or move it; a copy that was cut off goes on where it stopped.

    Every file is read back and compared; ``clips.json``, which makes a folder a group, comes last, so that readers see
    the whole group or none.

    Args:
        name: the group.
        destination: folder or address of the other root.
        move: delete the group here once it is there.
        advance: called with numbers of files done and of all.

    Raises:
        UsageError: source and destination are the same, another group is in its place, or a process writes into one.
        CacheError: the group is damaged, or what was written reads back as something else.
    """
    group = FeatureGroup(name.place)
    target = place_of(destination).child(*group.identity.folder.parts)
    if str(target) == str(name.place) or _same_folder(target, name.place):
        raise UsageError(f"{name} is in {destination} already; name another root")
    with ExitStack() as locks:
        for place in (name.place, target):
            locks.enter_context(_alone(place))
        digest = group.digest()
        damaged = group.damaged_units()
        if damaged:
            raise CacheError(
                f"{len(damaged)} units of {name} are damaged (first: {damaged[0]}); run `pipe cache verify --repair`, "
                "then `pipe extract`"
            )
        if target.exists("clips.json") and FeatureGroup(target).digest() != digest:
            raise UsageError(
                f"{target} is another state of this group; delete one of them (`pipe cache diff` compares)"
            )
        files = list(_files(group))
        copied = size = 0
        for done, file in enumerate(files):
            data = name.place.read_bytes(file)
            size += len(data)
            copied += _copy(target, file, data)
            advance(done + 1, len(files))
        arrived = FeatureGroup(target)
        if arrived.digest() != digest or arrived.damaged_units():
            raise CacheError(f"{target} does not read back as {name}; delete it and copy again")
        if move:
            _delete(name.path)
    return Copied(str(name.place), str(target), len(files), copied, size, move, digest)


def _same_folder(one: Place, other: Place) -> bool:
    if not (isinstance(one, LocalPlace) and isinstance(other, LocalPlace)):
        return False
    return one.folder.resolve() == other.folder.resolve()


@contextmanager
def _alone(place: Place) -> Iterator[None]:
    """Keep others from writing into a local group; elsewhere nothing is known about others."""
    if not isinstance(place, LocalPlace):
        yield
        return
    with alone(place.folder, "extracting into"):
        yield


def _files(group: FeatureGroup) -> Iterator[str]:
    """Files of a group, those that make it one last; unfinished units have none."""
    yield from ("zarr.json", "features/zarr.json", "status/zarr.json", "clip_id/zarr.json")
    todo = set(group.todo_units())
    for unit in range(group.num_units):
        if group.place.exists(f"clip_id/c/{unit}"):
            yield f"clip_id/c/{unit}"
        if unit in todo:
            continue
        yield from (f"features/c/{unit}/{view}/0" for view in range(len(group.identity.views)))
        yield f"status/c/{unit}"
        yield f"commits/{unit:06d}.json"
    yield "clips.json"


def _copy(target: Place, file: str, data: bytes) -> bool:
    """Write a file that is not there yet, and read it back; whether it had to be written."""
    there = _read(target, file)
    if there == data:
        return False
    target.make()
    target.write_atomically(file, data)
    if hashlib.sha256(_read(target, file) or b"").digest() != hashlib.sha256(data).digest():
        raise CacheError(f"{target}/{file} does not read back as it was written; check that disk")
    return True


def _read(place: Place, file: str) -> bytes | None:
    try:
        return place.read_bytes(file)
    except FileNotFoundError:
        return None
    except CacheError:
        if isinstance(place, LocalPlace) and not place.folder.is_dir():
            return None
        raise


def _delete(path: Path) -> None:
    """Delete a group: it is renamed first, so that a crash leaves no half of one."""
    doomed = path
    if not path.name.startswith(DELETED):
        doomed = path.with_name(f"{DELETED}{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    shutil.rmtree(doomed)
