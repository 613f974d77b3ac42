"""Files of features, ours and other people's, as clips with an id each; read when they are needed."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cache.exports import DESCRIPTION, INDEX
from cache.layout import CacheError, Status
from cache.packed import open_packed
from cache.portable import Portable
from cache.unpickle import read_pickle

Read = Callable[[Sequence[int]], NDArray[Any]]
SUFFIXES = (".h5", ".hdf5", ".hdf", ".npy", ".pkl", ".pickle", ".safetensors")


@dataclass(frozen=True)
class Source:
    """Features of clips in a file or folder."""

    path: Path
    clip_ids: tuple[str, ...]  # empty: the file has none, its rows can be matched by position alone
    num_rows: int
    views: int
    dim: int
    dtype: str  # of the values as they are stored
    read: Read  # positions -> (n, views, dim) in the stored type
    files: tuple[Path, ...]  # what was read
    known: Portable | None = None  # where pipe exported it: everything else of its group

    def digests(self) -> dict[str, str]:
        """sha256 by file name; of a folder one over the names and contents of all of its files."""
        if len(self.files) <= 2:
            return {file.name: _sha256([file]) for file in self.files}
        return {self.path.name: _sha256(self.files)}


@dataclass(frozen=True)
class Layout:
    """How a foreign file is laid out, where that cannot be seen."""

    features: str = ""  # HDF5 data set, tensor, or key of a pickle, a/b for nested ones; empty: what pipe calls it
    ids: str = ""  # HDF5 data set or key of the ids
    index: Path | None = None  # CSV or Parquet with clip_id and, for an array, row
    suffix: str = ""  # of file stems in a folder of .npy that is no part of the clip id, such as _rgb
    average_rows: bool = False  # rows of a clip are times: their mean is the feature


def _sha256(files: Sequence[Path]) -> str:
    state = hashlib.sha256()
    for file in files:
        if len(files) > 1:
            state.update(f"{file.name}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                state.update(block)
    return state.hexdigest()


def open_source(path: Path, layout: Layout = Layout()) -> Source:
    """Open a file or folder of features.

    Args:
        path: HDF5, .npy with an index, a folder of .npy, a pickle of arrays, or safetensors.
        layout: names inside it, where they are not as pipe writes them.

    Raises:
        CacheError: it is missing, damaged or of another kind, or the layout does not fit it.
    """
    if path.is_dir():
        return _npy_folder(path, layout)
    if not path.exists():
        raise CacheError(f"{path} is not there")
    kinds: Mapping[str, Callable[[Path, Layout], Source]] = {
        ".h5": _hdf5,
        ".hdf5": _hdf5,
        ".hdf": _hdf5,
        ".npy": _array,
        ".pkl": _pickle,
        ".pickle": _pickle,
        ".safetensors": _safetensors,
    }
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise CacheError(f"{path}: {path.suffix or 'no ending'} is not known. Read are folders of .npy and {SUFFIXES}")
    return kind(path, layout)


def _shape(path: Path, shape: Sequence[int]) -> tuple[int, int]:
    """Views and dim of an array ``(n, dim)`` or ``(n, views, dim)``."""
    if len(shape) not in (2, 3) or 0 in shape[1:]:
        raise CacheError(f"{path}: features of shape {tuple(shape)}; (clips, dim) or (clips, views, dim) is needed")
    return (1, int(shape[1])) if len(shape) == 2 else (int(shape[1]), int(shape[2]))


def _whole(path: Path, values: Any, ids: Sequence[str], files: Sequence[Path], read: Read | None = None) -> Source:
    """One array with a row per clip."""
    views, dim = _shape(path, values.shape)
    if ids and len(ids) != values.shape[0]:
        raise CacheError(f"{path}: {len(ids)} ids for {values.shape[0]} rows of features")

    def rows(positions: Sequence[int]) -> NDArray[Any]:
        return np.asarray(values[list(positions)]).reshape(len(positions), views, dim)

    return Source(path, tuple(ids), int(values.shape[0]), views, dim, str(values.dtype), read or rows, tuple(files))


def _separate(
    path: Path, names: Sequence[str], one: Callable[[int], NDArray[Any]], files: Sequence[Path], layout: Layout
) -> Source:
    """One array per clip: ``(dim,)``, ``(views, dim)``, or ``(times, dim)`` whose mean is taken."""
    if not names:
        raise CacheError(f"{path} holds no features")

    def row(position: int) -> NDArray[Any]:
        value = np.atleast_2d(np.asarray(one(position)))
        if value.ndim != 2:
            raise CacheError(f"{path}: clip {names[position]!r} has features of shape {value.shape}")
        if layout.average_rows:
            if not len(value):
                raise CacheError(f"{path}: clip {names[position]!r} has no rows to average")
            mean: NDArray[Any] = value.mean(axis=0, keepdims=True, dtype=np.float64).astype(value.dtype)
            return mean
        return value

    first = row(0)

    def rows(positions: Sequence[int]) -> NDArray[Any]:
        found = np.empty((len(positions), *first.shape), first.dtype)
        for i, position in enumerate(positions):
            value = row(position)
            if value.shape != first.shape or value.dtype != first.dtype:
                raise CacheError(
                    f"{path}: clip {names[position]!r} has {value.dtype} {value.shape}, clip {names[0]!r} "
                    f"{first.dtype} {first.shape}; if the rows are times, say so (--average-rows)"
                )
            found[i] = value
        return found

    views, dim = first.shape
    return Source(path, tuple(names), len(names), views, dim, str(first.dtype), rows, tuple(files))


def _hdf5(path: Path, layout: Layout) -> Source:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            texts = json.loads(file["description"].asstr()[()]) if "description" in file and not layout.features else {}
            name, ids = layout.features or "features", layout.ids or "clip_id"
            if name not in file and not layout.features:
                return _hdf5_separate(path, sorted(k for k in file if isinstance(file[k], h5py.Dataset)), layout)
            for wanted in (name, ids):
                if wanted not in file and (wanted == name or layout.ids):
                    raise CacheError(f"{path} has no data set {wanted!r}; it holds {', '.join(file) or 'nothing'}")
            if isinstance(file[name], h5py.Group):
                return _hdf5_separate(path, [f"{name}/{k}" for k in sorted(file[name])], layout)
            names = [str(v) for v in file[ids].asstr()[:]] if ids in file else []
            shape, dtype = file[name].shape, file[name].dtype
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path} cannot be read as HDF5 ({error})") from error
    views, dim = _shape(path, shape)

    def rows(positions: Sequence[int]) -> NDArray[Any]:
        order = np.argsort(np.asarray(positions, dtype=np.int64), kind="stable")  # HDF5 takes ascending rows
        found = np.empty((len(positions), *shape[1:]), dtype)
        try:
            with h5py.File(path, "r") as file:
                found[order] = file[name][np.asarray(positions, dtype=np.int64)[order]]
        except OSError as error:
            raise CacheError(f"{path} is damaged ({error}); get it again") from error
        return found.reshape(len(positions), views, dim)

    if names and len(names) != shape[0]:
        raise CacheError(f"{path}: {len(names)} ids for {shape[0]} rows of features")
    known = Portable.from_texts(texts, path) if texts else None
    return Source(path, tuple(names), int(shape[0]), views, dim, str(dtype), rows, (path,), known)


def _hdf5_separate(path: Path, names: Sequence[str], layout: Layout) -> Source:
    """One data set per clip, called by its id."""
    import h5py

    def one(position: int) -> NDArray[Any]:
        with h5py.File(path, "r") as file:
            return np.asarray(file[names[position]])

    source = _separate(path, names, one, [path], layout)
    ids = tuple(name.rpartition("/")[2] if layout.features else name for name in names)
    return replace(source, clip_ids=ids)


def _npy_folder(path: Path, layout: Layout) -> Source:
    """A folder of .npy, one per clip, called by its id; or by an index with clip_id and file."""
    description, index = path / DESCRIPTION, layout.index or path / INDEX
    if description.exists() and not layout.suffix:
        known = Portable.from_texts(json.loads(description.read_text(encoding="utf-8")), path)
        named = {row["clip_id"]: path / row["file"] for row in read_index(index) if row.get("file")}
        return _restored_folder(path, known, named, (*sorted(path.glob("*.npy")), index, description))
    if index.exists():
        rows = [row for row in read_index(index) if row.get("file")]
        names, files = [str(row["clip_id"]) for row in rows], [path / str(row["file"]) for row in rows]
    else:
        files = sorted(path.glob("*.npy"))
        files = [file for file in files if file.stem.endswith(layout.suffix)]
        names = [unquote(file.stem.removesuffix(layout.suffix)) for file in files]
    return _separate(path, names, lambda i: _load_npy(files[i]), files, layout)


def _load_npy(file: Path, mapped: bool = False) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CacheError(f"{file} cannot be read as an array ({error})") from error
    return values


def _restored_folder(path: Path, known: Portable, named: Mapping[str, Path], files: Sequence[Path]) -> Source:
    """An export of pipe: clips that are not present have no file."""
    identity, status = known.identity, {r.clip_id: r.status for r in known.records}
    first = next(iter(named.values()), None)
    dim = _load_npy(first).shape[1] if first is not None else 1

    def rows(positions: Sequence[int]) -> NDArray[Any]:
        found = np.full((len(positions), len(identity.views), dim), np.nan, identity.dtype)
        for i, position in enumerate(positions):
            clip_id = known.clip_ids[position]
            if status[clip_id] is Status.PRESENT:
                if clip_id not in named:
                    raise CacheError(f"{path}: the index names no file of clip {clip_id!r}")
                found[i] = _load_npy(named[clip_id])
        return found

    views = len(identity.views)
    return Source(path, known.clip_ids, len(known.clip_ids), views, dim, identity.dtype, rows, tuple(files), known)


def _array(path: Path, layout: Layout) -> Source:
    """One array; its index says which clip a row is."""
    values = _load_npy(path, mapped=True)
    if layout.index is None:
        return _whole(path, values, [], [path])
    rows = read_index(layout.index)
    if rows and "row" not in rows[0]:
        raise CacheError(f"{layout.index} has no column 'row'; which row a clip is has to be said")
    places = [int(row["row"]) for row in rows]
    wrong = [p for p in places if not 0 <= p < len(values)]
    if wrong or len(set(places)) != len(places):
        what = f"row {wrong[0]} of {len(values)}" if wrong else "one row for two clips"
        raise CacheError(f"{layout.index} names {what}")
    whole = _whole(path, values, [], [path, layout.index])
    ids = tuple(str(row["clip_id"]) for row in rows)

    def read(positions: Sequence[int]) -> NDArray[Any]:
        return whole.read([places[p] for p in positions])

    return Source(path, ids, len(ids), whole.views, whole.dim, whole.dtype, read, whole.files)


def _pickle(path: Path, layout: Layout) -> Source:
    """A pickle: an array or list with ids beside it, or a dictionary of arrays by clip id."""
    content = read_pickle(path)
    chosen = _inside(path, content, layout.features) if layout.features else content
    ids = [_text(v) for v in _inside(path, content, layout.ids)] if layout.ids else []
    if isinstance(chosen, dict):
        if ids:
            raise CacheError(
                f"{path}: {layout.features or 'it'} is a dictionary, whose keys are the ids; name no others"
            )
        arrays = list(chosen.values())
        wrong = [k for k, v in chosen.items() if not isinstance(v, np.ndarray | list)]
        if wrong:
            raise CacheError(f"{path}: {wrong[0]!r} is no array; name the features (--features), a/b for nested keys")
        return _separate(path, [_text(k) for k in chosen], lambda i: np.asarray(arrays[i]), [path], layout)
    if isinstance(chosen, list) and not layout.average_rows:
        chosen = np.asarray(chosen)
    if isinstance(chosen, list):
        if len(ids) != len(chosen):
            raise CacheError(f"{path}: {len(ids)} ids for {len(chosen)} rows of features")
        items = chosen
        return _separate(path, ids, lambda i: np.asarray(items[i]), [path], layout)
    if not isinstance(chosen, np.ndarray) or chosen.dtype.kind not in "fiu":
        raise CacheError(f"{path}: {layout.features or 'its content'} is no array of numbers")
    return _whole(path, chosen, ids, [path])


def _inside(path: Path, content: Any, key: str) -> Any:
    for part in key.split("/"):
        if not isinstance(content, dict) or part not in content:
            there = ", ".join(map(str, list(content)[:20])) if isinstance(content, dict) else type(content).__name__
            raise CacheError(f"{path} has no {key!r}; where {part!r} should be it holds {there}")
        content = content[part]
    return content


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _safetensors(path: Path, layout: Layout) -> Source:
    """Our packed copy, or a tensor per clip, called by its id, or one tensor with an index."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            ours = (file.metadata() or {}).get("format", "").startswith("pipe-cache")
            names = sorted(file.keys())
    except SafetensorError as error:
        raise CacheError(f"{path} cannot be read as safetensors ({error})") from error
    if ours:
        packed = open_packed(path)
        whole = _whole(path, packed.features, packed.clip_ids, [path])
        known = Portable.from_texts(packed.metadata, path)
        return Source(
            path, whole.clip_ids, whole.num_rows, whole.views, whole.dim, whole.dtype, whole.read, (path,), known
        )

    def one(name: str) -> NDArray[Any]:
        with safe_open(path, "numpy") as file:
            return np.asarray(file.get_tensor(name))

    if layout.features:
        if layout.features not in names:
            raise CacheError(f"{path} has no tensor {layout.features!r}; it holds {', '.join(names[:20])}")
        ids = [str(row["clip_id"]) for row in read_index(layout.index)] if layout.index else []
        return _whole(path, one(layout.features), ids, [path])
    return _separate(path, names, lambda i: one(names[i]), [path], layout)


def read_index(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV or Parquet table with the column ``clip_id``.

    Raises:
        CacheError: it cannot be read, or has no such column.
    """
    rows: list[dict[str, Any]]
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} cannot be read ({error})") from error
    if rows and "clip_id" not in rows[0]:
        raise CacheError(f"{path} has no column 'clip_id'; it has {', '.join(map(str, rows[0]))}")
    return rows
