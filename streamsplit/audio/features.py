"""The front end: PCM to standardised log-mel, the same numbers on the device, on the server and in training.

A frame is windowed (periodic Hann), transformed, squared, summed into mel bands, compressed and standardised. Everything that decides
the outcome is a field of `FrontEndSettings`; its fingerprint travels with the weights and in every handshake.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamsplit.errors import ConfigError
from streamsplit.wire.codec import Ranges, TensorSpec

_FLOATS = ("low_hz", "high_hz", "floor", "mean", "deviation", "feature_low", "feature_high")


@dataclass(frozen=True, slots=True)
class FrontEndSettings:
    """All that turns a window of PCM into features; equal settings give equal features.

    Attributes:
        sample_rate_hz: of the PCM.
        window_samples: S, samples of one window.
        frame_samples: length of the Hann window, at most `fft_size`.
        hop_samples: between frames.
        fft_size: points of the transform; a shorter frame is completed with zeros.
        mel_bins: F.
        low_hz, high_hz: edges of the first and the last mel band.
        mel_scale: "htk" (2595 log10(1 + f/700)) or "slaney" (linear below 1 kHz).
        mel_norm: None (triangles of height 1) or "slaney" (triangles of equal area).
        log: "ln" is log(power + floor); "db" is 10 log10(max(power, floor)).
        floor: keeps the logarithm of silence finite; in units of power.
        centre: False starts frame 0 at sample 0 and completes the last frames by reflection at the window's end (96 frames of 400
            samples at hop 160 reach 15,600 samples: 240 more than a window has). True centres frame 0 on sample 0 and reflects at
            both ends, as librosa and CLAP do.
        frames: T.
        mean, deviation: the fixed standardisation, in units of the logarithm.
        feature_low, feature_high: range of the standardised feature that its uint8 codec covers.
    """

    sample_rate_hz: int = 16_000
    window_samples: int = 15_360
    frame_samples: int = 400
    hop_samples: int = 160
    fft_size: int = 512
    mel_bins: int = 64
    low_hz: float = 60.0
    high_hz: float = 7_800.0
    mel_scale: Literal["htk", "slaney"] = "htk"
    mel_norm: Literal["slaney"] | None = None
    log: Literal["ln", "db"] = "ln"
    floor: float = 1e-5
    centre: bool = False
    frames: int = 96
    mean: float = -4.0
    deviation: float = 4.5
    feature_low: float = -1.7
    feature_high: float = 3.1

    def __post_init__(self) -> None:
        for name in _FLOATS:
            value = float(getattr(self, name))
            if not math.isfinite(value):
                raise ConfigError(f"front end {name}: expected a finite number, got {value}")
            object.__setattr__(
                self, name, value
            )  # 60 and 60.0 are one setting: they must share a fingerprint
        for name in ("sample_rate_hz", "window_samples", "hop_samples", "mel_bins", "frames"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        nyquist_hz = self.sample_rate_hz / 2
        self._expect("frame_samples", 2 <= self.frame_samples <= self.fft_size, f"2..{self.fft_size}")
        self._expect("low_hz", 0 <= self.low_hz < self.high_hz, f"0..{self.high_hz}")
        self._expect("high_hz", self.high_hz <= nyquist_hz, f"at most {nyquist_hz}")
        self._expect("mel_scale", self.mel_scale in ("htk", "slaney"), "htk or slaney")
        self._expect("mel_norm", self.mel_norm in (None, "slaney"), "none or slaney")
        self._expect("log", self.log in ("ln", "db"), "ln or db")
        self._expect("floor", self.floor > 0, "above 0")
        self._expect("deviation", self.deviation > 0, "above 0")
        self._expect("feature_low", self.feature_low < self.feature_high, f"below {self.feature_high}")
        self._expect("frames", max(self.padding) < self.window_samples, "frames within two windows' length")

    def _expect(self, name: str, holds: bool, legal: str) -> None:
        if not holds:
            raise ConfigError(f"front end {name}: expected {legal}, got {getattr(self, name)}")

    @property
    def padding(self) -> tuple[int, int]:
        """Samples reflected before and after a window so that all T frames are whole."""
        frame = self.fft_size if self.centre else self.frame_samples
        before = self.fft_size // 2 if self.centre else 0
        after = (self.frames - 1) * self.hop_samples + frame - before - self.window_samples
        return before, max(0, after)

    @property
    def window_s(self) -> float:
        """Seconds of one window."""
        return self.window_samples / self.sample_rate_hz

    @property
    def spec(self) -> TensorSpec:
        """Shape of one window's features: (1, F, T)."""
        return TensorSpec((1, self.mel_bins, self.frames))

    @property
    def ranges(self) -> Ranges:
        """Range of the features' one channel, for the wire."""
        return Ranges(np.array([self.feature_low], np.float32), np.array([self.feature_high], np.float32))

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over all fields: front ends with equal ones make equal features."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """All fields, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FrontEndSettings:
        """Inverse of `to_json`; a field that is missing, unknown or of the wrong kind is a ConfigError."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"front end: expected JSON, got {text[:40]!r}") from error
        names = {item.name for item in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ConfigError(f"front end: expected the fields {sorted(names)}, got {got}")
        for name, default in asdict(cls()).items():
            kinds = (
                (int, float)
                if name in _FLOATS
                else (str, type(None))
                if name == "mel_norm"
                else (type(default),)
            )
            if not isinstance(values[name], kinds) or (isinstance(values[name], bool) and name != "centre"):
                raise ConfigError(f"front end {name}: expected {kinds[0].__name__}, got {values[name]!r}")
        return cls(**values)


COMPACT_FRONT_END = FrontEndSettings()
"""16 kHz, 0.96 s, 64 HTK mels 60-7,800 Hz: the front end of `compact`, `cola`, `mobile` and `resnet18`.

Mean -4.0 and deviation 4.5 are round figures near those of 1,500 windows of environmental sound (-4.3, 4.7; without silence -3.6, 4.4).
The uint8 range reaches from digital silence (-1.67) to a sine at full scale (3.0): one step is 0.085 nepers of power.
"""

CLAP_FRONT_END = FrontEndSettings(
    sample_rate_hz=48_000,
    window_samples=480_000,
    frame_samples=1_024,
    hop_samples=480,
    fft_size=1_024,
    low_hz=50.0,
    high_hz=14_000.0,
    mel_scale="slaney",
    mel_norm="slaney",
    log="db",
    floor=1e-10,
    centre=True,
    frames=1_001,
    mean=0.0,
    deviation=1.0,
    feature_low=-100.0,
    feature_high=40.0,
)
"""48 kHz, 10 s, in decibels, not standardised: what CLAP was trained with (transformers' ClapFeatureExtractor, "rand_trunc")."""


class LogMel(nn.Module):
    """PCM [B, S] float32 to standardised log-mel [B, 1, F, T] float32. No weights, no state, no gradient.

    >>> LogMel(COMPACT_FRONT_END)(torch.zeros(2, 15_360)).shape
    torch.Size([2, 1, 64, 96])
    """

    hann: Tensor
    bands: Tensor

    def __init__(self, settings: FrontEndSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("hann", torch.from_numpy(_centred_hann(settings)), persistent=False)
        self.register_buffer("bands", torch.from_numpy(mel_bands(settings)), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Features of whole windows.

        Args:
            samples: [B, S] float32 in [-1, 1], finite.

        Returns:
            [B, 1, F, T] float32, contiguous.

        Raises:
            ValueError: the windows are not S samples long.
        """
        own = self.settings
        if samples.ndim != 2 or samples.shape[1] != own.window_samples:
            raise ValueError(
                f"log-mel: expected samples [B, {own.window_samples}], got {list(samples.shape)}"
            )
        with torch.no_grad():
            padded = nn.functional.pad(samples, own.padding, mode="reflect")
            frames = padded.unfold(1, self.hann.numel(), own.hop_samples)[:, : own.frames]
            spectrum = torch.fft.rfft(frames * self.hann, n=own.fft_size)
            power = (
                spectrum * spectrum.conj()
            ).real  # [B, T, bins]; a fifth of the time of squaring both parts
            mel: Tensor = self.bands @ power.transpose(1, 2)  # [B, F, T]
            if own.log == "ln":
                mel.add_(own.floor).log_()
            else:
                mel.clamp_(min=own.floor).log10_().mul_(10.0)
            return mel.sub_(own.mean).div_(own.deviation).unsqueeze_(1)


def _centred_hann(settings: FrontEndSettings) -> npt.NDArray[np.float32]:
    """Periodic Hann window [samples of a frame]; with `centre` in the middle of a frame of `fft_size`."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(settings.frame_samples) / settings.frame_samples)
    if settings.centre:
        spare = settings.fft_size - settings.frame_samples
        hann = np.pad(hann, (spare // 2, spare - spare // 2))
    return hann.astype(np.float32)


def mel_bands(settings: FrontEndSettings) -> npt.NDArray[np.float32]:
    """Triangular filters on the mel scale, [F, fft_size // 2 + 1]: row f sums power into band f."""
    to_mel, to_hz = (
        (_hz_to_htk, _htk_to_hz) if settings.mel_scale == "htk" else (_hz_to_slaney, _slaney_to_hz)
    )
    low, high = to_mel(np.array([settings.low_hz, settings.high_hz]))
    edges = to_hz(np.linspace(low, high, settings.mel_bins + 2))
    hz = np.linspace(0.0, settings.sample_rate_hz / 2, settings.fft_size // 2 + 1)
    rising = (hz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hz) / np.diff(edges)[1:, None]
    bands = np.maximum(0.0, np.minimum(rising, falling))
    if settings.mel_norm == "slaney":
        bands *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return cast(npt.NDArray[np.float32], bands.astype(np.float32))


_Array = npt.NDArray[np.float64]
# Slaney's Auditory Toolbox: 27 logarithmic steps from 1 to 6.4 kHz, 200/3 Hz a step below 1 kHz.
_SLANEY_STEP = math.log(6.4) / 27.0


def _hz_to_htk(hz: _Array) -> _Array:
    return 2595.0 * np.log10(1.0 + hz / 700.0)


def _htk_to_hz(mel: _Array) -> _Array:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def _hz_to_slaney(hz: _Array) -> _Array:
    return np.where(hz < 1000.0, 3.0 * hz / 200.0, 15.0 + np.log(np.maximum(hz, 1.0) / 1000.0) / _SLANEY_STEP)


def _slaney_to_hz(mel: _Array) -> _Array:
    return np.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * np.exp(_SLANEY_STEP * (mel - 15.0)))
