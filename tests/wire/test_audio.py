"""Audio payloads: exactly the window's samples come back, or a refusal."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.errors import PayloadError
from streamsplit.wire import ogg
from streamsplit.wire.audio import (
    AUDIO_CODECS,
    OPUS_BPS,
    audio_bytes,
    most_audio_bytes,
    pack_audio,
    unpack_audio,
)
from streamsplit.wire.codec import Array, Codec


def sound(samples: int, rate_hz: int = 16_000) -> Array:
    """Three tones and a little noise."""
    t = np.arange(samples) / rate_hz
    tones = sum(0.2 * np.sin(2 * np.pi * hz * t) for hz in (220.0, 440.0, 1330.0))
    return np.asarray(tones + 0.01 * np.random.default_rng(0).normal(size=samples), np.float32)


def flac(samples: Array, rate_hz: int, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, subtype, format="FLAC")
    return file.getvalue()


@pytest.mark.parametrize("codec", [Codec.PCM16, Codec.FLAC])
@pytest.mark.parametrize("samples", [1, 15_360, 16_001])
def test_lossless_codecs_are_exact_to_16_bits(codec: Codec, samples: int) -> None:
    window = sound(samples)
    back = unpack_audio(pack_audio(window, codec, 16_000), codec, 16_000, samples)
    assert back.dtype == np.float32
    assert np.abs(back - window).max() <= 0.5 / 32768


def test_flac_and_pcm_are_the_same_samples() -> None:
    window = sound(15_360)
    pcm, flac_ = (
        unpack_audio(pack_audio(window, codec, 16_000), codec, 16_000, 15_360)
        for codec in (Codec.PCM16, Codec.FLAC)
    )
    np.testing.assert_array_equal(pcm, flac_)


@pytest.mark.parametrize(
    ("rate_hz", "samples"),
    [(16_000, 15_360), (16_000, 1), (16_000, 15_361), (8_000, 7_680), (24_000, 23_040), (48_000, 480_000)],
)
def test_opus_returns_exactly_the_samples_of_the_window(rate_hz: int, samples: int) -> None:
    payload = pack_audio(sound(samples, rate_hz), Codec.OPUS, rate_hz)
    assert unpack_audio(payload, Codec.OPUS, rate_hz, samples).shape == (samples,)


def test_opus_is_not_shifted_in_time() -> None:
    window = sound(15_360)
    back = unpack_audio(pack_audio(window, Codec.OPUS, 16_000, opus_bps=32_000), Codec.OPUS, 16_000, 15_360)
    agreement = [float(window[400:-400] @ back[400 + lag : len(back) - 400 + lag]) for lag in range(-40, 41)]
    assert int(np.argmax(agreement)) - 40 == 0
    assert np.corrcoef(window, back)[0, 1] > 0.95


def test_opus_without_its_container_decodes_to_the_same_bits() -> None:
    file = io.BytesIO()
    soundfile.write(file, sound(15_360), 16_000, "OPUS", format="OGG")
    direct, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")
    payload = ogg.strip(file.getvalue())
    np.testing.assert_array_equal(unpack_audio(payload, Codec.OPUS, 16_000, 15_360), direct)
    assert len(payload) < len(file.getvalue()) - 500


@pytest.mark.parametrize("bps", [6_000, OPUS_BPS, 24_000])
def test_opus_keeps_to_the_rate_it_is_given(bps: int) -> None:
    payload = pack_audio(sound(15_360), Codec.OPUS, 16_000, opus_bps=bps)
    assert len(payload) * 8 / 0.96 == pytest.approx(bps, rel=0.3)


def test_expected_bytes_are_near_the_real_ones() -> None:
    window = np.random.default_rng(0).normal(0, 0.05, 15_360).astype(np.float32)
    for codec, share in ((Codec.PCM16, 0.0), (Codec.OPUS, 0.3)):
        assert len(pack_audio(window, codec, 16_000)) == pytest.approx(
            audio_bytes(codec, 16_000, 15_360), rel=share
        )
    for opus_bps in (6_000, 24_000):
        expected = audio_bytes(Codec.OPUS, 16_000, 15_360, opus_bps)
        assert len(pack_audio(window, Codec.OPUS, 16_000, opus_bps)) == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("codec", AUDIO_CODECS)
def test_silence_and_clipping_are_sound_too(codec: Codec) -> None:
    for window in (np.zeros(15_360, np.float32), np.full(15_360, 9.0, np.float32)):
        payload = pack_audio(window, codec, 16_000)
        assert len(payload) <= most_audio_bytes(codec, 15_360)
        assert np.abs(unpack_audio(payload, codec, 16_000, 15_360)).max() <= 1.1


@pytest.mark.parametrize("codec", AUDIO_CODECS)
@settings(deadline=None)
@given(payload=st.binary(max_size=400))
def test_random_bytes_are_refused(codec: Codec, payload: bytes) -> None:
    with pytest.raises(PayloadError):
        unpack_audio(payload, codec, 16_000, 15_360)


@pytest.mark.parametrize("codec", [Codec.FLAC, Codec.OPUS])
@settings(deadline=None, max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_damaged_payloads_are_refused_or_give_a_window(
    codec: Codec, where: float, flip: int, cut: bool
) -> None:
    payload = bytearray(pack_audio(sound(15_360), codec, 16_000))
    position = int(where * len(payload))
    payload[position] ^= flip
    if cut:
        del payload[position:]
    try:
        back = unpack_audio(bytes(payload), codec, 16_000, 15_360)
    except PayloadError:
        return
    assert back.shape == (15_360,)
    assert np.isfinite(back).all()


@pytest.mark.parametrize("codec", AUDIO_CODECS)
@pytest.mark.parametrize("samples", [15_359, 20_000, 7_000])
def test_another_length_is_refused(codec: Codec, samples: int) -> None:
    payload = pack_audio(sound(samples), codec, 16_000)
    if codec is Codec.OPUS and samples == 15_359:
        return  # packets of 20 ms cannot tell; the receiver's own length rules
    with pytest.raises(PayloadError, match="expected"):
        unpack_audio(payload, codec, 16_000, 15_360)


def test_another_rate_more_channels_or_another_depth_are_refused() -> None:
    window = sound(15_360)
    for file in (
        flac(window, 48_000),
        flac(np.stack([window, window], 1), 16_000),
        flac(window, 16_000, "PCM_24"),
    ):
        with pytest.raises(PayloadError, match="expected"):
            unpack_audio(file, Codec.FLAC, 16_000, 15_360)


def test_other_formats_in_flacs_clothes_are_refused() -> None:
    file = io.BytesIO()
    soundfile.write(file, sound(15_360), 16_000, "PCM_16", format="WAV")
    with pytest.raises(PayloadError, match="expected a FLAC file"):
        unpack_audio(file.getvalue(), Codec.FLAC, 16_000, 15_360)


def test_a_payload_longer_than_any_window_is_not_looked_at() -> None:
    for codec in AUDIO_CODECS:
        with pytest.raises(PayloadError, match="bytes, got 99999"):
            unpack_audio(bytes(99_999), codec, 16_000, 15_360)


@pytest.mark.parametrize("codec", AUDIO_CODECS)
def test_not_finite_is_not_sent(codec: Codec) -> None:
    window = sound(100)
    window[7] = np.nan
    with pytest.raises(PayloadError, match="got 1 that are not"):
        pack_audio(window, codec, 16_000)


def test_mistakes_of_the_caller_are_value_errors() -> None:
    with pytest.raises(ValueError, match="got int4"):
        pack_audio(sound(10), Codec.INT4, 16_000)
    with pytest.raises(ValueError, match="44100"):
        pack_audio(sound(10), Codec.OPUS, 44_100)
    with pytest.raises(ValueError, match="shape"):
        pack_audio(np.zeros((2, 10), np.float32), Codec.PCM16, 16_000)
    with pytest.raises(ValueError, match="bit/s, got 100"):
        pack_audio(sound(10), Codec.OPUS, 16_000, opus_bps=100)
