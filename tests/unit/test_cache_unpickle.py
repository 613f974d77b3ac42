"""Pickles of arrays are read as data: nothing that a file names is run."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.layout import CacheError
from cache.unpickle import read_pickle

CONTENT = {
    "features": {
        "RGB": np.arange(12.0).reshape(4, 3),
        "Flow": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
    },
    "ids": np.array(["a", "bü"]),
    "objects": np.array(["x", None, 3], dtype=object),
    "scalar": np.float64(3.5),
    "list": [np.arange(3), (1, "x", b"y", True, None)],
    "ordered": collections.OrderedDict(a=1, b=np.ones(2, np.float16)),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_whatever_the_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    content = CONTENT if protocol > 2 else {k: v for k, v in CONTENT.items() if k != "list"}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(path)
    for name, array in CONTENT["features"].items():  # type: ignore[attr-defined]
        assert np.array_equal(read["features"][name], array)
        assert read["features"][name].dtype == array.dtype
    assert read["ids"].tolist() == ["a", "bü"]
    assert read["objects"] == ["x", None, 3]
    assert read["scalar"] == 3.5
    assert read["ordered"]["a"] == 1
    assert read["ordered"]["b"].tolist() == [1.0, 1.0]
    if protocol > 2:
        assert read["list"][0].tolist() == [0, 1, 2]
        assert read["list"][1] == [1, "x", b"y", True, None]


class Runs:
    """Pickles as a call."""

    def __init__(self, called: object, *arguments: object) -> None:
        self.call = called, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("called", [os.system, eval, getattr, np.load, np.fromfile, Path])
def test_nothing_is_run(tmp_path: Path, called: object) -> None:
    path, trace = tmp_path / "x.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"a": Runs(called, f"touch {trace}")}))
    with pytest.raises(CacheError, match="could run code"):
        read_pickle(path)
    assert not trace.exists()


def test_tensors_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    good = pickle.dumps(CONTENT)
    deep: list[object] = []
    for _ in range(40):
        deep = [deep]
    for content in (
        pickle.dumps(torch.ones(2)),
        b"",
        b"PK",
        good[:-30],
        pickle.dumps(deep),
        b"\x80\x04j\xff\xff\xff\x7f.",
    ):
        path.write_bytes(content)
        with pytest.raises(CacheError):
            read_pickle(path)
    with pytest.raises(CacheError, match="cannot be read"):
        read_pickle(tmp_path / "nothing.pkl")


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_changed_byte_gives_plain_values_or_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    raw = bytearray(pickle.dumps({"a": np.arange(4.0), "ids": np.array(["x", "y"])}))
    raw[position % len(raw)] = byte
    path = tmp_path_factory.getbasetemp() / "changed.pkl"
    path.write_bytes(bytes(raw))
    try:
        read = read_pickle(path)
    except CacheError:
        return
    assert isinstance(read, dict | list | np.ndarray | str | int | float | bytes | bool | None)
