"""What a device knows of its windows: nothing that it was taught by those very windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from streamsplit.client.signals import HeardWindow, Insight
from streamsplit.learning.label_head import LabelTeacher
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.uncertainty import DisagreementHead

DIM = 128
Rows = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def rows(count: int, seed: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    made = generator.standard_normal((count, DIM)).astype(np.float32)
    made[np.arange(count), np.arange(count) % 2] += 20.0
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def heard(these: Rows, truth: float | None = None) -> list[HeardWindow]:
    return [HeardWindow(sequence, row, truth) for sequence, row in enumerate(these)]


def labels() -> LabelTeacher:
    teacher = LabelTeacher(DIM)
    teacher.learn(rows(100, seed=1), ["rain", "bark"] * 50)
    return teacher


def memory() -> DistributionMemory:
    made = DistributionMemory(MemorySettings(dim=DIM))
    made.update(torch.from_numpy(rows(64, seed=2)))
    return made


def test_at_first_nothing_is_known() -> None:
    signals = Insight(DisagreementHead(DIM)).of(
        heard(rows(4)), rows(4), DistributionMemory(MemorySettings(dim=DIM))
    )
    assert signals.sequences == [0, 1, 2, 3]
    assert (signals.disagreement, signals.posterior_entropy, signals.novelty) == (None, None, None)
    assert (signals.head_entropy, signals.head_margin, signals.class_entropy) == (None, None, None)
    assert signals.head_change is None


def test_a_head_speaks_of_every_window() -> None:
    insight, head = Insight(DisagreementHead(DIM)), labels().head()
    assert head is not None
    insight.take_labels(head, 64)
    signals = insight.of(heard(rows(4)), rows(4), memory())
    expected = head.judge(rows(4))
    assert signals.head_entropy == pytest.approx(expected.entropy, abs=1e-5)
    assert signals.head_margin == pytest.approx(expected.margin, abs=1e-5)


def test_a_head_that_knows_what_the_dense_tail_changes_says_so() -> None:
    insight, head = Insight(DisagreementHead(DIM)), labels().head()
    assert head is not None
    insight.take_labels(head, 64)
    assert insight.of(heard(rows(4)), rows(4), memory()).head_change is None, "an older server's head"
    weights = np.zeros(DIM + 3, np.float32)
    weights[0], weights[-1] = 0.5, 0.25
    insight.take_labels(replace(head, change=weights), 64)
    told = insight.of(heard(rows(4)), rows(4), memory()).head_change
    assert told == pytest.approx([0.5 * float(row[0]) + 0.25 for row in rows(4)], abs=1e-4)


def test_components_come_to_stand_for_what_the_head_said() -> None:
    insight, head, stored = Insight(DisagreementHead(DIM)), labels().head(), memory()
    assert head is not None
    insight.take_labels(head, 64)
    first = insight.of(heard(rows(10)), rows(10), stored).class_entropy
    for seed in range(20):
        batch = rows(10, seed=10 + seed)
        last = insight.of(heard(batch), batch, stored).class_entropy
    assert first is not None
    assert last is not None
    np.testing.assert_allclose(first, 1.0, atol=1e-4)
    assert np.mean(last) < 0.9


def test_a_head_of_the_same_classes_leaves_what_components_stand_for() -> None:
    insight, head, stored = Insight(DisagreementHead(DIM)), labels().head(), memory()
    assert head is not None
    insight.take_labels(head, 64)
    for seed in range(20):
        batch = rows(10, seed=10 + seed)
        insight.of(heard(batch), batch, stored)
    insight.take_labels(head, 64)
    again = insight.of(heard(rows(10)), rows(10), stored).class_entropy
    assert again is not None
    assert np.mean(again) < 0.9


def test_a_head_dies_with_its_version_and_the_predictor_goes_on() -> None:
    insight, head, stored = Insight(DisagreementHead(DIM)), labels().head(), memory()
    assert head is not None
    insight.take_labels(head, 64)
    batch = rows(64)
    insight.of(heard(batch, truth=0.3), batch, stored)
    insight.changed_version()
    signals = insight.of(heard(rows(4)), rows(4), stored)
    assert (signals.head_entropy, signals.head_margin, signals.class_entropy) == (None, None, None)
    assert signals.disagreement is not None
    np.testing.assert_allclose(signals.disagreement, 0.3, atol=0.05)
