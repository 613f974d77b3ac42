"""A miniature of HAC: ``python -m tests.miniatures.hac FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.miniatures import media

CLASSES = ("sleeping", "watching", "eating", "drinking", "swimming", "running", "door_opening")  # as in file names
DOMAINS = ("human", "animal", "cartoon")
CLIPS_PER_CLASS = {"train": 2, "test": 1}
NUM_FRAMES = 16
BOTH = "4f6iMfvYe0A_000000_000010"  # this name is in both lists of human, as 24 are in the real ones


def write(root: Path) -> None:
    """Write six lists and for every name a video, its sound and its flow as two videos, all below ``HAC_Splits``."""
    splits = root / "HAC_Splits"
    splits.mkdir(parents=True)
    for place, domain in enumerate(DOMAINS):
        pictures = media.film(place, 200)
        motion = media.flow(pictures, 1)
        for split, count in CLIPS_PER_CLASS.items():
            listed = [(name(domain, split, label, i), label) for label in range(len(CLASSES)) for i in range(count)]
            lines = "".join(f"{stem}.mp4,{label}\r\n" for stem, label in listed)
            (splits / f"HAC_{split}_only_{domain}.csv").write_bytes(lines.encode())
            for i, (stem, _) in enumerate(listed):
                first = 8 * i + (4 if split == "test" else 0)
                part = slice(first, first + NUM_FRAMES)
                write_clip(splits / domain, stem, pictures[part], motion[part], place, i)


def name(domain: str, split: str, label: int, number: int) -> str:
    """A name without suffix, of the kind that the domain's files have."""
    if domain == "human":
        return BOTH if label == number == 0 else f"{'-_' if label == 1 else 'aB'}{split:_<9}_00000{label}_00001{number}"
    if domain == "animal" and label < 2:
        return f"-Gc65Qj{split:_<4.4}-00{2 * label + number + 1}"
    return f"{CLASSES[label]}_{10 * (split == 'test') + number + 1}"


def write_clip(folder: Path, stem: str, pictures: media.Pictures, motion: media.Pictures, film: int, i: int) -> None:
    """Write the media of one name; the flow has a picture less than the video."""
    if (folder / "videos" / f"{stem}.mp4").exists():
        return
    media.write_film(folder / "videos" / f"{stem}.mp4", pictures)
    for channel, axis in enumerate("xy"):
        media.write_film(folder / "flow" / f"{stem}_flow_{axis}.mp4", motion[:-1, channel])
    samples = media.sound(film, 10.0)
    media.write_wav(folder / "audio" / f"{stem}.wav", samples[i * 4000 :][: media.RATE_HZ * NUM_FRAMES // 24])


if __name__ == "__main__":
    write(Path(sys.argv[1]))
