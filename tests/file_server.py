"""A file server on this machine that answers as badly as a test wants, and a published file that it serves."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from extractors.published import Published
from extractors.weights import WeightsFolder

CONTENT = bytes(range(256)) * 4096 + b"the end"  # 1 MiB and a bit
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[::-1]


def published(url: str = "https://example.org/a.pth", digest: str = DIGEST[:8], file: str = "a.pth") -> Published:
    return Published(
        name="kinetics400",
        file=file,
        url=url,
        digest=digest,
        trained_on="nothing",
        licence="none",
        source="https://example.org/project",
        read=lambda _: {},
    )


def quiet(done: int, total: int | None) -> None:
    """Advance nothing."""


@dataclass
class Answer:
    """How a server answers one request; the default is a file that can be resumed."""

    status: int = 200
    content: bytes = CONTENT
    headers: dict[str, str] = field(default_factory=dict)
    version: str = '"v1"'
    ranges: bool = True
    announced: int | None = None  # bytes that Content-Length says, if others than are sent
    cut_after: int | None = None  # bytes of the body after which the connection ends
    reset: bool = False  # the connection is cut roughly
    stalls: bool = False  # after that many bytes the server is silent instead


@dataclass
class Server:
    """Answers requests in turn; the last answer is for all that follow."""

    answers: list[Answer] = field(default_factory=lambda: [Answer()])
    requests: list[tuple[str, str]] = field(default_factory=list)  # path, Range
    sent: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def next(self, path: str, asked: str) -> Answer:
        self.requests.append((path, asked))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Handler(BaseHTTPRequestHandler):
    """Serves what the script of its server says."""

    script: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        answer = self.script.next(self.path, asked)
        start, status = 0, answer.status
        if asked and answer.ranges and status == 200 and self.headers.get("If-Range") == answer.version:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
        if start >= len(answer.content) > 0:
            start, status = 0, 416
        body = b"" if 300 <= status < 400 else answer.content[start:]
        length = len(body) if answer.announced is None else answer.announced
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length), "ETag": answer.version}
        headers["Connection"] = "close"
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(answer.content) - 1}/{len(answer.content)}"
        self.send_response(status)
        for name, value in (headers | answer.headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):  # a client that is gone
            self.send(body, answer)

    def send(self, body: bytes, answer: Answer) -> None:
        """Send a body, or as much of it as the answer wants."""
        end = len(body) if answer.cut_after is None else answer.cut_after
        for at in range(0, end, 8192):
            piece = body[at : min(at + 8192, end)]
            if answer.headers.get("Transfer-Encoding"):
                piece = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
            self.wfile.write(piece)
            self.script.sent += len(piece)
        if answer.headers.get("Transfer-Encoding") and answer.cut_after is None:
            self.wfile.write(b"0\r\n\r\n")
        if answer.stalls:
            self.script.released.wait(20)
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server, with as many connections as are asked for."""
    script = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script})) as http:
        http.daemon_threads = False
        script.url = f"http://127.0.0.1:{http.server_port}/a.pth"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield script
        finally:
            script.released.set()
            http.shutdown()
            thread.join()


def files(folder: WeightsFolder) -> set[str]:
    """Files in a folder, without locks."""
    return {path.name for path in folder.folder.iterdir() if path.suffix != ".lock"}


def check_whole(folder: WeightsFolder, came_from: str) -> None:
    """Check that the file is there, recorded, and that nothing else is left."""
    assert files(folder) == {"a.pth", "a.pth.json"}
    assert (folder.folder / "a.pth").read_bytes() == CONTENT
    record = json.loads((folder.folder / "a.pth.json").read_text())
    assert record == {"sha256": DIGEST, "bytes": len(CONTENT), "from": came_from}
