"""Encoder versions this server can finish: payload bytes of any split in, embeddings out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from streamsplit.audio.features import LogMel
from streamsplit.encoders.registry import Version
from streamsplit.errors import ConfigError, PayloadError
from streamsplit.policy.observation import AUDIO_SPLIT
from streamsplit.wire.audio import AUDIO_CODECS, most_audio_bytes, unpack_audio
from streamsplit.wire.codec import (
    EMBEDDING_CODECS,
    Array,
    Codec,
    embedding_bytes,
    most_packed_bytes,
    pack_embeddings,
    unpack,
    unpack_embedding,
    unpack_embeddings,
    unpack_many,
)
from streamsplit.wire.messages import EncoderVersion


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A batch's result.

    Attributes:
        embeddings: [B, D] float32, unit norm; rows named in `problems` are zero.
        own: [B, D] float32, unit norm: what the devices embed, or would have embedded, the windows as.
        uncertainties: [B] float32 in [0, 2], 1 - cosine of the two; None where they are the same.
        problems: index of a payload that does not decode -> why.
        packed: B embeddings as they go back to the device (int8); empty where the device has made them itself.
        packed_own: B of its own likewise; empty where they are the same.
        features: [B, 1, F, T] float32 of windows that came as sound; None of others.
    """

    embeddings: Array
    own: Array
    uncertainties: npt.NDArray[np.float32] | None
    problems: dict[int, str]
    packed: list[bytes]
    packed_own: list[bytes]
    features: Array | None = None


class ServedVersion:
    """One encoder version, on one torch device.

    Args:
        version: as loaded from the registry.
        compute: torch device of the tail.
    """

    def __init__(self, version: Version, compute: str = "cpu") -> None:
        self.version = version
        self.description = EncoderVersion(version.id, version.encoder.name, version.front_end.fingerprint)
        self._compute = torch_device(compute)
        self._encoder = version.encoder.to(self._compute)
        self._log_mel = LogMel(version.front_end)
        self._most: dict[tuple[int, Codec], int] = {}

    @property
    def last_split(self) -> int:
        """L of this encoder."""
        return self._encoder.last_split

    def problem(self, split: int, codec: Codec, payload_bytes: int) -> str | None:
        """Why such a payload cannot be one of this version's, told before a byte of it is looked at; None if it can."""
        if not AUDIO_SPLIT <= split <= self.last_split:
            return f"split: expected {AUDIO_SPLIT}..{self.last_split} for {self.version.id}, got {split}"
        if (codec in AUDIO_CODECS) != (split == AUDIO_SPLIT):
            return f"codec {codec} does not go with split {split}"
        if split == self.last_split and codec not in EMBEDDING_CODECS:
            return f"codec {codec} is not one for embeddings"
        most = self._most.get((split, codec)) or self._most.setdefault(
            (split, codec), self._most_bytes(split, codec)
        )
        if not 0 < payload_bytes <= most:
            return f"payload at split {split} as {codec}: expected 1..{most} bytes, got {payload_bytes}"
        return None

    def embed(self, split: int, codec: Codec, payloads: Sequence[bytes]) -> Embedded:
        """Finishes a batch of windows cut at the same place.

        Args:
            split: where they were cut.
            codec: how they are packed.
            payloads: B payloads, each already passed by `problem`.
        """
        if split == self.last_split:
            return self._received(codec, payloads)
        batch, problems = self._decoded(split, codec, payloads)
        features: Array | None = None
        with torch.inference_mode():
            activation = torch.from_numpy(batch)
            if split == AUDIO_SPLIT:
                activation = self._log_mel(activation)
                features = activation.numpy()
            embeddings, own = self._encoder.tail_and_own(activation.to(self._compute), max(split, 0))
            known = None if own is embeddings else 1.0 - F.cosine_similarity(own, embeddings)
        rows = np.ascontiguousarray(embeddings.float().cpu().numpy())
        owns = rows if known is None else np.ascontiguousarray(own.float().cpu().numpy())
        for index in np.flatnonzero(~(np.isfinite(rows) & np.isfinite(owns)).all(axis=1)):
            problems[int(index)] = "the embedding is not finite"
            rows[index] = owns[index] = 0.0
        packed, nothing = pack_embeddings(rows, Codec.INT8), [b""] * len(rows)
        if known is None:
            return Embedded(rows, owns, None, problems, packed, nothing, features)
        packed_own = pack_embeddings(owns, Codec.INT8)
        return Embedded(rows, owns, known.float().cpu().numpy(), problems, packed, packed_own, features)

    def _received(self, codec: Codec, payloads: Sequence[bytes]) -> Embedded:
        dim = self._encoder.embedding_dim
        try:
            rows = unpack_embeddings(payloads, codec, dim)
            nothing = [b""] * len(payloads)
            return Embedded(rows, rows, None, {}, nothing, nothing)
        except PayloadError:
            rows, problems = np.zeros((len(payloads), dim), np.float32), {}
            for index, payload in enumerate(payloads):
                try:
                    rows[index] = unpack_embedding(payload, codec, dim)
                except PayloadError as error:
                    problems[index] = str(error)
            nothing = [b""] * len(payloads)
            return Embedded(rows, rows, None, problems, nothing, nothing)

    def _decoded(self, split: int, codec: Codec, payloads: Sequence[bytes]) -> tuple[Array, dict[int, str]]:
        """[B, *shape] float32; one that does not decode costs only itself."""
        front_end = self.version.front_end
        problems: dict[int, str] = {}
        if split == AUDIO_SPLIT:
            batch = np.zeros((len(payloads), front_end.window_samples), np.float32)
            for index, payload in enumerate(payloads):
                try:
                    batch[index] = unpack_audio(
                        payload, codec, front_end.sample_rate_hz, front_end.window_samples
                    )
                except PayloadError as error:
                    problems[index] = str(error)
            return batch, problems
        spec, ranges = self._encoder.activation_spec(split), self.version.ranges[split]
        try:
            return unpack_many(payloads, codec, spec, ranges), problems
        except PayloadError:
            batch = np.zeros((len(payloads), *spec.shape), np.float32)
            for index, payload in enumerate(payloads):
                try:
                    batch[index] = unpack(payload, codec, spec, ranges)
                except PayloadError as error:
                    problems[index] = str(error)
            return batch, problems

    def _most_bytes(self, split: int, codec: Codec) -> int:
        if split == AUDIO_SPLIT:
            return most_audio_bytes(codec, self.version.front_end.window_samples)
        if split == self.last_split:
            return embedding_bytes(codec, self._encoder.embedding_dim)
        return most_packed_bytes(self._encoder.activation_spec(split), codec)


def serve(versions: Iterable[Version], compute: str) -> dict[str, ServedVersion]:
    """Versions by their name, ready to finish windows."""
    return {version.id: ServedVersion(version, compute) for version in versions}


def torch_device(name: str) -> torch.device:
    """Torch's device of this name.

    Raises:
        ConfigError: no such device, or it does not work here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"compute = {name!r}: expected cpu, cuda, cuda:N or mps that works here: {reason}"
        ) from None
    return device
