"""What a decoder's FFmpeg says while it decodes: libraries that hand out concealed pictures drop its complaints.

torchcodec and decord report neither damaged nor concealed pictures. FFmpeg itself does, through its logging callback,
which is installed here for as long as one of them decodes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_ERROR = 16  # FFmpeg's AV_LOG_ERROR; smaller numbers are worse
_CONCEALING = b"concealing"  # said at level "info" by the decoders that can
_KEPT = 3  # messages per pass

_lock = threading.Lock()
_listening: dict[int, list[str]] = {}  # thread -> what was said in it
_installed: dict[str, int] = {}  # library -> how many threads listen


class LogLibrary:
    """The logging functions of one loaded libavutil."""

    def __init__(self, path: str) -> None:
        self._handle = ctypes.CDLL(path)
        self.path = path
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._callback = kind(_hear)
        self._set: Callable[[Any], None] = self._handle.av_log_set_callback
        self._default = self._handle.av_log_default_callback

    def listen(self) -> None:
        """Hear what it says from now on."""
        self._set(self._callback)

    def stop(self) -> None:
        """Leave it to itself again."""
        self._set(self._default)


def _hear(_context: int | None, level: int, text: bytes | None, _values: int | None) -> None:
    """FFmpeg's callback; it runs in the thread that decodes. The text's values are not filled in."""
    if text is None or not ((level & 0xFF) <= _ERROR or text.startswith(_CONCEALING)):
        return
    said = _listening.get(threading.get_ident())
    if said is not None and len(said) < _KEPT:
        said.append(text.decode("utf-8", "replace").strip())


@cache
def log_library(part: str) -> LogLibrary | None:
    """Find the libavutil that a loaded module uses; ``None``: its messages cannot be read here.

    Args:
        part: text that its path contains; empty: the one that no other package brought along.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps.splitlines() if "libavutil" in line}
    bundled = ("av.libs", "decord", "opencv", "cv2")
    if part:
        found = sorted(path for path in paths if part in path)
    else:
        found = sorted(path for path in paths if not any(name in path for name in bundled))
    if len(found) != 1:
        return None
    try:
        return LogLibrary(found[0])
    except (OSError, AttributeError):
        return None


@contextmanager
def complaints(library: LogLibrary) -> Iterator[list[str]]:
    """Collect what FFmpeg complains about in this thread while the block runs."""
    thread, said = threading.get_ident(), list[str]()
    with _lock:
        _listening[thread] = said
        _installed[library.path] = _installed.get(library.path, 0) + 1
        if _installed[library.path] == 1:
            library.listen()
    try:
        yield said
    finally:
        with _lock:
            _installed[library.path] -= 1
            if not _installed[library.path]:
                library.stop()
            _listening.pop(thread, None)
