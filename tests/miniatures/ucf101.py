"""A miniature of UCF-101 with its published flow and frames: ``python -m tests.miniatures.ucf101 FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from tests.miniatures import media
from tests.miniatures.containers import write_clip

CLASSES = ("ApplyEyeMakeup", "Archery", "HandstandPushups", "PlayingDaf")
WITH_SOUND = ("HandstandPushups", "PlayingDaf")
GROUPS = range(1, 7)  # two of the six are the test list of each split
CLIPS_PER_GROUP = 2
RATE_HZ = 25
NUM_FRAMES = 14


def write(root: Path) -> None:
    """Write the class list, all six lists, and for every clip the video, its frames and its flow.

    HandstandPushups is spelled as in the published files: so in the class list and in names of folders,
    HandStandPushups in names of files.
    """
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    numbered = "".join(f"{number} {name}\r\n" for number, name in enumerate(CLASSES, 1))
    (lists / "classInd.txt").write_bytes(numbered.encode())
    for split in (1, 2, 3):
        tested = (2 * split - 1, 2 * split)
        rows = [(number, name, g, c) for number, name in enumerate(CLASSES, 1) for g, c in members()]
        train = "".join(f"{listed(name, g, c)} {number}\r\n" for number, name, g, c in rows if g not in tested)
        test = "".join(f"{listed(name, g, c)}\r\n" for _, name, g, c in rows if g in tested)
        (lists / f"trainlist0{split}.txt").write_bytes(train.encode())
        (lists / f"testlist0{split}.txt").write_bytes(test.encode())
    for place, name in enumerate(CLASSES):
        for i, (g, c) in enumerate(members()):
            write_media(root, name, listed(name, g, c), place, i)


def members() -> list[tuple[int, int]]:
    """Group and clip numbers of a class."""
    return [(g, c) for g in GROUPS for c in range(1, CLIPS_PER_GROUP + 1)]


def listed(name: str, group: int, clip: int) -> str:
    """A path as the lists have it."""
    return f"{name}/v_{name.replace('Handstand', 'HandStand')}_g{group:02d}_c{clip:02d}.avi"


def write_media(root: Path, name: str, path: str, place: int, i: int) -> None:
    """Write the video, its frames, and its flow between them, one picture less."""
    pictures = media.film(place % 3, 120)[3 * i : 3 * i + NUM_FRAMES]
    samples = media.sound(place % 3, 10.0)[i * 3200 :][: media.RATE_HZ * NUM_FRAMES // RATE_HZ]
    heard = samples if name in WITH_SOUND else None
    write_clip(root / "UCF-101" / path, pictures, RATE_HZ, "mpeg4", heard, "libmp3lame")
    stem = Path(path).stem
    write_pictures(root / "jpegs_256" / stem, pictures)
    motion = media.flow(pictures, 1)[:-1]
    for channel, folder in enumerate("uv"):
        write_pictures(root / "tvl1_flow" / folder / stem, motion[:, channel])


def write_pictures(folder: Path, pictures: media.Pictures) -> None:
    """Write ``frame000001.jpg`` and on; RGB or grey."""
    folder.mkdir(parents=True)
    for number, image in enumerate(pictures, 1):
        ready = np.ascontiguousarray(image if image.ndim == 2 else image[..., ::-1])
        done, data = cv2.imencode(".jpg", ready, [cv2.IMWRITE_JPEG_QUALITY, 70])
        assert done
        (folder / f"frame{number:06d}.jpg").write_bytes(data.tobytes())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
