"""One writer per folder: a lock that the system drops with the process, also after kill -9."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UsageError


@contextmanager
def only_writer(folder: Path, doing: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is missing.

    Args:
        folder: what is written to.
        doing: for the message, for example ``training into``.

    Raises:
        UsageError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another pipe process is {doing} {folder}; wait for it, or name another folder") from None
    with lock:
        yield
