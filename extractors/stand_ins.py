"""What a checkpoint's pickle may ask for beside tensors, and the stand-ins that it gets.

NumPy's own way to rebuild arrays is not safe with files of strangers: a forged element type makes it take a file's
bytes for addresses. The stand-ins make arrays and scalars of plain numbers and text, and everything else inert.
"""

from __future__ import annotations

import math
import re
from argparse import Namespace
from collections import OrderedDict
from typing import Any, SupportsIndex

import numpy as np

_ELEMENTS = re.compile(r"[iufc]\d{1,2}|b1|[SU][1-9]\d{0,3}|O\d?")  # element types that are built


class _Named:
    """Stands for a class that a file merely mentions."""

    def __init__(self, *arguments: object) -> None:
        del arguments


class _ElementType:
    """Stands for ``numpy.dtype``: a code and a byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise ValueError("an array of compound elements")
        self.order = state[1]

    def plain(self) -> np.dtype[Any]:
        """The element type itself, made anew from its code."""
        if _ELEMENTS.fullmatch(self.code) is None or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"elements of type {self.order!r} {self.code!r}")
        return np.dtype(object) if self.code[0] == "O" else np.dtype(f"{self.order}{self.code}")


class _Array(np.ndarray[Any, Any]):
    """Stands for ``numpy.core.multiarray._reconstruct``: makes the empty array that its state then fills."""

    def __new__(cls, *_: object) -> _Array:
        return super().__new__(cls, (0,), np.dtype(np.uint8))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, sides, element_type, column_major, content = state
        shape = tuple(int(side) for side in sides)
        plain = element_type.plain()
        count = math.prod(shape)
        if plain.hasobject:
            fits = isinstance(content, list) and len(content) == count
        else:
            content = _raw(content)
            fits = len(content) == count * plain.itemsize
        if self.shape != (0,) or min(shape, default=0) < 0 or not fits:
            raise ValueError(f"content that does not fill an array of {shape}")
        super().__setstate__((1, shape, plain, bool(column_major), content))  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


class _Scalar:
    """Stands for ``numpy.core.multiarray.scalar``."""

    def __new__(cls, element_type: _ElementType, content: object) -> Any:
        return np.frombuffer(_raw(content), element_type.plain(), count=1)[0]


class _PlainDict:
    """Stands for ``collections.defaultdict``: a file's values, not what it would make of missing ones."""

    def __new__(cls, *_: object) -> Any:
        return {}


class _Latin1:
    """Stands for ``_codecs.encode``: how Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise ValueError(f"bytes as {encoding!r}")
        return text.encode("latin1")


class _NoBytes:
    """Stands for ``bytes``, which is asked for where an array is empty."""

    def __new__(cls) -> Any:
        return b""


def _raw(content: object) -> bytes:
    """Bytes of an array; Python 2 wrote them as text."""
    if isinstance(content, str):
        return content.encode("latin1")
    if isinstance(content, (bytes, bytearray)):
        return bytes(content)
    raise ValueError(f"{type(content).__name__} for bytes")


_NUMPY: dict[str, type] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _Scalar,
    "numpy._core.multiarray.scalar": _Scalar,
    "numpy.ndarray": _Named,
    "numpy.dtype": _ElementType,
    "builtins.bytes": _NoBytes,
    "__builtin__.bytes": _NoBytes,
}
# What a training program leaves beside the tensors: its options, its best accuracy, counts per class.
BESIDE_TENSORS: dict[str, type] = {
    **_NUMPY,
    "argparse.Namespace": Namespace,
    "collections.defaultdict": _PlainDict,
    "builtins.dict": _Named,
    "builtins.float": _Named,
    "builtins.int": _Named,
    "builtins.list": _Named,
}
CAFFE2: dict[str, type] = {**_NUMPY, "collections.OrderedDict": OrderedDict, "_codecs.encode": _Latin1}
