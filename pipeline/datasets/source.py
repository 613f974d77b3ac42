"""What the table of data sets knows about one, and how one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.datasets.demo import DemoSpec
from pipeline.errors import UsageError, choose
from pipeline.types import Manifest

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DatasetRequest:
    """Where and how a data set is looked for."""

    work: Path  # workspace; data sets that are made are written below it
    root: Path | None = None  # folder of the media, where it is not the manifest's own
    name: str | None = None  # name that replaces the default one
    outside: bool = False  # allow media outside the root
    workers: int = 1  # processes, for data sets that are made
    progress: Progress | None = None  # called with (done, total) clips while a data set is made
    demo: DemoSpec | None = None  # what to make; None: what is there, or the default
    options: Mapping[str, str] = field(default_factory=dict)  # choices that a data set offers, see ``Dataset.options``


@dataclass(frozen=True)
class Dataset:
    """A line of the data sets' table."""

    title: str
    load: Callable[[DatasetRequest], Manifest]  # lists clips from the published split files; media may be missing
    published: str = ""  # where its authors publish it, with addresses; one or two sentences
    layout: str = ""  # what is expected below the root, one path a line
    note: str = ""  # what a reader of its numbers must know
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name -> allowed values, the default first
    backbones: str = "tiny"  # preset of frozen backbones that its papers use


def chosen_options(name: str, offered: Mapping[str, Sequence[str]], given: Mapping[str, str]) -> dict[str, str]:
    """Every option of a data set with its value.

    Raises:
        UsageError: an option it does not offer, or a value that is not allowed.
    """
    for key, value in given.items():
        if not offered:
            raise UsageError(f"{name} has no options; --data-option {key}={value} is for another data set")
        choose(f"option of {name}", key, offered)
        choose(f"value of {name}'s option {key}", value, offered[key])
    return {key: given.get(key, values[0]) for key, values in offered.items()}


def required_root(name: str, request: DatasetRequest, published: str) -> Path:
    """The folder that the user says a data set lies in.

    Raises:
        UsageError: none was given, or it is no folder; says where the data set is published.
    """
    if request.root is None:
        raise UsageError(f"--dataset {name} needs --root, the folder it lies in. {published}")
    root = request.root.expanduser().resolve()
    if not root.is_dir():
        raise UsageError(f"--root {request.root} is not a folder. {published}")
    return root
