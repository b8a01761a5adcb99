"""Ranges cover what the encoder makes, and expected bytes are what the codec really gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamsplit.audio.features import CLAP_FRONT_END
from streamsplit.encoders.calibrate import calibrate_ranges, expected_bytes, made_mel, settle_norms
from streamsplit.encoders.version import Version
from streamsplit.wire.codec import Codec, pack, unpack
from tests.encoders.conftest import Subject


@torch.inference_mode()
def test_ranges_hold_all_but_the_rarest_numbers_of_each_channel(compact_subject: Subject) -> None:
    encoder, mel = compact_subject.encoder, compact_subject.mel
    for split, bounds in calibrate_ranges(encoder, mel).items():
        assert bounds.low.dtype == bounds.high.dtype == np.float32
        assert bounds.low.shape == (encoder.activation_spec(split).shape[0],)
        assert (bounds.low < bounds.high).all()
        if split:
            values = encoder.head(mel, split).transpose(0, 1).flatten(1).numpy()
            inside = (values >= bounds.low[:, None]) & (values <= bounds.high[:, None])
            assert (inside.mean(axis=1) > 0.997).all()


@torch.inference_mode()
def test_a_silent_channel_has_a_range(compact_subject: Subject) -> None:
    bounds = calibrate_ranges(compact_subject.encoder, torch.zeros(2, 1, 64, 96))
    assert all((one.low < one.high).all() for one in bounds.values())


@torch.inference_mode()
def test_expected_bytes_are_the_mean_of_packed_windows(compact_subject: Subject) -> None:
    encoder, mel = compact_subject.encoder, compact_subject.mel[:6]
    ranges = calibrate_ranges(encoder, mel)
    sizes = expected_bytes(encoder, ranges, mel)
    packed = [
        len(pack(window, Codec.INT4, ranges[3])) for window in encoder.head(mel, 3).contiguous().numpy()
    ]
    assert sizes[3, Codec.INT4] == pytest.approx(np.mean(packed))
    assert sizes[4, Codec.INT8] == 130
    assert set(sizes) >= {(split, Codec.INT8) for split in range(5)}


@torch.inference_mode()
@pytest.mark.parametrize(("codec", "least"), [(Codec.INT8, 0.995), (Codec.INT4, 0.95)])
def test_what_the_wire_does_to_a_boundary_hardly_moves_the_embedding(
    compact: Version, codec: Codec, least: float
) -> None:
    mel = made_mel(compact.front_end, 12, seed=900)
    encoder = compact.encoder
    for split in range(1, 4):
        spec, bounds = encoder.activation_spec(split), compact.ranges[split]
        received = [
            unpack(pack(window, codec, bounds), codec, spec, bounds)
            for window in encoder.head(mel, split).contiguous().numpy()
        ]
        plain = encoder.tail(encoder.head(mel, split), split)
        cosine = (encoder.tail(torch.from_numpy(np.stack(received)), split) * plain).sum(dim=1)
        assert cosine.mean() > least


def test_made_sounds_are_the_same_every_time() -> None:
    front_end = CLAP_FRONT_END
    assert torch.equal(made_mel(front_end, 1), made_mel(front_end, 1))
    assert made_mel(front_end, 1).shape == (1, 1, 64, 1001)
    assert torch.isfinite(made_mel(front_end, 1)).all()


def test_settled_norms_leave_activations_standardised(compact_subject: Subject) -> None:
    encoder, mel = compact_subject.trainable, compact_subject.mel
    settle_norms(encoder, mel)
    with torch.no_grad():
        activation = encoder.head(mel, 3)
    assert activation.mean(dim=(0, 2, 3)).abs().max() < 0.2
    assert (activation.std(dim=(0, 2, 3)) - 1).abs().max() < 0.3
    assert all(norm.momentum == 0.02 for norm in encoder.modules() if isinstance(norm, torch.nn.BatchNorm2d))
