"""What `pipe doctor` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.markup import escape

from pipeline.checks import STATES, Check
from pipeline.console import err, out
from pipeline.selftest import GoldenResult

MARKS = {"ok": "ok     ", "warning": "warning", "missing": "missing", "broken": "BROKEN "}


@contextmanager
def looking() -> Iterator[Callable[[str], None]]:
    """A line on a terminal about what is being looked at; gives what to call with each name."""
    if not err.is_terminal:
        yield lambda name: None
        return
    with err.status("looking") as line:
        yield lambda name: line.update(f"looking at {name}")


def show_checks(checks: Sequence[Check]) -> None:
    """Facts by section, then the advice for each that is not sound, then a count."""
    width = max((len(check.name) for check in checks), default=0)
    section = ""
    for check in checks:
        if check.section != section:
            section = check.section
            out.print(escape(section))
        out.print(escape(f"  {MARKS[check.state]}  {check.name:<{min(width, 34)}}  {check.detail}"))
    todo = [check for check in checks if check.advice and check.state != "ok"]
    if todo:
        out.print("What to do")
        for check in sorted(todo, key=lambda check: -STATES.index(check.state)):
            out.print(escape(f"  {check.name}: {check.advice}"))
    counts = Counter(check.state for check in checks)
    out.print(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))


def show_golden(results: Sequence[GoldenResult], device: str, precision: str) -> None:
    """A line per golden file and case group."""
    out.print(escape(f"golden numbers on {device}, {precision}"))
    width = max((len(result.name) for result in results), default=0)
    for result in results:
        numbers = ""
        if result.state in ("pass", "fail"):
            numbers = f"largest {result.largest:.3g} of {result.tolerance:.3g} allowed ({result.unit})"
        mark = "FAIL" if result.state == "fail" else result.state
        out.print(escape(f"  {mark:<7}  {result.name:<{width}}  {', '.join(t for t in (numbers, result.detail) if t)}"))
    counts = Counter(result.state for result in results)
    out.print(", ".join(f"{number} {state}" for state, number in counts.items()))
