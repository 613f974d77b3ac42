"""Which of many are drawn: a figure of more lines than a reader can tell apart shows the best and names the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from pipeline.reports.results import ResultTable
from pipeline.reports.settings import UPPER_BOUNDS, Variant

Name = TypeVar("Name")

MOST = 12  # lines that a figure holds
KEPT = 8  # of more than that, the best are drawn
NAMED = 8  # of those left out, written out


def best(scores: Mapping[Name, float | None], always: Collection[Name] = ()) -> list[Name]:
    """All of them up to ``MOST``, else the ``KEPT`` with the highest scores and those drawn ``always``, in their order.

    A score of None is lower than any number; among equals the earlier one is better.
    """
    if len(scores) <= MOST:
        return list(scores)
    places = {name: i for i, name in enumerate(scores)}
    others = [name for name in scores if name not in always]
    order = sorted(others, key=lambda name: (scores[name] is None, -(scores[name] or 0.0), places[name]))
    kept = {*order[:KEPT], *always}
    return [name for name in scores if name in kept]


def left_out(labels: Sequence[str], drawn: int, what: str) -> str:
    """The sentence that says what a figure leaves out."""
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return f"Drawn: {drawn} of {drawn + len(labels)}, {what}. Left out: {'; '.join(labels[:NAMED])}{more}."


def drawn_rows(table: ResultTable) -> tuple[list[Variant], tuple[str, ...]]:
    """The variants of a table that its figures show, and what is to be said of the others.

    Baseline and upper bounds are always among them.
    """
    scores = {row.variant: row.average.mean for row in table.rows}
    references = [row.variant for row in table.rows if row.method == table.baseline]
    fixed = {row.variant for row in table.rows if row.method in UPPER_BOUNDS}
    if len(references) == 1:
        fixed |= {references[0]}
    kept = best(scores, fixed)
    rest = [row.label for row in table.rows if row.variant not in set(kept)]
    if not rest:
        return kept, ()
    what = f"the {KEPT} with the highest average target accuracy, the baseline and upper bounds"
    return kept, (left_out(rest, len(kept), what),)
