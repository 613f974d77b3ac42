"""Damaged packets: no frame that looks different is delivered without an error or a fact that says so."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode import DECODERS, VideoReader
from pipeline.decode.bitstream import packet_check
from pipeline.decode.scan import scan_video
from pipeline.errors import MediaFailed
from tests import media_corpus as corpus

SIZE = (256, 192)
VISIBLE = 16  # grey levels
FRAMES = 24
CODECS = {  # name: file name, encoder, options of write_video
    "h264": ("a.mp4", "libx264", {}),
    "h264-mkv": ("a.mkv", "libx264", {}),
    "h264-ts": ("a.ts", "libx264", {}),
    "cavlc": ("b.mp4", "libx264", {"options": {"x264-params": "cabac=0"}}),
    "hevc": ("c.mp4", "libx265", {"options": {"x265-params": "log-level=none:keyint=12"}}),
    "mpeg4": ("d.mp4", "mpeg4", {}),
    "mpeg4-avi": ("d.avi", "mpeg4", {}),
    "mpeg2": ("e.ts", "mpeg2video", {}),
    "vp9": ("f.webm", "libvpx-vp9", {"options": {"cpu-used": "8", "deadline": "realtime"}}),
    "vp8": ("g.webm", "libvpx", {"options": {"cpu-used": "8"}}),
    "mjpeg": ("h.avi", "mjpeg", {"pixel_format": "yuvj420p"}),
}
# Share of damaged files that are refused at least; the rest is delivered with a fact, or does not look different.
REFUSED = {
    ("h264", "random"): 0.4,
    ("h264-mkv", "random"): 0.4,
    ("cavlc", "random"): 0.7,
    ("mpeg4", "random"): 1.0,
    ("mpeg4-avi", "random"): 1.0,
    ("mpeg2", "random"): 1.0,
    ("vp9", "random"): 1.0,
    ("vp9", "bit"): 1.0,
    ("vp9", "cut"): 1.0,
    ("h264", "cut"): 1.0,
    ("cavlc", "cut"): 1.0,
    ("hevc", "cut"): 0.7,
    ("mpeg4", "cut"): 1.0,
    ("mpeg2", "cut"): 1.0,
}


@pytest.fixture(scope="module", params=CODECS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    file_name, codec, options = CODECS[request.param]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = tmp_path_factory.mktemp("sound") / file_name
    return request.param, corpus.write_video(path, FRAMES, size=SIZE, codec=codec, **options)


def attempt(path: Path, decoder: str) -> tuple[np.ndarray, dict[str, object]] | MediaFailed:
    try:
        with VideoReader(path, decoder=decoder) as reader:
            frames = reader.read(range(min(reader.num_frames, 60)))
            return frames.astype(int), dict(reader.facts)
    except MediaFailed as error:
        return error


def read_all(path: Path, decoder: str) -> tuple[np.ndarray, dict[str, object]] | None:
    """All frames, at most 60, and the facts; ``None``: refused."""
    outcome = attempt(path, decoder)
    if not isinstance(outcome, MediaFailed):
        return outcome
    assert path.name in outcome.detail
    assert outcome.code in ("decode_error", "truncated", "no_frames"), outcome
    return None


@pytest.mark.parametrize("how", corpus.DAMAGE)
def test_nothing_wrong_passes_in_silence(sound: tuple[str, Path], tmp_path: Path, how: str) -> None:
    name, path = sound
    truth = np.stack(corpus.sequential_frames(path)).astype(int)
    places = corpus.packet_places(path)
    numbers = [k for k, (_, size) in enumerate(places) if size >= (700 if how == "hole" else 100)][1::4]
    for decoder in ("auto", "pyav", "torchcodec"):
        if DECODERS.get(decoder) and DECODERS[decoder].why_not():
            continue
        refused = 0
        for number in numbers:
            damaged = corpus.damage_packets(path, tmp_path / f"{how}-{number}{path.suffix}", [number], how, number)
            outcome = read_all(damaged, decoder)
            if outcome is None:
                refused += 1
                continue
            frames, facts = outcome
            assert len(frames) == len(truth)
            worst = np.abs(frames - truth).max()
            told = "complaint" in facts or "damage_noticed" in facts
            small = how == "bit" and np.abs(frames - truth).mean((1, 2, 3)).max() < 16 and name.startswith("m")
            assert worst <= VISIBLE or told or small, (decoder, number, worst)
        if how == "hole" and name != "mjpeg":
            assert refused == len(numbers), (decoder, refused, len(numbers))
        if decoder != "torchcodec":
            assert refused >= REFUSED.get((name, how), 0.0) * len(numbers), (decoder, refused, len(numbers))


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_a_hole_spoils_what_is_decoded_from_it_and_nothing_else(tmp_path: Path, decoder: str) -> None:
    if reason := DECODERS[decoder].why_not():
        pytest.skip(reason)
    path = corpus.write_video(tmp_path / "a.mp4", 48, size=SIZE, options={"bf": "0", "g": "12"})
    truth = corpus.sequential_frames(path)
    damaged = corpus.damage_packets(path, tmp_path / "hole.mp4", [15], "hole")
    scan = scan_video(damaged)
    assert scan.damaged.tolist() == [15]
    with VideoReader(damaged, decoder=decoder) as reader:
        for index in range(48):
            if 15 <= index < 24:
                with pytest.raises(MediaFailed, match="frame 15 is damaged"):
                    reader.read([index])
            else:
                assert np.array_equal(reader.read([index])[0], truth[index]), index
        with pytest.raises(MediaFailed, match="frame 15 is damaged"):
            reader.check()
    with VideoReader(damaged, 0.8, None, decoder=decoder) as reader:  # behind it
        reader.check()


def test_check_decodes_what_no_read_asked_for(tmp_path: Path) -> None:
    path = corpus.write_video(tmp_path / "a.mp4", 48, codec="mpeg4", size=SIZE)
    with VideoReader(path) as reader:
        reader.check()
    damaged = corpus.damage_packets(path, tmp_path / "random.mp4", [30], "random")
    with VideoReader(damaged) as reader:
        reader.read([0, 47])
        with pytest.raises(MediaFailed, match="decode_error"):
            reader.check()


def test_reading_does_not_go_on_behind_damage(tmp_path: Path) -> None:
    path = corpus.write_video(tmp_path / "a.mp4", 48, codec="mpeg4", size=SIZE, options={"bf": "0"})
    damaged = corpus.damage_packets(path, tmp_path / "random.mp4", [30], "random")
    with VideoReader(damaged, decoder="pyav") as reader:
        for wanted in ([26], [30], [33], [27, 34], [35]):
            if wanted == [26]:
                reader.read(wanted)
                continue
            with pytest.raises(MediaFailed, match="frame 30 is damaged"):
                reader.read(wanted)


def test_lost_packets_of_a_transport_stream(tmp_path: Path) -> None:
    """A receiver loses whole packets of 188 bytes; their counters tell."""
    path = corpus.write_video(tmp_path / "a.ts", 48, size=SIZE)
    truth = np.stack(corpus.sequential_frames(path)).astype(int)
    data = path.read_bytes()
    places = corpus.packet_places(path)
    for number in (5, 14, 20, 31, 40):
        begin = (places[number][0] // 188 + 1) * 188
        lost = tmp_path / f"lost{number}.ts"
        lost.write_bytes(data[:begin] + data[begin + 188 :])
        outcome = read_all(lost, "auto")
        if outcome is not None:
            frames, facts = outcome
            assert "complaint" in facts or (len(frames) == len(truth) and np.abs(frames - truth).max() <= VISIBLE)


def test_checksums_of_hevc_are_compared(tmp_path: Path) -> None:
    if "libx265" not in av.codecs_available:
        pytest.skip("this FFmpeg has no libx265")
    params = "log-level=none:keyint=12:hash=1"
    path = corpus.write_video(tmp_path / "a.mp4", 24, size=SIZE, codec="libx265", options={"x265-params": params})
    assert read_all(path, "pyav") is not None
    for number in (3, 8, 14):
        damaged = corpus.damage_packets(path, tmp_path / f"{number}.mp4", [number], "bit")
        outcome = read_all(damaged, "pyav")
        assert outcome is None or "complaint" in outcome[1]


def check_unsuspicious(path: Path) -> None:
    assert len(scan_video(path).damaged) == 0
    outcome = read_all(path, "auto")
    assert outcome is not None
    assert "complaint" not in outcome[1]
    assert "fallback" not in outcome[1] or path.suffix == ".ts", outcome[1]["fallback"]


def test_sound_streams_raise_no_suspicion(sound: tuple[str, Path]) -> None:
    check_unsuspicious(sound[1])


def test_real_files_raise_no_suspicion(media_dir: Path) -> None:
    for path in (*sorted(media_dir.glob("*.mp4")), media_dir / "test.avi"):
        check_unsuspicious(path)


def unit(header: int, payload: bytes) -> bytes:
    return (1 + len(payload)).to_bytes(4, "big") + bytes([header]) + payload


def test_rules_of_packets() -> None:
    avc = packet_check("h264", b"\x01\x64\x00\x1f\xff\xe1\x00\x19")
    picture = bytes(range(1, 200))
    assert avc(unit(0x65, picture) + unit(0x41, picture)) == ""
    assert "longer" in avc(unit(0x65, picture)[:-1])
    assert "header" in avc(unit(0xE5, picture))
    for forbidden in (b"\0\0\0", b"\0\0\1", b"\0\0\2"):
        assert "forbids" in avc(unit(0x65, picture + forbidden + picture)), forbidden
        assert avc(unit(0x06, picture + forbidden + picture)) == ""  # no part of a picture
    assert "forbids" in avc(unit(0x65, picture + b"\0\0\1\7\7"))
    assert avc(unit(0x65, picture + b"\0\0\3" + picture)) == ""
    assert avc(unit(0x65, picture + bytes(8))) == ""  # padding
    assert "forbids" in avc(unit(0x65, picture + bytes(40)))
    assert "hole" in avc(unit(0x65, picture) + bytes(40))
    assert avc(b"\0\0\0\1\x65" + picture) == ""  # start codes in spite of the header
    hevc = packet_check("hevc", b"\x01" + bytes(20) + b"\x03\x00")
    assert hevc(unit(0x02, picture)) == ""
    assert "forbids" in hevc(unit(0x02, picture + b"\0\0\1" + picture))
    assert hevc(unit(0x4E, picture + b"\0\0\1" + picture)) == ""
    stream = packet_check("h264", b"\0\0\0\1")
    assert stream(b"\0\0\0\1\x65" + picture + bytes(300) + b"\1\x41" + picture) == ""
    assert "hole" in stream(b"\0\0\0\1\x65" + picture + bytes(300) + b"\7" + picture)
    vp9 = packet_check("vp9", None)
    assert vp9(picture + bytes(200) + picture) == ""
    assert vp9(picture + bytes(300)) == ""
    assert "hole" in vp9(picture + bytes(300) + picture)
    assert packet_check("rawvideo", None)(bytes(5000)) == ""
