"""A miniature of EPIC-Kitchens with MM-SADA's splits: ``python -m tests.miniatures.epic FOLDER``."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas as pd

from tests.miniatures import media

RATE_HZ = 60
CLASSES = ("take", "put", "open", "close", "wash", "cut", "mix", "pour")
DOMAINS = {"D1": "P08", "D2": "P01", "D3": "P22"}
VIDEOS = {
    ("D1", "train"): "P08_01",
    ("D1", "test"): "P08_09",
    ("D2", "train"): "P01_01",
    ("D2", "test"): "P01_11",
    ("D3", "train"): "P22_05",
    ("D3", "test"): "P22_01",
}
CLIPS_PER_CLASS = {"train": 2, "test": 1}
COLUMNS = (
    "uid",
    "participant_id",
    "video_id",
    "narration",
    "start_timestamp",
    "stop_timestamp",
    "start_frame",
    "stop_frame",
    "verb",
    "verb_class",
)


def write(root: Path) -> None:
    """Write six pickles and, for one video each, frames, flow at half the rate and the sound of the whole video.

    The layout is the one that MM-SADA's users describe: ``rgb/`` and ``flow/`` beside the folder of the pickles, the
    sound beside the frames.
    """
    splits = root / "MM-SADA_Domain_Adaptation_Splits"
    splits.mkdir(parents=True)
    uid = 12_915
    for number, ((domain, split), video) in enumerate(VIDEOS.items()):
        table = rows(domain, split, video, uid)
        uid += len(table)
        write_table(splits / f"{domain}_{split}.pkl", table)
        num_frames = max(int(row["stop_frame"]) for row in table) + 3
        pictures = media.film(number // 2, num_frames + 40)[40 * (number % 2) :][:num_frames]
        media.write_pictures(root / "rgb" / split / domain / video, pictures)
        motion = media.flow(pictures, 2)
        for channel, name in enumerate("uv"):
            media.write_pictures(root / "flow" / split / domain / video / name, motion[:, channel])
        media.write_wav(root / "rgb" / split / domain / f"{video}.wav", media.sound(number // 2, num_frames / RATE_HZ))


def rows(domain: str, split: str, video: str, first_uid: int) -> list[dict[str, str | int]]:
    """Rows of one split file: clips of 10 to 13 frames, their starts even and odd."""
    table: list[dict[str, str | int]] = []
    start = 1 + len(domain + split) % 2
    for i in range(len(CLASSES) * CLIPS_PER_CLASS[split]):
        label, stop = i % len(CLASSES), start + 10 + i % 4
        values = (
            first_uid + i,
            DOMAINS[domain],
            video,
            f"{CLASSES[label]} cup {i}",
            timestamp(start),
            timestamp(stop),
            start,
            stop,
            CLASSES[label],
            label,
        )
        table.append(dict(zip(COLUMNS, values, strict=True)))
        start = stop - 1 if i % 5 == 4 else stop  # some clips overlap, as they do in the real lists
    return table


def timestamp(frame: int) -> str:
    """First hundredth of a second of a frame as HH:MM:SS.ss."""
    return f"00:00:{math.ceil(100 * frame / RATE_HZ) / 100:05.2f}"


def write_table(path: Path, table: list[dict[str, str | int]]) -> None:
    """Pickle rows as pandas before version 3 does: text in columns of Python objects."""
    frame = pd.DataFrame({name: pd.Series([row[name] for row in table]) for name in table[0]})
    text = [name for name in frame.columns if not pd.api.types.is_integer_dtype(frame[name])]
    frame = frame.astype(dict.fromkeys(text, object))
    frame.columns = pd.Index(list(frame.columns), dtype=object)
    frame.to_pickle(path, protocol=4)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
