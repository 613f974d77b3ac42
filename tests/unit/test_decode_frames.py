"""Folders of pictures and precomputed flow."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.decode import FrameFolder, VideoReader, open_flow, open_frames
from pipeline.errors import MediaError, MediaFailed
from pipeline.types import canonical_json
from tests import media_corpus as corpus


def write_folder(folder: Path, numbers: list[int], *, grey: bool = False, pattern: str = "frame_{:010d}.png") -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        image = corpus.picture(number)[:, :, ::-1]
        cv2.imwrite(str(folder / pattern.format(number)), image[:, :, 0] if grey else image)
    return folder


def failure(path: Path, *rest: float | None) -> MediaError:
    with pytest.raises(MediaError) as caught:
        open_frames(path, *(rest or (None, None, None)))
    return caught.value


def test_real_folder(media_dir: Path) -> None:
    folder = media_dir / "frames" / "rgb"
    with open_frames(folder, None, None, None) as reader:
        assert reader.num_frames == 10
        assert reader.rate_hz is None
        frames = reader.read([9, 0, 9])
        canonical_json(reader.facts)
        assert "rate_hz" not in reader.facts
        assert (reader.facts["codec"], reader.facts["width"], reader.facts["height"]) == ("jpeg", 320, 240)
    truth = cv2.imread(str(folder / "frame_0000000010.jpg"))
    assert np.array_equal(frames[0], truth[:, :, ::-1])
    assert np.array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[0], frames[1])


def test_sorted_by_number_not_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [1, 2, 3, 9, 10, 11, *range(4, 9)], pattern="clip7_img{}.png")
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden_1.png").write_bytes(b"")
    with open_frames(folder, None, None, 25.0) as reader:
        assert reader.num_frames == 11
        assert np.array_equal(reader.read(range(11)), np.stack([corpus.picture(i) for i in range(1, 12)]))
        assert reader.facts["first_number"] == 1


def test_stretch(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", list(range(101, 121)))
    with open_frames(folder, 0.5, 1.0, 10.0) as reader:
        assert reader.num_frames == 5
        assert reader.rate_hz == 10.0
        assert np.array_equal(reader.read([0, 4]), np.stack([corpus.picture(106), corpus.picture(110)]))
        assert reader.facts["missing_seconds"] == 0
    with open_frames(folder, 1.5, 2.5, 10.0) as reader:
        assert reader.num_frames == 5
        assert reader.facts["missing_seconds"] == pytest.approx(0.5)
    assert failure(folder, 2.0, 3.0, 10.0).code == "past_end"
    assert failure(folder, 0.51, 0.59, 10.0).code == "no_frames"
    assert failure(folder, 0.5, 0.6, 10.0).code == "one_frame"
    error = failure(folder, 0.5, 1.0, None)
    assert "rate_hz" in error.detail


def test_gaps_matter_where_they_are(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [*range(1, 8), *range(10, 21)])
    error = failure(folder)
    assert error.code == "frame_gap"
    assert "2 of frames 1..20" in error.detail
    assert "first 8" in error.detail
    assert failure(folder, 0.6, 1.2, 10.0).code == "frame_gap"
    with open_frames(folder, 0.9, 1.5, 10.0) as reader:  # behind the gap the times are still right
        assert np.array_equal(reader.read([0])[0], corpus.picture(10))
    with open_frames(folder, None, 0.7, 10.0) as reader:
        assert reader.num_frames == 7


def test_names_that_cannot_be_ordered(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", [1, 2])
    shutil.copy(folder / "frame_0000000001.png", folder / "frame_1.png")
    error = failure(folder)
    assert error.code == "frame_gap"
    assert "twice" in error.detail
    folder = write_folder(tmp_path / "b", [1, 2])
    shutil.copy(folder / "frame_0000000001.png", folder / "cover.png")
    assert failure(folder).code == "frame_gap"


def test_what_is_no_frame_folder(tmp_path: Path, media_dir: Path) -> None:
    with pytest.raises(MediaFailed, match="missing_file"):
        FrameFolder(tmp_path / "missing")
    assert failure(tmp_path / "missing").code == "missing_file"
    (tmp_path / "empty").mkdir()
    assert failure(tmp_path / "empty").code == "no_frames"
    error = failure(media_dir / "frames")
    assert error.code == "no_frames"
    assert "rgb" in error.detail
    assert failure(write_folder(tmp_path / "one", [5])).code == "one_frame"


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_damaged_pictures(tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path / "a", [1, 2, 3, 4, 5, 6], pattern="{}." + kind)
    whole = (folder / f"2.{kind}").read_bytes()
    (folder / f"2.{kind}").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / f"3.{kind}").write_bytes(b"")
    (folder / f"4.{kind}").write_text("no picture")
    cv2.imwrite(str(folder / f"5.{kind}"), corpus.picture(5, (80, 64)))
    with open_frames(folder, None, None, None) as reader:
        assert reader.read([0, 5]).shape == (2, 64, 96, 3)
        for index in (1, 2, 3, 4):
            with pytest.raises(MediaFailed, match="bad_image") as caught:
                reader.read([0, index])
            assert f"{index + 1}.{kind}" in caught.value.detail
        with pytest.raises(IndexError, match=r"outside 0\.\.5"):
            reader.read([6])
    (folder / f"1.{kind}").unlink()
    assert failure(folder).code == "bad_image"  # the first picture is looked at on opening


def test_real_flow_folder(media_dir: Path) -> None:
    folder = media_dir / "frames"
    with open_flow(folder) as reader:
        assert reader.num_frames == 5
        flow = reader.read([4, 0])
        assert reader.facts["width"] == 320
        canonical_json(reader.facts)
    assert flow.shape == (2, 2, 240, 320)
    assert flow.dtype == np.uint8
    for channel, name in enumerate(("flow_x", "flow_y")):
        truth = cv2.imread(str(folder / name / "frame_0000000005.jpg"), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(flow[0, channel], truth)


@pytest.mark.parametrize("layout", ["inside", "published"])
def test_flow_layouts(tmp_path: Path, layout: str) -> None:
    folders = ("clip/u", "clip/v") if layout == "inside" else ("u/clip", "v/clip")
    write_folder(tmp_path / folders[0], [1, 2, 3], grey=True)
    write_folder(tmp_path / folders[1], [1, 2, 3], grey=True)
    first = tmp_path / folders[1] / "frame_0000000001.png"
    cv2.imwrite(str(first), np.full((64, 96), 9, np.uint8))
    for path in [tmp_path / "clip"] if layout == "inside" else [tmp_path / name for name in folders]:
        with open_flow(path, 0.0, 0.2, 10.0) as reader:
            assert reader.num_frames == 2
            flow = reader.read([0])
            assert (flow[0, 1] == 9).all()
            assert not (flow[0, 0] == 9).all()


def test_flow_videos(tmp_path: Path) -> None:
    x = corpus.write_video(tmp_path / "a_flow_x.mp4", 12)
    y = corpus.write_video(tmp_path / "a_flow_y.mp4", 12, options={"qp": "30"})
    with open_flow(x) as reader, open_flow(y) as same, VideoReader(y) as vertical:
        flow = reader.read([3, 11])
        assert np.array_equal(flow, same.read([3, 11]))
        grey = cv2.cvtColor(vertical.read([11])[0], cv2.COLOR_RGB2GRAY)
        assert flow.shape == (2, 2, 64, 96)
        assert np.array_equal(flow[1, 1], grey)
    with open_flow(x, 0.1, 0.2) as reader:
        assert reader.num_frames == 3
    corpus.write_video(y, 11)
    with pytest.raises(MediaFailed, match=r"frame_gap.*12.*11"):
        open_flow(x)


def test_flow_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(MediaFailed, match="missing_file"):
        open_flow(tmp_path / "missing")
    folder = write_folder(tmp_path / "a" / "u", [1, 2, 3], grey=True).parent
    with pytest.raises(MediaFailed, match="no_flow"):
        open_flow(folder)
    write_folder(tmp_path / "a" / "v", [1, 2], grey=True)
    with pytest.raises(MediaFailed, match="frame_gap"):
        open_flow(folder)
    shutil.rmtree(folder / "v")
    write_folder(folder / "v", [2, 3, 4], grey=True)
    with pytest.raises(MediaFailed, match="frame_gap"):
        open_flow(folder)
    with pytest.raises(MediaFailed, match="no_flow"):
        open_flow(write_folder(tmp_path / "plain", [1, 2]))
    with pytest.raises(MediaFailed, match="no_flow"):
        open_flow(corpus.write_video(tmp_path / "lonely_flow_x.mp4", 2))
    with pytest.raises(MediaFailed, match="no_flow"):
        open_flow(corpus.write_video(tmp_path / "other.mp4", 2))
