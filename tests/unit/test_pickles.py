"""Pickled data frames are read as data: nothing that a file names is run, and whatever is wrong is said."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.datasets.pickles import ADMITTED, read_frame
from pipeline.errors import ManifestError
from tests.miniatures import epic

TABLE = epic.rows("D1", "train", "P08_01", 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.pkl"


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        read_frame(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


def objects(frame: pd.DataFrame) -> pd.DataFrame:
    """Text as Python objects, as pandas before version 3 keeps it."""
    frame = frame.astype({n: object for n in frame.columns if not pd.api.types.is_numeric_dtype(frame[n])})
    frame.columns = pd.Index(list(frame.columns), dtype=object)
    return frame


@pytest.mark.parametrize("protocol", range(2, 6))
def test_columns_come_back_in_order_with_plain_values(path: Path, protocol: int) -> None:
    frame = objects(pd.DataFrame(TABLE))
    frame["share"] = np.linspace(0, 1, len(TABLE))
    path.write_bytes(pickle.dumps(frame, protocol=protocol))
    columns = read_frame(path)
    assert list(columns) == [*epic.COLUMNS, "share"]
    assert columns == {name: frame[name].tolist() for name in frame.columns}
    assert {type(value) for values in columns.values() for value in values} == {int, str, float}


def test_rows_taken_out_leave_the_others_in_place(path: Path) -> None:
    frame = objects(pd.DataFrame(TABLE)).astype({"start_frame": object})
    frame = frame[frame["uid"] != TABLE[3]["uid"]]
    path.write_bytes(pickle.dumps(frame, protocol=4))
    columns = read_frame(path)
    assert columns["uid"] == [row["uid"] for i, row in enumerate(TABLE) if i != 3]
    assert columns["start_frame"] == [row["start_frame"] for i, row in enumerate(TABLE) if i != 3]


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, "eval"), (pd.read_pickle, "read_pickle"), (getattr, "getattr")],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    path: Path, function: Any, name: str, protocol: int
) -> None:
    trace = path.parent / "was-here"
    call = f"touch {trace}" if function is os.system else f"open({str(trace)!r}, 'w')"
    frame = objects(pd.DataFrame(TABLE))
    frame["verb"] = [Runs(function, call), *frame["verb"][1:]]  # hidden in a value of a sound table
    for content in (Runs(function, call), frame):
        message = refusal(path, pickle.dumps(content, protocol=max(protocol, 2) if content is frame else protocol))
        assert name in message
        assert "could run code on this machine and was not loaded" in message
    assert not trace.exists()


def test_only_the_listed_names_are_admitted() -> None:
    assert all(name.startswith(("pandas.", "numpy.")) or name.endswith((".slice", ".encode")) for name in ADMITTED)
    harmful = ("eval", "exec", "getattr", "system", "import", "load", "open", "pickle.", "_pickle", "apply")
    assert not any(word in name for name in ADMITTED for word in harmful)


def test_admitted_names_build_nothing_and_keep_nothing(path: Path) -> None:
    # The class of frames gets a state of its own, then a frame is asked for: no later file may see the first one's.
    attack = b"\x80\x04cpandas.core.frame\nDataFrame\n}\x8c\x05state\x8c\x01xsb."
    assert "TypeError" in refusal(path, attack) or "argument" in refusal(path, attack)
    path.write_bytes(pickle.dumps(objects(pd.DataFrame(TABLE)), protocol=4))
    assert len(read_frame(path)["uid"]) == len(TABLE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; download it again"),
        (b"uid,video_id\n1,P08_01\n", "is no pickle, or a damaged one"),
        (b"<!DOCTYPE html><html>", "it begins with b'<!DOCTYPE html><html>'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it begins with b'version https://git-lfs."),
        (b"\x80\x04", "is no pickle, or a damaged one"),
        (b"\x80\x04K\x01r\xff\xff\xff\xfe.", "slot 4278190079"),
        (pickle.dumps([1, 2]), "holds no pandas data frame but: list; is it the right file?"),
        (pickle.dumps({"uid": [1]}), "holds no pandas data frame but: dict"),
        (pickle.dumps(np.arange(3), protocol=4), "holds no pandas data frame but: array"),
        (pickle.dumps(objects(pd.DataFrame(TABLE))["uid"], protocol=4), "Series"),
        (pickle.dumps(pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}), protocol=4), "asks for"),
        (pickle.dumps(objects(pd.DataFrame({"c": [1 + 2j]})), protocol=4), "elements of type"),
    ],
)
def test_what_is_no_table_is_refused(path: Path, data: bytes, message: str) -> None:
    assert message in refusal(path, data)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.pkl"):
        with pytest.raises(ManifestError, match="cannot be read"):
            read_frame(path)


def test_damage_anywhere_is_a_message_or_other_values(path: Path) -> None:
    epic.write_table(path, TABLE)
    whole = path.read_bytes()
    for length in range(1, len(whole) - 1, 97):
        assert "damaged" in refusal(path, whole[:length])
    draw = np.random.default_rng(5)
    refused = 0
    for place, bit in zip(draw.integers(0, len(whole), 250), draw.integers(0, 8, 250), strict=True):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            columns = read_frame(path)
        except ManifestError:
            refused += 1
            continue
        assert {len(column) for column in columns.values()} == {len(TABLE)}
    assert refused > 50
