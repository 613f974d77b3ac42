"""Tables that authors publish as pickled pandas data frames, read without running anything that such a file asks for.

A pickle is a program: loading one calls whatever it names. Here every name that a data frame of text and numbers
needs stands for an inert record of its arguments, no other name is admitted, and the columns are put together from
the records. Neither pandas nor NumPy code runs on a file's behalf.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

from pipeline.errors import ManifestError

_FRAME, _MANAGER, _BLOCK, _INDEX = "frame", "manager", "block", "index"
_ARRAY, _BUFFER, _DTYPE, _SLICE, _BYTES, _CLASS = "array", "buffer", "dtype", "slice", "bytes", "class"

# Every name that is admitted, in the spellings of pandas 0.25 to 3 and NumPy 1 to 2, and what it stands for.
ADMITTED: dict[str, str] = {
    "pandas.core.frame.DataFrame": _FRAME,
    "pandas.DataFrame": _FRAME,
    "pandas.core.internals.managers.BlockManager": _MANAGER,
    "pandas._libs.internals._unpickle_block": _BLOCK,
    "pandas.core.indexes.base._new_Index": _INDEX,
    "pandas.core.indexes.base.Index": _CLASS,
    "pandas.core.indexes.range.RangeIndex": _CLASS,
    "pandas.core.indexes.numeric.Int64Index": _CLASS,
    "pandas.Index": _CLASS,
    "pandas.RangeIndex": _CLASS,
    "numpy.core.multiarray._reconstruct": _ARRAY,
    "numpy._core.multiarray._reconstruct": _ARRAY,
    "numpy.core.numeric._frombuffer": _BUFFER,
    "numpy._core.numeric._frombuffer": _BUFFER,
    "numpy.ndarray": _CLASS,
    "numpy.dtype": _DTYPE,
    "builtins.slice": _SLICE,
    "__builtin__.slice": _SLICE,
    "_codecs.encode": _BYTES,  # how protocols before 3 write bytes
}
_NUMBERS = re.compile(r"[iuf][248]|[iu]1|b1")  # element types that are read from bytes


class _Record:
    """What a pickle asks to build: the arguments and the state, nothing made of them."""

    __slots__ = ("arguments", "state")
    kind = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> _Record:
        record = super().__new__(cls)
        record.arguments = arguments
        record.state = None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """An unpickler whose names are records; the classes are its own, so a file cannot leave a trace in them."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return a class of records for an admitted name.

        Raises:
            ManifestError: any other name.
        """
        name = f"{module_name}.{global_name}"
        if name not in ADMITTED:
            raise ManifestError(
                f"{self._path} asks for {name!r}, which the published tables do not; a file that does could run code "
                "on this machine and was not loaded. Take the file from where its authors publish it"
            )
        return type(global_name, (_Record,), {"kind": ADMITTED[name], "__slots__": ()})


def read_frame(path: Path) -> dict[str, list[Any]]:
    """Read the columns of a pickled pandas data frame of text, whole numbers and floats.

    Args:
        path: the file, written by pandas 0.25 or later; the rows' labels are dropped.

    Returns:
        The values per column name, columns and rows in the file's order.

    Raises:
        ManifestError: the file is missing, empty, damaged, no pickle or no data frame, or asks for a name that
            could run code.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}); it should be a pickled data frame") from None
    if not data:
        raise ManifestError(f"{path} is empty; download it again")
    try:
        _check_sizes(data)
        content = _Reader(data, path).load()
    except ManifestError:
        raise
    except Exception as error:  # a damaged pickle ends in almost any exception
        start = "" if data[:1] == b"\x80" else f"; it begins with {data[:24]!r}"
        raise ManifestError(
            f"{path} ({len(data)} bytes) is no pickle, or a damaged one ({_short(error)}){start}; download it again"
        ) from None
    if not (isinstance(content, _Record) and content.kind == _FRAME):
        found = getattr(content, "kind", "") or type(content).__name__
        raise ManifestError(f"{path} holds no pandas data frame but: {found}; is it the right file?")
    try:
        return _columns(content)
    except Exception as error:  # parts that do not fit together show up as almost any exception
        raise ManifestError(
            f"{path} is damaged, or a data frame of a kind that is not read here ({_short(error)}); "
            "columns of text, whole numbers and floats are"
        ) from None


def _short(error: Exception) -> str:
    """The reason in at most 200 characters."""
    return (str(error) or type(error).__name__)[:200]


def _check_sizes(data: bytes) -> None:
    """Refuse slots beyond any that a file of this length can fill: the memory would be taken at once."""
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
            raise ValueError(f"slot {argument} in {len(data)} bytes")


def _columns(frame: _Record) -> dict[str, list[Any]]:
    """Put the columns of a frame together from its blocks."""
    manager = frame.state.get("_mgr", frame.state.get("_data"))
    names, parts = _parts(_record(manager, _MANAGER))
    columns: dict[int, list[Any]] = {}
    for values, places in parts:
        rows = _values(values)
        positions = _positions(places)
        if len(rows) != len(positions):
            raise ValueError(f"{len(rows)} columns for {len(positions)} places")
        columns.update(zip(positions, rows, strict=True))
    if sorted(columns) != list(range(len(names))) or len(set(names)) != len(names):
        raise ValueError(f"{len(columns)} columns for {len(names)} names: {', '.join(map(str, names))}")
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("columns of different lengths")
    return {str(name): columns[i] for i, name in enumerate(names)}


def _parts(manager: _Record) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Column names, and the blocks as (values, places)."""
    if manager.arguments:  # since pandas 1.3
        blocks, axes = manager.arguments
        parts = [_record(block, _BLOCK).arguments[:2] for block in blocks]
    else:
        layout = manager.state[3]["0.14.1"]
        axes = layout["axes"]
        parts = [(block["values"], block["mgr_locs"]) for block in layout["blocks"]]
    names = _values(_record(axes[0], _INDEX).arguments[1]["data"])
    return names, [(values, places) for values, places in parts]


def _record(value: Any, kind: str) -> _Record:
    """Return a record of the kind that belongs here."""
    if isinstance(value, _Record) and value.kind == kind:
        return value
    raise ValueError(f"{getattr(value, 'kind', '') or type(value).__name__} where a {kind} belongs")


def _positions(places: Any) -> list[int]:
    """Positions of a block's columns."""
    if isinstance(places, _Record) and places.kind == _SLICE:
        start, stop, step = (int(argument) for argument in places.arguments)
        positions = range(start, stop, step)
        if len(positions) > 10_000:
            raise ValueError(f"{len(positions)} columns")
        return list(positions)
    return [int(position) for position in _values(places)]


def _values(array: Any) -> list[Any]:
    """Values of an array record as (nested) lists."""
    if isinstance(array, _Record) and array.kind == _BUFFER:
        content, dtype, shape, order = array.arguments
    else:
        _, shape, dtype, column_major, content = _record(array, _ARRAY).state
        order = "F" if column_major else "C"
    code, byte_order = _record(dtype, _DTYPE).arguments[0], dtype.state[1]
    sides = tuple(int(side) for side in shape)
    if code in ("O8", "O4", "O"):
        # Objects are listed row by row, whichever way the array lies in memory.
        if not isinstance(content, list) or math.prod(sides) != len(content) or not 1 <= len(sides) <= 2:
            raise ValueError(f"{type(content).__name__} for an array of {sides} objects")
        if not all(value is None or isinstance(value, (str, int, float)) for value in content):
            raise ValueError("values that are neither text nor numbers")
        width = sides[-1]
        return content if len(sides) == 1 else [content[i * width : (i + 1) * width] for i in range(sides[0])]
    if not isinstance(code, str) or _NUMBERS.fullmatch(code) is None or byte_order not in ("<", ">", "|"):
        raise ValueError(f"elements of type {byte_order!r} {code!r}")
    raw = _bytes(content)
    import numpy as np  # here, because listing data sets does not need it

    plain: list[Any] = np.frombuffer(raw, np.dtype(f"{byte_order}{code}")).reshape(sides, order=order).tolist()
    return plain


def _bytes(content: Any) -> bytes:
    """Bytes of an array, whichever way the protocol writes them."""
    if isinstance(content, _Record) and content.kind == _BYTES:
        text, encoding = content.arguments
        if encoding != "latin1":
            raise ValueError(f"bytes as {encoding}")
        return str(text).encode("latin1")
    if isinstance(content, (bytes, bytearray)):
        return bytes(content)
    raise ValueError(f"{type(content).__name__} for bytes")
