"""A manifest as a Parquet file: the same clips and the same messages as from CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import DatasetRequest, load_dataset
from pipeline.datasets.manifest import read_manifest
from pipeline.errors import ManifestError
from pipeline.types import Manifest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Columns = Mapping[str, Sequence[object]]

TABLE: dict[str, Sequence[object]] = {
    "clip_id": ["c1", "c,2"],
    "path": ["a.mp4", "deep/b, final.mp4"],
    "label": ["wave", "spin"],
    "domain": ["yard", "kitchen, old"],
    "split": ["train", "test"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two media files."""
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "a.mp4").write_bytes(b"")
    (data / "deep" / "b, final.mp4").write_bytes(b"")
    return data


def write(folder: Path, columns: Columns, **types: object) -> Path:
    path = folder / "manifest.parquet"
    pq.write_table(pa.table({k: pa.array(v, types.get(k)) for k, v in columns.items()}), path)
    return path


def read(folder: Path, columns: Columns, **types: object) -> Manifest:
    return read_manifest(write(folder, columns, **types))


def refusal(folder: Path, columns: Columns, **types: object) -> str:
    with pytest.raises(ManifestError) as caught:
        read(folder, columns, **types)
    return str(caught.value)


def test_the_clips_are_those_of_the_same_csv(folder: Path) -> None:
    columns = {
        **TABLE,
        "start": [None, 1.5],
        "stop": [None, 4],
        "group": [None, " film 7 "],
        "rate_hz": [None, "29.97"],
    }
    found = read(folder, columns)
    (folder / "manifest.csv").write_text(
        "clip_id,path,label,domain,split,start,stop,group,rate_hz\n"
        'c1,a.mp4,wave,yard,train,,,,\n"c,2","deep/b, final.mp4",spin,"kitchen, old",test,1.5,4,film 7,29.97\n'
    )
    assert found == read_manifest(folder / "manifest.csv")
    assert found.digest == read_manifest(folder / "manifest.csv").digest
    assert found.clips[1].end_seconds == 4.0
    assert load_dataset(str(folder / "manifest.parquet"), DatasetRequest(folder, name="mine")).dataset == "mine"


@pytest.mark.parametrize("kind", ["int64", "uint8", "int32"])
def test_ids_labels_and_domains_may_be_whole_numbers(folder: Path, kind: str) -> None:
    numbers = {name: [1, 2] for name in ("clip_id", "label", "domain")}
    manifest = read(folder, {**TABLE, **numbers}, **{name: getattr(pa, kind)() for name in numbers})
    assert [(c.clip_id, c.label, c.domain) for c in manifest.clips] == [("1", "1", "1"), ("2", "2", "2")]


@pytest.mark.parametrize(
    ("kind", "values"),
    [("float64", [1.5, None]), ("float32", [1.5, None]), ("float16", np.array([1.5, 2.5], np.float16)), ("null", None)],
)
def test_every_kind_of_number_is_one(folder: Path, kind: str, values: Sequence[object] | None) -> None:
    rows = [None, None] if values is None else values
    first, _ = read(folder, {**TABLE, "start": rows}, start=getattr(pa, kind)()).clips
    assert first.start_seconds == (None if values is None else 1.5)
    first, _ = read(folder, {**TABLE, "start": [Decimal("1.50"), None]}, start=pa.decimal128(5, 2)).clips
    assert first.start_seconds == 1.5


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_kind_of_text_is_one(folder: Path, kind: str) -> None:
    text = pa.dictionary(pa.int8(), pa.string()) if kind == "dictionary" else getattr(pa, kind)()
    assert read(folder, TABLE, **dict.fromkeys(TABLE, text)) == read(folder, TABLE)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [1.0, 2.0], "column 'label' is of type double; it must hold text or whole numbers"),
        ("path", [1, 2], "column 'path' is of type int64; it must hold text"),
        ("split", [True, False], "column 'split' is of type bool; it must hold text"),
        ("path", [b"a", b"b"], "column 'path' is of type binary"),
        ("start", [True, False], "column 'start' is of type bool; it must hold numbers or text"),
        ("start", [[1.0], [2.0]], "column 'start' is of type list<"),
        ("start", [np.datetime64(1, "s"), None], "column 'start' is of type timestamp"),
    ],
)
def test_a_column_of_a_wrong_type_is_named(folder: Path, column: str, values: Sequence[object], message: str) -> None:
    assert message in refusal(folder, {**TABLE, column: values})


def test_faulty_rows_are_listed_by_their_number(folder: Path) -> None:
    columns = {name: [*values, *values, None] for name, values in TABLE.items()}
    columns["split"] = ["train", "tset", "train", "test", None]
    columns["start"] = [float("nan"), None, None, -1.0, None]
    message = refusal(folder, columns)
    assert "has 3 faulty of 4 rows:\n  row 1: start is 'nan'; it must be finite" in message
    assert "row 2: split 'tset' is none of train, val, test. Did you mean 'test'?" in message
    assert "row 4: clip 'c,2': start is -1.0" in message
    columns = {name: [*values, *values[:1]] for name, values in TABLE.items()}
    assert "row 3: clip_id 'c1' was used in row 1 already" in refusal(folder, columns)
    assert "row 1: clip_id is empty" in refusal(folder, {**TABLE, "clip_id": [None, "c"]})
    assert "lies outside the root" in refusal(folder, {**TABLE, "path": ["../secret.mp4", "a.mp4"]})


def test_columns_are_checked_before_rows(folder: Path) -> None:
    assert "lacks the column(s) path" in refusal(folder, {k: v for k, v in TABLE.items() if k != "path"})
    assert "unknown column 'strat'. Did you mean 'start'?" in refusal(folder, {**TABLE, "strat": [1, 2]})
    assert "write it with index=False" in refusal(folder, {**TABLE, "__index_level_0__": [1, 2]})
    twice = pa.table([pa.array(["x"])] * 6, names=[*TABLE, "path"])
    pq.write_table(twice, folder / "twice.parquet")
    with pytest.raises(ManifestError, match="has the column 'path' twice"):
        read_manifest(folder / "twice.parquet")
    empty: dict[str, list[object]] = {name: [] for name in TABLE}
    assert "has columns and no rows" in refusal(folder, empty, **dict.fromkeys(TABLE, pa.string()))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"clip_id,path,label,domain,split\n", b"PAR1" * 40])
def test_a_file_that_is_no_parquet_is_refused(folder: Path, content: bytes) -> None:
    path = folder / "manifest.parquet"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="cannot be read as Parquet"):
        read_manifest(path)


def test_text_that_is_not_utf8_is_refused(folder: Path) -> None:
    path = folder / "manifest.parquet"
    table = pa.table({**TABLE, "path": ["xxxxxxxx.mp4", "a.mp4"]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(path.read_bytes().replace(b"xxxxxxxx", b"\xff" * 8))
    with pytest.raises(ManifestError, match="cannot be read as Parquet"):
        read_manifest(path)


def test_damage_anywhere_is_a_message_or_a_readable_table(folder: Path) -> None:
    path = folder / "manifest.parquet"
    columns = {name: [str(value) for value in values] * 50 for name, values in TABLE.items()}
    columns["clip_id"] = [f"c{i}" for i in range(100)]
    columns["split"] = ["train"] * 100
    table = pa.table(columns)
    pq.write_table(table, path, write_page_checksum=True)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        else:
            for place in rng.integers(0, len(data), 1 + trial % 5):
                data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            read_manifest(path)
        except ManifestError:
            refused += 1
    print(f"{refused} of 300 damaged files refused")
    assert refused >= 100


def test_a_folder_called_like_a_column_adds_no_column(folder: Path) -> None:
    below = folder / "split=test"
    below.mkdir()
    path = write(folder, TABLE).rename(below / "manifest.parquet")
    assert [c.split for c in read_manifest(path, folder, "mine").clips] == ["train", "test"]


def test_a_link_that_leads_to_itself_is_a_faulty_row(folder: Path) -> None:
    (folder / "loop.mp4").symlink_to("loop.mp4")
    assert "row 2: path 'loop.mp4' is not a path of this system" in refusal(
        folder, {**TABLE, "path": ["a.mp4", "loop.mp4"]}
    )
