"""The report as one self-contained HTML page, and the files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cache.layout import write_atomically
from pipeline.errors import UsageError
from pipeline.reports.findings import Findings, find
from pipeline.reports.inputs import ReportInputs
from pipeline.reports.sections import TRACK, context, diverged, summary
from pipeline.reports.tables import markdown_escape, ranking_to_markdown, runs_to_csv, to_latex, to_markdown
from pipeline.types import RunResult

TEMPLATE = "page.html.j2"


def render_page(inputs: ReportInputs) -> str:
    """Render the page: style, drawings and pictures are inside it, and it asks for nothing from outside.

    Raises:
        UsageError: there are no results.
        ValueError: a sample picture is not a PNG file, or a confusion matrix does not fit its classes.
    """
    _require(inputs.results)
    return _page(inputs, find(inputs))


def _page(inputs: ReportInputs, findings: Findings) -> str:
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["drawing"] = markupsafe.Markup  # SVG of our own figures, which escape what they print
    return environment.get_template(TEMPLATE).render(context(inputs, findings))


def render_markdown(inputs: ReportInputs) -> str:
    """Render title, notes, all tables, the average ranks and the diverged runs as Markdown.

    Raises:
        UsageError: there are no results.
    """
    _require(inputs.results)
    return _markdown(inputs, find(inputs))


def _markdown(inputs: ReportInputs, findings: Findings) -> str:
    lines = [f"# {markdown_escape(inputs.title)}", "", markdown_escape(summary(findings)), ""]
    if inputs.source:
        lines += [f"Set up after {markdown_escape(inputs.source)}.", ""]
    lines += [f"- {markdown_escape(note)}" for note in (*inputs.notes, *findings.unplaced, TRACK)]
    for _, table in findings.tables:
        lines += ["", to_markdown(table).rstrip("\n")]
    for ranking in findings.rankings:
        lines += ["", ranking_to_markdown(ranking).rstrip("\n")]
    lost = diverged(inputs.results)
    if lost:
        lines += ["", "Diverged runs, in no mean:", ""]
        lines += [
            f"- {run} ({markdown_escape(f'{method}, target {target}, seed {seed}')})"
            for run, method, target, seed in lost
        ]
    return "\n".join(lines) + "\n"


def write_report(folder: Path, inputs: ReportInputs) -> dict[str, Path]:
    """Write ``report.html``, ``results.md``, ``results.csv`` (one row per run) and ``tables.tex`` into ``folder``.

    Everything is rendered before the first file is touched, and each file is replaced in one step.

    Returns:
        the path of every file by its name.

    Raises:
        UsageError: there are no results.
        ValueError: a sample picture is not a PNG file, or a confusion matrix does not fit its classes.
    """
    _require(inputs.results)
    findings = find(inputs)
    tables = [to_latex(table) for _, table in findings.tables]
    texts = {
        "report.html": _page(inputs, findings),
        "results.md": _markdown(inputs, findings),
        "results.csv": runs_to_csv(inputs.results),
        "tables.tex": "% needs \\usepackage{booktabs}\n\n" + "\n".join(tables),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return {name: folder / name for name in texts}


def _require(results: Sequence[RunResult]) -> None:
    if not results:
        raise UsageError("there are no results to report; run `pipe train-heads` first")
