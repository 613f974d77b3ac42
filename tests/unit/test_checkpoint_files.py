"""Published checkpoints are read, whatever their age; files that carry code or are damaged are refused and named."""

from __future__ import annotations

import argparse
import collections
import copy
import os
import pickle
import struct
import subprocess
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from extractors.checkpoint_files import CheckpointError, read_checkpoint, refuse_other_files, sha256_of

TENSORS = {"conv.weight": torch.arange(24.0).reshape(2, 3, 4), "steps": torch.tensor(7), "half": torch.ones(3).half()}


def equal(found: dict[str, object], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        value = found[name]
        assert isinstance(value, torch.Tensor)
        assert (value.dtype, value.device.type) == (tensor.dtype, "cpu")
        torch.testing.assert_close(value, tensor, rtol=0, atol=0)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch advises to read a refused file unsafely
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "SLOWFAST.pyth", "a.pth.tar", "A.PTH", "a.b.tar"])
def test_what_torch_saves_reads_back(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(TENSORS, tmp_path / name, _use_new_zipfile_serialization=zipped)
    equal(read_checkpoint(tmp_path / name), TENSORS)


def test_safetensors_read_back(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "a.safetensors")
    found = read_checkpoint(tmp_path / "a.safetensors")
    equal({name: found[name] for name in TENSORS}, TENSORS)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    assert "is damaged" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_programs_leave_beside_the_tensors_is_read(tmp_path: Path, zipped: bool) -> None:
    beside = {
        "best": np.float64(0.5),
        "sizes": np.arange(6, dtype=">f4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "classes": np.array(["a", "bb"]),
        "mixed": np.array(["x", None, 3], dtype=object),
        "empty": np.zeros((0, 4)),
        "random": np.random.RandomState(0).get_state(),  # as training programs save it
        "options": argparse.Namespace(lr=0.1),
        "per_class": collections.defaultdict(list, {"x": [1]}),
        "counts": collections.Counter("aab"),
        "ordered": collections.OrderedDict(a=1),
    }
    torch.save({"state_dict": TENSORS, "meta": beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = read_checkpoint(tmp_path / "a.pth")
    meta: Any = content["meta"]
    assert meta["best"] == 0.5
    for name in ("sizes", "columns", "classes", "mixed", "empty"):
        assert isinstance(meta[name], np.ndarray)
        np.testing.assert_array_equal(meta[name], beside[name])
    assert torch.from_numpy(meta["sizes"]).add_(1).sum() == 21  # writable, in the machine's byte order
    np.testing.assert_array_equal(meta["random"][1], beside["random"][1])  # type: ignore[index]
    for name in ("options", "per_class", "counts", "ordered"):
        assert meta[name] == beside[name]
    again = pickle.loads(pickle.dumps(meta["columns"]))
    assert type(again) is np.ndarray
    np.testing.assert_array_equal(again, copy.deepcopy(meta["columns"]))


def test_the_process_allows_no_more_after_reading_than_before(tmp_path: Path) -> None:
    torch.save({"best": np.float64(0.5)}, tmp_path / "a.pth")
    before = torch.serialization.get_safe_globals()
    failures: list[Exception] = []

    def read() -> None:
        for _ in range(20):
            try:
                read_checkpoint(tmp_path / "a.pth")
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert torch.serialization.get_safe_globals() == before


def packed_again(
    source: Path, target: Path, compression: int, change: Callable[[bytes], bytes] = bytes, align: bool = False
) -> None:
    """Pack a checkpoint's archive anew, its pickle changed, its records at multiples of 64 bytes or anywhere."""
    with zipfile.ZipFile(source) as old, target.open("wb") as file, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            record = zipfile.ZipInfo(name)
            record.compress_type = compression
            if align:
                filling = -(file.tell() + 34 + len(name)) % 64
                record.extra = struct.pack("<HH", 0x4246, filling) + bytes(filling)
            new.writestr(record, change(old.read(name)) if name.endswith("/data.pkl") else old.read(name))


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_someone_packed_again_reads_the_same(tmp_path: Path, compression: int, align: bool) -> None:
    torch.save(TENSORS, tmp_path / "a.pth")
    packed_again(tmp_path / "a.pth", tmp_path / "b.pth", compression, align=align)
    found = read_checkpoint(tmp_path / "b.pth")
    equal(found, TENSORS)
    tensor = found["conv.weight"]
    assert isinstance(tensor, torch.Tensor)
    assert tensor.data_ptr() % 16 == 0


def test_tensors_of_an_archive_are_not_copied(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1 << 20)}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")["a"]
    with Path("/proc/self/maps").open() as maps:
        assert str(tmp_path / "a.pth") in maps.read()
    assert isinstance(found, torch.Tensor)
    found.fill_(2)
    assert torch.equal(torch.load(tmp_path / "a.pth")["a"], torch.ones(1 << 20))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(80 << 20))
    assert (tmp_path / "a.pth").stat().st_size < 1 << 20
    assert "unpacks to 83886080" in refusal(tmp_path / "a.pth")


def test_a_tensor_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pth")
    true, forged = (pickle.dumps(n, 2)[2:-1] for n in (1000, 10**12))
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed_again(tmp_path / "a.pth", tmp_path / "b.pth", compression, lambda d: d.replace(true, forged))
        assert "is damaged" in refusal(tmp_path / "b.pth")


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path, how: str) -> None:
        self.marker, self.how = marker, how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "system":
            return os.system, (f"touch '{self.marker}'",)
        if self.how == "Popen":
            return subprocess.Popen, (["touch", str(self.marker)],)
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


@pytest.mark.parametrize("how", ["system", "Popen", "eval"])
@pytest.mark.parametrize("form", ["zip", "zip 4", "legacy", "pickle 0", "pickle 2", "pickle 4", "caffe2"])
def test_code_is_refused_by_name_and_does_not_run(tmp_path: Path, how: str, form: str) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / ("a.pkl" if form == "caffe2" else "a.pth")
    content = {"blobs": {"a": Runs(marker, how)}}
    if form.startswith("pickle") or form == "caffe2":
        path.write_bytes(pickle.dumps(content, int(form[-1])))
    else:
        protocol = 4 if form == "zip 4" else 2
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form != "legacy")
    message = refusal(path)
    assert not marker.exists()
    assert how in message.partition("asks to run")[2]
    assert "nothing was run" in message


def test_a_whole_network_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "b.pt")
    assert "'torch.nn.modules.linear.Linear'" in refusal(tmp_path / "a.pth")
    message = refusal(tmp_path / "b.pt")
    assert "TorchScript program" in message
    assert "state_dict()" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_damaged(tmp_path: Path, zipped: bool) -> None:
    torch.save(TENSORS, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "a.pth").read_bytes()
    for size in (1, 2, *range(10, len(data), 29), len(data) - 1):  # also in the middle of a name
        (tmp_path / "a.pth").write_bytes(data[:size])
        message = refusal(tmp_path / "a.pth")
        assert f"({size} bytes) is damaged" in message
        assert "Fetch or copy it again" in message


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"\xef\xbb\xbf\n  <HTML lang=en>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (b"hello world", "it begins with b'hello world'"),
        (b"\x1f\x8b\x08\x00 a packed file", "is damaged or no checkpoint"),
        (bytes(1000), "is empty (zeros only)"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_what_it_is(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


def test_other_archives_and_kinds_are_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pth")
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(tmp_path / "a.pth", "a.pth")
    assert "unpack it" in refusal(tmp_path / "b.tar")
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as packed:
        packed.writestr("readme.txt", "text")
    assert "is damaged or no checkpoint" in refusal(tmp_path / "c.pth")
    (tmp_path / "a.onnx").write_bytes(b"x")
    assert "it should end in .pth, .pt" in refusal(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("content", "said"),
    [(torch.ones(3), "Tensor"), ([torch.ones(3)], "list"), ({3: torch.ones(3)}, "dict with keys other than text")],
)
def test_only_a_mapping_of_names_is_a_checkpoint(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert f"no mapping of names but: {said};" in refusal(tmp_path / "a.pth")


def test_missing_folder_and_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no file" in refusal(tmp_path / "a.pth")
    (tmp_path / "b.pth").mkdir()
    assert "is a folder" in refusal(tmp_path / "b.pth")
    os.mkfifo(tmp_path / "c.pth")  # reading it would wait forever
    assert "no regular file" in refusal(tmp_path / "c.pth")
    torch.save(TENSORS, tmp_path / "d.pth")
    refuse_other_files(tmp_path / "d.pth")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "cannot be read (Permission denied)" in refusal(tmp_path / "d.pth")


def test_digests_follow_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(path) == abc
    path.write_bytes(b"abcd")
    assert sha256_of(path) != abc
    stamp = path.stat()
    assert (first := sha256_of(path)) == sha256_of(path)
    path.write_bytes(b"dcba")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # nothing but the content tells
    assert sha256_of(path) == first
    assert sha256_of(path, again=True) != first
    assert sha256_of(path) != first
    (tmp_path / "link.pth").symlink_to(path)
    assert sha256_of(tmp_path / "link.pth") == sha256_of(path)
    with pytest.raises(CheckpointError, match="no file"):
        sha256_of(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        sha256_of(tmp_path)
