"""Configuration files: TOML laid over typed dataclasses. The dataclass is the schema and holds the defaults."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.errors import UsageError, nearest

Settings = TypeVar("Settings")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: it is not there, or not TOML; names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"configuration {path} does not exist; configs/ holds examples") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration {path} is not TOML: {error}") from None


def overlay(base: Settings, values: Mapping[str, Any], where: str) -> Settings:
    """Return ``base`` with the fields that ``values`` names replaced.

    Args:
        base: an instance of a dataclass whose fields are numbers, texts, tuples of them, or a mapping of options.
        values: plain values as TOML gives them; a list stands for a tuple.
        where: what the values come from, for messages.

    Raises:
        UsageError: a key that is no field, with the nearest one; a value of the wrong type, with its path.
    """
    if not dataclasses.is_dataclass(base) or isinstance(base, type):
        raise TypeError(f"{base!r} is not an instance of a dataclass")
    hints = get_type_hints(type(base))
    names = [field.name for field in dataclasses.fields(base)]
    unknown = [key for key in values if key not in names]
    if unknown:
        raise UsageError(
            f"{where}: {unknown[0]!r} is not a setting.{nearest(unknown[0], names)} Allowed: {', '.join(names)}"
        )
    changes = {key: checked_value(value, hints[key], f"{where}: {key}") for key, value in values.items()}
    return dataclasses.replace(base, **changes)


def checked_value(value: Any, hint: Any, path: str) -> Any:
    """Return a TOML value as the field's type wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{path} is {value!r}; it must be a list, for example [{_example(arguments[0])}]")
        return tuple(checked_value(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise UsageError(f"{path} is {value!r}; it must be a table of names and values")
        return {key: checked_value(item, arguments[1], f"{path}.{key}") for key, item in value.items()}
    allowed = arguments if origin in (Union, UnionType) else (hint,)
    if any(_fits(value, kind) for kind in allowed):
        return value
    raise UsageError(f"{path} is {value!r}; it must be {' or '.join(_name(kind) for kind in allowed)}")


def _fits(value: Any, kind: Any) -> bool:
    """A whole number is a number, true and false are not."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _name(kind: Any) -> str:
    return {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}.get(
        kind, str(kind)
    )


def _example(kind: Any) -> str:
    return '"a", "b"' if kind is str else "0, 1, 2"
