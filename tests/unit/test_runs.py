"""Tables of runs: what their columns hold, that files give them back, and that one bad file stops nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import runs
from pipeline.errors import UsageError
from pipeline.query import query
from pipeline.records import ResultStore
from pipeline.runs import curves_frame, export, find_run, runs_frame, scan_runs
from pipeline.types import RunSpec, digest
from tests.unit.test_types import CHANGES, run_result, run_spec

PLAIN = run_result()
FULL = run_result(
    spec=run_spec(
        modalities=("audio", "thermal", "video"),
        features={
            "audio": {"backbone": "resnet18", "weights": "random:0", "digest": "aa"},
            "video": {"backbone": "slowfast-r50", "weights": "sha256:1", "digest": "bb"},
        },
        hparams={"mixing": "bmm", "learning_rate": 3e-3},
        labeled_ids=("a", "b", "c"),
        unlabeled_domains=("yard",),
        method="ssmdg",
        budget="5%",
    ),
    metrics={"selected_step": 50, "target/fused": 0.7, "val/fused": 0.9},
    curves={"step": [50, 100], "target/fused": [0.7, None], "loss/labeled/fused": [1.5, 0.5]},
    sizes={"labeled": 20, "unlabeled": 100, "val": 7, "test": 30},
    notes=("one", "two"),
    environment={"torch": "2.13", "stack": 2},
)
DIVERGED = run_result(spec=run_spec(split_seed=9), status="diverged", metrics={}, notes=())


def test_a_row_holds_everything_about_a_run() -> None:
    row = runs_frame([FULL]).iloc[0].to_dict()
    spec = FULL.spec
    expected = {
        "run_id": spec.run_id,
        "status": "finished",
        "dataset": "small",
        "manifest_digest": "ab12",
        "classes": 2,
        "sources": "kitchen+yard",
        "target": "studio",
        "modalities": "video+audio+thermal",
        "backbones": "slowfast-r50+resnet18+?",
        "weights": "sha256:1+random:0+?",
        "cache": "bb+aa+?",
        "budget": "5%",
        "method": "ssmdg",
        "split_seed": 1,
        "init_seed": 2,
        "steps": 400,
        "batch_labeled": 32,
        "batch_unlabeled": 64,
        "eval_every": 50,
        "protocol": "strict",
        "target_part": "all",
        "selection": "last",
        "projection": "none",
        "precision": "float32",
        "patience": 0,
        "unlabeled_domains": "yard",
        "labeled_ids": 3,
        "folds": 0,
        "fold": -1,
        "version": "",
        "seconds": 1.5,
        "notes": "one; two",
        "clips.labeled": 20,
        "clips.unlabeled": 100,
        "clips.val": 7,
        "clips.test": 30,
        "selected_step": 50,
        "target/fused": 0.7,
        "val/fused": 0.9,
        "h.learning_rate": 3e-3,
        "h.mixing": "bmm",
        "env.stack": 2,
        "env.torch": "2.13",
    }
    assert {name: row[name] for name in expected} == expected
    rest = {field.name for field in fields(RunSpec)} - {"features", "hparams"}
    assert row.keys() == expected.keys() | rest


def test_columns_stand_in_the_order_of_a_reader() -> None:
    columns = list(runs_frame([PLAIN, FULL]).columns)
    assert columns[:3] == ["run_id", "status", "dataset"]
    inner = columns[columns.index("notes") + 1 :]
    assert inner == [
        *("clips.labeled", "clips.unlabeled", "clips.val", "clips.test"),
        *("selected_step", "target/fused", "val/fused", "pseudo/accepted/precision"),
        *("h.adapter", "h.fused_hidden", "h.learning_rate", "h.mixing", "h.threshold"),
        *("env.stack", "env.threads", "env.torch"),
    ]


def test_what_a_run_does_not_have_is_missing_and_every_column_has_one_type() -> None:
    frame = runs_frame([PLAIN, FULL, DIVERGED])
    assert list(frame.index) == [0, 1, 2]
    assert frame["h.mixing"].isna().tolist() == [True, False, True]
    assert frame["clips.labeled"].isna().tolist() == [True, False, True]
    assert frame["target/fused"].tolist()[:2] == [PLAIN.metrics["target/fused"], 0.7]
    assert np.isnan(frame["target/fused"][2])
    assert frame["pseudo/accepted/precision"].dtype == np.float64
    assert frame["split_seed"].dtype == np.int64
    assert frame["h.learning_rate"].dtype == np.float64
    assert frame["budget"].tolist() == ["5", "5%", "5"]


def test_a_hyperparameter_that_is_a_number_or_a_name_becomes_text() -> None:
    results = [run_result(spec=run_spec(hparams={"x": value})) for value in (1.5, "auto")]
    assert runs_frame(results)["h.x"].tolist() == ["1.5", "auto"]


def test_a_table_without_runs_still_has_its_columns() -> None:
    frame = runs_frame([])
    assert len(frame) == 0
    assert {"run_id", "method", "steps"} <= set(frame.columns)
    assert len(query(frame, "method = ssmdg and steps > 3")) == 0
    assert len(curves_frame([])) == 0


@pytest.mark.parametrize("name", [field.name for field in fields(RunSpec)])
def test_every_change_of_a_spec_shows_in_its_row(name: str) -> None:
    base = run_spec(folds=5) if name == "fold" else run_spec()
    changed = replace(base, **{name: CHANGES[name]})
    if name == "classes":  # their number
        changed = replace(base, classes=("a", "b", "c"))
    if name == "modalities":  # which, in one order
        changed = replace(base, modalities=("audio",))
    rows = runs_frame([run_result(spec=base), run_result(spec=changed)]).drop(columns="run_id")
    assert not rows.iloc[0].equals(rows.iloc[1])


def test_curves_are_a_long_table() -> None:
    frame = curves_frame([FULL, DIVERGED])
    assert list(frame.columns) == ["run_id", "step", "curve", "value"]
    expected = [
        (result.spec.run_id, step, name, value)
        for result in (FULL, DIVERGED)
        for name, series in result.curves.items()
        if name != "step"
        for step, value in zip(result.curves["step"], series, strict=True)
    ]
    found = [(*row[:3], None if np.isnan(row[3]) else row[3]) for row in frame.itertuples(index=False, name=None)]
    assert found == expected
    only = curves_frame([FULL, DIVERGED], lambda name: name.startswith("target"))
    assert set(only["curve"]) == {"target/fused"}
    assert len(only) == 4
    assert list(query(frame, "curve ~ loss and step = 100")["value"]) == [0.5]


def test_a_run_that_is_given_twice_has_its_curves_twice() -> None:
    frame = curves_frame([FULL, PLAIN, FULL])
    assert len(frame) == 2 * len(curves_frame([FULL])) + len(curves_frame([PLAIN]))
    assert list(frame["run_id"].unique()) == [FULL.spec.run_id, PLAIN.spec.run_id]


def read_back(path: Path) -> pandas.DataFrame:
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    if path.suffix == ".json":
        return pandas.DataFrame(json.loads(path.read_text(encoding="utf-8")))
    return pandas.read_csv(path, dtype={"budget": str, "env.torch": str})


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
@pytest.mark.parametrize("kind", ["runs", "curves"])
def test_a_table_comes_back_from_its_file(tmp_path: Path, suffix: str, kind: str) -> None:
    results = [PLAIN, FULL, DIVERGED, run_result(spec=run_spec(target='a "quoted", über\nname'))]
    frame = runs_frame(results) if kind == "runs" else curves_frame(results)
    path = tmp_path / "new" / f"table{suffix}"
    export(frame, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    again = read_back(path)
    assert list(again.columns) == list(frame.columns)
    assert len(again) == len(frame)
    for name in frame.columns:
        missing = frame[name].isna() | (frame[name].astype(object) == "")
        assert (again[name].isna() | (again[name].astype(object) == "")).tolist() == missing.tolist(), name
        assert again[name][~missing].tolist() == frame[name][~missing].tolist(), name


@settings(deadline=None, max_examples=25)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=6))
def test_numbers_keep_all_their_digits(
    tmp_path_factory: pytest.TempPathFactory, values: Sequence[float | None]
) -> None:
    folder = tmp_path_factory.mktemp("digits")
    results = [run_result(spec=run_spec(split_seed=i), metrics={"target/fused": v}) for i, v in enumerate(values)]
    for suffix in (".csv", ".parquet", ".json"):
        export(runs_frame(results), folder / f"x{suffix}")
        cells = read_back(folder / f"x{suffix}")["target/fused"].tolist()
        assert [None if cell is None or np.isnan(cell) else cell for cell in cells] == values


def test_json_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = curves_frame([FULL, PLAIN])
    export(frame, tmp_path / "whole.json")
    monkeypatch.setattr(runs, "ROWS_AT_ONCE", 3)
    export(frame, tmp_path / "parts.json")
    assert (tmp_path / "parts.json").read_text() == (tmp_path / "whole.json").read_text()
    export(frame.head(0), tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'\.xlsx' is not a suffix of a table's file\. .*\.csv, \.parquet, \.json"):
        export(runs_frame([PLAIN]), tmp_path / "runs.xlsx")
    with pytest.raises(UsageError, match=r"'\.parqet' is not .* Did you mean '\.parquet'"):
        export(runs_frame([PLAIN]), tmp_path / "runs.parqet")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "file" / "runs.csv", tmp_path / "folder.csv"):
        with pytest.raises(UsageError, match=r"cannot write .*give another path"):
            export(runs_frame([PLAIN]), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.csv"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_a_table_that_could_not_be_written_whole_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"runs{suffix}"
    export(runs_frame([PLAIN]), path)
    before = path.read_bytes()

    def power_cut(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "flush_to_disk", power_cut)
    with pytest.raises(KeyboardInterrupt):
        export(runs_frame([PLAIN, FULL]), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_results_of_earlier_versions_are_skipped_and_named(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    known = [run_result(spec=run_spec(split_seed=i)) for i in range(3)]
    for result in known:
        store.write(result)
    earlier = run_result(spec=run_spec(split_seed=7)).to_json()
    del earlier["spec"]["patience"]  # a field that came later: the id was made without it
    earlier["run_id"] = digest(earlier["spec"])[:16]
    (tmp_path / "0000.json").write_text(json.dumps(earlier))
    (tmp_path / "zzzz.json").write_text("{cut off")
    later = run_result(spec=run_spec(split_seed=8)).to_json()
    later["spec"]["colour"] = "red"
    (tmp_path / "5555.json").write_text(json.dumps(later))
    (tmp_path / "zzzzz.json").mkdir()
    with pytest.raises(UsageError, match=r"0000.json is not a result of this version"):
        store.read_id("0000")
    results, skipped = store.read_known()
    assert sorted(r.spec.split_seed for r in results) == [0, 1, 2]
    assert [path.name for path, _ in skipped] == ["0000.json", "5555.json", "zzzz.json", "zzzzz.json"]
    reasons = [reason for _, reason in skipped]
    assert "its id is another" in reasons[0]
    assert "colour" in reasons[1]
    assert "Expecting property name" in reasons[2]
    assert reasons[3] == "Is a directory"
    assert list(store.scan([])) == results


def test_a_run_whose_settings_were_edited_is_no_result(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.write(PLAIN)
    path = store.path(PLAIN.spec.run_id)
    path.write_text(path.read_text().replace('"budget":"5"', '"budget":"6"'))
    results, skipped = store.read_known()
    assert (results, len(skipped)) == ([], 1)


def test_a_result_on_disk_is_small_and_can_be_looked_at(tmp_path: Path) -> None:
    result = replace(FULL, confusion=((3, 1), (0, 2)))
    ResultStore(tmp_path).write(result)
    text = ResultStore(tmp_path).path(result.spec.run_id).read_text()
    assert '\n  "target/fused":[0.7,null]' in text
    assert '\n "confusion":[[3,1],[0,2]],\n' in text
    assert json.loads(text) == result.to_json()


def test_a_run_is_found_by_the_start_of_its_id(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "none"]
    results = [run_result(spec=run_spec(split_seed=i)) for i in range(40)]
    for i, result in enumerate(results):
        ResultStore(folders[i % 2]).write(result)
    wanted = results[5].spec.run_id
    assert find_run(folders, wanted) == results[5]
    starts = [r.spec.run_id[:1] for r in results]
    double = max(set(starts), key=starts.count)
    with pytest.raises(UsageError, match=rf"{starts.count(double)} runs have ids that start with '{double}': {double}"):
        find_run(folders, double)
    for name in ("xyz", "../one/", "*"):
        with pytest.raises(UsageError, match=r"no finished run has an id that starts with .*pipe runs ls"):
            find_run(folders, name)


def test_five_hundred_runs_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    for i in range(500):
        spec = run_spec(split_seed=i, method=("erm", "ssmdg")[i % 2], dataset=("a", "b")[i // 250])
        metrics: dict[str, float | None] = {"selected_step": 100, "target/fused": i / 500}
        ResultStore(tmp_path / spec.dataset).write(run_result(spec=spec, metrics=metrics))
    skipped: list[tuple[Path, str]] = []
    frame = runs_frame(scan_runs(sorted(tmp_path.iterdir()), skipped))
    assert (len(frame), skipped) == (500, [])
    assert frame["run_id"].is_unique
    best = query(frame, "method = ssmdg and target/fused >= 0.9 and dataset = b")
    assert sorted(best["split_seed"]) == list(range(451, 500, 2))
    assert len(curves_frame(scan_runs(sorted(tmp_path.iterdir()), skipped))) == 500 * 4


def test_importing_the_modules_of_the_commands_is_cheap() -> None:
    """Neither PyTorch nor pandas: both take a second."""
    code = (
        "import sys, pipeline.runs, pipeline.query, pipeline.trackers, pipeline.show_runs;"
        "print(*sorted({'torch', 'pandas', 'pyarrow', 'wandb', 'tensorboard'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == ""
