"""Errors a user can cause. Every message says what, the value, what is allowed, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class PipeError(Exception):
    """Base of every expected error: the command line prints its message, without a stack trace, and exits 2."""


class UsageError(PipeError):
    """An option, a name or a configuration value that is not allowed."""


class ManifestError(PipeError):
    """A manifest that cannot be read as one; lists every faulty row, not only the first."""


class CacheMissing(PipeError):
    """Features that a command needs have not been extracted yet."""


class MediaError(PipeError):
    """One clip's track cannot be used. It is quarantined with its reason; the run goes on.

    Args:
        code: short machine-readable reason, for example ``truncated``; stored in the cache.
        detail: one sentence with the values that were seen.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return type(self), (self.code, self.detail)


class MediaAbsent(MediaError):
    """The file is sound and simply has no such track (for example a video without sound)."""


class MediaFailed(MediaError):
    """The track is there, or should be, and is damaged, empty or too short."""


class DiskError(PipeError):
    """The disk is full, read-only or gone: nobody's mistake in the settings, and nothing that is finished is lost."""


_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk does not answer as it should",
    errno.ESTALE: "the network folder has gone",
}


def disk_error(error: OSError) -> DiskError | None:
    """What to tell a user about an error of the disk; ``None`` for any other error."""
    reason = _DISK.get(error.errno or 0)
    if reason is None:
        return None
    return DiskError(
        f"{reason} ({error.filename or error.strerror}); finished work is kept: make room, or mend it, and run the "
        "same command again"
    )


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest allowed name, or an empty string."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def choose(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return ``name`` if it is allowed.

    Raises:
        UsageError: names the kind, the value, the allowed values and the nearest one.
    """
    options = list(allowed)
    if name in options:
        return name
    raise UsageError(f"{name!r} is not a {kind}.{nearest(name, options)} Allowed: {', '.join(options)}")
