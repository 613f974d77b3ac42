"""Caches in object stores and behind anything else that fsspec opens."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cache.layout import CacheError
from cache.places import TEMPORARY, Place

if TYPE_CHECKING:
    from zarr.abc.store import Store

EXCLUSIVE = ("s3", "s3a", "gs", "gcs", "memory")  # fsspec file systems that create a file only where there is none
_TAKEN = (errno.EEXIST, errno.EINVAL, errno.EBUSY)  # how S3 servers answer a conditional put that came second
_BATCH = 64  # files that are asked for at once
_honest: set[str] = set()  # addresses whose server was seen to honour a conditional put


class RemotePlace(Place):
    """A prefix of an object store, or anything else that fsspec opens.

    Args:
        address: such as ``s3://bucket/prefix``.
        options: fsspec's storage options; credentials and endpoints are usually in the environment.

    Raises:
        CacheError: fsspec does not know such addresses, or a library for them is not installed.
    """

    def __init__(self, address: str, **options: Any) -> None:
        import fsspec

        self.address = address.rstrip("/")
        self.options = dict(options)
        try:
            # Listings that fsspec remembers would hide what other processes do.
            self._fs, root = fsspec.core.url_to_fs(self.address, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise CacheError(
                f"{address} cannot be opened ({error}); for s3:// addresses: pip install 'pipe-features[s3]'"
            ) from error
        self._root = str(root).rstrip("/")
        self.exclusive = self.address.partition("://")[0] in EXCLUSIVE

    def __str__(self) -> str:
        return self.address

    def __repr__(self) -> str:
        return f"RemotePlace({self.address!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.address, self.options)

    @property
    def name(self) -> str:
        """Last part of its address."""
        return self.address.rpartition("/")[2]

    def child(self, *names: str) -> RemotePlace:
        """A folder inside; it need not exist."""
        return RemotePlace("/".join((self.address, *names)), **self.options)

    def make(self) -> None:
        """Folders of object stores come with their files."""

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _naming(self, name: str, missing: bool = False) -> Iterator[None]:
        """Errors of any library become one that says where and what to do; a missing file may stay what it is."""
        try:
            yield
        except CacheError:
            raise
        except Exception as error:
            if missing and isinstance(error, FileNotFoundError):
                raise
            raise CacheError(
                f"{self.address}/{name}: {type(error).__name__}: {error}; is the server there, and are its address, "
                "bucket and credentials right? Finished units are kept: the same command goes on from there"
            ) from error

    def read_bytes(self, name: str) -> bytes:
        """Content of a file; raises ``FileNotFoundError`` where there is none."""
        with self._naming(name, missing=True):
            return bytes(self._fs.cat_file(self._at(name)))

    def read_many(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Contents in the order of the names, many requests at a time; ``None`` for files that are missing."""
        for start in range(0, len(names), _BATCH):
            batch = [self._at(name) for name in names[start : start + _BATCH]]
            with self._naming(names[start]):
                found = self._fs.cat(batch, on_error="return")
            for name, path in zip(names[start : start + _BATCH], batch, strict=True):
                content = found.get(path)
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    with self._naming(name):
                        raise content
                yield bytes(content) if isinstance(content, bytes) else None

    def write_atomically(self, name: str, data: bytes) -> None:
        """Replace an object; object stores show it whole or not at all."""
        with self._naming(name):
            self._fs.pipe_file(self._at(name), data)

    def overwrite(self, name: str, data: bytes) -> None:
        """Replace a small object."""
        self.write_atomically(name, data)

    def create_exclusively(self, name: str, data: bytes, durable: bool = True) -> bool:
        """Make an object with a conditional put, if there is none."""
        with self._naming(name):
            if not self.exclusive and self._fs.exists(self._at(name)):
                return self._holds(name, data)
            try:
                self._fs.pipe_file(self._at(name), data, **({"mode": "create"} if self.exclusive else {}))
            except OSError as error:
                # A put that was sent twice may have succeeded although the answer says that it came second.
                if error.errno not in (None, *_TAKEN) or not self._fs.exists(self._at(name)):
                    raise
                return self._holds(name, data)
        return True

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.read_bytes(name) == data
        except FileNotFoundError:
            return False

    def delete(self, name: str) -> None:
        """Delete an object; one that is not there is fine."""
        with self._naming(name):
            try:
                self._fs.rm_file(self._at(name))
            except FileNotFoundError:
                return

    def list(self, folder: str = "") -> list[str]:
        """Names of objects and folders in a folder, sorted, without hidden ones."""
        with self._naming(folder):
            try:
                found = self._fs.ls(self._at(folder), detail=False, refresh=True)
            except FileNotFoundError:
                return []
        here = self._at(folder).strip("/")
        names = {str(path).strip("/")[len(here) + 1 :] for path in found}
        return sorted(name for name in names if name and not name.startswith("."))

    def size(self, name: str) -> int | None:
        """Bytes of an object, ``None`` where there is none."""
        with self._naming(name):
            try:
                found = self._fs.info(self._at(name), refresh=True)
            except FileNotFoundError:
                return None
        return int(found["size"]) if found["type"] == "file" else None

    def sweep(self, names: Sequence[str]) -> None:
        """Nothing unfinished stays in object stores."""

    def zarr_store(self) -> Store:
        """The prefix as a read-only Zarr store."""
        from zarr.storage import FsspecStore

        with self._naming(""):
            return FsspecStore.from_url(self.address, storage_options=dict(self.options), read_only=True)

    def ensure_exclusive(self) -> None:
        """Try whether the server honours a conditional put; once per process and address."""
        if self.address in _honest:
            return
        name = f"{TEMPORARY}/probe-{secrets.token_hex(8)}"
        try:
            honest = self.exclusive and self.create_exclusively(name, b"1") and not self.create_exclusively(name, b"2")
        finally:
            if self.exclusive:
                self.delete(name)
        if not honest:
            raise CacheError(
                f"{self.address}: this kind of storage or server does not create a file only where there is none "
                "(a put with If-None-Match), so that only one process may write here; or use a folder on NFS"
            )
        _honest.add(self.address)


def _reopen(address: str, options: dict[str, Any]) -> RemotePlace:
    return RemotePlace(address, **options)
