"""Who holds a lease: processes of this and other machines, and the heartbeat that shows them alive."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its file says."""

    claim: str  # differs between any two claims
    owner: str  # names the counter that shows the holder alive
    host: str
    pid: int
    machine: str  # boot and process namespace: equal ones share their process numbers; empty if unknown
    started: str  # of the process, in the machine's own units, against numbers that are used again
    beat_seconds: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def to_bytes(self) -> bytes:
        """The content of a lease file."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Holder | None:
        """Who is named in a lease file; ``None`` if it is damaged."""
        try:
            holder = cls(**json.loads(data))
            float(holder.beat_seconds), int(holder.pid)
        except (ValueError, TypeError):
            return None
        return holder


def new_holder(owner: str, beat_seconds: float) -> Holder:
    """This process, for a new claim."""
    pid = os.getpid()
    started = process_started(pid) or ""
    return Holder(secrets.token_hex(8), owner, socket.gethostname(), pid, this_machine(), started, beat_seconds)


@cache
def this_machine() -> str:
    """Names the running system and its table of processes; empty where that cannot be known (no Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_started(pid: int) -> str | None:
    """When a process of this machine was started, in the system's units; ``None``: there is none; empty: unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    return ""


def is_gone(holder: Holder) -> bool:
    """Whether a process is known to have ended: it was one of this machine."""
    here = bool(holder.machine) and holder.machine == this_machine()
    return here and process_started(holder.pid) not in ("", holder.started)


class Beating(Protocol):
    """What wants a heartbeat."""

    beat_seconds: float

    def beat(self) -> None:
        """Show that this process is alive; raises nothing."""


class Heart:
    """The thread that beats for all members of this process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over, as a forked child has to: it has none of its parent's threads and holds none of its leases."""
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._members: list[Beating] = []
        self._thread: threading.Thread | None = None

    def add(self, member: Beating) -> None:
        """Beat for these from now on."""
        with self._lock:
            self._members.append(member)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()
        self._wake.set()

    def remove(self, member: Beating) -> None:
        """Beat for these no more."""
        with self._lock:
            self._members = [other for other in self._members if other is not member]
        self._wake.set()

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            self._wake.clear()
            with self._lock:
                members = list(self._members)
                if not members:
                    self._thread = None
                    return
            left = last + min(member.beat_seconds for member in members) - time.monotonic()
            if left > 0 and self._wake.wait(left):
                continue  # members came or went
            last = time.monotonic()
            for member in members:
                member.beat()


HEART = Heart()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=HEART.reset)
