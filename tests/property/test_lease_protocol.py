"""Writers that interleave, stall, crash and wake up at every access to the storage: nothing is lost or mixed.

Every actor is the loop of an extraction over the real code, in a thread that waits for its turn before each access to a
storage in memory. Actors write different values for the same clip, so that any mixture shows, and each has a clock of
its own. What is checked at every step, and at the end:

- a unit is committed by exclusive creation only: no commit replaces another;
- features that pass for a unit's are one actor's, whole, and those that its commit names;
- when all is quiet and nobody crashed, every unit is committed and sound;
- whoever crashed, and wherever: one repairing pass later every unit is committed and sound.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache.holders import Holder
from cache.layout import CacheError, ClipRecord, Status
from cache.leases import Leases
from cache.places import Place
from cache.store import FeatureGroup
from tests.unit.test_cache_store import identity

VIEWS, DIM, UNIT = ("clean0", "weak0"), 2, 1
BEAT, STALE = 5.0, 60.0
MOMENTS = ("create features", "create commits", "delete features", "delete commits", "create leases", "delete leases")


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


class Files(Place):
    """A storage in memory that lets an actor wait before every access."""

    def __init__(self, files: dict[str, bytes], actor: Actor | None = None, prefix: str = "") -> None:
        self.files, self.actor, self.prefix = files, actor, prefix

    def __str__(self) -> str:
        return self.prefix or "files"

    @property
    def name(self) -> str:
        return str(self)

    def child(self, *names: str) -> Files:
        return Files(self.files, self.actor, "".join(f"{name}/" for name in (self.prefix.rstrip("/"), *names) if name))

    def _at(self, name: str, access: str = "read") -> str:
        if self.actor is not None:
            self.actor.wait_for_turn(access, name)
        return self.prefix + name

    def make(self) -> None:
        pass

    def read_bytes(self, name: str) -> bytes:
        try:
            return self.files[self._at(name)]
        except KeyError:
            raise FileNotFoundError(name) from None

    def write_atomically(self, name: str, data: bytes) -> None:
        at = self._at(name, "write")
        assert "commits/" not in at
        assert "/c/" not in at or "clip_id" in at
        self.files[at] = data

    def overwrite(self, name: str, data: bytes) -> None:
        self.files[self._at(name, "write")] = data

    def create_exclusively(self, name: str, data: bytes, durable: bool = True) -> bool:
        return self.files.setdefault(self._at(name, "create"), data) == data

    def delete(self, name: str) -> None:
        self.files.pop(self._at(name, "delete"), None)

    def list(self, folder: str = "") -> list[str]:
        here = self._at(f"{folder}/" if folder else "")
        return sorted({name[len(here) :].partition("/")[0] for name in self.files if name.startswith(here)})

    def size(self, name: str) -> int | None:
        data = self.files.get(self._at(name))
        return None if data is None else len(data)

    def sweep(self, names: object) -> None:
        pass

    def zarr_store(self) -> None:  # type: ignore[override]
        raise AssertionError("groups are written without zarr's store")


class Actor(threading.Thread):
    """A process that extracts; its steps are the accesses to the storage."""

    def __init__(self, number: int, files: dict[str, bytes], clips: tuple[str, ...], machine: str, now: float) -> None:
        super().__init__(daemon=True)
        self.number, self.clips, self.now, self.machine = number, clips, now, machine
        self.place, self.heart = Files(files, self), Files(files)
        self.turn, self.rest = threading.Semaphore(0), threading.Semaphore(0)
        self.killed = self.ended = False
        self.next = ""  # the access that it is about to make
        self.leases: Leases | None = None
        self.error: BaseException | None = None
        self.start()
        self.rest.acquire()

    def wait_for_turn(self, access: str, name: str) -> None:
        """Stop here until the next step; a killed process goes no further."""
        self.next = f"{access} {name}"
        if threading.current_thread() is self:
            self.rest.release()
            self.turn.acquire()
        if self.killed:
            raise Killed

    def step(self) -> None:
        """Let one access happen."""
        if not self.ended:
            self.turn.release()
            self.rest.acquire()

    def kill(self) -> None:
        """Whatever it is about to do does not happen."""
        self.killed = True
        while not self.ended:
            self.step()

    def beat(self) -> None:
        """Its other thread."""
        if self.leases is not None and self.leases._beating and not self.killed:
            place, self.leases.place = (
                self.leases.place,
                self.heart.child(*self.leases.place.name.strip("/").split("/")),
            )
            self.leases.beat()
            self.leases.place = place

    def run(self) -> None:
        try:
            self.extract()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self.rest.release()

    def extract(self) -> None:
        """What an extraction does, with a look at the clock where it would wait."""
        group = FeatureGroup.open_or_create(self.place, identity(views=VIEWS), self.clips, DIM, UNIT, {})
        self.leases = Leases(group.place, beats=False, clock=lambda: self.now, beat_seconds=BEAT, stale_seconds=STALE)
        self.leases.new_holder = lambda: Holder(  # type: ignore[method-assign]
            f"{self.number}-{self.now}",
            self.leases.owner,
            "host",
            self.number,
            self.machine,
            "1",
            BEAT,  # type: ignore[union-attr]
        )
        with self.leases:
            while todo := group.todo_units():
                for unit in todo:
                    lease = self.leases.claim(f"{unit:06d}")
                    if lease is None or group.commit_of(unit) is not None:
                        if lease is not None:
                            lease.release()
                        continue
                    with lease, suppress(CacheError):
                        group.write_unit(unit, *made(group, unit, self.number), lease=lease)


def made(group: FeatureGroup, unit: int, number: int) -> tuple[np.ndarray, list[ClipRecord]]:
    """What an actor makes of a unit: another value than any other actor."""
    clips = group.unit_clips(unit)
    features = np.full((len(clips), len(VIEWS), DIM), number, dtype=np.float16)
    features += np.arange(unit, unit + 1, dtype=np.float16) / 8
    return features, [ClipRecord(c, Status.PRESENT) for c in clips]


class Extraction(RuleBasedStateMachine):
    """A few writers, and what can happen to them."""

    @initialize(units=st.sampled_from([1, 1, 2]), leftovers=st.booleans())
    def begin(self, units: int, leftovers: bool) -> None:
        self.files: dict[str, bytes] = {}
        self.clips = tuple(f"clip{i}" for i in range(units))
        self.actors: list[Actor] = []
        self.crashed = False
        self.group = FeatureGroup.open_or_create(Files(self.files), identity(views=VIEWS), self.clips, DIM, UNIT, {})
        if leftovers:  # of a writer that was killed after its chunks
            chunks, _ = self.group._encode(0, *made(self.group, 0, 99))
            for name, data in chunks.items():
                self.group.place.create_exclusively(name, data)
        for _ in range(2):
            self.spawn()

    @precondition(lambda self: len(self.actors) < 5)
    @rule()
    def spawn(self) -> None:
        number = len(self.actors) + 1
        self.actors.append(Actor(number, self.files, self.clips, "", 1e6 * number))

    def pick(self, number: int) -> Actor:
        return self.actors[number % len(self.actors)]

    @rule(number=st.integers(0, 4), steps=st.integers(1, 40))
    def go_on(self, number: int, steps: int) -> None:
        actor = self.pick(number)
        for _ in range(steps):
            actor.step()
            self.check_commits()

    @rule(number=st.integers(0, 4), moment=st.sampled_from(MOMENTS), alone=st.booleans())
    def go_on_until(self, number: int, moment: str, alone: bool) -> None:
        """Stop right before an access at which a stall hurts most; alone: the others stall until they seem dead."""
        actor = self.pick(number)
        for step in range(200):
            if actor.ended or (step and actor.next.startswith(moment)):
                return
            if alone:
                actor.now += STALE / 5
                actor.beat()
            actor.step()
            self.check_commits()

    @rule(number=st.integers(0, 4))
    def crash(self, number: int) -> None:
        self.crashed = self.crashed or not self.pick(number).ended
        self.pick(number).kill()

    @rule(seconds=st.sampled_from([BEAT, STALE]), alive=st.sets(st.integers(0, 4)))
    def time_passes(self, seconds: float, alive: set[int]) -> None:
        """Some beat meanwhile, the rest stall with all their threads; clocks run a little differently."""
        for actor in self.actors:
            actor.now += seconds * (1 + actor.number / 100)
            if actor.number - 1 in alive:
                actor.beat()

    def commits(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if "commits/" in name}

    def check_commits(self) -> None:
        """No commit turns into another: it goes first (a unit is made todo), then the next comes."""
        now = self.commits()
        before = getattr(self, "before", {})
        assert all(now[name] == data for name, data in before.items() if name in now)
        self.before = now

    @invariant()
    def what_is_whole_is_one_actors(self) -> None:
        """Where chunks match their commit, the features are one actor's."""
        if not hasattr(self, "group"):
            return
        for unit in range(self.group.num_units):
            commit = self.group.commit_of(unit)
            if commit is None or self.group._is_damaged(unit, commit):
                continue
            values = np.stack([v[:1] for v in self.group._read_unit(unit)], axis=1)
            assert len(np.unique(values)) == 1
            assert commit["sha256"] == hashlib.sha256(values.tobytes()).hexdigest()

    def finish(self, actors: list[Actor]) -> None:
        """Let everybody come to an end, taking turns; time passes where they wait for each other."""
        for _ in range(400):
            if all(actor.ended for actor in actors):
                break
            for actor in actors:
                for _ in range(25):
                    actor.step()
                    self.check_commits()
            for actor in actors:
                actor.now += BEAT
                if not actor.ended:
                    actor.beat()
        assert all(actor.ended for actor in actors), "somebody waits for ever"
        for actor in actors:
            if actor.error is not None:
                raise actor.error

    def teardown(self) -> None:
        if not hasattr(self, "actors"):
            return
        self.finish(self.actors)
        if not self.crashed:
            assert self.group.todo_units() == []
            assert self.group.damaged_units() == []
            assert not any("leases/0" in name for name in self.files)
        for unit in self.group.damaged_units():
            self.group.forget_unit(unit)
        last = Actor(50, self.files, self.clips, "", 0.0)
        self.finish([last])
        assert self.group.todo_units() == []
        assert self.group.damaged_units() == []
        self.what_is_whole_is_one_actors()
        assert self.group.load().digest == self.group.digest()


def test_writers_that_interleave_stall_and_crash() -> None:
    Extraction.TestCase.settings = settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    Extraction.TestCase("runTest").runTest()


class Stage:
    """A unit with a chunk that a killed writer left, and two writers."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.group = FeatureGroup.open_or_create(Files(self.files), identity(views=VIEWS), ("clip0",), DIM, UNIT, {})
        left, _ = self.group._encode(0, *made(self.group, 0, 99))
        self.group.place.create_exclusively(CHUNK, left[CHUNK])
        self.slow, self.quick = (Actor(n, self.files, ("clip0",), "", 1e6 * n) for n in (1, 2))

    def until(self, actor: Actor, moment: str, alone: bool = False) -> list[str]:
        """Let an actor work up to a moment; the accesses that it made."""
        made = []
        while not actor.ended and not (made and actor.next.startswith(moment)):
            assert len(made) < 400, made[-20:]
            if alone:
                actor.now += STALE / 5
                actor.beat()
            made.append(actor.next)
            actor.step()
        return made

    def value(self) -> float | None:
        """Whose features are there, if they are sound and committed."""
        if self.group.todo_units() or self.group.damaged_units():
            return None
        return float(self.group.load().features[0, 0, 0])

    def end(self) -> float | None:
        """Let both come to an end."""
        for actor in (self.slow, self.quick):
            self.until(actor, "never", alone=True)
            assert actor.error is None
        return self.value()


CHUNK = "features/c/0/0/0"


def test_a_stalled_holder_cannot_replace_a_chunk_of_its_successor() -> None:
    stage = Stage()
    stage.until(stage.slow, "create features")
    stage.until(stage.quick, "never", alone=True)
    assert stage.value() == 2
    made = stage.until(stage.slow, "never")
    assert "delete " + CHUNK not in made, "the check before a chunk is deleted"
    assert stage.end() == 2


def test_a_stalled_holder_that_deletes_a_chunk_of_its_successor_makes_the_unit_todo() -> None:
    stage = Stage()
    stage.until(stage.slow, "delete features")
    stage.until(stage.quick, "never", alone=True)
    assert stage.value() == 2
    stage.slow.step()
    assert stage.group.damaged_units() == [0], "a missing chunk is never taken for features"
    made = stage.until(stage.slow, "delete commits")
    assert not any(access.startswith("create features") for access in made), "the check after a chunk was deleted"
    assert stage.group.damaged_units() == [0]
    assert stage.end() == 1


def test_a_holder_sees_after_its_commit_that_a_former_one_deleted_a_chunk() -> None:
    stage = Stage()
    stage.until(stage.slow, "delete features")
    stage.until(stage.quick, "create commits", alone=True)
    stage.slow.step()
    for _ in range(40):  # it sees that it has lost its lease, and no commit that it could have damaged
        stage.slow.step()
    assert stage.group.todo_units() == [0]
    stage.until(stage.quick, "never")
    assert stage.value() == 2
    assert stage.end() == 2


def test_a_stalled_commit_does_not_pass_for_the_features_of_the_successor() -> None:
    stage = Stage()
    stage.until(stage.slow, "create commits")
    stage.until(stage.quick, "create commits", alone=True)
    stage.slow.step()
    assert stage.group.damaged_units() == [0]
    for _ in range(40):
        stage.slow.step()
    assert stage.group.todo_units() == [0]
    stage.until(stage.quick, "never")
    assert stage.value() == 2
    assert stage.end() == 2


def test_a_commit_of_a_former_holder_counts_if_it_came_first() -> None:
    stage = Stage()
    stage.until(stage.slow, "create commits")
    stage.until(stage.quick, "create features", alone=True)
    stage.until(stage.slow, "never")
    assert stage.value() == 1
    made = stage.until(stage.quick, "never", alone=True)
    assert not any(access.startswith("delete features") for access in made), "a committed unit is left alone"
    assert stage.end() == 1
