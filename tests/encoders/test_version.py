"""A version's name says what it computes, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from streamsplit.audio.features import COMPACT_FRONT_END
from streamsplit.encoders.catalogue import build
from streamsplit.encoders.compact import CompactEncoder
from streamsplit.encoders.version import Version, freeze
from streamsplit.wire.codec import Codec, Ranges, most_packed_bytes

Change = Callable[[CompactEncoder, dict[int, Ranges]], None]


def again(version: Version, change: Change | None = None) -> Version:
    encoder = version.trainable()
    assert isinstance(encoder, CompactEncoder)
    ranges = dict(version.ranges)
    if change:
        change(encoder, ranges)
    return freeze(encoder, ranges, version.expected_bytes, version.trained, "made again")


def one_weight(encoder: CompactEncoder, ranges: dict[int, Ranges]) -> None:
    with torch.no_grad():
        encoder.embedding_block.project.weight[0, 0] += 1e-6


def one_statistic(encoder: CompactEncoder, ranges: dict[int, Ranges]) -> None:
    next(norm for norm in encoder.modules() if isinstance(norm, torch.nn.BatchNorm2d)).running_mean[0] += 1e-6


def one_range(encoder: CompactEncoder, ranges: dict[int, Ranges]) -> None:
    high = ranges[2].high.copy()
    high[3] = np.nextafter(high[3], np.float32(100))
    ranges[2] = Ranges(ranges[2].low, high)


def front_end(encoder: CompactEncoder, ranges: dict[int, Ranges]) -> None:
    encoder.front_end = dataclasses.replace(COMPACT_FRONT_END, floor=2e-5)


def test_the_same_contents_have_the_same_name(compact: Version) -> None:
    assert again(compact).id == compact.id
    name, dash, digits = compact.id.partition("-")
    assert (name, dash, len(digits)) == ("compact", "-", 12)
    assert set(digits) <= set("0123456789abcdef")


@pytest.mark.parametrize("change", [one_weight, one_statistic, one_range, front_end])
def test_any_change_of_what_is_computed_changes_the_name(compact: Version, change: Change) -> None:
    assert again(compact, change).id != compact.id


def test_counted_batches_do_not_change_the_name(compact: Version) -> None:
    def count(encoder: CompactEncoder, ranges: dict[int, Ranges]) -> None:
        for norm in encoder.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.num_batches_tracked += 7  # type: ignore[operator]

    assert again(compact, count).id == compact.id


def test_what_was_not_measured_is_expected_to_cost_the_most_it_can(compact: Version) -> None:
    spec = compact.encoder.activation_spec(3)
    unmeasured = dataclasses.replace(compact, expected_bytes={(3, Codec.INT4): 200.5})
    assert unmeasured.packed_bytes(3, Codec.INT4) == 200.5
    assert unmeasured.packed_bytes(3, Codec.INT8) == most_packed_bytes(spec, Codec.INT8) == 768
    assert unmeasured.packed_bytes(4, Codec.INT8) == 130


def test_a_trainable_copy_holds_the_very_weights_and_can_be_trained(compact: Version) -> None:
    encoder = compact.trainable()
    assert all(torch.equal(tensor, compact.state[name]) for name, tensor in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_training_a_copy_leaves_the_version_alone(compact: Version) -> None:
    encoder = compact.trainable().train()
    mel = torch.randn(4, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    before = compact.encoder(mel)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder(mel).sum().backward()
    optimizer.step()
    assert torch.equal(compact.encoder(mel), before)
    assert again(compact).id == compact.id


def test_a_trainable_copy_does_not_use_up_the_callers_chance(compact: Version) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    compact.trainable()
    assert torch.equal(torch.rand(1), expected)


def test_another_front_end_may_have_another_number_of_bands() -> None:
    encoder = build("compact", dataclasses.replace(COMPACT_FRONT_END, mel_bins=32))
    assert encoder.activation_spec(3).shape == (16, 2, 12)
