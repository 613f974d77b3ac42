"""CREMA-D: actors say sentences in six emotions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from pipeline.datasets.layouts import refuse_faults, short_name
from pipeline.datasets.lists import Disk, Row, find_lists, read_rows
from pipeline.datasets.source import DatasetRequest, chosen_options, required_root
from pipeline.errors import ManifestError, nearest
from pipeline.types import Clip, Manifest

TITLE = "CREMA-D: 91 actors say sentences in 6 emotions; faces and voices"
PUBLISHED = (
    "The clips are published at https://github.com/CheyneyComputerScience/CREMA-D (folders AudioWAV and VideoFlash), "
    "the lists train.csv and test.csv with the code of OGM-GE, https://github.com/GeWu-Lab/OGM-GE_CVPR2022"
)
LAYOUT = """\
train.csv, test.csv
VideoFlash/{name}.flv
AudioWAV/{name}.wav
the lists may also lie in splits/, lists/ or crema_d/; the videos in VideoMP4/, and end in .mp4
"""
NOTE = (
    "CREMA-D: the published lists are random by clip, so the same actors are in training and test. "
    "split=actors tests on the clips of 9 fixed actors of the 91 alone. With domains=actors a domain is a block of "
    "actors, and the strict protocol keeps an actor on one side: with the published lists that leaves no clip to "
    "validate on, with split=actors it does."
)
OPTIONS: Mapping[str, Sequence[str]] = {"split": ("official", "actors"), "domains": ("one", "actors")}

LISTS = {"train": "train.csv", "test": "test.csv"}
LIST_FOLDERS = (".", "splits", "lists", "crema_d")
CLASSES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")  # in the order of the public loaders
ACTORS = range(1001, 1092)
# A tenth of the actors, whoever is in the lists: those with the smallest digests.
TEST_ACTORS = frozenset(sorted(ACTORS, key=lambda actor: hashlib.sha256(f"crema-d/{actor}".encode()).digest())[:9])
_BLOCK = 23  # actors in a domain; the last one has 22
ACTOR_DOMAINS = tuple(f"actors-{first}-{min(first + _BLOCK - 1, ACTORS[-1])}" for first in ACTORS[::_BLOCK])
_NAME = re.compile(r"(\d{4})_[A-Z]{3}_([A-Z]{3})_(?:XX|X|LO|MD|HI)", re.ASCII)
_VIDEO = ("VideoFlash/{}.flv", "VideoFlash/{}.mp4", "VideoMP4/{}.mp4", "VideoMP4/{}.flv")
_AUDIO = ("AudioWAV/{}.wav",)
_PUBLISHED_AS = {"1040_ITH_SAD_XX": "1040_ITH_SAD_X"}  # listed name -> name of the published files
_SUFFIXES = {"split": "actors", "domains": "actor-domains"}  # of the data set's name, where an option is not default


def load_crema_d(request: DatasetRequest) -> Manifest:
    """List the clips of train.csv, then of test.csv, in the order of their lines.

    A group is a clip with the published split in one domain, otherwise an actor. Media may be missing; extraction says
    so clip by clip.

    Args:
        request: ``root`` is the folder that ``LAYOUT`` starts from; for ``options`` see ``OPTIONS``.

    Raises:
        UsageError: no root, no lists, or an option that is not offered.
        ManifestError: lists that are no UTF-8 text, or faulty lines; all of these are listed.
    """
    options = chosen_options("crema-d", OPTIONS, request.options)
    root = required_root("crema-d", request, PUBLISHED)
    changed = [_SUFFIXES[key] for key, value in options.items() if value != OPTIONS[key][0]]
    name = short_name(request, "-".join(["crema-d", *changed]))
    paths = find_lists("crema-d", root, LIST_FOLDERS, list(LISTS.values()), PUBLISHED)
    rows = {part: read_rows(paths[file]) for part, file in LISTS.items()}
    disk = Disk(root)
    clips: list[Clip] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    for part, row in ((part, row) for part, members in rows.items() for row in members):
        try:
            clip_id, actor, emotion = _read(row)
            if clip_id in seen:
                raise ManifestError(f"{clip_id} stands in {seen[clip_id]} already; remove one of them")
        except ManifestError as error:
            problems.append(f"{row.place}: {error}")
            continue
        seen[clip_id] = row.place
        stems = (clip_id, _PUBLISHED_AS.get(clip_id, clip_id))
        clips.append(
            Clip(
                clip_id=clip_id,
                domain=_domain(actor) if options["domains"] == "actors" else "crema-d",
                label=emotion,
                split=part if options["split"] == "official" else "test" if actor in TEST_ACTORS else "train",
                group=f"actor-{actor}" if changed else clip_id,
                media={
                    "video": disk.first([form.format(stem) for stem in stems for form in _VIDEO]),
                    "audio": disk.first([form.format(stem) for stem in stems for form in _AUDIO]),
                },
            )
        )
    refuse_faults(problems, len(clips) + len(problems), str(paths["train.csv"].parent))
    domains = ACTOR_DOMAINS if options["domains"] == "actors" else ("crema-d",)
    return Manifest(name, CLASSES, domains, tuple(clips), root)


def _read(row: Row) -> tuple[str, int, str]:
    """Name, actor and emotion of a line."""
    if len(row.values) != 2:
        raise ManifestError(f"{len(row.values)} values where a name and an emotion belong")
    name, emotion = row.values
    match = _NAME.fullmatch(name)
    if match is None:
        raise ManifestError(
            f"{name[:80]!r} is no name {{actor}}_{{sentence}}_{{emotion}}_{{level}}, for example 1001_IEO_NEU_XX"
        )
    if int(match[1]) not in ACTORS:
        raise ManifestError(f"actor {match[1]} of {name} is none; actors: {ACTORS[0]} to {ACTORS[-1]}")
    if emotion not in CLASSES:
        raise ManifestError(
            f"emotion {emotion[:80]!r} of {name} is none.{nearest(emotion, CLASSES)} Emotions: {', '.join(CLASSES)}"
        )
    if match[2] != emotion:
        raise ManifestError(f"emotion {emotion} contradicts the name {name}; correct one of them")
    return name, int(match[1]), emotion


def _domain(actor: int) -> str:
    """The block of actors that one belongs to."""
    return ACTOR_DOMAINS[(actor - ACTORS[0]) // _BLOCK]
