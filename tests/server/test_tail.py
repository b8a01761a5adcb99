"""The tail: batches by group, tells every owner, outlives bad payloads, lost versions and full disks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from streamsplit.errors import StorageError
from streamsplit.server.commit import Committed
from streamsplit.server.events import Done, Failed, WindowJob
from streamsplit.server.store import EmbeddingStore, StoredWindow
from streamsplit.server.tail import Tail
from streamsplit.server.versions import Embedded
from streamsplit.wire.codec import Codec

UNIT = np.eye(8, dtype=np.float32)[0]


def job(sequence: int, version: str = "v1", split: int = 3, payload: bytes = b"ok") -> WindowJob:
    return WindowJob(
        "pi", "s", 0, sequence, 0, 16_000, 0, version, split, Codec.INT4, payload, -30.0, None, None
    )


@dataclass
class FakeVersion:
    """Embeds everything as the same unit vector, its own embedding as the next one's if it has two paths; `b"bad"` does not decode; takes
    `window_s` each."""

    window_s: float = 0.0
    last_split: int = 4
    paths: int = 1
    batches: list[tuple[int, int]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def embed(self, split: int, codec: Codec, payloads: Sequence[bytes]) -> Embedded:
        self.gate.wait(10)
        time.sleep(self.window_s * len(payloads))
        self.batches.append((split, len(payloads)))
        problems = {index: "it is bad" for index, payload in enumerate(payloads) if payload == b"bad"}
        rows = np.stack([UNIT] * len(payloads))
        if self.paths == 1:
            return Embedded(rows, rows, None, problems, [b""] * len(payloads), [b""] * len(payloads))
        own = np.roll(rows, 1, axis=1)
        packed = [b"dense"] * len(payloads), [b"own"] * len(payloads)
        return Embedded(rows, own, np.ones(len(rows), np.float32), problems, *packed)


class Told:
    """Collects outcomes, and waits for so many."""

    def __init__(self) -> None:
        self.outcomes: list[Done | Failed] = []
        self.crashes: list[Exception] = []

    def deliver(self, outcomes: Sequence[tuple[object, Done | Failed]]) -> None:
        self.outcomes += [outcome for _, outcome in outcomes]


def run(
    version: FakeVersion,
    jobs: Sequence[WindowJob],
    open_store: Callable[[], EmbeddingStore],
    max_batch: int = 32,
) -> tuple[Told, Tail]:
    told = Told()
    tail = Tail({"v1": version}, open_store, told.deliver, told.crashes.append, max_batch)  # type: ignore[dict-item]
    tail.start()
    for each in jobs:
        tail.submit(each, "owner")
    version.gate.set()
    tail.stop()
    return told, tail


@pytest.fixture
def store(tmp_path: Path) -> Callable[[], EmbeddingStore]:
    return lambda: EmbeddingStore(tmp_path / "store.db")


def test_what_waits_is_batched_by_split_and_everything_is_told(store: Callable[[], EmbeddingStore]) -> None:
    version = FakeVersion()
    jobs = [job(number, split=3 if number % 2 else 2) for number in range(40)]
    told, tail = run(version, jobs, store)
    assert sorted(outcome.job.sequence for outcome in told.outcomes) == list(range(40))
    assert all(isinstance(outcome, Done) for outcome in told.outcomes)
    assert len(version.batches) < 12
    assert tail.waiting == 0


def test_a_slow_encoder_gets_small_batches(store: Callable[[], EmbeddingStore]) -> None:
    version = FakeVersion(window_s=0.06)
    run(version, [job(number) for number in range(8)], store)
    assert max(size for _, size in version.batches[1:]) == 1


def test_a_bad_payload_costs_only_itself(store: Callable[[], EmbeddingStore]) -> None:
    told, _ = run(FakeVersion(), [job(0), job(1, payload=b"bad"), job(2)], store)
    failed = [outcome for outcome in told.outcomes if isinstance(outcome, Failed)]
    assert [(each.job.sequence, each.reason, each.again) for each in failed] == [(1, "it is bad", False)]


def test_a_version_withdrawn_meanwhile_is_tried_again(store: Callable[[], EmbeddingStore]) -> None:
    told, _ = run(FakeVersion(), [job(0, version="gone")], store)
    (outcome,) = told.outcomes
    assert isinstance(outcome, Failed)
    assert outcome.again


def test_a_store_that_fails_for_a_while_refuses_and_then_goes_on(tmp_path: Path) -> None:
    class Flaky(EmbeddingStore):
        failures = 1

        def insert(self, rows: Sequence[StoredWindow]) -> list[bool]:
            if Flaky.failures:
                Flaky.failures -= 1
                raise StorageError("the disk is full")
            return super().insert(rows)

    told, _ = run(FakeVersion(), [job(0), job(1)], lambda: Flaky(tmp_path / "store.db"), max_batch=1)
    by_sequence = {outcome.job.sequence: outcome for outcome in told.outcomes}
    assert isinstance(by_sequence[0], Failed)
    assert by_sequence[0].again
    assert isinstance(by_sequence[1], Done)


def test_a_bug_in_compute_is_reported_rather_than_hung_on(store: Callable[[], EmbeddingStore]) -> None:
    class Broken(FakeVersion):
        def embed(self, split: int, codec: Codec, payloads: Sequence[bytes]) -> Embedded:
            raise KeyError("a bug")

    told = Told()
    tail = Tail({"v1": Broken()}, store, told.deliver, told.crashes.append)  # type: ignore[dict-item]
    tail.start()
    tail.submit(job(0), "owner")
    deadline_s = time.monotonic() + 10
    while not told.crashes and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert [type(error) for error in told.crashes] == [KeyError]
    tail.stop()


def test_what_is_stored_for_the_first_time_is_handed_on_after_its_owner_was_told(
    store: Callable[[], EmbeddingStore],
) -> None:
    told, handed = Told(), list[tuple[int, int]]()
    version = FakeVersion()
    tail = Tail(
        {"v1": version},  # type: ignore[dict-item]
        store,
        told.deliver,
        told.crashes.append,
        committed=lambda windows: handed.extend((each.job.sequence, len(told.outcomes)) for each in windows),
    )
    tail.start()
    version.gate.set()
    for each in [job(1), job(2, payload=b"bad"), job(1), job(3)]:
        tail.submit(each, "owner")
    tail.stop()
    assert sorted(sequence for sequence, _ in handed) == [1, 3]
    assert all(answers > 0 for _, answers in handed)
    assert not told.crashes


@pytest.mark.parametrize("paths", [1, 2])
def test_what_is_handed_on_has_the_dense_tails_embedding_where_there_is_another(
    store: Callable[[], EmbeddingStore], paths: int
) -> None:
    told, handed, version = Told(), list[Committed](), FakeVersion(paths=paths)
    tail = Tail({"v1": version}, store, told.deliver, told.crashes.append, committed=handed.extend)  # type: ignore[dict-item]
    tail.start()
    version.gate.set()
    tail.submit(job(1), "owner")
    tail.stop()
    (one,) = handed
    if paths == 1:
        assert one.dense is None
        np.testing.assert_array_equal(one.own, UNIT)
    else:
        assert one.dense is not None
        np.testing.assert_array_equal(one.dense, UNIT)
        np.testing.assert_array_equal(one.own, np.roll(UNIT, 1))
