"""Who works on what, without a server: leases with a heartbeat on plain files, for any number of machines.

A lease is a file that was created exclusively and never changes; it is held as long as it is there::

    leases/<name>.<generation>.lease   JSON: token, host, process; the highest generation counts
    leases/beat-<owner>.lease          a counter of that process, one for all its leases

==========  =========================================================================================================
free        no file of that name; ``claim`` creates generation 1
held        there is a file and its owner's counter moves
dead        its owner was seen with one counter for ``stale_seconds`` of the observer's own clock, or its process is
            gone from this machine; ``claim`` creates the next generation, then deletes the older files
lost        the file of a former holder is gone or another's; its ``check`` raises ``LeaseLost``
==========  =========================================================================================================

No clocks are compared: an observer measures how long *it* sees a counter stand still. A lease saves work and does not
guard data: a holder that stalls between its check and what it does next may act after another took over, so whatever
is done under a lease is created exclusively, too (``FeatureGroup.write_unit``).
"""

from __future__ import annotations

import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

from cache.holders import HEART, Holder, is_gone, new_holder
from cache.layout import CacheError
from cache.places import Place, place_of

FOLDER = "leases"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
MARGIN = (
    4  # beats that a holder may miss whatever an observer's ``stale_seconds``: settings may differ between machines
)
POLL_NAMES = 16  # leases that one look of those who wait goes through
POLL_SECONDS = 0.05  # first pause of those who wait; pauses grow to a beat
_NAME = re.compile(r"(?!beat-)[A-Za-z0-9_-]+")


class LeaseLost(CacheError):
    """Another process has taken over: what was done under the lease must not be finished."""


class Checked(Protocol):
    """What proves that the caller still is the one to write."""

    def check(self) -> None:
        """Raise ``LeaseLost`` if it is not."""


class Lease:
    """The right to work on something, until it is released or lost; a context manager that releases."""

    def __init__(self, leases: Leases, name: str, file: str, content: bytes) -> None:
        self.name = name
        self._leases, self._file, self._content = leases, file, content

    def check(self) -> None:
        """Make sure that nobody has taken over.

        Raises:
            LeaseLost: somebody has, or the lease was released.
            CacheError: the place is gone.
        """
        self._leases.confirm(self.name, self._file, self._content)

    def release(self) -> None:
        """Give it back; a second time, or after it was lost, nothing happens."""
        self._leases.give_back(self._file, self._content)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()


class Leases:
    """The leases of one process in one place; a context manager that gives all back.

    Args:
        place: where the leases lie, in ``leases/``; such as a group's folder.
        beat_seconds: between heartbeats.
        stale_seconds: after which a holder without heartbeat counts as dead.
        clock: seconds that only grow; for tests.
        beats: whether a thread of this process beats; without it the caller calls ``beat``.

    Raises:
        CacheError: the place cannot create files exclusively, or ``stale_seconds`` is too short for the beats.
    """

    def __init__(
        self,
        place: Place | Path | str,
        *,
        beat_seconds: float = BEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        beats: bool = True,
    ) -> None:
        if not 0 < beat_seconds * MARGIN <= stale_seconds:
            raise CacheError(f"stale_seconds {stale_seconds:g} is less than {MARGIN} beats of {beat_seconds:g} seconds")
        self.place = place_of(place)
        self.place.ensure_exclusive()
        self.beat_seconds, self.stale_seconds = beat_seconds, stale_seconds
        self.owner = secrets.token_hex(8)
        self.beat_error: Exception | None = None  # why the last heartbeat failed
        self._clock, self._beats, self._pid = clock, beats, os.getpid()
        self._held: dict[str, bytes] = {}  # by file
        self._undeleted: dict[str, bytes] = {}  # given back, but the file could not be deleted yet
        self._seen: dict[str, tuple[bytes, float]] = {}  # what an observer saw, and since when it stands still
        self._counter, self._beating = 0, False
        self._lock, self._claiming = threading.Lock(), threading.Lock()

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def claim(self, name: str) -> Lease | None:
        """Take a lease if it is free or its holder is dead.

        Args:
            name: letters, digits, ``-`` and ``_``.

        Returns:
            The lease, or ``None`` while somebody holds it, this process included.

        Raises:
            CacheError: the name is no name, or the place is gone.
            OSError: the lease cannot be written: a full disk, a folder that is read-only.
        """
        if not _NAME.fullmatch(name):
            raise CacheError(
                f"{name!r} is no name of a lease; allowed: letters, digits, - and _, and no beat- in front"
            )
        if self._pid != os.getpid():
            raise CacheError("a forked process needs Leases of its own: heartbeats are not inherited")
        with self._claiming:
            return self._claim(name, self._files(name))

    def _claim(self, name: str, before: Sequence[str]) -> Lease | None:
        judged = {file: self._read(file) for file in before}
        if before:
            content = judged[before[-1]]
            if content is None or not self._is_dead(before[-1], content):  # None: given back in this moment
                return None
        self._start()
        mine = self.new_holder().to_bytes()
        file = f"{name}.{_generation(before[-1]) + 1 if before else 1:06d}.lease"
        ours = False
        try:
            if not self.place.create_exclusively(f"{FOLDER}/{file}", mine, durable=False):
                return None
            self._held[file] = mine
            ours = self._settle(file, judged)
        finally:
            if not ours:  # also where an error leaves open whether the file is there
                self.give_back(file, mine)
        return Lease(self, name, file, mine) if ours else None

    def _settle(self, mine: str, judged: dict[str, bytes | None]) -> bool:
        """Delete what was judged; ``False`` if there is a file that was not: another came in between.

        The listing of before may be old (file servers remember listings); this one follows a change of the folder.
        """
        others = [file for file in self._files(mine.partition(".")[0]) if file != mine]
        for file in others:
            content = self._read(file)
            if content is not None and (_generation(file) > _generation(mine) or judged.get(file) != content):
                return False
        for file in others:
            self.place.delete(f"{FOLDER}/{file}")
        return True

    def wait_for_any(self, names: Sequence[str], seconds: float) -> Lease | None:
        """Wait until one of several leases can be taken.

        Args:
            names: of leases, all of them welcome.
            seconds: to wait at most; the caller then looks whether there still is something to do.

        Returns:
            A lease, or ``None`` when the time is over. The pauses between looks at the place grow from
            ``POLL_SECONDS`` to a heartbeat, so that many waiting processes are no load for a file server.
        """
        end, pause = self._clock() + seconds, POLL_SECONDS
        while names:
            there = {file.partition(".")[0] for file in self.place.list(FOLDER)}
            # In any order, free ones first: those who wait together do not run for the same one.
            for name in sorted(random.sample(names, len(names)), key=there.__contains__)[:POLL_NAMES]:
                lease = self.claim(name)
                if lease is not None:
                    return lease
            left = end - self._clock()
            if left <= 0:
                break
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, self.beat_seconds)
        return None

    def hold(self, name: str, seconds: float) -> Lease:
        """Wait for one lease.

        Raises:
            CacheError: somebody else holds it all the time.
        """
        lease = self.wait_for_any([name], seconds)
        if lease is None:
            raise CacheError(
                f"{self.place}: {self.holder(name) or 'another process'} holds {name!r} for {seconds:g} seconds; "
                "run the same command again when it is done"
            )
        return lease

    def holder(self, name: str) -> Holder | None:
        """Who holds a lease, for messages; ``None``: nobody, or the file is damaged."""
        files = self._files(name)
        content = self._read(files[-1]) if files else None
        return None if content is None else Holder.from_bytes(content)

    def confirm(self, name: str, file: str, content: bytes) -> None:
        """Raise ``LeaseLost`` unless a lease is still ours; see ``Lease.check``."""
        there = self._read(file) if self._pid == os.getpid() and file in self._held else None
        if there == content:
            return
        self.place.require()
        self._held.pop(file, None)
        beat = f" (its last heartbeat failed: {self.beat_error})" if self.beat_error is not None else ""
        raise LeaseLost(
            f"{self.place.name}: this process no longer holds {name!r}{beat}; {self.holder(name) or 'nobody'} does. "
            "Nothing of it was committed here"
        )

    def give_back(self, file: str, content: bytes) -> None:
        """Delete a lease file if it is ours; where that fails it is tried again with every heartbeat."""
        if self._pid != os.getpid():
            return
        self._held.pop(file, None)
        self._undeleted[file] = content
        self._delete_ours()

    def _delete_ours(self) -> None:
        for file, content in list(self._undeleted.items()):
            with suppress(OSError, CacheError):
                if self._read(file) == content:
                    self.place.delete(f"{FOLDER}/{file}")
                self._undeleted.pop(file, None)

    def beat(self) -> None:
        """Show that this process is alive; errors are kept in ``beat_error``, the next beat tries again."""
        with self._lock:
            self._counter += 1
            try:
                self.place.overwrite(f"{FOLDER}/{_beat(self.owner)}", b"%020d" % self._counter)
                self.beat_error = None
            except (OSError, CacheError) as error:
                self.beat_error = error
        self._delete_ours()

    def close(self) -> None:
        """Give all leases back and stop beating; who is the last in the place leaves nothing behind."""
        if self._pid != os.getpid():
            return
        HEART.remove(self)
        for file, content in list(self._held.items()):
            self.give_back(file, content)
        if not self._beating:
            return
        self._beating = False
        with suppress(OSError, CacheError):
            self.place.delete(f"{FOLDER}/{_beat(self.owner)}")
            there = self.place.list(FOLDER)
            if all(file.startswith("beat-") for file in there):
                for file in there:  # of processes that were killed; one that lives writes its own again
                    self.place.delete(f"{FOLDER}/{file}")

    def _start(self) -> None:
        """The counter is there before the first lease that names it."""
        if self._beating:
            return
        self.beat()
        if self.beat_error is not None:
            raise self.beat_error
        self._beating = True
        if self._beats:
            HEART.add(self)

    def new_holder(self) -> Holder:
        """This process, for a new claim."""
        return new_holder(self.owner, self.beat_seconds)

    def _files(self, name: str) -> list[str]:
        """Files of a lease, the highest generation last."""
        return [file for file in self.place.list(FOLDER) if file.startswith(f"{name}.") and file.endswith(".lease")]

    def _read(self, file: str) -> bytes | None:
        try:
            return self.place.read_bytes(f"{FOLDER}/{file}")
        except FileNotFoundError:
            return None

    def _is_dead(self, file: str, content: bytes) -> bool:
        """Whether the holder named in a lease file no longer lives, as far as this observer can know."""
        holder = Holder.from_bytes(content)
        if holder is None:  # its writer died while writing, or its disk was full
            return self._stands_still(file, lambda: self._read(file), self.stale_seconds)
        if holder.owner == self.owner:
            return file not in self._held  # ours, given back, but not deleted
        if is_gone(holder):
            return True
        patience = max(self.stale_seconds, MARGIN * holder.beat_seconds)
        return self._stands_still(holder.owner, lambda: self._read(_beat(holder.owner)), patience)

    def _stands_still(self, key: str, read: Callable[[], bytes | None], seconds: float) -> bool:
        """Whether a file was seen with the same content for a time, by this observer's clock.

        The time counts from after the first look to before this one: however long a look takes, both saw the content.
        """
        now = self._clock()
        content = read() or b""
        before = self._seen.get(key)
        if before is None or before[0] != content:
            self._seen[key] = (content, self._clock())
            return False
        return now - before[1] >= seconds


def claim_all(claims: Sequence[tuple[Leases, str]]) -> list[Lease] | None:
    """Take several leases or none, in the order given; processes that name them in one order do not block each other.

    Args:
        claims: leases and names, such as a unit's in the groups of several modalities.

    Returns:
        The leases, or ``None`` if one of them is held; those taken before it are given back.
    """
    taken: list[Lease] = []
    try:
        for leases, name in claims:
            lease = leases.claim(name)
            if lease is None:
                break
            taken.append(lease)
    finally:
        complete = len(taken) == len(claims)
        if not complete:
            for lease in taken:
                lease.release()
    return taken if complete else None


def _beat(owner: str) -> str:
    return f"beat-{owner}.lease"


def _generation(file: str) -> int:
    digits = file.split(".")[1]
    return int(digits) if digits.isdigit() else 0
