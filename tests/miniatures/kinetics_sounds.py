"""A miniature of Kinetics-Sounds: ``python -m tests.miniatures.kinetics_sounds FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.miniatures import media
from tests.miniatures.containers import write_clip

NUM_CLASSES = 31
CLASSES = tuple(f"playing instrument {number}" for number in range(NUM_CLASSES))  # the real names are not in the lists
CLIPS_PER_CLASS = {"train": 2, "test": 1}
RATE_HZ = 25
NUM_FRAMES = 16
MUTE = "--4-0ihtn00_000000_000010"  # the file of this name has no sound


def write(root: Path) -> None:
    """Write both lists, in the two forms of names that they have, and a file for every name, by class.

    Of the test list, files of even classes have the listed name and the others the name with start and end.
    """
    for split, count in CLIPS_PER_CLASS.items():
        lines = []
        for number in range(NUM_CLASSES):
            for i in range(count):
                listed, file = names(split, number, i)
                lines.append(f"{listed},10,{number}\r\n")
                first = 2 * number + i + (5 if split == "test" else 0)
                pictures = media.film(number % 3, 120)[first : first + NUM_FRAMES]
                samples = media.sound(number % 3, 10.0)[first * 800 :][: media.RATE_HZ * NUM_FRAMES // RATE_HZ]
                folder = root / ("train" if split == "train" else "val") / CLASSES[number]
                write_clip(folder / f"{file}.mp4", pictures, RATE_HZ, "libx264", None if file == MUTE else samples)
        (root / f"my_{split}.txt").write_bytes("".join(lines).encode())


def names(split: str, number: int, i: int) -> tuple[str, str]:
    """The name that is listed and the file's own; the two training clips of an odd class are cut from one video."""
    start = 10 * i + number
    if split == "train":
        video = f"{'--4-0ihtn' if number % 3 == 0 else 'aB_9-xyzq'}{number if number % 2 else number + 40 * i:02d}"
        name = f"{video}_{start:06d}_{start + 10:06d}"
        return name, name
    video = f"{'-3Mwkq_7T' if number % 3 == 0 else 'zxVKdJbyF'}{number:02d}"
    listed = f"{video}_{start}"
    return listed, listed if number % 2 == 0 else f"{video}_{start:06d}_{start + 10:06d}"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
