"""A download that survives cut connections: what has come stays in a part file and the next attempt goes on there."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any, NoReturn

import requests
from requests import exceptions as failures

Advance = Callable[[int, int | None], None]

_CHUNK_BYTES = 1 << 16  # at most so much is lost when a connection is cut
_LONGEST_PAUSE_SECONDS = 30.0
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others in a moment


class DownloadError(Exception):
    """A file could not be had; the message says why. What has come stays in the part file."""


class WriteError(DownloadError):
    """The disk is in the way, not the server."""


class _AgainError(Exception):
    """An attempt failed in a way that the next one may not."""


@dataclass
class _Part:
    """What has come of a file so far, and beside it which version of the file it is of."""

    path: Path
    received: bool = False  # whether the server answered since this download began

    @property
    def record(self) -> Path:
        """File with the version: its URL, the server's mark of the version, its size."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def kept(self) -> str:
        """What is said of them when something fails."""
        return f"{self.size} bytes are kept, and the same command goes on from there" if self.size else "nothing came"

    def known(self, url: str) -> dict[str, Any]:
        """Record of a part that can go on, else nothing."""
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        same = isinstance(found, dict) and found.get("url") == url and isinstance(found.get("version"), str)
        return found if same and found["version"] else {}

    def begin(self, url: str, version: str, num_bytes: int | None) -> None:
        """Start over with a version of the file."""
        self.path.write_bytes(b"")  # first: a record must never stand beside another version's bytes
        text = json.dumps({"url": url, "version": version, "bytes": num_bytes})
        self.record.write_text(text, encoding="utf-8", newline="\n")

    def drop(self) -> None:
        """Remove both files."""
        self.record.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def drop_part(path: Path) -> None:
    """Remove a part file and what is recorded of it."""
    _Part(path).drop()


def download(
    url: str,
    path: Path,
    advance: Advance,
    *,
    timeout_seconds: float,
    attempts: int,
    pause_seconds: float = 1.0,
) -> None:
    """Download a file, going on where an earlier call or attempt ended if the server still has the same version.

    Args:
        url: http or https; redirects to such are followed.
        path: the part file; when the call returns, it is whole. Beside it ``<path>.json`` says what it is a part of.
        advance: called with the bytes that are there and all bytes (``None``: unknown), first at the start.
        timeout_seconds: how long a server may stay silent.
        attempts: how many in a row may fail without bringing the file further.
        pause_seconds: before the second attempt; doubled before each further one.

    Raises:
        DownloadError: no such file, no access, no connection, no space, a web page instead of a file.
    """
    if re.match(r"https?://", url, re.IGNORECASE) is None:
        raise DownloadError(f"{url!r} is not fetched: only http:// and https:// are")
    part = _Part(path)
    furthest, failed = part.size, 0
    with requests.Session() as session:
        while True:
            try:
                return _attempt(session, url, part, advance, timeout_seconds)
            except _AgainError as error:
                if part.size > furthest:
                    furthest, failed = part.size, 0
                failed += 1
                if failed >= attempts:
                    raise DownloadError(
                        f"{url}: {error}; gave up after {failed} {'attempt' if failed == 1 else 'attempts'} without "
                        f"progress; {part.kept}"
                    ) from None
            sleep(min(pause_seconds * 2 ** (failed - 1), _LONGEST_PAUSE_SECONDS))


def _attempt(session: requests.Session, url: str, part: _Part, advance: Advance, timeout_seconds: float) -> None:
    """One request, and all that comes of it."""
    known = part.known(url)
    if part.size and part.size == known.get("bytes"):
        return advance(part.size, part.size)
    headers = {"Accept-Encoding": "identity"}
    if known and part.size:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": known["version"]}
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeout_seconds) as response:
            part.received = True
            _check_answer(response, url, part)
            total = _agree(response, url, part, known)
            _check_space(part, total)
            advance(part.size, total)
            for chunk in response.iter_content(_CHUNK_BYTES):
                _append(part, chunk)
                advance(part.size, total)
    except requests.RequestException as error:
        _explain(error, url, part, timeout_seconds)
    if total is not None and part.size != total:
        raise _AgainError(f"the server announced {total} bytes and sent {part.size}")


def _check_answer(response: requests.Response, url: str, part: _Part) -> None:
    """Refuse every answer but the file or the rest of it."""
    status = response.status_code
    if status == 416:  # the part is no beginning of what the server has now
        part.drop()
        raise _AgainError("the server's file is shorter than what had come of it; starting over")
    if status in _BUSY:
        raise _AgainError(f"the server is busy or broken (status {status} {response.reason})")
    if status in (404, 410):
        raise DownloadError(f"{url}: there is no such file any more (status {status})")
    if status in (401, 403, 407, 451):
        raise DownloadError(f"{url}: the server refuses access (status {status} {response.reason})")
    if status not in (200, 206):
        raise DownloadError(f"{url}: the server answered with status {status} {response.reason} instead of the file")
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise DownloadError(
            f"{url}: the server answered with a web page ({kind}) instead of the file, perhaps a login or a warning; "
            "open the address in a browser"
        )
    packed = response.headers.get("Content-Encoding", "identity").lower()
    if packed != "identity":
        raise DownloadError(f"{url}: the server sends the file packed ({packed}) although it was asked not to")


def _agree(response: requests.Response, url: str, part: _Part, known: dict[str, Any]) -> int | None:
    """Find where an answer begins, start over if that is the beginning, and return the size of the whole file."""
    entity = response.headers.get("ETag", "")
    version = entity if entity.startswith('"') else response.headers.get("Last-Modified", "")
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200:
        total = int(length) if length.isdecimal() else None
        part.begin(url, version, total)
        return total
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    total = int(found[2]) if found and found[2] != "*" else known.get("bytes")
    same = bool(known) and (not version or version == known["version"]) and known.get("bytes") in (None, total)
    if found is None or int(found[1]) != part.size or not same:
        part.drop()
        raise _AgainError("the server sent another part or another version of the file; starting over")
    return total


def _check_space(part: _Part, total: int | None) -> None:
    """Refuse to begin what the disk cannot hold."""
    free = shutil.disk_usage(part.path.parent).free
    if total is not None and total - part.size > free:
        raise WriteError(
            f"no space for {part.path.name}: {total - part.size} bytes are still to come and {part.path.parent} has "
            f"{free} free; free some ({part.kept})"
        )


def _append(part: _Part, chunk: bytes) -> None:
    """Write a chunk; what was written survives the end of this process."""
    try:
        with part.path.open("ab", buffering=0) as file:
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space" if full else "see to the folder"
        raise WriteError(f"{part.path} cannot be written ({error.strerror}); {advice} ({part.kept})") from None


def _explain(error: requests.RequestException, url: str, part: _Part, timeout_seconds: float) -> NoReturn:
    """Say in plain words what went wrong, and whether another attempt makes sense."""
    cause: Any = error.args[0] if error.args else None
    kind = type(getattr(cause, "reason", cause)).__name__
    if isinstance(error, failures.InvalidSchema | failures.InvalidURL | failures.MissingSchema):
        raise DownloadError(f"{url}: the server points to an address that is not fetched ({error})") from None
    if isinstance(error, failures.TooManyRedirects):
        raise DownloadError(f"{url}: the server sends from one address to the next without end") from None
    if isinstance(error, failures.ReadTimeout) or "Read timed out" in str(error):
        raise _AgainError(f"the server was silent for {timeout_seconds:g} seconds") from None
    if not part.received:  # a machine without a connection need not wait for further attempts
        if isinstance(error, failures.SSLError):
            raise DownloadError(
                f"{url}: no secure connection ({_short(cause)}). Where a certificate was not accepted, check the "
                "clock; behind a proxy that has its own certificate, name its file in REQUESTS_CA_BUNDLE"
            ) from None
        if isinstance(error, failures.ProxyError):
            raise DownloadError(
                f"{url}: the proxy that HTTP_PROXY or HTTPS_PROXY names failed ({_short(cause)})"
            ) from None
        if isinstance(error, failures.ConnectTimeout):
            raise DownloadError(f"{url}: no connection within {timeout_seconds:g} seconds") from None
        if kind == "NameResolutionError":
            raise DownloadError(f"{url}: the server's name is not known; this machine may have no internet") from None
        if kind == "NewConnectionError":
            raise DownloadError(f"{url}: no connection ({_short(cause)})") from None
    raise _AgainError(f"the connection was cut ({_short(cause or error)})") from None


def _short(cause: object) -> str:
    """The innermost reason in at most 160 characters."""
    reason = getattr(cause, "reason", None) or cause
    while isinstance(reason, Exception) and reason.args and isinstance(reason.args[-1], Exception):
        reason = reason.args[-1]
    text = str(reason).rpartition("Connection broken: ")[2]
    return (text if isinstance(reason, OSError) else text.rpartition(": ")[2])[:160] or type(reason).__name__
