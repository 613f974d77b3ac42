"""Finished runs as tables: a row per run, or a row per evaluation and curve; and those tables as files."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.layout import flush_to_disk
from pipeline.errors import UsageError, choose
from pipeline.records import ResultStore
from pipeline.types import MODALITIES, RunResult, RunSpec

if TYPE_CHECKING:
    import pandas

ROWS_AT_ONCE = 100_000  # of a table that is written as JSON


def scan_runs(folders: Iterable[Path], skipped: list[tuple[Path, str]]) -> Iterator[RunResult]:
    """Finished runs of several data sets, one after the other: thousands of them never lie in memory together.

    Args:
        folders: results of one data set each.
        skipped: takes (file, reason) of what this version cannot read.
    """
    for folder in folders:
        yield from ResultStore(folder).scan(skipped)


def find_run(folders: Iterable[Path], name: str) -> RunResult:
    """The one run whose id starts with ``name``.

    Raises:
        UsageError: there is none, there are several, or its file cannot be read.
    """
    files = sorted(path for folder in folders for path in folder.glob("*.json") if path.stem.startswith(name))
    if len(files) != 1:
        listed = ", ".join(path.stem for path in files[:8]) + (", ..." if len(files) > 8 else "")
        there = f"{len(files)} runs have ids that start" if files else "no finished run has an id that starts"
        raise UsageError(f"{there} with {name!r}{f': {listed}' if files else ''}; `pipe runs ls` lists them")
    return ResultStore(files[0].parent).read_id(files[0].stem)


def runs_frame(results: Iterable[RunResult]) -> pandas.DataFrame:
    """A table of runs in their order, one row each.

    Columns: ``run_id`` and ``status``; the fields of the spec, where ``sources``, ``modalities`` (video, flow, audio)
    and other lists are joined by +, ``classes`` and ``labeled_ids`` are numbers of them, and ``backbones``, ``weights``
    and ``cache`` (digests of the cached features) go with ``modalities``; ``clips.<part>`` of the split; ``seconds``
    and ``notes``; every metric under its own name, 0..1; hyperparameters as ``h.<name>``; the environment as
    ``env.<name>``. What a run does not have is NaN in columns of numbers and missing in columns of text.
    """
    import pandas

    columns: dict[str, list[Any]] = {name: [] for name in (*_settings_names(), "selected_step", "target/fused")}
    count = 0
    for count, result in enumerate(results, 1):
        for name, value in _cells(result).items():
            cells = columns.setdefault(name, [])
            cells.extend([None] * (count - 1 - len(cells)))  # of the runs before that have no such value
            cells.append(value)
    for cells in columns.values():
        cells.extend([None] * (count - len(cells)))
    settled = {name: _settled(columns[name]) for name in sorted(columns, key=_place)}
    return pandas.DataFrame(settled, index=range(count))


def _joined(values: Sequence[str]) -> str:
    return "+".join(values)


def _settings_names() -> list[str]:
    """Names of the columns that every table has, in their order."""
    renamed = {"features": ["backbones", "weights", "cache"], "hparams": []}
    own = [name for field in fields(RunSpec) for name in renamed.get(field.name, [field.name])]
    return ["run_id", "status", *own, "seconds", "notes"]


def _place(name: str) -> tuple[int, int, str]:
    """Sort key of columns: settings, clips, metrics, hyperparameters, environment."""
    names = _settings_names()
    if name in names:
        return 0, names.index(name), name
    parts = ("clips.", "h.", "env.")
    part = next((i for i, prefix in enumerate(parts) if name.startswith(prefix)), None)
    return (1, 0, "") if part == 0 else (3 if part == 1 else 4, 0, name) if part else (2, _metric_place(name), name)


def _metric_place(name: str) -> int:
    """What is looked for first: the step, then accuracies on the target, validation, and the rest."""
    return next((i for i, start in enumerate(("selected_step", "target", "val", "folds")) if name.startswith(start)), 4)


def _cells(result: RunResult) -> dict[str, Any]:
    """The row of one run."""
    spec = result.spec
    order = [*(m for m in MODALITIES if m in spec.modalities), *(m for m in spec.modalities if m not in MODALITIES)]
    cells: dict[str, Any] = {"run_id": spec.run_id, "status": result.status}
    for field in fields(RunSpec):
        value = getattr(spec, field.name)
        cells[field.name] = _joined(value) if isinstance(value, tuple) else value
    del cells["features"], cells["hparams"]
    cells |= {"modalities": _joined(order), "classes": len(spec.classes), "labeled_ids": len(spec.labeled_ids)}
    for name, key in (("backbones", "backbone"), ("weights", "weights"), ("cache", "digest")):
        cells[name] = _joined([str(spec.features.get(m, {}).get(key, "?")) for m in order])
    cells |= {"seconds": result.seconds, "notes": "; ".join(result.notes)}
    cells |= {f"clips.{part}": size for part, size in result.sizes.items()}
    cells |= {f"h.{name}": value for name, value in spec.hparams.items()}
    cells |= {f"env.{name}": value for name, value in result.environment.items()}
    return cells | {name: None if value is None else float(value) for name, value in result.metrics.items()}


def _settled(cells: list[Any]) -> Any:
    """A column of one type: numbers if all of its cells are, else text."""
    kinds = set(map(type, cells))
    if kinds == {int}:
        return np.array(cells, dtype=np.int64)
    if kinds <= {int, float, type(None)}:
        return np.array(cells, dtype=np.float64)
    return [cell if cell is None or isinstance(cell, str) else str(cell) for cell in cells]


def curves_frame(results: Iterable[RunResult], wanted: Callable[[str], bool] = lambda name: True) -> pandas.DataFrame:
    """A long table of curves: ``run_id``, ``step``, ``curve`` and ``value``, NaN where an evaluation has none.

    ``run_id`` and ``curve`` are categories, so that millions of rows stay small.

    Args:
        results: runs.
        wanted: says which curves to take by their names, all by default.
    """
    import pandas

    ids: list[str] = []
    names: dict[str, int] = {}
    of_run, steps, curves, values = array("i"), array("q"), array("i"), array("d")
    for result in results:
        step = [int(number) for number in result.curves.get("step", ()) if number is not None]
        for name, series in result.curves.items():
            if name == "step" or not wanted(name):
                continue
            of_run.extend([len(ids)] * len(series))
            curves.extend([names.setdefault(name, len(names))] * len(series))
            steps.extend(step)
            values.extend(np.array(series, dtype=np.float64))
        ids.append(result.spec.run_id)
    index = {run_id: i for i, run_id in enumerate(dict.fromkeys(ids))}  # a run that is given twice is one category
    codes = np.array([index[run_id] for run_id in ids], dtype=np.int32)[np.array(of_run, dtype=np.int32)]
    return pandas.DataFrame(
        {
            "run_id": pandas.Categorical.from_codes(codes, categories=list(index)),
            "step": np.array(steps, dtype=np.int64),
            "curve": pandas.Categorical.from_codes(np.array(curves, dtype=np.int32), categories=list(names)),
            "value": np.array(values, dtype=np.float64),
        }
    )


def export(frame: pandas.DataFrame, path: Path) -> None:
    """Write a table by the suffix of its file, atomically; folders on the way are made.

    ``.csv``: UTF-8, an empty cell where there is no value; ``.parquet``; ``.json``: a list of rows, null where there is
    no value. Numbers keep all their digits.

    Raises:
        UsageError: another suffix, or a place that cannot be written to.
    """
    writer = WRITERS[choose("suffix of a table's file", path.suffix.lower(), WRITERS)]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer(frame, temporary)
            flush_to_disk(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}; give another path") from error


def _write_csv(frame: pandas.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def _write_parquet(frame: pandas.DataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False)


def _write_json(frame: pandas.DataFrame, path: Path) -> None:
    """A row per line; pandas itself would round numbers to 15 digits."""
    names = [json.dumps(str(name)) for name in frame.columns]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        for start in range(0, len(frame), ROWS_AT_ONCE):
            part = frame.iloc[start : start + ROWS_AT_ONCE]
            columns = [part[name].astype(object).where(part[name].notna(), None).tolist() for name in part.columns]
            rows = (
                ",".join(f"{name}:{json.dumps(cell)}" for name, cell in zip(names, row, strict=True))
                for row in zip(*columns, strict=True)
            )
            file.write((",\n" if start else "\n") + ",\n".join(f"{{{row}}}" for row in rows))
        file.write("\n]\n")


WRITERS: dict[str, Callable[[Any, Path], None]] = {".csv": _write_csv, ".parquet": _write_parquet, ".json": _write_json}
