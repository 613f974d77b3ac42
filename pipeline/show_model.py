"""What the model commands print."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from heads.methods import METHODS
from pipeline.bundle import Bundle
from pipeline.bundlespec import Measured
from pipeline.console import out


def show_bundle(bundle: Bundle) -> None:
    """What a bundle is: path, accuracy, calibration, filler, trust levels."""
    spec = bundle.spec
    run = spec.run
    title = METHODS[run.method].title if run.method in METHODS else run.method
    modalities = "+".join(bundle.head.modalities)
    for note in spec.notes:
        out.print(escape(f"Note: {note}"))
    out.print(
        escape(
            f"{title} on {run.dataset}, run {spec.run_id}: {modalities}, {len(spec.classes)} classes, trained on "
            f"{', '.join(run.sources)}"
        )
    )
    out.print(escape(f"Filler {spec.filler.name}: {spec.filler.reason}"))
    out.print(escape(f"Temperatures fitted on {spec.calibration.fitted_on}"))
    title = "Accuracy and expected calibration error before and after, %"
    table = Table("present", "temperature", title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("held back", "n", "ECE", "target", "n", "ECE"):
        table.add_column(column, justify="right")
    for kept in bundle.head.plan.subsets:
        name = "+".join(kept)
        cells = (*_cells(spec.held_back.subsets[name]), *_cells(spec.target.subsets[name]))
        table.add_row(escape(name), f"{spec.calibration.fused[name].value:.3f}", *cells)
    for name in bundle.head.modalities:
        cells = (*_cells(spec.held_back.alone[name]), *_cells(spec.target.alone[name]))
        table.add_row(escape(f"{name} alone"), f"{spec.calibration.alone[name].value:.3f}", *cells)
    out.print(table)
    out.print(escape(f"Held back: {spec.held_back.part}. Target: {spec.target.part}."))
    levels = ", ".join(
        f"{level} {_percent(found.share)} % (right {_percent(found.accuracy)} %)"
        for level, found in spec.target.levels.items()
    )
    out.print(f"Trust levels on the target, threshold {spec.threshold:g}: {levels}")
    out.print(escape(f"Written: {bundle.folder}"))


def _cells(found: Measured) -> tuple[str, str, str]:
    return _percent(found.accuracy), str(found.clips), f"{_percent(found.ece_before)} → {_percent(found.ece_after)}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def show_exported(path: Path, kind: str, difference: float, rows: int) -> None:
    """Where an exported head was written, and how far it is from the model."""
    out.print(
        escape(
            f"Written: {path} ({kind}); on {rows} rows of random features with random presence its probabilities "
            f"differ from the model's by at most {difference:.1e}"
        )
    )
