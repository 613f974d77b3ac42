"""The sound of a clip: the action's own sound, the room and the recorder, and the domain's background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.demo.motion import Motion, between_ends, phase, place_on_axis
from pipeline.datasets.demo.plan import ClipPlan
from pipeline.datasets.demo.style import ACTIONS, HARD_SOUND_SHARE, SOUND_ENDS, STYLES, SoundAxis, Style

Floats = NDArray[np.float64]
Waveform = NDArray[np.float32]
Voice = dict[str, float]
SoundTrouble = Literal["none", "drowned", "muffled"]

NUM_BANDS = 6  # of the noise whose pitch glides
NUM_HARMONICS = 8
BLOCK_SECONDS = 0.05  # of the loudness measure


def sound_trouble(plan: ClipPlan) -> SoundTrouble:
    """Return what spoils the sound of a clip, if anything; drawn independently of what spoils its picture."""
    rng = plan.stream("sound-trouble")
    if rng.random() >= HARD_SOUND_SHARE:
        return "none"
    return "drowned" if rng.random() < 0.7 else "muffled"


def synthesise(plan: ClipPlan, motion: Motion, rate_hz: int, video_rate_hz: int) -> Waveform:
    """Make the sound of a clip: ``(samples,)`` float32 in -1..1, as long as its frames are."""
    rng, action, style = plan.stream("sound"), ACTIONS[plan.label], STYLES[plan.domain]
    num_samples = plan.num_frames * rate_hz // video_rate_hz
    seconds = np.arange(num_samples) / rate_hz
    place = place_on_axis(rng, action.sound_end, style.sound_shift[action.sound])
    voice = between_ends(rng, SOUND_ENDS[action.sound], place)
    voice["place"] = float(np.clip(place, 0.0, 1.0))
    voice["pitch_hz"] *= style.pitch * 2 ** rng.normal(0.0, 0.25)
    dry = _SOURCES[action.sound](voice, phase(motion, seconds), motion, rng, rate_hz)
    if style.drive:
        dry = np.tanh(style.drive * dry / (np.abs(dry).max() + 1e-9))
    trouble = sound_trouble(plan)
    wet = _record(dry, style, rng, rate_hz, muffled=trouble == "muffled")
    bed = _BEDS[plan.domain](seconds, rng, rate_hz)
    snr_db = rng.uniform(*style.snr_db)
    if trouble == "drowned":
        snr_db = rng.uniform(-12.0, -4.0)
    elif trouble == "muffled":
        snr_db = rng.uniform(-6.0, 0.0)
    mixed = wet / _loudness(wet, rate_hz) + 10 ** (-snr_db / 20) * bed / _loudness(bed, rate_hz)
    level = 10 ** (rng.uniform(-24.0, -15.0) / 20)
    return np.tanh(level * mixed / _loudness(mixed, rate_hz)).astype(np.float32)


def _loudness(wave: Floats, rate_hz: int) -> float:
    """Root mean square of the loudest quarter, so that rare knocks and steady tones compare as they are heard."""
    block = round(BLOCK_SECONDS * rate_hz)
    power = (wave[: len(wave) // block * block].reshape(-1, block) ** 2).mean(axis=1)
    loudest = np.sort(power)[-max(len(power) // 4, 1) :]
    return float(np.sqrt(loudest.mean())) + 1e-9


def _filter(wave: Floats, gain: Floats) -> Floats:
    """Apply ``gain (samples // 2 + 1,)`` to the spectrum of ``wave (samples,)``."""
    return np.asarray(np.fft.irfft(np.fft.rfft(wave) * gain, len(wave)), np.float64)


def _frequencies(num_samples: int, rate_hz: int) -> Floats:
    return np.asarray(np.fft.rfftfreq(num_samples, 1 / rate_hz), np.float64)


def _convolve(wave: Floats, response: Floats) -> Floats:
    """Convolve and keep the length of ``wave``."""
    length = len(wave) + len(response) - 1
    fast = -(-length // 4096) * 4096
    spectrum = np.fft.rfft(wave, fast) * np.fft.rfft(response, fast)
    return np.asarray(np.fft.irfft(spectrum, fast)[: len(wave)], np.float64)


def _impacts(voice: Voice, cycles: Floats, motion: Motion, rng: np.random.Generator, rate_hz: int) -> Floats:
    """Knocks: grains of a ringing body on every landing, or on both turning points of the motion."""
    offset = 0.0 if motion.hop > 0 else 0.25
    first, last = np.ceil(cycles[0] - offset), np.floor(cycles[-1] - offset)
    main = np.arange(first, last + 1) + offset
    events = np.concatenate([main, main - 0.5])
    strength = np.repeat([1.0, 1.0 - voice["place"]], len(main)) * np.exp(rng.normal(0.0, 0.35, len(events)))
    starts = np.interp(events, cycles, np.arange(len(cycles)))
    grains = 1 + rng.poisson(max(voice["grains"] - 1, 0.0), len(events))
    train = np.zeros(len(cycles))
    for start, loud, count in zip(starts, strength, grains, strict=True):
        late = np.abs(rng.normal(0.0, voice["spread_seconds"], count))
        late[0] = 0.0
        place = np.minimum((start + late * rate_hz).astype(np.int64), len(cycles) - 1)
        np.add.at(train, place, loud * rng.uniform(0.4, 1.0, count) * rng.choice([-1.0, 1.0], count))
    ring = np.arange(round(6 * voice["decay_seconds"] * rate_hz)) / rate_hz
    pitches = voice["pitch_hz"] * np.array([1.0, 1.58, 2.24, 2.92]) * rng.uniform(0.95, 1.05, 4)
    body = sum(np.sin(2 * np.pi * f * ring) / (k + 1) for k, f in enumerate(pitches) if f < 0.45 * rate_hz)
    click = rng.standard_normal(len(ring)) * np.exp(-ring / 0.004)
    return _convolve(train, (body + 0.6 * click) * np.exp(-ring / voice["decay_seconds"]))


def _swells(voice: Voice, cycles: Floats, motion: Motion, rng: np.random.Generator, rate_hz: int) -> Floats:
    """Noise that swells with the speed of the motion, twice a cycle, and glides in pitch."""
    del motion
    step = max(rate_hz // 200, 1)
    speed = np.abs(np.cos(2 * np.pi * cycles[::step]))
    octave = np.log2(voice["pitch_hz"]) + voice["sweep"] * (speed - 0.6)
    centres = np.geomspace(120, 0.42 * rate_hz, NUM_BANDS)
    weights = np.exp(-0.5 * ((octave - np.log2(centres)[:, None]) / (1.1 * voice["width"])) ** 2)
    rough = rng.standard_normal(len(speed)) * voice["rough"]
    envelope = speed ** voice["peaked"] * np.exp(0.8 * rough)
    frequency = np.log2(np.maximum(_frequencies(len(cycles), rate_hz), 1.0))
    white = np.fft.rfft(rng.standard_normal(len(cycles)))
    spacing = np.log2(centres[1] / centres[0])
    shapes = np.exp(-0.5 * ((frequency - np.log2(centres)[:, None]) / (0.6 * spacing)) ** 2)
    bands = np.fft.irfft(white * shapes, len(cycles), axis=1)
    fine, coarse = np.arange(len(cycles)), np.arange(len(speed)) * step
    wave = np.zeros(len(cycles))
    for band, weight in zip(bands, weights, strict=True):
        # Equal power in every band, so that the pitch is heard and not the band's width.
        wave += band / (band.std() + 1e-12) * np.interp(fine, coarse, weight * envelope)
    return wave


def _tones(voice: Voice, cycles: Floats, motion: Motion, rng: np.random.Generator, rate_hz: int) -> Floats:
    """A tone that comes and goes once a cycle: a swelling hum at one end, separate beeps at the other."""
    del motion
    beat = np.cos(2 * np.pi * cycles)
    gate = 1 / (1 + np.exp(-(beat - rng.uniform(-0.1, 0.4)) / (0.25 * voice["soft"])))
    gate = voice["floor"] + (1 - voice["floor"]) * gate
    seconds = np.arange(len(cycles)) / rate_hz
    vibrato = 0.01 * np.sin(2 * np.pi * rng.uniform(4, 7) * seconds) + 0.04 * (1 - voice["place"]) * beat
    turns = np.cumsum(voice["pitch_hz"] * (1 + vibrato)) / rate_hz
    wave = np.zeros(len(cycles))
    for k in range(1, NUM_HARMONICS + 1):
        if k * voice["pitch_hz"] < 0.42 * rate_hz:
            wave += k ** -voice["rolloff"] * np.sin(2 * np.pi * (k * turns + rng.random()))
    return wave * gate


_Source = Callable[[Voice, Floats, Motion, np.random.Generator, int], Floats]
_SOURCES: dict[SoundAxis, _Source] = {"impacts": _impacts, "swells": _swells, "tones": _tones}


def _record(dry: Floats, style: Style, rng: np.random.Generator, rate_hz: int, muffled: bool) -> Floats:
    """Add the room's reverberation and the colour of the recorder."""
    room = rng.uniform(*style.room_seconds)
    tail = np.arange(round(room * rate_hz)) / rate_hz
    response = rng.standard_normal(len(tail)) * np.exp(-6.9 * tail / room)
    response *= np.sqrt(style.room_gain / (np.sum(response**2) + 1e-12))
    response[0] = 1.0
    wave = _convolve(dry, response)
    frequency = _frequencies(len(wave), rate_hz)
    if style.recorder == "thin":
        gain = frequency / (frequency + 250) * (1 + frequency / (frequency + 1500))
    elif style.recorder == "indoors":
        gain = np.ones(len(frequency))
        for peak in np.exp(rng.uniform(np.log(300), np.log(4000), 3)):
            gain += 1.5 / (1 + ((frequency - peak) / (0.08 * peak)) ** 2)
    else:
        gain = 1 / (1 + (frequency / rng.uniform(1800, 3000)) ** 2)
    if muffled:
        gain = gain / (1 + (frequency / rng.uniform(350, 700)) ** 4)
    return _filter(wave, gain)


def _coloured(rng: np.random.Generator, num_samples: int, rate_hz: int, slope: float) -> Floats:
    """Noise of unit variance whose amplitude falls with the frequency to the power ``slope``."""
    frequency = _frequencies(num_samples, rate_hz)
    wave = _filter(rng.standard_normal(num_samples), np.maximum(frequency, 40.0) ** -slope)
    return np.asarray(wave / wave.std())


def _workshop_bed(seconds: Floats, rng: np.random.Generator, rate_hz: int) -> Floats:
    """Mains hum and the hiss of a machine."""
    hum = rng.uniform(48, 52)
    wave = sum(np.sin(2 * np.pi * (k * hum * seconds + rng.random())) / k for k in (2, 3, 4, 6))
    throb = 1 + 0.3 * np.sin(2 * np.pi * rng.uniform(0.5, 3.0) * seconds)
    return np.asarray(0.6 * wave + 0.8 * throb * _coloured(rng, len(seconds), rate_hz, 0.5))


def _street_bed(seconds: Floats, rng: np.random.Generator, rate_hz: int) -> Floats:
    """Rumble, and a car that passes at some time."""
    rumble = _coloured(rng, len(seconds), rate_hz, 1.0)
    tyres = _coloured(rng, len(seconds), rate_hz, 0.3)
    passing = (seconds - rng.uniform(-0.3, 1.1) * seconds[-1]) / rng.uniform(0.3, 0.8)
    return np.asarray(rumble + 1.2 * np.exp(-(passing**2)) * tyres)


def _cartoon_bed(seconds: Floats, rng: np.random.Generator, rate_hz: int) -> Floats:
    """A tune of soft plucked notes over a light hiss."""
    root, pace = rng.uniform(330, 520), rng.uniform(2.5, 5.0)
    note = (seconds * pace + rng.random()).astype(np.int64)
    steps = rng.choice([0, 2, 4, 7, 9, 12], note[-1] + 1)
    pitch = (root * 2 ** (steps / 12))[note]
    turns = np.cumsum(pitch) / rate_hz
    since = (seconds * pace) % 1.0 / pace
    tune = (np.sin(2 * np.pi * turns) + 0.3 * np.sin(6 * np.pi * turns)) * np.exp(-since / 0.12)
    return np.asarray(tune + 0.35 * _coloured(rng, len(seconds), rate_hz, 0.3))


_BEDS: dict[str, Callable[[Floats, np.random.Generator, int], Floats]] = {
    "workshop": _workshop_bed,
    "street": _street_bed,
    "cartoon": _cartoon_bed,
}
