"""Exported heads: what other runtimes compute is what the model computes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import headexport
from pipeline.bundle import Bundle
from pipeline.errors import UsageError
from pipeline.headexport import Checked, check_exporters, export_onnx, export_program, input_names, output_names
from tests.bundles import CLASSES, a_batch, a_bundle, a_head, a_plan


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return a_bundle(tmp_path / "model", a_head(a_plan(("video", "audio"), projected=True)))


def check_metadata(metadata: dict[str, str], bundle: Bundle) -> None:
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["modalities"]) == ["video", "audio"]
    assert (metadata["filler"], metadata["run_id"]) == ("translate", bundle.spec.run_id)
    assert metadata["head_sha256"] == bundle.spec.files["head.safetensors"].sha256


def compared(bundle: Bundle, run: Any) -> None:
    """An own comparison on other rows than the exporter's, in several numbers."""
    for rows in (1, 5, 33):
        features, present = a_batch(bundle.head, rows, seed=rows)
        inputs = [*(x.float() for x in features.values()), *present.values()]
        found = dict(zip(output_names(bundle.head), run(inputs), strict=True))
        wanted = bundle.head(features, present)
        pairs = {"probs": wanted.probs, "video_probs": wanted.alone["video"], "audio_probs": wanted.alone["audio"]}
        for name, value in pairs.items():
            torch.testing.assert_close(torch.as_tensor(found[name]), value, rtol=0, atol=1e-5, equal_nan=True)


def test_onnx_computes_what_the_model_does(bundle: Bundle, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = tmp_path / "head.onnx"
    checked = export_onnx(bundle, path)
    assert 0 <= checked.difference < 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["video", "audio", "video_present", "audio_present"]
    assert [(i.type, i.shape[1:]) for i in session.get_inputs()][::2] == [("tensor(float)", [12]), ("tensor(bool)", [])]
    assert len({i.shape[0] for i in session.get_inputs()}) == 1
    assert isinstance(session.get_inputs()[0].shape[0], str)  # any number of rows
    names = input_names(bundle.head)
    compared(bundle, lambda x: session.run(None, {n: v.numpy() for n, v in zip(names, x, strict=True)}))
    model = onnx.load(path)
    check_metadata({p.key: p.value for p in model.metadata_props}, bundle)
    assert str(Path(headexport.__file__).parent).encode() not in path.read_bytes()
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_program_computes_what_the_model_does(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "head.pt2"
    assert export_program(bundle, path) == Checked(0.0, headexport.ROWS)
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    check_metadata(json.loads(extra["metadata.json"]), bundle)
    module = program.module()
    compared(bundle, lambda x: module(*x))
    assert str(Path(headexport.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.parametrize("fault", ["probs", "rows", "nan"])
def test_a_file_that_computes_something_else_is_not_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    flat = headexport._Flat(bundle.head)

    def other(path: Path, model: Any) -> Any:
        def run(inputs: Any) -> list[torch.Tensor]:
            found = [value.clone() for value in flat(*inputs)]
            if fault == "probs":
                found[2] += 2e-4
            if fault == "nan":
                found[0] = found[0].nan_to_num()
            return [value[:1] for value in found] if fault == "rows" else found

        return run

    path = tmp_path / "head.pt2"
    path.write_text("before")
    monkeypatch.setattr(headexport, "_program_run", other)
    message = "by up to 1.0e" if fault != "probs" else "by up to 2.0e-04"
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: torch.fx.GraphModule({}, torch.fx.Graph()))
    monkeypatch.setattr(torch.export, "save", lambda program, place, extra_files: place.write_text("new"))
    with pytest.raises(UsageError, match=message):
        export_program(bundle, path)
    assert path.read_text() == "before"
    assert {p.name for p in tmp_path.iterdir()} == {"model", "head.pt2"}


def test_the_check_sees_every_subset_of_modalities() -> None:
    head = a_head()
    inputs = headexport._examples(head)
    rows = {tuple(bool(p[row]) for p in inputs[3:]) for row in range(headexport.ROWS)}
    assert len(rows) == 8
    assert [tuple(x.shape) for x in inputs[:3]] == [(headexport.ROWS, 12), (headexport.ROWS, 10), (headexport.ROWS, 7)]


def test_what_is_missing_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_exporters(None, None)
    with pytest.raises(UsageError, match=r"--onnx .*head\.bin: the file's name must end in \.onnx"):
        check_exporters(tmp_path / "head.bin", None)
    with pytest.raises(UsageError, match=r"--torch-export .*: the file's name must end in \.pt2"):
        check_exporters(None, tmp_path / "head.pt")
    with pytest.raises(UsageError, match="it must name a file in a folder that exists"):
        check_exporters(None, tmp_path / "not" / "head.pt2")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(UsageError, match=r"--onnx needs onnxscript: pip install 'pipe-features\[onnx\]'"):
        check_exporters(tmp_path / "head.onnx", None)
    check_exporters(None, tmp_path / "head.pt2")
