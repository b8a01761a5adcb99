"""Differences of weights: small, within the stated error, exact where it must be, and nothing foreign gets through."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamsplit.encoders.version import Version
from streamsplit.errors import PayloadError
from streamsplit.learning.averaging import DeviceDifference, merge_differences
from streamsplit.learning.differences import (
    MAGIC,
    added,
    header_of,
    most_bytes,
    pack,
    quantised,
    spec_of,
    unpack,
)
from streamsplit.learning.upgrade import bases, make_upgrade, upgraded

shapes = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple),
    min_size=1,
    max_size=5,
)


def drawn(spec: dict[str, tuple[int, ...]], seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=chance) for name, shape in spec.items()}


@given(
    spec=shapes, seed=st.integers(0, 1000), bits=st.integers(3, 8), scale=st.sampled_from([1e-6, 1.0, 900.0])
)
@settings(max_examples=60, deadline=None)
def test_what_is_unpacked_is_what_was_packed_within_the_stated_error(
    spec: dict[str, tuple[int, ...]], seed: int, bits: int, scale: float
) -> None:
    change = drawn(spec, seed, scale)
    small = quantised(change, bits)
    message = pack(small, spec, {"device": "pi"})
    assert len(message) <= most_bytes(spec)
    again, header = unpack(message, spec)
    assert header["device"] == "pi" == header_of(message)["device"]
    for name, got in again.tensors().items():
        assert torch.equal(got, small.tensors()[name])
        if change[name].ndim >= 2:
            widest = change[name].reshape(len(got), -1).abs().amax(1) / (2**bits - 2)
            bound = widest.view(-1, *[1] * (got.ndim - 1)) * (1 + 1e-5)
        else:
            bound = change[name].abs() * 2.0**-11 + 2.0**-25
        assert bool(((got - change[name]).abs() <= bound).all())


@given(spec=shapes, seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_any_part_of_the_tensors_can_travel(spec: dict[str, tuple[int, ...]], seed: int) -> None:
    part = {name: spec[name] for name in sorted(spec)[::2]}
    got, _ = unpack(pack(quantised(drawn(part, seed)), spec), spec)
    assert dict(got.shapes) == part


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_foreign_bytes_are_refused(data: bytes) -> None:
    for message in (data, MAGIC + data, MAGIC + struct.pack("<I", 2) + b"{}" + data):
        with pytest.raises(PayloadError):
            unpack(message, {"a": (2, 2)})


def altered(message: bytes, **changes: object) -> bytes:
    (length,) = struct.unpack_from("<I", message, 4)
    told = json.dumps({**json.loads(message[8 : 8 + length]), **changes}).encode()
    return MAGIC + struct.pack("<I", len(told)) + told + message[8 + length :]


@pytest.mark.parametrize(
    "changes",
    [
        {"which": [0]},
        {"which": [0, 0]},
        {"which": [1, 0]},
        {"which": [0, 7]},
        {"which": "all"},
        {"which": [-1, 0]},
        {"bits": 3},
        {"bits": 40},
        {"bits": None},
        {"legal": "0"},
    ],
)
def test_a_header_that_lies_is_refused(changes: dict[str, object]) -> None:
    spec = {"a": (4, 4), "b": (8,)}
    message = pack(quantised(drawn(spec, 0)), spec)
    unpack(altered(message), spec)
    with pytest.raises(PayloadError):
        unpack(altered(message, **changes), spec)


def test_other_shapes_damage_and_excess_are_refused_before_decoding() -> None:
    spec = {"a": (64, 64), "b": (8,)}
    message = pack(quantised(drawn(spec, 0)), spec)
    with pytest.raises(PayloadError, match="other tensors"):
        unpack(message, {"a": (64, 65), "b": (8,)})
    with pytest.raises(PayloadError):
        unpack(message[:-9], spec)
    with pytest.raises(PayloadError, match="at most"):
        unpack(message + bytes(most_bytes(spec)), spec)
    with pytest.raises(PayloadError):
        unpack(message + b"more", spec)


def test_numbers_that_are_not_finite_do_not_travel() -> None:
    with pytest.raises(ValueError, match="finite"):
        quantised({"a": torch.tensor([[1.0, float("nan")]])})
    with pytest.raises(ValueError, match="65504"):
        quantised({"a": torch.tensor([1e6])})
    spec = {"a": (2, 2), "b": (2,)}
    bad = quantised(drawn(spec, 0))
    bad.scales["a"][0] = float("inf")
    with pytest.raises(PayloadError, match="finite"):
        unpack(pack(bad, spec), spec)
    worse = quantised(drawn(spec, 0))
    worse.halves["b"][0] = float("nan")
    with pytest.raises(PayloadError, match="finite"):
        unpack(pack(worse, spec), spec)


def test_a_sum_is_rounded_once_and_what_does_not_change_stays_to_the_bit() -> None:
    state = {
        "a": torch.tensor([1.00001, 2.0]),
        "b": torch.tensor([0.1]),
        "n.running_var": torch.tensor([0.1]),
    }
    total = added(
        state, {"a": torch.zeros(2), "b": torch.tensor([0.2]), "n.running_var": torch.tensor([-1.0])}
    )
    assert torch.equal(total["a"], state["a"])
    assert torch.equal(total["b"], (state["b"] + torch.tensor([0.2])).half().float())
    assert total["n.running_var"].item() == 0.0


@pytest.mark.parametrize("bits", [4, 8])
def test_server_and_device_reach_the_same_version(compact: Version, bits: int) -> None:
    encoder = compact.trainable()
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=chance)
    made, message = make_upgrade(compact, encoder, None, bits, note="refined")
    assert bases(message) == (compact.id, made.id)
    got = upgraded(compact, message)
    assert got.id == made.id != compact.id
    assert got.note == "refined"
    assert all(torch.equal(got.state[name], made.state[name]) for name in spec_of(made.state))
    assert got.expected_bytes == made.expected_bytes
    second, further = make_upgrade(made, encoder, None, bits)
    assert upgraded(got, further).id == second.id
    lost = [
        sum(
            float((one.state[name] - encoder.state_dict()[name]).square().sum())
            for name in spec_of(made.state)
        )
        for one in (made, second)
    ]
    assert lost[1] < lost[0], "what rounding took off must come with the next difference"


def test_a_difference_for_another_base_or_with_one_wrong_bit_is_refused(compact: Version) -> None:
    encoder = compact.trainable()
    with torch.no_grad():
        encoder.get_parameter("blocks.3.project.weight").add_(0.1)
    made, message = make_upgrade(compact, encoder, None)
    with pytest.raises(PayloadError, match="expected format"):
        upgraded(made, message)
    with pytest.raises(PayloadError, match="expected to become"):
        upgraded(compact, altered(message, id="compact-000000000000"))


# Merging what devices learned.


def of(device: str, windows: int = 1, **tensors: Tensor) -> DeviceDifference:
    return DeviceDifference(device, "v", windows, tensors)


BASE = {"a": torch.full((4, 4), 10.0), "b": torch.full((4,), 10.0)}


@given(seeds=st.lists(st.integers(0, 100), min_size=1, max_size=4), windows=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_equal_devices_average_and_one_alone_is_itself(seeds: list[int], windows: int) -> None:
    spec = spec_of(BASE)
    changes = [drawn(spec, seed, 1e-3) for seed in seeds]
    merged = merge_differences([of(f"d{n}", windows, **one) for n, one in enumerate(changes)], BASE)
    for name in spec:
        mean = torch.stack([one[name] for one in changes]).mean(0)
        torch.testing.assert_close(merged.tensors[name], mean, atol=1e-8, rtol=1e-5)


def test_no_device_moves_the_weights_further_than_its_share() -> None:
    loud = of("loud", 1000, a=torch.full((4, 4), 1e4))
    calm = of("calm", 1, a=torch.full((4, 4), -0.1))
    merged = merge_differences([loud, calm], BASE, most_share=0.1)
    assert merged.norms["loud"] == pytest.approx(1e3)
    # Clipped to 1.0 a number, and counted ten times for a thousand windows.
    torch.testing.assert_close(merged.tensors["a"], torch.full((4, 4), (10 * 1.0 - 0.1) / 11))


def test_a_tensor_that_few_sent_moves_little_and_statistics_are_not_averaged() -> None:
    both = {"a": torch.ones(4, 4), "n.running_mean": torch.ones(3)}
    merged = merge_differences([of("one", 1, **both), of("two", 1, b=torch.ones(4))], BASE)
    assert set(merged.tensors) == {"a", "b"}
    torch.testing.assert_close(merged.tensors["a"], torch.full((4, 4), 0.5))


@pytest.mark.parametrize(
    "bad",
    [
        of("bad", 1, a=torch.full((4, 4), float("nan"))),
        of("bad", 1, a=torch.ones(3, 4)),
        of("bad", 1, c=torch.ones(4)),
        of("bad", 0, a=torch.ones(4, 4)),
        of("bad", 1),
    ],
)
def test_a_bad_difference_is_left_out_and_named(bad: DeviceDifference) -> None:
    merged = merge_differences([bad, of("good", 1, a=torch.ones(4, 4))], BASE)
    assert set(merged.refused) == {"bad"}
    torch.testing.assert_close(merged.tensors["a"], torch.ones(4, 4))
