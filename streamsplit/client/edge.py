"""The device's part of one window: features, head up to the split, packing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streamsplit.audio.features import LogMel
from streamsplit.audio.window import Window
from streamsplit.client.step import Step
from streamsplit.config import ClientSettings
from streamsplit.encoders.registry import Version
from streamsplit.policy.decide import Choice
from streamsplit.policy.observation import AUDIO_SPLIT, Option
from streamsplit.wire.audio import OPUS_BPS, audio_bytes, pack_audio
from streamsplit.wire.codec import Codec, pack, pack_embedding


@dataclass(frozen=True, slots=True)
class Codecs:
    """Which codec goes with which kind of payload, and the rate of Opus in bits per second."""

    activation: Codec
    features: Codec
    embedding: Codec
    audio: Codec | None
    opus_bps: int = OPUS_BPS

    @classmethod
    def from_settings(cls, settings: ClientSettings) -> Codecs:
        """As the settings say; no audio codec where audio must not leave the device."""
        return cls(
            Codec(settings.codec),
            Codec(settings.features_codec),
            Codec(settings.embedding_codec),
            Codec(settings.audio_codec) if settings.send_audio else None,
            round(1e3 * settings.audio_kbps),
        )


class Edge:
    """Runs windows through the front of one encoder version.

    Args:
        version: the serving version.
        codecs: how payloads are packed.
        heard: called with every window whose features were made, [1, F, T].
        clock: monotonic seconds.
    """

    def __init__(
        self,
        version: Version,
        codecs: Codecs,
        heard: Callable[[Window, Tensor], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.version = version
        self._codecs = codecs
        self._heard = heard
        self._clock = clock
        self._log_mel = LogMel(version.front_end)
        self._fingerprint = version.front_end.fingerprint

    def with_version(self, version: Version) -> Edge:
        """The same device with another version."""
        return Edge(version, self._codecs, self._heard, self._clock)

    def options(self) -> list[Option]:
        """Everything this device could do with a window, with the bytes each is expected to cost."""
        last = self.version.encoder.last_split
        options = [
            Option(last, str(self._codecs.embedding), self.version.packed_bytes(last, self._codecs.embedding))
        ]
        for split in range(last):
            codec = self._codecs.features if split == 0 else self._codecs.activation
            options.append(Option(split, str(codec), self.version.packed_bytes(split, codec)))
        if self._codecs.audio is not None:
            front_end = self.version.front_end
            expected = audio_bytes(
                self._codecs.audio, front_end.sample_rate_hz, front_end.window_samples, self._codecs.opus_bps
            )
            options.append(Option(AUDIO_SPLIT, str(self._codecs.audio), expected))
        return options

    def process(self, window: Window, choice: Choice) -> Step:
        """Runs one window as chosen.

        Args:
            window: of the version's own window length.
            choice: split and codec; see `options`.

        Returns:
            The step, with the milliseconds each part took.
        """
        split, codec = choice.split, Codec(choice.codec)
        spent: dict[str, float] = {}
        started = self._clock()
        payload, features = b"", b""
        if split == AUDIO_SPLIT:
            rate_hz = self.version.front_end.sample_rate_hz
            payload = pack_audio(window.samples, codec, rate_hz, self._codecs.opus_bps)
            spent["pack"] = self._since(started)
        else:
            with torch.inference_mode():
                mel = self._log_mel(torch.from_numpy(window.samples)[None])
                spent["features"] = self._since(started)
                began = self._clock()
                activation = self.version.encoder.head(mel, split)[0].numpy()
                spent["head"] = self._since(began)
            began = self._clock()
            if split == self.version.encoder.last_split:
                payload = pack_embedding(activation, codec)
            else:
                payload = pack(np.ascontiguousarray(activation), codec, self.version.ranges[split])
            if split or codec is not Codec.INT8:
                features = pack(mel[0].numpy(), Codec.INT8, self.version.ranges[0])
            spent["pack"] = self._since(began)
            if self._heard:
                self._heard(window, mel[0])
        return Step(
            stream=window.stream,
            sequence=window.sequence,
            start_sample=window.start_sample,
            split=split,
            codec=codec,
            version=self.version.id,
            payload=payload,
            features=features,
            front_end=self._fingerprint,
            mark=window.mark,
            level_dbfs=window.level_dbfs,
            captured_s=window.captured_s,
            device_ms=spent,
        )

    def _since(self, began: float) -> float:
        return (self._clock() - began) * 1e3


def as_features(step: Step, version: str) -> Step | None:
    """The same window to be embedded by another version with an equal front end; None if its features were not kept."""
    if step.split == AUDIO_SPLIT or (step.split == 0 and step.codec is Codec.INT8):
        return replace(step, version=version)
    if not step.features:
        return None
    return replace(step, split=0, codec=Codec.INT8, version=version, payload=step.features, features=b"")
