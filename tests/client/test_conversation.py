"""One conversation against a connection that writes down what it is given."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streamsplit.client.conversation import Answer, Conversation, Desk
from streamsplit.client.link_estimator import LinkEstimator
from streamsplit.client.spool import Spool
from streamsplit.client.step import Step
from streamsplit.config import ClientSettings
from streamsplit.encoders.version import Version
from streamsplit.wire import messages
from streamsplit.wire.codec import Codec


class Paper:
    """A connection: what is written can be read here, what is said can be put here."""

    def __init__(self, version: Version) -> None:
        served = messages.EncoderVersion(version.id, version.name, version.front_end.fingerprint)
        self.welcome = messages.Welcome(messages.PROTOCOL, (served,), 4, 1 << 20)
        self.written: list[Any] = []
        self.said: asyncio.Queue[messages.ServerSays | None] = asyncio.Queue()

    def introductions(self, step: Step, stream: object) -> list[Any]:
        return []

    def window_message(self, step: Step) -> Any:
        return step

    def key(self, stream: int, sequence: int) -> tuple[str, int]:
        return "s", sequence

    async def write(self, message: Any) -> None:
        self.written.append(message)

    async def read(self) -> messages.ServerSays | None:
        return await self.said.get()

    async def done_writing(self) -> None:
        return None

    def sequences(self) -> list[int]:
        return [step.sequence for step in self.written]


@pytest.fixture
def spool(tmp_path: Path) -> Any:
    with Spool(tmp_path / "spool.db", 5_000) as made:
        made.open_stream("s", 0, 16_000)
        yield made


def conversation(
    spool: Spool, version: Version, paper: Paper, hold_windows: int = 0
) -> tuple[Conversation, list[Answer]]:
    answers: list[Answer] = []
    settings = ClientSettings(device="pi", server="127.0.0.1:1", hold_windows=hold_windows)
    desk = Desk(settings, version, spool, LinkEstimator(), answers.append, time.monotonic, random.Random(0))
    return Conversation(desk, paper), answers  # type: ignore[arg-type]


def step_of(version: Version, sequence: int, of: str = "") -> Step:
    return Step(
        stream="s",
        sequence=sequence,
        start_sample=sequence * 15_360,
        split=2,
        codec=Codec.INT4,
        version=of or version.id,
        payload=bytes(100),
        features=b"",
        front_end="f",
        mark=None,
        level_dbfs=-30.0,
        captured_s=0.0,
        device_ms={},
    )


def acknowledged(sequence: int) -> messages.Acknowledgement:
    return messages.Acknowledgement(0, sequence, b"", None, 1, 1, 1, False)


async def keep(talk: Conversation, spool: Spool, step: Step) -> bool:
    """As the daemon does with a window it has made; whether it was sent at once."""
    local = step.split == talk._desk.version.encoder.last_split
    async with talk.at_once(step) as sent:
        spool.put(step)
    if not sent:
        talk.wake(urgent=not local)
    return sent


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_window_the_disk_did_not_keep_hides_no_other(spool: Spool, compact: Version) -> None:
    paper = Paper(compact)
    talk, _ = conversation(spool, compact, paper)
    running = asyncio.create_task(talk.run())
    await settled()
    async with talk.at_once(step_of(compact, 0)) as sent:
        assert sent  # and the disk is full
    async with talk.at_once(step_of(compact, 1)) as sent:
        assert not sent
        spool.put(step_of(compact, 1))
    talk.wake()
    await settled()
    assert paper.sequences() == [0, 1]
    running.cancel()


async def test_what_waits_for_company_does_not_hold_up_what_is_waited_for(
    spool: Spool, compact: Version
) -> None:
    paper = Paper(compact)
    talk, answers = conversation(spool, compact, paper, hold_windows=9)
    running = asyncio.create_task(talk.run())
    await settled()
    last = compact.encoder.last_split
    for sequence in range(6):
        assert not await keep(talk, spool, replace(step_of(compact, sequence), split=last))
    await settled()
    assert paper.sequences() == []
    assert await keep(talk, spool, step_of(compact, 6))
    await settled()
    assert paper.sequences() == [6]
    paper.said.put_nowait(acknowledged(6))
    await settled()
    assert paper.sequences() == [6, 0], "one at a time, so soon after a window that was waited for"
    assert not await keep(talk, spool, step_of(compact, 7)), "the line is busy"
    await settled()
    assert paper.sequences() == [6, 0, 7]
    paper.said.put_nowait(acknowledged(0))
    await settled()
    assert paper.sequences() == [6, 0, 7], "none beside one that is waited for"
    for sequence in (7, 1, 2, 3, 4, 5):
        paper.said.put_nowait(acknowledged(sequence))
        await settled()
    assert paper.sequences() == [6, 0, 7, 1, 2, 3, 4, 5]
    assert (spool.windows, len(answers)) == (0, 8)
    running.cancel()


async def test_where_nothing_is_waited_for_embeddings_leave_several_at_a_time(
    spool: Spool, compact: Version
) -> None:
    paper = Paper(compact)
    talk, answers = conversation(spool, compact, paper, hold_windows=5)
    running = asyncio.create_task(talk.run())
    await settled()
    last = compact.encoder.last_split
    for sequence in range(6):
        await keep(talk, spool, replace(step_of(compact, sequence), split=last))
    await settled()
    assert paper.sequences() == [0, 1, 2, 3]
    for sequence in range(6):
        paper.said.put_nowait(acknowledged(sequence))
        await settled()
    assert paper.sequences() == list(range(6))
    assert (spool.windows, len(answers)) == (0, 6)
    running.cancel()


async def test_what_overtook_others_is_sent_again_if_it_must_be_and_only_then(
    spool: Spool, compact: Version
) -> None:
    paper = Paper(compact)
    talk, answers = conversation(spool, compact, paper, hold_windows=9)
    running = asyncio.create_task(talk.run())
    await settled()
    last = compact.encoder.last_split
    for sequence in range(2):
        await keep(talk, spool, replace(step_of(compact, sequence), split=last))
    await keep(talk, spool, step_of(compact, 2))
    talk.wake()
    await settled()
    assert paper.sequences() == [2]
    paper.said.put_nowait(messages.Busy(0, 0, 2))
    await settled()
    assert paper.sequences() == [2, 2]
    for sequence in (2, 0, 1):
        paper.said.put_nowait(acknowledged(sequence))
        await settled()
    assert paper.sequences() == [2, 2, 0, 1]
    assert (spool.windows, len(answers)) == (0, 3)
    running.cancel()


async def test_windows_that_nobody_can_finish_and_that_were_dropped_hide_no_other(
    spool: Spool, compact: Version
) -> None:
    paper = Paper(compact)
    for sequence in range(3):
        spool.put(step_of(compact, sequence, "long-gone"))
    talk, _ = conversation(spool, compact, paper)
    running = asyncio.create_task(talk.run())
    await settled()
    for sequence in range(3):
        paper.said.put_nowait(messages.VersionGone(0, sequence, ()))
    await settled()
    assert talk.in_flight == 0
    dropped = []
    sequence = 3
    while len(dropped) < 3:
        dropped += spool.put(step_of(compact, sequence))
        sequence += 1
    spool.acknowledge([("s", number) for number in range(3, sequence - 2)])
    async with talk.at_once(step_of(compact, sequence)) as sent:
        assert not sent, "two windows wait before it"
        spool.put(step_of(compact, sequence))
    talk.wake()
    await settled()
    assert paper.sequences()[3:] == [sequence - 2, sequence - 1, sequence]
    running.cancel()
