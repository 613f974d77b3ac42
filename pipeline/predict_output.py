"""Where predictions are written, line by line, and what is counted of them; nothing else is kept."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from pipeline.errors import UsageError
from pipeline.predictions import CsvLines, PredictionLine, json_line

Form = Literal["table", "json", "csv"]
FORMS: dict[str, Form] = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv"}
PART = ".part"  # appended to the name of a file that is not complete
MOST_LISTED = 20  # files without a prediction that are named at the end


def choose_form(json: bool, csv: bool, output: Path | None) -> Form:
    """The form of the lines: as asked, else by the output's name, else a table.

    Raises:
        UsageError: both are asked for, or the output's name says nothing.
    """
    if json and csv:
        raise UsageError("--json and --csv exclude each other; give one")
    if json or csv:
        return "json" if json else "csv"
    if output is None:
        return "table"
    form = FORMS.get(output.suffix.lower())
    if form is None:
        raise UsageError(f"--output {output}: its name does not say the form; end it in .jsonl or .csv, or give --json")
    return form


class LineWriter:
    """Writes predictions, flushed one by one, to a file or to standard output.

    A file grows under its name and ``.part`` and gets its own name when all is done; where the work is cut short, what
    is done stays in ``.part``.

    Args:
        render: text of a line, without its end; a table's may have several lines.
        header: before the first line; ``None``: none.
        output: the file; ``None``: standard output.
    """

    def __init__(self, render: Callable[[PredictionLine], str], header: str | None, output: Path | None) -> None:
        self.render, self.header, self.output = render, header, output
        self.part = None if output is None else output.with_name(output.name + PART)
        self.written = 0
        self._stdout = sys.stdout  # a progress bar puts another in its place
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self.output is not None and self.output.is_dir():
            raise UsageError(f"--output {self.output} is a folder; name a file")
        if self.part is not None:
            try:
                self._file = self.part.open("wb")
            except OSError as error:
                raise UsageError(f"--output {self.output} cannot be written ({error.strerror}); name another") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._begin()
        if self._file is None:
            return
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        if kind is None and self.part is not None and self.output is not None:
            self.part.replace(self.output)

    def __call__(self, line: PredictionLine) -> None:
        """Write a line; whoever reads along has it at once.

        Raises:
            BrokenPipeError: nobody reads standard output any more.
        """
        self._begin()
        self._write(self.render(line))
        self.written += 1

    def _begin(self) -> None:
        """Write the header before the first line, so that a wrong name has no other answer than a message."""
        if self.written == 0 and self.header is not None:
            header, self.header = self.header, None
            self._write(header)

    def _write(self, text: str) -> None:
        if self._file is not None:
            self._file.write(f"{text}\n".encode())
            self._file.flush()
            return
        self._stdout.flush()
        buffer = getattr(self._stdout, "buffer", None)
        if buffer is None:  # standard output was replaced by something that takes text alone
            self._stdout.write(f"{text}\n")
        else:
            buffer.write(f"{text}\n".encode())
        self._stdout.flush()


def lines_to(
    form: Form,
    classes: Sequence[str],
    modalities: Sequence[str],
    output: Path | None,
    table: tuple[str, Callable[[PredictionLine], str]],
) -> LineWriter:
    """The writer of a form.

    Args:
        form: of the lines.
        classes: of the model.
        modalities: of the model.
        output: a file; ``None``: standard output.
        table: head and row of the form ``table``.
    """
    if form == "json":
        return LineWriter(json_line, None, output)
    if form == "csv":
        lines = CsvLines(classes, modalities)
        return LineWriter(lines.line, lines.header, output)
    head, row = table
    return LineWriter(row, head, output)


def drop_stdout() -> None:
    """After a broken pipe: what is still buffered goes nowhere, so that the process ends without a complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass
class Tally:
    """What is told at the end: counts, and the first files without a prediction."""

    classes: Sequence[str]
    files: int = 0
    windows: int = 0
    failed: int = 0
    listed: list[PredictionLine] = field(default_factory=list)
    missing: Counter[tuple[str, str]] = field(default_factory=Counter)  # (modality, code) -> files or windows
    fillers: dict[str, str] = field(default_factory=dict)  # name -> meaning, of those that were used
    labeled: int = 0  # files whose class is known and one of the model's
    right: int = 0
    foreign: int = 0  # files whose class is none of the model's

    def add(self, line: PredictionLine) -> None:
        """Count a line."""
        if line.windows is None:  # a summary's tracks were counted with its windows
            self.missing.update((name, m.code or m.status) for name, m in line.missing.items() if line.status == "ok")
            if line.filler is not None and line.filler_meaning is not None:
                self.fillers[line.filler] = line.filler_meaning
        if line.level == "window":
            self.windows += 1
            return
        self.files += 1
        if line.status != "ok":
            self.failed += 1
            if len(self.listed) < MOST_LISTED:
                self.listed.append(line)
        elif line.true_label and line.true_label not in self.classes:
            self.foreign += 1
        elif line.true_label:
            self.labeled += 1
            self.right += line.label == line.true_label
