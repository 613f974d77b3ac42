"""The command line: parse, call one function, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from pipeline import __version__
from pipeline.cache_commands import cache_app
from pipeline.errors import PipeError, disk_error
from pipeline.model_commands import model_app
from pipeline.options import (
    Listing,
    busy_workspace,
    dataset_options,
    feature_options,
    listing,
    load_torch,
    names,
    result_folders,
    sweep_dataset_options,
    sweep_options,
    takes,
    weights_folder,
    workspace,
)
from pipeline.process import configure_process

if TYPE_CHECKING:
    from extractors.weights import WeightsFolder
    from pipeline.features import FeatureRequest
    from pipeline.plan import SweepSettings
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
        except OSError as error:
            known = disk_error(error)
            if known is None:
                raise
            print(f"error: {known}", file=sys.stderr)
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
runs_app = typer.Typer(help="Finished runs: list, look at, ask, export.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")
weights_app = typer.Typer(help="Published weights of backbones.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(weights_app, name="weights")
app.add_typer(cache_app, name="cache")
app.add_typer(model_app)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pipe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    configure_process()


@app.command()
@takes(space=busy_workspace)
def demo(
    space: Workspace,
    labels: Annotated[str, typer.Option(help="Labeled clips per class and source domain, or a share: 5%.")] = "5",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 400,
    clips_per_class: Annotated[int, typer.Option(min=4, help="Clips per class and domain.")] = 40,
    data_seed: Annotated[int, typer.Option(help="Seed of the synthetic data set.")] = 0,
) -> None:
    """Make a small synthetic audio-visual data set and run everything on it, from mp4 files to a table."""
    load_torch()
    from pipeline.datasets.demo import DemoSpec
    from pipeline.extraction import ExtractSettings
    from pipeline.plan import SweepSettings
    from pipeline.show import show_dataset, show_extraction, show_notes, show_paths, show_probe, show_runs
    from pipeline.study import build_report, extract_features, load_features, notes, probe_features, stored_results
    from pipeline.study import train_heads as train
    from pipeline.workspace import DatasetOptions, open_dataset

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
@takes(options=dataset_options, space=busy_workspace, features=feature_options)
def extract(
    options: DatasetOptions,
    space: Workspace,
    features: FeatureRequest,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Run backbones through torch.compile: minutes first, for a GPU.")
    ] = False,
    decoders: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that only decode, for one that encodes; 0: workers do both.",
            show_default="with a GPU all processors but one, else 0",
        ),
    ] = None,
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds that decoding one clip may take.")] = 120.0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try clips again that crashed a decoder or were too late.")
    ] = False,
    cluster: Annotated[
        str, typer.Option(help="tcp://HOST:PORT of a dask scheduler that shares the folders, local:N or slurm:N.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few clips and say what time, disk and memory all will take.")
    ] = False,
) -> None:
    """Decode, augment and encode every clip into the feature cache; goes on where it stopped."""
    from dataclasses import replace

    from pipeline.show import show_extraction, show_notes, show_trial
    from pipeline.study import extract_features, notes, settle_features, try_features
    from pipeline.workspace import open_dataset

    manifest = open_dataset(options, space)
    remote = bool(cluster) and not dry_run
    features = replace(features, compiled=compile_, deadline_seconds=deadline, remote=remote)
    settings = settle_features(manifest, options, features, space, extracting=True)
    show_notes(notes(manifest, settings))
    if dry_run:
        show_trial(try_features(manifest, settings, space, decoders))
    else:
        show_extraction(extract_features(manifest, settings, space, decoders, retry_failed, cluster))


@app.command()
@takes(space=workspace, weights=weights_folder)
def doctor(
    space: Workspace,
    weights: WeightsFolder,
    golden: Annotated[Path | None, typer.Option(help="Folder of golden numbers: compare ours with them.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="With --golden: float32 or bfloat16.")] = "float32",
    deep: Annotated[bool, typer.Option("--deep", help="Read every weight file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Say what of this machine works, what does not, and what to do; exit code 1 where something is broken."""
    from pipeline.doctor import Question, examine, to_json
    from pipeline.doctor import failed as broken
    from pipeline.extraction import resolve_device
    from pipeline.selftest import run_golden
    from pipeline.show_doctor import looking, show_checks, show_golden

    place = resolve_device(device)
    with looking() as look:
        checks = examine(Question(space.folder, space.cache, weights.folder, place, deep), look)
        results = [] if golden is None else run_golden(golden, place, precision, look)
    if as_json:
        print(to_json(checks, results))
    else:
        show_checks(checks)
        if golden is not None:
            show_golden(results, place, precision)
    if broken(checks) or any(result.state == "fail" for result in results):
        raise typer.Exit(1)


@app.command()
@takes(options=dataset_options, space=workspace)
def verify_decode(
    options: DatasetOptions,
    space: Workspace,
    clips: Annotated[int, typer.Option(min=1, help="Clips, drawn at random.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    decoders: Annotated[str, typer.Option(help="Decoders, comma-separated.", show_default="all that are here")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Decode the same frames with every decoder and compare; exit code 1 when they differ on the CPU."""
    load_torch()
    from pipeline.console import progress
    from pipeline.extraction import resolve_device
    from pipeline.show_decode import show_verification
    from pipeline.verify_decode import verify_decode as verify
    from pipeline.workspace import open_dataset

    manifest = open_dataset(options, space)
    with progress("comparing decoders") as bar:
        bar.start(min(clips, len(manifest.clips)))
        report = verify(manifest, clips, seed, names(decoders), resolve_device(device), advance=bar.advance)
    show_verification(report)
    if any(d.only_one or (d.largest and not d.decode_device.startswith("cuda")) for d in report.summary()):
        raise typer.Exit(1)


@app.command()
@takes(options=dataset_options, space=busy_workspace, sweep=sweep_options, features=feature_options)
def train_heads(
    options: DatasetOptions,
    space: Workspace,
    sweep: SweepSettings,
    features: FeatureRequest,
    splits: Annotated[
        list[Path] | None, typer.Option(help="Label subsets (JSON) instead of a draw: files or folders; repeatable.")
    ] = None,
) -> None:
    """Train heads on cached features: methods x target domains x seeds, in stacks; runs only what is missing."""
    from pipeline.labelsets import read_label_sets
    from pipeline.show import show_notes, show_runs
    from pipeline.study import load_features, settle_features, weights_notes
    from pipeline.study import train_heads as train
    from pipeline.workspace import open_dataset

    manifest = open_dataset(options, space)
    label_sets = read_label_sets(splits, manifest) if splits else []
    settings = settle_features(manifest, options, features, space)
    tables = load_features(manifest, settings, space)
    show_runs(*train(manifest, tables, settings, sweep, space, label_sets))
    show_notes(weights_notes(settings))


@app.command()
@takes(options=sweep_dataset_options, space=busy_workspace, features=feature_options)
def sweep(
    options: DatasetOptions,
    space: Workspace,
    features: FeatureRequest,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE] [AXIS=VALUES]...", help="A sweep file or its name; labels=5,10 seed=0..9 ..."),
    ] = None,
    sweep_name: Annotated[str, typer.Option(help="What the report calls it.", show_default="the file's")] = "",
    random: Annotated[int, typer.Option(min=0, help="Draws of random search.")] = 0,
    random_seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    stack: Annotated[int, typer.Option(min=0, help="Runs in a stack, at most; 0: as many as fit.")] = 0,
    cluster: Annotated[str, typer.Option(help="tcp://HOST:PORT of a dask scheduler, local:N or slurm:N.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print runs, stacks, memory, time; train nothing.")
    ] = False,
) -> None:
    """Train everything that axes or a file name, in stacks; runs only what is missing."""
    from pipeline.show import show_notes
    from pipeline.show_sweep import show_estimate, show_sweep
    from pipeline.study import settle_features, weights_notes
    from pipeline.sweeping import chosen_sweep, estimate_sweep, run_sweep, sweep_request
    from pipeline.workspace import open_dataset

    chosen, options = chosen_sweep(what or [], options, sweep_name, random, random_seed)
    manifest = open_dataset(options, space)
    request, default = sweep_request(chosen, features)
    settings = settle_features(manifest, options, request, space)
    if dry_run:
        show_estimate(chosen, *estimate_sweep(chosen, manifest, settings, default, space, stack or None))
        return
    show_sweep(run_sweep(chosen, manifest, settings, default, space, cluster, stack or None))
    show_notes(weights_notes(settings))


@app.command("eval")
@takes(options=dataset_options, space=workspace, features=feature_options)
def evaluate(
    runs: Annotated[list[str], typer.Argument(help="First characters of run ids, or all.")],
    options: DatasetOptions,
    space: Workspace,
    features: FeatureRequest,
    missing: Annotated[
        str, typer.Option(help="all: every subset of modalities; or names taken away, comma-separated.")
    ] = "all",
    fillers: Annotated[str, typer.Option(help="Comma-separated; default: all that a method has.")] = "",
    finetune_translators: Annotated[
        int, typer.Option(min=0, help="Steps of training translators alone first, for the filler finetuned.")
    ] = 0,
) -> None:
    """Evaluate trained runs on their target with modalities taken away: every subset, every filler."""
    from pipeline.missing import Finetuning
    from pipeline.show import show_missing
    from pipeline.study import choose_runs, evaluate_missing, settle_features
    from pipeline.workspace import open_dataset

    manifest = open_dataset(options, space)
    chosen = choose_runs(manifest.dataset, runs, space)
    settings = settle_features(manifest, options, features, space)
    finetuning = Finetuning(finetune_translators) if finetune_translators else None
    rows = evaluate_missing(manifest, chosen, settings, missing, names(fillers), finetuning, space)
    show_missing(chosen, rows)


@app.command()
def methods() -> None:
    """List the methods with their sources and hyperparameters."""
    load_torch()
    from pipeline.show import show_methods

    show_methods()


@app.command()
@takes(options=dataset_options, space=workspace, features=feature_options)
def probe(
    options: DatasetOptions,
    space: Workspace,
    features: FeatureRequest,
) -> None:
    """Linear probe on all labels, inside every domain: are the cached features informative?"""
    from pipeline.show import show_probe
    from pipeline.study import load_features, probe_features, settle_features
    from pipeline.workspace import open_dataset

    manifest = open_dataset(options, space)
    settings = settle_features(manifest, options, features, space)
    show_probe(probe_features(manifest, load_features(manifest, settings, space), space))


@app.command()
@takes(options=sweep_dataset_options, space=workspace, features=feature_options)
def report(
    options: DatasetOptions,
    space: Workspace,
    features: FeatureRequest,
    sweep_: Annotated[
        str | None, typer.Argument(metavar="[SWEEP]", help="Name of a sweep; without it all finished runs.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="Method of the paired differences.", show_default="the sweep's")] = "",
) -> None:
    """Write tables and one self-contained HTML page from the runs of a sweep, or all of a data set."""
    from pipeline.show import show_paths, show_table
    from pipeline.sweeping import report_runs

    results, paths = report_runs(sweep_, options, features, space, baseline)
    show_table(results)
    show_paths(paths)


@app.command()
@takes(options=sweep_dataset_options, space=busy_workspace, features=feature_options)
def reproduce(
    options: DatasetOptions,
    space: Workspace,
    features: FeatureRequest,
    what: Annotated[list[str], typer.Argument(metavar="NAME [AXIS=VALUES]...", help="A sweep file or its name.")],
    cluster: Annotated[str, typer.Option(help="tcp://HOST:PORT of a dask scheduler, local:N or slurm:N.")] = "",
) -> None:
    """Extract, sweep and report in one call: a paper's table by its name."""
    from pipeline.show import show_extraction, show_paths
    from pipeline.show_sweep import show_about, show_sweep
    from pipeline.study import extract_features, settle_features
    from pipeline.sweeping import chosen_sweep, report_runs, run_sweep, sweep_request
    from pipeline.workspace import open_dataset

    chosen, options = chosen_sweep(what, options)
    show_about(chosen)
    manifest = open_dataset(options, space)
    request, default = sweep_request(chosen, features)
    settings = settle_features(manifest, options, request, space, extracting=True)
    show_extraction(extract_features(manifest, settings, space))
    show_sweep(run_sweep(chosen, manifest, settings, default, space, cluster))
    show_paths(report_runs(chosen.name, options, request, space)[1])


@app.command()
def backbones(
    name: Annotated[
        str | None, typer.Argument(help="All about one; torchvision:MODEL for any of torchvision's.")
    ] = None,
) -> None:
    """List the frozen backbones: input, size, weights, licence."""
    load_torch()
    from extractors.backbone import BACKBONES, find_backbone
    from pipeline.extraction import usage_errors
    from pipeline.show_weights import show_backbone, show_backbones

    if name is None:
        show_backbones(list(BACKBONES.values()))
    else:
        with usage_errors():
            found = find_backbone(name)
        show_backbone(found)


@weights_app.command("list")
@takes(folder=weights_folder)
def weights_list(folder: WeightsFolder) -> None:
    """List the published weight files and which of them are here."""
    from pipeline.show_weights import show_known_files
    from pipeline.weight_files import known_files

    show_known_files(known_files(folder), folder)


@weights_app.command("fetch")
@takes(folder=weights_folder)
def weights_fetch(
    names_: Annotated[list[str], typer.Argument(metavar="NAME...", help="Backbones, presets or file names.")],
    folder: WeightsFolder,
) -> None:
    """Download published weights: goes on where it stopped, checks the digest."""
    from pipeline.show_weights import show_file
    from pipeline.weight_files import fetch_file, known_files

    for known in known_files(folder, tuple(names_)):
        show_file(fetch_file(folder, known))


@weights_app.command("check")
@takes(folder=weights_folder)
def weights_check(folder: WeightsFolder) -> None:
    """Read every weight file that is here again; exit code 1 when one is not what it was."""
    from pipeline.show_weights import show_file
    from pipeline.weight_files import check_files

    sound, faults = check_files(folder)
    for file in sound:
        show_file(file)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        raise typer.Exit(1)
    if not sound:
        print(f"There are no weight files in {folder.folder}.")


@weights_app.command("add")
@takes(folder=weights_folder)
def weights_add(
    file: Annotated[Path, typer.Argument(help="A published weight file that you have.")],
    folder: WeightsFolder,
    as_: Annotated[str | None, typer.Option("--as", help="Which one it is: its published file name.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another file of that name.")] = False,
) -> None:
    """Take a published weight file that you have; checks its digest and that it fits its network."""
    from pipeline.show_weights import show_file
    from pipeline.weight_files import add_file

    show_file(add_file(folder, file, as_, replace))


@runs_app.command("ls")
@takes(folders=result_folders, shown=listing)
def runs_ls(
    folders: Sequence[Path],
    shown: Listing,
    where: Annotated[str, typer.Option(help='A condition, for example "method = ssmdg and budget = 5".')] = "",
) -> None:
    """List finished runs."""
    _list_runs(folders, where, shown)


@runs_app.command("query")
@takes(folders=result_folders, shown=listing)
def runs_query(
    where: Annotated[str, typer.Argument(help='A condition, for example "method = ssmdg and target/fused > 0.5".')],
    folders: Sequence[Path],
    shown: Listing,
) -> None:
    """List the finished runs that fulfil a condition: = != < <= > >= ~ in, and, or, parentheses."""
    _list_runs(folders, where, shown)


def _list_runs(folders: Sequence[Path], where: str, shown: Listing) -> None:
    from pipeline.show_runs import show_runs_list, show_skipped
    from pipeline.sweeping import asked_runs

    frame, skipped = asked_runs(folders, where, shown.sort, shown.columns)
    show_runs_list(frame, shown.limit, list(frame.columns) if shown.columns else ())
    show_skipped(skipped)


@runs_app.command("show")
@takes(folders=result_folders)
def runs_show(
    run: Annotated[str, typer.Argument(help="First characters of a run's id.")], folders: Sequence[Path]
) -> None:
    """Everything about one run: settings, accuracies, curves, confusion matrix, environment."""
    from pipeline.runs import find_run
    from pipeline.show_runs import show_run

    show_run(find_run(folders, run))


@runs_app.command("export")
@takes(folders=result_folders)
def runs_export(
    path: Annotated[Path, typer.Argument(help="File: .csv, .parquet or .json.")],
    folders: Sequence[Path],
    where: Annotated[str, typer.Option(help="A condition, as `pipe runs query` takes it.")] = "",
    columns: Annotated[str, typer.Option(help="Columns, comma-separated; h.* for all hyperparameters.")] = "",
    curves: Annotated[bool, typer.Option("--curves", help="All evaluations: run, step, curve, value.")] = False,
) -> None:
    """Write finished runs as a table, one row each, or their curves."""
    from pipeline.show_runs import show_skipped
    from pipeline.sweeping import export_runs

    rows, skipped = export_runs(folders, path, where, names(columns), curves)
    show_skipped(skipped)
    print(f"Written: {path} ({rows} rows)")


@runs_app.command("log")
@takes(folders=result_folders)
def runs_log(
    folder: Annotated[Path, typer.Argument(help="Folder for the log.")],
    folders: Sequence[Path],
    to: Annotated[str, typer.Option(help="tensorboard or wandb (offline).")] = "tensorboard",
    project: Annotated[str, typer.Option(help="Project name in Weights & Biases.")] = "pipe",
) -> None:
    """Write finished runs for TensorBoard or, offline, for Weights & Biases."""
    from pipeline.show_runs import show_skipped
    from pipeline.sweeping import log_runs

    written, skipped = log_runs(folders, folder, to, project)
    show_skipped(skipped)
    print(f"Written: {written} runs in {folder}")


@data_app.command("check")
@takes(options=dataset_options, space=busy_workspace)
def data_check(
    options: DatasetOptions,
    space: Workspace,
    deep: Annotated[bool, typer.Option("--deep", help="Decode first, middle and last picture and all sound.")] = False,
) -> None:
    """Say what of a data set is there, what is missing and how to get it; exit code 1 when something is missing."""
    from pipeline.show_check import show_check
    from pipeline.workspace import check_data, open_dataset

    check = check_data(open_dataset(options, space), options.dataset, deep, space)
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
@takes(options=dataset_options, space=workspace)
def splits_export(
    options: DatasetOptions,
    space: Workspace,
    output: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("label-sets"),
    labels: Annotated[str, typer.Option(help="Labeled clips per class and source domain, or a share: 5%.")] = "5",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 5,
    target: Annotated[str, typer.Option(help="Target domains, comma-separated; all: every one once.")] = "all",
    protocol: Annotated[str, typer.Option(help="strict or paper.")] = "strict",
    unlabeled_domains: Annotated[str, typer.Option(help="Source domains without labels, comma-separated.")] = "",
) -> None:
    """Write the labeled clips of every target and seed as small JSON files with a digest."""
    from pipeline.labelsets import draw_label_sets
    from pipeline.show_check import show_label_sets
    from pipeline.workspace import open_dataset

    manifest = open_dataset(options, space)
    targets = () if target == "all" else names(target)
    sets = draw_label_sets(manifest, labels, seeds, targets, protocol, names(unlabeled_domains))
    show_label_sets(sets, manifest)
    for given in sets:
        typer.echo(f"Written: {given.write(output)}")


@splits_app.command("import")
@takes(options=dataset_options, space=workspace)
def splits_import(
    files: Annotated[list[Path], typer.Argument(help="Files or folders of label subsets.")],
    options: DatasetOptions,
    space: Workspace,
) -> None:
    """Check label subsets against a data set; train with them by `pipe train-heads --splits`."""
    from pipeline.labelsets import read_label_sets
    from pipeline.show_check import show_label_sets
    from pipeline.workspace import open_dataset

    manifest = open_dataset(options, space)
    show_label_sets(read_label_sets(files, manifest), manifest)


def main() -> None:
    """Entry point of ``pipe``."""
    app()
