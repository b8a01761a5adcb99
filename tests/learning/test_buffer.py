"""The temporal buffer: true time whatever the order of arrival, bounds that are kept and counted, gradients through what it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamsplit.audio.features import LogMel
from streamsplit.audio.window import Window
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, PayloadError
from streamsplit.learning.buffer import (
    BufferedWindow,
    BufferSettings,
    TemporalBuffer,
    by_kind,
    places_in_time,
    unpacked,
)
from streamsplit.learning.hybrid import HybridSettings, hybrid_loss
from streamsplit.learning.losses import info_nce
from streamsplit.wire.codec import Array, Codec, TensorSpec, error_bound, pack

SPLIT = 3


def window(
    sequence: int, start_s: float | None = None, device: str = "d", stream: str = "s"
) -> BufferedWindow:
    at = 0.96 * sequence if start_s is None else start_s
    return BufferedWindow(device, stream, sequence, at, "v", SPLIT, Codec.INT4, bytes(10))


def sequences(windows: Sequence[BufferedWindow]) -> list[int]:
    return [one.sequence for one in windows]


@given(st.permutations(range(12)))
def test_windows_lie_in_true_time_whatever_order_they_came_in(order: list[int]) -> None:
    buffer = TemporalBuffer()
    assert all(buffer.insert(window(sequence)) for sequence in order)
    assert sequences(buffer.latest("d", 5)) == [7, 8, 9, 10, 11]
    assert sequences(buffer.latest("d")) == list(range(12))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=80))
def test_bounds_hold_and_every_window_is_here_or_counted(arrivals: list[tuple[int, int]]) -> None:
    buffer = TemporalBuffer(BufferSettings(windows_per_device=5, devices=2))
    for device, sequence in arrivals:
        one = window(sequence, device=f"d{device}")
        known = one.key in {other.key for other in buffer.latest_of_all(100)}
        here = buffer.insert(one)
        assert here == (not known and one.key in {other.key for other in buffer.latest_of_all(100)})
        assert len(buffer.devices) <= 2
        assert all(len(buffer.latest(name, 100)) <= 5 for name in buffer.devices)
    assert len(buffer) == len(buffer.latest_of_all(100))
    assert len(buffer) + buffer.dropped + buffer.duplicates == len(arrivals)


def test_a_full_device_loses_its_earliest_window_even_if_it_just_came() -> None:
    buffer = TemporalBuffer(BufferSettings(windows_per_device=3))
    for sequence in (5, 6, 7):
        buffer.insert(window(sequence))
    assert not buffer.insert(window(1))
    assert buffer.insert(window(8))
    assert sequences(buffer.latest("d")) == [6, 7, 8]
    assert buffer.dropped == 2


def test_the_device_not_heard_of_for_longest_makes_room_for_a_new_one() -> None:
    buffer = TemporalBuffer(BufferSettings(devices=2))
    for device, sequence in (("a", 0), ("b", 0), ("a", 1), ("c", 0)):
        buffer.insert(window(sequence, device=device))
    assert buffer.devices == ("a", "c")
    assert buffer.latest("b") == []
    assert buffer.dropped == 1


def test_a_dropped_window_may_come_again() -> None:
    buffer = TemporalBuffer(BufferSettings(windows_per_device=1))
    buffer.insert(window(0))
    buffer.insert(window(1))
    buffer.latest("d")
    assert not buffer.insert(window(0))
    assert (buffer.dropped, buffer.duplicates) == (2, 0)


def test_streams_of_a_device_share_its_clock_and_stay_told_apart() -> None:
    buffer = TemporalBuffer()
    for stream, sequence, at in (("s", 0, 0.0), ("t", 0, 0.5), ("s", 1, 1.0)):
        buffer.insert(window(sequence, at, stream=stream))
    buffer.insert(window(0, 0.2, device="e"))
    start_s, stream_number = places_in_time(buffer.latest_of_all())
    assert start_s.tolist() == [0.0, 0.5, 1.0, 0.2]
    assert stream_number.tolist() == [0, 1, 0, 2]


def test_a_new_version_re_embeds_each_window_once() -> None:
    buffer = TemporalBuffer()
    for sequence in range(6):
        buffer.insert(window(sequence, device=f"d{sequence % 2}"))

    def embed(windows: Sequence[BufferedWindow]) -> Array:
        assert len(by_kind(windows)) == 1
        return np.array([[one.sequence, 1.0] for one in windows], np.float32)

    assert buffer.re_embed("v2", embed) == 6
    assert buffer.re_embed("v2", embed) == 0
    for one in buffer.latest_of_all():
        assert one.embedding is not None
        assert one.embedding.tolist() == [one.sequence, 1.0]
        assert (one.version, one.embedded_by) == ("v", "v2")
    assert buffer.re_embed("v3", embed) == 6


def test_a_time_that_is_not_finite_is_refused() -> None:
    buffer = TemporalBuffer()
    with pytest.raises(ValueError, match="window 4: expected a finite time, got nan"):
        buffer.insert(window(4, float("nan")))
    assert len(buffer) == 0


@pytest.mark.parametrize("name", ["windows_per_device", "devices"])
def test_a_buffer_without_room_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected 1 or more, got 0"):
        BufferSettings(**{name: 0})


# What it keeps can be learned from.


@pytest.fixture(scope="module")
def heard(compact: Version, windows: list[Window]) -> TemporalBuffer:
    """A hundred windows as a device sends them: 4-bit activations at b2, a tenth of them late."""
    mel = LogMel(compact.front_end)(torch.from_numpy(np.stack([one.samples for one in windows[:100]])))
    with torch.no_grad():
        activations = compact.encoder.head(mel, SPLIT).numpy()
    buffer = TemporalBuffer()
    order = sorted(range(100), key=lambda place: place + (15 if place % 10 == 0 else 0))
    for place in order:
        payload = pack(activations[place], Codec.INT4, compact.ranges[SPLIT])
        at = windows[place].start_sample / 16_000
        buffer.insert(BufferedWindow("d", "s", place, at, compact.id, SPLIT, Codec.INT4, payload))
    return buffer


def activations_of(heard: TemporalBuffer, compact: Version) -> Tensor:
    return unpacked(heard.latest("d"), compact.encoder.activation_spec(SPLIT), compact.ranges[SPLIT])


def test_unpacked_activations_are_those_packed_within_the_codecs_bound(
    compact: Version, windows: list[Window], heard: TemporalBuffer
) -> None:
    ranges, spec = compact.ranges[SPLIT], compact.encoder.activation_spec(SPLIT)
    mel = LogMel(compact.front_end)(torch.from_numpy(np.stack([one.samples for one in windows[:100]])))
    with torch.no_grad():
        exact = compact.encoder.head(mel, SPLIT).numpy()
    clipped = np.clip(exact, ranges.low[:, None, None], ranges.high[:, None, None])
    assert (
        np.abs(activations_of(heard, compact).numpy() - clipped) <= error_bound(Codec.INT4, ranges, spec)
    ).all()
    assert heard.payload_bytes < 100 * 450


@pytest.mark.parametrize(
    ("falls", "settings"),
    [
        ("spread", HybridSettings(spread_weight=1.0, smoothness_weight=0.0)),
        ("smoothness", HybridSettings(spread_weight=0.0, smoothness_weight=1.0)),
        ("total", HybridSettings()),
    ],
)
def test_a_few_steps_from_the_buffer_move_the_dense_tail_and_lower_the_loss(
    compact: Version, heard: TemporalBuffer, falls: str, settings: HybridSettings
) -> None:
    activations = activations_of(heard, compact)
    start_s, stream = places_in_time(heard.latest("d"))
    encoder = compact.trainable()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimiser = torch.optim.AdamW(encoder.dense.parameters(), lr=1e-4)

    def terms(seed: int) -> dict[str, Tensor]:
        chance = torch.Generator().manual_seed(seed)
        z = encoder.tail(activations, SPLIT)
        return hybrid_loss(info_nce(z, z.roll(-1, 0)), z, start_s, stream, chance, settings)

    with torch.no_grad():
        at_first = {name: float(value) for name, value in terms(99).items()}
    for step in range(25):
        optimiser.zero_grad()
        loss = terms(step)
        (loss["total"] if falls == "total" else loss["total"] - loss["task"]).backward()
        optimiser.step()
    with torch.no_grad():
        at_last = {name: float(value) for name, value in terms(99).items()}
    assert at_last[falls] < 0.8 * at_first[falls], (at_first, at_last)
    moved = {name for name, value in encoder.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in encoder.named_parameters() if name.startswith("dense.")}


def test_windows_of_several_kinds_are_not_unpacked_together(compact: Version) -> None:
    other = BufferedWindow("d", "s", 9, 9.0, "v", 1, Codec.INT8, b"")
    with pytest.raises(ValueError, match="expected windows of one kind, got 2 kinds"):
        unpacked([window(0), other], TensorSpec((2, 2)), None)
    assert by_kind([window(0), other, window(1)]) == {
        ("v", SPLIT, Codec.INT4): [0, 2],
        ("v", 1, Codec.INT8): [1],
    }


def test_a_payload_of_another_shape_is_refused(compact: Version) -> None:
    with pytest.raises(PayloadError, match="payload 1 of 1"):
        unpacked([window(0)], compact.encoder.activation_spec(SPLIT), compact.ranges[SPLIT])
