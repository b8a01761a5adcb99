"""What one connection to the server has agreed on: indices for versions and streams, and what need not be said again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamsplit.audio.window import Mark
from streamsplit.client.spool import SpooledStream
from streamsplit.client.step import Step
from streamsplit.errors import LinkError
from streamsplit.wire import messages

Call = Any  # grpc.aio.StreamStreamCall: generated stubs have no types

MAX_STREAMS = 4096
"""The protocol's limit per connection."""


class Connection:
    """One call to the server, from its welcome on.

    Args:
        call: the gRPC stream.
        versions: encoder versions named in our Hello, by index.
        welcome: what the server answered.
    """

    def __init__(self, call: Call, versions: tuple[str, ...], welcome: messages.Welcome) -> None:
        self.call = call
        self.versions = versions
        self.welcome = welcome
        self._streams: dict[str, int] = {}
        self._names: list[str] = []
        self._marks: dict[str, Mark | None] = {}

    def opening(self, step: Step, stream: Callable[[str], SpooledStream]) -> messages.OpenStream | None:
        """What must be said before a step's window: its stream's name, the first time.

        Raises:
            LinkError: this connection has as many streams as the protocol allows; a new one begins anew.
        """
        if step.stream in self._streams:
            return None
        if len(self._names) == MAX_STREAMS:
            raise LinkError(f"{MAX_STREAMS} streams on one connection: beginning a new one")
        index = self._streams[step.stream] = len(self._names)
        self._names.append(step.stream)
        about = stream(step.stream)
        return messages.OpenStream(index, step.stream, about.started_unix_ms, about.sample_rate_hz)

    def key(self, stream: int, sequence: int) -> tuple[str, int]:
        """The window that the server means."""
        return (self._names[stream] if stream < len(self._names) else "", sequence)

    def window_message(self, step: Step) -> messages.WindowMessage:
        """The step as a message; its mark only where it changed."""
        source = label = None
        if self._marks.get(step.stream) != step.mark:
            self._marks[step.stream] = step.mark
            source, label = (step.mark.source, step.mark.label) if step.mark else ("", None)
        known = step.version in self.versions
        return messages.WindowMessage(
            self._streams[step.stream],
            step.sequence,
            step.start_sample,
            self.versions.index(step.version) if known else 0,
            step.split,
            step.codec,
            step.payload,
            step.level_dbfs,
            source,
            label,
            "" if known else step.version,
        )
