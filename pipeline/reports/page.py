"""The report as one self-contained HTML page, and the files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cache.layout import write_atomically
from pipeline.errors import UsageError
from pipeline.reports.inputs import ReportInputs
from pipeline.reports.ranking import rankings
from pipeline.reports.results import result_table
from pipeline.reports.sections import TRACK, context, diverged, summary
from pipeline.reports.settings import group_by_setting
from pipeline.reports.tables import markdown_escape, ranking_to_markdown, runs_to_csv, to_latex, to_markdown
from pipeline.types import RunResult

TEMPLATE = "page.html.j2"


def render_page(inputs: ReportInputs) -> str:
    """Render the page: style, drawings and pictures are inside it, and it asks for nothing from outside.

    Raises:
        UsageError: there are no results.
        ValueError: a sample picture is not a PNG file.
    """
    import jinja2
    import markupsafe

    _require(inputs.results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["drawing"] = markupsafe.Markup  # SVG of our own figures, which escape what they print
    return environment.get_template(TEMPLATE).render(context(inputs))


def render_markdown(inputs: ReportInputs) -> str:
    """Render title, notes, all tables, the average ranks and the diverged runs as Markdown.

    Raises:
        UsageError: there are no results.
    """
    _require(inputs.results)
    lines = [f"# {markdown_escape(inputs.title)}", "", markdown_escape(summary(inputs.results)), ""]
    lines += [f"- {markdown_escape(note)}" for note in (*inputs.notes, TRACK)]
    for _, runs in group_by_setting(inputs.results):
        lines += ["", to_markdown(result_table(runs)).rstrip("\n")]
    for ranking in rankings(inputs.results):
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
        ValueError: a sample picture is not a PNG file.
    """
    _require(inputs.results)
    tables = [to_latex(result_table(runs)) for _, runs in group_by_setting(inputs.results)]
    texts = {
        "report.html": render_page(inputs),
        "results.md": render_markdown(inputs),
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
