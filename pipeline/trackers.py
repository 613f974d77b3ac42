"""Finished runs for other people's viewers: TensorBoard and Weights & Biases, written after training, offline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.types import RunResult

COMPARED = ("target", "val", "folds")  # starts of the metrics that TensorBoard's table of hyperparameters shows

QUIET = ("silent", "disable_git", "disable_code", "x_disable_stats", "x_disable_machine_info")  # settings of wandb


def to_tensorboard(results: Iterable[RunResult], folder: Path) -> int:
    """Write event files for ``tensorboard --logdir FOLDER``: a folder per run, all curves, and its hyperparameters.

    The table of hyperparameters shows accuracies at the selected evaluation, as ``selected/<metric>``. Runs that have
    their folder already are left alone.

    Returns:
        Number of runs that were written now.

    Raises:
        UsageError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _not_installed("TensorBoard", "tensorboard", error) from error
    count = 0
    for result in results:
        place = folder / result.spec.run_id
        if place.exists():
            continue
        temporary = folder / f".{place.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed and had the same number
        try:
            writer: Any = SummaryWriter(str(temporary))
            _write_events(result, writer)
            writer.close()
            temporary.replace(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        count += 1
    return count


def _write_events(result: RunResult, writer: Any) -> None:
    """Scalars of all curves, the settings as hyperparameters, and the metrics that they are compared by."""
    from torch.utils.tensorboard.summary import hparams

    steps = result.curves.get("step", ())
    for name, series in result.curves.items():
        for step, value in zip(steps, series, strict=True):
            if name != "step" and value is not None:
                writer.add_scalar(name, value, int(step or 0))
    shown = {
        f"selected/{name}": value
        for name, value in result.metrics.items()
        if value is not None and name.startswith(COMPARED)
    }
    make: Any = hparams
    for summary in make(plain_settings(result), shown):
        writer.file_writer.add_summary(summary)
    for name, value in shown.items():
        writer.add_scalar(name, value, int(result.metrics["selected_step"] or 0))


def to_wandb(results: Iterable[RunResult], folder: Path, project: str) -> int:
    """Write offline runs for ``wandb sync``; nothing leaves this machine here.

    Curves are logged at their steps; the summary holds every metric as ``selected/<metric>``, the configuration the
    whole spec. Runs that are there already are left alone.

    Args:
        results: runs.
        folder: gets a folder ``wandb``, with a folder per run in it.
        project: name of the project that the runs will belong to.

    Returns:
        Number of runs that were written now.

    Raises:
        UsageError: the package wandb is not installed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported
    try:
        import wandb
    except ImportError as error:
        raise _not_installed("Weights & Biases", "wandb", error) from error
    quiet = {name: True for name in QUIET if name in wandb.Settings.model_fields}
    settings = wandb.Settings(console="off", **quiet)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for result in results:
        spec = result.spec
        if any((folder / "wandb").glob(f"offline-run-*-{spec.run_id}")):
            continue
        run = wandb.init(
            mode="offline",
            project=project,
            dir=str(folder),
            id=spec.run_id,
            name=f"{spec.method}-{spec.target}-{spec.run_id[:6]}",
            group=f"{spec.dataset}-{spec.method}",
            config={**spec.to_json(), "environment": dict(result.environment), "status": result.status},
            settings=settings,
        )
        for position, step in enumerate(result.curves.get("step", ())):
            values = {n: series[position] for n, series in result.curves.items() if n != "step"}
            run.log({n: value for n, value in values.items() if value is not None}, step=int(step or 0))
        # Under their own names the summary has the last values of the curves.
        run.summary.update({f"selected/{name}": value for name, value in result.metrics.items()})
        run.finish()
        count += 1
    return count


def plain_settings(result: RunResult) -> dict[str, str | float]:
    """What differs between runs that are compared, as text and numbers: settings, and hyperparameters by their name."""
    spec = result.spec
    settings: dict[str, str | float] = {
        "method": spec.method,
        "dataset": spec.dataset,
        "target": spec.target,
        "sources": "+".join(spec.sources),
        "modalities": "+".join(spec.modalities),
        "budget": spec.budget,
        "split_seed": spec.split_seed,
        "init_seed": spec.init_seed,
        "steps": spec.steps,
        "selection": spec.selection,
        "protocol": spec.protocol,
        "projection": spec.projection,
    }
    return settings | {f"h.{name}": value for name, value in spec.hparams.items()}


def _not_installed(title: str, extra: str, error: ImportError) -> UsageError:
    return UsageError(
        f"files for {title} need the package {extra}, which is not installed ({error}): install pipe-features with the "
        f"extra [{extra}]"
    )
