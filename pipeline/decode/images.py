"""Single JPEG and PNG pictures -> pixels, by whichever library is at hand; on a CPU all of them give equal ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode.container import explain
from pipeline.errors import MediaFailed

if TYPE_CHECKING:
    import torch

cv2.setNumThreads(1)  # workers are many; each decodes on one thread

_GREY_OR_COLOUR = (1, 3)  # components of a JPEG that both libraries turn into equal pixels; of CMYK they do not
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a length


@cache
def _torchvision_io() -> Any:
    """torchvision's decoders, or ``None``."""
    try:
        import torchvision.io
    except (ImportError, OSError, RuntimeError):
        return None
    return torchvision.io


def _torchvision() -> Any:
    """torchvision's decoders where torch is loaded anyway; to read pictures alone it is not worth its import."""
    return _torchvision_io() if "torch" in sys.modules else None


def image_decoder(codec: str) -> str:
    """Name and version of the library that decodes pictures of a codec, ``jpeg`` or ``png``, on the CPU."""
    if codec == "jpeg" and _torchvision() is not None:
        import torchvision

        return f"torchvision {torchvision.__version__}"
    return f"OpenCV {cv2.__version__}"


def decode_image(data: bytes, name: str, *, grey: bool = False) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG picture to `(height, width, 3)` RGB, or to `(height, width)` for ``grey``.

    It is turned as its EXIF header asks for.

    Args:
        data: contents of the file.
        name: its name, for messages.
        grey: luminance only.

    Raises:
        MediaFailed: ``bad_image``.
    """
    if not _is_complete(data):
        raise MediaFailed("bad_image", f"{name} ({len(data)} bytes) is no complete JPEG or PNG picture")
    vision = _torchvision()
    if vision is not None and jpeg_components(data) in _GREY_OR_COLOUR:
        return _by_torchvision(vision, data, name, grey)
    flag = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise _undecodable(data, name, error) from error
    if image is None:
        raise _undecodable(data, name, None)
    return np.asarray(image if grey else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def decode_on_gpu(
    files: Sequence[bytes], names: Sequence[str], size: tuple[int, int] | None, device: str
) -> torch.Tensor | None:
    """Decode JPEG pictures with nvJPEG, in one batch; colours differ from a CPU's by a few levels.

    Args:
        files: contents of the files.
        names: their names, for messages.
        size: height and width they must have.
        device: ``cuda:N``.

    Returns:
        `(files, height, width, 3)` uint8 RGB on the device; ``None``: a GPU cannot decode these as a CPU does.

    Raises:
        MediaFailed: ``bad_image``.
    """
    import torch

    vision = _torchvision_io()
    if vision is None or not all(_is_plain(data) for data in files):
        return None
    for data, name in zip(files, names, strict=True):
        if not _is_complete(data):
            raise MediaFailed("bad_image", f"{name} ({len(data)} bytes) is no complete JPEG or PNG picture")
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    try:
        images = vision.decode_jpeg(encoded, vision.ImageReadMode.RGB, device=device)
    except RuntimeError:
        return None  # the CPU tells which one is damaged, and how
    for image, name in zip(images, names, strict=True):
        if size is not None and tuple(image.shape[1:]) != size:
            raise MediaFailed(
                "bad_image",
                f"{name} is {image.shape[2]}x{image.shape[1]}, the first frame is {size[1]}x{size[0]}",
            )
    return torch.stack([image.permute(1, 2, 0) for image in images])


def jpeg_components(data: bytes) -> int:
    """Number of colour components of a JPEG picture; 0: it is none, or it does not say."""
    if data[:2] != b"\xff\xd8":
        return 0
    position = 2
    while position + 9 < len(data):
        if data[position] != 0xFF:
            return 0
        marker = data[position + 1]
        if marker in _FRAME_MARKERS:
            return data[position + 9]
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0


def _is_plain(data: bytes) -> bool:
    """Whether a JPEG picture is grey or colour and not turned by an EXIF header."""
    return jpeg_components(data) in _GREY_OR_COLOUR and b"Exif\0\0" not in data[:1024]


def _by_torchvision(vision: Any, data: bytes, name: str, grey: bool) -> NDArray[np.uint8]:
    import torch

    mode = vision.ImageReadMode.GRAY if grey else vision.ImageReadMode.RGB
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        image = vision.decode_jpeg(encoded, mode, apply_exif_orientation=True)
    except RuntimeError as error:
        raise _undecodable(data, name, error) from error
    pixels: NDArray[np.uint8] = image[0].numpy() if grey else image.permute(1, 2, 0).numpy()
    return pixels


def _undecodable(data: bytes, name: str, error: Exception | None) -> MediaFailed:
    reason = f": {explain(error).splitlines()[0]}" if error is not None else ""
    return MediaFailed("bad_image", f"{name} ({len(data)} bytes) cannot be decoded{reason}")


def _is_complete(data: bytes) -> bool:
    """Whether the end marker is there: of a picture cut off, decoders fill the rest with grey and say nothing."""
    if data[:2] == b"\xff\xd8":
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data.rfind(b"IEND") > 8
    return False
