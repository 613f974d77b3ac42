"""The same as `pipe sweep` and `pipe report`, from a notebook: pandas comes back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.process import configure_process, default_workers

if TYPE_CHECKING:
    import pandas


def sweep(
    file: str | Path | None = None,
    *,
    dataset: str = "",
    root: str | Path | None = None,
    work: str | Path = "pipe-work",
    backbones: Sequence[str] = (),
    weights: Sequence[str] = (),
    name: str = "",
    workers: int = 0,
    random: int = 0,
    random_seed: int = 0,
    cluster: str = "",
    device: str = "auto",
    **axes: object,
) -> pandas.DataFrame:
    """Train what of a sweep is missing and return all of its runs.

    Args:
        file: sweep file, or the name of one of those that come with this package; ``None``: axes alone.
        dataset: name of a data set, or path of a manifest; default: the file's.
        root: folder of its media.
        work: workspace.
        backbones: names, or one preset; default: the data set's.
        weights: ``CHOICE`` or ``BACKBONE=CHOICE``.
        name: of the sweep, for ``report``.
        workers: processes; 0: one per processor.
        random: draws of random search.
        random_seed: seed of the draws.
        cluster: address of a dask scheduler, or ``local:N``.
        device: auto, cpu, cuda or cuda:N.
        axes: values or lists, for example ``labels=[5, 10], method=["erm", "ssmdg"], seed=range(10)``; a text is read
            as on the command line (``seed="0..9"``).

    Returns:
        One row per run, see ``pipeline.runs.runs_frame``; ``attrs["sweep"]`` is the sweep's name.

    Raises:
        UsageError: as the command would.
    """
    configure_process()
    from pipeline.runs import runs_frame
    from pipeline.study import settle_features
    from pipeline.sweeping import chosen_sweep, run_sweep, sweep_request
    from pipeline.workspace import DatasetOptions, Workspace, open_dataset

    texts = [*([str(file)] if file is not None else []), *(axis_text(key, value) for key, value in axes.items())]
    options = DatasetOptions(dataset, None if root is None else Path(root))
    chosen, options = chosen_sweep(texts, options, name, random, random_seed)
    space = Workspace(Path(work), workers or default_workers())
    manifest = open_dataset(options, space)
    request, default = sweep_request(chosen, _request(backbones, weights, device))
    settings = settle_features(manifest, options, request, space)
    run = run_sweep(chosen, manifest, settings, default, space, cluster)
    frame = runs_frame(run.results)
    frame.attrs["sweep"] = chosen.name
    return frame


def report(
    name: str | None = None,
    *,
    dataset: str = "",
    root: str | Path | None = None,
    work: str | Path = "pipe-work",
    backbones: Sequence[str] = (),
    weights: Sequence[str] = (),
    baseline: str = "",
) -> pandas.DataFrame:
    """Write the report of a sweep, or of all finished runs of a data set.

    Args:
        name: of the sweep; ``None``: all finished runs.
        dataset: name of a data set, or path of a manifest.
        root: folder of its media.
        work: workspace.
        backbones: as the features were extracted.
        weights: likewise.
        baseline: method of the paired differences; default: the sweep's.

    Returns:
        The runs; ``attrs["paths"]`` are the files written, by name.

    Raises:
        UsageError: as the command would.
    """
    configure_process()
    from pipeline.runs import runs_frame
    from pipeline.sweeping import report_runs
    from pipeline.workspace import DatasetOptions, Workspace

    options = DatasetOptions(dataset, None if root is None else Path(root))
    results, paths = report_runs(name, options, _request(backbones, weights, "cpu"), Workspace(Path(work)), baseline)
    frame = runs_frame(results)
    frame.attrs["paths"] = {key: str(path) for key, path in paths.items()}
    return frame


def axis_text(name: str, values: object) -> str:
    """An axis as the command line writes it."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        return f"{name}={values}"
    return f"{name}={','.join(map(str, values))}"


def _request(backbones: Sequence[str], weights: Sequence[str], device: str) -> Any:
    from pipeline.features import FeatureRequest

    return FeatureRequest(backbones=tuple(backbones), weights=tuple(weights), device=device)
