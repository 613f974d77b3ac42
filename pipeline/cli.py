"""The command line: parse, call one function, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from pipeline import __version__
from pipeline.errors import PipeError, UsageError
from pipeline.process import configure_process, default_workers

if TYPE_CHECKING:
    from pipeline.encode import ExtractSettings
    from pipeline.workspace import DatasetOptions, Workspace


class _Commands(TyperGroup):
    """Prints expected errors as one message (exit 2) and Ctrl-C as a word of comfort (exit 130), never a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        from cache.layout import CacheError

        try:
            return super().invoke(ctx)
        except (PipeError, CacheError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("\nStopped. Finished work is kept; the same command goes on from here.", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="pipe",
    cls=_Commands,
    help="Cached frozen features and stacked lightweight heads for multimodal video with few labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

splits_app = typer.Typer(
    help="Label subsets as files that others can use.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(splits_app, name="splits")
data_app = typer.Typer(help="What of a data set is there, and manifests.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Work = Annotated[Path, typer.Option("--work", envvar="PIPE_WORK", help="Workspace: caches, results and reports.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes; 0 means one per processor.")]
Dataset = Annotated[
    str, typer.Option("--dataset", help="Name of a data set (`pipe data list`), or path of a manifest.")
]
Root = Annotated[Path | None, typer.Option("--root", help="Folder of the media; default: the manifest's own.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the data set; default: from the manifest's path.")]
Outside = Annotated[bool, typer.Option("--outside", help="Allow media outside the root.")]
DataOption = Annotated[
    list[str] | None, typer.Option("--data-option", help="Choice that a data set offers, name=value; repeatable.")
]
Modalities = Annotated[str, typer.Option("--modalities", help="Comma-separated, of video, flow, audio.")]
Weak = Annotated[int, typer.Option("--weak", help="Weak views per clip.")]
Strong = Annotated[int, typer.Option("--strong", help="Strong views per clip, at most as many as weak ones.")]
ViewSeed = Annotated[int, typer.Option("--view-seed", help="Seed of the augmented views.")]
FlowMethod = Annotated[str, typer.Option("--flow", help="Optical flow: dis-medium, dis-fast, dis-ultrafast.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]

DEFAULT_WORK = Path("pipe-work")
DEFAULT_MODALITIES = "video,flow,audio"


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pipe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    configure_process()


def _load() -> None:
    """Import PyTorch, which takes seconds, behind a sign of life."""
    from pipeline.console import status

    with status("loading PyTorch"):
        import torch  # noqa: F401


@app.command()
def demo(
    work: Work = DEFAULT_WORK,
    labels: Annotated[str, typer.Option(help="Labeled clips per class and source domain, or a share: 5%.")] = "5",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 400,
    clips_per_class: Annotated[int, typer.Option(min=4, help="Clips per class and domain.")] = 40,
    data_seed: Annotated[int, typer.Option(help="Seed of the synthetic data set.")] = 0,
    workers: Workers = 0,
) -> None:
    """Make a small synthetic audio-visual data set and run everything on it, from mp4 files to a table."""
    _load()
    from pipeline.datasets.demo import DemoSpec
    from pipeline.encode import ExtractSettings
    from pipeline.plan import SweepSettings
    from pipeline.show import show_dataset, show_extraction, show_notes, show_paths, show_probe, show_runs
    from pipeline.study import build_report, extract_features, load_features, notes, probe_features, stored_results
    from pipeline.study import train_heads as train
    from pipeline.workspace import DatasetOptions, Workspace, open_dataset

    space = Workspace(work, workers or default_workers())
    settings = ExtractSettings()
    sweep = SweepSettings(labels=labels, seeds=tuple(range(seeds)), steps=steps)
    manifest = open_dataset(
        DatasetOptions("demo", demo=DemoSpec(seed=data_seed, clips_per_class=clips_per_class)), space
    )
    show_dataset(manifest)
    show_extraction(extract_features(manifest, settings, space))
    show_notes(notes(manifest, settings))
    tables = load_features(manifest, settings, space)
    probes = probe_features(manifest, tables, space)
    show_probe(probes)
    show_runs(*train(manifest, tables, settings, sweep, space))
    show_paths(build_report(manifest, settings, probes, stored_results(manifest.dataset, space), space))


@app.command()
def extract(
    dataset: Dataset,
    work: Work = DEFAULT_WORK,
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
    modalities: Modalities = DEFAULT_MODALITIES,
    weak: Weak = 2,
    strong: Strong = 2,
    view_seed: ViewSeed = 0,
    flow: FlowMethod = "dis-medium",
    device: Device = "auto",
    workers: Workers = 0,
) -> None:
    """Decode, augment and encode every clip into the feature cache; goes on where it stopped."""
    _load()
    from pipeline.show import show_extraction
    from pipeline.study import extract_features
    from pipeline.workspace import open_dataset

    options, space = _dataset(dataset, root, name, outside, data_option), _workspace(work, workers)
    manifest = open_dataset(options, space)
    settings = _features(modalities, weak, strong, view_seed, flow, device)
    show_extraction(extract_features(manifest, settings, space))


@app.command()
def train_heads(
    dataset: Dataset,
    work: Work = DEFAULT_WORK,
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
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
    splits: Annotated[
        list[Path] | None, typer.Option(help="Label subsets (JSON) instead of a draw: files or folders; repeatable.")
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
    modalities: Modalities = DEFAULT_MODALITIES,
    weak: Weak = 2,
    strong: Strong = 2,
    view_seed: ViewSeed = 0,
    flow: FlowMethod = "dis-medium",
    device: Device = "auto",
    workers: Workers = 0,
) -> None:
    """Train heads on cached features: methods x target domains x seeds, in stacks; runs only what is missing."""
    _load()
    import dataclasses

    from pipeline.labelsets import read_label_sets
    from pipeline.plan import SweepSettings, read_sweep
    from pipeline.show import show_runs
    from pipeline.study import load_features
    from pipeline.study import train_heads as train
    from pipeline.workspace import open_dataset

    options, space = _dataset(dataset, root, name, outside, data_option), _workspace(work, workers)
    sweep = read_sweep(config) if config else SweepSettings()
    structure = {"mixing": mixing, "fusion": fusion, "adapter": adapter, "optimizer": optimizer}
    hparams = {**{k: v for k, v in structure.items() if v is not None}, **_assignments(set_ or [])}
    changes = {
        "labels": labels,
        "seeds": None if seeds is None else tuple(range(seeds)),
        "methods": None if method is None else _names(method),
        "targets": None if target is None else () if target == "all" else _names(target),
        "steps": steps,
        "batch_labeled": batch,
        "batch_unlabeled": batch,
        "eval_every": eval_every,
        "selection": selection,
        "target_part": target_part,
        "protocol": protocol,
        "unlabeled_domains": None if unlabeled_domains is None else _names(unlabeled_domains),
        "folds": folds,
        "variant": variant,
        "projection": project,
        "precision": precision,
        "patience": patience,
        "keep_weights": keep_weights,
        "hparams": {**sweep.hparams, **hparams} if hparams else None,
    }
    sweep = dataclasses.replace(sweep, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
    settings = _features(modalities, weak, strong, view_seed, flow, device)
    manifest = open_dataset(options, space)
    label_sets = read_label_sets(splits, manifest) if splits else []
    tables = load_features(manifest, settings, space)
    show_runs(*train(manifest, tables, settings, sweep, space, label_sets))


@app.command("eval")
def evaluate(
    runs: Annotated[list[str], typer.Argument(help="First characters of run ids, or all.")],
    dataset: Dataset,
    missing: Annotated[
        str, typer.Option(help="all: every subset of modalities; or names taken away, comma-separated.")
    ] = "all",
    fillers: Annotated[str, typer.Option(help="Comma-separated; default: all that a method has.")] = "",
    finetune_translators: Annotated[
        int, typer.Option(min=0, help="Steps of training translators alone first, for the filler finetuned.")
    ] = 0,
    work: Work = DEFAULT_WORK,
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
    weak: Weak = 2,
    strong: Strong = 2,
    view_seed: ViewSeed = 0,
    flow: FlowMethod = "dis-medium",
    device: Device = "auto",
) -> None:
    """Evaluate trained runs on their target with modalities taken away: every subset, every filler."""
    _load()
    from pipeline.missing import Finetuning
    from pipeline.show import show_missing
    from pipeline.study import choose_runs, evaluate_missing
    from pipeline.workspace import open_dataset

    options, space = _dataset(dataset, root, name, outside, data_option), _workspace(work, 0)
    manifest = open_dataset(options, space)
    chosen = choose_runs(manifest.dataset, runs, space)
    settings = _features(DEFAULT_MODALITIES, weak, strong, view_seed, flow, device)
    finetuning = Finetuning(finetune_translators) if finetune_translators else None
    rows = evaluate_missing(manifest, chosen, settings, missing, _names(fillers), finetuning, space)
    show_missing(chosen, rows)


@app.command()
def methods() -> None:
    """List the methods with their sources and hyperparameters."""
    _load()
    from pipeline.show import show_methods

    show_methods()


@app.command()
def probe(
    dataset: Dataset,
    work: Work = DEFAULT_WORK,
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
    modalities: Modalities = DEFAULT_MODALITIES,
    weak: Weak = 2,
    strong: Strong = 2,
    view_seed: ViewSeed = 0,
    flow: FlowMethod = "dis-medium",
) -> None:
    """Linear probe on all labels, inside every domain: are the cached features informative?"""
    _load()
    from pipeline.show import show_probe
    from pipeline.study import load_features, probe_features
    from pipeline.workspace import open_dataset

    options, space = _dataset(dataset, root, name, outside, data_option), _workspace(work, 0)
    settings = _features(modalities, weak, strong, view_seed, flow, "cpu")
    manifest = open_dataset(options, space)
    show_probe(probe_features(manifest, load_features(manifest, settings, space), space))


@app.command()
def report(
    dataset: Dataset = "demo",
    work: Work = DEFAULT_WORK,
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
    modalities: Modalities = DEFAULT_MODALITIES,
    weak: Weak = 2,
    strong: Strong = 2,
    view_seed: ViewSeed = 0,
    flow: FlowMethod = "dis-medium",
) -> None:
    """Write tables and one self-contained HTML page from all finished runs of a data set."""
    _load()
    from pipeline.show import show_paths, show_table
    from pipeline.study import build_report, load_features, probe_features, stored_results
    from pipeline.workspace import open_dataset

    options, space = _dataset(dataset, root, name, outside, data_option), _workspace(work, 0)
    manifest = open_dataset(options, space)
    results = stored_results(manifest.dataset, space)
    settings = _features(modalities, weak, strong, view_seed, flow, "cpu")
    probes = probe_features(manifest, load_features(manifest, settings, space), space)
    paths = build_report(manifest, settings, probes, results, space)
    show_table(results)
    show_paths(paths)


@data_app.command("check")
def data_check(
    dataset: Dataset,
    work: Work = DEFAULT_WORK,
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode first, middle and last picture and all sound.")] = False,
    workers: Workers = 0,
) -> None:
    """Say what of a data set is there, what is missing and how to get it; exit code 1 when something is missing."""
    from pipeline.show_check import show_check
    from pipeline.workspace import check_data, open_dataset

    options, space = _dataset(dataset, root, name, outside, data_option), _workspace(work, workers)
    check = check_data(open_dataset(options, space), dataset, deep, space)
    show_check(check)
    if not check.ok:
        raise typer.Exit(1)


@data_app.command("init")
def data_init(
    folder: Annotated[Path, typer.Argument(help="Tree of folders: domain/split/class/*.mp4, or split/class/*.mp4.")],
    output: Annotated[Path | None, typer.Option(help="The manifest; default: manifest.csv in the folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a manifest that is there.")] = False,
) -> None:
    """Write the manifest of your own data from a tree of folders."""
    from pipeline.datasets.tree import write_manifest
    from pipeline.show_check import show_manifest

    skipped: dict[str, list[str]] = {}
    path = output or folder / "manifest.csv"
    clips = write_manifest(folder, path, force, skipped)
    show_manifest(path, folder, clips, skipped)


@data_app.command("list")
def data_list() -> None:
    """List the data sets known by name, their options and where they are published."""
    from pipeline.datasets import DATASETS
    from pipeline.show_check import show_datasets

    show_datasets(DATASETS)


@splits_app.command("export")
def splits_export(
    dataset: Dataset,
    output: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("label-sets"),
    labels: Annotated[str, typer.Option(help="Labeled clips per class and source domain, or a share: 5%.")] = "5",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 5,
    target: Annotated[str, typer.Option(help="Target domains, comma-separated; all: every one once.")] = "all",
    protocol: Annotated[str, typer.Option(help="strict or paper.")] = "strict",
    unlabeled_domains: Annotated[str, typer.Option(help="Source domains without labels, comma-separated.")] = "",
    work: Work = DEFAULT_WORK,
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
) -> None:
    """Write the labeled clips of every target and seed as small JSON files with a digest."""
    from pipeline.labelsets import draw_label_sets
    from pipeline.show_check import show_label_sets
    from pipeline.workspace import open_dataset

    options, space = _dataset(dataset, root, name, outside, data_option), _workspace(work, 0)
    manifest = open_dataset(options, space)
    targets = () if target == "all" else _names(target)
    sets = draw_label_sets(manifest, labels, seeds, targets, protocol, _names(unlabeled_domains))
    show_label_sets(sets, manifest)
    for given in sets:
        typer.echo(f"Written: {given.write(output)}")


@splits_app.command("import")
def splits_import(
    files: Annotated[list[Path], typer.Argument(help="Files or folders of label subsets.")],
    dataset: Dataset,
    work: Work = DEFAULT_WORK,
    root: Root = None,
    name: Name = None,
    outside: Outside = False,
    data_option: DataOption = None,
) -> None:
    """Check label subsets against a data set; train with them by `pipe train-heads --splits`."""
    from pipeline.labelsets import read_label_sets
    from pipeline.show_check import show_label_sets
    from pipeline.workspace import open_dataset

    options, space = _dataset(dataset, root, name, outside, data_option), _workspace(work, 0)
    manifest = open_dataset(options, space)
    show_label_sets(read_label_sets(files, manifest), manifest)


def _dataset(
    dataset: str, root: Path | None, name: str | None, outside: bool, options: Sequence[str] | None
) -> DatasetOptions:
    from pipeline.workspace import DatasetOptions

    pairs = {k: str(v) for k, v in _pairs(options or [], "--data-option split=2").items()}
    return DatasetOptions(dataset, root, name, outside, options=pairs)


def _workspace(work: Path, workers: int) -> Workspace:
    from pipeline.workspace import Workspace

    return Workspace(work, workers or default_workers())


def _features(modalities: str, weak: int, strong: int, view_seed: int, flow: str, device: str) -> ExtractSettings:
    """Settings that identify the cached features, and the device."""
    from pipeline.encode import ExtractSettings, resolve_device
    from pipeline.types import ViewSpec

    views = ViewSpec(weak=weak, strong=strong, seed=view_seed)
    return ExtractSettings(modalities=_names(modalities), views=views, flow_method=flow, device=resolve_device(device))


def _names(text: str) -> tuple[str, ...]:
    """Split a comma-separated option; a name that stands twice counts once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _assignments(pairs: Sequence[str]) -> dict[str, float | str]:
    """Read ``name=value`` options; a value that looks like a number is one."""
    found: dict[str, float | str] = {}
    for name, value in _pairs(pairs, "--set threshold=0.9").items():
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found


def _pairs(texts: Sequence[str], example: str) -> dict[str, str]:
    """Read ``name=value`` options."""
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"{example.split()[0]} {text!r}: write name=value, for example {example}")
        found[name.strip()] = value.strip()
    return found


def main() -> None:
    """Entry point of ``pipe``."""
    app()
