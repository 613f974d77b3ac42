"""A result table as Markdown, CSV, LaTeX or a terminal table; single runs as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.report.results import Cell, ResultTable, Row, result_table
from pipeline.report.settings import Setting, group_by_setting
from pipeline.report.statistics import Paired
from pipeline.types import RunResult

if TYPE_CHECKING:
    import rich.table

__all__ = [
    "Cell",
    "ResultTable",
    "Row",
    "Setting",
    "group_by_setting",
    "result_table",
    "runs_to_csv",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_rich",
]

DASH = "–"  # noqa: RUF001  (an empty cell)
MINUS = "−"  # noqa: RUF001

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "−": r"$-$",  # noqa: RUF001
    "±": r"$\pm$",
    "–": "--",  # noqa: RUF001
    "…": r"\ldots{}",
}


def percent(value: float | None) -> str:
    """A share (0..1) in percent with one decimal, without the sign %; a dash for None."""
    return DASH if value is None else f"{100 * value:.1f}"


def signed_percent(value: float) -> str:
    """A difference of shares in percentage points with one decimal and its sign; zero has none."""
    text = f"{abs(100 * value):.1f}"
    if float(text) == 0:
        return text
    return f"+{text}" if value > 0 else f"{MINUS}{text}"


def cell_text(cell: Cell, seeds: int) -> str:
    """``mean ± SE`` in percent, with n where it is not the table's number of seeds."""
    if cell.mean is None:
        return DASH
    text = percent(cell.mean) if cell.se is None else f"{percent(cell.mean)} ± {percent(cell.se)}"
    return text if cell.n == seeds else f"{text} (n={cell.n})"


def paired_text(paired: Paired | None, seeds: int) -> str:
    """``difference ± SE`` in percentage points, with n where it is not the table's number of seeds."""
    if paired is None:
        return DASH
    text = signed_percent(paired.mean) if paired.se is None else f"{signed_percent(paired.mean)} ± {percent(paired.se)}"
    return text if paired.n == seeds else f"{text} (n={paired.n})"


def record_text(paired: Paired | None) -> str:
    """Wins / ties / losses, in seeds."""
    return DASH if paired is None else f"{paired.wins} / {paired.ties} / {paired.losses}"


def footnotes(table: ResultTable) -> list[str]:
    """The sentences that belong beside the numbers, then the table's own notes."""
    n = len(table.seeds)
    seeds = (
        "One seed, so no standard error can be given."
        if n == 1
        else f"± is the standard error over n = {n} seeds (sample deviation), or over the n in brackets; it describes "
        "seeds, not other target domains, and is no significance test."
    )
    sentences = [
        f"Accuracy in % of the fused prediction on {table.setting.target_text}."
        if table.metric == "target/fused"
        else f"{table.metric} in % on {table.setting.target_text}.",
        f"Selection rule: {table.setting.selection_text}.",
        f"Protocol: {table.setting.protocol_text}.",
        f"Chance level: {percent(table.chance)} % (1 of {len(table.setting.classes)} classes).",
        seeds,
    ]
    if any(row.paired for row in table.rows):
        sentences.append(
            f"Difference: to {table.baseline_label}, paired by seed, average over the targets, percentage points; "
            "wins / ties / losses count seeds."
        )
    if table.diverged:
        sentences.append(f"Diverged, in no mean: {', '.join(table.diverged)}.")
    return [*sentences, *table.notes]


def headings(table: ResultTable) -> list[str]:
    """Column headings after the method: targets, average, and the comparison where there is one."""
    comparison = ["difference", "wins / ties / losses"] if any(row.paired for row in table.rows) else []
    return [*table.columns, *comparison]


def _body(table: ResultTable, mark: Callable[[str, int], str]) -> list[list[str]]:
    """Rows of text: label, cells marked by rank, and the comparison where there is one."""
    n = len(table.seeds)
    ranks = [table.ranks(column) for column in range(len(table.columns))]
    compared = any(row.paired for row in table.rows)
    body = []
    for i, row in enumerate(table.rows):
        cells = [mark(cell_text(cell, n), ranks[column][i]) for column, cell in enumerate(row.cells)]
        comparison = [mark(paired_text(row.paired, n), 0), mark(record_text(row.paired), 0)] if compared else []
        body.append([row.label, *cells, *comparison])
    return body


def markdown_escape(text: str) -> str:
    """One line of text that neither breaks a Markdown table nor is read as HTML."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(escaped.split())


def to_markdown(table: ResultTable) -> str:
    """A GitHub table with its title above and its footnotes below; best bold, second in italics."""
    head = ["method", *headings(table)]
    body = _body(table, lambda text, rank: {1: f"**{text}**", 2: f"*{text}*"}.get(rank, text))
    lines = [
        f"**{markdown_escape(table.setting.title)}**",
        "",
        "| " + " | ".join(map(markdown_escape, head)) + " |",
        "| " + " | ".join(["---"] + ["---:"] * (len(head) - 1)) + " |",
        *("| " + " | ".join(map(markdown_escape, row)) + " |" for row in body),
        "",
        *(f"- {markdown_escape(sentence)}" for sentence in footnotes(table)),
    ]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """Text with every character that LaTeX would interpret escaped."""
    return "".join(LATEX.get(character, character) for character in text)


def to_latex(table: ResultTable) -> str:
    """A booktabs table with caption; best bold, second underlined."""

    def mark(text: str, rank: int) -> str:
        return {1: rf"\textbf{{{latex_escape(text)}}}", 2: rf"\underline{{{latex_escape(text)}}}"}.get(
            rank, latex_escape(text)
        )

    head = [latex_escape(text) for text in headings(table)]
    body = [[latex_escape(row[0]), *row[1:]] for row in _body(table, mark)]
    caption = latex_escape(f"{table.setting.title}. {' '.join(footnotes(table))}")
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \begin{{tabular}}{{l{'r' * len(head)}}}",
        r"    \toprule",
        "    " + " & ".join(["method", *head]) + r" \\",
        r"    \midrule",
        *("    " + " & ".join(row) + r" \\" for row in body),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: ResultTable) -> str:
    """One line per method and column; accuracies and differences as shares (0..1), empty where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    comparisons = ["difference", "difference_se", "difference_n", "wins", "ties", "losses"]
    writer.writerow(["method", "label", "column", "mean", "se", "n", *comparisons, "chance"])
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            pair = row.paired if cell is row.average else None
            comparison: list[object] = [""] * 6
            if pair:
                comparison = [_number(pair.mean), _number(pair.se), pair.n, pair.wins, pair.ties, pair.losses]
            start = [row.method, row.label, column, _number(cell.mean), _number(cell.se), cell.n]
            writer.writerow([*start, *comparison, _number(table.chance)])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def to_rich(table: ResultTable) -> rich.table.Table:
    """The table for a terminal; best bold, second underlined."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    n = len(table.seeds)
    seeds = f"± SE over {n} seeds" if n > 1 else "1 seed, so no standard error"
    caption = f"{table.setting.target_part} target clips; selection {table.setting.selection}; {seeds}"
    if any(row.paired for row in table.rows):
        caption += f"; vs {table.baseline}: paired, points; w/t/l: seeds won, tied, lost"
    view = Table(
        title=Text(f"{table.setting.title}: accuracy, %"),
        caption=Text(f"{caption}; chance {percent(table.chance)} %"),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    view.add_column("method", overflow="fold")
    short = {"difference": f"vs {table.baseline}", "wins / ties / losses": "w/t/l"}  # 80 columns hold four domains
    for heading in headings(table):
        view.add_column(Text(short.get(heading, heading)), justify="right", no_wrap=True)
    styles = {1: "bold", 2: "underline"}
    ranks = [table.ranks(column) for column in range(len(table.columns))]
    for i, row in enumerate(_body(table, lambda text, rank: text)):
        marks = [ranks[column][i] for column in range(len(ranks))]
        row = [row[0], *(text.replace(" ", "") for text in row[1:])]
        padded = [0, *marks, *[0] * (len(row) - 1 - len(marks))]
        view.add_row(*(Text(text, style=styles.get(rank, "")) for text, rank in zip(row, padded, strict=True)))
    return view


def runs_to_csv(results: Sequence[RunResult]) -> str:
    """One line per run: identity, what was run, then every metric; sorted by method, target and seeds."""
    metrics = sorted({name for result in results for name in result.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    about = ["run_id", "status", "dataset", "method", "sources", "target", "split_seed", "init_seed", "budget"]
    about += ["modalities", "steps", "selection", "protocol", "target_part", "projection", "precision", "patience"]
    about += ["seconds", "hparams"]
    writer.writerow([*about, *metrics])
    rows = []
    for result in results:
        spec = result.spec
        row = [spec.run_id, result.status, spec.dataset, spec.method, " ".join(spec.sources), spec.target]
        row += [str(spec.split_seed), str(spec.init_seed), spec.budget, " ".join(spec.modalities), str(spec.steps)]
        row += [result.selection, spec.protocol, spec.target_part, spec.projection, spec.precision]
        row += [str(spec.patience), f"{result.seconds:.3f}"]
        row.append(json.dumps(dict(sorted(spec.hparams.items()))))
        for name in metrics:
            value = result.metrics.get(name)
            row.append("" if value is None else f"{value:.6g}")
        rows.append(((spec.dataset, spec.method, spec.target, spec.split_seed, spec.init_seed, spec.run_id), row))
    writer.writerows(row for _, row in sorted(rows))
    return text.getvalue()
