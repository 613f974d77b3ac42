"""Conditions on a table's columns as text, `method = ssmdg and (target/fused > 0.6 or budget ~ %)`.

They are read here and never run as Python: a text from anywhere can compare cells and nothing else.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError, nearest

if TYPE_CHECKING:
    import pandas

GRAMMAR = (
    "write NAME OP VALUE, joined by and, or and parentheses, with = != < <= > >=, ~ (contains) or in (one of several), "
    "for example 'method in (erm, ssmdg) and target/fused > 0.6'; quote what has spaces or signs; \"\" is a cell "
    "without a value"
)
MOST_NESTED = 50  # parentheses inside parentheses
MOST_LISTED = 20  # column names in a message

_TOKEN = re.compile(
    r"""(?P<op><=|>=|!=|==|[=<>~]) | (?P<paren>[()]) | (?P<word>[^\s()'"=!<>~]+)
    | "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>(?:[^'\\]|\\.)*)'""",
    re.VERBOSE | re.DOTALL,
)
_ORDERS: dict[str, Callable[[Any, float], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """A comparison of one column with a value."""

    name: str
    op: str  # = != < <= > >= ~
    value: str


@dataclass(frozen=True)
class Every:
    """All parts hold."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Some:
    """At least one part holds."""

    parts: tuple[Expression, ...]


Expression: TypeAlias = Condition | Every | Some


@dataclass(frozen=True)
class _Token:
    kind: str  # op, paren, word or quoted
    text: str
    start: int  # position in the expression


def parse_query(text: str) -> Expression:
    """Read an expression; `and` binds closer than `or`, == is the same as =, `in` is a = of every value joined by or.

    Raises:
        UsageError: it does not follow the grammar; says where.
    """
    tokens, position = [], 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        found = _TOKEN.match(text, position)
        if found is None:
            raise _error(text, position, "a quotation mark that is not closed, or a sign that is none of the operators")
        kind = str(found.lastgroup)
        word = found.group(kind)
        if kind in ("double", "single"):
            kind, word = "quoted", re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL)
        tokens.append(_Token(kind, word, position))
        position = found.end()
    reader = _Reader(text, tokens)
    expression = reader.some(0)
    if reader.next is not None:
        raise reader.unexpected("'and', 'or' or the end")
    return expression


class _Reader:
    """Tokens, one after the other."""

    def __init__(self, text: str, tokens: Sequence[_Token]) -> None:
        self.text, self.tokens, self.place = text, tokens, 0

    @property
    def next(self) -> _Token | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def takes(self, kind: str, *texts: str) -> bool:
        """Step over the next token if it is this."""
        there = self.next is not None and self.next.kind == kind and self.next.text.lower() in texts
        self.place += there
        return there

    def value(self, what: str, kinds: Sequence[str]) -> str:
        token = self.next
        if token is None or token.kind not in kinds:
            raise self.unexpected(what)
        self.place += 1
        return token.text

    def unexpected(self, what: str) -> UsageError:
        token = self.next
        there = "it ends" if token is None else f"there is {token.text!r}"
        return _error(self.text, len(self.text) if token is None else token.start, f"{what} is expected and {there}")

    def some(self, depth: int) -> Expression:
        parts = [self.every(depth)]
        while self.takes("word", "or"):
            parts.append(self.every(depth))
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def every(self, depth: int) -> Expression:
        parts = [self.one(depth)]
        while self.takes("word", "and"):
            parts.append(self.one(depth))
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def one(self, depth: int) -> Expression:
        if self.takes("paren", "("):
            if depth == MOST_NESTED:
                raise UsageError(f"the condition has more than {MOST_NESTED} parentheses inside each other")
            inside = self.some(depth + 1)
            if not self.takes("paren", ")"):
                raise self.unexpected("')'")
            return inside
        name = self.value("the name of a column", ("word", "quoted"))
        if self.takes("word", "in"):
            equal: list[Expression] = [Condition(name, "=", value) for value in self.listed()]
            return equal[0] if len(equal) == 1 else Some(tuple(equal))
        op = self.value("an operator", ("op",))
        return Condition(name, "=" if op == "==" else op, self.value("a value", ("word", "quoted")))

    def listed(self) -> list[str]:
        """The values behind `in`: separated by commas, in parentheses or not."""
        first, in_parentheses = self.place, self.takes("paren", "(")
        values = self.between_commas()
        while in_parentheses and not self.takes("paren", ")"):
            values += self.between_commas()
        if not values:
            raise _error(self.text, self.tokens[first].start, "no value is in the list")
        return values

    def between_commas(self) -> list[str]:
        whole = self.next is not None and self.next.kind == "quoted"
        text = self.value("a value of the list", ("word", "quoted"))
        return [text] if whole else [part for part in text.split(",") if part]


def _error(text: str, position: int, what: str) -> UsageError:
    return UsageError(f"cannot read the condition {text!r} at character {position + 1}: {what}; {GRAMMAR}")


def query(frame: pandas.DataFrame, expression: str) -> pandas.DataFrame:
    """Rows of a frame that fulfil a condition, in their order.

    Cells without a value are equal to ``""`` alone, neither less nor greater than anything, and contain nothing. A
    column of numbers knows = != < <= > >= and in with numbers (or "" for = != and in); one of text knows = != ~ and in,
    exact and case-sensitive.

    Args:
        frame: any table with text as column names.
        expression: see ``GRAMMAR``.

    Raises:
        UsageError: an expression that cannot be read, an unknown column, or an operator that its column does not know.
    """
    return frame[_holds(frame, parse_query(expression))]


def _holds(frame: pandas.DataFrame, expression: Expression) -> NDArray[np.bool_]:
    """Which rows fulfil an expression, ``(rows,)``."""
    if isinstance(expression, Condition):
        return _compare(frame[known_column(frame, expression.name)], expression)
    parts = [_holds(frame, part) for part in expression.parts]
    joined: NDArray[np.bool_] = np.all(parts, axis=0) if isinstance(expression, Every) else np.any(parts, axis=0)
    return joined


def _compare(column: pandas.Series, condition: Condition) -> NDArray[np.bool_]:
    from pandas.api.types import is_numeric_dtype

    missing: NDArray[np.bool_] = column.isna().to_numpy(dtype=bool)
    op, value = condition.op, condition.value
    if missing.all():  # neither of numbers nor of text
        return np.full(len(column), (value == "") == (op == "=") and op in ("=", "!="))
    if is_numeric_dtype(column.dtype):
        if value == "" and op in ("=", "!="):
            return missing if op == "=" else ~missing
        number = _number(condition)
        cells = column.to_numpy(dtype=float, na_value=math.nan)
        if op in _ORDERS:
            compared: NDArray[np.bool_] = _ORDERS[op](cells, number)
            return compared
        same: NDArray[np.bool_] = cells == number
        return same if op == "=" else ~same
    if op in _ORDERS:
        raise UsageError(f"column {condition.name!r} holds text and {op} compares numbers; use =, != or ~")
    return _compare_text(column, op, value)


def _compare_text(column: pandas.Series, op: str, value: str) -> NDArray[np.bool_]:
    """Compare every different text once."""
    import pandas

    codes, texts = pandas.factorize(column)
    fulfil = [value in str(text) if op == "~" else (str(text) == value) == (op == "=") for text in texts]
    # A cell without a value has the code -1: the last entry.
    fulfil.append(op != "~" and (value == "") == (op == "="))
    found: NDArray[np.bool_] = np.array(fulfil, dtype=bool)[codes]
    return found


def _number(condition: Condition) -> float:
    """The value of a condition on numbers."""
    name, op, value = condition.name, condition.op, condition.value
    if op == "~":
        raise UsageError(f"column {name!r} holds numbers and ~ looks for text; use = != < <= > or >=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"column {name!r} holds numbers and {value!r} is none; write {name} {op} 0.5")
    return number


def known_column(frame: pandas.DataFrame, name: str) -> str:
    """Return a column's name if the frame has it.

    Raises:
        UsageError: it has not; names the nearest one.
    """
    columns = [str(column) for column in frame.columns]
    if name in columns:
        return name
    more = f" and {len(columns) - MOST_LISTED} more" if len(columns) > MOST_LISTED else ""
    listed = ", ".join(columns[:MOST_LISTED]) + more
    raise UsageError(f"there is no column {name!r}.{nearest(name, columns)} Columns: {listed}")


def sort_rows(frame: pandas.DataFrame, by: Sequence[str]) -> pandas.DataFrame:
    """Rows sorted by columns, the first one first; ``-NAME`` puts the highest on top. Cells without a value are last.

    Raises:
        UsageError: an unknown column.
    """
    for entry in reversed(by):
        falling = entry.startswith("-") and entry not in frame.columns
        name = known_column(frame, entry[1:] if falling else entry)
        frame = frame.sort_values(name, ascending=not falling, kind="stable", na_position="last", key=_as_text)
    return frame


def _as_text(column: pandas.Series) -> pandas.Series:
    """Categories sort as the texts they are."""
    return column.astype(object) if str(column.dtype) == "category" else column


def choose_columns(frame: pandas.DataFrame, names: Sequence[str]) -> pandas.DataFrame:
    """Some columns in the given order; ``*`` in a name stands for any characters, ``h.*`` for all hyperparameters.

    Raises:
        UsageError: a name or pattern that no column has.
    """
    chosen: dict[str, None] = {}
    for name in names:
        pattern = re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)
        found = [column for column in frame.columns if "*" in name and pattern.fullmatch(column)]
        chosen |= dict.fromkeys(found or [known_column(frame, name)])
    return frame[list(chosen)]
