"""What every format of a report shows, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reports.inputs import ReportInputs
from pipeline.reports.published import without_table
from pipeline.reports.ranking import Ranking, rank_settings
from pipeline.reports.results import ResultTable, result_table
from pipeline.reports.settings import Setting, group_by_setting, setting_titles
from pipeline.types import RunResult


@dataclass(frozen=True, slots=True)
class SettingFindings:
    """The runs of one setting and their table."""

    title: str  # no other setting of the report has it
    table: ResultTable
    runs: Sequence[RunResult]

    @property
    def setting(self) -> Setting:
        """What the runs share."""
        return self.table.setting


@dataclass(frozen=True, slots=True)
class Findings:
    """Tables and rankings of a report."""

    settings: tuple[SettingFindings, ...]
    rankings: tuple[Ranking, ...]
    unranked: tuple[str, ...]  # sentences on rankings that there are not
    unplaced: tuple[str, ...]  # sentences on published numbers without a table

    @property
    def tables(self) -> list[tuple[str, ResultTable]]:
        """Title and table of every setting."""
        return [(found.title, found.table) for found in self.settings]


def find(inputs: ReportInputs) -> Findings:
    """Compute the tables of all settings and the rankings over them.

    Raises:
        UsageError: there are no results, or a published number is given twice.
    """
    groups = group_by_setting(inputs.results)
    settings = [setting for setting, _ in groups]
    found = []
    for title, (setting, runs) in zip(setting_titles(settings), groups, strict=True):
        published = [cell for cell in inputs.published if cell.belongs(setting)]
        table = result_table(
            runs, inputs.baseline, published=published, not_built=inputs.not_built, source=inputs.source
        )
        found.append(SettingFindings(title, table, runs))
    rankings, unranked = rank_settings(groups)
    return Findings(tuple(found), tuple(rankings), tuple(unranked), tuple(without_table(inputs.published, settings)))
