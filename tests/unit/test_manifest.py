"""Your own data: what a CSV manifest may look like, and what is said about one that cannot be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.datasets import DatasetRequest, load_dataset
from pipeline.datasets.manifest import dataset_name, read_manifest
from pipeline.errors import ManifestError, UsageError
from pipeline.types import Manifest

HEADER = "clip_id,path,label,domain,split"
ROW = "c1,a.mp4,wave,yard,train"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two media files."""
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "a.mp4").write_bytes(b"")
    (data / "deep" / "b, final.mp4").write_bytes(b"")
    return data


def read(folder: Path, text: str | bytes, **options: object) -> Manifest:
    path = folder / "manifest.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_manifest(path, **options)  # type: ignore[arg-type]


def refusal(folder: Path, text: str | bytes, **options: object) -> str:
    with pytest.raises(ManifestError) as caught:
        read(folder, text, **options)
    return str(caught.value)


def table(*rows: str, header: str = HEADER) -> str:
    return "\n".join([header, *rows]) + "\n"


def test_byte_order_mark_line_endings_spaces_and_quoted_commas(folder: Path) -> None:
    text = (
        "\ufeff clip_id , path,label, domain ,split , start,stop, group ,rate_hz\r\n"
        "c1, a.mp4 , wave ,yard,train,,,,\r\n"
        '"c,2", "deep/b, final.mp4",spin,"kitchen, old",test, 1.5 ,4,film 7,29.97\r\n'
        ",,,,,,,,\r\n\r\n"
    )
    manifest = read(folder, text)
    first, second = manifest.clips
    assert (first.clip_id, first.label, first.domain, first.split) == ("c1", "wave", "yard", "train")
    assert first.media == {"video": folder / "a.mp4"}
    assert (first.start_seconds, first.end_seconds, first.rate_hz, first.group) == (None, None, None, "c1")
    assert (second.clip_id, second.domain, second.group) == ("c,2", "kitchen, old", "film 7")
    assert second.media == {"video": folder / "deep" / "b, final.mp4"}
    assert (second.start_seconds, second.end_seconds, second.rate_hz) == (1.5, 4.0, 29.97)
    assert manifest.classes == ("spin", "wave")
    assert manifest.domains == ("kitchen, old", "yard")
    assert (manifest.dataset, manifest.root) == ("data", folder)


def test_every_kind_of_media_has_its_column(folder: Path) -> None:
    text = table("c1,a.mp4,wave,yard,train,a.wav,flow/c1", header=f"{HEADER},audio_path,flow_path")
    assert read(folder, text).clips[0].media == {
        "video": folder / "a.mp4",
        "audio": folder / "a.wav",
        "flow": folder / "flow" / "c1",
    }


def test_class_order_comes_from_the_class_list(folder: Path) -> None:
    (folder / "classes.txt").write_text("wave\nspin\n\n")
    assert read(folder, table(ROW)).classes == ("wave", "spin")
    (folder / "classes.txt").write_text("wave\nspin\nwave\n")
    assert "names a class twice" in refusal(folder, table(ROW))


def test_a_label_that_is_not_in_the_class_list_is_refused(folder: Path) -> None:
    (folder / "classes.txt").write_text("wave\nspin\n")
    message = refusal(folder, table(ROW, "c2,a.mp4,wawe,yard,train"))
    assert "line 3: label 'wawe' is not in the class list. Did you mean 'wave'? Classes: wave, spin" in message


def test_a_missing_column_is_named_with_the_nearest_one(folder: Path) -> None:
    message = refusal(folder, table("c1,a.mp4,wave,yard,train", header="clip_id,path,labels,domain,split"))
    assert "lacks the column(s) label. Did you mean 'labels'?" in message
    assert "Found: clip_id, path, labels, domain, split" in message


def test_an_unknown_column_is_named_with_the_nearest_one(folder: Path) -> None:
    message = refusal(folder, table(f"{ROW},3", header=f"{HEADER},strat"))
    assert "has the unknown column 'strat'. Did you mean 'start'?" in message


def test_a_column_that_stands_twice_is_refused(folder: Path) -> None:
    assert "'path'" in refusal(folder, table(f"{ROW},deep/b.mp4", header=f"{HEADER},path"))


def test_a_duplicate_id_names_both_lines(folder: Path) -> None:
    message = refusal(folder, table(ROW, "c2,a.mp4,wave,yard,val", "c1,a.mp4,spin,yard,test"))
    assert "line 4: clip_id 'c1' was used in line 2 already" in message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c1,a.mp4,wave,yard,trian", "split 'trian' is none of train, val, test. Did you mean 'train'?"),
        ("c1,a.mp4,,yard,train", "label is empty"),
        ("c1,a.mp4,wave,,train", "domain is empty"),
        (",a.mp4,wave,yard,train", "clip_id is empty"),
        ("c1,,wave,yard,train", "clip 'c1' has no media; give at least one of path, audio_path, flow_path"),
    ],
)
def test_a_faulty_value_is_named_with_its_line(folder: Path, row: str, message: str) -> None:
    assert f"has 1 faulty of 2 rows:\n  line 3: {message}" in refusal(folder, table("ok,a.mp4,spin,yard,test", row))


@pytest.mark.parametrize(
    ("start", "stop", "rate", "message"),
    [
        ("3", "3", "", "stop 3.0 s is not after start 3.0 s"),
        ("3", "2", "", "stop 2.0 s is not after start 3.0 s"),
        ("", "0", "", "stop 0.0 s is not after start 0.0 s"),
        ("-1", "", "", "start is -1.0; it must be a finite number >= 0"),
        ("0:03", "", "", "start is '0:03'; write a number"),
        ("nan", "", "", "start is 'nan'; it must be finite"),
        ("", "inf", "", "stop is 'inf'; it must be finite"),
        ("", "", "fast", "rate_hz is 'fast'; write a number"),
        ("", "", "0", "rate_hz"),
        ("", "", "-25", "rate_hz"),
    ],
)
def test_impossible_times_and_rates_are_refused(folder: Path, start: str, stop: str, rate: str, message: str) -> None:
    assert message in refusal(folder, table(f"{ROW},{start},{stop},{rate}", header=f"{HEADER},start,stop,rate_hz"))


def test_media_outside_the_root_need_leave(folder: Path) -> None:
    outside = folder.parent / "secret.mp4"
    outside.write_bytes(b"")
    for path in ("../secret.mp4", "deep/../../secret.mp4", str(outside)):
        text = table(f"c1,{path},wave,yard,train")
        message = refusal(folder, text)
        assert f"line 2: path {path!r} lies outside the root {folder}" in message
        assert "--outside" in message
        assert read(folder, text, outside=True).clips[0].media == {"video": outside}


def test_a_link_that_leaves_the_root_is_refused(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    outside.mkdir()
    (outside / "b.mp4").write_bytes(b"")
    (folder / "inside").symlink_to(folder / "deep", target_is_directory=True)
    (folder / "link").symlink_to(outside, target_is_directory=True)
    assert read(folder, table('c1,"inside/b, final.mp4",wave,yard,train')).clips
    text = table("c1,link/b.mp4,wave,yard,train")
    assert "path 'link/b.mp4' lies outside the root" in refusal(folder, text)
    assert read(folder, text, outside=True).clips[0].media == {"video": outside / "b.mp4"}


def test_a_root_elsewhere_is_where_paths_start(folder: Path) -> None:
    assert read(folder, table('c1,"b, final.mp4",wave,yard,train'), root=folder / "deep").root == folder / "deep"


def test_a_wrong_root_is_noticed(folder: Path) -> None:
    message = refusal(folder, table(ROW), root=folder / "deep")
    assert "none of the media files" in message
    assert f"is --root right? It is {folder / 'deep'}" in message
    assert "is not a folder" in refusal(folder, table(ROW), root=folder / "nowhere")


def test_some_missing_media_are_left_to_extraction(folder: Path) -> None:
    assert len(read(folder, table(ROW, "c2,gone.mp4,wave,yard,train")).clips) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column(s) clip_id, path, label, domain, split. Found: nothing"),
        (HEADER + "\n", "has a header and no rows"),
        (HEADER + "\n\n,,,,\n", "has a header and no rows"),
        (table("c1,a.mp4,café,yard,train").encode("latin-1"), "is not UTF-8 text"),
        (table(ROW).encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_table_is_refused(folder: Path, text: str | bytes, message: str) -> None:
    assert message in refusal(folder, text)


def test_a_manifest_that_is_no_file_is_refused(folder: Path) -> None:
    for path in (folder, folder / "nothing.csv"):
        with pytest.raises(ManifestError, match=rf"manifest {re.escape(str(path))} is not a file"):
            read_manifest(path)


def test_all_faulty_rows_are_listed_at_once(folder: Path) -> None:
    rows = [
        ROW,
        "c1,a.mp4,wave,yard,train",
        "c3,a.mp4,wave,yard,dev",
        "c4,../a.mp4,wave,yard,val",
        "c5,a.mp4,wave,,val",
    ]
    message = refusal(folder, table(*rows))
    assert "has 4 faulty of 5 rows" in message
    assert re.findall(r"line (\d+): ", message) == ["3", "4", "5", "6"]


def test_a_long_list_of_faulty_rows_is_cut_and_counted(folder: Path) -> None:
    message = refusal(folder, table(*[f"c{i},a.mp4,wave,yard,dev" for i in range(50)]))
    assert "has 50 faulty of 50 rows" in message
    assert len(re.findall("line ", message)) == 20
    assert message.endswith("... and 30 more")


def test_a_row_with_too_many_values_does_not_hide_the_others(folder: Path) -> None:
    message = refusal(folder, table("c1,a, final.mp4,wave,yard,train", "c2,a.mp4,wave,yard,dev"))
    assert "6 values for 5 columns" in message
    assert "split 'dev'" in message


def test_a_line_break_inside_quotes_keeps_the_line_numbers(folder: Path) -> None:
    message = refusal(folder, table('c1,a.mp4,"wave\nboth hands",yard,train', "c2,a.mp4,spin,yard,dev"))
    assert "line 4: split 'dev'" in message


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/my clips/manifest.csv", "my-clips"),
        ("/x/y/kitchen v2.csv", "kitchen-v2"),
        ("/x/y/Käse.csv", "K-se"),
        ("/x/y/...csv", "dataset"),
    ],
)
def test_a_data_set_is_named_after_its_file_in_letters_that_folders_take(path: str, name: str) -> None:
    assert dataset_name(Path(path)) == name


def test_a_data_set_is_found_by_path(folder: Path, tmp_path: Path) -> None:
    read(folder, table(ROW))
    request = DatasetRequest(tmp_path, name="mine")
    assert load_dataset(str(folder / "manifest.csv"), request).dataset == "mine"


def test_an_unknown_data_set_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'dmo' is not a data set. Did you mean 'demo'\? Allowed: demo, epic, "):
        load_dataset("dmo", DatasetRequest(tmp_path))


@pytest.mark.parametrize("dataset", ["clips.csv", "data/clips"])
def test_a_path_that_does_not_exist_is_called_a_path(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        load_dataset(dataset, DatasetRequest(tmp_path))


def test_the_digest_follows_what_a_split_depends_on_and_not_where_media_lie(folder: Path) -> None:
    header = f"{HEADER},group"
    rows = ("c1,a.mp4,wave,yard,train,g", "c2,a.mp4,spin,cellar,train,g")
    digest = read(folder, table(*rows, header=header)).digest
    (folder / "b.mp4").write_bytes(b"")
    moved = [row.replace("a.mp4", "b.mp4") for row in rows]
    assert read(folder, table(*moved, header=header)).digest == digest
    changed = [
        ("c9,a.mp4,wave,yard,train,g", rows[1]),
        ("c1,a.mp4,wave,cellar,train,g", rows[1]),
        ("c1,a.mp4,spin,yard,train,g", rows[1]),
        ("c1,a.mp4,wave,yard,val,g", rows[1]),
        ("c1,a.mp4,wave,yard,train,h", rows[1]),
        rows[:1],
    ]
    digests = [read(folder, table(*lines, header=header)).digest for lines in changed]
    assert len({digest, *digests}) == 1 + len(changed)
