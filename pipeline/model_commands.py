"""`pipe export` and `pipe predict`: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.options import dataset_options, feature_options, load_torch, takes, workspace

if TYPE_CHECKING:
    from pipeline.features import FeatureRequest
    from pipeline.workspace import DatasetOptions, Workspace

model_app = typer.Typer(rich_markup_mode=None)  # its commands are merged into those of `pipe`


@model_app.command("export")
@takes(options=dataset_options, space=workspace, features=feature_options)
def export(
    run: Annotated[str, typer.Argument(help="First characters of a run's id.")],
    folder: Annotated[Path, typer.Argument(metavar="MODEL_FOLDER", help="Folder to write; it must not exist.")],
    options: DatasetOptions,
    space: Workspace,
    features: FeatureRequest,
    filler: Annotated[
        str,
        typer.Option(help="What stands in for a missing modality.", show_default="by held-back source clips"),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    onnx: Annotated[Path | None, typer.Option(help="Also write the head as an ONNX file.")] = None,
    torch_export: Annotated[
        Path | None, typer.Option(help="Also write the head as a program of torch.export (.pt2).")
    ] = None,
) -> None:
    """Write a trained run as a model: weights, what features it needs, calibration, a model card."""
    from dataclasses import replace

    from pipeline.bundle import check_place
    from pipeline.bundling import choose_run, export_bundle
    from pipeline.console import status
    from pipeline.headexport import check_exporters, export_onnx, export_program
    from pipeline.show_model import show_bundle, show_exported
    from pipeline.study import settle_features
    from pipeline.workspace import open_dataset

    check_exporters(onnx, torch_export)
    check_place(folder, force)
    manifest = open_dataset(options, space)
    result = choose_run(manifest.dataset, run, space)
    features = replace(features, modalities=features.modalities or result.spec.modalities)
    settings = settle_features(manifest, options, features, space)
    with status("exporting"):
        bundle = export_bundle(result, manifest, settings, space, folder, filler, force)
    show_bundle(bundle)
    for path, write, kind in ((onnx, export_onnx, "ONNX"), (torch_export, export_program, "torch.export")):
        if path is not None:
            with status(f"{kind} of the head"):
                checked = write(bundle, path)
            show_exported(path, kind, checked.difference, checked.rows)


@model_app.command("predict")
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL_FOLDER", help="What `pipe export` wrote.")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Media, folders, manifests (.csv, .parquet); -: a list on stdin."),
    ],
    json_: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    csv_: Annotated[bool, typer.Option("--csv", help="A header, then a line a prediction.")] = False,
    output: Annotated[Path | None, typer.Option(help="File for the lines, .jsonl or .csv.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 means one per processor.")] = 0,
    window: Annotated[
        str, typer.Option(help="Seconds of a window of long files; auto: as long as the training clips; off.")
    ] = "auto",
    stride: Annotated[
        float | None, typer.Option(help="Seconds from window to window.", show_default="half a window")
    ] = None,
    silence_dbfs: Annotated[float, typer.Option(help="Sound below it is missing.")] = -60.0,
    black_level: Annotated[float, typer.Option(help="A picture darker than this, of 255, is missing.")] = 8.0,
    frozen_level: Annotated[float, typer.Option(help="A picture that changes less, of 255, is missing.")] = 1.0,
    keep_degraded: Annotated[bool, typer.Option("--keep-degraded", help="Use such tracks all the same.")] = False,
    filler: Annotated[
        str | None, typer.Option(help="What stands in for a missing modality.", show_default="the model's")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least confidence that trust counts.", show_default="the model's")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of a manifest's media; default: its own.")] = None,
    outside: Annotated[bool, typer.Option("--outside", help="Allow a manifest's media outside the root.")] = False,
    frame_rate: Annotated[float | None, typer.Option(help="Pictures a second of folders of pictures.")] = None,
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds that decoding one clip may take.")] = 120.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    decoder: Annotated[str | None, typer.Option(help="Of video files.", show_default="the model's")] = None,
    weights_folder: Annotated[
        Path | None, typer.Option(help="Folder of weight files.", show_default="PIPE_WEIGHTS or the cache")
    ] = None,
) -> None:
    """Predict files; exit code 1 where some have no prediction, which are listed at the end."""
    load_torch()
    from pipeline.degraded import DegradedLevels
    from pipeline.inputs import InputOptions
    from pipeline.predict import PredictOptions
    from pipeline.predict_output import choose_form
    from pipeline.show_predict import run_predict

    levels = DegradedLevels(silence_dbfs, black_level, frozen_level)
    options = PredictOptions(
        workers, device, window, stride, levels, keep_degraded, filler, threshold, deadline, decoder
    )
    inputs = InputOptions(root, outside, frame_rate)
    code = run_predict(model, files, options, inputs, choose_form(json_, csv_, output), output, weights_folder)
    if code:
        raise typer.Exit(code)
