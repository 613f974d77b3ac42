"""What is known of one published weight file, and how its tensors become a network's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A weight file as its authors publish it, used unchanged."""

    name: str  # what `--weights` calls it, for example kinetics400
    file: str  # its file name, unique among all published files
    url: str  # where it is
    digest: str  # leading hex digits of its sha256 that its authors state; "" where they state none
    trained_on: str  # data set and task, for the notes of a table
    licence: str
    source: str  # page of the project
    read: Callable[[Mapping[str, object]], Tensors]  # the file's content -> tensors under the network's names
