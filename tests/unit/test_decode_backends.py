"""Every decoder that is here gives the same frames; which one is used, and what happens where one fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pipeline.decode import DECODERS, VideoReader, available_decoders, check_decoder, open_flow, open_frames
from pipeline.decode import decoders as decoders_module
from pipeline.decode.complaints import complaints, log_library
from pipeline.decode.decoders import decoder_chain
from pipeline.decode.scan import scan_video
from pipeline.decode.source import FrameSource
from pipeline.decode.torchcodec_frames import TorchcodecFrames
from pipeline.errors import MediaFailed, UsageError
from pipeline.types import canonical_json
from tests import media_corpus as corpus

OTHERS = ("torchcodec", "decord")
SIZE = (128, 96)  # decord cannot give frames of some widths
FIXED = "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"
FILES = {  # file name: encoder, options of write_video
    "plain.mp4": ("libx264", {}),
    "bframes.mp4": ("libx264", {"options": {"bf": "3", "g": "250"}}),
    "vfr.mp4": ("libx264", {"timestamps": [i * (i + 3) for i in range(40)]}),
    "vfr.mkv": ("libx264", {"timestamps": [i * (i + 3) for i in range(40)]}),
    "open_gop.mp4": ("libx264", {"options": {"x264-params": FIXED}}),
    "open_gop.mkv": ("libx264", {"options": {"x264-params": FIXED}}),
    "hevc.mp4": ("libx265", {"options": {"x265-params": FIXED + ":log-level=none"}}),
    "hevc_default.mp4": ("libx265", {"options": {"x265-params": "log-level=none"}}),
    "turned90.mp4": ("libx264", {"rotation": 90, "size": (128, 96)}),
    "turned180.mp4": ("libx264", {"rotation": 180}),
    "turned270.mp4": ("libx264", {"rotation": -90}),
    "turned_vp9.mp4": ("libvpx-vp9", {"rotation": 90, "options": {"cpu-used": "8", "deadline": "realtime"}}),
    "odd_width.mp4": ("mpeg4", {"size": (97, 64)}),
    "odd.mp4": ("mpeg4", {"size": (97, 65)}),
    "odd444.mp4": ("libx264", {"size": (97, 65), "pixel_format": "yuv444p"}),
    "one.mp4": ("libx264", {"num_frames": 1}),
    "no_index.avi": ("mpeg4", {"container_options": {"write_index": "0"}}),
    "motion.avi": ("mjpeg", {"pixel_format": "yuvj420p"}),
    "mpeg2.ts": ("mpeg2video", {"options": {"bf": "2"}}),
    "vp9.webm": ("libvpx-vp9", {"options": {"cpu-used": "8", "deadline": "realtime"}}),
    "ten_bits.mp4": ("libx264", {"pixel_format": "yuv420p10le"}),
    "full_range.mp4": ("libx264", {"pixel_format": "yuvj420p"}),
    "bt709.mp4": ("libx264", {"options": {"x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709"}}),
    "bt601.mp4": ("libx264", {"options": {"x264-params": "colormatrix=smpte170m"}}),
    "bt709_full.mp4": ("libx264", {"options": {"x264-params": "colormatrix=bt709:fullrange=on"}}),
}
# FFmpeg's scaler makes RGB of these, whose results differ between versions of FFmpeg; `auto` leaves torchcodec out.
UNSEEKABLE = ("open_gop.mp4", "open_gop.mkv", "mpeg2.ts")
INEXACT = ("odd.mp4", "ten_bits.mp4")


def needs(name: str) -> str:
    if reason := DECODERS[name].why_not():
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Written when first asked for."""
    folder = tmp_path_factory.mktemp("files")

    class Files(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            codec, options = FILES[name]
            if codec not in av.codecs_available:
                pytest.skip(f"this FFmpeg has no {codec}")
            self[name] = corpus.write_video(folder / name, **{"num_frames": 40, "size": SIZE, **options}, codec=codec)
            return self[name]

    return Files()


def attempt(path: Path, decoder: str) -> VideoReader | MediaFailed:
    try:
        return VideoReader(path, min_frames=1, decoder=decoder)
    except MediaFailed as error:
        return error


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("other", OTHERS)
def test_equal_frames(files: dict[str, Path], name: str, other: str) -> None:
    """Single frames in any order, a sparse batch and a dense one, from stretches: equal, or refused."""
    needs(other)
    path = files[name]
    rng = np.random.default_rng(3)
    reader = attempt(path, other)
    if isinstance(reader, MediaFailed):
        assert other == "decord", reader
        assert path.name in reader.detail
        return
    with reader, VideoReader(path, min_frames=1, decoder="pyav") as truth:
        count = truth.num_frames
        everything = truth.read(range(count))
        batches = [[i] for i in rng.permutation(count).tolist()]
        batches += [
            sorted(rng.choice(count, min(count, 6), replace=False).tolist()),
            list(range(count)),
            [count - 1, 0],
        ]
        refused = 0
        for batch in batches:
            try:
                frames = reader.read(batch)
            except MediaFailed:
                refused += 1
                continue
            difference = np.abs(frames.astype(int) - everything[batch]).max()
            assert difference == 0 or name in INEXACT, (batch, difference)
        # FFmpeg 5 keeps the last frame of open groups, and torchcodec lands elsewhere in transport streams; it says so.
        assert refused == 0 or other == "decord" or name in UNSEEKABLE, refused
        frames = truth.read([0])
        assert frames.shape[1:3] == (reader.facts["height"], reader.facts["width"])
        for fact in ("num_frames", "rate_hz", "width", "height", "seconds", "first_seconds", "codec"):
            assert reader.facts.get(fact) == truth.facts.get(fact), fact
        canonical_json(reader.facts)


@pytest.mark.parametrize("name", FILES)
def test_auto_is_always_exact(files: dict[str, Path], name: str) -> None:
    truth = corpus.sequential_frames(files[name])
    with VideoReader(files[name], min_frames=1) as reader:
        count = reader.num_frames
        assert count == len(truth)
        for index in np.random.default_rng(4).permutation(count).tolist():
            rotated = np.rot90(truth[index], int(reader.facts["rotation"]) // 90)
            assert np.array_equal(reader.read([index])[0], rotated), index
        assert reader.read(range(count)).shape[0] == count


@pytest.mark.parametrize("first", [20, 23, 24])
@pytest.mark.parametrize("name", ["bframes.mp4", "open_gop.mp4", "hevc.mp4"])
def test_equal_frames_of_a_cut(files: dict[str, Path], tmp_path: Path, name: str, first: int) -> None:
    needs("torchcodec")
    everything = corpus.sequential_frames(files[name])
    cut = corpus.cut_copy(files[name], tmp_path / "cut.mp4", first, hide=True)
    for decoder in ("auto", "torchcodec", "pyav"):
        with VideoReader(cut, decoder=decoder) as reader:
            assert reader.num_frames == 40 - first
            for index in (0, 1, 5, 39 - first, 2):
                try:
                    frame = reader.read([index])[0]
                except MediaFailed:
                    if decoder != "torchcodec":
                        raise
                    continue
                assert np.array_equal(frame, everything[first + index]), (decoder, index)


@pytest.mark.parametrize("name", ["v_GGSY1Qvo990.mp4", "v_ZNVhz7ctTq0.mp4", "arm_wrestling.mp4", "test.avi"])
@pytest.mark.parametrize("other", OTHERS)
def test_equal_frames_of_real_files(media_dir: Path, name: str, other: str) -> None:
    needs(other)
    if name == "test.avi":  # its frames are known by their order only
        with pytest.raises(MediaFailed, match="order only"):
            VideoReader(media_dir / name, decoder=other)
        with VideoReader(media_dir / name) as reader:
            assert "PyAV" in str(reader.facts["decoder"])
            assert "fallback" not in reader.facts
        return
    with VideoReader(media_dir / name, 2.0, 7.0, decoder=other) as reader:
        wanted = np.random.default_rng(2).integers(0, reader.num_frames, 12).tolist()
        frames = reader.read(wanted)
        assert other in str(reader.facts["decoder"])
    with VideoReader(media_dir / name, 2.0, 7.0, decoder="pyav") as truth:
        assert np.array_equal(truth.read(wanted), frames)


def test_available_decoders_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    here = available_decoders()
    assert set(here) == {"pyav", "torchcodec", "torchcodec-cuda", "decord"}
    assert here["pyav"] == ""
    if not torch.cuda.is_available():
        assert "CUDA" in here["torchcodec-cuda"] or here["torchcodec"]
        with pytest.raises(UsageError, match=r"torchcodec-cuda.*cannot be used here"):
            check_decoder("torchcodec-cuda")
    with pytest.raises(UsageError, match=r"Did you mean 'torchcodec'"):
        check_decoder("torchcodek")
    assert check_decoder("auto") == "auto"


def test_auto_chooses(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, vp9 = scan_video(files["plain.mp4"]), scan_video(files["vp9.webm"])
    absent = dict.fromkeys(DECODERS, "")
    for name in DECODERS:
        entry = decoders_module.Decoder(lambda n=name: absent[n], DECODERS[name].open, "")  # type: ignore[misc]
        monkeypatch.setitem(DECODERS, name, entry)
    assert decoder_chain("auto", "cpu", plain) == ("pyav",)
    monkeypatch.setitem(decoders_module._BY_DEVICE, "cpu", ("torchcodec", "pyav"))
    assert decoder_chain("auto", "cpu", plain) == ("torchcodec", "pyav")
    assert decoder_chain("auto", "cuda:0", plain) == ("torchcodec-cuda", "torchcodec", "pyav")
    assert decoder_chain("auto", "cpu", vp9) == ("pyav",)  # FFmpeg's own decoder does not notice damage
    for name in INEXACT:
        assert decoder_chain("auto", "cpu", scan_video(files[name])) == ("pyav",)
    assert decoder_chain("auto", "cpu", scan_video(files["odd444.mp4"])) == ("torchcodec", "pyav")
    assert decoder_chain("decord", "cpu", vp9) == ("decord",)
    absent["torchcodec"] = absent["torchcodec-cuda"] = "not installed"
    assert decoder_chain("auto", "cuda:0", plain) == ("pyav",)


class Failing(FrameSource):
    """A decoder that fails, or delivers something else, as told."""

    label = "failing 1.0"

    def __init__(self, like: FrameSource, how: str) -> None:
        self._like, self._how = like, how
        self.size, self.pixel_format = like.size, like.pixel_format
        self.tells_damage = how != "silent"

    def frames(self, positions: list[int]) -> np.ndarray:  # type: ignore[override]
        if self._how == "reading":
            raise MediaFailed("decode_error", "it fails while it reads")
        frames = self._like.frames(positions)
        if self._how == "complaint":
            self.complaint = "error while decoding MB 3 4"
        if self._how in ("wrong", "complaint_wrong"):
            self.complaint = "concealing 20 errors"
            frames[0, 0, 0, 0] ^= 255
        if self._how in ("repeats", "silent"):
            frames[1:] = frames[0]
            self.complaint = "" if self._how == "silent" else "something"
        return frames

    def close(self) -> None:
        self._like.close()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """torchcodec is tried first, and replaced by a decoder that fails in the way that `how` names."""
    monkeypatch.setitem(decoders_module._BY_DEVICE, "cpu", ("torchcodec", "pyav"))
    how = {"how": ""}

    def opened(wanted: decoders_module.Wanted) -> FrameSource:
        if how["how"] == "opening":
            raise MediaFailed("decode_error", "it cannot open this")
        return Failing(DECODERS["pyav"].open(wanted), how["how"])

    monkeypatch.setitem(DECODERS, "torchcodec", decoders_module.Decoder(lambda: "", opened, ""))
    return how


@pytest.mark.parametrize("how", ["opening", "reading", "wrong", "silent"])
def test_auto_falls_back_and_says_so(files: dict[str, Path], failing: dict[str, str], how: str) -> None:
    failing["how"] = how
    path = files["plain.mp4"]
    with VideoReader(path) as reader:
        frames = reader.read(range(40))
        facts = reader.facts
    assert np.array_equal(frames, np.stack(corpus.sequential_frames(path)))
    assert str(facts["fallback"]).startswith("torchcodec: ")
    assert "PyAV" in str(facts["decoder"])
    assert facts["decode_device"] == "cpu"
    canonical_json(facts)
    with pytest.raises(MediaFailed), VideoReader(path, decoder="torchcodec") as reader:
        reader.read(range(40))


def test_a_complaint_about_sound_frames_is_no_failure(files: dict[str, Path], failing: dict[str, str]) -> None:
    failing["how"] = "complaint"
    with VideoReader(files["plain.mp4"]) as reader:
        assert np.array_equal(reader.read([3, 9]), np.stack(corpus.sequential_frames(files["plain.mp4"]))[[3, 9]])
        assert "fallback" not in reader.facts
        assert "failing" in str(reader.facts["decoder"])


def test_wrong_times_are_noticed(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    needs("torchcodec")
    original = TorchcodecFrames.__init__

    def shifted(self: TorchcodecFrames, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        self._offset -= 1

    monkeypatch.setattr(TorchcodecFrames, "__init__", shifted)
    with VideoReader(files["plain.mp4"], decoder="torchcodec") as reader, pytest.raises(MediaFailed) as caught:
        reader.read([5])
    assert "delivers the frame at 0.2000 s for the one at 0.1667 s" in caught.value.detail
    assert "plain.mp4" in caught.value.detail


def test_tensors_equal_arrays(files: dict[str, Path], media_dir: Path) -> None:
    for path in (files["plain.mp4"], media_dir / "frames" / "rgb"):
        with open_frames(path) as reader:
            frames = reader.read_tensor([7, 2, 7])
            assert frames.dtype == torch.uint8
            assert np.array_equal(frames.numpy(), reader.read([7, 2, 7]))
            assert reader.read_tensor([]).shape == (0, *frames.shape[1:])
            with pytest.raises(IndexError):
                reader.read_tensor([10**6])
    with open_flow(media_dir / "frames") as flow:
        assert np.array_equal(flow.read_tensor([1, 0]).numpy(), flow.read([1, 0]))


def test_importing_the_package_does_not_import_torch() -> None:
    heavy = "{'torch', 'torchcodec', 'decord', 'torchvision'}"
    code = f"import sys, pipeline.decode; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_static_videos_are_whole(tmp_path: Path) -> None:
    """A screen recording repeats its frames; that is counted and no failure, whatever its packets hold."""
    for name, codec, options in (
        ("static.mp4", "libx264", {}),
        ("intra.mp4", "libx264", {"g": "1"}),
        ("static.avi", "mjpeg", {}),
        ("static.webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    ):
        path = tmp_path / name
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=30, options=options)
            stream.width, stream.height = SIZE
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.thread_count = 1
            picture = av.VideoFrame.from_ndarray(corpus.picture(0, SIZE), format="rgb24")
            for index in range(30):
                picture.pts = index
                output.mux(stream.encode(picture))
            output.mux(stream.encode(None))
        for decoder in ("pyav", "auto"):
            with VideoReader(path, decoder=decoder) as reader:
                frames = reader.read(range(0, 30, 2))
                assert int(reader.facts["repeated_frames"]) == sum(
                    np.array_equal(frames[i], frames[i + 1]) for i in range(14)
                )
                if name == "static.mp4":
                    assert int(reader.facts["repeated_frames"]) >= 7
                assert "complaint" not in reader.facts


def test_one_scan_serves_readers_and_the_file_is_opened_once(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fresh.mp4"
    path.write_bytes(files["plain.mp4"].read_bytes())
    opened = []
    original = av.open
    monkeypatch.setattr(av, "open", lambda *args, **rest: opened.append(args) or original(*args, **rest))
    with VideoReader(path, decoder="pyav") as reader:
        reader.read([0, 7])
        reader.read([8, 9, 30])
    assert len(opened) == 1
    with VideoReader(path, decoder="pyav") as reader:
        reader.read([30])
    assert len(opened) == 2
    assert scan_video(path) is scan_video(path)


def test_reads_go_on_where_the_last_one_ended(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.decode.pyav_frames import PyavFrames

    truth = corpus.sequential_frames(files["bframes.mp4"])  # one key frame
    seeks: list[int] = []
    original = PyavFrames._seek
    monkeypatch.setattr(PyavFrames, "_seek", lambda self, key: seeks.append(key) or original(self, key))
    with VideoReader(files["bframes.mp4"], decoder="pyav") as reader:
        for wanted in ([0, 3], [3, 4], [20], [21, 39]):
            assert np.array_equal(reader.read(wanted), np.stack([truth[i] for i in wanted]))
    assert len(seeks) == 1
    seeks.clear()
    with VideoReader(files["plain.mp4"], decoder="pyav") as reader:  # a key frame every 12 frames
        reader.read([0, 39])
    assert len(seeks) == 2  # and not all that lies between


def test_complaints_are_heard_in_their_thread_only(files: dict[str, Path], tmp_path: Path) -> None:
    needs("torchcodec")
    library = log_library("")
    assert library is not None
    with complaints(library) as said:
        library._handle.av_log(None, 16, b"it is broken\n")
        library._handle.av_log(None, 32, b"concealing 3 errors\n")
        library._handle.av_log(None, 32, b"all is well\n")
    assert said == ["it is broken", "concealing 3 errors"]
    library._handle.av_log(None, 16, b"nobody listens\n")
    assert len(said) == 2
