"""A decider that learns is taught what came of its choices, choice by choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from streamsplit.audio.window import Samples
from streamsplit.client.journal import read
from streamsplit.client.lessons import MOST_OPEN, Lessons
from streamsplit.client.step import Step
from streamsplit.encoders.version import Version
from streamsplit.policy.decide import Choice
from streamsplit.policy.observation import Observation, Option
from streamsplit.policy.pilot import Pilot
from streamsplit.policy.profile import Profile, profile_for
from streamsplit.policy.quality import flat
from streamsplit.wire.codec import Codec
from tests.client.devices import Played, blocks, client
from tests.conftest import Serve

OPTIONS = [Option(3, "int4", 200.0), Option(4, "int8", 130.0)]
SEEN = Observation(cpu_percent=10.0, memory_percent=20.0, level_dbfs=-30.0, server_available=True)


class Pupil:
    """Chooses in turn; remembers what it was taught."""

    name = "pupil"

    def __init__(self) -> None:
        self.taught: list[tuple[int, float]] = []
        self.asked = 0

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        self.asked += 1
        option = options[self.asked % 2]
        return Choice(option.split, option.codec, f"decision {self.asked}")

    def learn(self, choice: Choice, observation: Observation, reward: float) -> None:
        self.taught.append((choice.split, reward))


@pytest.fixture(scope="module")
def profile(compact: Version) -> Profile:
    return profile_for(compact, repeats=3)


def step(sequence: int, split: int) -> Step:
    return Step("s", sequence, 0, split, Codec.INT4, "v", bytes(200))


def drive(lessons: Lessons, pilot: Pilot, windows: int, latency_ms: float | None = 50.0) -> None:
    for sequence in range(windows):
        choice = pilot.choose(SEEN, OPTIONS)
        lessons.decided(("s", sequence), choice, SEEN)
        if latency_ms is not None:
            lessons.done(step(sequence, choice.split), latency_ms, 0.1)


def test_every_finished_choice_is_taught_once(profile: Profile) -> None:
    pupil = Pupil()
    pilot = Pilot(pupil, every=5)
    drive(Lessons(pilot, profile, flat(0.8, "a test")), pilot, 21)
    assert [split for split, _ in pupil.taught] == [4, 3, 4, 3]


def test_a_late_window_is_worth_less(profile: Profile) -> None:
    rewards = []
    for latency_ms in (10.0, 900.0):
        pupil = Pupil()
        pilot = Pilot(pupil, every=5)
        drive(Lessons(pilot, profile, flat(0.8, "a test")), pilot, 6, latency_ms)
        rewards.append(pupil.taught[0][1])
    assert rewards[0] - rewards[1] == pytest.approx(5.0 * 890 / (1e3 * profile.window_s), abs=1e-6)


def test_windows_without_an_answer_teach_nothing_and_are_forgotten(profile: Profile) -> None:
    pupil = Pupil()
    pilot = Pilot(pupil, every=1)
    lessons = Lessons(pilot, profile, flat(0.8, "a test"))
    drive(lessons, pilot, 5 * MOST_OPEN, None)
    assert pupil.taught == []
    assert len(lessons._lessons) <= MOST_OPEN
    assert len(lessons._of) <= MOST_OPEN


async def test_linucb_learns_on_a_device_from_a_real_server(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 45))
    async with (
        serve() as server,
        client(
            tmp_path / "c", compact, source, f"127.0.0.1:{server.port}", decider="linucb", patience_s=60.0
        ) as made,
    ):
        await made.run()
    reasons = [
        r["decision"]["reason"] for r in read(tmp_path / "c" / "journal.jsonl") if r["kind"] == "window"
    ]
    assert "after 0 lessons" in reasons[0]
    assert "after 0 lessons" not in reasons[-1]


async def test_the_shipped_policy_decides_on_a_device(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    async with (
        serve() as server,
        client(
            tmp_path / "c", compact, Played(blocks(sound, 12)), f"127.0.0.1:{server.port}", decider="learned"
        ) as made,
    ):
        await made.run()
    records = [r for r in read(tmp_path / "c" / "journal.jsonl") if r["kind"] == "window"]
    assert len(records) == 12
    assert {"lag_s", "since_send_s"} <= set(records[-1]["decision"]["observation"])
    assert records[-1]["decision"]["observation"]["lag_s"] is not None
