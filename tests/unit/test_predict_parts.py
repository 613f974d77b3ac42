"""Names become clips, records become lines, and files appear whole."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ManifestError, PipeError, UsageError
from pipeline.extraction import ExtractSettings
from pipeline.inputs import InputOptions, MediaItem, lines_of, media_items, printable
from pipeline.predict_output import LineWriter, Tally, choose_form
from pipeline.predictions import SETTINGS, CsvLines, ModalityLine, PredictionLine, json_line
from pipeline.reading import ReadTask, without_deadly
from pipeline.show_predict import PredictTable
from pipeline.types import CleanView, Clip
from pipeline.windows import Windowing
from pipeline.workers import Death
from tests.miniatures.media import write_pictures

CLASSES = ("open", 'say "hi", twice')
OPTIONS = InputOptions()


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def named(folder: Path, *names: str, options: InputOptions = OPTIONS) -> list[str]:
    items = media_items([folder / name for name in names], options)
    return [os.path.relpath(item.name, folder) for item in items if item is not None]


def test_folders_are_searched_and_pictures_are_one_clip(tmp_path: Path) -> None:
    touch(tmp_path, "a/z.mp4", "a/b/one.wav", "a/b/.hidden.mp4", "a/notes.txt", "a/.cache/old.mp4", "a/UPPER.MKV")
    touch(tmp_path, "a/flow_x/1.jpg", "a/flow_y/1.jpg", "a/walk_flow_x.mp4", "a/walk_flow_y.mp4")
    pictures = np.zeros((3, 8, 8, 3), np.uint8)
    write_pictures(tmp_path / "a/frames", pictures)
    expected = ["a/UPPER.MKV", "a/z.mp4", "a/frames", "a/b/one.wav"]
    assert named(tmp_path, "a") == expected
    assert named(tmp_path, "a/frames", "a/notes.txt", "gone.mp4") == ["a/frames", "a/notes.txt", "gone.mp4"]
    touch(tmp_path, "empty/readme.md")
    with pytest.raises(UsageError, match="holds no media"):
        named(tmp_path, "empty")


def test_the_rate_of_pictures_goes_with_them(tmp_path: Path) -> None:
    write_pictures(tmp_path / "frames", np.zeros((3, 8, 8, 3), np.uint8))
    (item,) = media_items([tmp_path / "frames"], InputOptions(rate_hz=12.5))
    assert item is not None
    assert item.clip.rate_hz == 12.5
    with pytest.raises(UsageError, match="frame-rate"):
        InputOptions(rate_hz=0)


def manifest(folder: Path, text: str) -> list[MediaItem]:
    (folder / "m.csv").write_text(text)
    return [item for item in media_items([folder / "m.csv"], OPTIONS) if item is not None]


def test_a_manifest_needs_a_path_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    items = manifest(tmp_path, "path,start,stop\na.mp4,,\nb.mp4,1,2\nb.mp4,2,3\n")
    assert [item.clip_id for item in items] == ["a.mp4", "b.mp4@1-2", "b.mp4@2-3"]
    assert (items[1].clip.start_seconds, items[1].clip.end_seconds, items[1].label) == (1.0, 2.0, "")
    items = manifest(tmp_path, "clip_id,path,label\none,a.mp4,open\ntwo,b.mp4,\n")
    assert [(item.clip_id, item.label) for item in items] == [("one", "open"), ("two", "")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip_id,label\n1,open\n", "lacks the column"),
        ("path,pth\na.mp4,b\n", "unknown column 'pth'"),
        ("path\n../secret.mp4\n", "lies outside the root"),
        ("path\n/etc/passwd\n", "lies outside the root"),
        ("path,start,stop\na.mp4,5,2\n", "is not after start"),
        ("path\nb.mp4\n", "none of the media files"),
        ("path\na.mp4\na.mp4\n", "was used in line 2 already"),
    ],
)
def test_a_manifest_is_read_strictly(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "inner").mkdir()
    touch(tmp_path, "inner/a.mp4", "secret.mp4")
    with pytest.raises(ManifestError, match=message):
        manifest(tmp_path / "inner", text)


def test_media_outside_the_root_are_allowed_when_asked(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    touch(tmp_path, "secret.mp4")
    (tmp_path / "inner/m.csv").write_text("path\n../secret.mp4\n")
    (item,) = media_items([tmp_path / "inner/m.csv"], InputOptions(outside=True))
    assert item is not None
    assert item.clip.media["video"] == (tmp_path / "secret.mp4").resolve()


def test_a_list_is_read_while_it_is_written() -> None:
    read, write = os.pipe()
    lines = lines_of(read, 0.01)
    os.write(write, b"a.mp4\r\nb c.mp")
    assert next(lines) == "a.mp4"
    assert next(lines) is None
    os.write(write, b"4\n\xff.mp4")
    assert next(lines) == "b c.mp4"
    os.close(write)
    assert [line for line in lines if line is not None] == ["\udcff.mp4"]
    os.close(read)


def test_names_of_any_bytes_are_clips_that_can_be_written(tmp_path: Path) -> None:
    assert printable("\udcffä\n.mp4") == "\\xffä\\n.mp4"
    items = [item for item in media_items(["a\0b.mp4", "\udcff.mp4"], OPTIONS) if item is not None]
    assert [item.name for item in items] == ["a\\x00b.mp4", "\\xff.mp4"]
    assert items[1].clip.media["video"] == Path("\udcff.mp4")
    assert not items[0].clip.media["video"].exists()


@pytest.mark.parametrize(("names", "stdin"), [([], None), (["-"], None), (["-", "-"], 0)])
def test_names_that_are_none_are_refused(names: list[str], stdin: int | None) -> None:
    with pytest.raises(UsageError):
        list(media_items(names, OPTIONS, stdin))


def line(**values: object) -> PredictionLine:
    plain = PredictionLine(
        "a, b.mp4",
        "",
        "file",
        "ok",
        label=CLASSES[1],
        probs={CLASSES[0]: 0.25, CLASSES[1]: 0.75},
        trust="disagreement",
        contradicts=("video", "audio"),
        modalities={"video": ModalityLine("present", True, label=CLASSES[0], confidence=0.9)},
        start_seconds=0.0,
        end_seconds=float("inf"),
        settings=dict.fromkeys(SETTINGS, 1),
    )
    return replace(plain, **values)  # type: ignore[arg-type]


def test_json_never_holds_what_is_no_number() -> None:
    plain = json.loads(json_line(line()), parse_constant=lambda name: pytest.fail(name))
    assert plain["end_seconds"] is None
    assert plain["confidence"] == 0.75
    assert plain["contradicts"] == ["video", "audio"]
    assert plain["modalities"]["video"]["label"] == "open"
    assert plain["trust_shares"] is None
    assert "\n" not in json_line(line(file="a\nb"))


def test_csv_quotes_what_needs_it_and_has_as_many_values_as_names() -> None:
    lines = CsvLines(CLASSES, ("video", "audio"))
    failed = PredictionLine("x.mp4", "", "file", "failed", code="truncated", detail="ends, early", settings={})
    failed = replace(failed, settings=dict.fromkeys(SETTINGS, 1))
    text = "\n".join([lines.header, lines.line(line()), lines.line(failed)])
    one, other = csv.DictReader(io.StringIO(text))
    assert one["file"] == "a, b.mp4"
    assert one["label"] == CLASSES[1]
    assert one[f"p_{CLASSES[1]}"] == "0.75"
    assert one["contradicts"] == "video;audio"
    assert one["video_label"] == "open"
    assert (other["code"], other["detail"], other["label"], other[f"p_{CLASSES[0]}"]) == (
        "truncated",
        "ends, early",
        "",
        "",
    )
    assert None not in one


def test_a_file_appears_whole_or_stays_a_part(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    lines = CsvLines(CLASSES, ("video",))
    with LineWriter(lines.line, lines.header, path) as writer:
        writer(line())
        assert not path.exists()
        assert len((tmp_path / "out.csv.part").read_text().splitlines()) == 2  # whoever reads along has it
    assert len(path.read_text().splitlines()) == 2
    before = path.read_bytes()
    stopped = LineWriter(json_line, None, path)
    stopped.__enter__()(line())
    stopped.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert path.read_bytes() == before
    assert json.loads((tmp_path / "out.csv.part").read_text())["file"] == "a, b.mp4"
    with pytest.raises(UsageError, match="cannot be written"), LineWriter(json_line, None, tmp_path / "no/x.jsonl"):
        pass


def test_the_form_is_asked_for_or_told_by_the_name() -> None:
    assert choose_form(False, False, None) == "table"
    assert choose_form(True, False, Path("x.txt")) == "json"
    assert choose_form(False, False, Path("x.jsonl")) == "json"
    assert choose_form(False, False, Path("x.CSV")) == "csv"
    for arguments in ((True, True, None), (False, False, Path("x.txt"))):
        with pytest.raises(UsageError):
            choose_form(*arguments)


def test_counts_are_of_files_and_accuracy_of_those_with_a_known_class() -> None:
    tally = Tally(CLASSES)
    gone = {"audio": ModalityLine("degraded", False, "silent")}
    for given in (
        line(true_label=CLASSES[1], modalities=gone, filler="mean", filler_meaning="the mean"),
        line(true_label=CLASSES[0]),
        line(true_label="neither"),
        line(),
        line(status="failed", code="truncated", label=None, true_label=CLASSES[0]),
        line(level="window", window=0),
    ):
        tally.add(given)
    assert (tally.files, tally.windows, tally.failed) == (5, 1, 1)
    assert (tally.labeled, tally.right, tally.foreign) == (2, 1, 1)
    assert tally.missing == {("audio", "silent"): 1}
    assert tally.fillers == {"mean": "the mean"}
    assert [one.code for one in tally.listed] == ["truncated"]


def test_table_rows_have_their_columns_under_each_other() -> None:
    table = PredictTable(CLASSES, ("video",), 100)
    long = table.row(line(file="/far/" * 40 + "end.mp4"))
    head, short = table.head.splitlines()[0], table.row(line(file="äöü漢字.mp4"))
    assert "…" in long
    assert "end.mp4" in long
    assert head.index("video") == long.index("open 90")
    from rich.cells import cell_len

    assert cell_len(short[: short.index("disagreement")]) == head.index("trust")
    failed = table.row(line(status="failed", code="truncated", label=None))
    assert "failed: truncated" in failed


def test_the_clean_view_alone_is_no_setting_of_a_cache() -> None:
    assert [view.name for view in CleanView(seed=3).views()] == ["clean0"]
    with pytest.raises(UsageError):
        CleanView(weak=1)


def read_task(*names: str) -> ReadTask:
    clips = tuple(Clip(name, "", "", "", "", {"video": Path(name)}) for name in names)
    settings = ExtractSettings(views=CleanView())
    from pipeline.degraded import DegradedLevels

    where = tuple((i, -1) for i in range(len(clips)))
    return ReadTask(clips, where, settings, DegradedLevels(), Windowing("off"), False, True)


def test_a_clip_that_kills_is_spared_and_a_machine_that_kills_is_named() -> None:
    task = without_deadly(read_task("a", "b"), Death(1, -11))
    assert list(task.deadly) == [1]
    with pytest.raises(PipeError, match="before they read anything"):
        without_deadly(task, Death(1, -9))
    with pytest.raises(PipeError, match="after reading"):
        without_deadly(task, Death(2, -9))
