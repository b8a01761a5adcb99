"""Codecs: stated errors and sizes hold, and bytes from a stranger can do no more than be refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamsplit.errors import PayloadError
from streamsplit.wire.codec import (
    EMBEDDING_CODECS,
    TENSOR_CODECS,
    Array,
    Codec,
    Ranges,
    TensorSpec,
    embedding_bytes,
    error_bound,
    most_packed_bytes,
    pack,
    pack_embedding,
    step,
    unpack,
    unpack_embedding,
    unpack_embeddings,
    unpack_many,
)

INTEGER_CODECS = (Codec.INT8, Codec.INT5, Codec.INT4, Codec.INT3)
BOUNDARY = TensorSpec((16, 4, 12))

specs = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=7).map(TensorSpec)
seeds = st.integers(0, 2**32 - 1)


def made_ranges(channels: int, generator: np.random.Generator) -> Ranges:
    """Of every width, one of them constant now and then."""
    low = generator.normal(0.0, 10.0, channels)
    width = 10.0 ** generator.uniform(-3, 3, channels) * (generator.random(channels) > 0.1)
    return Ranges(low.astype(np.float32), (low + width).astype(np.float32))


def inside(spec: TensorSpec, ranges: Ranges, generator: np.random.Generator) -> Array:
    """A tensor with values all over its ranges, ends included."""
    shape = (spec.shape[0], *(1 for _ in spec.shape[1:]))
    low, high = ranges.low.reshape(shape), ranges.high.reshape(shape)
    share = np.clip(generator.uniform(-0.1, 1.1, spec.shape), 0.0, 1.0).astype(np.float32)
    return np.clip(low + (high - low) * share, low, high)


def smooth(spec: TensorSpec, seed: int = 0) -> Array:
    """Values that wander along time like a real activation."""
    generator = np.random.default_rng(seed)
    return np.cumsum(generator.normal(0, 0.15, spec.shape), axis=-1).astype(np.float32)


def unit_ranges(spec: TensorSpec) -> Ranges:
    return Ranges(np.full(spec.shape[0], -1.0, np.float32), np.full(spec.shape[0], 1.0, np.float32))


@pytest.mark.parametrize("codec", TENSOR_CODECS)
@given(spec=specs, seed=seeds)
def test_what_comes_back_is_within_the_stated_error(codec: Codec, spec: TensorSpec, seed: int) -> None:
    generator = np.random.default_rng(seed)
    ranges = made_ranges(spec.shape[0], generator)
    tensor = inside(spec, ranges, generator)
    back = unpack(pack(tensor, codec, ranges), codec, spec, ranges)
    assert back.shape == spec.shape
    assert back.dtype == np.float32
    assert (np.abs(back - tensor) <= error_bound(codec, ranges, spec)).all()


@pytest.mark.parametrize("codec", INTEGER_CODECS)
@given(spec=specs, seed=seeds)
def test_values_outside_the_range_come_back_as_its_ends(codec: Codec, spec: TensorSpec, seed: int) -> None:
    generator = np.random.default_rng(seed)
    ranges = made_ranges(spec.shape[0], generator)
    far = np.where(generator.random(spec.shape) < 0.5, -1e6, 1e6).astype(np.float32)
    ends = np.where(
        far < 0, *(end.reshape(-1, *(1 for _ in spec.shape[1:])) for end in (ranges.low, ranges.high))
    )
    back = unpack(pack(far, codec, ranges), codec, spec, ranges)
    assert (np.abs(back - ends) <= error_bound(codec, ranges, spec)).all()


@pytest.mark.parametrize("codec", TENSOR_CODECS)
@given(spec=specs, seed=seeds)
def test_no_payload_is_longer_than_stated(codec: Codec, spec: TensorSpec, seed: int) -> None:
    generator = np.random.default_rng(seed)
    ranges = made_ranges(spec.shape[0], generator)
    assert 0 < len(pack(inside(spec, ranges, generator), codec, ranges)) <= most_packed_bytes(spec, codec)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [("fp32", 3072), ("fp16", 1536), ("int8", 768), ("int5", 480), ("int4", 384), ("int3", 288)],
)
def test_noise_has_the_raw_size(codec: str, expected: int) -> None:
    assert most_packed_bytes(BOUNDARY, Codec(codec)) == expected
    noise = np.random.default_rng(0).uniform(-1, 1, BOUNDARY.shape).astype(np.float32)
    payload = pack(noise, Codec(codec), unit_ranges(BOUNDARY))
    # The sign and exponent of a float are never quite noise.
    assert 0.85 * expected < len(payload) <= expected if codec.startswith("fp") else len(payload) == expected


@pytest.mark.parametrize("codec", INTEGER_CODECS)
def test_what_wanders_slowly_packs_smaller_than_noise(codec: Codec) -> None:
    payload = pack(smooth(BOUNDARY), codec, unit_ranges(BOUNDARY))
    assert len(payload) < 0.9 * most_packed_bytes(BOUNDARY, codec)


@pytest.mark.parametrize("codec", TENSOR_CODECS)
@given(seed=seeds, many=st.integers(1, 9))
def test_a_batch_unpacks_to_the_bits_of_its_windows(codec: Codec, seed: int, many: int) -> None:
    generator = np.random.default_rng(seed)
    spec = TensorSpec((3, 4, 5))
    ranges = made_ranges(3, generator)
    payloads = [
        pack(smooth(spec, seed + k) if k % 2 else inside(spec, ranges, generator), codec, ranges)
        for k in range(many)
    ]
    batch = unpack_many(payloads, codec, spec, ranges)
    assert batch.shape == (many, *spec.shape)
    for window, payload in zip(batch, payloads, strict=True):
        np.testing.assert_array_equal(window, unpack(payload, codec, spec, ranges))


@pytest.mark.parametrize("codec", TENSOR_CODECS)
@given(payload=st.binary(max_size=300))
def test_random_bytes_are_refused_or_decode_to_finite_numbers(codec: Codec, payload: bytes) -> None:
    spec = TensorSpec((4, 3, 5))
    try:
        back = unpack(payload, codec, spec, unit_ranges(spec))
    except PayloadError:
        return
    assert back.shape == spec.shape
    assert np.isfinite(back).all()


@pytest.mark.parametrize("codec", TENSOR_CODECS)
@given(seed=seeds, where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_damaged_payloads_are_refused_or_decode_to_finite_numbers(
    codec: Codec, seed: int, where: float, flip: int, cut: bool
) -> None:
    payload = bytearray(pack(smooth(BOUNDARY, seed), codec, unit_ranges(BOUNDARY)))
    position = int(where * len(payload))
    payload[position] ^= flip
    if cut:
        del payload[position:]
    try:
        back = unpack(bytes(payload), codec, BOUNDARY, unit_ranges(BOUNDARY))
    except PayloadError:
        return
    assert np.isfinite(back).all()


@pytest.mark.parametrize("codec", INTEGER_CODECS)
def test_each_channel_has_its_own_range(codec: Codec) -> None:
    ranges = Ranges(np.array([0.0, 100.0, -7.0], np.float32), np.array([1.0, 200.0, -7.0], np.float32))
    spec = TensorSpec((3, 2, 2))
    tensor = np.empty(spec.shape, np.float32)
    tensor[0], tensor[1], tensor[2] = 1.0, 100.0, 55.0
    back = unpack(pack(tensor, codec, ranges), codec, spec, ranges)
    np.testing.assert_allclose(
        back, np.array([1.0, 100.0, -7.0]).reshape(3, 1, 1) * np.ones(spec.shape), rtol=1e-5
    )


@pytest.mark.parametrize("codec", INTEGER_CODECS)
def test_both_ends_of_a_range_are_levels(codec: Codec) -> None:
    ranges = unit_ranges(BOUNDARY)
    levels = round(2.0 / float(step(codec, ranges)[0])) + 1
    assert levels == 2 ** int(codec.removeprefix("int"))


@pytest.mark.parametrize("codec", TENSOR_CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_not_sent(codec: Codec, bad: float) -> None:
    tensor = smooth(BOUNDARY)
    tensor[3, 2, 1] = bad
    with pytest.raises(PayloadError, match="got 1 that are not"):
        pack(tensor, codec, unit_ranges(BOUNDARY))


@pytest.mark.parametrize(("codec", "kind"), [(Codec.FP16, "<f2"), (Codec.FP32, "<f4")])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_not_accepted(codec: Codec, kind: str, bad: float) -> None:
    spec = TensorSpec((2, 3))
    values = np.array([1, 2, 3, 4, bad, 6], kind)
    raw = values.reshape(-1, 1).view(np.uint8).T.tobytes()
    good = np.ones(6, kind).reshape(-1, 1).view(np.uint8).T.tobytes()
    with pytest.raises(PayloadError, match="payload 2 of 2: expected finite numbers, got 1"):
        unpack_many([good, raw], codec, spec)


def test_fp16_saturates_at_its_largest_number() -> None:
    spec = TensorSpec((1, 2))
    back = unpack(pack(np.array([[1e6, -1e6]], np.float32), Codec.FP16), Codec.FP16, spec)
    np.testing.assert_array_equal(back, [[65504.0, -65504.0]])


def test_a_wrong_length_is_named() -> None:
    ranges = unit_ranges(BOUNDARY)
    good = pack(smooth(BOUNDARY), Codec.INT4, ranges)
    with pytest.raises(PayloadError, match="payload 2 of 2: expected at most 384 bytes, got 385"):
        unpack_many([good, bytes(385)], Codec.INT4, BOUNDARY, ranges)


def test_mistakes_of_the_caller_are_value_errors() -> None:
    tensor = smooth(BOUNDARY)
    with pytest.raises(ValueError, match="expected ranges, got none"):
        pack(tensor, Codec.INT4)
    with pytest.raises(ValueError, match="expected 16 channels, got 3"):
        pack(tensor, Codec.INT4, made_ranges(3, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="got flac"):
        pack(tensor, Codec.FLAC)
    with pytest.raises(ValueError, match="got int5"):
        pack_embedding(tensor[0, 0], Codec.INT5)
    with pytest.raises(ValueError, match=r"low <= high, got 2\.0, 1\.0 in channel 1"):
        Ranges(np.array([0.0, 2.0], np.float32), np.array([1.0, 1.0], np.float32))
    with pytest.raises(ValueError, match="one length"):
        Ranges(np.zeros(2, np.float32), np.ones(3, np.float32))


def unit(seed: int, dim: int) -> Array:
    z = np.random.default_rng(seed).normal(size=dim)
    return np.asarray(z / np.linalg.norm(z), np.float32)


@pytest.mark.parametrize(
    ("codec", "least_cosine"), [("fp32", 1 - 1e-6), ("fp16", 1 - 1e-5), ("int8", 0.9995), ("int4", 0.95)]
)
@given(seed=seeds, dim=st.sampled_from([127, 128, 512]))
def test_an_embedding_comes_back_close_and_of_unit_norm(
    codec: str, least_cosine: float, seed: int, dim: int
) -> None:
    z = unit(seed, dim)
    payload = pack_embedding(z, Codec(codec))
    back = unpack_embedding(payload, Codec(codec), dim)
    assert len(payload) == embedding_bytes(Codec(codec), dim)
    assert np.linalg.norm(back) == pytest.approx(1.0, abs=1e-6)
    assert float(back @ z) >= least_cosine


def test_embeddings_have_the_stated_sizes() -> None:
    assert {str(codec): embedding_bytes(codec, 128) for codec in EMBEDDING_CODECS} == {
        "fp32": 512,
        "fp16": 256,
        "int8": 130,
        "int4": 66,
    }


@pytest.mark.parametrize("codec", EMBEDDING_CODECS)
def test_a_batch_of_embeddings_unpacks_to_the_bits_of_each(codec: Codec) -> None:
    payloads = [pack_embedding(unit(seed, 128), codec) for seed in range(33)]
    batch = unpack_embeddings(payloads, codec, 128)
    for z, payload in zip(batch, payloads, strict=True):
        np.testing.assert_array_equal(z, unpack_embedding(payload, codec, 128))


@pytest.mark.parametrize("codec", [Codec.INT8, Codec.INT4])
@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0])
def test_an_embedding_without_a_legal_scale_is_refused(codec: Codec, scale: float) -> None:
    payload = np.array([scale], "<f2").tobytes() + bytes(embedding_bytes(codec, 128) - 3) + b"\x01"
    with pytest.raises(PayloadError, match="embedding 1 of 1: expected a finite length above 0"):
        unpack_embedding(payload, codec, 128)


@pytest.mark.parametrize("codec", EMBEDDING_CODECS)
@given(
    payload=st.binary(min_size=60, max_size=70)
    | st.binary(min_size=130, max_size=130)
    | st.binary(min_size=256, max_size=512)
)
def test_random_bytes_as_an_embedding_are_refused_or_of_unit_norm(codec: Codec, payload: bytes) -> None:
    try:
        z = unpack_embedding(payload, codec, 128)
    except PayloadError:
        return
    assert np.linalg.norm(z) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("codec", EMBEDDING_CODECS)
def test_an_embedding_of_no_length_or_not_finite_is_refused(codec: Codec) -> None:
    with pytest.raises(PayloadError, match="length above 0"):
        unpack_embedding(pack_embedding(np.zeros(128, np.float32), codec), codec, 128)
    with pytest.raises(PayloadError, match="1 not finite"):
        pack_embedding(np.append(unit(0, 127), np.float32(np.nan)), codec)
    with pytest.raises(PayloadError, match=r"embedding 2 of 2: expected .* bytes, got 3"):
        unpack_embeddings([pack_embedding(unit(0, 128), codec), b"abc"], codec, 128)
