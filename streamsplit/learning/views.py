"""Views: two of them of one sound should be embedded alike. Random changes of standardised log-mel that leave a sound what it is.

All of a batch is changed at once, without a loop over its windows; everything random comes from the generator passed in.
Crop-and-stretch mattered most in our prototypes; mixing follows BYOL-A (Niizumi et al. 2021), the masks SpecAugment (Park et al. 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.audio.features import FrontEndSettings
from streamsplit.errors import ConfigError

EQUALISER_KNOTS = 4
_NEPERS_PER_DB = math.log(10.0) / 10.0


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """How far views may be from the window they are of.

    Attributes:
        shortest, longest: share of the window's time a view shows; beyond 1 the borders are reflected.
        narrowest, widest: share of the mel bands it shows, likewise.
        plain_share: of views that are not stretched, only moved by whole frames: interpolation smooths, and an encoder that has never
            seen a window as sharp as the microphone's made much of a step by one frame.
        mix_share: the most that another window may have of the view's power, 0 to below 1.
        gain_db: loudness changes by up to this, up or down.
        equaliser_db: at each of four knots along the mel axis, up or down, smooth between them.
        noise_db: steady coloured noise is added, at most this far above the window's mean power (below, if negative); it fades
            into nothing over 30 dB. None for no noise.
        mask_bands, mask_frames: one stretch of bands and one of frames of up to this width is filled with the view's mean.
    """

    shortest: float = 0.6
    longest: float = 1.2
    narrowest: float = 0.7
    widest: float = 1.05
    plain_share: float = 0.0
    mix_share: float = 0.4
    gain_db: float = 8.7
    equaliser_db: float = 6.0
    noise_db: float | None = None
    mask_bands: int = 12
    mask_frames: int = 20

    def __post_init__(self) -> None:
        for name, holds, legal in (
            ("shortest", 0 < self.shortest <= self.longest, f"0..{self.longest}"),
            ("narrowest", 0 < self.narrowest <= self.widest, f"0..{self.widest}"),
            ("longest", self.longest <= 2, "at most 2"),
            ("widest", self.widest <= 2, "at most 2"),
            ("plain_share", 0 <= self.plain_share <= 1, "0..1"),
            ("mix_share", 0 <= self.mix_share < 1, "0 to below 1"),
        ):
            if not holds:
                raise ConfigError(f"views {name}: expected {legal}, got {getattr(self, name)}")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.startswith(("gain", "equaliser", "mask")) and not value >= 0:
                raise ConfigError(f"views {item.name}: expected 0 or more, got {value}")


def view(
    mel: Tensor,
    others: Tensor,
    front_end: FrontEndSettings,
    settings: ViewSettings,
    generator: torch.Generator,
) -> Tensor:
    """One random view of each window.

    Args:
        mel: [B, 1, F, T] standardised log-mel.
        others: [B, 1, F, T], other sounds to mix in: one for each window.
        front_end: how the log-mel was made: mixing and gain are done on power.
        settings: how far to go.
        generator: on the device of `mel`.

    Returns:
        [B, 1, F, T], finite.
    """
    if mel.shape != others.shape or mel.shape[1:] != front_end.spec.shape:
        raise ValueError(
            f"view: expected windows and others [B, {', '.join(map(str, front_end.spec.shape))}],"
            f" got {list(mel.shape)} and {list(others.shape)}"
        )
    cropped = crop_and_stretch(mel, settings, generator)
    power = _power(cropped, front_end)
    share = settings.mix_share * _uniform(mel, generator)
    other = _power(others, front_end)
    # At equal loudness: between recordings 30 dB apart the louder would be all there is to hear.
    other = other * (_mean(power) / _mean(other).clamp(min=front_end.floor))
    power = (1.0 - share) * power + share * other
    power = power * torch.exp(_NEPERS_PER_DB * _equaliser_db(mel, settings, generator))
    if settings.noise_db is not None:
        power = power + _noise(power, settings.noise_db, generator)
    return mask(_log_mel(power, front_end), settings, generator)


def crop_and_stretch(mel: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """A random rectangle of each window, stretched to the whole: [B, 1, F, T] to the same. Bilinear, borders reflected."""
    wide = settings.shortest + (settings.longest - settings.shortest) * _uniform(mel, generator)
    high = settings.narrowest + (settings.widest - settings.narrowest) * _uniform(mel, generator)
    right = (1.0 - wide).abs() * (2.0 * _uniform(mel, generator) - 1.0)
    up = (1.0 - high).abs() * (2.0 * _uniform(mel, generator) - 1.0)
    if settings.plain_share:
        plain = _uniform(mel, generator) < settings.plain_share
        frames = torch.round(right * mel.shape[3] / 2)
        wide, right = torch.where(plain, 1.0, wide), torch.where(plain, 2 * frames / mel.shape[3], right)
        high, up = torch.where(plain, 1.0, high), torch.where(plain, 0.0, up)
    zero = torch.zeros_like(wide)
    affine = torch.cat([wide, zero, right, zero, high, up], dim=1).view(len(mel), 2, 3)
    grid = F.affine_grid(affine, list(mel.shape), align_corners=False)
    return F.grid_sample(mel, grid, padding_mode="reflection", align_corners=False)


def mask(mel: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Fills one stretch of bands and one of frames with the window's mean: zero would be a sound of its own."""
    bands = _stretch(mel, mel.shape[2], settings.mask_bands, generator)
    frames = _stretch(mel, mel.shape[3], settings.mask_frames, generator)
    hidden = bands[:, None, :, None] | frames[:, None, None, :]
    return torch.where(hidden, mel.mean((2, 3), keepdim=True), mel)


def _stretch(mel: Tensor, length: int, widest: int, generator: torch.Generator) -> Tensor:
    """[B, length] bool: one run of up to `widest` (at most all of them) at a random place."""
    width = torch.floor((min(widest, length) + 1) * _uniform(mel, generator)).view(-1, 1)
    start = torch.floor((length - width + 1) * _uniform(mel, generator).view(-1, 1))
    at = torch.arange(length, device=mel.device)
    return (at >= start) & (at < start + width)


def _equaliser_db(mel: Tensor, settings: ViewSettings, generator: torch.Generator) -> Tensor:
    """Gain and equaliser together, [B, 1, F, 1] in dB."""
    knots = torch.rand(len(mel), EQUALISER_KNOTS, generator=generator, device=mel.device) * 2.0 - 1.0
    at = torch.linspace(0, EQUALISER_KNOTS - 1, mel.shape[2], device=mel.device)
    near = (1.0 - (at - torch.arange(EQUALISER_KNOTS, device=mel.device)[:, None]).abs()).clamp(min=0.0)
    smooth = near * near * (3.0 - 2.0 * near)  # sums to 1 over the knots, flat at each
    gain = settings.gain_db * (2.0 * _uniform(mel, generator) - 1.0)
    return gain + settings.equaliser_db * (knots @ smooth)[:, None, :, None]


def _noise(power: Tensor, loudest_db: float, generator: torch.Generator) -> Tensor:
    """Steady noise whose spectrum leans at random: [B, 1, F, T] power. A band sums a few bins: its power is a sum of exponentials."""
    level_db = loudest_db - 30.0 * _uniform(power, generator)
    lean_db = (
        20.0
        * (_uniform(power, generator) - 0.5)
        * torch.linspace(-1.0, 1.0, power.shape[2], device=power.device).view(1, 1, -1, 1)
    )
    level = _mean(power) * torch.exp(_NEPERS_PER_DB * (level_db + lean_db))
    grain = torch.empty_like(power).exponential_(2.0, generator=generator)
    return level * (grain + torch.empty_like(power).exponential_(2.0, generator=generator))


def _mean(power: Tensor) -> Tensor:
    return power.mean((2, 3), keepdim=True)


def _uniform(mel: Tensor, generator: torch.Generator) -> Tensor:
    """[B, 1, 1, 1] in [0, 1)."""
    return torch.rand(len(mel), 1, 1, 1, generator=generator, device=mel.device)


def _power(mel: Tensor, front_end: FrontEndSettings) -> Tensor:
    level = mel * front_end.deviation + front_end.mean
    if front_end.log == "db":
        return torch.exp(_NEPERS_PER_DB * level)
    return (torch.exp(level) - front_end.floor).clamp(min=0.0)


def _log_mel(power: Tensor, front_end: FrontEndSettings) -> Tensor:
    if front_end.log == "db":
        level = torch.log(power.clamp(min=front_end.floor)) / _NEPERS_PER_DB
    else:
        level = torch.log(power + front_end.floor)
    return (level - front_end.mean) / front_end.deviation
