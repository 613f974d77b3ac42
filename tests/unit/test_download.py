"""Weight files come whole or not at all, however bad the connection and the server are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from extractors import download
from extractors.published import Published
from extractors.weights import WeightsError, WeightsFolder
from tests.conftest import ROOT
from tests.file_server import CONTENT, DIGEST, OTHER, Answer, Server, check_whole, files, published, quiet, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine; attempts follow without a pause."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(download, "sleep", lambda _: None)
    with serving() as script:
        yield script


@pytest.fixture
def folder(tmp_path: Path) -> WeightsFolder:
    """A folder that is not there yet."""
    return WeightsFolder(tmp_path / "weights" / "deep")


def failure(folder: WeightsFolder, file: Published, attempts: int = 4, timeout_seconds: float = 30) -> str:
    with pytest.raises(WeightsError) as caught:
        folder.fetch(file, quiet, timeout_seconds, attempts)
    assert not (folder.folder / file.file).exists()
    return str(caught.value)


def test_a_file_comes_whole_and_only_once(server: Server, folder: WeightsFolder) -> None:
    file = published(server.url)
    assert folder.find(file).sha256 is None
    seen: list[tuple[int, int | None]] = []
    assert folder.fetch(file, lambda *step: seen.append(step)) == folder.folder / "a.pth"
    check_whole(folder, server.url)
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    folder.fetch(file, quiet)
    assert server.requests == [("/a.pth", "")]
    for found in (folder.find(file), folder.verified(file), folder.check(file)):
        assert (found.path, found.sha256, found.published) == (folder.folder / "a.pth", DIGEST, file)


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_goes_on_where_it_was(server: Server, folder: WeightsFolder, reset: bool) -> None:
    server.answers = [*[Answer(cut_after=200_000, reset=reset) for _ in range(4)], Answer()]
    # Each attempt brings the file further; a rough cut may take what was on its way.
    folder.fetch(published(server.url), quiet, attempts=10 if reset else 2)
    check_whole(folder, server.url)
    starts = [int(asked.strip("bytes=-") or 0) for _, asked in server.requests]
    assert len(starts) == 5
    assert starts == sorted(starts)
    if not reset:
        assert starts == sorted(set(starts))
        assert server.sent <= len(CONTENT) + 4 * (1 << 16)  # at most a chunk is lost each time


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: Server, folder: WeightsFolder) -> None:
    server.answers = [Answer(cut_after=500_000), Answer(ranges=False)]
    folder.fetch(published(server.url), quiet)
    check_whole(folder, server.url)
    assert server.requests[1][1] != ""


def rest_from(start: int, version: str = '"v1"') -> Answer:
    """As many bytes as are missing after a cut, from anywhere, whatever was asked for."""
    end = start + len(CONTENT) - 458_752
    where = {"Content-Range": f"bytes {start}-{end - 1}/{len(CONTENT)}"}
    return Answer(206, CONTENT[start:end], where, version)


@pytest.mark.parametrize(
    ("old", "answers"),
    [
        pytest.param(OTHER, [], id="another version, whole"),
        pytest.param(OTHER, [rest_from(458_752, '"v2"')], id="the rest of another version"),
        pytest.param(CONTENT, [rest_from(100)], id="another part of the same version"),
        pytest.param(OTHER, [Answer(206, headers={"Content-Range": "bytes */*"})], id="no telling which part"),
    ],
)
def test_what_does_not_go_on_from_the_part_is_read_from_the_start(
    server: Server, folder: WeightsFolder, old: bytes, answers: list[Answer]
) -> None:
    server.answers = [Answer(content=old, cut_after=500_000), *answers, Answer(version='"v2"')]
    folder.fetch(published(server.url), quiet)
    check_whole(folder, server.url)


def test_a_server_that_sends_less_than_the_rest_is_asked_again(server: Server, folder: WeightsFolder) -> None:
    some = {"Content-Range": f"bytes 458752-599999/{len(CONTENT)}"}
    server.answers = [Answer(cut_after=500_000), Answer(206, CONTENT[458752:600_000], some), Answer()]
    folder.fetch(published(server.url, digest=""), quiet)
    check_whole(folder, server.url)
    assert server.requests[1:] == [("/a.pth", "bytes=458752-"), ("/a.pth", "bytes=600000-")]


def test_without_a_mark_of_the_version_nothing_is_pieced_together(server: Server, folder: WeightsFolder) -> None:
    server.answers = [Answer(version="", content=OTHER, cut_after=500_000), Answer(version="")]
    folder.fetch(published(server.url), quiet)
    check_whole(folder, server.url)
    assert server.requests == [("/a.pth", ""), ("/a.pth", "")]


def test_a_weak_mark_is_none_but_a_date_is_one(server: Server, folder: WeightsFolder) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    weak = Answer(version='W/"v1"', headers={"Last-Modified": date}, cut_after=500_000)
    server.answers = [weak, Answer(version=date, headers={"ETag": 'W/"v2"', "Last-Modified": date})]
    folder.fetch(published(server.url), quiet)
    check_whole(folder, server.url)
    assert server.sent < 1.2 * len(CONTENT)


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, folder: WeightsFolder) -> None:
    server.answers = [Answer(content=CONTENT * 2, cut_after=len(CONTENT) + 300_000), Answer()]
    folder.fetch(published(server.url), quiet)
    check_whole(folder, server.url)
    assert len(server.requests) == 3


def test_a_wrong_digest_is_deleted_and_said(server: Server, folder: WeightsFolder) -> None:
    server.answers = [Answer(content=OTHER)]
    message = failure(folder, published(server.url))
    assert hashlib.sha256(OTHER).hexdigest() in message
    assert DIGEST[:8] in message
    assert files(folder) == set()
    server.answers = [Answer()]
    folder.fetch(published(server.url, DIGEST.upper()), quiet)  # authors write digests either way
    check_whole(folder, server.url)


@pytest.mark.parametrize(
    ("status", "said", "requests"),
    [
        (404, "no such file any more", 1),
        (410, "no such file any more", 1),
        (403, "refuses access (status 403 Forbidden)", 1),
        (418, "answered with status 418", 1),
        (503, "busy or broken (status 503 Service Unavailable); gave up after 3 attempts", 3),
    ],
)
def test_what_a_server_refuses_is_said_with_what_to_do(
    server: Server, folder: WeightsFolder, status: int, said: str, requests: int
) -> None:
    server.answers = [Answer(status, b"")]
    message = failure(folder, published(server.url), attempts=3)
    assert said in message
    assert server.url in message
    assert "its page is https://example.org/project" in message
    assert "pipe weights add a.pth" in message
    assert len(server.requests) == requests


def test_a_busy_server_is_asked_again(server: Server, folder: WeightsFolder) -> None:
    server.answers = [Answer(503, b""), Answer(429, b""), Answer()]
    folder.fetch(published(server.url), quiet)
    check_whole(folder, server.url)


def test_redirects_are_followed_to_http_only(server: Server, folder: WeightsFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    for target in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/a.pth"):
        server.answers = [Answer(302, headers={"Location": target})]
        assert "points to an address that is not fetched" in failure(folder, published(server.url))
    server.answers = [Answer(302, headers={"Location": "/a.pth"})]
    assert "without end" in failure(folder, published(server.url))
    for url in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/a.pth", str(tmp_path / "secret")):
        assert "only http:// and https:// are" in failure(folder, published(url))
    server.answers = [Answer(301, headers={"Location": "/elsewhere/b.bin"}), Answer()]
    folder.fetch(published(server.url), quiet)
    assert server.requests[-1][0] == "/elsewhere/b.bin"
    check_whole(folder, server.url)


def test_a_web_page_is_no_weight_file(server: Server, folder: WeightsFolder) -> None:
    page = b"<!doctype html><html>Please log in</html>"
    server.answers = [Answer(content=page, headers={"Content-Type": "text/html; charset=utf-8"})]
    assert "a web page (text/html)" in failure(folder, published(server.url))
    server.answers = [Answer(content=page)]  # it calls the page a file
    assert "is a web page" in failure(folder, published(server.url, digest=""))
    server.answers = [Answer(headers={"Content-Encoding": "gzip"})]
    assert "packed (gzip)" in failure(folder, published(server.url))
    assert files(folder) == set()


def test_a_server_that_lies_about_the_length_does_not_pass(server: Server, folder: WeightsFolder) -> None:
    server.answers = [Answer(announced=len(CONTENT) + 1000, ranges=False)]
    message = failure(folder, published(server.url, digest=""), attempts=3)
    assert "the connection was cut" in message
    assert len(server.requests) <= 4
    server.answers = [Answer(announced=len(CONTENT) - 1000, version='"v2"')]
    assert "was deleted" in failure(folder, published(server.url))


def test_a_file_of_unknown_length_comes_whole(server: Server, folder: WeightsFolder) -> None:
    chunked = {"Transfer-Encoding": "chunked", "Content-Length": ""}
    server.answers = [Answer(headers=chunked, cut_after=500_000), Answer(headers=chunked, ranges=False)]
    seen: list[tuple[int, int | None]] = []
    folder.fetch(published(server.url), lambda *step: seen.append(step))
    check_whole(folder, server.url)
    assert {total for _, total in seen} == {None}
    assert len(server.requests) == 2


def test_a_silent_server_is_left(server: Server, folder: WeightsFolder) -> None:
    server.answers = [Answer(cut_after=300_000, stalls=True), Answer()]
    start = time.monotonic()
    folder.fetch(published(server.url), quiet, timeout_seconds=0.3)
    assert time.monotonic() - start < 5
    check_whole(folder, server.url)
    assert server.requests[1][1] != ""
    (folder.folder / "a.pth").unlink()
    server.answers = [Answer(cut_after=0, stalls=True)]
    assert "silent for 0.2 seconds" in failure(folder, published(server.url), attempts=2, timeout_seconds=0.2)


def test_without_a_connection_the_answer_comes_at_once(
    server: Server, folder: WeightsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "sleep", lambda _: pytest.fail("it waited"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert "no connection" in failure(folder, published(f"http://127.0.0.1:{port}/a.pth"))
    assert "certificate was not accepted" in failure(folder, published(server.url.replace("http:", "https:")))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    assert "the proxy that HTTP_PROXY" in failure(folder, published("http://example.org/a.pth"))
    monkeypatch.delenv("HTTP_PROXY")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message = failure(folder, published("http://example.org/a.pth"))
    assert "may have no internet" in message
    assert "pipe weights add a.pth" in message
    assert "no address of its own" in failure(folder, published(""))


def test_space_is_looked_at_first(server: Server, folder: WeightsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder.folder.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    message = failure(folder, published(server.url))
    assert f"{len(CONTENT)} bytes are still to come" in message
    assert "1000 free" in message
    assert "PIPE_WEIGHTS" in message
    assert "another way" not in message


def test_a_full_disk_keeps_what_came(server: Server, folder: WeightsFolder) -> None:
    folder.folder.mkdir(parents=True)
    program = (
        "import resource, sys; from pathlib import Path; from extractors.download import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try: download(sys.argv[1], Path(sys.argv[2]), lambda *_: None, timeout_seconds=9, attempts=9)\n"
        "except WriteError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, server.url, str(folder.folder / "a.pth.part")]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
    assert "cannot be written (File too large); free some space (300000 bytes are kept, and the same command" in said
    assert (folder.folder / "a.pth.part").stat().st_size == 300_000
    folder.fetch(published(server.url), quiet)
    check_whole(folder, server.url)
    assert server.requests[-1][1] == "bytes=300000-"


def process(folder: WeightsFolder, url: str) -> subprocess.Popen[str]:
    """Fetch in a process of its own; it says when it begins."""
    program = (
        "import sys; from pathlib import Path; from extractors.weights import *\n"
        "from tests.file_server import published, quiet\n"
        "print('begins', flush=True)\n"
        "try: WeightsFolder(Path(sys.argv[1])).fetch(published(sys.argv[2]), quiet)\n"
        "except WeightsError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(folder.folder), url]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_download_goes_on(server: Server, folder: WeightsFolder) -> None:
    server.answers = [Answer(cut_after=700_000, stalls=True), Answer()]
    part = folder.folder / "a.pth.part"
    fetching = process(folder, server.url)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 600_000):
        time.sleep(0.01)
    fetching.send_signal(signal.SIGKILL)
    fetching.communicate(timeout=30)
    there = part.stat().st_size
    assert there > 600_000
    assert not (folder.folder / "a.pth").exists()
    before = server.sent
    folder.fetch(published(server.url), quiet)
    check_whole(folder, server.url)
    assert server.requests[1:] == [("/a.pth", f"bytes={there}-")]
    assert server.sent - before == len(CONTENT) - there


def test_an_interrupted_download_goes_on(server: Server, folder: WeightsFolder) -> None:
    def interrupt(done: int, _: int | None) -> None:
        if done > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.fetch(published(server.url), interrupt)
    assert files(folder) == {"a.pth.part", "a.pth.part.json"}
    there = (folder.folder / "a.pth.part").stat().st_size
    seen: list[int] = []
    folder.fetch(published(server.url), lambda done, _: seen.append(done))
    assert seen[0] == there > 300_000
    check_whole(folder, server.url)
    (folder.folder / "a.pth").rename(folder.folder / "a.pth.part")  # killed just before it was named
    record = {"url": server.url, "version": '"v1"', "bytes": len(CONTENT)}
    (folder.folder / "a.pth.part.json").write_text(json.dumps(record))
    count = len(server.requests)
    folder.fetch(published(server.url), quiet)
    check_whole(folder, server.url)
    assert len(server.requests) == count


def test_two_processes_fetch_a_file_once(server: Server, folder: WeightsFolder) -> None:
    server.answers = [Answer(cut_after=500_000, stalls=True), Answer()]
    both = [process(folder, server.url) for _ in range(2)]
    for fetching in both:
        assert fetching.stdout is not None
        assert fetching.stdout.readline() == "begins\n"
    time.sleep(0.5)
    server.released.set()  # the one connection is cut, and goes on
    for fetching in both:
        assert fetching.communicate(timeout=60)[0] == ""
        assert fetching.returncode == 0
    check_whole(folder, server.url)
    assert [bool(asked) for _, asked in server.requests] == [False, True]
