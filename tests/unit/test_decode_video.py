"""Frames of video files: exact, complete, or refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline.decode import VideoReader, open_frames
from pipeline.decode.pyav_frames import PyavFrames
from pipeline.errors import MediaAbsent, MediaError, MediaFailed
from pipeline.types import canonical_json
from tests import media_corpus as corpus

REAL = {  # frames, rate_hz, width, height, codec, addressing
    "v_GGSY1Qvo990.mp4": (355, 19.62, 320, 240, "h264", "timestamps"),
    "v_ZNVhz7ctTq0.mp4": (420, 30.0, 480, 360, "h264", "timestamps"),
    "arm_wrestling.mp4": (280, 28.0, 340, 256, "h264", "timestamps"),
    "test.avi": (164, 25.0, 320, 240, "mpeg4", "order"),  # XviD with packed B-frames: its timestamps are wrong
}

FIXED = "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"  # three leading pictures before every key frame
ENCODINGS = {  # file name: encoder, options of write_video
    "open_gop.mp4": ("libx264", {"options": {"x264-params": FIXED}}),
    "open_gop.mkv": ("libx264", {"options": {"x264-params": FIXED}}),
    "open_gop.ts": ("libx264", {"options": {"x264-params": FIXED}}),
    "refresh.mp4": ("libx264", {"num_frames": 90, "options": {"x264-params": "intra-refresh=1:keyint=24:bframes=0"}}),
    "fragments.mp4": ("libx264", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "raw.h264": ("libx264", {}),
    "hevc.mp4": ("libx265", {"options": {"x265-params": FIXED + ":log-level=none"}}),
    "mpeg2.mpg": ("mpeg2video", {"options": {"bf": "2"}}),
    "mpeg2.ts": ("mpeg2video", {"options": {"bf": "2"}}),
    "mpeg2.mp4": ("mpeg2video", {"options": {"bf": "2"}}),
    "b_frames.mp4": ("mpeg4", {"options": {"bf": "2"}}),
    "b_frames.avi": ("mpeg4", {"options": {"bf": "2"}}),
    "h264.avi": ("libx264", {"options": {"x264-params": FIXED}}),
    "plain.avi": ("mpeg4", {}),
    "motion.avi": ("mjpeg", {"pixel_format": "yuvj420p"}),
    "vp8.webm": ("libvpx", {"options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}}),
    "odd.mp4": ("libx264", {"size": (97, 65), "pixel_format": "yuv444p"}),
    "odd420.mp4": ("mpeg4", {"size": (97, 65)}),
    "vfr.mp4": ("libx264", {"timestamps": [i * (i + 3) for i in range(60)]}),
    "vfr.mkv": ("libx264", {"timestamps": [i * (i + 3) for i in range(60)]}),
}


def encode(folder: Path, name: str) -> Path:
    codec, options = ENCODINGS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    return corpus.write_video(folder / name, codec=codec, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames and 2 s of sound, index in front."""
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    return corpus.write_video(path, sound_seconds=2.0, container_options={"movflags": "faststart"})


def failure(path: Path, *stretch: float | None) -> MediaError:
    """The error of opening and reading everything."""
    with pytest.raises(MediaError) as caught, VideoReader(path, *stretch) as reader:
        reader.read(range(reader.num_frames))
    assert str(path.parent) not in caught.value.detail or caught.value.code == "missing_file"
    assert path.name in caught.value.detail
    return caught.value


@pytest.mark.parametrize("name", REAL)
def test_real_file_facts(media_dir: Path, name: str) -> None:
    num_frames, rate_hz, width, height, codec, addressing = REAL[name]
    with open_frames(media_dir / name, None, None, None) as reader:
        assert reader.num_frames == num_frames
        assert reader.rate_hz == pytest.approx(rate_hz, abs=1e-9)
        facts = reader.facts
    assert (facts["width"], facts["height"], facts["codec"]) == (width, height, codec)
    assert facts["addressing"] == addressing
    assert facts["header_frames"] == facts["file_frames"] == num_frames
    assert facts["missing_seconds"] == 0
    assert str(facts["decoder"]).split()[0] in ("PyAV", "torchcodec")
    canonical_json(facts)


@pytest.mark.parametrize("name", REAL)
def test_real_file_random_access_equals_sequential_decoding(media_dir: Path, name: str) -> None:
    rng = np.random.default_rng(11)
    with VideoReader(media_dir / name) as reader:
        count = reader.num_frames
        singles = [0, 1, count - 1, *rng.integers(0, count, 8).tolist()]
        batch = rng.integers(0, count, 16).tolist()  # unordered, with repeats
        frames = {index: reader.read([index])[0] for index in singles}
        together = reader.read(batch)
    assert together.shape == (16, *REAL[name][3:1:-1], 3)
    assert together.dtype == np.uint8
    with av.open(str(media_dir / name)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in frames or index in batch:
                truth = frame.to_ndarray(format="rgb24")
                assert np.array_equal(frames.get(index, truth), truth), index
                for row in (row for row, wanted in enumerate(batch) if wanted == index):
                    assert np.array_equal(together[row], truth), index


@pytest.mark.parametrize("name", ["v_ZNVhz7ctTq0.mp4", "test.avi"])
def test_real_file_stretch(media_dir: Path, name: str) -> None:
    with VideoReader(media_dir / name) as whole, VideoReader(media_dir / name, 2.0, 3.0) as stretch:
        rate = round(whole.rate_hz or 0)
        assert stretch.num_frames == rate
        assert stretch.facts["first_seconds"] == pytest.approx(2.0)
        assert stretch.facts["seconds"] == pytest.approx(1.0)
        wanted = [0, 7, rate - 1]
        assert np.array_equal(stretch.read(wanted), whole.read([2 * rate + i for i in wanted]))


def test_two_readers_give_the_same_bytes(plain: Path) -> None:
    with VideoReader(plain) as one, VideoReader(plain) as other:
        assert one.read([3, 40, 5]).tobytes() == other.read([3, 40, 5]).tobytes()
        assert one.facts == other.facts
        assert np.array_equal(one.read([40]), other.read(range(60))[40:41])


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_frame_alone_equals_sequential_decoding(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path, name)
    truth = corpus.sequential_frames(path)
    with VideoReader(path) as reader:
        count = reader.num_frames
        assert count == len(truth) >= 60
        assert reader.facts["leading_frames"] == 0
        for index in np.random.default_rng(5).permutation(count).tolist():
            assert np.array_equal(reader.read([index])[0], truth[index]), index
        assert np.array_equal(reader.read(range(count)), np.stack(truth))


def test_seeking_is_used(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VideoReader(plain, decoder="pyav") as reader:
        monkeypatch.setattr(PyavFrames, "_rewind", lambda self: pytest.fail("decoded from the start"))
        reader.read([59])
        reader.read([0])


def test_a_frame_after_its_decoding_position_is_found_from_the_start(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = corpus.sequential_frames(plain)
    with VideoReader(plain, decoder="pyav") as reader:
        original = PyavFrames._seek
        monkeypatch.setattr(PyavFrames, "_seek", lambda self, key: original(self, key + 10**6))  # lands too far
        assert np.array_equal(reader.read([20])[0], truth[20])


@pytest.mark.parametrize("name", ["open_gop.mp4", "hevc.mp4", "b_frames.mp4"])
@pytest.mark.parametrize("first", [20, 23, 24])
@pytest.mark.parametrize("all_packets", [False, True])
def test_edit_list_hides_frames(tmp_path: Path, name: str, first: int, all_packets: bool) -> None:
    source = encode(tmp_path, name)
    truth = corpus.sequential_frames(source)
    cut = corpus.cut_copy(source, tmp_path / "cut.mp4", first, hide=True, all_packets=all_packets)
    with VideoReader(cut) as reader:
        assert reader.num_frames == 60 - first
        for index in range(0, 60 - first, 3):
            assert np.array_equal(reader.read([index])[0], truth[first + index]), index


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_undecodable_leading_pictures_are_not_counted(tmp_path: Path, suffix: str) -> None:
    source = encode(tmp_path, "mpeg2.mp4")
    truth = corpus.sequential_frames(source)
    cut = corpus.cut_copy(source, tmp_path / f"cut.{suffix}", 24, hide=False)
    with VideoReader(cut) as reader:
        assert reader.facts["leading_frames"] == 2
        assert reader.num_frames == 36
        for index in range(36):
            assert np.array_equal(reader.read([index])[0], truth[24 + index]), index


def test_variable_frame_rate_uses_times(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 10, 11, 12, 20, 21, 30]
    path = corpus.write_video(tmp_path / "vfr.mp4", 10, timestamps=times)
    with VideoReader(path, 10 / 30, 21 / 30) as reader:
        assert reader.num_frames == 4  # 10, 11, 12, 20: the end is exclusive
        assert reader.rate_hz == pytest.approx(3 / (10 / 30))
        assert np.array_equal(reader.read(range(4)), np.stack(corpus.sequential_frames(path)[4:8]))
    assert failure(path, 13 / 30, 20 / 30).code == "no_frames"
    assert failure(path, 20.5 / 30, 22 / 30).code == "one_frame"


def test_avi_with_dropped_frames_is_complete(tmp_path: Path) -> None:
    path = corpus.write_video(tmp_path / "gaps.avi", 6, codec="mpeg4", timestamps=[0, 1, 2, 9, 10, 20])
    with VideoReader(path) as reader:
        assert reader.num_frames == 6
        assert int(reader.facts["header_frames"]) == 21


@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_rotation_makes_the_picture_upright(tmp_path: Path, rotation: int, decoder: str) -> None:
    path = corpus.write_video(tmp_path / "turned.mp4", 4, rotation=rotation)
    with VideoReader(path, decoder=decoder) as reader:
        frames = reader.read([1])
        assert abs(int(reader.facts["rotation"])) == abs(rotation)
        assert (reader.facts["height"], reader.facts["width"]) == frames.shape[1:3]
    capture = cv2.VideoCapture(str(path))  # turns frames by itself
    assert capture.read()[0]
    frame = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
    capture.release()
    assert frame.shape == frames[0].shape
    assert np.abs(frame.astype(int) - frames[0].astype(int)).max() <= 2


def test_file_beginnings_and_ends_of_a_stretch(plain: Path) -> None:
    with VideoReader(plain, None, 0.5) as reader:
        assert reader.num_frames == 15
    with VideoReader(plain, 1.5, None) as reader:
        assert reader.num_frames == 15
        assert reader.facts["missing_seconds"] == 0
    with VideoReader(plain, 1.5, 3.0) as reader:
        assert reader.num_frames == 15
        assert reader.facts["missing_seconds"] == pytest.approx(1.0)
    error = failure(plain, 2.5, 3.0)
    assert error.code == "past_end"
    assert "2.5 s" in error.detail


def test_indices(plain: Path) -> None:
    with VideoReader(plain) as reader:
        assert reader.read([]).shape == (0, 64, 96, 3)
        frames = reader.read([9, 2, 9])
        assert np.array_equal(frames[0], frames[2])
        assert np.array_equal(frames[1:2], reader.read(np.array([2])))
        for index in (-1, 60):
            with pytest.raises(IndexError, match=r"outside 0\.\.59"):
                reader.read([index])


def test_short_files(tmp_path: Path) -> None:
    assert failure(corpus.write_video(tmp_path / "one.mp4", 1)).code == "one_frame"
    with VideoReader(tmp_path / "one.mp4", min_frames=1) as reader:
        assert reader.rate_hz is None
        assert reader.read([0, 0]).shape == (2, 64, 96, 3)
    with VideoReader(corpus.write_video(tmp_path / "two.mp4", 2)) as reader:
        assert reader.num_frames == 2
        assert reader.rate_hz == pytest.approx(30)


def test_what_is_no_video(tmp_path: Path, plain: Path) -> None:
    assert failure(tmp_path / "missing.mp4").code == "missing_file"
    files = {"zero.mp4": b"", "garbage.mp4": np.random.default_rng(0).bytes(50_000), "text.mp4": b"a text\n" * 900}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert failure(tmp_path / "zero.mp4").code == "zero_bytes"
    error = failure(tmp_path / "garbage.mp4")
    assert error.code == "not_media"
    assert "Invalid data" in error.detail
    assert failure(tmp_path / "text.mp4").code == "not_media"
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/none.ts\n")
    assert failure(playlist).code == "not_media"
    (tmp_path / "folder.mp4").mkdir()
    assert failure(tmp_path / "folder.mp4").code == "not_media"
    sound = corpus.remux(plain, tmp_path / "sound.mp4", kind="audio")
    error = failure(sound)
    assert isinstance(error, MediaAbsent)
    assert error.code == "no_video_stream"
    assert "audio" in error.detail


def test_index_in_front_cut_off_anywhere(tmp_path: Path, plain: Path) -> None:
    path = corpus.remux(plain, tmp_path / "video.mp4", kind="video", options={"movflags": "faststart"})
    size = path.stat().st_size
    for share in np.linspace(0.002, 0.9995, 40).tolist():
        error = failure(corpus.cut_file(path, tmp_path / "cut.mp4", int(size * share)))
        assert isinstance(error, MediaFailed)
        assert error.code == "truncated", share
    assert failure(corpus.cut_file(path, tmp_path / "cut.mp4", 6)).code == "not_media"


def test_sound_cut_off_behind_the_last_frame(tmp_path: Path, plain: Path) -> None:
    path = corpus.cut_file(plain, tmp_path / "cut.mp4", plain.stat().st_size - 20)
    with VideoReader(path) as reader:
        assert np.array_equal(reader.read(range(60)), np.stack(corpus.sequential_frames(plain)))


def test_index_behind_cut_off(tmp_path: Path, plain: Path) -> None:
    path = corpus.remux(plain, tmp_path / "behind.mp4")
    data = path.read_bytes()
    assert data.find(b"moov") > data.find(b"mdat")
    for size in (len(data) // 2, data.find(b"moov") + 50):
        error = failure(corpus.cut_file(path, tmp_path / "cut.mp4", size))
        assert error.code == "truncated"
        assert "index" in error.detail
    assert failure(corpus.cut_file(path, tmp_path / "cut.mp4", data.find(b"mdat") - 4)).code == "not_media"


@pytest.mark.parametrize("name", ["b_frames.avi", "open_gop.mkv", "fragments.mp4"])
def test_other_containers_cut_off(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path, name)
    for share in (0.4, 0.7):
        cut = corpus.cut_file(path, tmp_path / f"cut{path.suffix}", int(path.stat().st_size * share))
        error = failure(cut)
        assert error.code == "truncated", error


def test_truncated_message_has_both_numbers(tmp_path: Path, plain: Path) -> None:
    only_video = corpus.remux(plain, tmp_path / "video.mp4", kind="video", options={"movflags": "faststart"})
    with av.open(str(only_video)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.dts is not None]
        end = packets[39].pos + packets[39].size
    error = failure(corpus.cut_file(only_video, tmp_path / "cut.mp4", end))
    assert error.code == "truncated"
    assert "60" in error.detail
    assert "40" in error.detail


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_damage_is_found_where_it_is(tmp_path: Path, suffix: str) -> None:
    codec = "libx264" if suffix == "mp4" else "mpeg4"
    sound = corpus.write_video(tmp_path / f"sound.{suffix}", codec=codec, options={"bf": "0"})
    damaged = corpus.damage_packet(sound, tmp_path / f"damaged.{suffix}", 30)
    truth = corpus.sequential_frames(sound)
    with VideoReader(damaged) as reader:
        assert reader.num_frames == 60
        assert np.array_equal(reader.read([2, 23]), np.stack([truth[2], truth[23]]))
        for wanted in ([30], [35], [28, 34]):  # the frame itself, one predicted from it, and a pass over it
            with pytest.raises(MediaFailed, match="decode_error"):
                reader.read(wanted)
        assert np.array_equal(reader.read([50])[0], truth[50])
        assert np.array_equal(reader.read([0, 59]), np.stack([truth[0], truth[59]]))  # not decoded from it


def test_damage_in_a_file_addressed_by_order(tmp_path: Path) -> None:
    sound = encode(tmp_path, "b_frames.avi")
    assert failure(corpus.damage_packet(sound, tmp_path / "damaged.avi", 30)).code == "decode_error"


def test_frame_size_that_changes(tmp_path: Path) -> None:
    parts = [corpus.write_video(tmp_path / f"{w}.h264", 10, size=(w, 64)) for w in (96, 64)]
    path = tmp_path / "changes.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    error = failure(path)
    assert error.code == "decode_error"
    assert "96x64 to 64x64" in error.detail


def test_a_changed_file_is_scanned_again(tmp_path: Path) -> None:
    path = corpus.write_video(tmp_path / "a.mp4", 20)
    with VideoReader(path) as reader:
        assert reader.num_frames == 20
    corpus.write_video(path, 25)
    os.utime(path, ns=(1, 1))
    with VideoReader(path) as reader:
        assert reader.num_frames == 25


def test_reading_after_close_opens_again(plain: Path) -> None:
    reader = VideoReader(plain)
    before = reader.read([7])
    reader.close()
    assert np.array_equal(reader.read([7]), before)
    reader.close()
