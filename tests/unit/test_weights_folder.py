"""A folder of weight files: what is added is recorded, what is asked for is checked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from extractors.checkpoint_files import sha256_of
from extractors.weights import WeightsError, WeightsFolder, default_folder, split_random
from pipeline.weight_files import check_files
from tests.file_server import CONTENT, DIGEST, OTHER, check_whole, files, published, quiet


@pytest.fixture
def folder(tmp_path: Path) -> WeightsFolder:
    """A folder that is not there yet."""
    return WeightsFolder(tmp_path / "weights" / "deep")


def test_a_missing_file_says_how_to_get_it(folder: WeightsFolder) -> None:
    with pytest.raises(WeightsError) as caught:
        folder.verified(published())
    message = str(caught.value)
    for part in ("a.pth", str(folder.folder), "https://example.org/a.pth", "pipe weights fetch a.pth"):
        assert part in message
    assert "run: pipe weights add a.pth" in message


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file that the user brought."""
    path = tmp_path / "brought (1).pth"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_added_by_copying(folder: WeightsFolder, own: Path) -> None:
    assert folder.add(own, published()) == folder.folder / "a.pth"
    check_whole(folder, str(own))
    assert own.exists()
    folder.add(own, published())
    own.write_bytes(OTHER)
    with pytest.raises(WeightsError, match=r"is not the a\.pth that its authors published"):
        folder.add(own, published())
    with pytest.raises(WeightsError, match="is here and different: its sha256 is"):
        folder.add(own, published(digest=""))
    assert folder.check(published()).sha256 == DIGEST
    folder.add(own, published(digest=""), replace=True)
    assert folder.check(published(digest="")).sha256 == hashlib.sha256(OTHER).hexdigest()
    assert files(folder) == {"a.pth", "a.pth.json"}
    own.write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="is a web page"):
        folder.add(own, published(digest=""), replace=True)
    with pytest.raises(WeightsError, match="no file"):
        folder.add(own.with_name("none.pth"), published())


def test_a_file_copied_there_by_hand_is_taken_if_something_vouches_for_it(folder: WeightsFolder) -> None:
    folder.folder.mkdir(parents=True)
    path = folder.folder / "a.pth"
    path.write_bytes(CONTENT)
    assert folder.verified(published()).sha256 == DIGEST
    with pytest.raises(WeightsError, match=re.escape(f"run: pipe weights add {path}")):
        folder.verified(published(digest=""))
    inode = path.stat().st_ino
    folder.add(path, published(digest=""))
    assert folder.verified(published(digest="")).sha256 == DIGEST
    assert path.stat().st_ino == inode  # recorded, not copied onto itself


def test_damage_is_found(folder: WeightsFolder, own: Path) -> None:
    file = published("http://127.0.0.1:1/never-asked", digest="")
    path = folder.add(own, file)
    stamp = path.stat()
    assert folder.verified(file).sha256 == DIGEST
    damaged = bytearray(CONTENT)
    damaged[500_000] ^= 1
    path.write_bytes(damaged)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # nothing but the content tells
    with pytest.raises(WeightsError, match="changed since it was added") as caught:
        folder.check(file)
    assert DIGEST in str(caught.value)
    assert sha256_of(path, again=True) in str(caught.value)
    for ask in (folder.verified, folder.check, lambda f: folder.fetch(f, quiet)):
        with pytest.raises(WeightsError, match="Delete it and fetch or add it again"):
            ask(file)
        with pytest.raises(WeightsError, match=r"is not the a\.pth that its authors published"):
            ask(replace(file, digest=DIGEST))
    path.write_bytes(b"other")
    assert folder.find(file).sha256 == hashlib.sha256(b"other").hexdigest()


def test_a_copy_that_fails_leaves_nothing(folder: WeightsFolder, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(WeightsError, match=r"cannot be put into .* \(No space left on device\); free some space"):
        folder.add(own, published())
    assert files(folder) == set()
    (folder.folder.parent / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot be put into"):
        WeightsFolder(folder.folder.parent / "file").add(own, published())


def test_files_are_recognised_by_name_else_by_digest(folder: WeightsFolder, own: Path) -> None:
    known = [published(), published(file="b.pth", digest=""), published(file="c.pth", digest="00")]
    assert folder.match(own, known) == known[:1]
    assert folder.match(own.rename(own.with_name("b.pth")), iter(known)) == known[1:2]
    (own.with_name("d.pth")).write_bytes(b"else")
    assert folder.match(own.with_name("d.pth"), known) == []
    with pytest.raises(WeightsError, match="no file"):
        folder.match(own.with_name("none.pth"), known)


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    monkeypatch.setenv("PIPE_WEIGHTS", "~/files")
    assert default_folder() == Path("/home/someone/files")
    monkeypatch.setenv("PIPE_WEIGHTS", "")
    assert default_folder() == Path("/somewhere/cache/pipe/weights")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its standard
    assert default_folder() == Path("/home/someone/.cache/pipe/weights")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path("/home/someone/.cache/pipe/weights")


def test_random_weights_have_a_seed() -> None:
    assert [split_random(text) for text in ("random:7", "random:0", "random", "kinetics400", "my/random:7")] == [
        7,
        0,
        None,
        None,
        None,
    ]
    for wrong in ("random:", "random:x", "random:-1", "random:1.5", "random: 1", "random:07", "random:²"):
        with pytest.raises(WeightsError, match=re.escape(repr(wrong))):
            split_random(wrong)


def test_files_with_a_record_are_checked_whoever_published_them(folder: WeightsFolder, own: Path) -> None:
    assert check_files(folder) == ([], [])
    folder.add(own, published())  # in no table
    (folder.folder / "gone.pth.json").write_text("{}")
    assert folder.recorded_files() == ["a.pth"]
    ((file,), faults) = check_files(folder)
    assert (file.path.name, file.sha256, faults) == ("a.pth", DIGEST, [])
    (folder.folder / "a.pth").write_bytes(OTHER)
    sound, (fault,) = check_files(folder)
    assert not sound
    assert "a.pth changed since it was added" in fault
