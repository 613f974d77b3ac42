"""A miniature of CREMA-D: ``python -m tests.miniatures.crema_d FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.miniatures import media
from tests.miniatures.containers import write_clip

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
# Two actors of every block of 23; the second of each pair is one that the actor-disjoint split tests on.
ACTORS = (1002, 1003, 1041, 1024, 1047, 1050, 1091, 1073)
RATE_HZ = 30
NUM_FRAMES = 18


def write(root: Path) -> None:
    """Write both lists, as they are published, and for every name a video without and a file with sound.

    One pair of files has the odd name it is published under, which is not the listed one.
    """
    names = [f"{actor}_IEO_{emotion}_{'XX' if emotion == 'NEU' else 'HI'}" for actor in ACTORS for emotion in EMOTIONS]
    names.append("1040_ITH_SAD_XX")
    test = names[4::7]
    for file, listed in (("train.csv", [name for name in names if name not in test]), ("test.csv", test)):
        lines = "".join(f"{name},{name.split('_')[2]}\r\n" for name in reversed(listed))
        root.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(lines.encode("utf-8-sig"))
    for i, name in enumerate(names):
        stem = "1040_ITH_SAD_X" if name == "1040_ITH_SAD_XX" else name
        film = media.film(i % 3, 120)
        write_clip(root / "VideoFlash" / f"{stem}.flv", film[2 * i : 2 * i + NUM_FRAMES], RATE_HZ, "flv")
        samples = media.sound(i % 3, 10.0)[i * 1600 :][: media.RATE_HZ * NUM_FRAMES // RATE_HZ]
        media.write_wav(root / "AudioWAV" / f"{stem}.wav", samples)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
