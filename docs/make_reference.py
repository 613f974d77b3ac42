"""Write docs/reference.md from the command line and the docstrings: `uv run python docs/make_reference.py`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import typer
from typer.core import TyperGroup, TyperOption

MODULES = (  # what users' own code imports; the rest may change without a word
    "pipeline.api",
    "pipeline.estimator",
    "pipeline.bundle",
    "pipeline.headmodel",
    "pipeline.trust",
    "pipeline.calibration",
    "cache.readers",
    "cache.store",
    "cache.arrays",
    "cache.statistics",
    "cache.packed",
    "extractors.backbone",
    "extractors.encoder",
    "extractors.loading",
    "heads.method",
    "heads.losses",
    "heads.mixing",
    "heads.fillers",
    "heads.network",
)
SECTIONS = ("Args", "Returns", "Yields", "Raises")
HEAD = """# Reference

Written by `uv run python docs/make_reference.py` from the command line and the docstrings; a test compares.
"""


def reference() -> str:
    """The page, as Markdown."""
    parts = [HEAD, "## Commands\n", *_commands(), "## Python\n"]
    for name in MODULES:
        module = importlib.import_module(name)
        parts.append(f"### {name}\n\n{_prose(inspect.getdoc(module) or '')}\n")
        parts += [part for member in _members(module) for part in _described(name, *member)]
    return "\n".join(parts)


def _commands() -> Iterator[str]:
    from pipeline.cli import app

    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    yield from _command_group("pipe", root)


def _command_group(path: str, group: TyperGroup) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, TyperGroup):
            yield from _command_group(f"{path} {name}", command)
            continue
        yield f"### {path} {name}\n"
        arguments = [p for p in command.params if not isinstance(p, TyperOption)]
        usage = " ".join([path, name, *(str(a.metavar or (a.name or "").upper()) for a in arguments), "[OPTIONS]"])
        yield f"`{usage}`\n\n{inspect.cleandoc(command.help or '')}\n"
        yield "| option | default | meaning |\n| --- | --- | --- |"
        for option in command.params:
            words = "`" + ", ".join([*option.opts, *option.secondary_opts]) + "`"
            yield f"| {words} | {_default(option)} | {_cell(getattr(option, 'help', '') or '')} |"
        yield ""


def _default(option: object) -> str:
    shown, value = getattr(option, "show_default", None), getattr(option, "default", None)
    if getattr(option, "required", False):
        return "needed"
    if isinstance(shown, str):
        return _cell(shown)
    if value is None or value == "" or value is False or callable(value) or "Sentinel" in repr(value):
        return ""
    return _cell(str(value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _members(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Public classes and functions that a module defines, in the order of its source."""
    own = [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]
    yield from sorted(own, key=lambda member: inspect.getsourcelines(member[1])[1])


def _described(module: str, name: str, value: object) -> Iterator[str]:
    yield f"#### {name}\n"
    if not inspect.isclass(value):
        yield f"```python\n{_signature(name, value)}\n```\n\n{_prose(inspect.getdoc(value) or '')}\n"
        return
    yield f"```python\nfrom {module} import {name}\n```\n\n{_prose(inspect.getdoc(value) or '')}\n"
    if dataclasses.is_dataclass(value):
        yield "\n".join(f"- `{field}`: `{kind}`{note}" for field, kind, note in _fields(value)) + "\n"
    for member, function in vars(value).items():
        plain = getattr(function, "__func__", function)
        if isinstance(plain, property):
            yield f"- **{member}**: {_first(plain.__doc__)}"
        elif inspect.isfunction(plain) and not member.startswith("_"):
            yield f"- **{_signature(member, plain)}**: {_first(plain.__doc__)}"
    yield ""


def _fields(value: type) -> Iterator[tuple[str, str, str]]:
    """Name, type and comment of a dataclass's fields."""
    source = inspect.getsource(value)
    for field in dataclasses.fields(value):
        found = re.search(rf"^    {field.name}: [^\n]*?#\s*(.+)$", source, re.MULTILINE)
        yield field.name, str(field.type), f": {found[1]}" if found else ""


def _signature(name: str, function: object) -> str:
    found = inspect.signature(function)  # type: ignore[arg-type]
    text = f"{name}{found}"
    return re.sub(r"<([\w.]+) object at 0x[0-9a-f]+>", r"\1()", text).replace("'", "")


def _first(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def _prose(text: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    out: list[str] = []
    for line in text.splitlines():
        section = re.fullmatch(r"(\w+):", line)
        entry = re.match(r"    (\S[^:]*): (.*)", line)
        if section and section[1] in SECTIONS:
            out += [f"**{section[1]}**", ""]
        elif entry and not line.startswith("     "):
            out.append(f"- `{entry[1]}`: {entry[2]}")
        elif line.startswith("        "):
            out.append("  " + line.strip())
        else:
            out.append(line.strip() if line.startswith("    ") else line)
    return "\n".join(out)


if __name__ == "__main__":
    Path(__file__).with_name("reference.md").write_text(reference(), encoding="utf-8")
