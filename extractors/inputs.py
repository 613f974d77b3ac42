"""What a backbone wants to see: the part of its specification that decoding and views need."""

from __future__ import annotations

import math
from dataclasses import dataclass

SPECTROGRAMS = ("power", "magnitude", "mel")


@dataclass(frozen=True)
class FrameInput:
    """Frames of one clip, for RGB (3 channels) or optical flow (2 channels: u horizontal, v vertical).

    Frame indices are ``(offset + j * interval) mod total`` for ``j < num_frames``; the window is
    ``num_frames * interval`` frames (SlowFast 32x2, SlowOnly-flow 8x4 in the papers). With ``rate_hz`` the interval
    follows from the clip's frame rate instead, see ``views.sampling.interval_at_rate``.

    Raises:
        ValueError: ``rate_hz`` is not a positive number.
    """

    num_frames: int  # frames per view
    interval: int  # step between sampled frames, in frames; not read where ``rate_hz`` is given
    resize_short: int  # short side after the first resize, pixels
    size: int  # side of the square network input of weak and strong views, pixels
    clean_size: int  # side of the centre crop of the clean view, pixels (the reference's flow uses 256)
    mean: tuple[float, ...]  # per channel, in grey levels 0..255
    std: tuple[float, ...]  # per channel, in grey levels 0..255
    min_scale: float = 0.08  # smallest area share of the random resized crop (the papers' value)
    rate_hz: float | None = None  # sampled frames per second; None: every ``interval``-th frame whatever the rate

    def __post_init__(self) -> None:
        if self.rate_hz is not None and not 0 < self.rate_hz < math.inf:
            raise ValueError(f"rate_hz is {self.rate_hz}; allowed: more than 0 sampled frames per second, or None")

    @property
    def channels(self) -> int:
        """Number of channels: 3 for RGB, 2 for flow."""
        return len(self.mean)

    @property
    def window(self) -> int:
        """Number of consecutive frames that one view spans; without meaning where ``rate_hz`` is given."""
        return self.num_frames * self.interval


@dataclass(frozen=True)
class AudioInput:
    """A mono waveform of fixed length turned into a log spectrogram.

    Shorter clips are tiled to ``num_samples``, longer ones cut (the reference: 160,000 samples at 16 kHz).

    * ``power``: the standardised log power density of ``spectrogram.log_spectrogram`` (SSMDG: segments of 512 samples
      that overlap by 353, 257 x 1004);
    * ``magnitude``: the plain log magnitude of ``spectrogram.log_magnitude`` (the literature on modality balance: at
      22,050 Hz 66,150 samples, segments of 512 with a *step* of 353, so an overlap of 159, 257 x 188);
    * ``mel``: the log power in mel bands of ``spectrogram.log_mel`` (librosa's defaults: segments of 2,048 with a step
      of 512 in 128 bands, so at 22,050 Hz and 66,150 samples 128 x 130). Only this kind has the last three fields.

    Raises:
        ValueError: an unknown kind, segments that do not advance, mel without bands, with an odd rate or odd segments,
            mel bands for another kind, or frequencies out of order.
    """

    rate_hz: int  # sample rate after resampling
    num_samples: int  # length after tiling or cutting, samples
    window_samples: int = 512  # spectrogram segment, samples
    overlap_samples: int = 353  # overlap of two segments, samples
    kind: str = "power"  # one of ``SPECTROGRAMS``
    num_mels: int = 0  # mel bands; 0 where the kind has none
    min_hz: float = 0.0  # lower edge of the first mel band
    max_hz: float | None = None  # upper edge of the last mel band; None: half the rate

    def __post_init__(self) -> None:
        if self.kind not in SPECTROGRAMS:
            raise ValueError(f"kind of spectrogram {self.kind!r}; allowed: {', '.join(SPECTROGRAMS)}")
        if not 0 <= self.overlap_samples < self.window_samples:
            raise ValueError(
                f"overlap_samples is {self.overlap_samples}; allowed: 0 to {self.window_samples - 1}, "
                "less than window_samples"
            )
        if self.kind == "mel":
            self._check_mel()
        elif (self.num_mels, self.min_hz, self.max_hz) != (0, 0.0, None):
            raise ValueError(
                f"num_mels is {self.num_mels}, min_hz {self.min_hz:g} and max_hz {self.max_hz} for the kind "
                f"{self.kind!r}, which has no mel bands; allowed: 0, 0 and None, or kind 'mel'"
            )

    def _check_mel(self) -> None:
        """Check the fields of mel bands."""
        if self.num_mels < 1:
            raise ValueError(f"num_mels is {self.num_mels}; kind 'mel' needs at least 1 band")
        if self.rate_hz % 2 or self.window_samples % 2:
            # torchaudio's filters take the last frequency of a transform for rate // 2.
            raise ValueError(
                f"rate_hz is {self.rate_hz} and window_samples {self.window_samples}; kind 'mel' needs both even"
            )
        if not 0 <= self.min_hz < self.highest_hz <= self.rate_hz / 2:
            raise ValueError(
                f"mel bands from {self.min_hz:g} to {self.highest_hz:g} Hz; allowed: ascending, from 0 to half the "
                f"rate, {self.rate_hz / 2:g} Hz"
            )

    @property
    def hop_samples(self) -> int:
        """Samples from the start of one segment to the start of the next."""
        return self.window_samples - self.overlap_samples

    @property
    def highest_hz(self) -> float:
        """Upper edge of the last mel band in hertz."""
        return self.rate_hz / 2 if self.max_hz is None else self.max_hz

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(frequency, time)`` of the spectrogram."""
        centred = self.kind != "power"  # segments are centred on their samples, so that silence is added at both ends
        padded = self.num_samples + centred * 2 * (self.window_samples // 2)
        rows = self.num_mels if self.kind == "mel" else self.window_samples // 2 + 1
        return rows, (padded - self.window_samples) // self.hop_samples + 1
