from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from streamsplit.audio.features import CLAP_FRONT_END, COMPACT_FRONT_END, FrontEndSettings, LogMel
from streamsplit.audio.torchaudio_guard import import_torchaudio
from streamsplit.errors import ConfigError

PLAIN = dataclasses.replace(COMPACT_FRONT_END, mean=0.0, deviation=1.0)


def noise(batch: int, samples: int = 15_360) -> torch.Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(3))


def test_equals_torchaudio_on_the_window_completed_by_reflection() -> None:
    samples = noise(3)
    oracle = import_torchaudio().transforms.MelSpectrogram(
        16_000, n_fft=512, win_length=400, hop_length=160, f_min=60, f_max=7_800, n_mels=64, center=False
    )
    reflected = torch.cat([samples, samples[:, -241:-1].flip(1)], dim=1)
    in_the_middle = torch.nn.functional.pad(reflected, (56, 56))  # torchaudio centres 400 samples in 512
    expected = (oracle(in_the_middle) + 1e-5).log()
    torch.testing.assert_close(LogMel(PLAIN)(samples)[:, 0], expected, atol=2e-4, rtol=0)


def test_standardisation_is_fixed_and_does_not_depend_on_the_window() -> None:
    samples = noise(2) * torch.tensor([[1.0], [0.01]])
    expected = (LogMel(PLAIN)(samples) + 4.0) / 4.5
    torch.testing.assert_close(LogMel(COMPACT_FRONT_END)(samples), expected)


def test_equals_the_front_end_clap_was_trained_with() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")
    extractor = transformers.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    samples = np.random.default_rng(1).standard_normal(480_000).astype(np.float32) * 0.1
    oracle = extractor(samples, sampling_rate=48_000, return_tensors="pt")["input_features"]
    own = LogMel(CLAP_FRONT_END)(torch.from_numpy(samples)[None])
    torch.testing.assert_close(own.transpose(2, 3), oracle.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("settings", [COMPACT_FRONT_END, CLAP_FRONT_END], ids=["compact", "clap"])
def test_digital_silence_is_finite_and_inside_the_wire_range(settings: FrontEndSettings) -> None:
    features = LogMel(settings)(torch.zeros(1, settings.window_samples))
    assert torch.isfinite(features).all()
    assert features.min() >= settings.feature_low


def test_a_sine_at_full_scale_is_inside_the_wire_range() -> None:
    time_s = torch.arange(15_360) / 16_000
    features = LogMel(COMPACT_FRONT_END)(torch.sin(2 * torch.pi * 1_000 * time_s)[None])
    assert COMPACT_FRONT_END.feature_low <= features.min()
    assert features.max() <= COMPACT_FRONT_END.feature_high


def test_a_window_in_a_batch_equals_the_window_alone() -> None:
    samples, log_mel = noise(4), LogMel(COMPACT_FRONT_END)
    torch.testing.assert_close(
        log_mel(samples), torch.cat([log_mel(one[None]) for one in samples]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("settings", [COMPACT_FRONT_END, CLAP_FRONT_END], ids=["compact", "clap"])
def test_features_have_the_shape_the_settings_state(settings: FrontEndSettings) -> None:
    features = LogMel(settings)(torch.zeros(2, settings.window_samples))
    assert tuple(features.shape[1:]) == settings.spec.shape
    assert features.dtype is torch.float32
    assert features.is_contiguous()
    assert settings.ranges.low.shape == (1,)


def test_input_is_left_as_it_was() -> None:
    samples = noise(1)
    before = samples.clone()
    LogMel(COMPACT_FRONT_END)(samples)
    assert torch.equal(samples, before)


def test_settings_survive_json() -> None:
    assert FrontEndSettings.from_json(CLAP_FRONT_END.to_json()) == CLAP_FRONT_END


def test_fingerprint_tells_every_field_apart_and_nothing_else() -> None:
    changes: dict[str, object] = {
        "sample_rate_hz": 16_001, "window_samples": 15_361, "frame_samples": 401, "hop_samples": 161, "fft_size": 514,
        "mel_bins": 63, "low_hz": 61.0, "high_hz": 7_801.0, "mel_scale": "slaney", "mel_norm": "slaney", "log": "db",
        "floor": 2e-5, "centre": True, "frames": 95, "mean": 1.0, "deviation": 2.0, "feature_low": -3.0,
        "feature_high": 4.0,
    }  # fmt: skip
    assert set(changes) == {item.name for item in dataclasses.fields(FrontEndSettings)}
    prints = {
        dataclasses.replace(COMPACT_FRONT_END, **{name: value}).fingerprint for name, value in changes.items()
    }  # type: ignore[arg-type]
    assert len(prints | {COMPACT_FRONT_END.fingerprint}) == len(changes) + 1
    assert FrontEndSettings(low_hz=60).fingerprint == COMPACT_FRONT_END.fingerprint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("floor", 0.0),
        ("deviation", 0.0),
        ("high_hz", 9_000.0),
        ("frames", 300),
        ("log", "log2"),
        ("mean", float("nan")),
    ],
)
def test_a_setting_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(COMPACT_FRONT_END, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["{", "[]", "{}", COMPACT_FRONT_END.to_json().replace("160", '"160"')])
def test_foreign_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="front end"):
        FrontEndSettings.from_json(text)


def test_a_window_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="15360"):
        LogMel(COMPACT_FRONT_END)(torch.zeros(1, 15_000))
