"""Every damaged file ends classified, in time, in every decoder: present, absent, or failed with a known reason."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.decode import DECODERS, VideoReader, open_frames, read_sound
from pipeline.decode.header import read_header
from pipeline.errors import MediaAbsent, MediaError
from pipeline.process import configure_process
from tests import media_corpus as corpus
from tests.damaged_media import KINDS, Sources, write_damaged

DEADLINE_SECONDS = 20.0
KNOWN = {
    "present": {""},
    "absent": {"no_video_stream", "no_audio_stream"},
    "failed": {
        *("missing_file", "zero_bytes", "not_media", "truncated", "no_frames", "one_frame", "past_end"),
        *("decode_error", "frame_gap", "bad_image", "no_samples"),
    },
}
Outcome = tuple[str, str, str]  # status, code, detail


def outcome(action: Callable[[], object]) -> Outcome:
    try:
        action()
    except MediaAbsent as error:
        return "absent", error.code, error.detail
    except MediaError as error:
        return "failed", error.code, error.detail
    return "present", "", ""


def look(path: Path, decoder: str) -> dict[str, Outcome]:
    """Read a file's frames and sound, and its header."""

    def frames() -> None:
        with open_frames(path, decoder=decoder) as reader:
            count = reader.num_frames
            reader.read(sorted({0, 1, count // 2, count - 1}))
            reader.check()
            assert reader.facts["num_frames"] == count

    found = {"video": outcome(frames)}
    if decoder in ("auto", "pyav"):
        found["audio"] = outcome(lambda: read_sound(path, 16000))
        if not path.is_dir():
            found["header"] = outcome(lambda: read_header(path))
    return found


def serve(connection: Connection, decoder: str) -> None:
    configure_process()
    DECODERS.get(decoder, DECODERS["pyav"]).why_not()  # imports the library
    connection.send(True)
    while (path := connection.recv()) is not None:
        connection.send(look(path, decoder))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folder = tmp_path_factory.mktemp("damaged")
    paths = write_damaged(folder)
    yield paths
    (folder / "forbidden.mp4").chmod(0o600)


def test_the_corpus_is_large_and_the_same_each_time(damaged: list[Path], tmp_path: Path) -> None:
    assert len({path.name for path in damaged}) == len(damaged) >= 60
    sources = [path for path in (damaged[0].parent / "sources").iterdir() if path.suffix in (".mp4", ".wav", ".avi")]
    again = [path for kind in KINDS[:2] for path in kind(Sources(tmp_path / "sources"), tmp_path)]
    assert [path.name for path in again] == [path.name for path in damaged][: len(again)]
    assert len(sources) == 4
    for source in sources:
        assert source.read_bytes() == (tmp_path / "sources" / source.name).read_bytes()
    for one, other in zip(damaged, again, strict=False):
        if one.suffix != ".mkv" and one.suffix != ".webm":  # they carry random numbers of their writer
            assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.parametrize("decoder", ["auto", "torchcodec", pytest.param("decord", marks=pytest.mark.soak)])
def test_every_file_is_classified_in_time(damaged: list[Path], decoder: str) -> None:
    if decoder in DECODERS and (reason := DECODERS[decoder].why_not()):
        pytest.skip(reason)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, decoder), daemon=True)
    process.start()
    theirs.close()
    statuses: dict[str, int] = {}
    try:
        assert ours.poll(120)
        assert ours.recv()
        for path in damaged:
            ours.send(path)
            assert ours.poll(DEADLINE_SECONDS), f"{decoder} hangs on {path.name}"
            try:
                found: dict[str, Outcome] = ours.recv()
            except EOFError:
                process.join()
                pytest.fail(f"{decoder} brings the process down on {path.name}: exit code {process.exitcode}")
            for what, (status, code, detail) in found.items():
                assert code in KNOWN[status], (path.name, what, code, detail)
                assert status == "present" or names(path, detail), (path.name, what, detail)
                statuses[status] = statuses.get(status, 0) + 1
        ours.send(None)
    finally:
        process.kill()
        process.join()
    assert set(statuses) == {"present", "absent", "failed"}
    assert statuses["failed"] > 60


def names(path: Path, detail: str) -> bool:
    """Whether a message names the file, or a picture of the folder."""
    return path.name in detail or (path.is_dir() and any(child.name in detail for child in path.iterdir()))


EXPECTED = {
    "cut-0.35-front.mp4": ("truncated", "truncated"),
    "cut-0.95-back.mp4": ("truncated", "truncated"),
    "cut-0.7-a.mkv": ("truncated", "truncated"),
    "cut-0.7-a.avi": ("truncated", "truncated"),
    "cut-0.35-a.wav": ("no_video_stream", "truncated"),
    "sound-only.mp4": ("no_video_stream", ""),
    "video-only.mp4": ("", "no_audio_stream"),
    "empty.mp4": ("zero_bytes", "zero_bytes"),
    "page.mp4": ("not_media", "not_media"),
    "text.mp4": ("not_media", "not_media"),
    "list.mp4": ("not_media", "not_media"),
    "zero-length.mkv": ("no_frames", ""),
    "no-samples.wav": ("no_video_stream", "no_samples"),
    "disguised-back.mp4.avi": ("", ""),
    "1x1.avi": ("", "no_audio_stream"),
    "8k.mp4": ("", "no_audio_stream"),
    "frames": ("", "no_audio_stream"),
    "frames-gap": ("frame_gap", "no_audio_stream"),
    "frames-truncated": ("bad_image", "no_audio_stream"),
    "frames-sizes": ("bad_image", "no_audio_stream"),
    "frames-twice": ("frame_gap", "no_audio_stream"),
    "frames-none": ("no_frames", "no_audio_stream"),
    "loop-a.mp4": ("not_media", "not_media"),
    "dangling.mp4": ("missing_file", "missing_file"),
    "missing.mp4": ("missing_file", "missing_file"),
    "inside-a-file.mp4": ("missing_file", "missing_file"),
    "pipe.mp4": ("not_media", "not_media"),
}


def test_reasons_are_the_right_ones(damaged: list[Path]) -> None:
    by_name = {path.name: path for path in damaged}
    found = {name: look(by_name[name], "auto") for name in EXPECTED}
    assert {name: (f["video"][1], f["audio"][1]) for name, f in found.items()} == EXPECTED


def test_a_file_that_may_not_be_read(damaged: list[Path]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = next(path for path in damaged if path.name == "forbidden.mp4")
    assert look(path, "auto")["video"][:2] == ("failed", "not_media")


def test_files_without_index_are_refused_before_any_decoder_sees_them(
    damaged: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchcodec does not come back from some of them."""
    for name in DECODERS:
        monkeypatch.setitem(
            DECODERS,
            name,
            type(DECODERS[name])(lambda: "", lambda wanted: pytest.fail(f"{wanted.path} was opened"), ""),
        )
    for path in damaged:
        if path.name.startswith("cut-") and path.name.endswith("back.mp4"):
            assert outcome(lambda p=path: open_frames(p))[0] == "failed"  # type: ignore[misc]


def grown(paths: list[Path], decoder: str, opens: int) -> float:
    """MiB by which the process grows over the second half of so many opens."""
    process = psutil.Process()
    half = 0
    for number in range(opens):
        look(paths[number % len(paths)], decoder)
        if number == opens // 2:
            gc.collect()
            half = process.memory_info().rss
    gc.collect()
    return (process.memory_info().rss - half) / 2**20


def few(folder: Path) -> list[Path]:
    sound = corpus.write_video(folder / "a.mp4", 20, sound_seconds=0.5)
    paths = [sound, corpus.cut_file(sound, folder / "cut.mp4", 3000)]
    paths.append(corpus.damage_packets(sound, folder / "hole.mp4", [8], "hole"))
    paths.append(corpus.write_video(folder / "b.avi", 20, codec="mpeg4"))
    paths.append(corpus.damage_packets(paths[-1], folder / "random.avi", [8], "random"))
    return paths


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_memory_stays_flat(tmp_path: Path, decoder: str) -> None:
    if reason := DECODERS[decoder].why_not():
        pytest.skip(reason)
    assert grown(few(tmp_path), decoder, 120) < 8


@pytest.mark.soak
@pytest.mark.parametrize("decoder", ["auto", "pyav", "torchcodec", "decord"])
def test_memory_stays_flat_over_many_opens(tmp_path: Path, damaged: list[Path], decoder: str) -> None:
    if decoder in DECODERS and (reason := DECODERS[decoder].why_not()):
        pytest.skip(reason)
    assert grown(few(tmp_path), decoder, 1000) < 8
    small = [path for path in damaged if path.name != "8k.mp4"]
    assert grown(small, decoder, 2 * len(small)) < 64


@pytest.mark.soak
@pytest.mark.parametrize("decoder", ["auto", "torchcodec"])
def test_flipped_bits_never_hang(tmp_path: Path, decoder: str) -> None:
    if decoder in DECODERS and (reason := DECODERS[decoder].why_not()):
        pytest.skip(reason)
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "mpeg2video")):
        data = np.frombuffer(corpus.write_video(tmp_path / name, 20, codec=codec).read_bytes(), np.uint8)
        for seed in range(100):
            rng = np.random.default_rng(seed)
            flipped = data.copy()
            count = int(rng.integers(1, 40))
            end = len(data) if seed % 2 else min(2000, len(data))
            flipped[rng.integers(0, end, count)] ^= (1 << rng.integers(0, 8, count)).astype(np.uint8)
            path = tmp_path / f"flipped-{name}"
            path.write_bytes(flipped.tobytes())
            os.utime(path, ns=(seed, seed))
            start = time.perf_counter()
            status, code, detail = look(path, decoder)["video"]
            assert code in KNOWN[status], (seed, code, detail)
            assert time.perf_counter() - start < DEADLINE_SECONDS, (name, seed)


def test_reader_of_a_changing_file_stays_itself(tmp_path: Path) -> None:
    """A file that is replaced while it is open: the old frames or an error, never a mixture without a word."""
    path = corpus.write_video(tmp_path / "a.mp4", 24)
    truth = corpus.sequential_frames(path)
    other = corpus.write_video(tmp_path / "b.mp4", 24, size=(64, 48))
    with VideoReader(path) as reader:
        assert np.array_equal(reader.read([3])[0], truth[3])
        other.replace(path)
        status, code, _ = outcome(lambda: reader.read([20]))
    assert (status, code) in (("present", ""), ("failed", "decode_error"))
