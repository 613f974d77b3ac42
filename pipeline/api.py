"""The same as `pipe sweep`, `pipe report` and `pipe predict`, from a notebook: pandas comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.process import configure_process, default_workers

if TYPE_CHECKING:
    import pandas
    from numpy.typing import ArrayLike

    from pipeline.bundle import Bundle
    from pipeline.predict import Predictor


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


def load_model(
    model: str | Path, *, device: str = "auto", weights_folder: str | Path | None = None, **options: object
) -> Predictor:
    """A model that stays loaded, with its processes, for many calls of ``predict``; close it, or use ``with``.

    Args:
        model: folder that `pipe export` wrote.
        device: auto, cpu, cuda or cuda:N.
        weights_folder: where backbones' weights lie; ``None``: the default folder.
        options: fields of ``pipeline.predict.PredictOptions``: workers, window, stride_seconds, levels, keep_degraded,
            filler, threshold, deadline_seconds, decoder.

    Raises:
        UsageError: as the command would.
    """
    configure_process()
    from dataclasses import fields

    from pipeline.bundle import load_bundle
    from pipeline.errors import choose
    from pipeline.extraction import resolve_device
    from pipeline.predict import PredictOptions, Predictor

    for name in options:
        choose("option of predict", name, [field.name for field in fields(PredictOptions)])
    found = resolve_device(device)
    bundle = load_bundle(model, found, None if weights_folder is None else Path(weights_folder))
    return Predictor(bundle, PredictOptions(device=found, **options))  # type: ignore[arg-type]


def predict(
    model: str | Path | Predictor,
    files: str | Path | Sequence[str | Path],
    *,
    root: str | Path | None = None,
    outside: bool = False,
    rate_hz: float | None = None,
    **options: Any,
) -> pandas.DataFrame:
    """Predict media files.

    Args:
        model: a bundle's folder, or what ``load_model`` returned: then nothing is loaded or started again.
        files: media files, folders of them, folders of numbered pictures, and manifests.
        root: folder of a manifest's media; default: its own.
        outside: allow media of a manifest outside the root.
        rate_hz: pictures a second of folders of pictures.
        options: see ``load_model``; not with a model that is loaded.

    Returns:
        One row per file, and one per window of a long file, with the columns of `pipe predict --csv`; ``status`` is
        ``ok`` or ``failed``, and ``code`` says why.

    Raises:
        UsageError: as the command would; a file that cannot be read is a row, not an error.
    """
    configure_process()
    import pandas

    from pipeline.errors import UsageError
    from pipeline.inputs import InputOptions, media_items

    named = [files] if isinstance(files, str | Path) else list(files)
    if isinstance(model, str | Path):
        with load_model(model, **options) as predictor:
            return predict(predictor, named, root=root, outside=outside, rate_hz=rate_hz)
    if options:
        raise UsageError(f"{next(iter(options))} goes to load_model: this model is loaded already")
    head = model.head
    items = media_items(named, InputOptions(None if root is None else Path(root), outside, rate_hz))
    rows = [line.to_row(head.classes, head.modalities) for line in model.predict(items)]
    return pandas.DataFrame(rows)


def predict_features(
    model: str | Path | Bundle | Predictor, X: Mapping[str, ArrayLike], *, filler: str | None = None
) -> pandas.DataFrame:
    """Predict rows of features; no media and no backbone is needed.

    Args:
        model: a bundle's folder, or one that is loaded.
        X: per modality `(rows, dim)`, made by the backbones that the model was trained with; a row of NaN, and a
            modality that is left out, are missing.
        filler: what stands in for missing modalities; ``None``: the model's own.

    Returns:
        One row per row of the arrays, in their order, with the columns of ``predict``.

    Raises:
        UsageError: arrays that the model cannot read.
    """
    configure_process()
    import numpy as np
    import pandas

    from pipeline.answering import predict_arrays
    from pipeline.bundle import load_bundle

    head = (load_bundle(model) if isinstance(model, str | Path) else model).head
    arrays = {name: np.asarray(values) for name, values in X.items()}
    return pandas.DataFrame(
        [line.to_row(head.classes, head.modalities) for line in predict_arrays(head, arrays, filler)]
    )


def axis_text(name: str, values: object) -> str:
    """An axis as the command line writes it."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        return f"{name}={values}"
    return f"{name}={','.join(map(str, values))}"


def _request(backbones: Sequence[str], weights: Sequence[str], device: str) -> Any:
    from pipeline.features import FeatureRequest

    return FeatureRequest(backbones=tuple(backbones), weights=tuple(weights), device=device)
