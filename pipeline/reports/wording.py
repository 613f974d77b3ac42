"""What stands in the cells, headings and footnotes of a table, as plain text for every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reports.published import PublishedRow, published_notes, published_rows
from pipeline.reports.results import METRIC, Cell, ResultTable, Row
from pipeline.reports.statistics import (
    DRAWS,
    EXACT,
    LEVEL,
    PERMUTED,
    TIE,
    Interval,
    Paired,
    Record,
    pairs_needed,
    smallest_p,
)

DASH = "–"  # noqa: RUF001  (an empty cell)
MINUS = "−"  # noqa: RUF001
NOT_BUILT = "whose methods are not in this package"
ALPHA = 0.05  # the significance level that footnotes speak of
SMALL = 0.0001  # p values below are not written out


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table: text and mark of every cell."""

    label: str
    cells: tuple[tuple[str, int], ...]  # (text, rank: 1 best, 2 second, 0 unmarked)
    published: bool = False  # others' numbers, not measured here


def percent(value: float | None) -> str:
    """A share (0..1) in percent with one decimal, without the sign %; a dash for None."""
    return DASH if value is None else f"{100 * value:.1f}"


def signed_percent(value: float) -> str:
    """A difference of shares in percentage points with one decimal and its sign; zero has none."""
    text = f"{abs(100 * value):.1f}"
    if float(text) == 0:
        return text
    return f"+{text}" if value > 0 else f"{MINUS}{text}"


def p_text(p: float | None) -> str:
    """A p value with four decimals; a dash for None."""
    if p is None:
        return DASH
    return f"< {SMALL}" if p < SMALL else f"{p:.4f}"


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


def record_text(record: Record | None) -> str:
    """Wins / ties / losses."""
    return DASH if record is None else f"{record.wins} / {record.ties} / {record.losses}"


def average_interval_text(row: Row, seeds: int) -> str:
    """``average [interval]`` in percent, with n where it is not the table's number of seeds."""
    if row.average.mean is None:
        return DASH
    text = percent(row.average.mean)
    if row.interval is not None:
        text += f" [{percent(row.interval[0])}, {percent(row.interval[1])}]"
    return text if row.average.n == seeds else f"{text} (n={row.average.n})"


def paired_interval_text(paired: Paired | None, seeds: int) -> str:
    """``difference [interval]`` in percentage points, with n where it is not the table's number of seeds."""
    if paired is None:
        return DASH
    text = signed_percent(paired.mean)
    if paired.interval is not None:
        text += f" [{signed_percent(paired.interval[0])}, {signed_percent(paired.interval[1])}]"
    return text if paired.n == seeds else f"{text} (n={paired.n})"


def compared(table: ResultTable) -> bool:
    """Whether any row is compared with the baseline."""
    return any(row.paired or row.record for row in table.rows)


def headings(table: ResultTable, *, record: bool = False) -> list[str]:
    """Column headings after the method: targets, average, and the comparison where there is one."""
    comparison = ["difference", *(["wins / ties / losses"] if record else [])] if compared(table) else []
    return [*table.columns, *comparison]


def lines(table: ResultTable, *, record: bool = False) -> list[Line]:
    """Lines of the table: each method, and below it the numbers that others published for it."""
    extra = (2 if record else 1) if compared(table) else 0
    ranks = [table.ranks(column) for column in range(len(table.columns))]
    last = {row.method: i for i, row in enumerate(table.rows)}
    waiting: dict[str, list[PublishedRow]] = {}
    for published in published_rows(table.published, table.columns):
        waiting.setdefault(published.method, []).append(published)
    found = []
    for i, row in enumerate(table.rows):
        found.append(_line(row, [of_column[i] for of_column in ranks], len(table.seeds), extra))
        if i == last[row.method]:
            found += [_published_line(p, extra) for p in waiting.pop(row.method, ())]
    return found + [_published_line(p, extra) for left in waiting.values() for p in left]


def _line(row: Row, ranks: Sequence[int], seeds: int, extra: int) -> Line:
    cells = [(cell_text(cell, seeds), rank) for cell, rank in zip(row.cells, ranks, strict=True)]
    comparison = [(paired_text(row.paired, seeds), 0), (record_text(row.record), 0)][:extra]
    return Line(row.label, (*cells, *comparison))


def _published_line(row: PublishedRow, extra: int) -> Line:
    cells = [(DASH if cell is None else cell.percent_text, 0) for cell in row.cells]
    return Line(row.label, (*cells, *[(DASH, 0)] * extra), published=True)


def footnotes(table: ResultTable) -> list[str]:
    """The sentences that belong beside the numbers, then the table's own notes."""
    n = len(table.seeds)
    seeds = (
        "One seed, so no standard error can be given."
        if n == 1
        else f"± is the standard error over n = {n} seeds (sample deviation), or over the n in brackets: the deviation "
        "with divisor n - 1, divided by the square root of n; it describes seeds, not other target domains, and is no "
        "significance test."
    )
    sentences = [
        f"{_quantity(table)} on {table.setting.target_text}.",
        f"Selection rule: {table.setting.selection_text}.",
        f"Protocol: {table.setting.protocol_text}.",
        f"Chance level: {percent(table.chance)} % (1 of {len(table.setting.classes)} classes).",
        seeds,
    ]
    if compared(table):
        sentences.append(
            f"Difference: to {table.baseline_label}, paired by seed, average over the targets, percentage points."
        )
    if table.diverged:
        sentences.append(f"Diverged, in no mean: {', '.join(table.diverged)}.")
    sentences += [*published_notes(table.published, table.columns), *not_built_notes(table)]
    return [*sentences, *table.warnings, *table.notes]


def not_built_notes(table: ResultTable) -> list[str]:
    """The sentence on rows of the table that this one stands for and that no method here can fill."""
    if not table.not_built:
        return []
    return [f"Rows of {table.source or 'the table it stands for'} {NOT_BUILT}: {'; '.join(table.not_built)}."]


def _quantity(table: ResultTable) -> str:
    return "Accuracy in % of the fused prediction" if table.metric == METRIC else f"{table.metric} in %"


def has_statistics(table: ResultTable) -> bool:
    """Whether there is anything for the table of intervals and tests."""
    return compared(table) or any(row.interval for row in table.rows)


def statistics_headings(table: ResultTable) -> list[str]:
    """Column headings after the method of the table of intervals and tests."""
    level = f"{100 * LEVEL:g} % CI"
    comparison = [f"difference [{level}]", "p", "p (Holm)", "wins / ties / losses"] if compared(table) else []
    return [f"average [{level}]", *comparison]


def statistics_lines(table: ResultTable) -> list[Line]:
    """Lines of the table of intervals and tests."""
    n, comparison = len(table.seeds), compared(table)
    found = []
    for row in table.rows:
        texts = [average_interval_text(row, n)]
        if comparison:
            p = row.paired.p if row.paired else None
            texts += [paired_interval_text(row.paired, n), p_text(p), p_text(row.p_holm), record_text(row.record)]
        found.append(Line(row.label, tuple((text, 0) for text in texts)))
    return found


def statistics_notes(table: ResultTable) -> list[str]:
    """The sentences that belong beside intervals and tests."""
    sentences = [f"{_quantity(table)}, average over the targets; selection rule: {table.setting.selection}."]
    sentences.append(_interval_note(table))
    if compared(table):
        sentences.append(f"Difference: to {table.baseline_label}, paired by seed, percentage points.")
        sentences += _test_notes(table)
        sentences.append(
            "Wins / ties / losses: pairs of target and seed above, level with and below the baseline; differences "
            f"below {100 * TIE:g} points, half the printed digit, are ties."
        )
    return [*sentences, *table.warnings]


def _interval_note(table: ResultTable) -> str:
    if not any(row.interval for row in table.rows):
        return "No confidence intervals: the bootstrap needs 3 seeds or more."
    return (
        f"Square brackets: {100 * LEVEL:g} % confidence interval of the mean over n = {len(table.seeds)} seeds, or "
        "over the n in round brackets, by the bias-corrected and accelerated bootstrap (Efron 1987; "
        f"{DRAWS:,} resamples of whole seeds, drawn from a fixed state); none below 3 seeds. It is too short where "
        "seeds are few: of normal values it covers the mean in about 73 % of cases with 3 seeds, 83 % with 5, 90 % "
        "with 10 and 93 % with 20."
    )


def _test_notes(table: ResultTable) -> list[str]:
    """Which test, which correction, and what it can show at all with so many seeds."""
    tested = [row.paired.n for row in table.rows if row.paired and row.paired.p is not None]
    if not tested:
        return ["No p values: a paired test needs 2 seeds or more."]
    n, m = max(tested), table.comparisons
    counted = "the one comparison" if m == 1 else f"the {m} comparisons"
    smallest = smallest_p(n, table.test)
    limit = (
        f"The smallest p that {n} seeds can reach is {p_text(smallest)}, after the correction "
        f"{p_text(min(1.0, m * smallest))}"
    )
    if m * smallest > ALPHA:
        limit += (
            f": no difference here can be significant at {ALPHA:g}, however large it is; that takes "
            f"{pairs_needed(m, ALPHA)} seeds"
        )
    return [
        f"p: {_test_text(table, max(tested))}. It speaks of seeds, not of other target domains. "
        f"p (Holm): adjusted for {counted} of this table (Holm 1979).",
        f"{limit}.",
    ]


def _test_text(table: ResultTable, n: int) -> str:
    if table.test == "wilcoxon":
        return "two-sided Wilcoxon signed-rank test of the differences over seeds (Wilcoxon 1945)"
    patterns = (
        "exact: all 2^n patterns of signs"
        if n <= EXACT
        else f"above {EXACT} seeds {PERMUTED:,} random patterns, p = (1 + hits) / (1 + patterns)"
    )
    return (
        f"two-sided sign-flip permutation test of the mean difference over seeds (Fisher 1935, Pitman 1937; {patterns})"
    )


def span(interval: Interval | None) -> tuple[float | None, float | None]:
    """The two ends of an interval, or None twice."""
    return (None, None) if interval is None else interval
