"""What `pipe backbones` and `pipe weights` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from extractors.backbone import PRESETS
from extractors.encoder import LAST_STAGE, POOL, Backbone, Tap
from extractors.inputs import FrameInput
from extractors.torchvision_models import PREFIX
from extractors.weights import WeightFile, WeightsFolder
from pipeline.console import out
from pipeline.weight_files import KnownFile


def input_text(backbone: Backbone) -> str:
    """A backbone's input in a few words."""
    wanted = backbone.input
    if isinstance(wanted, FrameInput):
        step = f"every {wanted.interval}." if wanted.rate_hz is None else f"{wanted.rate_hz:g}/s"
        return f"{wanted.num_frames} frames ({step}), {wanted.size} px"
    frequencies, times = wanted.shape
    return f"{wanted.num_samples / wanted.rate_hz:g} s at {wanted.rate_hz} Hz, {frequencies} x {times}"


def show_backbones(backbones: Sequence[Backbone]) -> None:
    """The table of backbones, then the presets."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    for name in ("modality", "input"):
        table.add_column(name, overflow="fold")
    for name in ("dim", "params M", "GFLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("weights", "licence"):
        table.add_column(name, overflow="fold")
    for b in backbones:
        weights = ", ".join(p.name for p in b.published) or f"built in ({b.builtin})"
        params = f"{b.params / 1e6:.3g}"
        cells = (b.name, b.modality, input_text(b), str(b.dim), params, f"{b.gflops:.3g}", weights, b.licence)
        table.add_row(*(escape(cell) for cell in cells))
    out.print(table)
    for name, chosen in PRESETS.items():
        out.print(escape(f"Preset {name}: {', '.join(chosen.values())}"))
    out.print(
        escape(
            f"{PREFIX}MODEL is any image or video classification model of torchvision. Weights random:SEED are "
            "possible by that name only. GFLOPs: of one view, a multiplication and an addition are two operations."
        )
    )


def show_backbone(backbone: Backbone) -> None:
    """Everything about one backbone."""
    taps = [POOL, LAST_STAGE, f"{LAST_STAGE}@GRID"] if backbone.staged else [POOL]
    lines = {
        "name": backbone.name,
        "modality": backbone.modality,
        "input": str(backbone.input),
        "embedding": f"{backbone.dim} values",
        "parameters": f"{backbone.params:,}",
        "GFLOPs per view": f"{backbone.gflops:.1f}",
        "taps": ", ".join(taps),
        "licence": backbone.licence,
        "source": backbone.source,
    }
    if backbone.staged:
        shapes = Tap(f"{LAST_STAGE}@7").shapes(backbone)
        lines[f"maps at {LAST_STAGE}@7"] = " and ".join("x".join(map(str, shape)) for shape in shapes)
    if backbone.builtin:
        lines["built in"] = f"{backbone.builtin}: {backbone.builtin_note}"
    for published in backbone.published:
        lines[f"weights {published.name}"] = f"{published.trained_on}; {published.url}; {published.licence}"
    width = max(map(len, lines))
    for name, text in lines.items():
        out.print(escape(f"{name:<{width}}  {text}"))


def show_known_files(rows: Sequence[KnownFile], folder: WeightsFolder) -> None:
    """Published files, and which of them are here."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("backbones", "weights", "file", "here", "sha256"):
        table.add_column(name, overflow="fold")
    for row in rows:
        here = f"{row.file.path.stat().st_size / 2**20:.0f} MiB" if row.file.path.exists() else "no"
        digest = row.file.sha256[:12] if row.file.sha256 else row.published.digest or "not stated"
        cells = (", ".join(row.backbones), row.published.name, row.published.file, here, digest)
        table.add_row(*(escape(cell) for cell in cells))
    out.print(table)
    out.print(escape(f"Folder: {folder.folder} (PIPE_WEIGHTS names another)"))
    out.print("`pipe weights fetch NAME` downloads, `pipe weights add FILE` takes one that you have.")


def show_file(file: WeightFile) -> None:
    """One file that is here."""
    out.print(escape(f"Here: {file.path} (sha256 {file.sha256})"))
