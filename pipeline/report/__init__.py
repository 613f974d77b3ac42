"""Results to tables, figures and one self-contained page."""

from pipeline.report.inputs import ExtractionSummary, ModalityCount, Probe, Quarantined, ReportInputs
from pipeline.report.page import render_markdown, render_page, write_report
from pipeline.report.results import Cell, ResultTable, Row, result_table
from pipeline.report.settings import METHOD_NAMES, Setting, group_by_setting
from pipeline.report.statistics import Paired, mean_and_standard_error, paired_difference
from pipeline.report.tables import runs_to_csv, to_csv, to_latex, to_markdown, to_rich

__all__ = [
    "METHOD_NAMES",
    "Cell",
    "ExtractionSummary",
    "ModalityCount",
    "Paired",
    "Probe",
    "Quarantined",
    "ReportInputs",
    "ResultTable",
    "Row",
    "Setting",
    "group_by_setting",
    "mean_and_standard_error",
    "paired_difference",
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
