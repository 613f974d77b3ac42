"""Frames stored as pictures: a folder of numbered JPEG or PNG files."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode.container import Closing, Facts, explain
from pipeline.errors import MediaFailed

cv2.setNumThreads(1)  # workers are many; each decodes on one thread

_SUFFIXES = (".jpg", ".jpeg", ".png")
_NUMBER = re.compile(r"(\d+)\D*$")  # the last run of digits in a name
_EPSILON_FRAMES = 1e-4  # a stretch that starts at a frame's time, rounded, includes that frame


class FrameReader(Protocol):
    """A clip's stretch of frames, whichever way they are stored."""

    num_frames: int  # frames inside [start, end)
    rate_hz: float | None  # mean frame rate; None: a folder of frames without a stated rate
    facts: Facts  # decoder, codec, width, height, num_frames, ...: plain JSON values

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return `(indices, height, width, 3)` uint8 RGB frames of the stretch, in the order asked for."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FrameFolder(Closing):
    """The pictures of a folder with start <= time < end, sorted by the number in their names.

    Picture k has the time (number of k - smallest number in the folder) / rate.

    Args:
        path: the folder.
        start_seconds: start of the stretch; ``None``: from the first picture.
        end_seconds: end of the stretch, exclusive; ``None``: to the last picture.
        rate_hz: frame rate; needed with a start or an end.
        numbers: the stretch as (first number, number behind the last) instead of times.
        grey: read one channel, `(indices, height, width)`.
        min_frames: fewer pictures in the stretch are an error; motion needs 2.

    Raises:
        MediaFailed: ``missing_file``, ``no_frames``, ``frame_gap`` (numbers missing or twice, or times without a
            rate), ``past_end``, ``one_frame``, ``bad_image``.
    """

    def __init__(
        self,
        path: Path,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        rate_hz: float | None = None,
        *,
        numbers: tuple[int, int] | None = None,
        grey: bool = False,
        min_frames: int = 2,
    ) -> None:
        self._path = path
        self._grey = grey
        self.rate_hz = rate_hz
        names = _numbered(path)
        if numbers is None:
            self.numbers = _stretch(sorted(names), start_seconds, end_seconds, rate_hz, path)
        else:
            self.numbers = _numbered_stretch(names, numbers, path)
        self._names = [names[number] for number in self.numbers]
        self.num_frames = len(self._names)
        if self.num_frames < min_frames:
            raise MediaFailed(
                "one_frame", f"{path.name} has {self.num_frames} frame in the stretch; at least {min_frames} are needed"
            )
        self._size: tuple[int, int] | None = None
        self._size = self._image(0).shape[:2]
        self.facts: Facts = {
            "decoder": f"OpenCV {cv2.__version__}",
            "container": "folder",
            "codec": Path(self._names[0]).suffix.lower().lstrip(".").replace("jpg", "jpeg"),
            "height": self._size[0],
            "width": self._size[1],
            "num_frames": self.num_frames,
            "first_number": self.numbers[0],
            "last_number": self.numbers[-1],
            "file_frames": len(names),
        }
        if rate_hz is not None and numbers is None:
            behind = (self.numbers[-1] - min(names) + 1) / rate_hz
            self.facts["rate_hz"] = rate_hz
            self.facts["seconds"] = self.num_frames / rate_hz
            at_end = self.numbers[-1] == max(names)
            self.facts["missing_seconds"] = max(0.0, end_seconds - behind) if end_seconds and at_end else 0.0

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Decode pictures of the stretch.

        Args:
            indices: positions in the stretch, 0 <= index < ``num_frames``, in any order, with or without repeats.

        Returns:
            `(indices, height, width, 3)` uint8 RGB, `(indices, height, width)` for ``grey``, in the order asked for.

        Raises:
            MediaFailed: ``bad_image``, a picture is damaged or differs in size from the first.
            IndexError: an index outside the stretch.
        """
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(indices):
            if not 0 <= index < self.num_frames:
                raise IndexError(f"frame {index} is outside 0..{self.num_frames - 1}")
            rows.setdefault(int(index), []).append(row)
        height, width = self._size or (0, 0)
        frames = np.empty((len(indices), height, width) if self._grey else (len(indices), height, width, 3), np.uint8)
        for index, places in rows.items():
            frames[places] = self._image(index)
        return frames

    def _image(self, index: int) -> NDArray[np.uint8]:
        name = self._names[index]
        try:
            data = (self._path / name).read_bytes()
        except OSError as error:
            raise MediaFailed("bad_image", f"{name} cannot be read: {explain(error)}") from error
        image = decode_image(data, name, grey=self._grey)
        if self._size is not None and image.shape[:2] != self._size:
            raise MediaFailed(
                "bad_image",
                f"{name} is {image.shape[1]}x{image.shape[0]}, the first frame is {self._size[1]}x{self._size[0]}",
            )
        return image


def decode_image(data: bytes, name: str, *, grey: bool = False) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG picture to `(height, width, 3)` RGB, or to `(height, width)` for ``grey``.

    Args:
        data: contents of the file.
        name: its name, for messages.
        grey: luminance only.

    Raises:
        MediaFailed: ``bad_image``.
    """
    if not _is_complete(data):
        raise MediaFailed("bad_image", f"{name} ({len(data)} bytes) is no complete JPEG or PNG picture")
    flag = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise MediaFailed("bad_image", f"{name} ({len(data)} bytes) cannot be decoded: {explain(error)}") from error
    if image is None:
        raise MediaFailed("bad_image", f"{name} ({len(data)} bytes) cannot be decoded")
    return np.asarray(image if grey else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _is_complete(data: bytes) -> bool:
    """Whether the end marker is there: of a picture cut off, OpenCV fills the rest with grey and says nothing."""
    if data[:2] == b"\xff\xd8":
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data.rfind(b"IEND") > 8
    return False


def _numbered(path: Path) -> dict[int, str]:
    """File name of every picture in a folder, by number; clips of one folder share the listing.

    It is listed anew when its time of change moves: pictures come and go, and a name says nothing about the content.
    """
    try:
        changed = path.stat().st_mtime_ns
    except FileNotFoundError:
        raise MediaFailed("missing_file", f"{path.name} does not exist in {path.parent}") from None
    except OSError as error:
        raise MediaFailed("missing_file", f"{path.name} cannot be listed: {explain(error)}") from error
    return _listed(path, changed)


@lru_cache(maxsize=4)  # the folders of one video; a folder of an hour's frames has 200,000 names
def _listed(path: Path, changed: int) -> dict[int, str]:
    """The listing behind ``_numbered``."""
    try:
        names = [entry.name for entry in os.scandir(path)]
    except FileNotFoundError:
        raise MediaFailed("missing_file", f"{path.name} does not exist in {path.parent}") from None
    except OSError as error:
        raise MediaFailed("missing_file", f"{path.name} cannot be listed: {explain(error)}") from error
    numbered: dict[int, str] = {}
    for name in sorted(names):
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a path object per picture is slow in large folders
        if suffix.lower() not in _SUFFIXES or name.startswith("."):
            continue
        match = _NUMBER.search(stem)
        if match is None:
            raise MediaFailed("frame_gap", f"{name} in {path.name} has no frame number in its name")
        number = int(match[1])
        if number in numbered:
            raise MediaFailed("frame_gap", f"{path.name} has frame {number} twice: {numbered[number]} and {name}")
        numbered[number] = name
    if not numbered:
        found = f"its {len(names)} entries are {', '.join(sorted(names)[:4])}" if names else "it is empty"
        raise MediaFailed("no_frames", f"{path.name} holds no JPEG or PNG pictures; {found}")
    return numbered


def _numbered_stretch(names: Mapping[int, str], numbers: tuple[int, int], path: Path) -> list[int]:
    """Numbers of the pictures of a stretch given by numbers; every one has to be there."""
    kept = [number for number in range(*numbers) if number in names]
    wanted = numbers[1] - numbers[0]
    if not kept:
        raise MediaFailed(
            "past_end",
            f"{path.name} has none of frames {numbers[0]}..{numbers[1] - 1}; it has {min(names)}..{max(names)}",
        )
    if len(kept) < wanted:
        missing = next(number for number in range(*numbers) if number not in names)
        raise MediaFailed(
            "frame_gap",
            f"{path.name}: {wanted - len(kept)} of frames {numbers[0]}..{numbers[1] - 1} are missing, first {missing}",
        )
    return kept


def _stretch(
    numbers: list[int], start: float | None, end: float | None, rate_hz: float | None, path: Path
) -> list[int]:
    """Numbers of the pictures with start <= time < end; every number in between has to be there."""
    low, high = 0.0, math.inf
    if start is not None or end is not None:
        if rate_hz is None:
            raise MediaFailed(
                "frame_gap",
                f"{path.name}: a stretch from {start} s to {end} s of a folder of frames needs their rate_hz",
            )
        low = 0.0 if start is None else math.ceil(start * rate_hz - _EPSILON_FRAMES)
        high = math.inf if end is None else math.ceil(end * rate_hz - _EPSILON_FRAMES)
    origin, last = numbers[0], numbers[-1] - numbers[0]
    if low > last:
        raise MediaFailed(
            "past_end", f"{path.name}: the stretch starts at frame {low:.0f} ({start} s), the last frame is {last}"
        )
    kept = [number for number in numbers if low <= number - origin < high]
    expected = range(origin + int(low), origin + 1 + int(min(last, high - 1)))
    if len(kept) < len(expected):
        missing = sorted(set(expected) - set(kept))
        raise MediaFailed(
            "frame_gap",
            f"{path.name}: {len(missing)} of frames {expected[0]}..{expected[-1]} are missing, first {missing[0]}",
        )
    if not kept:
        raise MediaFailed("no_frames", f"{path.name} has no frame between {start} s and {end} s")
    return kept
