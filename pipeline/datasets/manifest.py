"""Your own data: a manifest in CSV or Parquet."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ManifestError, UsageError, nearest
from pipeline.types import Clip, Manifest

REQUIRED = ("clip_id", "path", "label", "domain", "split")
PREDICTED = ("path",)  # needed to predict on
OPTIONAL = ("start", "stop", "audio_path", "flow_path", "group", "rate_hz")
SPLITS = ("train", "val", "test")
SAFE_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
MOST_SHOWN = 20  # faulty rows that a message lists
NUMBER_COLUMNS = ("start", "stop", "rate_hz")
WHOLE_COLUMNS = ("clip_id", "label", "domain", "group")  # text that data frames often keep as whole numbers
MEDIA_COLUMNS = {"path": "video", "audio_path": "audio", "flow_path": "flow"}


def read_manifest(path: Path, root: Path | None = None, name: str | None = None, outside: bool = False) -> Manifest:
    """Read a manifest: CSV with a header line, or Parquet where the file's name ends in ``.parquet``.

    Columns: ``clip_id, path, label, domain, split`` and, where wanted, ``start, stop`` (seconds), ``audio_path``,
    ``flow_path``, ``group``, ``rate_hz`` (frame rate of a folder of frames). Relative paths start at ``root``. Classes
    are the labels in alphabetical order, or the lines of ``classes.txt`` beside the manifest where that file exists. In
    Parquet the columns hold text, the optional numbers may be numbers, and ids, labels, domains and groups whole ones.

    Args:
        path: the file; CSV is UTF-8 with or without a byte-order mark, any line ending.
        root: folder that media must lie in; default the manifest's own.
        name: name of the data set; default the file's stem, or its folder's name if the file is ``manifest.csv``.
        outside: allow media outside ``root``.

    Raises:
        ManifestError: every faulty row at once, with the number of its line, of its row in Parquet (the first is 1).
        UsageError: a name that is not one for a folder.
    """
    path, root = _checked_place(path, root, REQUIRED)
    name = name or dataset_name(path)
    if re.fullmatch(SAFE_NAME, name) is None:
        raise UsageError(f"--name {name!r} becomes a folder's name; use letters, digits, '.', '_' and '-' alone")
    clips, classes = _clips(path, root, outside, REQUIRED)
    domains = tuple(sorted({clip.domain for clip in clips}))
    return Manifest(name, classes, domains, clips, root)


def read_clips(path: Path, root: Path | None = None, outside: bool = False) -> tuple[Clip, ...]:
    """Read the clips of a manifest to predict on: as ``read_manifest``, but a column of ``path`` alone is enough.

    An id that is not given is the path as it stands in the manifest; label, domain and split are empty where they are
    not given, and a label may be any class.

    Args:
        path: the file.
        root: folder that media must lie in; default the manifest's own.
        outside: allow media outside ``root``.

    Raises:
        ManifestError: every faulty row at once, with its number.
    """
    path, root = _checked_place(path, root, PREDICTED)
    return _clips(path, root, outside, PREDICTED)[0]


def _checked_place(path: Path, root: Path | None, needed: Sequence[str]) -> tuple[Path, Path]:
    """Paths of the manifest and of its root, which are there."""
    path = path.expanduser()
    if not path.is_file():
        raise ManifestError(
            f"manifest {path} is not a file; give a CSV or Parquet file with columns {', '.join(needed)}"
        )
    root = (root or path.parent).expanduser().resolve()
    if not root.is_dir():
        raise ManifestError(f"root {root} is not a folder; media paths of the manifest are relative to it")
    return path, root


def _clips(path: Path, root: Path, outside: bool, needed: Sequence[str]) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """All clips, and the classes; columns that are not needed may be missing."""
    parquet = path.suffix.lower() == ".parquet"
    rows, problems = _parquet_rows(path, needed) if parquet else _rows(path, needed)
    counted = "row" if parquet else "line"
    strict = "label" in needed
    classes = _classes(path.parent / "classes.txt", rows) if strict else ()
    clips: list[Clip] = []
    lines: dict[str, int] = {}
    for number, row in rows:
        try:
            clip = _clip(row, root, classes, outside) if strict else _unlabeled_clip(row, root, outside)
            if clip.clip_id in lines:
                raise ManifestError(f"clip_id {clip.clip_id!r} was used in {counted} {lines[clip.clip_id]} already")
            lines[clip.clip_id] = number
            clips.append(clip)
        except ManifestError as error:
            problems[number] = str(error)
    if problems:
        shown = [f"{counted} {number}: {text}" for number, text in sorted(problems.items())]
        more = [f"... and {len(shown) - MOST_SHOWN} more"] if len(shown) > MOST_SHOWN else []
        total = len(clips) + len(problems)
        raise ManifestError(
            "\n  ".join([f"{path} has {len(problems)} faulty of {total} rows:", *shown[:MOST_SHOWN], *more])
        )
    if not any(p.exists() for clip in clips for p in clip.media.values()):
        first = next(iter(clips[0].media.values()))
        raise ManifestError(f"none of the media files of {path} exists (first: {first}); is --root right? It is {root}")
    return tuple(clips), classes


def dataset_name(path: Path) -> str:
    """Name of a data set from its manifest's path, with characters that are safe in folder names."""
    stem = path.resolve().parent.name if path.stem == "manifest" else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "dataset"


def _text(path: Path) -> str:
    """Text of a UTF-8 file, with or without a byte-order mark, line endings as they are."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def _rows(path: Path, needed: Sequence[str]) -> tuple[list[tuple[int, dict[str, str]]], dict[int, str]]:
    """Rows with their line numbers, white space around names and values gone; and rows of a wrong length by line."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), skipinitialspace=True)
    rows: list[tuple[int, dict[str, str]]] = []
    problems: dict[int, str] = {}
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, needed)
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) == len(header):
                rows.append((reader.line_num, {k: v.strip() for k, v in zip(header, values, strict=True)}))
            else:
                problems[reader.line_num] = (
                    f"{len(values)} values for {len(header)} columns; put values that hold a comma in double quotes"
                )
    except csv.Error as error:
        raise ManifestError(f"{path} line {reader.line_num}: {error}; is a quotation mark left open?") from None
    if not rows and not problems:
        raise ManifestError(f"{path} has a header and no rows")
    return rows, problems


def _parquet_rows(path: Path, needed: Sequence[str]) -> tuple[list[tuple[int, dict[str, str]]], dict[int, str]]:
    """Rows of a Parquet file with their numbers from 1, every value as the text it would have in CSV; no problems."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            _check_header(path, schema.names, needed)
            for field in schema:
                _check_type(path, field.name, field.type)
            columns = file.read(use_threads=False).to_pydict()
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ManifestError(f"{path} cannot be read as Parquet ({reason:.200}); write it again") from None
    rows = []
    for number, values in enumerate(zip(*columns.values(), strict=True), 1):
        row = {k: "" if v is None else str(v).strip() for k, v in zip(columns, values, strict=True)}
        if any(row.values()):
            rows.append((number, row))
    if not rows:
        raise ManifestError(f"{path} has columns and no rows")
    return rows, {}


def _check_type(path: Path, column: str, kind: Any) -> None:
    """Refuse a Parquet column (``pyarrow.DataType``) whose values cannot be what the column is for."""
    import pyarrow.types as types

    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_null(value) or types.is_string(value) or types.is_large_string(value) or types.is_string_view(value):
        return
    whole = types.is_integer(value)
    if column in NUMBER_COLUMNS and (whole or types.is_floating(value) or types.is_decimal(value)):
        return
    if column in WHOLE_COLUMNS and whole:
        return
    if column in NUMBER_COLUMNS:
        allowed = "numbers or text"
    elif column in WHOLE_COLUMNS:
        allowed = "text or whole numbers"
    else:
        allowed = "text"
    raise ManifestError(f"{path}: column {column!r} is of type {kind}; it must hold {allowed}, convert it")


def _check_header(path: Path, header: list[str], needed: Sequence[str]) -> None:
    """Refuse missing, unknown and repeated columns."""
    known = (*REQUIRED, *OPTIONAL)
    missing = [name for name in needed if name not in header]
    if missing:
        hints = "".join(nearest(name, [h for h in header if h not in known]) for name in missing)
        raise ManifestError(
            f"{path} lacks the column(s) {', '.join(missing)}.{hints} "
            f"Found: {', '.join(header) or 'nothing'}; needed: {', '.join(needed)}; "
            f"optional: {', '.join(name for name in known if name not in needed)}"
        )
    unknown = [name for name in header if name not in known]
    if unknown:
        raise ManifestError(
            f"{path} has the unknown column {unknown[0]!r}.{nearest(unknown[0], known)} "
            f"Allowed: {', '.join(known)}; {_remedy(unknown[0])}"
        )
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if twice:
        raise ManifestError(f"{path} has the column {twice[0]!r} twice; remove or rename one of them")


def _remedy(column: str) -> str:
    """What to do about an unknown column."""
    if column.startswith("__index_level_"):
        return "it is the index of a pandas data frame, write it with index=False"
    return "remove or rename it"


def _classes(listing: Path, rows: list[tuple[int, dict[str, str]]]) -> tuple[str, ...]:
    """Class names from ``classes.txt``, or the labels that occur, sorted."""
    if listing.is_file():
        names = [line.strip() for line in _text(listing).split("\n") if line.strip()]
        if len(set(names)) != len(names):
            raise ManifestError(f"{listing} names a class twice; every class stands in one line")
        return tuple(names)
    return tuple(sorted({row["label"] for _, row in rows}))


def _clip(row: Mapping[str, str], root: Path, classes: tuple[str, ...], outside: bool) -> Clip:
    """Build and check one clip."""
    if not row["label"]:
        raise ManifestError("label is empty; name the clip's class")
    if row["label"] not in classes:
        raise ManifestError(
            f"label {row['label']!r} is not in the class list.{nearest(row['label'], classes)} "
            f"Classes: {', '.join(classes)}"
        )
    if not row["domain"]:
        raise ManifestError("domain is empty; name the site or recording condition, any text")
    if row["split"] not in SPLITS:
        raise ManifestError(f"split {row['split']!r} is none of {', '.join(SPLITS)}.{nearest(row['split'], SPLITS)}")
    return _unlabeled_clip(row, root, outside)


def _unlabeled_clip(row: Mapping[str, str], root: Path, outside: bool) -> Clip:
    """Build one clip, whatever its label, domain and split are; without an id it is called by its path and stretch."""
    stretch = f"@{row.get('start', '')}-{row.get('stop', '')}" if row.get("start") or row.get("stop") else ""
    clip_id = row["clip_id"] if "clip_id" in row else f"{row['path']}{stretch}"
    return Clip(
        clip_id=clip_id,
        domain=row.get("domain", ""),
        label=row.get("label", ""),
        split=row.get("split", ""),
        group=row.get("group") or clip_id,
        media={key: _inside(row[c], c, root, outside) for c, key in MEDIA_COLUMNS.items() if row.get(c)},
        start_seconds=_number(row, "start"),
        end_seconds=_number(row, "stop"),
        rate_hz=_number(row, "rate_hz"),
    )


def _inside(text: str, column: str, root: Path, outside: bool) -> Path:
    """Resolve a media path and refuse one that leaves the root."""
    try:
        path = (root / text).resolve()
        path.exists()  # also where a name is too long, or holds a NUL, for this system
    except (ValueError, OSError, RuntimeError) as error:  # the last one: links that lead to themselves
        raise ManifestError(f"{column} {text[:80]!r} is not a path of this system ({error})") from None
    if not outside and not path.is_relative_to(root):
        raise ManifestError(
            f"{column} {text!r} lies outside the root {root}; move it there, give --root, or allow it with --outside"
        )
    return path


def _number(row: Mapping[str, str], column: str) -> float | None:
    """Read an optional number of seconds or hertz."""
    text = row.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ManifestError(f"{column} is {text!r}; write a number, for example 12.5") from None
    if not math.isfinite(value):
        raise ManifestError(f"{column} is {text!r}; it must be finite")
    return value
