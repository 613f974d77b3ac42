"""Published numbers beside our own: shown and sourced, and in no rank, test or mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.reports.settings import METHOD_NAMES, Setting


@dataclass(frozen=True, slots=True)
class PublishedCell:
    """One number that others published for a method."""

    method: str  # as in a run, for example ``ssmdg``
    target_or_average: str  # heading of the column it stands in: a target, or ``average``
    percent: float  # 0..100
    source: str  # where it is printed: authors, year, table
    difference: str  # what its protocol does otherwise than ours
    budget: str = ""  # of the tables it stands in, as a run has it; empty: all
    modalities: tuple[str, ...] = ()  # likewise

    def __post_init__(self) -> None:
        name = f"published number of {self.method!r} for {self.target_or_average!r}"
        if not 0 <= self.percent <= 100:
            raise UsageError(f"{name} is {self.percent}; it must be in percent, 0 to 100")
        if not self.source.strip():
            raise UsageError(f"{name} has no source; name the authors, the year and the table it is printed in")
        if not self.difference.strip():
            raise UsageError(
                f"{name} does not say how its protocol differs from ours; without known differences, say so"
            )

    def belongs(self, setting: Setting) -> bool:
        """Whether it stands in the table of a setting."""
        return self.budget in ("", setting.budget) and self.modalities in ((), setting.modalities)

    @property
    def percent_text(self) -> str:
        """The number with the digits it was published with, at least one of them behind the point."""
        return f"{float(self.percent):.12g}" if self.percent % 1 else f"{self.percent:.1f}"


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """Numbers of one method from one source, in the columns of a table."""

    method: str
    label: str
    number: int  # of its footnote
    cells: tuple[PublishedCell | None, ...]  # one per column of the table


def refuse_twice(published: Sequence[PublishedCell]) -> None:
    """Check that a source gives a method one number per column.

    Raises:
        UsageError: it gives two.
    """
    seen: dict[tuple[str, ...], float] = {}
    for cell in published:
        key = (cell.method, cell.target_or_average, cell.source, cell.difference)
        if key in seen:
            raise UsageError(
                f"published number of {cell.method!r} for {cell.target_or_average!r} from {cell.source!r} is given "
                f"twice, as {seen[key]} and {cell.percent}; keep one of them"
            )
        seen[key] = cell.percent


def published_rows(published: Sequence[PublishedCell], columns: Sequence[str]) -> list[PublishedRow]:
    """One row per method and source that has a number in these columns, in the order in which they are declared."""
    numbers = _numbers(published)
    rows = []
    for method, number in dict.fromkeys((cell.method, numbers[cell.source, cell.difference]) for cell in published):
        own = [c for c in published if c.method == method and numbers[c.source, c.difference] == number]
        found = {cell.target_or_average: cell for cell in own}
        cells = tuple(found.get(column) for column in columns)
        if any(cells):
            label = f"{METHOD_NAMES.get(method, method)}, published [{number}]"
            rows.append(PublishedRow(method, label, number, cells))
    return rows


def published_notes(published: Sequence[PublishedCell], columns: Sequence[str]) -> list[str]:
    """Source and difference in protocol of every published number, and the numbers that have no column here."""
    numbers = _numbers(published)
    notes = [
        f"[{number}] Published, not measured here: {_sentence(source)} Difference in protocol: {_sentence(difference)}"
        for (source, difference), number in numbers.items()
    ]
    if notes:
        notes.append("Published numbers are in no rank, mark, difference or test.")
    for cell in published:
        if cell.target_or_average not in columns:
            name = METHOD_NAMES.get(cell.method, cell.method)
            number = numbers[cell.source, cell.difference]
            notes.append(
                f"{name}, published [{number}]: {cell.percent_text} for {cell.target_or_average}, no column here."
            )
    return notes


def without_table(published: Sequence[PublishedCell], settings: Sequence[Setting]) -> list[str]:
    """A sentence for every number that stands in the table of none of these settings."""
    said = []
    for cell in published:
        if not any(cell.belongs(setting) for setting in settings):
            wanted = [f"{cell.budget} labels"] if cell.budget else []
            wanted += [" + ".join(cell.modalities)] if cell.modalities else []
            name = METHOD_NAMES.get(cell.method, cell.method)
            said.append(
                f"{name}, published: {cell.percent_text} for {cell.target_or_average}, {', '.join(wanted)} "
                f"({_sentence(cell.source).rstrip('.')}); there is no table of that here."
            )
    return said


def _numbers(published: Sequence[PublishedCell]) -> dict[tuple[str, str], int]:
    """Footnote number of every pair of source and difference, from 1, as they are declared."""
    pairs = dict.fromkeys((cell.source, cell.difference) for cell in published)
    return {pair: i for i, pair in enumerate(pairs, start=1)}


def _sentence(text: str) -> str:
    words = " ".join(text.split())
    return words if words.endswith((".", "!", "?")) else f"{words}."
