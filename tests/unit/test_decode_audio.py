"""Sound: exact where nothing has to be computed, cut to the sample, refused with a reason."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode import RESAMPLERS, Sound, read_sound
from pipeline.decode.resample import Resampler
from pipeline.errors import MediaAbsent, MediaError, UsageError
from pipeline.types import canonical_json
from tests import media_corpus as corpus


def failure(path: Path, *stretch: float | None) -> MediaError:
    with pytest.raises(MediaError) as caught:
        read_sound(path, 16000, *stretch)
    assert path.name in caught.value.detail
    return caught.value


def attempt(path: Path) -> Sound | MediaError:
    try:
        return read_sound(path, 16000)
    except MediaError as error:
        return error


def write_wav(path: Path, samples: np.ndarray, rate_hz: int, width: int = 2) -> Path:
    """Write `(channels, num_samples)` integers with the standard library."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        file.writeframes(np.ascontiguousarray(samples.T).tobytes())
    return path


def level(signal: np.ndarray, rate_hz: int, hz: float = 440.0) -> float:
    """Amplitude of one frequency."""
    time = np.arange(len(signal)) / rate_hz
    return float(2 * abs(np.mean(signal * np.exp(-2j * np.pi * hz * time))))


def test_real_wav_is_exact(media_dir: Path) -> None:
    path = media_dir / "FwVYUHKoLtQ_000034.wav"
    with wave.open(str(path)) as file:
        truth = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    sound = read_sound(path, 16000)
    assert sound.samples.dtype == np.float32
    assert np.array_equal(sound.samples, truth.astype(np.float32) / 32768)
    assert sound.facts["resampler"] == "none"
    part = read_sound(path, 16000, 3.7, 5.2)
    assert np.array_equal(part.samples, sound.samples[59200:83200])
    canonical_json(sound.facts)


@pytest.mark.parametrize(
    ("name", "codec", "channels", "seconds"),
    [
        ("v_GGSY1Qvo990.mp4", "aac", 1, 18.158),
        ("v_ZNVhz7ctTq0.mp4", "aac", 1, 14.048),
        ("test.avi", "mp3float", 2, 6.557),
    ],
)
def test_real_tracks(media_dir: Path, name: str, codec: str, channels: int, seconds: float) -> None:
    sound = read_sound(media_dir / name, 16000)
    facts = sound.facts
    assert (facts["codec"], facts["channels"], facts["native_rate_hz"]) == (codec, channels, 44100)
    assert facts["resampler"] == "swresample"
    assert len(sound.samples) / 16000 == pytest.approx(seconds, abs=2e-3)
    assert not facts["silent"]
    assert np.abs(sound.samples).max() <= 1.2
    again = read_sound(media_dir / name, 16000)
    assert again.samples.tobytes() == sound.samples.tobytes()
    for start, end in ((0.0, 1.5), (1.25, 2.875), (3.1371, 4.9), (5.5, None)):
        part = read_sound(media_dir / name, 16000, start, end)
        whole = sound.samples[round(start * 16000) : None if end is None else round(end * 16000)]
        assert len(part.samples) == len(whole)
        assert np.abs(part.samples - whole).max() < 1e-6


def test_real_file_without_sound(media_dir: Path) -> None:
    error = failure(media_dir / "arm_wrestling.mp4")
    assert isinstance(error, MediaAbsent)
    assert error.code == "no_audio_stream"


@pytest.mark.parametrize(
    ("suffix", "codec", "layout", "rate_hz", "tolerance"),
    [
        ("wav", "pcm_s16le", "mono", 22050, 1e-4),
        ("wav", "pcm_s24le", "stereo", 48000, 1e-6),
        ("wav", "pcm_f32le", "5.1", 44100, 1e-6),
        ("wav", "pcm_u8", "mono", 16000, 2e-2),
        ("flac", "flac", "stereo", 44100, 1e-4),
        ("m4a", "aac", "stereo", 44100, 3e-2),
        ("mp3", "libmp3lame", "stereo", 44100, 3e-2),
        ("ogg", "libopus", "mono", 48000, 3e-2),
        ("mkv", "aac", "stereo", 44100, 3e-2),
    ],
)
def test_encodings(tmp_path: Path, suffix: str, codec: str, layout: str, rate_hz: int, tolerance: float) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    channels = av.AudioLayout(layout).nb_channels
    samples = np.tile(corpus.sine(4 * rate_hz, rate_hz), (channels, 1))
    path = corpus.write_sound(tmp_path / f"a.{suffix}", samples, rate_hz, codec=codec, layout=layout)
    sound = read_sound(path, 16000)
    assert sound.facts["channels"] == channels
    assert sound.facts["native_rate_hz"] == rate_hz
    assert len(sound.samples) == pytest.approx(64000, abs=2500)  # encoders round up to their frames
    middle = sound.samples[8000:56000]
    assert level(middle, 16000) == pytest.approx(0.5, abs=max(tolerance, 2e-3))
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), abs=max(tolerance, 2e-3))
    if tolerance < 1e-3:  # no codec delay: the phase is right too
        assert np.abs(sound.samples[100:63900] - corpus.sine(64000, 16000)[100:63900]).max() < 1e-3
    part = read_sound(path, 16000, 2.5, 3.0)
    assert len(part.samples) == 8000
    assert np.abs(part.samples - sound.samples[40000:48000]).max() < 1e-5


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = corpus.sine(16000, 16000)
    path = corpus.write_sound(tmp_path / "a.wav", np.stack([left, -left]), 16000, layout="stereo")
    sound = read_sound(path, 16000)
    assert sound.facts["silent"] is True
    assert np.abs(sound.samples).max() < 1e-5
    values = np.array([[1000, -32768, 32767], [3000, -32768, 0]], "<i2")
    sound = read_sound(write_wav(tmp_path / "b.wav", np.tile(values, 400), 16000), 16000)
    assert np.array_equal(sound.samples[:3], np.array([2000, -32768, 16383.5], np.float32) / 32768)
    assert sound.facts["silent"] is False


def test_many_channels(tmp_path: Path) -> None:
    packed = write_wav(tmp_path / "a.wav", np.full((16, 16000), 1024, "<i2"), 16000)
    sound = read_sound(packed, 16000)
    assert sound.facts["channels"] == 16
    assert (sound.samples == 1 / 32).all()
    with av.open(str(packed)) as given, av.open(str(tmp_path / "a.m4a"), "w") as output:
        stream = output.add_stream("aac", rate=16000, layout="hexadecagonal")
        for frame in given.decode(audio=0):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    error = failure(tmp_path / "a.m4a")  # a plane per channel: more than PyAV can hand out
    assert error.code == "decode_error"
    assert "16 channels" in error.detail


@pytest.mark.parametrize(("given", "rate_hz"), [(44100, 16000), (8000, 16000), (48000, 44100), (11025, 16000)])
def test_resampled_length_and_phase(tmp_path: Path, given: int, rate_hz: int) -> None:
    path = corpus.write_sound(tmp_path / "a.wav", corpus.sine(3 * given, given)[None], given, codec="pcm_f32le")
    samples = read_sound(path, rate_hz).samples
    assert abs(len(samples) - 3 * rate_hz) <= 1
    inside = slice(200, 3 * rate_hz - 200)
    assert np.abs(samples[inside] - corpus.sine(3 * rate_hz, rate_hz)[inside]).max() < 1e-3


def test_stretch_past_the_end(tmp_path: Path) -> None:
    path = corpus.write_sound(tmp_path / "a.wav", corpus.sine(48000, 16000)[None], 16000)
    sound = read_sound(path, 16000, 2.5, 4.0)
    assert len(sound.samples) == 8000
    assert sound.facts["missing_seconds"] == 1.0
    error = failure(path, 3.5, 4.0)
    assert error.code == "past_end"
    assert "3.000 s" in error.detail
    assert failure(path, 1.0, 1.00001).code == "no_samples"


def test_pause_in_the_timestamps_is_kept_and_noted(tmp_path: Path) -> None:
    tone = np.full((1, 64 * 1024), 0.25, np.float32)
    path = corpus.write_sound(tmp_path / "a.mkv", tone, 16000, codec="flac", pause=(32 * 1024, 16000))
    sound = read_sound(path, 16000)
    assert sound.facts["gap_seconds"] == pytest.approx(1.0, abs=2e-3)
    assert len(sound.samples) == pytest.approx(64 * 1024 + 16000, abs=32)
    assert np.abs(sound.samples[38000:48000]).max() == 0  # the encoder's blocks shift the pause a little
    assert np.sum(sound.samples == 0) == pytest.approx(16000, abs=32)
    late = read_sound(path, 16000, 2.5, 3.5)
    assert np.array_equal(late.samples, sound.samples[40000:56000])
    early = read_sound(path, 16000, 0.5, 1.5)
    assert early.facts["gap_seconds"] == 0


def test_jump_in_the_timestamps_is_damage(tmp_path: Path) -> None:
    tone = np.full((1, 16 * 1024), 0.25, np.float32)
    path = corpus.write_sound(tmp_path / "a.mkv", tone, 16000, codec="flac", pause=(8 * 1024, 16000 * 3600))
    error = failure(path)
    assert error.code == "decode_error"
    assert "jump" in error.detail
    assert len(read_sound(path, 16000, 0.0, 0.2).samples) == 3200


def test_what_is_no_sound(tmp_path: Path) -> None:
    assert failure(tmp_path / "missing.wav").code == "missing_file"
    files = {"zero.wav": b"", "garbage.wav": np.random.default_rng(0).bytes(50_000), "text.wav": b"a text\n" * 900}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert failure(tmp_path / "zero.wav").code == "zero_bytes"
    assert failure(tmp_path / "garbage.wav").code == "not_media"
    assert failure(tmp_path / "text.wav").code == "not_media"
    assert failure(corpus.write_video(tmp_path / "mute.mp4", 3)).code == "no_audio_stream"
    folder = tmp_path / "frames"
    folder.mkdir()
    assert failure(folder).code == "no_audio_stream"


def test_track_without_samples(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "empty.wav", np.zeros((1, 0), "<i2"), 16000)
    assert failure(path).code == "no_samples"


def test_samples_that_are_no_numbers(tmp_path: Path) -> None:
    samples = corpus.sine(16000, 16000)
    samples[8000] = np.nan
    path = corpus.write_sound(tmp_path / "a.wav", samples[None], 16000, codec="pcm_f32le")
    assert failure(path).code == "decode_error"


def test_impossible_rate(tmp_path: Path) -> None:
    error = failure(write_wav(tmp_path / "a.wav", np.ones((1, 16000), "<i2"), 3))
    assert error.code == "decode_error"
    assert "3 Hz" in error.detail


@pytest.mark.parametrize("name", ["a.wav", "a.mp4", "a.mkv", "a.avi"])
def test_cut_off(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".wav":
        corpus.write_sound(path, corpus.sine(96000, 16000)[None], 16000)
    else:
        codec = "mpeg4" if path.suffix == ".avi" else "libx264"
        options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
        corpus.write_video(path, 180, sound_seconds=6.0, codec=codec, container_options=options)
    assert len(read_sound(path, 16000).samples) == pytest.approx(96000, abs=2100)
    for share in (0.45, 0.8):
        cut = corpus.cut_file(path, tmp_path / f"cut{path.suffix}", int(path.stat().st_size * share))
        assert failure(cut).code == "truncated"
    assert failure(cut, 5.5, 6.0).code == "truncated"


def test_cut_off_at_every_length_is_an_error_or_complete(tmp_path: Path) -> None:
    path = corpus.write_video(tmp_path / "a.mp4", 60, sound_seconds=2.0, container_options={"movflags": "faststart"})
    size, refused = path.stat().st_size, 0
    for share in np.linspace(0.01, 0.99, 25).tolist():
        cut = corpus.cut_file(path, tmp_path / "cut.mp4", int(size * share))
        outcome = attempt(cut)
        if isinstance(outcome, MediaError):
            assert outcome.code == "truncated"
            refused += 1
        else:  # at most half a second may be missing
            missing = float(outcome.facts["header_seconds"]) - len(outcome.samples) / 16000
            assert missing <= 0.5
    assert refused >= 20


def test_damaged_sound(tmp_path: Path) -> None:
    path = corpus.write_sound(tmp_path / "a.m4a", corpus.sine(96000, 16000)[None], 16000, codec="aac")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.dts is not None]
        begin, size = packets[12].pos, packets[12].size
    data = bytearray(path.read_bytes())
    data[begin : begin + size] = b"\xff" * size
    (tmp_path / "b.m4a").write_bytes(data)
    assert failure(tmp_path / "b.m4a").code == "decode_error"
    for start, end in ((0.0, 0.4), (1.5, 2.0), (4.0, 5.0)):  # damage outside the stretch does not matter
        healthy = read_sound(tmp_path / "b.m4a", 16000, start, end)
        assert np.abs(healthy.samples - read_sound(path, 16000, start, end).samples).max() < 1e-6


def test_half_a_second_missing_of_many(tmp_path: Path) -> None:
    path = corpus.write_sound(tmp_path / "a.mkv", corpus.sine(320000, 16000)[None], 16000, codec="flac")
    error = failure(corpus.cut_file(path, tmp_path / "cut.mkv", int(path.stat().st_size * 0.95)))
    assert error.code == "truncated"
    assert "20.00 s" in error.detail


@pytest.mark.parametrize(("name", "decibels"), [("swresample", 60), ("soxr-hq", 95), ("soxr-vhq", 95)])
def test_resamplers_keep_the_signal(tmp_path: Path, name: str, decibels: float) -> None:
    if reason := RESAMPLERS[name].why_not():
        pytest.skip(reason)
    rate_hz = 44100
    path = corpus.write_sound(tmp_path / "a.wav", corpus.sine(4 * rate_hz, rate_hz)[None], rate_hz, codec="pcm_f32le")
    sound = read_sound(path, 16000, resampler=name)
    assert sound.facts["resampler"] == name
    assert len(sound.samples) == 64000
    noise = (sound.samples - corpus.sine(64000, 16000))[1000:-1000]
    signal = float(np.sqrt(np.mean(corpus.sine(64000, 16000) ** 2)))
    assert 20 * np.log10(signal / np.sqrt(np.mean(noise**2))) > decibels
    if name.startswith("soxr"):
        noise_at_all = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
        quality = name.removeprefix("soxr-").upper()
        direct = pytest.importorskip("soxr").resample(noise_at_all, 44100, 16000, quality=quality)
        assert np.array_equal(RESAMPLERS[name].run(noise_at_all, 44100, 16000), direct)
    for start, end in ((1.25, 2.875), (2.5, None)):
        part = read_sound(path, 16000, start, end, resampler=name).samples
        whole = sound.samples[round(start * 16000) : None if end is None else round(end * 16000)]
        assert len(part) == len(whole)
        assert np.abs(part - whole).max() < 1e-4


def test_resamplers_leave_the_wanted_rate_alone_and_need_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus.write_sound(tmp_path / "a.wav", corpus.sine(16000, 16000)[None], 16000)
    with pytest.raises(UsageError, match="Did you mean 'soxr-hq'"):
        read_sound(path, 16000, resampler="soxr-h")
    monkeypatch.setitem(RESAMPLERS, "soxr-vhq", Resampler(RESAMPLERS["soxr-vhq"].run, lambda: "it is not here"))
    with pytest.raises(UsageError, match="it is not here"):
        read_sound(path, 16000, resampler="soxr-vhq")
    if not RESAMPLERS["soxr-hq"].why_not():
        sound = read_sound(path, 16000, resampler="soxr-hq")
        assert sound.facts["resampler"] == "none"
        assert np.array_equal(sound.samples, read_sound(path, 16000).samples)


def test_silent_empty_and_absent_are_three_things(tmp_path: Path) -> None:
    silent = corpus.write_sound(tmp_path / "silent.wav", np.zeros((1, 16000), np.float32), 16000)
    assert read_sound(silent, 16000).facts["silent"] is True
    empty = tmp_path / "empty.wav"
    with wave.open(str(empty), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    error = failure(empty)
    assert not isinstance(error, MediaAbsent)
    assert error.code == "no_samples"
    mute = failure(corpus.write_video(tmp_path / "mute.mp4", 10))
    assert isinstance(mute, MediaAbsent)
    assert mute.code == "no_audio_stream"
