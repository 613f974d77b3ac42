"""Results to tables, figures and one self-contained page."""

from pipeline.reports.inputs import ExtractionSummary, ModalityCount, Probe, Quarantined, ReportInputs
from pipeline.reports.page import render_markdown, render_page, write_report
from pipeline.reports.published import PublishedCell
from pipeline.reports.ranking import Ranking, rankings
from pipeline.reports.results import Cell, ResultTable, Row, result_table
from pipeline.reports.settings import METHOD_NAMES, Setting, group_by_setting
from pipeline.reports.statistics import Paired, mean_and_standard_error, paired_difference
from pipeline.reports.tables import ranking_to_markdown, runs_to_csv, to_csv, to_latex, to_markdown, to_rich

__all__ = [
    "METHOD_NAMES",
    "Cell",
    "ExtractionSummary",
    "ModalityCount",
    "Paired",
    "Probe",
    "PublishedCell",
    "Quarantined",
    "Ranking",
    "ReportInputs",
    "ResultTable",
    "Row",
    "Setting",
    "group_by_setting",
    "mean_and_standard_error",
    "paired_difference",
    "ranking_to_markdown",
    "rankings",
    "render_markdown",
    "render_page",
    "result_table",
    "runs_to_csv",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_rich",
    "write_report",
]
