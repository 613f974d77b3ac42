"""Options that many commands share: written once, put into every command that takes them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pipeline.errors import UsageError
from pipeline.process import default_workers

if TYPE_CHECKING:
    from extractors.weights import WeightsFolder
    from pipeline.features import FeatureRequest
    from pipeline.plan import SweepSettings
    from pipeline.workspace import DatasetOptions, Workspace

DEFAULT_WORK = Path("pipe-work")
Command = TypeVar("Command", bound=Callable[..., Any])

Work = Annotated[Path, typer.Option("--work", envvar="PIPE_WORK", help="Workspace: caches, results and reports.")]
Cache = Annotated[
    str,
    typer.Option("--cache", envvar="PIPE_CACHE", help="Caches: a folder or s3://...", show_default="in the workspace"),
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes; 0 means one per processor.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the media; default: the manifest's own.")]
Name = Annotated[str | None, typer.Option(help="Name of the data set; default: from the manifest's path.")]
Outside = Annotated[bool, typer.Option("--outside", help="Allow media outside the root.")]
DataOption = Annotated[list[str] | None, typer.Option(help="Choice that a data set offers, name=value; repeatable.")]


def takes(**groups: Callable[..., object]) -> Callable[[Command], Command]:
    """Replace parameters of a command by the options of the function named for each, and pass what it returns.

    A command written with parameters ``features`` and ``work`` and decorated with
    ``takes(features=feature_options, work=workspace)`` has all options of the two functions on the command line.
    """

    parts = {name: _parameters(group) for name, group in groups.items()}

    def decorate(command: Command) -> Command:
        own = _parameters(command, frozenset(parts))
        parameters: dict[str, inspect.Parameter] = {}
        for name, parameter in own.items():
            parameters |= parts.get(name, {name: parameter})

        def run(**values: object) -> object:
            made = {name: groups[name](**{key: values.pop(key) for key in part}) for name, part in parts.items()}
            return command(**values, **made)

        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters.values()]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in keywords}
        return run  # type: ignore[return-value]

    return decorate


def _parameters(function: Callable[..., object], besides: frozenset[str] = frozenset()) -> dict[str, inspect.Parameter]:
    """Parameters of a function with annotations that are no text; ``besides``: those whose classes come later."""
    scope = vars(sys.modules[function.__module__])
    return {
        name: parameter if name in besides else parameter.replace(annotation=eval(parameter.annotation, scope))
        for name, parameter in inspect.signature(function).parameters.items()
    }


def workspace(work: Work = DEFAULT_WORK, cache: Cache = "") -> Workspace:
    """The workspace, with one process per processor."""
    from pipeline.workspace import Workspace

    return Workspace(work, cache_root=cache)


def busy_workspace(work: Work = DEFAULT_WORK, cache: Cache = "", workers: Workers = 0) -> Workspace:
    """The workspace, with as many processes as the user wants."""
    from pipeline.workspace import Workspace

    return Workspace(work, workers or default_workers(), cache)


def result_folders(
    work: Work = DEFAULT_WORK,
    dataset: Annotated[str, typer.Option(help="Name of a data set in the workspace.", show_default="all")] = "",
) -> list[Path]:
    """Folders of results, one per data set.

    Raises:
        UsageError: the workspace has none, or not of that data set.
    """
    from pipeline.errors import nearest

    there = {path.name: path for path in sorted((work / "results").glob("*")) if path.is_dir()}
    if not there or (dataset and dataset not in there):
        wanted = f" of {dataset!r}.{nearest(dataset, there)}" if dataset else "."
        raise UsageError(f"there are no results in {work}{wanted} Data sets with results: {', '.join(there) or 'none'}")
    return [there[dataset]] if dataset else list(there.values())


@dataclass(frozen=True)
class Listing:
    """How a list of runs is shown."""

    sort: tuple[str, ...]
    columns: tuple[str, ...]
    limit: int  # rows


def listing(
    sort: Annotated[str, typer.Option(help="Columns, comma-separated; -NAME: highest first.")] = "",
    columns: Annotated[str, typer.Option(help="Columns, comma-separated; h.* for all hyperparameters.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Rows, at most.")] = 30,
) -> Listing:
    """How a list of runs is shown."""
    return Listing(names(sort), names(columns), limit)


def weights_folder(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Folder of weight files.", show_default="PIPE_WEIGHTS or the cache")
    ] = None,
) -> WeightsFolder:
    """Where weight files lie."""
    load_torch()
    from extractors.weights import WeightsFolder, default_folder

    return WeightsFolder(folder or default_folder())


def dataset_options(
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name of a data set (`pipe data list`), or path of a manifest.")
    ],
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
) -> DatasetOptions:
    """Which data set, and where."""
    from pipeline.workspace import DatasetOptions

    options = {k: str(v) for k, v in pairs(data_option or [], "--data-option split=2").items()}
    return DatasetOptions(dataset, root, name, outside, options=options)


def sweep_dataset_options(
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name or manifest of the data set.", show_default="the sweep file's")
    ] = "",
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
) -> DatasetOptions:
    """Which data set, where a sweep file may name it."""
    return dataset_options(dataset, root, name, outside, data_option)


def feature_options(
    modalities: Annotated[
        str, typer.Option(help="Comma-separated, of video, flow, audio.", show_default="video,flow,audio")
    ] = "",
    backbones: Annotated[
        str,
        typer.Option(help="Names, comma-separated, or a preset (`pipe backbones`).", show_default="the data set's"),
    ] = "",
    weights: Annotated[
        list[str] | None,
        typer.Option(help="[BACKBONE=]NAME, random:SEED or a file; repeatable.", show_default="the published ones"),
    ] = None,
    tap: Annotated[str, typer.Option(help="pool, pre-layer4 or pre-layer4@GRID.")] = "pool",
    feature_precision: Annotated[
        str, typer.Option(help="Of backbones: float32, bfloat16, or auto: as cached, else what is fast here.")
    ] = "auto",
    feature_dtype: Annotated[str, typer.Option(help="Of stored features: float16 or float32.")] = "float16",
    features: Annotated[
        list[str] | None,
        typer.Option(help="Group of the cache to train on as it is, such as an imported one; repeatable."),
    ] = None,
    weak: Annotated[int, typer.Option(help="Weak views per clip.")] = 2,
    strong: Annotated[int, typer.Option(help="Strong views per clip, at most as many as weak ones.")] = 2,
    view_seed: Annotated[int, typer.Option(help="Seed of the augmented views.")] = 0,
    augmentation: Annotated[
        str, typer.Option(help="Of the views: strict, or paper: as the authors' code has it.")
    ] = "strict",
    flow: Annotated[
        str, typer.Option(help="Optical flow: dis-medium, dis-fast, dis-ultrafast, tvl1, tvl1-opencv, raft-large, ...")
    ] = "dis-medium",
    decoder: Annotated[
        str, typer.Option(help="Of video files: auto, pyav, torchcodec, torchcodec-cuda, decord.")
    ] = "auto",
    resampler: Annotated[str, typer.Option(help="Of sound: swresample, soxr-hq, soxr-vhq.")] = "swresample",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> FeatureRequest:
    """Which features, and the device."""
    load_torch()
    from pipeline.features import FeatureRequest
    from pipeline.types import ViewSpec

    return FeatureRequest(
        modalities=names(modalities),
        backbones=names(backbones),
        weights=tuple(weights or ()),
        tap=tap,
        precision=feature_precision,
        dtype=feature_dtype,
        groups=tuple(features or ()),
        views=ViewSpec(weak=weak, strong=strong, seed=view_seed, variant=augmentation),  # type: ignore[arg-type]
        flow_method=flow,
        decoder=decoder,
        resampler=resampler,
        device=device,
    )


def sweep_options(
    config: Annotated[Path | None, typer.Option(help="TOML file with [run] and [axes]; options beat it.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Labeled clips per class and source domain, or a share: 5%.", show_default="5")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, from 0.", show_default="5")] = None,
    method: Annotated[
        str | None, typer.Option(help="Comma-separated methods.", show_default="erm,fixmatch,ssmdg")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Target domains, comma-separated; all: every one once.", show_default="all")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.", show_default="400")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Labeled, and as many unlabeled, clips per step.", show_default="32")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between two evaluations.", show_default="50")
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(help="last, label-honest, source-val, or oracle (never a result).", show_default="last"),
    ] = None,
    target_part: Annotated[
        str | None,
        typer.Option(
            help="Target clips to test on: all, or its test part.",
            show_default="all; test with --protocol paper or inside a single domain",
        ),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="strict, or paper: the authors' draw and parts.", show_default="strict")
    ] = None,
    unlabeled_domains: Annotated[
        str | None, typer.Option(help="Source domains without labels, comma-separated.", show_default="none")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Folds of the selection label-honest.", show_default="5")
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="strict, or paper: a method's switches as its release has them.", show_default="strict"),
    ] = None,
    mixing: Annotated[
        str | None, typer.Option(help="none, mm or bmm, for every method.", show_default="the method's own")
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(help="concat, concat-linear, sum, decision, film or bi-gated.", show_default="concat"),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="none, scale, residual or project.", show_default="residual")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(help="Compact features: pca:256 or pca-white:256, fitted on the sources.", show_default="none"),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, adam or sgd.", show_default="adamw")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of matrix products: float32 or bfloat16.", show_default="float32")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=0, help="Evaluations without a better validation before a run stops.", show_default="never"),
    ] = None,
    keep_weights: Annotated[
        bool | None,
        typer.Option("--keep-weights/--no-keep-weights", help="Keep weights for pipe eval.", show_default="keep"),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Hyperparameter, for example threshold=0.9.")] = None,
) -> SweepSettings:
    """What is trained: the file, and the options that beat it."""
    load_torch()
    from pipeline.plan import SweepSettings, read_sweep

    sweep = read_sweep(config) if config else SweepSettings()
    structure = {"mixing": mixing, "fusion": fusion, "adapter": adapter, "optimizer": optimizer}
    hparams = {**{k: v for k, v in structure.items() if v is not None}, **assignments(set_ or [])}
    changes = {
        "labels": labels,
        "seeds": None if seeds is None else tuple(range(seeds)),
        "methods": None if method is None else names(method),
        "targets": None if target is None else () if target == "all" else names(target),
        "steps": steps,
        "batch_labeled": batch,
        "batch_unlabeled": batch,
        "eval_every": eval_every,
        "selection": selection,
        "target_part": target_part,
        "protocol": protocol,
        "unlabeled_domains": None if unlabeled_domains is None else names(unlabeled_domains),
        "folds": folds,
        "variant": variant,
        "projection": project,
        "precision": precision,
        "patience": patience,
        "keep_weights": keep_weights,
        "hparams": {**sweep.hparams, **hparams} if hparams else None,
    }
    return dataclasses.replace(sweep, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]


def load_torch() -> None:
    """Import PyTorch, which takes seconds, behind a sign of life."""
    from pipeline.console import status

    with status("loading PyTorch"):
        import torch  # noqa: F401


def names(text: str) -> tuple[str, ...]:
    """Split a comma-separated option; a name that stands twice counts once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def assignments(texts: Sequence[str]) -> dict[str, float | str]:
    """Read ``name=value`` options; a value that looks like a number is one."""
    found: dict[str, float | str] = {}
    for name, value in pairs(texts, "--set threshold=0.9").items():
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found


def pairs(texts: Sequence[str], example: str) -> dict[str, str]:
    """Read ``name=value`` options."""
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"{example.split()[0]} {text!r}: write name=value, for example {example}")
        found[name.strip()] = value.strip()
    return found
