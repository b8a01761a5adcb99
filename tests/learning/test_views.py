"""Views keep a window a window, follow their generator alone, and go as far as their settings say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from streamsplit.audio.features import CLAP_FRONT_END, COMPACT_FRONT_END, LogMel
from streamsplit.encoders.calibrate import made_mel
from streamsplit.errors import ConfigError
from streamsplit.learning.views import ViewSettings, crop_and_stretch, mask, view

STILL = ViewSettings(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, None, 0, 0)
ALL = ViewSettings(noise_db=-10.0)


@pytest.fixture(scope="module")
def mel() -> Tensor:
    return made_mel(COMPACT_FRONT_END, 12)


def seen(mel: Tensor, settings: ViewSettings, seed: int = 0) -> Tensor:
    return view(mel, mel.flip(0), COMPACT_FRONT_END, settings, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", [STILL, ViewSettings(), ALL])
def test_views_keep_the_shape_and_are_finite_also_of_silence(mel: Tensor, settings: ViewSettings) -> None:
    silence = LogMel(COMPACT_FRONT_END)(torch.zeros(1, 15_360))
    for windows in (mel, silence, torch.full_like(mel, 3.1)):
        changed = seen(windows, settings)
        assert changed.shape == windows.shape
        assert torch.isfinite(changed).all()


def test_a_view_that_may_change_nothing_is_the_window(mel: Tensor) -> None:
    torch.testing.assert_close(seen(mel, STILL), mel, atol=2e-3, rtol=0)


def test_the_generator_decides_and_the_global_one_is_left_alone(mel: Tensor) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, again, other = seen(mel, ALL, 5), seen(mel, ALL, 5), seen(mel, ALL, 6)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_windows_of_a_batch_are_changed_differently(mel: Tensor) -> None:
    same = mel[:1].expand(8, -1, -1, -1)
    changed = seen(same, ViewSettings())
    assert len({float(window.sum()) for window in changed}) == 8


def test_gain_shifts_by_no_more_than_it_may(mel: Tensor) -> None:
    loud = mel.clamp(min=0.0)  # far above the floor a gain is a shift
    changed = seen(loud, replace(STILL, gain_db=8.7)) - loud
    spread = changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))
    assert float(spread.max()) < 1e-3
    assert 0.05 < float(changed.abs().max()) <= 8.7 * 0.2303 / COMPACT_FRONT_END.deviation + 1e-3


def test_mixing_adds_power_of_the_other_sound_however_loud_it_is() -> None:
    low, high = torch.full((2, 64, 1, 64, 96), -1.6)
    low[:, :, :32], high[:, :, 32:] = -0.5, 1.5
    generator = torch.Generator().manual_seed(0)
    mixed = view(low, high, COMPACT_FRONT_END, replace(STILL, mix_share=0.4), generator)
    power = (mixed * 4.5 - 4.0).exp()
    share = power[:, 0, 32:].mean((1, 2)) / (power[:, 0, :32] + power[:, 0, 32:]).mean((1, 2))
    assert 0.0 <= float(share.min()) < 0.05
    assert 0.35 < float(share.max()) <= 0.41


def test_a_crop_shows_only_what_was_there(mel: Tensor) -> None:
    cropped = crop_and_stretch(mel, ViewSettings(), torch.Generator().manual_seed(0))
    assert (cropped.amax((1, 2, 3)) <= mel.amax((1, 2, 3)) + 1e-5).all()
    assert (cropped.amin((1, 2, 3)) >= mel.amin((1, 2, 3)) - 1e-5).all()


def test_a_crop_of_half_the_time_stretches_it_twofold() -> None:
    ramp = torch.linspace(0, 95, 96).expand(4, 1, 64, 96)
    settings = replace(STILL, shortest=0.5, longest=0.5)
    cropped = crop_and_stretch(ramp, settings, torch.Generator().manual_seed(0))
    slope = cropped[..., 11:-10].diff(dim=3)
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5), atol=1e-4, rtol=0)


def test_a_plain_view_is_the_window_moved_by_whole_frames(mel: Tensor) -> None:
    moved = crop_and_stretch(mel, ViewSettings(plain_share=1.0), torch.Generator().manual_seed(0))
    steps = set()
    for window, other in zip(mel, moved, strict=True):
        reflected = torch.cat([window.flip(2), window, window.flip(2)], dim=2)
        apart = [float((reflected[..., 96 + k : 192 + k] - other).abs().max()) for k in range(-40, 41)]
        assert min(apart) < 1e-3
        steps.add(apart.index(min(apart)))
    assert len(steps) > 4


def test_masks_hide_a_stretch_of_bands_and_one_of_frames_with_the_mean(mel: Tensor) -> None:
    settings = replace(STILL, mask_bands=12, mask_frames=20)
    many = torch.randn(200, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    masked = mask(many, settings, torch.Generator().manual_seed(0))
    hidden = masked != many
    bands = hidden.all(3).sum((1, 2))
    frames = hidden.all(2).sum((1, 2))
    assert (int(bands.min()), int(bands.max())) == (0, 12)
    assert (int(frames.min()), int(frames.max())) == (0, 20)
    mean = many.mean((2, 3), keepdim=True).expand_as(many)
    assert torch.equal(masked[hidden], mean[hidden])


def test_other_front_ends_have_views_too() -> None:
    windows = torch.empty(2, 1, 64, 1_001).uniform_(-90, 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(
        view(windows, windows, CLAP_FRONT_END, STILL, generator), windows, atol=1e-2, rtol=0
    )
    assert torch.isfinite(view(windows, windows, CLAP_FRONT_END, ViewSettings(), generator)).all()


def test_wrong_settings_and_shapes_are_named(mel: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"views mix_share: expected 0 to below 1, got 1\.5"):
        ViewSettings(mix_share=1.5)
    with pytest.raises(ConfigError, match="views shortest"):
        ViewSettings(shortest=1.5)
    with pytest.raises(ConfigError, match="views gain_db: expected 0 or more"):
        ViewSettings(gain_db=-1)
    with pytest.raises(ValueError, match=r"expected windows and others \[B, 1, 64, 96\]"):
        view(mel, mel[:3], COMPACT_FRONT_END, STILL, torch.Generator())
