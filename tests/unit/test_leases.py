"""Leases: one holder at a time, the dead are succeeded, and nobody's clock is believed but one's own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import cache.holders
import cache.places
from cache.holders import HEART, Holder, new_holder, process_started
from cache.layout import CacheError
from cache.leases import Lease, LeaseLost, Leases, claim_all
from cache.places import LocalPlace

BEAT, STALE = 5.0, 60.0


class Clock:
    """Seconds of one machine; machines differ in where they start and how fast they run."""

    def __init__(self, now: float = 0.0, rate: float = 1.0) -> None:
        self.now, self.rate = now, rate

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds * self.rate


def leases(folder: Path, clock: Clock | None = None, machine: str = "other machine", **settings: float) -> Leases:
    """Leases of a process that others take to be on another machine: nobody can look whether it lives."""
    made = Leases(folder, clock=clock or Clock(), beats=False, **settings)
    made.new_holder = lambda: Holder(
        "claim" + os.urandom(4).hex(), made.owner, "far", 7, machine, "1", made.beat_seconds
    )
    return made


def held(lease: Lease | None) -> Lease:
    assert lease is not None
    lease.check()
    return lease


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "leases").iterdir() if not p.name.startswith("beat-"))


def test_one_holds_and_the_other_waits_its_turn(tmp_path: Path) -> None:
    one, two = leases(tmp_path), leases(tmp_path)
    lease = held(one.claim("000001"))
    assert two.claim("000001") is None
    assert one.claim("000001") is None, "not twice in one process either"
    other = held(two.claim("000002"))
    lease.release()
    assert held(two.claim("000001")).name == "000001"
    with pytest.raises(LeaseLost, match="no longer holds '000001'"):
        lease.check()
    lease.release()
    other.check()


def test_the_holder_is_named(tmp_path: Path) -> None:
    one = Leases(tmp_path, beats=False)
    assert one.holder("000001") is None
    one.claim("000001")
    holder = one.holder("000001")
    assert holder is not None
    assert str(holder) == f"process {os.getpid()} on {holder.host}"
    assert holder.machine
    assert holder.started


def test_a_holder_that_beats_keeps_its_lease_for_ever(tmp_path: Path) -> None:
    clock = Clock()
    one, two = leases(tmp_path), leases(tmp_path, clock)
    lease = held(one.claim("a"))
    for _ in range(50):
        assert two.claim("a") is None
        clock.pass_by(STALE * 0.9)
        one.beat()
    lease.check()


def test_a_holder_without_heartbeat_is_succeeded_and_knows_it(tmp_path: Path) -> None:
    clock = Clock()
    one, two, three = leases(tmp_path), leases(tmp_path, clock), leases(tmp_path, clock)
    lease = held(one.claim("a"))
    assert two.claim("a") is None
    clock.pass_by(STALE - 0.1)
    assert two.claim("a") is None
    assert three.claim("a") is None
    clock.pass_by(0.1)
    successor = held(two.claim("a"))
    assert files(tmp_path) == ["a.000002.lease"]
    with pytest.raises(LeaseLost, match="process 7 on far does"):
        lease.check()
    one.beat()
    lease.release()
    successor.check()
    assert three.claim("a") is None


def test_a_pause_of_the_observer_is_not_held_against_the_holder(tmp_path: Path) -> None:
    """It looked once, slept for an hour, and the holder beat meanwhile."""
    clock = Clock()
    one, two = leases(tmp_path), leases(tmp_path, clock)
    held(one.claim("a"))
    assert two.claim("a") is None
    one.beat()
    clock.pass_by(3600)
    assert two.claim("a") is None


def test_a_slow_look_does_not_count_as_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server that takes an hour to answer: what it says is of some moment in that hour."""
    clock = Clock()
    one, two = leases(tmp_path), leases(tmp_path, clock)
    held(one.claim("a"))
    real = LocalPlace.read_bytes

    def slow(place: LocalPlace, name: str) -> bytes:
        data = real(place, name)
        clock.pass_by(3600)
        return data

    monkeypatch.setattr(LocalPlace, "read_bytes", slow)
    assert two.claim("a") is None
    monkeypatch.undo()
    assert two.claim("a") is None


@pytest.mark.parametrize("offset", [-1e9, 0.0, 1e9])
@pytest.mark.parametrize("rate", [0.9, 1.1])
def test_clocks_that_differ_do_not_matter(tmp_path: Path, offset: float, rate: float) -> None:
    mine, theirs = Clock(), Clock(offset, rate)
    one, two = leases(tmp_path, mine), leases(tmp_path, theirs)
    lease = held(one.claim("a"))
    for _ in range(40):
        for clock in (mine, theirs):
            clock.pass_by(BEAT)
        one.beat()
        assert two.claim("a") is None
    lease.check()
    for _ in range(2):
        taken = two.claim("a")
        theirs.pass_by(STALE / rate)
    held(taken)


def test_dates_of_files_do_not_matter(tmp_path: Path) -> None:
    one, two = leases(tmp_path), leases(tmp_path)
    held(one.claim("a"))
    for path in (tmp_path / "leases").iterdir():
        os.utime(path, (1, 1))
    assert two.claim("a") is None


def test_an_impatient_observer_waits_for_a_leisurely_holder(tmp_path: Path) -> None:
    """Machines with different settings: the holder's beat is in its file."""
    clock = Clock()
    one = leases(tmp_path, beat_seconds=100.0, stale_seconds=1000.0)
    two = leases(tmp_path, clock, beat_seconds=0.1, stale_seconds=1.0)
    held(one.claim("a"))
    assert two.claim("a") is None
    clock.pass_by(399)
    assert two.claim("a") is None
    clock.pass_by(1)
    held(two.claim("a"))


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"claim": 1}', b"\xff\xfe", b"[]"])
def test_a_lease_that_was_half_written_is_succeeded_after_a_while(tmp_path: Path, content: bytes) -> None:
    clock = Clock()
    two = leases(tmp_path, clock)
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "a.000004.lease").write_bytes(content)
    assert two.holder("a") is None
    assert two.claim("a") is None
    clock.pass_by(STALE - 1)
    assert two.claim("a") is None
    clock.pass_by(1)
    held(two.claim("a"))
    assert files(tmp_path) == ["a.000005.lease"]


def test_a_holder_without_a_counter_is_given_its_time(tmp_path: Path) -> None:
    clock = Clock()
    one, two = leases(tmp_path), leases(tmp_path, clock)
    held(one.claim("a"))
    (tmp_path / "leases" / f"beat-{one.owner}.lease").unlink()
    assert two.claim("a") is None
    clock.pass_by(STALE / 2)
    one.beat()
    assert two.claim("a") is None
    clock.pass_by(STALE / 2)
    assert two.claim("a") is None


def test_a_dead_process_of_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    code = (
        f"from cache.leases import Leases; l = Leases({str(tmp_path)!r}); l.claim('a'); print(1, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    two = Leases(tmp_path, beats=False)
    assert two.claim("a") is None
    process.kill()
    process.wait()
    held(two.claim("a"))
    process.stdin.close()
    process.stdout.close()


def test_a_process_number_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    one, two = Leases(tmp_path, beats=False), Leases(tmp_path, beats=False)
    mine = new_holder(one.owner, BEAT)
    one.new_holder = lambda: Holder(**{**vars(mine), "started": "1"})
    assert one.claim("a") is not None
    held(two.claim("a"))


@pytest.mark.parametrize("machine", ["", "other machine"])
def test_process_numbers_of_another_machine_say_nothing(tmp_path: Path, machine: str) -> None:
    one, two = leases(tmp_path, machine=machine), Leases(tmp_path, beats=False)
    held(one.claim("a"))
    assert two.claim("a") is None


def test_what_lives_is_known_also_where_proc_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_started(os.getpid())
    assert process_started(2**22 + 1) is None
    monkeypatch.setattr(cache.holders, "Path", lambda _: Path("/nowhere"))
    assert process_started(os.getpid()) == ""
    assert process_started(1) == ""
    assert process_started(2**22 + 1) is None


def test_two_that_want_to_succeed_one_dead_holder_do_not_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second judged the dead one before the first took over, and acts after the first is done and gone."""
    clock = Clock()
    dead, one, two = leases(tmp_path), leases(tmp_path, clock), leases(tmp_path, clock)
    held(dead.claim("a"))
    assert one.claim("a") is None
    assert two.claim("a") is None
    clock.pass_by(STALE)
    real, late = LocalPlace.create_exclusively, []

    def interrupted(place: LocalPlace, name: str, data: bytes, durable: bool = True) -> bool:
        if not late:
            late.append(1)
            held(one.claim("a")).release()
            late.append(held(one.claim("a")))  # generation 1 again
        return real(place, name, data, durable)

    monkeypatch.setattr(LocalPlace, "create_exclusively", interrupted)
    assert two.claim("a") is None
    late[1].check()
    assert files(tmp_path) == ["a.000001.lease"]


def test_a_listing_that_is_out_of_date_does_not_make_two_holders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS clients remember listings; creating a file makes them look again."""
    clock = Clock()
    dead, one, two = leases(tmp_path), leases(tmp_path, clock), leases(tmp_path)
    held(dead.claim("a"))
    assert one.claim("a") is None
    clock.pass_by(STALE)
    lease = held(one.claim("a"))
    real, looks = LocalPlace.list, []

    def remembered(place: LocalPlace, folder: str = "") -> list[str]:
        looks.append(folder)
        return [] if len(looks) == 1 else real(place, folder)

    monkeypatch.setattr(LocalPlace, "list", remembered)
    assert two.claim("a") is None
    assert len(looks) > 1
    lease.check()
    assert files(tmp_path) == ["a.000002.lease"]


def test_a_thread_beats_for_all_leases_of_a_process(tmp_path: Path) -> None:
    one = Leases(tmp_path / "one", beat_seconds=0.02, stale_seconds=1)
    two = Leases(tmp_path / "two", beat_seconds=0.02, stale_seconds=1)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with one, two:
        held(one.claim("a"))
        held(two.claim("a"))
        held(two.claim("b"))
        counters = [tmp_path / n.place.name / "leases" / f"beat-{n.owner}.lease" for n in (one, two)]
        before = [int(c.read_bytes()) for c in counters]
        deadline = time.monotonic() + 5
        while any(int(c.read_bytes()) < b + 3 for c, b in zip(counters, before, strict=True)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [t.name for t in threading.enumerate()].count("heartbeat") == 1
    deadline = time.monotonic() + 5
    while any(t.name == "heartbeat" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list((tmp_path / "one" / "leases").iterdir()) == []


def test_many_short_leases_do_not_stop_the_heart(tmp_path: Path) -> None:
    """Every one of them wakes the thread."""
    with Leases(tmp_path, beat_seconds=0.1, stale_seconds=1) as one:
        held(one.claim("a"))
        counter = tmp_path / "leases" / f"beat-{one.owner}.lease"
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            with Leases(tmp_path, beat_seconds=0.1, stale_seconds=1) as other:
                held(other.claim("b"))
            time.sleep(0.01)
        assert int(counter.read_bytes()) >= 3


def test_a_lease_of_before_does_not_give_back_anothers(tmp_path: Path) -> None:
    """Its file went, and the next claim made one of the same name."""
    clock = Clock()
    one, two = leases(tmp_path), leases(tmp_path, clock)
    lease = held(one.claim("a"))
    assert two.claim("a") is None
    clock.pass_by(STALE)
    held(two.claim("a")).release()
    other = held(two.claim("a"))
    assert files(tmp_path) == ["a.000001.lease"]
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()
    one.close()
    other.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_holds_nothing_of_its_parent(tmp_path: Path) -> None:
    one = Leases(tmp_path)
    lease = held(one.claim("a"))
    assert HEART._members
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        code = 1
        try:
            alone = not HEART._members
            lease.release()
            one.close()
            for act in (lambda: one.claim("b"), lease.check):
                try:
                    act()
                except CacheError:
                    code += 1
            code = 0 if code == 3 and alone else code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lease.check()
    one.close()


def test_waiting_ends_with_a_lease_or_with_the_time(tmp_path: Path) -> None:
    one = Leases(tmp_path, beats=False)
    two = Leases(tmp_path, beats=False)
    leases_of_one = [held(one.claim(name)) for name in ("a", "b")]
    assert two.wait_for_any([], 5) is None
    assert two.wait_for_any(["a", "b"], 0.0) is None
    threading.Timer(0.1, leases_of_one[1].release).start()
    got = two.wait_for_any(["a", "b"], 10)
    assert held(got).name == "b"
    with pytest.raises(CacheError, match=rf"process {os.getpid()} on .* holds 'a' for 0 seconds"):
        two.hold("a", 0)


def test_those_who_wait_do_not_burden_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of waiting for a thousand leases: pauses grow to a heartbeat, and a look is at few of them."""
    clock = Clock()
    one, two = leases(tmp_path), leases(tmp_path, clock)
    names = [f"{i:06d}" for i in range(1000)]
    held(one.claim(names[0]))
    for name in names[1:]:
        (tmp_path / "leases" / f"{name}.000001.lease").write_bytes(
            (tmp_path / "leases" / f"{names[0]}.000001.lease").read_bytes()
        )
    asked = [0]

    def counted(place: LocalPlace, name: str) -> bytes:
        asked[0] += 1
        return real(place, name)

    real = LocalPlace.read_bytes
    monkeypatch.setattr(LocalPlace, "read_bytes", counted)
    monkeypatch.setattr(time, "sleep", clock.pass_by)
    assert two.wait_for_any(names, 59) is None
    assert asked[0] < 60 * 20


def test_free_ones_come_first(tmp_path: Path) -> None:
    one, two = leases(tmp_path), leases(tmp_path)
    names = [f"{i:06d}" for i in range(40)]
    for name in names[:-1]:
        held(one.claim(name))
    lease = two.wait_for_any(names, 0)
    assert held(lease).name == names[-1]


def test_all_or_none(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("audio", "video")]
    for folder in folders:
        folder.mkdir()
    mine, theirs = [leases(f) for f in folders], [leases(f) for f in folders]
    other = held(theirs[1].claim("a"))
    assert claim_all([(group, "a") for group in mine]) is None
    assert files(folders[0]) == []
    other.release()
    both = claim_all([(group, "a") for group in mine])
    assert both is not None
    assert [held(lease).name for lease in both] == ["a", "a"]
    assert claim_all([(group, "a") for group in theirs]) is None


def test_all_or_none_also_when_something_breaks(tmp_path: Path) -> None:
    mine = leases(tmp_path)
    with pytest.raises(CacheError, match="no name of a lease"):
        claim_all([(mine, "a"), (mine, "a/b")])
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a.b", "beat-a"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(CacheError, match="no name of a lease"):
        leases(tmp_path).claim(name)


def test_too_little_patience_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="stale_seconds 10 is less than 4 beats of 5 seconds"):
        Leases(tmp_path, beat_seconds=5, stale_seconds=10)


def test_a_heartbeat_that_fails_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    one, two = leases(tmp_path), leases(tmp_path, clock)
    lease = held(one.claim("a"))

    def stale_handle(place: LocalPlace, name: str, data: bytes) -> None:
        raise OSError(116, "Stale file handle", name)

    monkeypatch.setattr(LocalPlace, "overwrite", stale_handle)
    one.beat()
    lease.check()
    assert two.claim("a") is None
    clock.pass_by(STALE)
    monkeypatch.undo()
    held(two.claim("a"))
    with pytest.raises(LeaseLost, match=r"last heartbeat failed: .*Stale file handle"):
        lease.check()
    one.beat()
    assert one.beat_error is None


def test_a_lease_that_could_not_be_given_back_is_not_kept_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = leases(tmp_path), leases(tmp_path)
    lease = held(one.claim("a"))

    def refused(place: LocalPlace, name: str) -> None:
        raise OSError(5, "Input/output error", name)

    monkeypatch.setattr(LocalPlace, "delete", refused)
    lease.release()
    assert two.claim("a") is None
    monkeypatch.undo()
    one.beat()
    held(two.claim("a"))


def test_a_folder_that_has_gone_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "group"
    folder.mkdir()
    one = leases(folder)
    lease = held(one.claim("a"))
    folder.rename(tmp_path / "elsewhere")
    for act in (lease.check, lambda: one.claim("b")):
        with pytest.raises(CacheError, match=r"is not there .any more.*mount it again"):
            act()
    one.beat()
    assert not folder.exists(), "nothing is written beside the mount"
    lease.release()
    (tmp_path / "elsewhere").rename(folder)
    assert one.beat() is None
    held(one.claim("a"))


def test_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    one, two = leases(tmp_path), leases(tmp_path)
    lease = held(one.claim("a"))
    assert two.claim("a") is None
    lease.release()
    held(two.claim("a"))


def test_a_retry_of_the_file_server_is_not_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and S3: the request was carried out, its answer got lost, and the second one says that the file exists."""
    real = os.link

    def lost_answer(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError(17, "File exists", str(target))

    monkeypatch.setattr(os, "link", lost_answer)
    held(leases(tmp_path).claim("a"))
    assert leases(tmp_path).claim("a") is None
