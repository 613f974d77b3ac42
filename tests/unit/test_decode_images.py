"""JPEG pictures: torchvision's decoder and OpenCV's give equal pixels, or OpenCV's is used."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.decode import images
from pipeline.decode.frames import FrameFolder
from pipeline.decode.images import decode_image, image_decoder, jpeg_components
from pipeline.errors import MediaFailed

PICTURE = Image.fromarray(
    cv2.resize(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8), (333, 221))
)


def jpeg(image: Image.Image = PICTURE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = PICTURE.getexif()
    exif[274] = orientation
    return jpeg(exif=exif)


KINDS = {
    "4:2:0": (jpeg(quality=90), 3),
    "4:2:2": (jpeg(subsampling=1), 3),
    "4:4:4": (jpeg(subsampling=0), 3),
    "progressive": (jpeg(progressive=True), 3),
    "grey": (jpeg(PICTURE.convert("L")), 1),
    "cmyk": (jpeg(PICTURE.convert("CMYK")), 4),
    "coarse": (jpeg(quality=5), 3),
    "1x1": (jpeg(PICTURE.crop((0, 0, 1, 1))), 3),
    "restarts": (jpeg(restart_marker_blocks=2), 3),
    **{f"turned {number}": (turned(number), 3) for number in range(1, 9)},
}


def by_opencv(data: bytes, grey: bool) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    return image if grey else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("vision", [False, True])
def test_equal_pixels(name: str, grey: bool, vision: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, components = KINDS[name]
    assert jpeg_components(data) == components
    if not vision:
        monkeypatch.setattr(images, "_torchvision", lambda: None)
    assert np.array_equal(decode_image(data, "a.jpg", grey=grey), by_opencv(data, grey))


def test_real_pictures(media_dir: Path) -> None:
    for path in sorted((media_dir / "frames").glob("*/*.jpg")):
        data = path.read_bytes()
        for grey in (False, True):
            assert np.array_equal(decode_image(data, path.name, grey=grey), by_opencv(data, grey)), path.name


def test_torchvision_is_used_where_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    calls: list[str] = []
    original = images._by_torchvision
    monkeypatch.setattr(images, "_by_torchvision", lambda *a: calls.append(a[2]) or original(*a))
    decode_image(KINDS["4:2:0"][0], "a.jpg")
    decode_image(KINDS["cmyk"][0], "b.jpg")
    assert calls == ["a.jpg"]
    assert image_decoder("jpeg").startswith("torchvision")
    assert image_decoder("png").startswith("OpenCV")
    monkeypatch.delitem(sys.modules, "torch")
    decode_image(KINDS["4:2:0"][0], "c.jpg")
    assert calls == ["a.jpg"]
    assert image_decoder("jpeg").startswith("OpenCV")


@pytest.mark.parametrize("vision", [False, True])
def test_damaged_pictures_are_refused(vision: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not vision:
        monkeypatch.setattr(images, "_torchvision", lambda: None)
    whole = KINDS["4:2:0"][0]
    for data in (whole[:-2], whole[: len(whole) // 2], b"", b"\xff\xd8\xff\xd9", whole[:20] + b"\xff\xd9"):
        with pytest.raises(MediaFailed, match=r"bad_image: a\.jpg"):
            decode_image(data, "a.jpg")


def test_a_large_folder_is_listed_once(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    data = KINDS["1x1"][0]
    first = folder / "frame_0000000001.jpg"
    first.write_bytes(data)
    for number in range(2, 20_001):
        os.link(first, folder / f"frame_{number:010d}.jpg")
    FrameFolder(folder)
    start = time.process_time()
    for number in range(100):
        with FrameFolder(folder, number, number + 2, 60.0) as reader:
            assert reader.num_frames == 120
        with FrameFolder(folder, numbers=(10 + number, 50 + number)) as reader:
            assert reader.num_frames == 40
    assert (time.process_time() - start) / 200 < 0.003  # listing takes 20 times as long
    (folder / "frame_0000020001.jpg").write_bytes(data)
    assert FrameFolder(folder).num_frames == 20_001  # a changed folder is listed again
