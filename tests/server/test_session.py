"""The session: every state against every event, and what each mistake costs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from streamsplit.server.events import (
    Close,
    Code,
    Done,
    DrainRequested,
    Event,
    Failed,
    Fetch,
    Fetched,
    HalfClosed,
    HelloOverdue,
    Keep,
    Kept,
    Process,
    Published,
    Reply,
    WindowJob,
)
from streamsplit.server.session import Session, SessionLimits, State
from streamsplit.wire import messages
from streamsplit.wire.codec import Codec

HELLO = messages.Hello("1.3", "pi", ("v1", "v0"))
OPEN = messages.OpenStream(0, "kitchen", 1_000, 16_000)
WANT = messages.Want(messages.Thing.UPGRADE, "", "v1", 0)
PIECE = messages.Piece(messages.Thing.DIFFERENCE, "", "v1", 0, 6, b"abcdef")
NAMED = messages.NameVersion(2, "v2")
WINDOW = messages.WindowMessage(0, 5, 76_800, 0, 2, Codec.INT4, b"abc", -30.0)


class FakeVersion:
    """Splits 0..4, at most ten bytes."""

    description = messages.EncoderVersion("v1", "compact", "front")

    def problem(self, split: int, codec: Codec, payload_bytes: int) -> str | None:
        return None if 0 <= split <= 4 and payload_bytes <= 10 else "no such payload"


def session(**changes: object) -> Session:
    defaults: dict[str, object] = {
        "identity": None,
        "served": {"v1": FakeVersion()},
        "limits": SessionLimits(4, 1000),
    }
    return Session(**{**defaults, **changes})  # type: ignore[arg-type]


def opened(**changes: object) -> Session:
    made = session(**changes)
    made.receive(HELLO)
    made.receive(OPEN)
    return made


def job_of(made: Session, window: messages.WindowMessage = WINDOW) -> WindowJob:
    (command,) = made.receive(window)
    assert isinstance(command, Process)
    return command.job


def done(job: WindowJob) -> Done:
    return Done(job, b"e", b"o", 0.25, 1, 2, 3, duplicate=False)


def reply(made: Session, event: Event) -> messages.ServerSays:
    (command,) = made.receive(event)
    assert isinstance(command, Reply)
    return command.message


def close(made: Session, event: Event) -> Close:
    (command,) = made.receive(event)
    assert isinstance(command, Close)
    assert made.state is State.CLOSED
    return command


def test_a_hello_is_welcomed_with_what_is_served() -> None:
    welcome = reply(session(), HELLO)
    assert welcome == messages.Welcome(messages.PROTOCOL, (FakeVersion.description,), 4, 1000)


def test_a_window_becomes_a_job_with_everything_the_store_needs() -> None:
    job = job_of(opened(), replace(WINDOW, source="dog.wav", label="dog"))
    assert (job.device, job.stream, job.sequence, job.start_sample) == ("pi", "kitchen", 5, 76_800)
    assert (job.version, job.split, job.codec, job.source, job.label) == (
        "v1",
        2,
        Codec.INT4,
        "dog.wav",
        "dog",
    )


def test_a_mark_holds_until_the_next_one() -> None:
    made = opened()
    job_of(made, replace(WINDOW, source="dog.wav", label="dog"))
    assert job_of(made, replace(WINDOW, sequence=6)).source == "dog.wav"
    assert job_of(made, replace(WINDOW, sequence=7, source="")).source is None


def test_done_is_acknowledged() -> None:
    made = opened()
    assert reply(made, done(job_of(made))) == messages.Acknowledgement(0, 5, b"e", 0.25, 1, 2, 3, False, b"o")
    assert made.in_flight == 0


@pytest.mark.parametrize(("again", "kind"), [(True, messages.Busy), (False, messages.Rejected)])
def test_a_failed_window_is_refused_for_now_or_for_good(again: bool, kind: type) -> None:
    made = opened()
    assert isinstance(reply(made, Failed(job_of(made), "disk", again)), kind)


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (replace(HELLO, protocol="2.0"), Code.INCOMPATIBLE),
        (replace(HELLO, protocol="nonsense"), Code.INCOMPATIBLE),
        (replace(HELLO, device="../../etc"), Code.BAD_MESSAGE),
        (replace(HELLO, device=""), Code.BAD_MESSAGE),
        (replace(HELLO, versions=()), Code.BAD_MESSAGE),
        (replace(HELLO, versions=("v",) * 17), Code.BAD_MESSAGE),
        (OPEN, Code.BAD_MESSAGE),
        (WINDOW, Code.BAD_MESSAGE),
        (HalfClosed(), Code.BAD_MESSAGE),
        (WANT, Code.BAD_MESSAGE),
        (PIECE, Code.BAD_MESSAGE),
        (NAMED, Code.BAD_MESSAGE),
        (HelloOverdue(), Code.OVERDUE),
        (DrainRequested(1000), Code.DRAINING),
    ],
)
def test_a_wrong_beginning_ends_the_call(event: Event, code: Code) -> None:
    assert close(session(), event).code is code


@pytest.mark.parametrize(
    "event",
    [
        HELLO,
        replace(OPEN, index=4096),
        replace(OPEN, stream="a b"),
        replace(OPEN, sample_rate_hz=0),
        replace(WINDOW, stream=9),
        replace(NAMED, index=3),
        replace(NAMED, version="v" * 2000),
    ],
)
def test_a_mistake_about_the_conversation_ends_the_call(event: Event) -> None:
    assert close(opened(), event).code is Code.BAD_MESSAGE


@pytest.mark.parametrize(
    "window",
    [
        replace(WINDOW, split=5),
        replace(WINDOW, payload=b"x" * 11),
        replace(WINDOW, version=2),
        replace(WINDOW, served_version="v1"),
    ],
)
def test_a_mistake_about_one_window_costs_that_window(window: messages.WindowMessage) -> None:
    made = opened()
    assert isinstance(reply(made, window), messages.Rejected)
    assert made.state is State.OPEN
    assert job_of(made, replace(WINDOW, sequence=6))


def test_a_version_that_is_not_served_is_answered_with_those_that_are() -> None:
    gone = reply(opened(), replace(WINDOW, version=1))
    assert gone == messages.VersionGone(0, 5, (FakeVersion.description,))


def test_features_may_be_sent_to_a_version_the_server_named() -> None:
    assert job_of(opened(), replace(WINDOW, split=0, version=99, served_version="v1")).version == "v1"


def test_credentials_must_be_those_of_the_device() -> None:
    assert close(session(identity="other"), HELLO).code is Code.WRONG_IDENTITY
    assert isinstance(reply(session(identity="pi"), HELLO), messages.Welcome)


def test_a_full_server_turns_a_device_away() -> None:
    assert close(session(admit=lambda device: "full"), HELLO).code is Code.TOO_MANY


def test_beyond_its_windows_in_flight_a_device_is_told_busy() -> None:
    made = opened(limits=SessionLimits(2, 1000))
    first = job_of(made)
    job_of(made, replace(WINDOW, sequence=6))
    assert isinstance(reply(made, replace(WINDOW, sequence=7)), messages.Busy)
    made.receive(done(first))
    assert job_of(made, replace(WINDOW, sequence=7))


def test_beyond_its_rate_a_device_is_told_busy() -> None:
    assert isinstance(reply(opened(take=lambda: False), WINDOW), messages.Busy)


def test_draining_finishes_what_is_in_flight_and_takes_no_more() -> None:
    made = opened()
    job = job_of(made)
    assert reply(made, DrainRequested(5000)) == messages.Drain(5000)
    assert isinstance(reply(made, replace(WINDOW, sequence=6)), messages.Busy)
    assert made.receive(HalfClosed()) == []
    acknowledgement, end = made.receive(done(job))
    assert isinstance(acknowledgement, Reply)
    assert end == Close(Code.OK)


def test_a_device_that_leaves_with_nothing_in_flight_is_let_go() -> None:
    assert close(opened(), HalfClosed()).code is Code.OK


EVENTS: tuple[Event, ...] = (
    HELLO,
    OPEN,
    WINDOW,
    WANT,
    NAMED,
    PIECE,
    DrainRequested(1),
    HalfClosed(),
    HelloOverdue(),
)


def test_a_version_named_later_is_as_good_as_one_of_the_hello() -> None:
    made = opened()
    assert isinstance(reply(made, replace(WINDOW, version=2)), messages.Rejected)
    assert made.receive(replace(NAMED, version="v1")) == []
    assert job_of(made, replace(WINDOW, version=2)).version == "v1"


def publishing() -> Session:
    made = session()
    newest = messages.Newest(FakeVersion.description, 4)
    made.newest, made.most_bytes = (lambda: newest), (lambda thing, name: 10)
    return made


def test_a_server_that_publishes_says_what_is_newest_at_once_and_whenever_it_changes() -> None:
    made = publishing()
    newest = messages.Newest(FakeVersion.description, 4)
    assert made.receive(HELLO)[1:] == [Reply(newest)]
    assert made.receive(Published(replace(newest, number=5))) == [Reply(replace(newest, number=5))]


def test_a_want_is_fetched_and_answered_and_only_a_few_may_wait() -> None:
    made = publishing()
    made.receive(HELLO)
    for _ in range(4):
        assert made.receive(WANT) == [Fetch(WANT)]
    assert made.receive(Fetched(PIECE)) == [Reply(PIECE)]
    assert made.receive(WANT) == [Fetch(WANT)]
    assert close(made, WANT).code is Code.BAD_MESSAGE


def test_a_server_that_does_not_learn_has_nothing_and_wants_nothing() -> None:
    made = opened()
    said = reply(made, WANT)
    assert isinstance(said, messages.Piece)
    assert said.total == 0
    taken = reply(made, PIECE)
    assert isinstance(taken, messages.Taken)
    assert taken.problem


def test_what_came_whole_is_kept_and_its_fate_told() -> None:
    made = publishing()
    made.receive(HELLO)
    first, rest = replace(PIECE, data=b"abc"), replace(PIECE, offset=3, data=b"def")
    assert reply(made, first) == messages.Taken(messages.Thing.DIFFERENCE, 3)
    assert made.receive(rest) == [Keep("pi", messages.Thing.DIFFERENCE, "", "v1", b"abcdef")]
    fate = Kept(messages.Thing.DIFFERENCE, 6, "its norm is not finite")
    assert reply(made, fate) == messages.Taken(messages.Thing.DIFFERENCE, 6, "its norm is not finite")


def test_a_device_that_waits_for_no_answer_cannot_pile_up_what_it_sends() -> None:
    made = publishing()
    made.receive(HELLO)
    for _ in range(4):
        assert isinstance(made.receive(PIECE)[0], Keep)
    made.receive(Kept(messages.Thing.DIFFERENCE, 6, ""))
    assert isinstance(made.receive(PIECE)[0], Keep)
    assert close(made, PIECE).code is Code.BAD_MESSAGE


@pytest.mark.parametrize("already", [(), (HELLO, OPEN)], ids=["new", "opened"])
@pytest.mark.parametrize("more", list(itertools.product(EVENTS, repeat=3)))
def test_every_event_is_answered_in_every_state_and_nothing_after_the_close(
    already: tuple[Event, ...], more: tuple[Event, ...]
) -> None:
    made, events = session(), already + more
    jobs: list[WindowJob] = []
    for event in events:
        was = made.state
        commands = made.receive(event)
        jobs += [command.job for command in commands if isinstance(command, Process)]
        if was is State.CLOSED:
            assert commands == []
        else:
            assert made.in_flight == len(jobs)
    closed = made.state is State.CLOSED
    answers = [command for job in jobs for command in made.receive(done(job))]
    if closed:
        assert answers == []
        return
    assert made.in_flight == 0
    assert sum(isinstance(answer, Reply) for answer in answers) == len(jobs)
    if HalfClosed() in events:
        assert answers[-1] == Close(Code.OK)
    elif made.state is not State.GREETING:
        assert close(made, HalfClosed()).code is Code.OK
