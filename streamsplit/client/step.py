"""What the device made of one window: all that is needed to send it, keep it over a crash and journal it."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamsplit.audio.window import Mark
from streamsplit.wire.codec import Codec


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One processed window.

    Attributes:
        stream, sequence, start_sample, mark, level_dbfs: as in `audio.window.Window`.
        split: -1 audio, 0 features, k activation after block k, L embedding.
        codec: of `payload`.
        version: encoder version that made the payload.
        front_end: fingerprint of the front end that made the features: only versions with an equal one can take them.
        payload: bytes to send.
        features: the window's log-mel as uint8 bytes (the int8 codec at split 0), kept until acknowledged so that a window whose
            version is gone can be sent again; empty where the payload is the features or audio already.
        captured_s: monotonic time of the window's last sample; meaningless after a restart.
        device_ms: measured milliseconds on the device by part: "features", "head", "pack", ...
        decision: the journal's record of why: decider, reason, observation (all made of plain JSON types).
    """

    stream: str
    sequence: int
    start_sample: int
    split: int
    codec: Codec
    version: str
    payload: bytes
    features: bytes = b""
    front_end: str = ""
    mark: Mark | None = None
    level_dbfs: float = -120.0
    captured_s: float = 0.0
    device_ms: dict[str, float] = field(default_factory=dict)
    decision: dict[str, object] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """(stream, sequence): what the server acknowledges."""
        return self.stream, self.sequence
