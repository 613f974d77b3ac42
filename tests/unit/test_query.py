"""Conditions on tables of runs: equal to a plain filter in Python, and to nothing more."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.query import Condition, Every, Expression, Some, choose_columns, parse_query, query, sort_rows

NAN = float("nan")
FRAME = pandas.DataFrame(
    {
        "method": ["erm", "ssmdg", "fixmatch", "ssmdg", "erm"],
        "budget": ["5", "5%", "10", "5", ""],
        "steps": [400, 400, 800, 20, 400],
        "target/fused": [0.5, 0.75, NAN, 0.25, 1.0],
        "h.mixing": ["none", None, "bmm", None, 'a "b" \\c'],
        "of class/open door": [1.0, 2.0, 3.0, NAN, NAN],
        "never": [NAN] * 5,
        "group": pandas.Categorical(["y", "x", "y", None, "x"], categories=["y", "x"]),
    }
)


def rows(expression: str) -> list[int]:
    return list(query(FRAME, expression).index)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("method = erm", [0, 4]),
        ("method == erm", [0, 4]),
        ("method!=erm", [1, 2, 3]),
        ("method ~ m", [0, 1, 2, 3, 4]),
        ("method ~ 'mat'", [2]),
        ("method = ERM", []),
        ("budget = 5", [0, 3]),
        ("budget ~ %", [1]),
        ("budget = ''", [4]),
        ("steps = 400", [0, 1, 4]),
        ("steps = 4e2", [0, 1, 4]),
        ("steps = '400'", [0, 1, 4]),
        ("steps > 20", [0, 1, 2, 4]),
        ("steps >= 20 and steps<=400", [0, 1, 3, 4]),
        ("target/fused < 0.75", [0, 3]),
        ("target/fused > -1", [0, 1, 3, 4]),
        ("target/fused != 0.5", [1, 2, 3, 4]),
        ('target/fused = ""', [2]),
        ('target/fused != ""', [0, 1, 3, 4]),
        ("h.mixing = none", [0]),
        ("h.mixing != none", [1, 2, 3, 4]),
        ("h.mixing = ''", [1, 3]),
        ("h.mixing != ''", [0, 2, 4]),
        ("h.mixing ~ ''", [0, 2, 4]),
        (r'h.mixing = "a \"b\" \\c"', [4]),
        (r"""h.mixing ~ '"b"'""", [4]),
        ("'of class/open door' >= 2", [1, 2]),
        ("never > 3", []),
        ("never = ''", [0, 1, 2, 3, 4]),
        ("never != x", [0, 1, 2, 3, 4]),
        ("never ~ ''", []),
        ("group = x", [1, 4]),
        ("group != x", [0, 2, 3]),
        ("group = ''", [3]),
        ("group ~ y", [0, 2]),
        ("method = ssmdg or method = erm and steps = 400", [0, 1, 3, 4]),
        ("(method = ssmdg or method = erm) and steps = 400", [0, 1, 4]),
        ("method = erm AND steps = 400 Or steps=800", [0, 2, 4]),
        ("((method = erm))", [0, 4]),
        ("method=erm and(steps=400)", [0, 4]),
        ("method = and or steps = 20", [3]),
        ("method in (erm, fixmatch)", [0, 2, 4]),
        ("method IN erm,ssmdg and steps in 400", [0, 1, 4]),
        ("budget in ('5%' 10,) or steps in(20,1)", [1, 2, 3]),
        ("h.mixing in ('', none)", [0, 1, 3]),
        ("target/fused in ('', 1)", [2, 4]),
        ("method in ('erm,ssmdg')", []),
    ],
)
def test_these_conditions_hold_for_these_rows(expression: str, expected: list[int]) -> None:
    assert rows(expression) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", r"character 1: the name of a column is expected and it ends; write NAME OP VALUE"),
        ("method", r"character 7: an operator is expected and it ends"),
        ("method =", r"character 9: a value is expected and it ends"),
        ("method erm", r"character 8: an operator is expected and there is 'erm'"),
        ("= erm", r"character 1: the name of a column is expected and there is '='"),
        ("method = erm steps = 3", r"character 14: 'and', 'or' or the end is expected and there is 'steps'"),
        ("method = erm and", r"character 17: the name of a column is expected and it ends"),
        ("(method = erm", r"character 14: '\)' is expected and it ends"),
        ("method = erm)", r"character 13: 'and', 'or' or the end is expected and there is '\)'"),
        ("method = 'erm", r"character 10: a quotation mark that is not closed"),
        ("method ! erm", r"character 8: .*none of the operators"),
        ("method = = erm", r"character 10: a value is expected and there is '='"),
        ("method in", r"character 10: a value of the list is expected and it ends"),
        ("method in ,", r"character 11: no value is in the list"),
        ("method in (, ,)", r"character 11: no value is in the list"),
        ("method in ()", r"character 12: a value of the list is expected and there is '\)'"),
        ("method in (erm", r"character 15: a value of the list is expected and it ends"),
        ("method in (erm and (steps = 3))", r"character 20: a value of the list is expected and there is '\('"),
        ("steps in (400, many)", r"column 'steps' holds numbers and 'many' is none"),
        ("methd = erm", r"there is no column 'methd'. Did you mean 'method'\? Columns: method, budget"),
        ("method < 3", r"column 'method' holds text and < compares numbers; use =, != or ~"),
        ("group > 3", r"column 'group' holds text and > compares numbers"),
        ("steps ~ 4", r"column 'steps' holds numbers and ~ looks for text"),
        ("steps = many", r"column 'steps' holds numbers and 'many' is none; write steps = 0.5"),
        ("steps < ''", r"column 'steps' holds numbers and '' is none"),
        ("steps = nan", r"column 'steps' holds numbers and 'nan' is none"),
        ("(" * 51 + "steps = 1" + ")" * 51, "more than 50 parentheses inside each other"),
        ("(" * 100_000, "more than 50 parentheses inside each other"),
    ],
)
def test_what_cannot_be_understood_is_named(expression: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rows(expression)


@pytest.mark.parametrize(
    "text",
    [
        "@pandas.io.common.os.system('true') = 1",
        "__import__('os') = 1",
        "method.str.len() > 1",
        "steps.__class__ = 1",
        "steps + 1 = 401",
        "lambda: 1 = 1",
        "steps = 400; import os",
        "method = f'{1}'",
    ],
)
def test_python_is_no_condition(text: str) -> None:
    with pytest.raises(UsageError):
        rows(text)


def test_a_long_condition_is_read() -> None:
    assert rows(" or ".join(["steps = 20"] * 2_000)) == [3]
    assert rows("(" * 50 + "steps = 20" + ")" * 50) == [3]


def test_and_binds_closer_than_or() -> None:
    a, b, c = (Condition(name, "=", "1") for name in "abc")
    assert parse_query("a=1 or b=1 and c=1") == Some((a, Every((b, c))))
    assert parse_query("(a=1 or b=1) and c=1") == Every((Some((a, b)), c))
    assert parse_query("a=1 or b=1 or c=1") == Some((a, b, c))
    assert parse_query("a in 1,2 and b in (1)") == Every((Some((a, Condition("a", "=", "2"))), b))


COLUMNS = {
    "method": st.sampled_from(["erm", "ssmdg", "a b", "(x)", "5", "and", "<=", "é\\'\"", ""]),
    "none or text": st.sampled_from(["erm", "none", None]),
    "h.rate": st.sampled_from([1e-3, 0.5, -2.0, 3.0, None]),
    "steps": st.integers(-3, 3),
}
TEXT, NUMBERS = ("method", "none or text"), ("h.rate", "steps")
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def conditions() -> st.SearchStrategy[Condition]:
    values = st.one_of(*(COLUMNS[name].map(lambda v: "" if v is None else v) for name in TEXT), st.just("e"))
    of_text = st.builds(Condition, st.sampled_from(TEXT), st.sampled_from(["=", "!=", "~"]), values)
    number = st.one_of(st.sampled_from(["1e-3", "0.5", "-2", "3.0"]), st.integers(-3, 3).map(str))
    of_number = st.builds(Condition, st.sampled_from(NUMBERS), st.sampled_from(["=", "!=", *COMPARE]), number)
    of_missing = st.builds(Condition, st.sampled_from(NUMBERS), st.sampled_from(["=", "!="]), st.just(""))
    return st.one_of(of_text, of_number, of_missing)


def expressions() -> st.SearchStrategy[Expression]:
    def joined(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.one_of(st.builds(Every, parts), st.builds(Some, parts))

    return st.recursive(conditions(), joined, max_leaves=6)


def plain(row: Mapping[str, Any], expression: Expression) -> bool:
    """The same condition on one row, in plain Python."""
    if isinstance(expression, Every):
        return all(plain(row, part) for part in expression.parts)
    if isinstance(expression, Some):
        return any(plain(row, part) for part in expression.parts)
    cell, op, value = row[expression.name], expression.op, expression.value
    if op in COMPARE:
        return cell is not None and COMPARE[op](cell, float(value))
    if op == "~":
        return cell is not None and value in cell
    if expression.name in NUMBERS:
        same = (cell is None) if value == "" else cell is not None and cell == float(value)
    else:
        same = ("" if cell is None else cell) == value
    return same == (op == "=")


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def written(expression: Expression) -> str:
    if isinstance(expression, Condition):
        bare = expression.value.replace(".", "").replace("-", "").isalnum() and expression.value.isascii()
        value = expression.value if bare else quoted(expression.value)
        name = expression.name if " " not in expression.name else quoted(expression.name)
        return f"{name} {expression.op} {value}"
    word = " and " if isinstance(expression, Every) else " or "
    return word.join(f"({written(part)})" for part in expression.parts)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.fixed_dictionaries(COLUMNS), max_size=8), expressions(), st.booleans())
def test_a_condition_is_the_plain_filter(table: list[dict[str, Any]], expression: Expression, categories: bool) -> None:
    frame = pandas.DataFrame(
        {
            "method": pandas.Series([row["method"] for row in table], dtype=object),
            "none or text": pandas.Series([row["none or text"] for row in table], dtype=object),
            "h.rate": pandas.Series([row["h.rate"] for row in table], dtype=float),
            "steps": pandas.Series([row["steps"] for row in table], dtype=int),
        }
    )
    if categories:
        frame = frame.astype({"method": "category", "none or text": "category"})
    expected = [i for i, row in enumerate(table) if plain(row, expression)]
    assert parse_query(written(expression)) == expression
    assert list(query(frame, written(expression)).index) == expected


@settings(deadline=None)
@given(st.text(alphabet="ab =!<>~()'\"\\and or1.é\n\t", max_size=40))
def test_any_text_is_a_condition_or_an_expected_error(text: str) -> None:
    with suppress(UsageError):
        assert set(rows(text)) <= set(range(5))


def test_rows_are_sorted_by_columns_and_missing_ones_are_last() -> None:
    assert list(sort_rows(FRAME, ["target/fused"]).index) == [3, 0, 1, 4, 2]
    assert list(sort_rows(FRAME, ["-target/fused"]).index) == [4, 1, 0, 3, 2]
    assert list(sort_rows(FRAME, ["method", "-steps"]).index) == [0, 4, 2, 1, 3]
    assert list(sort_rows(FRAME, ["-steps"]).index) == [2, 0, 1, 4, 3]  # equal ones stay in their order
    assert list(sort_rows(FRAME, ["group"]).index) == [1, 4, 0, 2, 3]  # by text, not by the order of the categories
    assert list(sort_rows(FRAME, []).index) == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match=r"no column 'stps'. Did you mean 'steps'"):
        sort_rows(FRAME, ["-stps"])


def test_columns_are_chosen_by_name_and_by_pattern() -> None:
    assert list(choose_columns(FRAME, ["steps", "method"]).columns) == ["steps", "method"]
    assert list(choose_columns(FRAME, ["h.*", "*e*", "steps"]).columns) == [
        "h.mixing",
        *("method", "budget", "steps", "target/fused", "of class/open door", "never"),
    ]
    other = pandas.DataFrame({"h.x": [0], "hxx": [0], "a[b": [0], "a": [0]})
    assert list(choose_columns(other, ["h.*", "a[*"]).columns) == ["h.x", "a[b"]
    with pytest.raises(UsageError, match=r"no column 'metod'. Did you mean 'method'"):
        choose_columns(FRAME, ["metod"])
    with pytest.raises(UsageError, match=r"no column 'x\*'"):
        choose_columns(FRAME, ["x*"])
    with pytest.raises(UsageError, match=r"no column 'h.'"):  # a full stop is a full stop
        choose_columns(FRAME, ["h."])


def test_a_table_with_many_columns_does_not_list_them_all() -> None:
    wide = pandas.DataFrame({f"c{i}": [0] for i in range(30)})
    with pytest.raises(UsageError, match=r"Columns: c0, .*, c19 and 10 more$"):
        query(wide, "zzz = 1")
