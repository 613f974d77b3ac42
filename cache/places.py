"""Where a cache lies: a local or shared folder, or any address that fsspec knows; whole small files by name.

Everything that several processes may write goes through ``create_exclusively``: of any number of writers of one name
one succeeds, and the file appears whole. What is replaced (``write_atomically``) is seen as before or as after.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.layout import CacheError, flush_to_disk

if TYPE_CHECKING:
    from zarr.abc.store import Store

TEMPORARY = ".tmp"  # folder of files that are being written, inside a place, so that links and renames stay on one disk
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Place(ABC):
    """A folder of files by name; a name may have slashes, and folders inside a place come and go with their files."""

    exclusive: bool = True  # whether ``create_exclusively`` is atomic here: without it only one process may write

    @property
    @abstractmethod
    def name(self) -> str:
        """Last part of its address."""

    @abstractmethod
    def child(self, *names: str) -> Place:
        """A folder inside; it need not exist."""

    @abstractmethod
    def make(self) -> None:
        """Make the folder, with its parents, if it is not there."""

    def require(self) -> None:  # noqa: B027 - prefixes of object stores are always there
        """Make sure that the folder is there.

        Raises:
            CacheError: it is not, such as after its disk was unmounted.
        """

    @abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def read_text(self, name: str) -> str:
        """Content of a UTF-8 file; raises as ``read_bytes``, and ``ValueError`` where it is no UTF-8."""
        return self.read_bytes(name).decode("utf-8")

    def read_many(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Contents in the order of the names, ``None`` for files that are missing."""
        for name in names:
            try:
                yield self.read_bytes(name)
            except FileNotFoundError:
                yield None

    @abstractmethod
    def write_atomically(self, name: str, data: bytes) -> None:
        """Write a file so that it is either there whole or as before, also after a power cut."""

    @abstractmethod
    def create_exclusively(self, name: str, data: bytes, durable: bool = True) -> bool:
        """Make a file, whole, if there is none; of several writers at once one succeeds.

        Args:
            name: of the file.
            data: its content.
            durable: whether it is on the disk when this returns.

        Returns:
            Whether the file holds ``data`` now: made by this call, or found with just this content.
        """

    @abstractmethod
    def overwrite(self, name: str, data: bytes) -> None:
        """Replace a small file of constant size, cheaply: readers may see a mixture, a power cut may undo it."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is fine."""

    @abstractmethod
    def list(self, folder: str = "") -> list[str]:
        """Names of files and folders in a folder, sorted, without hidden ones; empty where there is no folder."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file, ``None`` where there is none."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.size(name) is not None

    @abstractmethod
    def sweep(self, names: Sequence[str]) -> None:
        """Delete what writers of these names that were killed have left; only their one writer may call it."""

    @abstractmethod
    def zarr_store(self) -> Store:
        """The folder as a read-only Zarr store, for other libraries."""

    def ensure_exclusive(self) -> None:  # noqa: B027 - most places need no probe
        """Try whether the server honours exclusive creation.

        Raises:
            CacheError: it does not, so that only one process may write here.
        """


class LocalPlace(Place):
    """A folder of this machine, or one that is mounted here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"LocalPlace({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """Last part of its path."""
        return self.folder.name

    def child(self, *names: str) -> LocalPlace:
        """A folder inside; it need not exist."""
        return LocalPlace(self.folder.joinpath(*names))

    def make(self) -> None:
        """Make the folder, with its parents, if it is not there."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def require(self) -> None:
        """Raise ``CacheError`` where the folder is gone: nothing must be written under one that is made anew."""
        if not self.folder.is_dir():
            raise CacheError(
                f"{self.folder} is not there (any more); if its disk or server was unmounted, mount it again and run "
                "the same command: it goes on where it stopped"
            )

    def read_bytes(self, name: str) -> bytes:
        """Content of a file; raises ``FileNotFoundError`` where there is none."""
        with self._naming(name), open(f"{self.folder}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - hot
            return file.read()

    def write_atomically(self, name: str, data: bytes) -> None:
        """Write a file so that it is either there whole or as before, also after a power cut."""
        target = self.folder / name
        with self._naming(name), self._temporary(name, data, durable=True) as temporary:
            self._with_parents(target, lambda: temporary.replace(target))

    def create_exclusively(self, name: str, data: bytes, durable: bool = True) -> bool:
        """Make a file, whole, if there is none: a hard link to a finished file, which NFS does atomically, too."""
        target = self.folder / name
        with self._naming(name), self._temporary(name, data, durable) as temporary:
            try:
                self._with_parents(target, lambda: os.link(temporary, target))
            except FileExistsError:
                return self._holds(target, data, durable)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._create_in_place(target, data, durable)
        return True

    def _create_in_place(self, target: Path, data: bytes, durable: bool) -> bool:
        """Where there are no hard links: a crash may leave a part, which readers take for damaged."""
        try:
            _write_file(target, data, durable)
        except FileExistsError:
            return self._holds(target, data, durable)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        return True

    @staticmethod
    def _holds(target: Path, data: bytes, durable: bool) -> bool:
        """Whether a file has this content: a file server may have done what it reports as refused, after a retry."""
        try:
            same = target.read_bytes() == data
            if same and durable:
                flush_to_disk(target)
        except FileNotFoundError:
            return False
        return same

    def overwrite(self, name: str, data: bytes) -> None:
        """Replace a small file of constant size in place: that needs no new block, so a full disk does not stop it."""
        target = self.folder / name

        def write() -> None:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.pwrite(descriptor, data, 0)
            finally:
                os.close(descriptor)

        with self._naming(name):
            self._with_parents(target, write)

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is fine."""
        with self._naming(name):
            (self.folder / name).unlink(missing_ok=True)

    def list(self, folder: str = "") -> list[str]:
        """Names of files and folders in a folder, sorted, without hidden ones."""
        try:
            return sorted(e.name for e in (self.folder / folder).iterdir() if not e.name.startswith("."))
        except FileNotFoundError:
            return []

    def size(self, name: str) -> int | None:
        """Bytes of a file, ``None`` where there is none."""
        try:
            found = os.stat(f"{self.folder}/{name}")  # noqa: PTH116 - hot
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def sweep(self, names: Sequence[str]) -> None:
        """Delete the unfinished files of writers of these names that were killed."""
        folder = self.folder / TEMPORARY
        if not folder.is_dir():
            return
        unfinished = {self._flat(name) for name in names}
        for entry in folder.iterdir():
            if entry.name.rpartition("~")[0].removeprefix(".") in unfinished:
                entry.unlink(missing_ok=True)

    def zarr_store(self) -> Store:
        """The folder as a read-only Zarr store."""
        from zarr.storage import LocalStore

        return LocalStore(self.folder, read_only=True)

    @staticmethod
    def _flat(name: str) -> str:
        return name.replace("/", "-")

    @contextmanager
    def _temporary(self, name: str, data: bytes, durable: bool) -> Iterator[Path]:
        """A finished file with this content and a name of its own, which goes at the end."""
        temporary = self.folder / TEMPORARY / f".{self._flat(name)}~{secrets.token_hex(8)}.tmp"
        try:
            self._with_parents(temporary, lambda: _write_file(temporary, data, durable))
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _with_parents(self, target: Path, act: Any) -> None:
        """Act; where folders of the target are missing, make them first, but never the place itself."""
        try:
            act()
        except FileNotFoundError:
            self.require()
            missing = [p for p in target.parents if p.is_relative_to(self.folder) and p != self.folder]
            for folder in reversed(missing):
                folder.mkdir(exist_ok=True)
            act()

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Errors of the system name their file."""
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno is not None:
                error.filename = str(self.folder / name)
            raise


def _write_file(path: Path, data: bytes, durable: bool) -> None:
    """Write a new file; raises ``FileExistsError`` where there is one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_of(where: Place | Path | str, **options: Any) -> Place:
    """The place at a path or an address.

    Args:
        where: a folder, an address with ``://``, or a place, which is returned.
        options: fsspec's storage options for an address.

    Raises:
        CacheError: nothing that fsspec can open.
    """
    if isinstance(where, Place):
        return where
    text = str(where)
    if isinstance(where, Path) or "://" not in text:
        return LocalPlace(Path(where))
    if text.startswith("file://"):
        return LocalPlace(Path(text.removeprefix("file://")))
    from cache.remote import RemotePlace

    return RemotePlace(text, **options)
