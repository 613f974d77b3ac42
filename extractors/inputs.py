"""What a backbone wants to see: the part of its specification that decoding and views need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameInput:
    """Frames of one clip, for RGB (3 channels) or optical flow (2 channels: u horizontal, v vertical).

    Frame indices are ``(offset + j * interval) mod total`` for ``j < num_frames``; the window is
    ``num_frames * interval`` frames (SlowFast 32x2, SlowOnly-flow 8x4 in the papers).
    """

    num_frames: int  # frames per view
    interval: int  # step between sampled frames, in frames
    resize_short: int  # short side after the first resize, pixels
    size: int  # side of the square network input of weak and strong views, pixels
    clean_size: int  # side of the centre crop of the clean view, pixels (the reference's flow uses 256)
    mean: tuple[float, ...]  # per channel, in grey levels 0..255
    std: tuple[float, ...]  # per channel, in grey levels 0..255
    min_scale: float = 0.08  # smallest area share of the random resized crop (the papers' value)

    @property
    def channels(self) -> int:
        """Number of channels: 3 for RGB, 2 for flow."""
        return len(self.mean)

    @property
    def window(self) -> int:
        """Number of consecutive frames that one view spans."""
        return self.num_frames * self.interval


@dataclass(frozen=True)
class AudioInput:
    """A mono waveform of fixed length turned into a standardised log spectrogram.

    Shorter clips are tiled to ``num_samples``, longer ones cut (the reference: 160,000 samples at 16 kHz).
    """

    rate_hz: int  # sample rate after resampling
    num_samples: int  # length after tiling or cutting, samples
    window_samples: int = 512  # spectrogram segment, samples
    overlap_samples: int = 353  # overlap of two segments, samples

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(frequency, time)`` of the spectrogram."""
        hop = self.window_samples - self.overlap_samples
        return self.window_samples // 2 + 1, (self.num_samples - self.window_samples) // hop + 1
