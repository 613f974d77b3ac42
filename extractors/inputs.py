"""What a backbone wants to see: the part of its specification that decoding and views need."""

from __future__ import annotations

import math
from dataclasses import dataclass

SPECTROGRAMS = ("power", "magnitude")


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
      22,050 Hz 66,150 samples, segments of 512 with a *step* of 353, so an overlap of 159, 257 x 188).

    Raises:
        ValueError: an unknown kind, or segments that do not advance.
    """

    rate_hz: int  # sample rate after resampling
    num_samples: int  # length after tiling or cutting, samples
    window_samples: int = 512  # spectrogram segment, samples
    overlap_samples: int = 353  # overlap of two segments, samples
    kind: str = "power"  # one of ``SPECTROGRAMS``

    def __post_init__(self) -> None:
        if self.kind not in SPECTROGRAMS:
            raise ValueError(f"kind of spectrogram {self.kind!r}; allowed: {', '.join(SPECTROGRAMS)}")
        if not 0 <= self.overlap_samples < self.window_samples:
            raise ValueError(
                f"overlap_samples is {self.overlap_samples}; allowed: 0 to {self.window_samples - 1}, "
                "less than window_samples"
            )

    @property
    def hop_samples(self) -> int:
        """Samples from the start of one segment to the start of the next."""
        return self.window_samples - self.overlap_samples

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(frequency, time)`` of the spectrogram."""
        padded = self.num_samples
        if self.kind == "magnitude":
            padded += 2 * (self.window_samples // 2)
        return self.window_samples // 2 + 1, (padded - self.window_samples) // self.hop_samples + 1
