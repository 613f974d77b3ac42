"""Whole workflows behind `pipe sweep`, `pipe report` and `pipe reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.axes import parse_axes
from pipeline.cluster import connect
from pipeline.console import progress, status
from pipeline.datasets import DATASETS
from pipeline.errors import UsageError, choose, nearest
from pipeline.extraction import ExtractSettings
from pipeline.features import FeatureRequest
from pipeline.query import choose_columns, query, sort_rows
from pipeline.records import ResultStore
from pipeline.running import plan_stacks, run_missing
from pipeline.runs import curves_frame, export, runs_frame, scan_runs
from pipeline.study import build_report, load_features, probe_features, settle_features, stored_results
from pipeline.sweepfile import SweepFile, read_sweep_file, with_axes
from pipeline.sweeps import (
    StackEstimate,
    SweepRecord,
    estimate,
    plain_axes,
    plan_sweep,
    read_record,
    sweep_modalities,
    write_record,
)
from pipeline.trackers import to_tensorboard, to_wandb
from pipeline.types import MODALITIES, Manifest, RunResult, digest
from pipeline.workspace import DatasetOptions, Workspace, open_dataset

if TYPE_CHECKING:
    import pandas


def find_sweep(name: str) -> SweepFile:
    """Read a sweep file: a path, or the name of one of those that come with this package.

    Raises:
        UsageError: there is no such file, or it is wrong.
    """
    path = Path(name).expanduser()
    if path.suffix == ".toml" or path.is_file():
        return read_sweep_file(path)
    package = Path(__file__).resolve().parent
    there = {p.stem: p for folder in (package.parent / "configs", package / "configs") for p in folder.glob("*.toml")}
    if name not in there:
        raise UsageError(
            f"there is no sweep file {name!r}.{nearest(name, there)} Give the path of a TOML file, or one of: "
            f"{', '.join(sorted(there))}"
        )
    return read_sweep_file(there[name])


def chosen_sweep(
    texts: Sequence[str], options: DatasetOptions, name: str = "", draws: int = 0, draw_seed: int = 0
) -> tuple[SweepFile, DatasetOptions]:
    """A sweep from the command line: perhaps a file, then axes that replace or join the file's; and its data set.

    A sweep of axes alone is named by their digest, so that the same axes are the same sweep.

    Raises:
        UsageError: two files, an axis that cannot be read, or no data set.
    """
    files = [text for text in texts if "=" not in text]
    if len(files) > 1:
        raise UsageError(f"two sweep files: {files[0]} and {files[1]}; give one, and axes as name=value")
    axes = parse_axes([text for text in texts if "=" in text], draws, draw_seed)
    if files:
        sweep = with_axes(find_sweep(files[0]), axes)
        if axes.lists or axes.drawn or axes.draws:  # another sweep than the file's own
            sweep = replace(sweep, name=f"{sweep.name}-{digest(plain_axes(axes))[:8]}")
    elif not texts:
        raise UsageError("there is nothing to sweep: give a file, or axes such as labels=5,10 seed=0..9")
    else:
        sweep = SweepFile(f"axes-{digest(plain_axes(axes))[:8]}", axes=axes)
    if name:
        sweep = replace(sweep, name=name)
    dataset = options.dataset or sweep.about.dataset
    if not dataset:
        raise UsageError("--dataset is missing: the name of a data set, or the path of a manifest")
    return sweep, replace(options, dataset=dataset)


def sweep_request(sweep: SweepFile, request: FeatureRequest) -> tuple[FeatureRequest, tuple[str, ...]]:
    """The features that a sweep needs, and the modalities of cells that name none; the user's word beats the file's."""
    default = request.modalities or sweep.features.modalities or MODALITIES
    request = replace(
        request,
        modalities=sweep_modalities(sweep, default),
        backbones=request.backbones or sweep.features.backbones,
        weights=request.weights or sweep.features.weights,
    )
    return request, default


@dataclass(frozen=True)
class SweepRun:
    """What a sweep gave."""

    record: SweepRecord
    results: Sequence[RunResult]
    new: int  # runs that were not there before
    path: Path  # of the record


def run_sweep(
    sweep: SweepFile,
    manifest: Manifest,
    settings: ExtractSettings,
    default: Sequence[str],
    work: Workspace,
    cluster: str = "",
    largest: int | None = None,
) -> SweepRun:
    """Train what of a sweep is missing, with a progress bar over all of it.

    Args:
        sweep: what is trained and varied.
        manifest: the data set.
        settings: its features, of every modality that a cell uses.
        default: modalities of cells that name none.
        work: the workspace.
        cluster: address of a dask scheduler, or ``local:N``; empty: processes on this machine.
        largest: runs in a stack, at most.
    """
    tables = load_features(manifest, settings, work)
    specs, cases = plan_sweep(sweep, manifest, tables, default)
    results = work.results(manifest.dataset)
    record = SweepRecord(
        sweep.name, sweep.about, tuple(s.run_id for s in specs), cases, sweep.published, plain_axes(sweep.axes)
    )
    path = write_record(results, record)
    new = 0
    with progress(f"sweep {sweep.name}: {len(specs)} runs") as bar, ExitStack() as stack:

        def on_start(missing: int, stacks: int, steps: int) -> None:
            nonlocal new
            new = missing
            bar.start(steps)

        workers = work.workers if settings.device == "cpu" else 1
        execute = None
        if cluster:
            connected = stack.enter_context(connect(cluster))
            workers, execute = connected.workers, connected.run
        found = run_missing(
            specs,
            manifest,
            tables,
            settings,
            work.shared_cache if cluster else work.cache,
            results.resolve() if cluster else results,
            workers,
            on_start,
            bar.advance,
            sweep.settings.keep_weights,
            largest,
            execute,
        )
    return SweepRun(record, found, new, path)


def estimate_sweep(
    sweep: SweepFile,
    manifest: Manifest,
    settings: ExtractSettings,
    default: Sequence[str],
    work: Workspace,
    largest: int | None = None,
) -> tuple[int, int, list[StackEstimate]]:
    """Plan a sweep without running it: runs, missing runs, and what their stacks will cost."""
    tables = load_features(manifest, settings, work)
    specs, _ = plan_sweep(sweep, manifest, tables, default)
    results = work.results(manifest.dataset)
    missing = ResultStore(results).missing(specs)
    workers = work.workers if settings.device == "cpu" else 1
    with status("timing a few steps of every kind of stack"):
        stacks = plan_stacks(missing, manifest, tables, results, workers, settings.device, largest)
        return len(specs), len(missing), estimate(stacks, manifest, tables, settings.device)


def report_runs(
    name: str | None, options: DatasetOptions, request: FeatureRequest, work: Workspace, baseline: str = ""
) -> tuple[list[RunResult], dict[str, Path]]:
    """Write the report of a sweep, or of all finished runs of a data set; returns the runs and the paths.

    Raises:
        UsageError: no such sweep, no data set, or no finished run.
    """
    options = replace(options, dataset=options.dataset or _dataset_of(name, work))
    manifest = open_dataset(options, work)
    record = read_record(work.results(manifest.dataset), name) if name else None
    if record:
        store = ResultStore(work.results(manifest.dataset))
        results = [store.read_id(run) for run in record.run_ids if store.path(run).exists()]
        used = {m for result in results for m in result.spec.modalities}
        request = replace(request, modalities=request.modalities or tuple(m for m in MODALITIES if m in used))
    else:
        results = stored_results(manifest.dataset, work)
    if not results:
        raise UsageError(f"there are no finished runs in {work.results(manifest.dataset)}; train some first")
    settings = settle_features(manifest, options, request, work)
    probes = probe_features(manifest, load_features(manifest, settings, work), work)
    return results, build_report(manifest, settings, probes, results, work, record, baseline)


def _dataset_of(sweep: str | None, work: Workspace) -> str:
    """The data set that a report is about, where the user names none: the only one that has the sweep, or results."""
    pattern = f"sweeps/{sweep}.json" if sweep else "*.json"
    found = sorted(p.name for p in (work.folder / "results").glob("*") if any(p.glob(pattern)))
    if len(found) == 1 and found[0] in DATASETS:
        return found[0]
    what = f"sweep {sweep!r}" if sweep else "finished runs"
    raise UsageError(f"--dataset is missing; data sets with {what} in {work.folder}: {', '.join(found) or 'none'}")


Skipped = list[tuple[Path, str]]


def asked_runs(
    folders: Sequence[Path], where: str = "", sort: Sequence[str] = (), columns: Sequence[str] = ()
) -> tuple[pandas.DataFrame, Skipped]:
    """Finished runs that fulfil a condition, as a table, and files that this version cannot read.

    Raises:
        UsageError: a condition that cannot be read, or an unknown column.
    """
    skipped: Skipped = []
    frame = runs_frame(scan_runs(folders, skipped))
    if where:
        frame = query(frame, where)
    if sort:
        frame = sort_rows(frame, sort)
    return (choose_columns(frame, columns) if columns else frame), skipped


def export_runs(
    folders: Sequence[Path], path: Path, where: str = "", columns: Sequence[str] = (), curves: bool = False
) -> tuple[int, Skipped]:
    """Write finished runs, or the curves of those, to a file; returns the number of rows."""
    frame, skipped = asked_runs(folders, where, (), () if curves else columns)
    if curves:
        chosen = set(frame["run_id"])
        frame = curves_frame(r for r in scan_runs(folders, []) if r.spec.run_id in chosen)
        if columns:
            frame = choose_columns(frame, columns)
    export(frame, path)
    return len(frame), skipped


def log_runs(folders: Sequence[Path], folder: Path, to: str, project: str) -> tuple[int, Skipped]:
    """Write finished runs for another tool; returns the number of runs written now."""
    skipped: Skipped = []
    results = scan_runs(folders, skipped)
    if choose("tool", to, ("tensorboard", "wandb")) == "tensorboard":
        return to_tensorboard(results, folder), skipped
    return to_wandb(results, folder, project), skipped
