"""Runs in the files of TensorBoard and of Weights & Biases, read back."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import trackers
from pipeline.errors import UsageError
from pipeline.trackers import to_tensorboard, to_wandb
from pipeline.types import RunResult
from tests.unit.test_types import run_result, run_spec

CURVES: dict[str, list[float | None]] = {
    "step": [50, 100, 150],
    "target/fused": [0.25, 0.75, 0.5],
    "val/fused": [0.5, 0.625, 0.5],
    "pseudo/accepted/class/open door/precision": [None, 0.5, None],
    "pseudo/agree/video": [None, None, None],
    "loss/labeled/fused": [3.0, 2.0, 1.0],
}
METRICS: dict[str, float | None] = {
    "selected_step": 100,
    **{name: series[1] for name, series in CURVES.items() if name != "step"},
}
SPEC = run_spec(selection="source-val", hparams={"mixing": "bmm", "learning_rate": 3e-3})
RUN = run_result(spec=SPEC, curves=CURVES, metrics=METRICS, selection="source-val")
DIVERGED = run_result(spec=run_spec(split_seed=9), curves=CURVES, metrics={}, status="diverged")


@pytest.fixture
def runs(tmp_path: Path) -> list[RunResult]:
    pytest.importorskip("tensorboard")
    assert to_tensorboard([RUN, DIVERGED], tmp_path) == 2
    return [RUN, DIVERGED]


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    return found.Reload()


def test_tensorboard_has_every_curve(runs: list[RunResult], tmp_path: Path) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(r.spec.run_id for r in runs)
    for result in runs:
        found = events(tmp_path / result.spec.run_id)
        own = [tag for tag in found.Tags()["scalars"] if not tag.startswith("selected/")]
        defined = {n for n, series in CURVES.items() if n != "step" and any(v is not None for v in series)}
        assert set(own) == defined
        for name in defined:
            pairs = [(step, v) for step, v in zip(CURVES["step"], CURVES[name], strict=True) if v is not None]
            assert [(event.step, event.value) for event in found.Scalars(name)] == pairs


def test_tensorboard_compares_runs_at_their_selected_evaluation(runs: list[RunResult], tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = events(tmp_path / RUN.spec.run_id)
    selected = {tag for tag in found.Tags()["scalars"] if tag.startswith("selected/")}
    assert selected == {"selected/target/fused", "selected/val/fused"}
    assert [(e.step, e.value) for e in found.Scalars("selected/target/fused")] == [(100, 0.75)]
    content = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    values = {
        name: value.string_value if value.HasField("string_value") else value.number_value
        for name, value in start.hparams.items()
    }
    assert values["method"] == "fixmatch"
    assert values["h.mixing"] == "bmm"
    assert values["h.learning_rate"] == 3e-3
    assert values["split_seed"] == 1
    assert values["sources"] == "kitchen+yard"
    of_diverged = events(tmp_path / DIVERGED.spec.run_id).Tags()["scalars"]
    assert not any(tag.startswith("selected/") for tag in of_diverged)


def test_tensorboard_leaves_runs_alone_that_are_there(runs: list[RunResult], tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    new = run_result(spec=run_spec(split_seed=10))
    assert to_tensorboard([*runs, new], tmp_path) == 1
    assert {path: path.stat().st_mtime_ns for path in before if path != tmp_path} == before
    assert (tmp_path / new.spec.run_id).is_dir()


def test_half_a_run_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")

    def killed(result: RunResult, writer: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trackers, "_write_events", killed)
    with pytest.raises(KeyboardInterrupt):
        to_tensorboard([RUN], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "title"), [("tensorboard", "TensorBoard"), ("wandb", "Weights & Biases")])
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, title: str
) -> None:
    for module in [m for m in sys.modules if m.startswith(("torch.utils.tensorboard", name))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"files for {title} need the package {name}.*with the extra \[{name}\]"):
        to_tensorboard([RUN], tmp_path) if name == "tensorboard" else to_wandb([RUN], tmp_path, "pipe")
    assert list(tmp_path.iterdir()) == []


BLOCK = 32 * 1024  # of an offline run's file: LevelDB's log format, behind a header of 7 bytes


def offline_records(folder: Path) -> list[Any]:
    """All records of an offline run."""
    from wandb.proto import wandb_internal_pb2

    data = next(folder.glob("run-*.wandb")).read_bytes()
    assert data[:4] == b":W&B"
    records, parts, position = [], b"", 7
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or its last part
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


@pytest.mark.filterwarnings("ignore")  # those of the package are not ours
def test_wandb_runs_hold_the_curves_the_settings_and_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    assert to_wandb([RUN, DIVERGED], tmp_path, "pipe") == 2
    assert to_wandb([RUN, DIVERGED], tmp_path, "pipe") == 0
    (folder,) = (tmp_path / "wandb").glob(f"offline-run-*-{RUN.spec.run_id}")
    records = offline_records(folder)
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.project) == (RUN.spec.run_id, "pipe")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {name: config[name] for name in ("method", "target", "hparams")} == {
        "method": "fixmatch",
        "target": "studio",
        "hparams": dict(SPEC.hparams),
    }
    logged = []
    for record in records:
        if record.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            logged.append({name: value for name, value in items.items() if not name.startswith("_")})
            assert items["_step"] in CURVES["step"]
    assert logged == [
        {n: series[k] for n, series in CURVES.items() if n != "step" and series[k] is not None} for k in range(3)
    ]
    summary = {}
    for record in records:
        for item in record.summary.update:
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert summary["selected/target/fused"] == 0.75
    assert summary["selected/pseudo/accepted/class/open door/precision"] == 0.5
    assert summary["selected/selected_step"] == 100
