"""The folder of weight files: what is there, whether it is what its authors published, and how it gets there."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from extractors.checkpoint_files import CheckpointError, refuse_other_files, sha256_of
from extractors.published import Published


class WeightsError(Exception):
    """Weights cannot be had as asked; the message says what to do."""


@dataclass(frozen=True)
class WeightFile:
    """A published file's place in a folder."""

    published: Published
    path: Path
    sha256: str | None  # None: not here


def default_folder() -> Path:
    """Folder of weight files: ``PIPE_WEIGHTS``, else ``pipe/weights`` in ``XDG_CACHE_HOME`` or in ``~/.cache``.

    Raises:
        WeightsError: the user has no home folder and neither variable is set.
    """
    try:
        if named := os.environ.get("PIPE_WEIGHTS"):
            return Path(named).expanduser()
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (cache if cache.is_absolute() else Path.home() / ".cache") / "pipe" / "weights"
    except RuntimeError as error:
        raise WeightsError(f"no folder for weights ({error}); name one in PIPE_WEIGHTS") from None


def split_random(text: str) -> int | None:
    """Return the seed of ``random:SEED``, or ``None`` for any other text.

    Raises:
        WeightsError: what follows ``random:`` is no seed.
    """
    kind, colon, seed = text.partition(":")
    if kind != "random" or not colon:
        return None
    if re.fullmatch(r"0|[1-9][0-9]{0,17}", seed) is None:
        raise WeightsError(f"weights {text!r}; after 'random:' comes a whole number from 0, for example random:0")
    return int(seed)


@dataclass(frozen=True)
class WeightsFolder:
    """Published weight files, unchanged, under the names that their authors gave them.

    Beside each stands ``<file>.json`` with its sha256, its size and where it came from.
    """

    folder: Path

    def find(self, published: Published) -> WeightFile:
        """Say whether a file is here; its digest is the recorded one, without reading it where one is recorded.

        Raises:
            WeightsError: the file cannot be read.
        """
        path = self.folder / published.file
        if not path.is_file():
            return WeightFile(published, path, None)
        recorded = self._recorded(published)
        if recorded.get("bytes") == path.stat().st_size:
            return WeightFile(published, path, str(recorded["sha256"]))
        return WeightFile(published, path, _digest(path))

    def recorded_files(self) -> list[str]:
        """Names of all files here that have a record, whoever published them."""
        names = (path.name.removesuffix(".json") for path in self.folder.glob("*.json"))
        return sorted(name for name in names if (self.folder / name).is_file())

    def verified(self, published: Published) -> WeightFile:
        """Return a file that is here and is what was published and added; it is read once per process.

        Raises:
            WeightsError: it is not here, or it is another one or damaged.
        """
        return self._verified(published, again=False)

    def check(self, published: Published) -> WeightFile:
        """As ``verified``, reading the file in any case.

        Raises:
            WeightsError: it is not here, or it is another one or damaged.
        """
        return self._verified(published, again=True)

    def fetch(
        self,
        published: Published,
        advance: Callable[[int, int | None], None],
        timeout_seconds: float = 30.0,
        attempts: int = 4,
    ) -> Path:
        """Download a file unless it is here; an interrupted download goes on where it ended.

        Args:
            published: the file.
            advance: called with the bytes that are here and all bytes (``None``: unknown).
            timeout_seconds: how long the server may stay silent.
            attempts: how many in a row may fail without bringing the file further.

        Raises:
            WeightsError: it cannot be had, or what came is not what was published; or it is here and damaged.
        """
        from extractors import download  # here, because only this needs requests

        path = self.folder / published.file
        if path.exists():
            return self.verified(published).path
        if not published.url:
            raise WeightsError(f"{published.file} has no address of its own; {self._by_hand(published)}")
        part = path.with_name(f"{path.name}.part")
        with self._changing(published):
            if path.exists():  # another process fetched it meanwhile
                return self.verified(published).path
            try:
                download.download(published.url, part, advance, timeout_seconds=timeout_seconds, attempts=attempts)
                digest = _sound(part, published)
            except download.WriteError as error:
                raise WeightsError(f"{error}; or name another folder in PIPE_WEIGHTS") from None
            except download.DownloadError as error:
                raise WeightsError(
                    f"{error}. If you can have {published.file} in another way (its page is {published.source}), copy "
                    f"it here and run: pipe weights add {published.file}"
                ) from None
            except WeightsError as error:
                download.drop_part(part)
                raise WeightsError(f"what {published.url} sent was deleted: {error}") from None
            self._take(part, published, digest, published.url)
            download.drop_part(part)
        return path

    def add(self, path: Path, published: Published, *, replace: bool = False) -> Path:
        """Copy a local file into the folder, or record one that was copied there by hand.

        Args:
            path: the file, under any name.
            published: what it is.
            replace: whether it may take the place of a different file.

        Raises:
            WeightsError: it is not what was published, or a different one is here.
        """
        digest = _sound(path, published)
        target = self.folder / published.file
        with self._changing(published):
            if target.exists() and target.samefile(path):
                self._record(published, digest, "a file that was already here")
                return target
            if target.exists() and _digest(target) != digest and not replace:
                raise WeightsError(
                    f"{target} is here and different: its sha256 is {_digest(target)}, and that of {path} is {digest}. "
                    "Keep it, or add the other one with --replace"
                )
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                shutil.copyfile(path, temporary)
                if _digest(temporary) != digest:
                    raise WeightsError(f"{path} changed while it was copied; copy it again")
                self._take(temporary, published, digest, str(path))
            finally:
                temporary.unlink(missing_ok=True)
        return target

    def match(self, path: Path, all_published: Iterable[Published]) -> list[Published]:
        """Say which published files a local file may be: by its name, else by its digest.

        Raises:
            WeightsError: the file is missing or unreadable.
        """
        candidates = list(all_published)
        if not path.is_file():
            raise WeightsError(f"no file {path}")
        by_name = [published for published in candidates if published.file == path.name]
        if by_name or not any(published.digest for published in candidates):
            return by_name
        digest = _digest(path)
        return [
            published for published in candidates if published.digest and digest.startswith(published.digest.lower())
        ]

    def _verified(self, published: Published, *, again: bool) -> WeightFile:
        """The file, if it is what was published and recorded."""
        path = self.folder / published.file
        if not path.exists():
            raise WeightsError(
                f"the weights {published.name} need the file {published.file}, which is not in {self.folder}. It is "
                f"published at {published.url or published.source}. On a machine with internet: pipe weights fetch "
                f"{published.file}. Without: {self._by_hand(published)}"
            )
        digest = _digest(path, again=again)
        recorded = self._recorded(published).get("sha256")
        if recorded is None and not published.digest:
            raise WeightsError(
                f"{path} has no record of where it came from, and its authors state no digest to check it by; if you "
                f"copied it there, run: pipe weights add {path}"
            )
        _compare(path, digest, published)
        if recorded not in (None, digest):
            raise WeightsError(
                f"{path} changed since it was added: its sha256 is {digest} and was {recorded}. Delete it and fetch "
                "or add it again"
            )
        return WeightFile(published, path, digest)

    def _recorded(self, published: Published) -> dict[str, Any]:
        """What was recorded when the file was added; nothing if there is no record."""
        try:
            found = json.loads(self._sidecar(published).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and isinstance(found.get("sha256"), str) else {}

    def _sidecar(self, published: Published) -> Path:
        """File of the record."""
        return self.folder / f"{published.file}.json"

    def _record(self, published: Published, digest: str, came_from: str, num_bytes: int | None = None) -> None:
        """Write the record."""
        sidecar = self._sidecar(published)
        size = (self.folder / published.file).stat().st_size if num_bytes is None else num_bytes
        text = json.dumps({"sha256": digest, "bytes": size, "from": came_from}, indent=1) + "\n"
        temporary = sidecar.with_name(f".{sidecar.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8", newline="\n")
            temporary.replace(sidecar)
        finally:
            temporary.unlink(missing_ok=True)

    def _take(self, finished: Path, published: Published, digest: str, came_from: str) -> None:
        """Give a finished file its name; the record comes first, so that no file is ever without one."""
        with finished.open("rb") as file:
            os.fsync(file.fileno())
        self._record(published, digest, came_from, finished.stat().st_size)
        finished.replace(self.folder / published.file)

    @contextmanager
    def _changing(self, published: Published) -> Iterator[None]:
        """Make the folder and be the only one who changes a file in it; another process waits."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{published.file}.lock"):
                yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise WeightsError(
                f"{published.file} cannot be put into {self.folder} ({error.strerror or error}); "
                f"{'free some space' if full else 'see to it'}, or name another folder in PIPE_WEIGHTS"
            ) from None

    def _by_hand(self, published: Published) -> str:
        """How to bring a file to a machine without internet."""
        return (
            f"take {published.file} from {published.url or published.source} on another machine, copy it here and "
            f"run: pipe weights add {published.file}"
        )


def _digest(path: Path, *, again: bool = False) -> str:
    """sha256 of a file."""
    try:
        return sha256_of(path, again=again)
    except CheckpointError as error:
        raise WeightsError(str(error)) from None


def _sound(path: Path, published: Published) -> str:
    """sha256 of a file that may be what was published."""
    try:
        refuse_other_files(path)
    except CheckpointError as error:
        raise WeightsError(str(error)) from None
    digest = _digest(path, again=True)
    _compare(path, digest, published)
    return digest


def _compare(path: Path, digest: str, published: Published) -> None:
    """Refuse a file whose digest is not the stated one."""
    if not digest.startswith(published.digest.lower()):
        raise WeightsError(
            f"{path} is not the {published.file} that its authors published: its sha256 is {digest}, theirs begins "
            f"with {published.digest.lower()}. It is damaged or another version; fetch or copy it again"
        )
