"""Arrays, texts and numbers out of a pickle that others wrote, without running anything that it asks for.

A pickle is a program: loading one calls whatever it names. Here only the names that NumPy arrays need are admitted,
each stands for an inert record of its arguments, and the arrays are put together from the records.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from cache.layout import CacheError

_ARRAY, _BUFFER, _SCALAR, _DTYPE, _CLASS, _BYTES, _DICT = "array", "buffer", "scalar", "dtype", "class", "bytes", "dict"

# Every name that is admitted, in the spellings of NumPy 1 and 2 and of Python 2 and 3, and what it stands for.
ADMITTED: dict[str, str] = {
    "numpy.core.multiarray._reconstruct": _ARRAY,
    "numpy._core.multiarray._reconstruct": _ARRAY,
    "numpy.core.numeric._frombuffer": _BUFFER,
    "numpy._core.numeric._frombuffer": _BUFFER,
    "numpy.core.multiarray.scalar": _SCALAR,
    "numpy._core.multiarray.scalar": _SCALAR,
    "numpy.ndarray": _CLASS,
    "numpy.dtype": _DTYPE,
    "_codecs.encode": _BYTES,  # how protocols before 3 write bytes
    "collections.OrderedDict": _DICT,
}
_NUMBERS = re.compile(r"[iuf][248]|[iu]1|b1")
_TEXTS = re.compile(r"[US]\d{1,4}")
_MOST_DEPTH = 16  # of lists in lists


class _Record:
    """What a pickle asks to build: the arguments and the state, nothing made of them."""

    kind = ""

    def __new__(cls, *arguments: Any) -> _Record:
        record = super().__new__(cls)
        record.arguments = arguments
        record.state = None
        record.items = []
        return record

    arguments: tuple[Any, ...]
    state: Any
    items: list[tuple[Any, Any]]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")  # arrays that Python 2 wrote
        self._path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """A class of records for an admitted name; a new one each time, so a file leaves no trace in it."""
        name = f"{module_name}.{global_name}"
        if name not in ADMITTED:
            raise CacheError(
                f"{self._path} asks for {name!r}, which arrays do not; a file that does could run code on this machine "
                "and was not loaded. Write the features as .npy, HDF5 or safetensors where they were made"
            )
        return type(global_name, (_Record,), {"kind": ADMITTED[name]})

    def persistent_load(self, pid: Any, /) -> Any:
        """Refuse what lies outside of the file, such as tensors of PyTorch."""
        raise CacheError(f"{self._path} holds objects that lie elsewhere (such as tensors); write them as arrays")


def read_pickle(path: Path) -> Any:
    """Dictionaries, lists, texts, numbers and arrays of a pickle.

    Returns:
        Plain Python values; arrays are ``numpy.ndarray`` of numbers or of fixed-length text, arrays of objects are
        lists.

    Raises:
        CacheError: the file is missing, damaged, or asks for a name that could run code.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CacheError(f"{path} cannot be read ({error.strerror})") from None
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
                raise ValueError(f"slot {argument} in {len(data)} bytes")
        return _plain(_Reader(data, path).load(), 0)
    except CacheError:
        raise
    except Exception as error:  # a damaged pickle ends in almost any exception
        reason = (str(error) or type(error).__name__)[:200]
        raise CacheError(f"{path} ({len(data)} bytes) is no pickle of arrays, or a damaged one ({reason})") from None


def _plain(value: Any, depth: int) -> Any:
    if depth > _MOST_DEPTH:
        raise ValueError("it is nested too deeply")
    if value is None or isinstance(value, str | int | float | bool | bytes):
        return value
    if isinstance(value, dict):
        return {_key(k): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, depth + 1) for v in value]
    if not isinstance(value, _Record):
        raise ValueError(f"a {type(value).__name__}")
    if value.kind == _DICT:
        return {_key(k): _plain(v, depth + 1) for k, v in value.items}
    if value.kind == _BYTES:
        return _bytes(value)
    if value.kind == _SCALAR:
        dtype, content = value.arguments
        return np.frombuffer(_bytes(content), _dtype(dtype)).item()
    return _array(value, depth)


def _key(key: Any) -> Any:
    key = _plain(key, _MOST_DEPTH)
    if not isinstance(key, str | int | float | bytes):
        raise ValueError(f"a {type(key).__name__} as a key")
    return key


def _array(record: _Record, depth: int) -> Any:
    if record.kind == _BUFFER:
        content, dtype, shape, order = record.arguments
    elif record.kind == _ARRAY:
        _, shape, dtype, column_major, content = record.state
        order = "F" if column_major else "C"
    else:
        raise ValueError(f"a {record.kind} where an array belongs")
    sides = tuple(int(side) for side in shape)
    if not isinstance(dtype, _Record) or dtype.kind != _DTYPE:
        raise ValueError("an array without a type")
    if str(dtype.arguments[0]).startswith("O"):
        if not isinstance(content, list) or len(sides) != 1 or sides[0] != len(content):
            raise ValueError("an array of objects that is not a list of them")
        return [_plain(v, depth + 1) for v in content]
    if order not in ("C", "F") or any(side < 0 for side in sides):
        raise ValueError(f"an array of {sides} in order {order!r}")
    return np.frombuffer(_bytes(content), _dtype(dtype), math.prod(sides)).reshape(sides, order=order)


def _dtype(record: Any) -> np.dtype[Any]:
    code, byte_order = str(record.arguments[0]), str(record.state[1])
    if not (_NUMBERS.fullmatch(code) or _TEXTS.fullmatch(code)) or byte_order not in ("<", ">", "|", "="):
        raise ValueError(f"elements of type {byte_order!r} {code!r}")
    return np.dtype(f"{byte_order}{code}")


def _bytes(content: Any) -> bytes:
    """Bytes of an array, whichever way the protocol writes them."""
    if isinstance(content, _Record) and content.kind == _BYTES:
        text, encoding = content.arguments
        if encoding != "latin1":
            raise ValueError(f"bytes as {encoding}")
        return str(text).encode("latin1")
    if isinstance(content, str):  # a text of Python 2 is bytes
        return content.encode("latin1")
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    raise ValueError(f"{type(content).__name__} for bytes")
