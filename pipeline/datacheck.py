"""Is a data set complete? What is there, what is missing, what cannot be read, and how its clips are spread."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.decode import FrameReader, open_flow, open_frames, read_sound
from pipeline.decode.flow import FlowReader
from pipeline.decode.header import MediaHeader, read_header
from pipeline.errors import MediaAbsent, MediaError, MediaFailed, PipeError
from pipeline.types import MODALITIES, Clip, Manifest
from pipeline.workers import Advance, Death, Progress, run_tasks

BATCH = {False: 200, True: 16}  # clips per task, from headers and decoded: few messages, and no worker idle at the end
DEADLINE_SECONDS = 120.0  # for the tracks of one clip
MOST_DEADLY = 8  # clips of a batch that may bring processes down before the machine is suspected
SOUND_RATE_HZ = 16_000  # that sound is resampled to when it is decoded for the check
CUT_SHORT_SECONDS = 0.5  # a stretch that ends later than its file, by more than this, is listed
SPLIT_SIDES = ("train", "test")


@dataclass(frozen=True)
class Problem:
    """One track that is not as the manifest says."""

    clip_id: str
    key: str  # video, audio or flow
    code: str  # as extraction records it
    detail: str  # one sentence with the values that were seen


@dataclass(frozen=True)
class MediaCheck:
    """Files and folders of one media key."""

    clips: int  # that name one
    named: int  # different files and folders
    there: int  # of those that exist
    missing: tuple[Problem, ...]  # per clip
    zero_bytes: tuple[Problem, ...]  # per clip


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some values."""

    low: float
    median: float
    high: float
    total: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """The spread, or ``None`` of nothing."""
        ordered = sorted(values)
        if not ordered:
            return None
        half = len(ordered) // 2
        middle = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
        return cls(ordered[0], middle, ordered[-1], sum(ordered), len(ordered))


@dataclass(frozen=True)
class DatasetCheck:
    """What ``check_dataset`` found; clips are named in manifest order."""

    dataset: str
    root: Path
    published: str  # where its authors publish it; empty for one's own data
    layout: str  # what is expected below the root
    deep: bool  # whether every track was decoded
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    clips: int
    media: Mapping[str, MediaCheck]  # per media key that a clip names
    without_media: tuple[str, ...]  # clips none of whose files is there
    counts: Mapping[tuple[str, str, str], int]  # (class, domain, split) -> clips
    absent_classes: Mapping[str, tuple[str, ...]]  # domain -> classes it has no clip of
    shared_groups: Mapping[str, tuple[str, ...]]  # group -> its clips, where they are in both train and test
    seconds: Mapping[str, Spread]  # of the clips' stretches per media key, as the headers state them
    unknown_seconds: Mapping[str, int]  # clips per media key whose header states no length
    pictures: Mapping[str, Spread]  # of the clips' stretches in folders of pictures, per media key
    cut_short: tuple[Problem, ...]  # stretches that end later than their file
    without_sound: tuple[str, ...]  # clips whose files are there and have no sound
    without_pictures: tuple[str, ...]  # clips whose video has no pictures
    failures: tuple[Problem, ...]  # what cannot be read, missing and empty files apart
    elapsed_seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is missing, empty or unreadable."""
        return not self.failures and not any(m.missing or m.zero_bytes for m in self.media.values())


@dataclass(frozen=True)
class _Track:
    """What was seen of one track of a clip."""

    key: str
    path: Path
    code: str = ""  # empty: nothing is wrong
    detail: str = ""
    is_absent: bool = False  # the file is sound and has no such track
    seconds: float | None = None  # of the clip's stretch
    pictures: int | None = None  # of the clip's stretch in a folder
    has_audio: bool | None = None  # of the file; None: not known
    short_seconds: float = 0.0  # how much later than the file the stretch ends


@dataclass(frozen=True)
class _Batch:
    """Clips that one worker looks at in turn."""

    clips: tuple[Clip, ...]
    deep: bool
    deadly: Mapping[str, Death] = field(default_factory=dict)  # clip id -> how processes that read it died


def check_dataset(
    manifest: Manifest, published: str, layout: str, deep: bool, workers: int, advance: Advance
) -> DatasetCheck:
    """Look at every file of a data set.

    Files are opened for their headers, folders of pictures for their listing and first picture; ``deep`` also decodes
    the first, middle and last frame of every stretch of pictures and flow, and all of its sound.

    Args:
        manifest: the clips.
        published: where the data set's authors publish it.
        layout: what is expected below the root.
        deep: decode.
        workers: processes; even one is a process of its own, so that a file that kills it costs its clip.
        advance: called with numbers of clips done.
    """
    start = time.perf_counter()
    # Clips of one file come after each other: its header and packets, or its folder's listing, are read once.
    ordered = sorted(manifest.clips, key=lambda clip: (sorted(map(str, clip.media.values())), clip.start_seconds or 0))
    size = min(BATCH[deep], -(-len(ordered) // max(1, workers)))
    batches = [_Batch(tuple(ordered[i : i + size]), deep) for i in range(0, len(ordered), size)]
    tracks: dict[str, list[_Track]] = {}
    for _, found in run_tasks(check_batch, batches, workers, advance, _without_deadly_clip):
        tracks |= found
    by_clip = {clip.clip_id: tracks[clip.clip_id] for clip in manifest.clips}
    named = [(clip, t) for clip in manifest.clips for t in by_clip[clip.clip_id] if t.key in clip.media]
    everything = [(clip, t) for clip in manifest.clips for t in by_clip[clip.clip_id]]
    keys = [key for key in MODALITIES if any(key in clip.media for clip in manifest.clips)]
    seconds = {key: Spread.of(t.seconds for _, t in named if t.key == key and t.seconds is not None) for key in keys}
    pictures = {key: Spread.of(t.pictures for _, t in named if t.key == key and t.pictures is not None) for key in keys}
    return DatasetCheck(
        dataset=manifest.dataset,
        root=manifest.root,
        published=published,
        layout=layout,
        deep=deep,
        classes=manifest.classes,
        domains=manifest.domains,
        clips=len(manifest.clips),
        media={key: _media_check([(c, t) for c, t in named if t.key == key]) for key in keys},
        without_media=tuple(
            c.clip_id
            for c in manifest.clips
            if all(t.code == "missing_file" for t in by_clip[c.clip_id] if t.key in c.media)
        ),
        counts=Counter((c.label, c.domain, c.split) for c in manifest.clips),
        absent_classes=_absent_classes(manifest),
        shared_groups=_shared_groups(manifest),
        seconds={key: spread for key, spread in seconds.items() if spread},
        unknown_seconds=Counter(t.key for _, t in named if not t.code and t.seconds is None and t.pictures is None),
        pictures={key: spread for key, spread in pictures.items() if spread},
        cut_short=tuple(
            Problem(c.clip_id, t.key, "cut_short", f"{t.path.name} ends {t.short_seconds:.2f} s before the clip does")
            for c, t in named
            if t.short_seconds > CUT_SHORT_SECONDS
        ),
        without_sound=tuple(c.clip_id for c in manifest.clips if _is_mute(c, by_clip[c.clip_id])),
        without_pictures=tuple(c.clip_id for c, t in named if t.key == "video" and t.is_absent),
        failures=tuple(
            Problem(c.clip_id, t.key, t.code, t.detail)
            for c, t in everything
            if t.code and not t.is_absent and t.code not in ("missing_file", "zero_bytes")
        ),
        elapsed_seconds=time.perf_counter() - start,
    )


def _media_check(tracks: list[tuple[Clip, _Track]]) -> MediaCheck:
    """Counts of one media key."""

    def having(code: str) -> tuple[Problem, ...]:
        return tuple(Problem(c.clip_id, t.key, t.code, t.detail) for c, t in tracks if t.code == code)

    named = {t.path for _, t in tracks}
    gone = {t.path for _, t in tracks if t.code == "missing_file"}
    return MediaCheck(len(tracks), len(named), len(named - gone), having("missing_file"), having("zero_bytes"))


def _absent_classes(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Classes that a domain has no clip of, per domain that lacks any."""
    there = {(clip.domain, clip.label) for clip in manifest.clips}
    absent = {d: tuple(c for c in manifest.classes if (d, c) not in there) for d in manifest.domains}
    return {domain: classes for domain, classes in absent.items() if classes}


def _shared_groups(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Groups with clips in both train and test."""
    members: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        members.setdefault(clip.group, []).append(clip)
    return {
        group: tuple(clip.clip_id for clip in clips)
        for group, clips in members.items()
        if {clip.split for clip in clips}.issuperset(SPLIT_SIDES)
    }


def _is_mute(clip: Clip, tracks: list[_Track]) -> bool:
    """Whether a clip's sound is known not to be there."""
    if any(t.key == "audio" and t.is_absent for t in tracks):
        return True
    if "audio" in clip.media:
        return False
    video = next((t for t in tracks if t.key == "video"), None)
    return video is not None and (video.has_audio is False or video.pictures is not None)


def _without_deadly_clip(batch: _Batch, death: Death) -> _Batch:
    """The batch without reading the clip on which two processes died or did not end.

    Raises:
        PipeError: they died without reading one, or on so many that the machine is to blame and not the files.
    """
    clip = batch.clips[min(death.done, len(batch.clips) - 1)]
    if clip.clip_id in batch.deadly or len(batch.deadly) >= MOST_DEADLY:
        raise PipeError(
            f"processes died again and again (exit code {death.exit_code}), last at clip {clip.clip_id!r}; is there "
            "enough memory? Run the same command again with fewer --workers"
        )
    return replace(batch, deadly={**batch.deadly, clip.clip_id: death})


def check_batch(batch: _Batch, progress: Progress) -> dict[str, list[_Track]]:
    """Look at the clips of a batch; returns tracks per clip id."""
    found = {}
    for clip in batch.clips:
        with progress.guard(DEADLINE_SECONDS):
            found[clip.clip_id] = list(_tracks(clip, batch.deep, batch.deadly.get(clip.clip_id)))
        progress(1)
    return found


def _tracks(clip: Clip, deep: bool, death: Death | None) -> Iterator[_Track]:
    """Look at every track a clip names, and when decoding also at the sound of its video."""
    for key, path in clip.media.items():
        track = _Track(key, path)
        yield _guarded(track, clip, deep) if death is None else replace(track, code=death.code, detail=str(death))
    video = clip.media.get("video")
    if deep and death is None and video is not None and "audio" not in clip.media and _is_file(video):
        track = _guarded(_Track("audio", video), clip, deep)
        if track.code not in ("missing_file", "zero_bytes"):  # said of the video already
            yield track


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may not be entered
        return False


def _guarded(track: _Track, clip: Clip, deep: bool) -> _Track:
    """Look at a track; whatever happens is a finding about it."""
    try:
        return _look(track, clip, deep)
    except MediaAbsent as error:
        return replace(track, code=error.code, detail=error.detail, is_absent=True, has_audio=_sound_known(track))
    except MediaError as error:
        return replace(track, code=error.code, detail=error.detail)
    except OSError as error:
        return replace(track, code="not_media", detail=f"{track.path.name} cannot be read: {error.strerror or error}")
    except Exception as error:  # a check that ends at the first odd file would be of no use
        return replace(track, code="unexpected", detail=f"{track.path.name}: {type(error).__name__}: {error}")


def _sound_known(track: _Track) -> bool | None:
    """Whether a file that lacks a track's pictures has sound."""
    try:
        return read_header(track.path).has_audio if track.key != "audio" else False
    except MediaError:
        return None


def _look(track: _Track, clip: Clip, deep: bool) -> _Track:
    """Look at one track.

    Raises:
        MediaError: what is wrong with it.
    """
    path = track.path
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MediaFailed("missing_file", f"{path} does not exist") from None
    if path.is_dir():
        return _look_at_folder(track, clip, deep)
    header = read_header(path)
    track = replace(track, has_audio=header.has_audio)
    if track.key == "audio":
        if not header.has_audio:
            raise MediaAbsent("no_audio_stream", f"{path.name} has no sound")
        if deep:
            read_sound(path, SOUND_RATE_HZ, clip.start_seconds, clip.end_seconds)
    else:
        if not header.has_video:
            raise MediaAbsent("no_video_stream", f"{path.name} has no pictures")
        if deep:
            with _open(track, clip) as reader:
                reader.read(_first_middle_last(reader.num_frames))
                reader.check()
        elif track.key == "flow":
            _check_pair(path)
    return _with_stretch(track, header, clip, deep)


def _open(track: _Track, clip: Clip) -> FrameReader | FlowReader:
    """The reader of a clip's frames or flow."""
    stretch = (clip.start_seconds, clip.end_seconds, clip.rate_hz)
    if track.key == "flow":
        return open_flow(track.path, *stretch, clip.flow_numbers)
    return open_frames(track.path, *stretch, clip.frame_numbers)


def _look_at_folder(track: _Track, clip: Clip, deep: bool) -> _Track:
    """Count the pictures of a clip's stretch of a folder; every number has to be there."""
    if track.key == "audio":
        raise MediaAbsent("no_audio_stream", f"{track.path.name} is a folder; it has no sound")
    with _open(track, clip) as reader:
        if deep:
            reader.read(_first_middle_last(reader.num_frames))
            reader.check()
        return replace(track, pictures=reader.num_frames)


def _first_middle_last(count: int) -> list[int]:
    return sorted({0, count // 2, count - 1})


def _check_pair(path: Path) -> None:
    """Flow in videos is two files; that the other one is there is seen without decoding."""
    for own, other in (("_flow_x", "_flow_y"), ("_flow_y", "_flow_x")):
        sibling = path.with_name(path.stem.removesuffix(own) + other + path.suffix)
        if path.stem.endswith(own) and not sibling.exists():
            raise MediaFailed("no_flow", f"{path.name}: {sibling.name} is missing in {path.parent.name}")


def _with_stretch(track: _Track, header: MediaHeader, clip: Clip, deep: bool) -> _Track:
    """Add how long the clip's stretch of a file is.

    Raises:
        MediaFailed: ``past_end``, it starts behind the end that the header states.
    """
    if header.seconds is None:
        return track
    start = clip.start_seconds or 0.0
    end = header.seconds if clip.end_seconds is None else clip.end_seconds
    if start >= header.seconds and header.exact and not deep:  # decoding has judged it otherwise
        raise MediaFailed(
            "past_end", f"{track.path.name}: the stretch starts at {start} s, its header states {header.seconds:.3f} s"
        )
    short = max(0.0, end - header.seconds) if header.exact else 0.0
    return replace(track, seconds=max(0.0, min(end, header.seconds) - start), short_seconds=short)
