"""`pipe doctor`: what it finds out about a machine, and what it says where something is missing or broken."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from extractors import optical_flow
from extractors.backbone import all_published
from extractors.optical_flow import FLOW_METHODS
from pipeline import doctor, doctor_media, selftest
from pipeline.checks import Check
from pipeline.cli import app
from pipeline.decode import DECODERS, RESAMPLERS
from pipeline.doctor import OPTIONAL, REQUIRED, Question, caches, examine, failed, leftovers, machine, versions, weights
from pipeline.errors import MediaError, UsageError
from pipeline.selftest import FILES, GoldenResult, Worst, run_golden
from pipeline.verify_decode import ClipVerdict, Difference, VerifyReport
from tests.unit.cache_groups import make_group


def named(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def bad(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.state in ("warning", "broken")]


# Versions and machine


def test_versions_are_those_that_are_installed() -> None:
    found = named(versions())
    for name in ("pipe", *REQUIRED, *OPTIONAL):
        assert name in found
    assert found["torch"].detail == torch.__version__.partition("+")[0]
    assert found["numpy"] == Check("versions", "numpy", "ok", np.__version__)
    assert found["Python"].detail.startswith(".".join(map(str, sys.version_info[:3])))
    assert not [check for check in found.values() if check.state == "broken"]


def test_packages_that_are_missing_or_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    real_version, real_import = importlib.metadata.version, importlib.import_module
    gone = {"soxr", "torchaudio", "opencv-contrib-python-headless"}

    def version(name: str) -> str:
        if name in gone:
            raise importlib.metadata.PackageNotFoundError(name)
        return real_version(name)

    def load(name: str, *rest: Any) -> Any:
        if name == "torchaudio":
            raise ImportError("No module named 'torchaudio'")
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        return real_import(name, *rest)

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor.importlib, "import_module", load)
    found = named(versions())
    assert found["soxr"].state == "missing"
    assert found["soxr"].advice == "pip install 'pipe-features[soxr]'"
    assert "--resampler soxr-hq" in found["soxr"].detail
    assert found["torchaudio"].state == "broken"
    assert found["torchaudio"].detail == "not installed: No module named 'torchaudio'"
    assert found["torchvision"].state == "broken"
    assert found["torchvision"].detail.endswith("does not load: operator torchvision::nms does not exist")
    assert "fresh environment" in found["torchvision"].advice
    assert found["opencv-contrib-python-headless"].state == "warning"  # another build of OpenCV
    assert failed(list(found.values()))


def question(tmp_path: Path) -> Question:
    return Question(tmp_path / "work", tmp_path / "work" / "cache", tmp_path / "weights")


def test_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = named(machine(question(tmp_path)))
    assert f"{torch.get_num_threads()} threads" in found["CPU"].detail
    total = float(found["memory"].detail.split(" of ")[1].split()[0])
    free = float(found["memory"].detail.split()[0])
    assert 0 < free < total
    assert found["work folder"].detail.endswith(f"free for {tmp_path / 'work'}")
    assert not (tmp_path / "work").exists()
    if not torch.cuda.is_available():
        assert found["GPU"].state == "missing"
        assert torch.__version__ in found["GPU"].detail

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**30))
    monkeypatch.setattr(doctor, "_memory", lambda: (2**33, 2**30))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: str(path) != str(tmp_path))
    found = named(machine(question(tmp_path)))
    assert found["memory"] == Check(
        "machine", "memory", "warning", "1.0 GiB of 8.0 GiB free", "close other programs, or use fewer --workers"
    )
    assert found["temporary files"].state == "warning"
    assert "1.0 GiB free" in found["temporary files"].detail
    assert found["work folder"].state == "broken"
    assert "cannot be written to" in found["work folder"].detail


def test_a_gpu_that_the_system_has_and_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = named(machine(question(tmp_path)))
    assert found["GPU"].state == "warning"
    assert "driver" in found["GPU"].advice


# Video, sound, flow


def test_codecs_are_encoded_and_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, checks = doctor_media._made(tmp_path)
    found = named(checks)
    assert list(found) == [f"codec {name}" for name in doctor_media.CODECS]
    assert found["codec H.264"].state == "ok"
    assert found["codec MPEG-4"].state == "ok"
    assert all(clip.media["video"].is_file() for clip in clips)
    # A decoder that gives other pictures, one that fails, an encoder and a decoder that are not there.
    real = doctor_media._has
    monkeypatch.setattr(doctor_media, "_has", lambda name, mode: real(name, mode) and (name, mode) not in gone)
    gone = {("libx265", "w"), ("vp9", "r")}
    monkeypatch.setattr(doctor_media, "CODECS", {k: v for k, v in doctor_media.CODECS.items() if k != "AV1"})
    moved = doctor_media.pictures()[::-1].copy()

    def apart(path: Path) -> float:
        if path.stem == "mpeg4":
            raise MediaError("decode_error", "mpeg4.mkv: it is damaged")
        return float(np.abs(moved.astype(float) - doctor_media.pictures()).mean())

    monkeypatch.setattr(doctor_media, "_apart", apart)
    clips, checks = doctor_media._made(tmp_path)
    found = named(checks)
    assert found["codec HEVC"].state == "warning"
    assert "no encoder" in found["codec HEVC"].detail
    assert found["codec VP9"].state == "broken"
    assert found["codec H.264"].state == "broken"
    assert "decoded wrongly" in found["codec H.264"].detail
    assert found["codec MPEG-4"].state == "broken"
    assert "it is damaged" in found["codec MPEG-4"].detail
    assert [clip.clip_id for clip in clips] == ["h264"]


def test_decoders_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"pyav": "", "torchcodec": "it finds no FFmpeg libraries", "torchcodec-cuda": "", "decord": ""}
    rows = {
        "h264": (Difference("torchcodec-cuda", largest=5.0), Difference("decord")),
        "vp9": (Difference("torchcodec-cuda", largest=2.0), Difference("decord", largest=1.0)),
        "av1": (Difference("torchcodec-cuda"), Difference("decord", failure="x: no", only_one=True)),
    }
    verdicts = tuple(ClipVerdict(codec, 8, "", frames, ()) for codec, frames in rows.items())
    report = VerifyReport("doctor", "pyav", ("torchcodec-cuda", "decord"), {}, verdicts)
    found = named(doctor_media._decoders(here, report, 3))
    assert list(found) == [f"decoder {name}" for name in DECODERS]
    assert found["decoder pyav"].state == "ok"
    assert found["decoder torchcodec"].state == "missing"
    assert found["decoder torchcodec"].detail == "it finds no FFmpeg libraries"
    assert "apt-get install ffmpeg" in found["decoder torchcodec"].advice
    assert found["decoder torchcodec-cuda"].state == "ok"  # colours of NVDEC may differ by a few levels
    assert "5 grey levels" in found["decoder torchcodec-cuda"].detail
    assert found["decoder decord"].state == "warning"
    assert found["decoder decord"].detail == "vp9, av1: 1 grey levels from PyAV"
    died = VerifyReport(
        "doctor",
        "pyav",
        ("decord",),
        {},
        (ClipVerdict("h264", 0, "", (Difference("any", "crash: signal 11", True),), ()),),
    )
    found = named(doctor_media._decoders({**here, "torchcodec-cuda": "no GPU"}, died, 1))
    assert found["decoder decord"].state == "warning"
    assert "signal 11" in found["decoder decord"].detail


def test_sound_and_flow_work_here(tmp_path: Path) -> None:
    sound = named(doctor_media.sound_checks())
    assert set(sound) == {f"resampler {name}" for name in RESAMPLERS}
    assert sound["resampler swresample"].state == "ok"
    assert "440 Hz found at 440 Hz" in sound["resampler swresample"].detail
    published = FLOW_METHODS["raft-small"].published[-1].file
    (tmp_path / published).write_bytes(b"")
    flow = named(doctor_media.flow_checks(tmp_path))
    assert set(flow) == {f"flow {name}" for name in FLOW_METHODS}
    assert flow["flow dis-medium"].state == flow["flow tvl1"].state == "ok"
    assert flow["flow raft-large"].state == "missing"
    assert "pipe weights fetch raft_large" in flow["flow raft-large"].advice
    assert published in flow["flow raft-small"].detail


def test_sound_and_flow_that_are_wrong_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "optflow")
    real = FLOW_METHODS["dis-fast"].compute
    turned = replace(FLOW_METHODS["dis-fast"], compute=lambda a, b, n: real(b, a, n))
    crashed = replace(
        FLOW_METHODS["dis-fast"], compute=lambda a, b, n: (_ for _ in ()).throw(RuntimeError("no kernel"))
    )
    monkeypatch.setitem(optical_flow.FLOW_METHODS, "dis-fast", turned)
    monkeypatch.setitem(optical_flow.FLOW_METHODS, "tvl1", crashed)
    flow = named(doctor_media.flow_checks(tmp_path))
    assert flow["flow dis-fast"].state == "broken"
    assert "found as (-0." in flow["flow dis-fast"].detail or "found as (-1." in flow["flow dis-fast"].detail
    assert flow["flow tvl1"].state == "broken"
    assert flow["flow tvl1"].detail == "no kernel"
    assert flow["flow tvl1-opencv"].state == "missing"
    assert flow["flow dis-medium"].state == "ok"

    half = replace(
        RESAMPLERS["swresample"], run=lambda x, rate, wanted: np.repeat(x[::3], 2)[: len(x) * wanted // rate]
    )
    gone = replace(RESAMPLERS["soxr-hq"], why_not=lambda: "the package soxr is not installed")
    monkeypatch.setitem(RESAMPLERS, "swresample", half)
    monkeypatch.setitem(RESAMPLERS, "soxr-hq", gone)
    sound = named(doctor_media.sound_checks())
    assert sound["resampler swresample"].state == "broken"
    assert sound["resampler soxr-hq"].state == "missing"


# Cache, weights, workspace


def test_caches(tmp_path: Path) -> None:
    assert caches(tmp_path / "none")[0].state == "missing"
    group = make_group(tmp_path / "cache")
    found = named(caches(tmp_path / "cache"))
    (name,) = [name for name in found if name not in ("contents",)]
    assert found[name].state in ("ok", "warning")
    assert "MiB, clips:" in found[name].detail
    (group.path / "zarr.json").write_text("{")
    found = named(caches(tmp_path / "cache"))
    assert found[name].state == "broken"
    assert f"pipe cache verify {name}" in found[name].advice
    assert failed(list(found.values()))


def test_weights_by_size_and_record_and_by_reading(tmp_path: Path) -> None:
    listed = [published.file for published in all_published()][:3]
    contents = {name: bytes([k]) * 1000 for k, name in enumerate((*listed, "own.pth"))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": 1000, "from": "here"}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    found = named(weights(tmp_path, deep=False))
    assert {found[name].state for name in contents} == {"ok"}
    assert found["not here"].state == "missing"
    assert f"{len(all_published()) - 3} of {len(all_published())} published files" in found["not here"].detail
    (tmp_path / listed[0]).write_bytes(b"cut")
    (tmp_path / f"{listed[1]}.json").unlink()
    (tmp_path / f"{listed[2]}.json").write_text("[]")
    (tmp_path / "own.pth").write_bytes(b"\x09" * 1000)  # of the right size
    found = named(weights(tmp_path, deep=False))
    assert found[listed[0]].state == "broken"
    assert "3 bytes, recorded were 1000" in found[listed[0]].detail
    assert found[listed[1]].state == "warning"
    assert found[listed[2]].state == "broken"
    assert found["own.pth"].state == "ok"
    deep = [check for check in weights(tmp_path, deep=True) if check.state == "broken"]
    assert len(deep) == 4
    assert any("own.pth changed since it was added" in check.detail for check in deep)


def test_leftovers(tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert leftovers([work])[0].state == "missing"
    (work / "results" / "demo").mkdir(parents=True)
    (work / "cache" / "x.zarr").mkdir(parents=True)
    (work / "cache" / "x.zarr" / "a.tmp").write_bytes(b"")  # what `pipe cache verify` looks after
    (work / "results" / "demo" / ".lock").write_bytes(b"")
    assert [check.state for check in leftovers([work])] == ["ok"]
    with FileLock(work / "results" / "demo" / ".lock"):
        (check,) = leftovers([work])
        assert (check.state, check.name) == ("warning", str(work / "results" / "demo"))
        assert "another process works in it" in check.detail
    (work / "video.mp4.part").write_bytes(b"12345678")
    (check,) = leftovers([work])
    assert check.state == "warning"
    assert f"1 unfinished files, 0.0 MiB: {work / 'video.mp4.part'}" in check.detail
    assert FileLock(work / "results" / "demo" / ".lock").acquire(timeout=0)  # asking has not taken it


# The whole


def test_one_section_that_fails_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*given: object) -> list[Check]:
        raise KeyError("boom")

    for name in ("video_checks", "flow_checks", "sound_checks"):
        monkeypatch.setattr(doctor_media, name, lambda *given: [])
    monkeypatch.setattr(doctor, "machine", boom)
    seen: list[str] = []
    found = examine(question(tmp_path), seen.append)
    assert seen == ["versions", "machine", "video", "sound", "optical flow", "cache", "weights", "workspace"]
    (broken,) = [check for check in found if check.state == "broken"]
    assert broken.detail == "looking at it failed: KeyError: 'boom'"
    assert {check.section for check in found} == {"versions", "machine", "cache", "weights", "workspace"}


def test_a_check_knows_its_states() -> None:
    with pytest.raises(ValueError, match="allowed: ok, warning, missing, broken"):
        Check("a", "b", "fine", "c")  # type: ignore[arg-type]


def test_the_command_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, in a folder that is not there; nothing is made in it."""
    monkeypatch.setenv("PIPE_WEIGHTS", str(tmp_path / "weights"))
    done = CliRunner().invoke(app, ["doctor", "--work", str(tmp_path / "work"), "--device", "cpu", "--json"])
    plain = json.loads(done.stdout)
    states = {f"{check['section']}/{check['name']}": check for check in plain["checks"]}
    assert done.exit_code == 0, [check for check in plain["checks"] if check["state"] == "broken"]
    assert plain["broken"] is False
    assert plain["golden"] == []
    assert states["video/codec H.264"]["state"] == "ok"
    assert states["video/decoder pyav"]["state"] == "ok"
    for name, decoder in DECODERS.items():
        found = states[f"video/decoder {name}"]
        assert (found["state"] == "missing") == bool(decoder.why_not()), found
    assert states["cache/groups"]["state"] == "missing"
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        Check("one", "first [bold]", "ok", "fine", "not said"),
        Check("one", "second", "missing", "not here", "fetch it"),
        Check("two", "third", "broken", "damaged", "mend it"),
    ]
    results = [GoldenResult("a.npz x", "fail", 2.0, 1.0, "levels", "why"), GoldenResult("b.npz", "absent")]
    monkeypatch.setattr(doctor, "examine", lambda question, look: checks)
    monkeypatch.setattr(selftest, "run_golden", lambda folder, device, precision, look: results)
    arguments = ["doctor", "--work", str(tmp_path), "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, "--golden", str(tmp_path)])
    assert done.exit_code == 1
    text = done.stdout
    assert "  ok       first [bold]  fine" in text
    assert "  BROKEN   third         damaged" in text
    assert text.index("third: mend it") < text.index("second: fetch it")
    assert "not said" not in text
    assert "1 ok, 1 missing, 1 broken" in text
    assert "FAIL     a.npz x  largest 2 of 1 allowed (levels), why" in text
    checks[2] = replace(checks[2], state="warning")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--golden", str(tmp_path)]).exit_code == 1
    plain = json.loads(CliRunner().invoke(app, [*arguments, "--golden", str(tmp_path), "--json"]).stdout)
    assert plain["broken"] is True
    assert plain["golden"][0]["largest"] == 2.0


# Golden numbers


@pytest.fixture
def small(golden_dir: Path, tmp_path: Path) -> Path:
    """A folder with one quick case of every golden file."""
    folder = tmp_path / "golden"
    folder.mkdir()
    for name in ("README.md", "sampling.json", "backbones_state_dict_keys.json"):
        shutil.copy(golden_dir / name, folder)
    wanted: dict[str, Callable[[str], bool]] = {
        "preprocess.npz": lambda key: key.startswith("flow/240x320"),
        "spectrogram.npz": lambda key: key.startswith(("meta", "clipping", "zeros_2s", "example")),
        "train_step.npz": lambda key: key.startswith("meta") or "/edge_gce_only/" in f"/{key}",
        "backbones.npz": lambda key: key.startswith("audio"),
    }
    for name, keep in wanted.items():
        with np.load(golden_dir / name) as archive:
            arrays = {key: archive[key] for key in archive.files if keep(key)}
        if name == "spectrogram.npz":
            meta = json.loads(str(arrays["meta_json"]))
            kept = {key: meta[key] for key in ("clipping", "zeros_2s", "example_wav_0_10")}
            arrays["meta_json"] = np.array(json.dumps(kept))
        np.savez(folder / name, **arrays)
    return folder


def test_golden_numbers(small: Path) -> None:
    (small / "sampling.json.new").write_text("{}")
    found = {result.name: result for result in run_golden(small)}
    by_file = {name: [r for r in found.values() if r.name.split()[0] == name] for name in FILES}
    assert {len(results) > 0 for results in by_file.values()} == {True}
    assert found["sampling.json.new"].state == "unknown"
    assert found["preprocess.npz rgb/256x456"].state == "absent"
    assert found["spectrogram.npz example_wav_0_10"].state == "skipped"  # its sound is nowhere near
    judged = [result for result in found.values() if result.state in ("pass", "fail")]
    assert {result.state for result in judged} == {"pass"}, judged
    assert {result.name for result in judged} == {
        "sampling.json",
        "preprocess.npz flow/240x320",
        "spectrogram.npz clipping float64",
        "spectrogram.npz clipping float32",
        "spectrogram.npz zeros_2s float64",
        "spectrogram.npz zeros_2s float32",
        "train_step.npz edge_gce_only adamw float64",
        "train_step.npz edge_gce_only adamw float32",
        "backbones.npz audio/257x1004",
    }
    assert all(result.largest <= result.tolerance for result in judged)
    assert found["backbones.npz audio/257x1004"].largest > 0
    half = {result.name: result for result in run_golden(small, precision="bfloat16")}
    assert half["backbones.npz audio/257x1004"].state == "pass"
    assert half["backbones.npz audio/257x1004"].largest > 1e-3
    assert half["train_step.npz edge_gce_only adamw bfloat16"].state == "pass"
    assert half["train_step.npz edge_gce_only adamw bfloat16"].largest > 1e-4


def _change(path: Path, key: str, change: Callable[[Any], Any]) -> None:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays[key] = change(arrays[key])
    np.savez(path, **arrays)


def test_golden_numbers_that_differ_are_found(small: Path) -> None:
    sampling = json.loads((small / "sampling.json").read_text())
    sampling["test_mode_indices"]["flow"]["64"][3] += 1
    (small / "sampling.json").write_text(json.dumps(sampling))
    _change(small / "preprocess.npz", "flow/240x320/output_t01_strided", lambda x: x + 0.02)
    _change(small / "spectrogram.npz", "clipping/col_mean", lambda x: x + np.eye(1, len(x), 5)[0] * 1e-5)
    _change(small / "train_step.npz", "edge_gce_only/adamw/step0/loss/gce/fusion_weak", lambda x: x * (1 + 1e-8))
    _change(small / "train_step.npz", "f32/edge_gce_only/adamw/step0/mask_nonconsensus", lambda x: ~x)
    _change(small / "backbones.npz", "audio/257x1004/attgen_embedding", lambda x: np.roll(x, 1, -1))
    found = {result.name: result for result in run_golden(small)}
    failures = {name for name, result in found.items() if result.state == "fail"}
    assert failures == {
        "sampling.json",
        "preprocess.npz flow/240x320",
        "spectrogram.npz clipping float64",
        "train_step.npz edge_gce_only adamw float64",
        "train_step.npz edge_gce_only adamw float32",
        "backbones.npz audio/257x1004",
    }
    assert found["sampling.json"].largest == 1
    assert found["preprocess.npz flow/240x320"].largest == pytest.approx(0.02, abs=0.01)
    assert found["spectrogram.npz clipping float64"].largest == pytest.approx(1e-5, rel=0.1)
    assert "mask_nonconsensus differ" in found["train_step.npz edge_gce_only adamw float32"].detail
    json.dumps([result.largest for result in found.values()], allow_nan=False)


def test_sampled_values_are_compared_too(small: Path) -> None:
    for name in ("preprocess.npz", "spectrogram.npz", "train_step.npz"):
        (small / name).unlink()
    # Mean, deviation and extremes stay as they are.
    _change(small / "backbones.npz", "audio/257x1004/avenet_layer3/sample", lambda x: np.roll(x, 1))
    found = {result.name: result for result in run_golden(small)}
    assert found["backbones.npz audio/257x1004"].state == "fail"


def test_golden_files_that_are_missing_or_damaged(small: Path, tmp_path: Path) -> None:
    for name in ("backbones.npz", "train_step.npz"):
        (small / name).unlink()
    content = (small / "spectrogram.npz").read_bytes()
    (small / "spectrogram.npz").write_bytes(content[: len(content) // 2])
    found = {result.name: result for result in run_golden(small)}
    assert found["backbones.npz"].state == found["train_step.npz"].state == "absent"
    assert found["spectrogram.npz"].state == "fail"
    assert found["sampling.json"].state == "pass"
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match=r"holds no golden numbers; expected files: sampling.json"):
            run_golden(folder)
    with pytest.raises(UsageError, match="is not a precision"):
        run_golden(small, precision="float8")


def test_the_worst_of_many_differences() -> None:
    worst = Worst("a", "b")
    worst.add([1.0, 2.0], [1.0, 2.5], 1.0)
    worst.add([1.0], [1.25], 0.25)
    worst.add([9.0], [0.0], 100.0)
    assert worst.result() == GoldenResult("a", "pass", 0.25, 0.25, "b")
    worst.add([1], [2], 0)
    assert worst.result().state == "fail"
    nothing = Worst("a", "b")
    nothing.add([np.nan], [0.0], 1.0)
    assert nothing.result().state == "fail"
    json.dumps(nothing.result().largest, allow_nan=False)
    shape = Worst("a", "b")
    shape.add([1.0], [1.0, 2.0], 1.0)
    assert shape.result().state == "fail"
    assert "(1,) instead of (2,)" in shape.result().detail


@pytest.mark.soak
@pytest.mark.parametrize("precision", selftest.PRECISIONS)
def test_all_golden_numbers(golden_dir: Path, precision: str) -> None:
    found = run_golden(golden_dir, precision=precision)
    assert {result.state for result in found} <= {"pass", "skipped"}, found
