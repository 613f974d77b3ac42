"""What `pipe predict` prints: rows as they come, and what was not predicted at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.markup import escape
from rich.style import Style
from rich.text import Text

from pipeline.answering import NOTHING
from pipeline.bundle import load_bundle
from pipeline.console import err, out, progress
from pipeline.extraction import resolve_device
from pipeline.inputs import STANDARD_INPUT, InputOptions, media_items
from pipeline.predict import PredictOptions, Predictor
from pipeline.predict_output import Form, Tally, drop_stdout, lines_to
from pipeline.predictions import ModalityLine, PredictionLine

STYLES = {"consensus": "green", "disagreement": "yellow", "low": "red", "no track": "red"}
WIDEST_LABEL = 20
SECONDS_WIDTH, SHARE_WIDTH, TRUST_WIDTH, LEAST_NAME = 13, 4, 12, 16


class PredictTable:
    """Rows of one width each, so that each can be printed when it is known.

    Args:
        classes: of the model.
        modalities: of the model.
        width: columns of the terminal.
    """

    def __init__(self, classes: Sequence[str], modalities: Sequence[str], width: int) -> None:
        self.modalities = modalities
        self.label_width = min(WIDEST_LABEL, max(map(cell_len, (*classes, "label"))))
        self.own_width = self.label_width + SHARE_WIDTH + 1
        rest = SECONDS_WIDTH + self.label_width + SHARE_WIDTH + TRUST_WIDTH + 4
        self.name_width = max(LEAST_NAME, width - rest - len(modalities) * (self.own_width + 1) - 1)

    @property
    def head(self) -> str:
        """Names of the columns and a rule."""
        names = ["file", "seconds", "label", "%", "trust", *self.modalities]
        line = self._joined(names).rstrip()
        return f"{line}\n{'─' * cell_len(line)}"

    def row(self, line: PredictionLine) -> str:
        """One prediction; on a terminal the level of trust has a colour."""
        cells = [self._name(line), _seconds(line)]
        if line.status != "ok" and line.code != NOTHING:
            start = len(self._joined(cells))
            return _painted(self._joined(cells) + f"failed: {line.code}", start, "red")
        cells += [line.label or "", _percent(line.confidence)]
        start = len(self._joined(cells))
        trust = "no track" if line.status != "ok" else line.trust or _shares(line)
        cells += [trust, *(_own(line.modalities[name]) for name in self.modalities)]
        return _painted(self._joined(cells).rstrip(), start, STYLES.get(trust, ""), len(trust))

    def _name(self, line: PredictionLine) -> str:
        name = line.clip_id or line.file
        if line.level == "window":
            return f"  window {line.window}"
        if cell_len(name) <= self.name_width:
            return name
        kept = name
        while cell_len(kept) > self.name_width - 1:  # the end of a path tells more than its beginning
            kept = kept[max(1, len(kept) - self.name_width) :]
        return f"…{kept}"

    def _joined(self, cells: Sequence[str]) -> str:
        widths = [self.name_width, SECONDS_WIDTH, self.label_width, SHARE_WIDTH, TRUST_WIDTH]
        widths += [self.own_width] * len(self.modalities)
        return "".join(set_cell_size(cell, width) + " " for cell, width in zip(cells, widths, strict=False))


def _painted(text: str, start: int, style: str, length: int | None = None) -> str:
    """A line with a part of it in colour, where standard output is a terminal that has some."""
    if not out.is_terminal or not style:
        return text
    painted = Text(text)
    painted.stylize(Style.parse(style), start, None if length is None else start + length)
    with out.capture() as captured:
        out.print(painted, end="")
    return captured.get()


def _percent(value: float | None) -> str:
    """A share (0..1) in whole percent."""
    return "" if value is None else f"{100 * value:.0f}"


def _seconds(line: PredictionLine) -> str:
    """Which part of the file, or how many windows."""
    if line.level == "file" and line.windows is not None:
        return f"{line.windows} windows"
    if line.end_seconds is None or line.start_seconds is None:
        return ""
    return f"{line.start_seconds:.1f}-{line.end_seconds:.1f}"


def _shares(line: PredictionLine) -> str:
    """Trust of a file of many windows: the level that most of them have, and their share."""
    level = max(line.trust_shares, key=lambda name: line.trust_shares[name])
    return f"{level[: TRUST_WIDTH - 5]} {_percent(line.trust_shares[level])}%"


def _own(modality: ModalityLine) -> str:
    """What a modality alone says, or why it says nothing."""
    if modality.windows_used is not None:
        return "" if modality.used else modality.code
    if modality.used and modality.label is not None:
        return f"{modality.label} {_percent(modality.confidence)}"
    return modality.code or modality.status


def show_tally(tally: Tally) -> None:
    """Counts, what replaced missing modalities, accuracy, and on standard error what has no prediction and why."""
    windows = f", {tally.windows} windows" if tally.windows else ""
    err.print(f"{tally.files} files{windows}: {tally.files - tally.failed} predicted, {tally.failed} not")
    by_modality: dict[str, list[str]] = {}
    for (name, code), count in tally.missing.items():
        by_modality.setdefault(name, []).append(f"{code} {count}")
    for name, reasons in by_modality.items():
        err.print(escape(f"{name} missing in files or windows: {', '.join(reasons)}"))
    for name, meaning in tally.fillers.items():
        err.print(escape(f"Missing modalities were replaced by {name}: {meaning}"))
    if tally.labeled:
        share = 100 * tally.right / tally.labeled
        err.print(f"Accuracy {share:.1f} % of {tally.labeled} files whose label is known")
    if tally.foreign:
        err.print(f"{tally.foreign} files have a label that is no class of the model; they count for no accuracy")
    for line in tally.listed:
        err.print(escape(f"no prediction: {line.clip_id or line.file}: {line.code}: {line.detail}"))
    if tally.failed > len(tally.listed):
        err.print(f"... and {tally.failed - len(tally.listed)} more")


def run_predict(
    model: Path,
    files: Sequence[str],
    options: PredictOptions,
    inputs: InputOptions,
    form: Form,
    output: Path | None,
    weights_folder: Path | None,
) -> int:
    """Predict files and write every line when it is known.

    Args:
        model: the bundle's folder.
        files: see ``media_items``.
        options: how predictions are made.
        inputs: how names are read.
        form: of the lines.
        output: file for them; ``None``: standard output.
        weights_folder: of the backbones; ``None``: the default one.

    Returns:
        Exit code: 0, or 1 where a file has no prediction, 130 where the user stopped it.
    """
    items = media_items(files, inputs, stdin=sys.stdin.fileno() if STANDARD_INPUT in files else None)
    bundle = load_bundle(model, resolve_device(options.device), weights_folder)
    head, tally = bundle.head, Tally(bundle.head.classes)
    table = PredictTable(head.classes, head.modalities, out.width)
    writer = lines_to(form, head.classes, head.modalities, output, (table.head, table.row))
    shows_bar = err.is_terminal and (output is not None or not out.is_terminal)
    try:
        with Predictor(bundle, options) as predictor, writer:
            lines = predictor.predict(items, live=STANDARD_INPUT in files)
            with closing(lines), progress("predicting") if shows_bar else nullcontext() as bar:
                for line in lines:
                    writer(line)
                    tally.add(line)
                    if bar is not None and line.level == "file":
                        bar.advance()
    except BrokenPipeError:
        drop_stdout()
        return 0
    except KeyboardInterrupt:
        where = f" {writer.written} lines are in {writer.part}" if writer.part is not None else ""
        err.print(escape(f"\nStopped after {tally.files} files.{where}"))
        return 130
    show_tally(tally)
    if output is not None:
        err.print(escape(f"Written: {output}"))
    return 1 if tally.failed else 0
