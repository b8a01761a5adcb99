"""PCM <-> bytes, for windows that the server embeds alone and for comparison with what a split costs.

| codec | payload | bytes a second at 16 kHz (measured on 100 ESC-50 recordings) |
| --- | --- | --- |
| pcm16 | int16, little-endian | 32,000 |
| flac | one FLAC file, lossless over int16 | 16,730 |
| opus | packets without container, see `ogg` | 1,340 at 12 kbit/s, 2,560 at 24, 660 at 6 |

Each window is a piece of its own, because windows may be lost, dropped and re-sent one by one.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import soundfile

from streamsplit.errors import PayloadError
from streamsplit.wire import ogg
from streamsplit.wire.codec import Array, Codec

AUDIO_CODECS = (Codec.PCM16, Codec.FLAC, Codec.OPUS)

OPUS_BPS = 12_000
"""The least that cost no accuracy in our measurements."""

OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)

CONTAINER_BYTES = 16_384
"""What FLAC may add to 16-bit samples at worst."""

FLAC_SHARE = 0.52
"""Of PCM16, measured."""

OPUS_SHARE = 0.9
"""Of the nominal rate, measured: it spends less on quiet stretches. Lengths and pre-skip are included."""

_FULL_SCALE = 32768.0
_OPUS_SLOWEST_BPS, _OPUS_FASTEST_BPS = 6_000, 256_000


def pack_audio(samples: Array, codec: Codec, sample_rate_hz: int, opus_bps: int = OPUS_BPS) -> bytes:
    """One window of sound as bytes.

    Args:
        samples: [S] float32 mono, clipped to [-1, 1].
        codec: one of `AUDIO_CODECS`.
        opus_bps: Opus' mean rate, 6,000 to 256,000 bits per second.

    Raises:
        PayloadError: NaN or infinite samples.
        ValueError: not one channel, no samples, or a codec or rate that does not go.
    """
    _check(codec, sample_rate_hz)
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"audio: expected [S] samples, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise PayloadError(
            f"audio: expected finite samples, got {np.count_nonzero(~np.isfinite(samples))} that are not"
        )
    if codec is Codec.PCM16:
        return _int16(samples).astype("<i2", copy=False).tobytes()
    if codec is Codec.FLAC:
        return _written(_int16(samples), sample_rate_hz, "FLAC", "PCM_16", None)
    if not _OPUS_SLOWEST_BPS <= opus_bps <= _OPUS_FASTEST_BPS:
        raise ValueError(f"opus: expected {_OPUS_SLOWEST_BPS} to {_OPUS_FASTEST_BPS} bit/s, got {opus_bps}")
    # libsndfile takes the rate as a share of the way from the fastest to the slowest.
    level = (_OPUS_FASTEST_BPS - opus_bps) / (_OPUS_FASTEST_BPS - _OPUS_SLOWEST_BPS)
    return ogg.strip(_written(np.clip(samples, -1.0, 1.0), sample_rate_hz, "OGG", "OPUS", level))


def unpack_audio(payload: bytes, codec: Codec, sample_rate_hz: int, samples: int) -> Array:
    """The window that `pack_audio` wrote: [S] float32; exact to 16 bits for pcm16 and flac.

    Length, rate and channels are checked against the header before a sample is decoded.

    Args:
        sample_rate_hz, samples: what the window must have.

    Raises:
        PayloadError: bytes that are not such a window.
        ValueError: a codec or rate that does not go.
    """
    _check(codec, sample_rate_hz)
    most = most_audio_bytes(codec, samples)
    if not 0 < len(payload) <= most:
        raise PayloadError(f"{codec}: expected 1 to {most} bytes, got {len(payload)}")
    if codec is Codec.PCM16:
        if len(payload) != most:
            raise PayloadError(f"pcm16: expected {most} bytes, got {len(payload)}")
        return np.frombuffer(payload, "<i2").astype(np.float32) / np.float32(_FULL_SCALE)
    if codec is Codec.FLAC:
        # Only what begins like FLAC: libsndfile would try every format it knows.
        if payload[:4] != b"fLaC":
            raise PayloadError("flac: expected a FLAC file, got something else")
        return _read(payload, sample_rate_hz, samples, "FLAC", "PCM_16")
    return _read(ogg.wrap(payload, sample_rate_hz, samples), sample_rate_hz, samples, "OGG", "OPUS")


def most_audio_bytes(codec: Codec, samples: int) -> int:
    """Bytes that no payload of one window exceeds."""
    return 2 * samples + (0 if codec is Codec.PCM16 else CONTAINER_BYTES)


def audio_bytes(codec: Codec, sample_rate_hz: int, samples: int, opus_bps: float = OPUS_BPS) -> float:
    """Expected bytes of a packed window, for cost estimates: exact for pcm16, else as measured."""
    _check(codec, sample_rate_hz)
    if codec is Codec.PCM16:
        return 2.0 * samples
    if codec is Codec.FLAC:
        return FLAC_SHARE * 2.0 * samples
    return OPUS_SHARE * opus_bps / 8.0 * samples / sample_rate_hz


def _check(codec: Codec, sample_rate_hz: int) -> None:
    if codec not in AUDIO_CODECS:
        raise ValueError(f"audio codec: expected one of {', '.join(AUDIO_CODECS)}, got {codec}")
    if codec is Codec.OPUS and sample_rate_hz not in OPUS_RATES_HZ:
        raise ValueError(
            f"opus: expected a sample rate of {', '.join(map(str, OPUS_RATES_HZ))} Hz, got {sample_rate_hz}"
        )


def _int16(samples: Array) -> npt.NDArray[np.int16]:
    scaled = np.rint(samples * np.float32(_FULL_SCALE))
    levels: npt.NDArray[np.int16] = np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
    return levels


def _written(
    samples: npt.NDArray[np.int16] | Array, sample_rate_hz: int, form: str, subtype: str, level: float | None
) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", sample_rate_hz, 1, subtype, format=form, compression_level=level
    ) as writer:
        writer.write(samples)
    return file.getvalue()


def _read(file: bytes, sample_rate_hz: int, samples: int, form: str, subtype: str) -> Array:
    try:
        with soundfile.SoundFile(io.BytesIO(file)) as reader:
            got = (reader.format, reader.subtype, reader.channels, reader.samplerate, reader.frames)
            if got != (form, subtype, 1, sample_rate_hz, samples):
                raise PayloadError(
                    f"{subtype}: expected {(form, subtype, 1, sample_rate_hz, samples)}, got {got}"
                )
            decoded: Array = reader.read(samples, dtype="float32")
    except soundfile.SoundFileError as error:
        raise PayloadError(f"{form}: expected {samples} samples, got bytes that do not decode") from error
    if decoded.shape != (samples,) or not np.isfinite(decoded).all():
        raise PayloadError(f"{form}: expected {samples} finite samples, got {decoded.shape}")
    return decoded
