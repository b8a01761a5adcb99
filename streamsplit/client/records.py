"""The journal's lines: what a device notes of its stream, of gaps, and of every window that is done with."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

from streamsplit.audio.window import Gap
from streamsplit.client.conversation import Answer
from streamsplit.client.journal import Journal
from streamsplit.client.recording import Skip
from streamsplit.client.signals import Signals
from streamsplit.client.step import Step
from streamsplit.encoders.version import Version
from streamsplit.errors import StorageError
from streamsplit.wire.codec import Codec, pack_embedding, unpack_embedding

logger = logging.getLogger(__name__)

Key = tuple[str, int]


class Offered(NamedTuple):
    """When a window was taken from its source and when it was offered, made ready, to the link and the disk (monotonic).

    Attributes:
        disk_ms: for how long it then waited for the disk.
    """

    taken_s: float
    offered_s: float
    disk_ms: float


class Records:
    """Writes one stream's lines; a full disk costs lines, not the stream.

    Args:
        journal: to write to.
        stream: its name.
        decider: the decider's name.
        version: of the encoder, as of now.
        uplink_bytes: bytes sent to the server so far.

    Attributes:
        offered: of the windows of this run that are not done with.
        unwritten: lines the disk had no room for.
    """

    def __init__(
        self,
        journal: Journal,
        stream: str,
        decider: str,
        version: Callable[[], Version],
        uplink_bytes: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._stream = stream
        self._decider = decider
        self._version = version
        self._uplink_bytes = uplink_bytes
        self.offered: dict[Key, Offered] = {}
        self.unwritten = 0

    def write(self, record: dict[str, Any]) -> None:
        """Writes a line."""
        try:
            self._journal.write(record)
        except StorageError as error:
            self.unwritten += 1
            logger.log(logging.DEBUG if self.unwritten > 1 else logging.ERROR, "lines are lost: %s", error)

    def stream(self, sample_rate_hz: int) -> None:
        """The stream begins."""
        version = self._version()
        self.write(
            {
                "kind": "stream",
                "stream": self._stream,
                "encoder": version.encoder.name,
                "version": version.id,
                "sample_rate_hz": sample_rate_hz,
                "window_samples": version.front_end.window_samples,
                "last_split": version.encoder.last_split,
                "block_names": list(version.encoder.block_names),
                "decider": self._decider,
                "measured": {"unix_ms": int(time.time() * 1000)},
            }
        )

    def version(self, sequence: int, sync_bytes: tuple[int, int]) -> None:
        """From this window on another version is served here."""
        up, down = sync_bytes
        told = {"sync_up_bytes": up, "sync_down_bytes": down, "unix_ms": int(time.time() * 1000)}
        about = {"kind": "version", "stream": self._stream, "sequence": sequence}
        self.write({**about, "version": self._version().id, "measured": told})

    def signals(self, signals: Signals) -> None:
        """What is known of the last windows embedded."""
        self.write({"kind": "signals", "stream": self._stream, **asdict(signals)})

    def gap(self, gap: Gap) -> None:
        """Sound that was not heard."""
        about = {"kind": "gap", "stream": self._stream, "start_sample": gap.start_sample}
        self.write({**about, "samples": gap.samples, "reason": gap.reason})

    def skip(self, skip: Skip) -> None:
        """A recording that was passed over."""
        self.write({"kind": "skip", "source": skip.source, "reason": skip.reason})

    def lost(self, key: Key, state: str, reason: str | None = None) -> None:
        """A window that is not kept."""
        self.offered.pop(key, None)
        about: dict[str, Any] = {"kind": "window", "stream": key[0], "sequence": key[1], "state": state}
        self.write(about if reason is None else {**about, "reason": reason})

    def done(self, step: Step, state: str, answer: Answer | None, sent_s: float, ended_s: float) -> None:
        """A window that is done with."""
        self.write(self._window(step, state, answer, sent_s, ended_s))
        self.offered.pop(step.key, None)

    def _window(
        self, step: Step, state: str, answer: Answer | None, sent_s: float, ended_s: float
    ) -> dict[str, Any]:
        ack = answer.acknowledgement if answer else None
        local = step.split == self._version().encoder.last_split
        record: dict[str, Any] = {
            "kind": "window",
            "stream": step.stream,
            "sequence": step.sequence,
            "start_sample": step.start_sample,
            "start_s": round(step.start_sample / self._version().front_end.sample_rate_hz, 4),
            "source": step.mark.source if step.mark else None,
            "label": step.mark.label if step.mark else None,
            "level_dbfs": round(step.level_dbfs, 1),
            "split": step.split,
            "codec": str(step.codec),
            "version": step.version,
            "payload_bytes": len(step.payload),
            "state": state,
            "duplicate": bool(ack and ack.duplicate),
            "uncertainty": None if ack is None or ack.uncertainty is None else round(ack.uncertainty, 6),
            "embedding_hash": self._embedding_hash(step, ack.embedding if ack else b"", local),
            "decision": step.decision,
            "measured": self._measured(step, answer, local, sent_s, ended_s),
        }
        if answer and answer.reason:
            record["reason"] = answer.reason
        return record

    def _measured(
        self, step: Step, answer: Answer | None, local: bool, sent_s: float, ended_s: float
    ) -> dict[str, Any]:
        ack = answer.acknowledgement if answer else None
        measured: dict[str, Any] = {f"{part}_ms": round(spent, 4) for part, spent in step.device_ms.items()}
        offered = self.offered.get(step.key)
        if offered:  # of this run: its clock readings still mean something
            taken_s, offered_s, disk_ms = offered
            usable_s = offered_s if local else ended_s
            measured["late_ms"] = round((taken_s - step.captured_s) * 1e3, 4)
            measured["spool_ms"] = round(disk_ms, 4)
            measured["wait_ms"] = round((offered_s - taken_s) * 1e3 - sum(step.device_ms.values()), 4)
            measured["queue_ms"] = round(max(0.0, (sent_s - offered_s) * 1e3 - disk_ms), 4)
            measured["total_ms"] = round((usable_s - step.captured_s) * 1e3, 4)
        if ack:
            server_ms = (ack.queue_us + ack.tail_us + ack.store_us) / 1e3
            measured["wire_ms"] = round((ended_s - sent_s) * 1e3 - server_ms, 4)
            measured |= {
                "server_queue_ms": ack.queue_us / 1e3,
                "tail_ms": ack.tail_us / 1e3,
                "store_ms": ack.store_us / 1e3,
            }
        measured["uplink_bytes"] = self._uplink_bytes()
        measured["unix_ms"] = int(time.time() * 1000)
        return measured

    def _embedding_hash(self, step: Step, returned: bytes, local: bool) -> str | None:
        """Of the int8 embedding, whoever made it."""
        if local:
            dim = self._version().encoder.embedding_dim
            returned = (
                step.payload
                if step.codec is Codec.INT8
                else pack_embedding(unpack_embedding(step.payload, step.codec, dim), Codec.INT8)
            )
        return hashlib.sha256(returned).hexdigest()[:16] if returned else None
