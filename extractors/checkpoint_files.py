"""Checkpoint files as their authors publish them, read without running anything that a file asks for.

A pickle is a program: reading one calls what it names. ``torch.load`` with ``weights_only`` admits tensors and plain
values; beyond these only the names of ``stand_ins`` are admitted.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import pickle
import pickletools
import re
import struct
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch

from extractors.stand_ins import BESIDE_TENSORS, CAFFE2

_ROOM_BYTES = 64 << 20  # an archive's content may be so much larger than four times the archive
_ZIP = b"PK\x03\x04"  # how an archive begins
_ALLOWING = threading.Lock()  # torch's list of allowed names is one for the whole process
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")


class CheckpointError(Exception):
    """A file that cannot be used as a checkpoint; the message says what it is instead and what to do."""


def read_checkpoint(path: Path) -> dict[str, object]:
    """Read a checkpoint's content; nothing that the file asks for is run.

    Args:
        path: ``.pth``, ``.pt``, ``.pyth``, ``.pth.tar`` or ``.tar`` as ``torch.save`` writes them, today or before
            2020; ``.safetensors``; or ``.pkl`` as Caffe2 tools wrote them, ``{"blobs": {name: array}}``.

    Returns:
        The mapping that the file holds: tensors on the CPU (of a Caffe2 file arrays) and what its authors put beside
        them. The tensors may be views of the file, so it must not be changed in place while they are used.

    Raises:
        CheckpointError: the file is missing, unreadable, of another kind, damaged, or no mapping of names, or it
            asks to run code.
    """
    refuse_other_files(path)
    read = next((read for ending, read in _READERS.items() if path.name.lower().endswith(ending)), None)
    if read is None:
        raise CheckpointError(f"{path} is no known kind of checkpoint file; it should end in {', '.join(_READERS)}")
    try:
        content = read(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file ends in almost any exception
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or no checkpoint ({_short(error)}); "
            f"it begins with {_start(path)[:16]!r}. Fetch or copy it again"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        found = f"{type(content).__name__}{' with keys other than text' if isinstance(content, dict) else ''}"
        raise CheckpointError(f"{path} holds no mapping of names but: {found}; save a network's state_dict() instead")
    return dict(content)


def refuse_other_files(path: Path) -> None:
    """Refuse what is no checkpoint at first sight: an empty file, a web page saved under a checkpoint's name.

    Raises:
        CheckpointError: it is that, or missing, a folder or unreadable.
    """
    start = _start(path)
    if not start.strip(b"\0"):
        raise CheckpointError(f"{path} is empty{' (zeros only)' if start else ''}; fetch or copy it again")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", start, re.IGNORECASE):
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint: a server answered with an error, a login or a warning page. "
            "Delete it and fetch the file itself"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the file that it stands for; run: git lfs pull")


_DIGESTS: dict[tuple[Path, int, int, int], str] = {}  # by resolved path, size, time of change, inode


def sha256_of(path: Path, *, again: bool = False) -> str:
    """Return the sha256 of a file's content, hex.

    Args:
        path: the file.
        again: read it again; otherwise a file that did not change since this process last read it is not read.

    Raises:
        CheckpointError: the file is missing, a folder or unreadable.
    """
    with _reading(path), path.open("rb") as file:
        before = _state(path)
        if again or before not in _DIGESTS:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if _state(path) != before:  # it changed meanwhile
                return digest
            _DIGESTS[before] = digest
    return _DIGESTS[before]


def _state(path: Path) -> tuple[Path, int, int, int]:
    """What changes when a file does."""
    found = path.stat()
    return path.resolve(), found.st_size, found.st_mtime_ns, found.st_ino


def _start(path: Path) -> bytes:
    """First bytes of a file."""
    with _reading(path), path.open("rb") as file:
        return file.read(512)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a path into sentences."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise CheckpointError(f"{path} is {what}; name a checkpoint file")
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None


def _short(error: Exception) -> str:
    """The reason in at most 200 characters of one line, without torch's advice to read the file unsafely."""
    text = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in text:
        found = re.search(r"WeightsUnpickler error: (.*?)(?: Check the documentation|$)", text)
        text = found[1] if found else "not written as torch.save does"
    return (text if len(text) > 4 else f"{type(error).__name__} {text}".strip())[:200]


def _refuse_code(path: Path, name: str) -> NoReturn:
    """Refuse a file that asks for a name which could run code."""
    raise CheckpointError(
        f"{path} asks to run {name!r}; it was refused and nothing was run. Take the file from where its authors "
        "publish it; if you trust it, load it where it was made and save the network's state_dict() alone"
    )


def _read_torch(path: Path) -> Any:
    """Content of what ``torch.save`` wrote."""
    stored = _stored(path)
    allowed: list[Any] = [(stands_in, name) for name, stands_in in BESIDE_TENSORS.items()]
    # torch warns of spellings that it reads nonetheless; a warning is no reason to refuse a file.
    with _ALLOWING, torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=stored)
            except UnicodeDecodeError:  # bytes that Python 2 wrote
                return torch.load(path, map_location="cpu", weights_only=True, mmap=stored, encoding="latin1")
        except pickle.UnpicklingError as error:
            refused = _REFUSED.search(str(error))
            names = [refused[1]] if refused and _has_name(path, refused[1]) else _names(path)
            if not names:
                raise
            _refuse_code(path, names[0])
        except RuntimeError as error:
            if "TorchScript" in str(error):
                _refuse_code(path, "a TorchScript program")
            if "legacy .tar format" in str(error):
                raise CheckpointError(
                    f"{path} is a tar archive; unpack it, and name the checkpoint file inside"
                ) from None
            raise


def _stored(path: Path) -> bool:
    """Whether a file is a zip archive whose tensors can be used where they lie: not compressed, and aligned.

    Raises:
        CheckpointError: unpacked, the archive would be far larger than it is.
    """
    if not _start(path).startswith(_ZIP):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    if unpacked > 4 * size + _ROOM_BYTES:
        raise CheckpointError(
            f"{path} has {size} bytes and says that it unpacks to {unpacked}; checkpoints are not compressed, so it "
            "was not unpacked. Take the file from where its authors publish it"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return False
    with path.open("rb") as file:
        return all(_aligned(file, entry.header_offset) for entry in entries if "/data/" in entry.filename)


def _aligned(file: BinaryIO, header_offset: int) -> bool:
    """Whether a record of an archive begins at a multiple of 16 bytes."""
    file.seek(header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    return bool((header_offset + 30 + name_bytes + extra_bytes) % 16 == 0)


def _has_name(path: Path, name: str) -> bool:
    """Whether a file has a name to its end: that of a file which was cut in the middle of one says nothing."""
    last = name.rpartition(".")[2]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data[:4] == _ZIP or (last != "" and data.find(f"{last}\n".encode()) >= 0)


def _names(path: Path) -> list[str]:
    """Names that the pickle in a file asks for and that are not admitted, found without running it."""
    names: list[str] = []
    texts: list[str] = []
    try:
        if _start(path).startswith(_ZIP):
            with zipfile.ZipFile(path) as archive:
                data = archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))
            stream: Any = io.BytesIO(data)
        else:
            stream = path.open("rb")
        with stream:
            for code, argument, _ in pickletools.genops(stream):
                if code.name == "GLOBAL":
                    names.append(str(argument).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    names.append(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts = [*texts[-1:], argument]
    except Exception:  # what was found before the damage stands
        pass
    harmless = ("torch.", "collections.", "_codecs.")
    return [name for name in names if name not in BESIDE_TENSORS and not name.startswith(harmless)]


def _read_safetensors(path: Path) -> Any:
    """Tensors of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)


class _Caffe2Reader(pickle.Unpickler):
    """An unpickler that knows arrays of numbers; the classes are its own, so a file cannot leave a trace in them."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the stand-in of an admitted name.

        Raises:
            CheckpointError: any other name.
        """
        stands_in = CAFFE2.get(f"{module_name}.{global_name}")
        if stands_in is None:
            _refuse_code(self._path, f"{module_name}.{global_name}")
        return stands_in if stands_in is OrderedDict else type(global_name, (stands_in,), {})


def _read_caffe2(path: Path) -> Any:
    """Content of a Caffe2 model zoo's pickle."""
    data = path.read_bytes()
    for code, argument, _ in pickletools.genops(data):  # such slots would take the memory at once
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
            raise ValueError(f"slot {argument} in {len(data)} bytes")
    content = _Caffe2Reader(data, path).load()
    blobs = content.get("blobs") if isinstance(content, dict) else None
    if not isinstance(blobs, dict) or not all(isinstance(name, str) for name in blobs):
        raise CheckpointError(f"{path} holds no 'blobs' by name, as a .pkl of Caffe2 does; is it the right file?")
    wrong = [name for name, blob in blobs.items() if not isinstance(blob, (np.ndarray, np.generic))]
    if wrong:
        raise CheckpointError(f"{path} holds blobs that are no arrays of numbers: {', '.join(wrong[:5])}")
    return {**content, "blobs": {name: np.asarray(blob).view(np.ndarray) for name, blob in blobs.items()}}


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".pyth": _read_torch,
    ".pth.tar": _read_torch,
    ".tar": _read_torch,
    ".safetensors": _read_safetensors,
    ".pkl": _read_caffe2,
}
