"""Frames stored as pictures: a folder of numbered JPEG or PNG files."""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.container import Closing, Facts, explain
from pipeline.decode.images import decode_image, decode_on_gpu, image_decoder
from pipeline.errors import MediaFailed

if TYPE_CHECKING:
    import torch

_SUFFIXES = (".jpg", ".jpeg", ".png")
_NUMBER = re.compile(r"(\d+)\D*$")  # the last run of digits in a name
_EPSILON_FRAMES = 1e-4  # a stretch that starts at a frame's time, rounded, includes that frame


class FrameReader(Protocol):
    """A clip's stretch of frames, whichever way they are stored."""

    num_frames: int  # frames inside [start, end)
    rate_hz: float | None  # mean frame rate; None: a folder of frames without a stated rate
    device: str  # where `read_tensor` puts the pixels

    @property
    def facts(self) -> Facts:
        """Decoder, codec, width, height, num_frames, ...: plain JSON values; complete when the frames were read."""
        ...

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return `(indices, height, width, 3)` uint8 RGB frames of the stretch, in the order asked for."""
        ...

    def read_tensor(self, indices: Sequence[int]) -> torch.Tensor:
        """The frames of ``read`` as a tensor on ``device``; frames decoded there never leave it."""
        ...

    def check(self) -> None:
        """Decode every frame of the stretch once and keep none; raises ``MediaFailed`` where one is damaged."""
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
        device: where ``read_tensor`` puts the pixels, ``cpu`` or ``cuda:N``; a GPU decodes JPEG itself.
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
        device: str = "cpu",
        min_frames: int = 2,
    ) -> None:
        self._path = path
        self._grey = grey
        self.device = device
        self.rate_hz = rate_hz
        listing = _listing(path)
        names, all_numbers = listing.names, listing.numbers
        if numbers is None:
            self.numbers = _stretch(all_numbers, start_seconds, end_seconds, rate_hz, path)
        else:
            self.numbers = _numbered_stretch(listing, numbers, path)
        self._names = [names[number] for number in self.numbers]
        self.num_frames = len(self._names)
        if self.num_frames < min_frames:
            raise MediaFailed(
                "one_frame", f"{path.name} has {self.num_frames} frame in the stretch; at least {min_frames} are needed"
            )
        self._size: tuple[int, int] | None = None
        self._size = self._image(0).shape[:2]
        codec = Path(self._names[0]).suffix.lower().lstrip(".").replace("jpg", "jpeg")
        self.facts: Facts = {
            "decoder": image_decoder(codec),
            "decode_device": "cpu",
            "container": "folder",
            "codec": codec,
            "height": self._size[0],
            "width": self._size[1],
            "num_frames": self.num_frames,
            "first_number": self.numbers[0],
            "last_number": self.numbers[-1],
            "file_frames": len(names),
        }
        if rate_hz is not None and numbers is None:
            behind = (self.numbers[-1] - all_numbers[0] + 1) / rate_hz
            self.facts["rate_hz"] = rate_hz
            self.facts["seconds"] = self.num_frames / rate_hz
            at_end = self.numbers[-1] == all_numbers[-1]
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

    def read_tensor(self, indices: Sequence[int]) -> torch.Tensor:
        """The pictures of ``read`` as a tensor on ``device``: JPEG is decoded there, in one batch, if it is a GPU.

        Returns:
            `(indices, height, width, 3)` uint8 RGB, `(indices, height, width)` for ``grey``.

        Raises:
            MediaFailed, IndexError: as ``read``.
        """
        import torch

        if self.device != "cpu" and not self._grey and self.facts["codec"] == "jpeg":
            unique, rows = np.unique(np.asarray(indices, np.int64).reshape(-1), return_inverse=True)
            if len(unique) and unique[0] >= 0 and unique[-1] < self.num_frames:
                names = [self._names[index] for index in unique.tolist()]
                decoded = decode_on_gpu([self._bytes(name) for name in names], names, self._size, self.device)
                if decoded is not None:
                    self.facts["decoder"], self.facts["decode_device"] = "torchvision nvJPEG", self.device
                    return decoded[torch.from_numpy(rows).to(decoded.device)]
        return torch.from_numpy(self.read(indices)).to(self.device)

    def check(self) -> None:
        """Decode every picture of the stretch once; keeps none of them.

        Raises:
            MediaFailed: ``bad_image``.
        """
        for index in range(self.num_frames):
            self._image(index)

    def _bytes(self, name: str) -> bytes:
        try:
            return (self._path / name).read_bytes()
        except OSError as error:
            raise MediaFailed("bad_image", f"{name} cannot be read: {explain(error)}") from error

    def _image(self, index: int) -> NDArray[np.uint8]:
        name = self._names[index]
        image = decode_image(self._bytes(name), name, grey=self._grey)
        if self._size is not None and image.shape[:2] != self._size:
            raise MediaFailed(
                "bad_image",
                f"{name} is {image.shape[1]}x{image.shape[0]}, the first frame is {self._size[1]}x{self._size[0]}",
            )
        return image


@dataclass(frozen=True)
class _Listing:
    """The pictures of a folder."""

    names: Mapping[int, str]  # by number
    numbers: Sequence[int]  # ascending


def _listing(path: Path) -> _Listing:
    """The pictures of a folder; clips of one folder share the listing.

    It is listed anew when its time of change moves: pictures come and go, and a name says nothing about the content.
    """
    try:
        changed = path.stat().st_mtime_ns
    except FileNotFoundError:
        raise MediaFailed("missing_file", f"{path.name} does not exist in {path.parent}") from None
    except OSError as error:
        raise MediaFailed("missing_file", f"{path.name} cannot be listed: {explain(error)}") from error
    return _listed(path, changed)


@lru_cache(maxsize=8)  # frames, u and v of two videos; a folder of an hour's frames has 200,000 names
def _listed(path: Path, changed: int) -> _Listing:
    """The listing behind ``_listing``."""
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
    return _Listing(numbered, sorted(numbered))


def _numbered_stretch(listing: _Listing, numbers: tuple[int, int], path: Path) -> list[int]:
    """Numbers of the pictures of a stretch given by numbers; every one has to be there."""
    names = listing.names
    kept = [number for number in range(*numbers) if number in names]
    wanted = numbers[1] - numbers[0]
    if not kept:
        raise MediaFailed(
            "past_end",
            f"{path.name} has none of frames {numbers[0]}..{numbers[1] - 1}; it has "
            f"{listing.numbers[0]}..{listing.numbers[-1]}",
        )
    if len(kept) < wanted:
        missing = next(number for number in range(*numbers) if number not in names)
        raise MediaFailed(
            "frame_gap",
            f"{path.name}: {wanted - len(kept)} of frames {numbers[0]}..{numbers[1] - 1} are missing, first {missing}",
        )
    return kept


def _stretch(
    numbers: Sequence[int], start: float | None, end: float | None, rate_hz: float | None, path: Path
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
    expected = range(origin + int(low), origin + 1 + int(min(last, high - 1)))
    kept = list(numbers[bisect_left(numbers, expected.start) : bisect_left(numbers, expected.stop)])
    if len(kept) < len(expected):
        missing = sorted(set(expected) - set(kept))
        raise MediaFailed(
            "frame_gap",
            f"{path.name}: {len(missing)} of frames {expected[0]}..{expected[-1]} are missing, first {missing[0]}",
        )
    if not kept:
        raise MediaFailed("no_frames", f"{path.name} has no frame between {start} s and {end} s")
    return kept
