"""A result table as Markdown, CSV, LaTeX or a terminal table; single runs as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.reports.published import published_notes, published_rows
from pipeline.reports.ranking import Ranking
from pipeline.reports.results import Cell, ResultTable, Row, random_weights_note, result_table
from pipeline.reports.settings import Setting, group_by_setting
from pipeline.reports.wording import (
    Line,
    footnotes,
    has_statistics,
    headings,
    lines,
    not_built_notes,
    percent,
    span,
    statistics_headings,
    statistics_lines,
    statistics_notes,
)
from pipeline.types import RunResult

if TYPE_CHECKING:
    import rich.table

__all__ = [
    "Cell",
    "ResultTable",
    "Row",
    "Setting",
    "group_by_setting",
    "percent",
    "ranking_to_markdown",
    "result_table",
    "runs_to_csv",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_rich",
]

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

STATISTICS = "Intervals and paired tests"


def markdown_escape(text: str) -> str:
    """One line of text that neither breaks a Markdown table nor is read as HTML."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(escaped.split())


def _markdown(title: str, head: Sequence[str], body: Sequence[Line], notes: Sequence[str]) -> str:
    """A GitHub table with its title above and its footnotes below; best bold, second in italics."""
    marks = {1: "**", 2: "*"}
    rows = [[line.label, *(f"{marks.get(r, '')}{t}{marks.get(r, '')}" for t, r in line.cells)] for line in body]
    text = [
        f"**{markdown_escape(title)}**",
        "",
        "| " + " | ".join(map(markdown_escape, head)) + " |",
        "| " + " | ".join(["---"] + ["---:"] * (len(head) - 1)) + " |",
        *("| " + " | ".join(map(markdown_escape, row)) + " |" for row in rows),
        "",
        *(f"- {markdown_escape(sentence)}" for sentence in notes),
    ]
    return "\n".join(text) + "\n"


def to_markdown(table: ResultTable) -> str:
    """A GitHub table of the accuracies, and below it one of intervals and tests; best bold, second in italics."""
    text = _markdown(table.setting.title, ["method", *headings(table)], lines(table), footnotes(table))
    if not has_statistics(table):
        return text
    head = ["method", *statistics_headings(table)]
    return f"{text}\n{_markdown(STATISTICS, head, statistics_lines(table), statistics_notes(table))}"


def ranking_to_markdown(ranking: Ranking) -> str:
    """A GitHub table of the average ranks, with what the Friedman and Nemenyi tests say of them."""
    body = [
        Line(method, ((f"{rank:.2f}", 0), (", ".join(ranking.indistinct(place)) or "none", 0)))
        for place, (method, rank) in enumerate(zip(ranking.methods, ranking.average_ranks, strict=True))
    ]
    return _markdown("Average ranks", ["method", "average rank", "not told apart from"], body, ranking.notes)


def latex_escape(text: str) -> str:
    """Text with every character that LaTeX would interpret escaped."""
    return "".join(LATEX.get(character, character) for character in text)


def _latex(caption: str, head: Sequence[str], body: Sequence[Line]) -> str:
    """A booktabs table with caption; best bold, second underlined."""

    def mark(text: str, rank: int) -> str:
        return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(rank, text)

    rows = [[latex_escape(line.label), *(mark(latex_escape(text), rank) for text, rank in line.cells)] for line in body]
    text = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_escape(caption)}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"    \toprule",
        "    " + " & ".join(map(latex_escape, head)) + r" \\",
        r"    \midrule",
        *("    " + " & ".join(row) + r" \\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(text) + "\n"


def to_latex(table: ResultTable) -> str:
    """A booktabs table of the accuracies, and one of intervals and tests; best bold, second underlined."""
    title = table.setting.title
    text = _latex(f"{title}. {' '.join(footnotes(table))}", ["method", *headings(table)], lines(table))
    if not has_statistics(table):
        return text
    caption = f"{title}. {STATISTICS}. {' '.join(statistics_notes(table))}"
    return f"{text}\n{_latex(caption, ['method', *statistics_headings(table)], statistics_lines(table))}"


COMPARISON = ["difference", "difference_se", "difference_n", "difference_ci_low", "difference_ci_high"]
COMPARISON += ["p", "p_holm", "wins", "ties", "losses"]


def to_csv(table: ResultTable) -> str:
    """One line per method and column, then one per published number, then the rows not built; nothing is rounded.

    Accuracies, differences and intervals are shares (0..1), empty where there is no value; ``values`` are those of the
    single seeds. Intervals and comparisons are of the averages, wins, ties and losses of all pairs of target and seed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["method", "label", "column", "mean", "se", "n", "values", "ci_low", "ci_high", *COMPARISON]
    head += ["baseline", "test", "chance", "selection", "published", "published_source", "published_difference"]
    writer.writerow([*head, "warnings"])
    about: list[object] = [_number(table.chance), table.setting.selection]
    warnings = " ".join(table.warnings)
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            start = [row.method, row.label, column, _number(cell.mean), _number(cell.se), cell.n]
            start.append(" ".join(map(_number, cell.values)))
            whole = _comparison(table, row) if cell is row.average else [""] * (2 + len(COMPARISON) + 2)
            writer.writerow([*start, *whole, *about, "", "", "", warnings])
    for published in published_rows(table.published, table.columns):
        for column, found in zip(table.columns, published.cells, strict=True):
            if found is not None:
                start = [published.method, published.label, column, *[""] * (6 + len(COMPARISON) + 2)]
                number = [_number(found.percent / 100), found.source, found.difference]
                writer.writerow([*start, *about, *number, warnings])
    for name in table.not_built:
        writer.writerow(["", f"{name}, not built here", *[""] * (len(head) - 2), warnings])
    return text.getvalue()


def _comparison(table: ResultTable, row: Row) -> list[object]:
    """Interval of the average, everything about the difference, baseline and test."""
    cells: list[object] = [_number(end) for end in span(row.interval)]
    pair, record = row.paired, row.record
    ends = span(pair.interval) if pair else (None, None)
    cells += [_number(pair.mean), _number(pair.se), pair.n] if pair else ["", "", ""]
    cells += [_number(number) for number in (*ends, pair.p if pair else None, row.p_holm)]
    cells += [record.wins, record.ties, record.losses] if record else ["", "", ""]
    return [*cells, *([table.baseline, table.test] if pair or record else ["", ""])]


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def to_rich(table: ResultTable) -> rich.table.Table:
    """The table for a terminal; best bold, second underlined."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    n = len(table.seeds)
    seeds = f"± SE over {n} seeds" if n > 1 else "1 seed, so no standard error"
    caption = f"{table.setting.target_part} target clips; selection {table.setting.selection}; {seeds}"
    head = headings(table, record=True)
    if "difference" in head:
        caption += f"; vs {table.baseline}: paired, points; w/t/l: pairs of target and seed won, tied, lost"
    caption += f"; chance {percent(table.chance)} %"
    notes = [*published_notes(table.published, table.columns), *not_built_notes(table)]
    view = Table(
        title=Text(f"{table.setting.title}: accuracy, %"),
        caption=Text("\n".join([caption, *notes, *table.warnings])),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    view.add_column("method", overflow="fold")
    short = {"difference": f"vs {table.baseline}", "wins / ties / losses": "w/t/l"}  # 80 columns hold four domains
    for heading in head:
        view.add_column(Text(short.get(heading, heading)), justify="right", no_wrap=True)
    styles = {1: "bold", 2: "underline"}
    for line in lines(table, record=True):
        cells = [Text(text.replace(" ", ""), style=styles.get(rank, "")) for text, rank in line.cells]
        view.add_row(Text(line.label), *cells)
    return view


def runs_to_csv(results: Sequence[RunResult]) -> str:
    """One line per run: identity, what was run, then every metric; sorted by method, target and seeds."""
    metrics = sorted({name for result in results for name in result.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    about = ["run_id", "status", "dataset", "method", "sources", "target", "split_seed", "init_seed", "budget"]
    about += ["modalities", "steps", "selection", "protocol", "target_part", "projection", "precision", "patience"]
    about += ["seconds", "hparams", "warnings"]
    writer.writerow([*about, *metrics])
    rows = []
    for result in results:
        spec = result.spec
        row = [spec.run_id, result.status, spec.dataset, spec.method, " ".join(spec.sources), spec.target]
        row += [str(spec.split_seed), str(spec.init_seed), spec.budget, " ".join(spec.modalities), str(spec.steps)]
        row += [result.selection, spec.protocol, spec.target_part, spec.projection, spec.precision]
        row += [str(spec.patience), f"{result.seconds:.3f}"]
        row += [json.dumps(dict(sorted(spec.hparams.items()))), " ".join(random_weights_note([result]))]
        for name in metrics:
            value = result.metrics.get(name)
            row.append("" if value is None else f"{value:.6g}")
        rows.append(((spec.dataset, spec.method, spec.target, spec.split_seed, spec.init_seed, spec.run_id), row))
    writer.writerows(row for _, row in sorted(rows))
    return text.getvalue()
