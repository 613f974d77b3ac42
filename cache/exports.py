"""A group as a file of another format: HDF5, one .npy per clip, safetensors; each with a Parquet index."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np

from cache.layout import CacheError, Status
from cache.packed import pack
from cache.portable import Portable, write_index
from cache.readers import GroupReader, blocks
from cache.store import FeatureGroup

FORMATS: dict[str, str] = {"hdf5": ".h5", "npy": "", "safetensors": ".safetensors"}
DESCRIPTION = "description.json"
INDEX = "index.parquet"
_MOST_NAME = 200  # bytes of a file name made of a clip id
Labels = Mapping[str, tuple[str, str]]


def export_group(group: FeatureGroup, folder: Path, format: str = "hdf5", labels: Labels | None = None) -> list[Path]:
    """Write a finished group in another format.

    Args:
        group: every unit must be finished.
        folder: that gets ``<group>.h5``, ``<group>.safetensors`` or the folder ``<group>``, and beside it (in it, for
            .npy) the index.
        format: one of ``FORMATS``.
        labels: domain and label by clip id, for the index.

    Returns:
        What was written: the features, then the index.

    Raises:
        CacheError: unknown format, unfinished or damaged units, or a target that is there already.
    """
    if format not in FORMATS:
        raise CacheError(f"{format!r} is not a format of exports. Allowed: {', '.join(FORMATS)}")
    stem = group.place.name.removesuffix(".zarr")
    target = folder / f"{stem}{FORMATS[format]}"
    if target.exists():
        raise CacheError(f"{target} is there already; delete it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    index = target / INDEX if format == "npy" else folder / f"{stem}.{INDEX}"
    if format == "npy":
        export_npy(group, target, labels)
        return [target, index]
    if format == "hdf5":
        export_hdf5(group, target)
    else:
        pack(group, target)
    write_index(index, Portable.of(group).records, labels)
    return [target, index]


def export_hdf5(group: FeatureGroup, path: Path) -> None:
    """Write one HDF5 file.

    Datasets: ``features`` ``(clips, views, dim)`` in chunks of a unit and view with fletcher32, NaN where not present;
    ``clip_id``, ``status`` (as in ``Status``), ``code``, ``detail``, ``fingerprint``, ``facts`` (JSON), one per clip;
    ``views``; ``description`` (JSON) from which `pipe cache import` makes the same group again. Attributes of the file:
    identity, digest, notes and versions.

    Raises:
        CacheError: units are not finished or damaged.
    """
    import h5py

    known = Portable.of(group)
    reader = GroupReader(group)
    views = group.identity.views
    shape = (len(known.records), len(views), group.dim)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w", libver="latest") as file:
            features = file.create_dataset(
                "features",
                shape=shape,
                dtype=reader.dtype,
                chunks=(max(1, min(group.unit, shape[0])), 1, group.dim),
                fletcher32=True,
                fillvalue=np.nan,
            )
            for where, values in blocks(reader, known.clip_ids, range(shape[1])):
                features[where] = values
            text = h5py.string_dtype("utf-8")
            for name in ("clip_id", "code", "detail", "fingerprint"):
                file.create_dataset(name, data=[getattr(r, name) for r in known.records], dtype=text)
            file.create_dataset("facts", data=[json.dumps(dict(r.facts)) for r in known.records], dtype=text)
            file.create_dataset("status", data=np.array([r.status for r in known.records], dtype=np.uint8))
            file.create_dataset("views", data=list(views), dtype=text)
            texts = known.to_texts()
            file.create_dataset("description", data=json.dumps(texts), dtype=text)
            for name in ("format", "identity", "digest", "notes", "versions"):
                file.attrs[name] = texts[name]
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def npy_name(clip_id: str, modality: str) -> str:
    """File of a clip: its id with everything but letters, digits and ``_.-~`` as %XX, then ``_<modality>.npy``.

    Raises:
        CacheError: the id makes too long a name.
    """
    quoted = quote(clip_id, safe="")
    if quoted.startswith("."):  # no hidden file
        quoted = f"%2E{quoted[1:]}"
    if len(quoted) > _MOST_NAME:
        raise CacheError(f"clip id {clip_id[:40]!r}... is too long for a file name; export to hdf5 or safetensors")
    return f"{quoted}_{modality}.npy"


def export_npy(group: FeatureGroup, folder: Path, labels: Labels | None = None) -> None:
    """Write one .npy per present clip, as the project video_features does: ``<clip>_<modality>.npy``, one row per view.

    ``index.parquet`` names the file of every clip and says why others have none; ``description.json`` is what
    `pipe cache import` needs to make the same group again.

    Raises:
        CacheError: units are not finished or damaged, or a clip id is too long for a file name.
    """
    known = Portable.of(group)
    reader = GroupReader(group)
    modality = group.identity.modality
    present = {r.clip_id for r in known.records if r.status is Status.PRESENT}
    files = {clip_id: npy_name(clip_id, modality) for clip_id in known.clip_ids if clip_id in present}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for where, values in blocks(reader, known.clip_ids, range(len(group.identity.views))):
            for clip_id, row in zip(known.clip_ids[where], values, strict=True):
                if clip_id in present:
                    np.save(temporary / files[clip_id], row, allow_pickle=False)
        write_index(temporary / INDEX, known.records, labels, files)
        (temporary / DESCRIPTION).write_text(json.dumps(known.to_texts()), encoding="utf-8")
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
