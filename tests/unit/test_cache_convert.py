"""Exports come back bit for bit; other people's features become a group that says so."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cache.convert import Declared, Matching, import_group, match_ids, restore_group, to_stored
from cache.exports import FORMATS, export_group, npy_name
from cache.layout import CacheError, Status
from cache.sources import Layout, Source, open_source
from cache.store import FeatureGroup
from cache.verify import verify
from tests.unit.cache_groups import CLIPS, DIM, STATES, UNIT, VIEWS, flip, make_group

NAMES = ("a", "b/1", "c")
TABLE = np.random.default_rng(0).normal(size=(3, 2, 4))
DECLARED = Declared(
    "theirs", "video", "i3d", "kinetics-400 of the authors", views=("clean0", "weak0"), note="By a friend."
)


def exported(tmp_path: Path, format: str, **changes: object) -> tuple[FeatureGroup, list[Path]]:
    group = make_group(tmp_path, grown=3, **changes)  # type: ignore[arg-type]
    labels = {CLIPS[0]: ("kitchen", "run"), CLIPS[1]: ("hall", "walk")}
    return group, export_group(group, tmp_path / "out", format, labels)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("format", FORMATS)
def test_an_export_comes_back_bit_for_bit(tmp_path: Path, format: str, dtype: str) -> None:
    changes = {} if dtype == "float16" else {"settings": {"dtype": dtype}}
    group, paths = exported(tmp_path, format, **changes)
    report = restore_group(open_source(paths[0]), tmp_path / "again")
    again = FeatureGroup(Path(report.path))
    table, expected = again.load(), group.load()
    assert table.features.tobytes() == expected.features.tobytes()
    assert table.features.dtype == dtype
    assert (table.identity, table.records, table.clip_ids) == (expected.identity, expected.records, expected.clip_ids)
    assert again.digest() == group.digest() == report.digest
    assert (again.unit, again.clip_ids, again.notes) == (group.unit, group.clip_ids, group.notes)
    assert (report.present, [r.clip_id for r in report.failed]) == (8, [CLIPS[6]])
    assert verify(again.path).findings == ()
    index = pyarrow.parquet.read_table(paths[1]).to_pylist()
    assert [row["clip_id"] for row in index] == list(CLIPS)
    assert [row["row"] for row in index] == list(range(len(CLIPS)))
    assert [row["status"] for row in index] == [STATES.get(c, Status.PRESENT).name.lower() for c in CLIPS]
    assert (index[0]["domain"], index[0]["label"], index[2]["label"]) == ("kitchen", "run", None)
    assert index[6]["detail"] == f"why {CLIPS[6]} has none"
    with pytest.raises(CacheError, match="is there already"):
        export_group(group, tmp_path / "out", format)
    assert [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_restore_goes_on_where_it_stopped_and_refuses_damage(tmp_path: Path, format: str) -> None:
    group, paths = exported(tmp_path, format)
    source = open_source(paths[0])
    report = restore_group(source, tmp_path / "again")
    FeatureGroup(Path(report.path)).forget_unit(1)
    assert restore_group(source, tmp_path / "again").digest == group.digest()
    changed = paths[0] / npy_name(CLIPS[4], "video") if format == "npy" else paths[0]
    content = changed.read_bytes()
    position = content.index(group.load().features[4, 0].tobytes())
    flip(changed, position)
    with pytest.raises(CacheError, match=r"damaged|Fletcher32|checksum"):
        restore_group(open_source(paths[0]), tmp_path / "third")


def test_hdf5_reads_well_without_pipe(tmp_path: Path) -> None:
    group, paths = exported(tmp_path, "hdf5")
    with h5py.File(paths[0]) as file:
        assert file["features"].fletcher32
        assert file["features"].chunks == (UNIT, 1, DIM)
        assert file["features"][:].tobytes() == group.load().features.tobytes()
        assert file["clip_id"].asstr()[:].tolist() == list(CLIPS)
        assert file["views"].asstr()[:].tolist() == list(VIEWS)
        assert file["status"][:].tolist() == [STATES.get(c, Status.PRESENT) for c in CLIPS]
        assert file["detail"].asstr()[6] == f"why {CLIPS[6]} has none"
        assert json.loads(file.attrs["identity"]) == json.loads(json.dumps(group.identity.to_json()))
        assert file.attrs["digest"] == group.digest()


def test_npy_files_are_named_after_their_clips(tmp_path: Path) -> None:
    group, paths = exported(tmp_path, "npy")
    files = sorted(p.name for p in paths[0].glob("*.npy"))
    assert files[0] == "dir%2Fclip%2000%20%C3%BC_video.npy"
    assert len(files) == len(CLIPS) - len(STATES)
    assert np.load(paths[0] / files[0]).shape == (len(VIEWS), DIM)
    assert npy_name(".hidden", "audio") == "%2Ehidden_audio.npy"
    with pytest.raises(CacheError, match="too long"):
        npy_name("x" * 201, "audio")
    with pytest.raises(CacheError, match="hdf5, npy, safetensors"):
        export_group(group, tmp_path, "zip")


def test_unfinished_groups_are_not_exported(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    group.forget_unit(0)
    for format in FORMATS:
        with pytest.raises(CacheError, match="1 of 3 units"):
            export_group(group, tmp_path / "out", format)
    assert list((tmp_path / "out").iterdir()) == []


def foreign(tmp_path: Path, kind: str) -> Source:
    """The same table of two views as each kind of file has it."""
    path, layout = tmp_path / f"features{kind}", Layout()
    match kind:
        case ".h5":
            with h5py.File(path, "w") as file:
                file["a/feats"], file["names"] = TABLE, list(NAMES)
            layout = Layout("a/feats", "names")
        case ".hdf5":
            with h5py.File(path, "w") as file:
                for name, row in zip(("a", "b1", "c"), TABLE, strict=True):
                    file[name] = row
        case ".npy":
            np.save(path, TABLE[[2, 0, 1]])
            (tmp_path / "index.csv").write_text("row,clip_id\n1,a\n2,b/1\n0,c\n")
            layout = Layout(index=tmp_path / "index.csv")
        case ".pkl":
            path.write_bytes(pickle.dumps({"features": {"RGB": TABLE}, "narration_ids": np.array(NAMES)}))
            layout = Layout("features/RGB", "narration_ids")
        case ".pickle":
            path.write_bytes(pickle.dumps(dict(zip(NAMES, TABLE, strict=True))))
        case ".safetensors":
            save_file(dict(zip(NAMES, TABLE, strict=True)), path)
        case "":
            path.mkdir()
            for name, row in zip(("a", "b%2F1", "c"), TABLE, strict=True):
                np.save(path / f"{name}_rgb.npy", row)
                np.save(path / f"{name}_fps.npy", np.array(25.0))
            layout = Layout(suffix="_rgb")
    return open_source(path, layout)


@pytest.mark.parametrize("kind", [".h5", ".hdf5", ".npy", ".pkl", ".pickle", ".safetensors", ""])
def test_features_of_others_become_a_group(tmp_path: Path, kind: str) -> None:
    source = foreign(tmp_path, kind)
    rename = {"b1": "b/1"}
    assert source.known is None
    report = import_group(source, tmp_path / "cache", DECLARED, NAMES[::-1], Matching(rename))
    group = FeatureGroup(Path(report.path))
    table = group.load()
    assert table.clip_ids == NAMES[::-1]
    assert np.array_equal(table.features, TABLE[::-1].astype(np.float16))
    assert report.rounding == pytest.approx(np.abs(TABLE.astype(np.float16) / TABLE - 1).max())
    assert 0 < report.rounding < 2**-10
    known = group.identity
    assert (known.dataset, known.modality, known.backbone, known.tap) == ("theirs", "video", "i3d", "unknown")
    assert known.weights == "declared:kinetics-400 of the authors"
    assert known.settings["import"]["dtype"] == "float64"
    assert all(len(digest) == 64 for digest in known.settings["import"]["sha256"].values())
    assert "By a friend." in group.notes["import"]
    assert "not checked" in group.notes["weights"]
    assert verify(group.path).findings == ()
    digest = group.digest()
    group.forget_unit(0)
    assert import_group(source, tmp_path / "cache", DECLARED, NAMES[::-1], Matching(rename)).digest == digest


def test_without_a_text_the_file_stands_for_the_weights(tmp_path: Path) -> None:
    source = foreign(tmp_path, ".pkl")
    declared = Declared("theirs", "video", "i3d", views=("clean0", "weak0"), dtype="float32")
    report = import_group(source, tmp_path / "cache", declared)
    assert report.identity.weights.startswith("declared:file sha256:")
    assert report.identity.dtype == "float32"
    features = FeatureGroup(Path(report.path)).load().features
    assert np.array_equal(features, TABLE.astype(np.float32))
    with pytest.raises(CacheError, match="2 views per clip and 0 names"):
        import_group(source, tmp_path, Declared("theirs", "video", "i3d"))


def test_values_beyond_float16_fail_their_clip(tmp_path: Path) -> None:
    table = np.ones((5, 3), np.float32)
    table[1, 0], table[2, 1], table[3, 2], table[4, 0] = 65504.0, 65520.0, np.nan, 1e-7
    np.save(tmp_path / "x.npy", table)
    source = open_source(tmp_path / "x.npy")
    report = import_group(
        source, tmp_path / "cache", Declared("theirs", "audio", "v"), list("abcde"), Matching(by_position=True)
    )
    assert {r.clip_id: (r.code, r.detail) for r in report.failed} == {
        "c": ("not_finite", "the largest value is 65520; float16 holds up to 65504"),
        "d": ("not_finite", "1 values are NaN or Inf; float16 holds up to 65504"),
    }
    assert (report.present, report.underflowed, report.rounding) == (3, 1, 0.0)
    block = FeatureGroup(Path(report.path)).load()
    assert block.features[1, 0, 0] == 65504
    assert np.isnan(block.features[2]).all()
    assert not np.isinf(block.features).any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=6))
def test_nothing_becomes_infinite_in_silence(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)[:, None, None]
    stored, bad, error, _ = to_stored(values, np.dtype(np.float16))
    for row, number in enumerate(numbers):
        fits = bool(np.isfinite(number)) and abs(number) < 65520
        assert (row in bad) is not fits
        if fits:
            assert abs(float(stored[row, 0, 0]) - number) <= max(error * abs(number) * (1 + 1e-9), 2**-25)
    assert error <= 2**-11


def test_ids_that_do_not_match_are_listed_both_ways(tmp_path: Path) -> None:
    source = foreign(tmp_path, ".pkl")
    with pytest.raises(CacheError) as caught:
        match_ids(source, ["a", "d", "e"], Matching())
    message = str(caught.value)
    assert "2 of 3 clips of the manifest are not in the file: 'd', 'e'" in message
    assert "2 of 3 clips of the file are not in the manifest: 'b/1', 'c'" in message
    with pytest.raises(CacheError, match="not in the manifest"):
        match_ids(source, ["a", "d"], Matching(allow_missing=True))
    with pytest.raises(CacheError, match="not in the file"):
        match_ids(source, ["a", "d"], Matching(drop_extra=True))
    report = import_group(source, tmp_path, DECLARED, ["a", "d"], Matching(drop_extra=True, allow_missing=True))
    assert report.dropped == ("b/1", "c")
    assert [(r.clip_id, r.code) for r in report.failed] == [("d", "not_imported")]
    with pytest.raises(CacheError, match="'a' twice"):
        match_ids(source, None, Matching({"c": "a"}))
    with pytest.raises(CacheError, match=r"3 rows of .* with 2 clips"):
        match_ids(source, ["x", "y"], Matching(by_position=True))
    with pytest.raises(CacheError, match="no manifest"):
        match_ids(source, None, Matching(by_position=True))
    np.save(tmp_path / "bare.npy", TABLE)
    with pytest.raises(CacheError, match="no clip ids"):
        match_ids(open_source(tmp_path / "bare.npy"), list(NAMES), Matching())


def test_rows_that_are_times_are_averaged_only_if_said(tmp_path: Path) -> None:
    for name, length in (("a", 3), ("b", 5)):
        np.save(tmp_path / f"{name}.npy", np.full((length, 2), length, np.float32) + np.arange(length)[:, None])
    source = open_source(tmp_path)
    with pytest.raises(CacheError, match=r"'b' has float64 \(5, 2\), clip 'a' float64 \(3, 2\).*average-rows"):
        source.read([0, 1])
    source = open_source(tmp_path, Layout(average_rows=True))
    assert source.read([1, 0])[:, 0, 0].tolist() == [7.0, 4.0]
    assert (source.views, source.dim) == (1, 2)


@pytest.mark.parametrize(
    ("name", "content", "layout", "reason"),
    [
        ("x.zip", b"", Layout(), "is not known"),
        ("x.npy", b"junk", Layout(), "cannot be read as an array"),
        ("x.h5", b"junk", Layout(), "cannot be read as HDF5"),
        ("x.safetensors", b"junk", Layout(), "cannot be read as safetensors"),
        ("x.pkl", b"junk", Layout(), "no pickle of arrays"),
        ("x.pkl", pickle.dumps({"a": {"b": 1}}), Layout(), "is no array"),
        ("x.pkl", pickle.dumps({"a": {"b": 1}}), Layout("a/c"), "has no 'a/c'; where 'c' should be it holds b"),
        ("x.pkl", pickle.dumps({"a": TABLE, "i": ["1"]}), Layout("a", "i"), "1 ids for 3 rows"),
        ("x.pkl", pickle.dumps({"a": {"u": TABLE}, "i": ["1"]}), Layout("a", "i"), "name no others"),
        ("x.pkl", pickle.dumps({}), Layout(), "holds no features"),
    ],
)
def test_files_that_are_no_features(tmp_path: Path, name: str, content: bytes, layout: Layout, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CacheError, match=reason):
        open_source(path, layout)
    with pytest.raises(CacheError, match="is not there"):
        open_source(tmp_path / "nothing.npy")


def test_indices_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", TABLE)
    index = tmp_path / "i.csv"
    for text, reason in (
        ("clip_id\na\n", "no column 'row'"),
        ("name,row\na,0\n", "no column 'clip_id'"),
        ("clip_id,row\na,3\n", "row 3 of 3"),
        ("clip_id,row\na,0\nb,0\n", "one row for two clips"),
    ):
        index.write_text(text)
        with pytest.raises(CacheError, match=reason):
            open_source(tmp_path / "x.npy", Layout(index=index))
    table = pyarrow.table({"clip_id": list(NAMES), "row": [2, 1, 0]})
    pyarrow.parquet.write_table(table, tmp_path / "i.parquet")
    source = open_source(tmp_path / "x.npy", Layout(index=tmp_path / "i.parquet"))
    assert np.array_equal(source.read([0, 2]), TABLE[[2, 0]])


def test_restoring_needs_an_export_of_pipe(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="was not exported by pipe"):
        restore_group(foreign(tmp_path, ".pkl"), tmp_path)
    _, paths = exported(tmp_path, "npy")
    texts = json.loads((paths[0] / "description.json").read_text())
    (paths[0] / "description.json").write_text(json.dumps({**texts, "format": "pipe-cache-9"}))
    with pytest.raises(CacheError, match="pipe-cache-9"):
        open_source(paths[0])
    (paths[0] / "description.json").write_text(json.dumps({**texts, "unit": "x"}))
    with pytest.raises(CacheError, match="damaged"):
        open_source(paths[0])
