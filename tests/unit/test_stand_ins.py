"""Arrays in pickles of every age are rebuilt from numbers alone; what a file forges about them comes to nothing."""

from __future__ import annotations

import collections
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extractors.checkpoint_files import read_checkpoint
from tests.unit.test_checkpoint_files import packed_again, refusal


class Opcodes(bytes):
    """Part of a pickle that stands as it is."""


def python2(value: Any) -> bytes:
    """Opcodes for a value as Python 2 pickled it: text and arrays as byte strings."""
    if isinstance(value, Opcodes):
        return value
    if isinstance(value, bytes):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, str):
        return python2(value.encode("latin1"))
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if value is None:
        return b"N"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(python2, value)) + b"t"
    if isinstance(value, np.dtype):
        code, order = value.str[1:], value.str[0]
        state = python2((3, order, None, None, None, -1, -1, 0))
        return b"cnumpy\ndtype\n" + python2((code, 0, 1)) + b"R" + state + b"b"
    if isinstance(value, np.ndarray):
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + python2((0,)) + python2(b"b") + b"tR"
        fortran = bool(value.flags.f_contiguous and value.ndim > 1)
        content = (1, value.shape, value.dtype, fortran, value.tobytes("F" if fortran else "C"))
        return made + python2(content) + b"b"
    assert isinstance(value, np.generic)
    return b"cnumpy.core.multiarray\nscalar\n" + python2((value.dtype, value.tobytes())) + b"R"


def same(data: bytes, _: bytes) -> bytes:
    """Take the place of other bytes."""
    return data


def whole(value: Any) -> bytes:
    """A Python 2 pickle of a value."""
    return b"\x80\x02" + python2(value) + b"."


def blobs() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "conv1_w": generator.standard_normal((8, 3, 5, 7, 7), np.float32),
        "columns": np.asfortranarray(generator.standard_normal((3, 4), np.float32)),
        "big_endian": np.arange(5, dtype=">f8"),
        "step": np.array([12], dtype=np.int64),
        "lr": np.float32(0.25),
        "none": np.zeros((0, 3), np.float32),
    }


def test_caffe2_files_of_python_2_read_as_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(whole({"blobs": blobs(), "cfg": "NUM_GPUS: 8"}))
    content = read_checkpoint(tmp_path / "a.pkl")
    assert content["cfg"] == "NUM_GPUS: 8"
    found: Any = content["blobs"]
    assert list(found) == list(blobs())
    for name, expected in blobs().items():
        assert type(found[name]) is np.ndarray
        assert found[name].dtype.isnative
        assert found[name].dtype.itemsize == expected.dtype.itemsize
        np.testing.assert_array_equal(found[name], expected)
    assert torch.from_numpy(found["conv1_w"]).mul_(2).shape == (8, 3, 5, 7, 7)


def test_caffe2_files_that_python_3_wrote_for_python_2_read_alike(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": collections.OrderedDict(blobs())}, 2))
    found: Any = read_checkpoint(tmp_path / "a.pkl")["blobs"]
    for name, expected in blobs().items():
        np.testing.assert_array_equal(found[name], expected)


def test_a_checkpoint_of_python_2_reads(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth")
    pi = np.float64(np.pi)  # its bytes are no utf-8
    change = whole({"best": pi, "epoch": 3})
    packed_again(tmp_path / "a.pth", tmp_path / "b.pth", zipfile.ZIP_STORED, partial(same, change))
    assert read_checkpoint(tmp_path / "b.pth") == {"best": pi, "epoch": 3}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (whole({"weights": {}}), "holds no 'blobs'"),
        (whole((1, 2)), "holds no 'blobs'"),
        (whole({"blobs": {"a": np.arange(3), "b": "text"}}), "no arrays of numbers: b"),
        (whole({"blobs": {"a": np.arange(30.0)}})[:-40], "is damaged"),
        (b"\x80\x02r\xff\xff\xff\xff.", "slot 4294967295"),
    ],
)
def test_other_pickles_are_no_caffe2_files(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    assert said in refusal(tmp_path / "a.pkl")


def forged(code: str, state: tuple[Any, ...]) -> Opcodes:
    """An array of one element of eight bytes with a forged element type."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + python2(((0,), b"b"))[1:] + b"R"
    element = Opcodes(b"cnumpy\ndtype\n" + python2((code, 0, 1)) + b"R" + python2(state) + b"b")
    return Opcodes(made + python2((1, (1,), element, False, b"\x41" * 8)) + b"b")


@pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
def test_bytes_are_never_taken_for_addresses(tmp_path: Path, name: str) -> None:
    """An element type may say that it holds objects and hide it from NumPy, which then follows the file's bytes."""
    plain = (3, "|", None, None, None, -1, -1, 0)
    objects = Opcodes(b"cnumpy\ndtype\n" + python2(("O8", 0, 1)) + b"R" + python2(plain) + b"b")
    cases = {
        "'S0'": forged("S0", plain),  # any number of them fits into nothing
        "compound elements": forged("V8", (3, "|", None, ("a",), {"a": (objects, 0)}, 8, 1, 0)),
        "does not fill": forged("O8", plain),
        "elements of type": forged("V8", plain),
    }
    torch.save({"a": torch.ones(3)}, tmp_path / "t.pth")
    for said, array in cases.items():
        data = whole({"blobs": {"a": array}})
        (tmp_path / name).write_bytes(data)
        if name == "a.pth":
            packed_again(tmp_path / "t.pth", tmp_path / name, zipfile.ZIP_STORED, partial(same, data))
        assert said in refusal(tmp_path / name)
