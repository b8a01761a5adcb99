"""Two heads of one window, and who would have thought that they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplit.learning.head_teacher import CHANGE, HeadTeacher
from streamsplit.learning.label_head import LabelTeacher
from streamsplit.learning.uncertainty import DisagreementHead

DIM, CLASSES = 16, ("bark", "horn", "rain")
Rows = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def heard(count: int, seed: int = 0) -> tuple[Rows, Rows, list[str]]:
    """Own and dense embeddings and labels. Where the last coordinate is above 0, the device cannot tell bark from horn."""
    generator = np.random.default_rng(seed)
    places = generator.integers(0, 3, count)
    dense = np.eye(DIM)[places] + 0.1 * generator.standard_normal((count, DIM))
    blurred = (generator.random(count) < 0.5) & (places < 2)
    own = dense.copy()
    own[blurred, :2] = generator.permuted(own[blurred, :2], axis=1)
    own[:, -1] = np.where(blurred, 0.5, -0.5)
    for rows in (own, dense):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return own.astype(np.float32), dense.astype(np.float32), [CLASSES[place] for place in places]


def taught(count: int = 2000, labelled: int = 2000) -> HeadTeacher:
    teacher = HeadTeacher.of(DIM)
    own, dense, labels = heard(count)
    for begin in range(0, count, 50):
        part = slice(begin, begin + 50)
        told = [label if begin < labelled else None for label in labels[part]]
        teacher.learn(own[part], dense[part], told)
    return teacher


@pytest.mark.parametrize("labelled", [2000, 200])
def test_it_tells_where_the_dense_tail_says_another_class(labelled: int) -> None:
    teacher = taught(labelled=labelled)
    head, other = teacher.head(), teacher.dense.head()
    assert head is not None
    assert other is not None
    own, dense, labels = heard(1000, seed=1)
    judged = head.judge(own)
    changed = np.array(head.verdicts(judged)) != other.verdicts(other.judge(dense))
    assert 0.05 < changed.mean() < 0.4
    assert judged.change is not None
    assert judged.change[changed].mean() > judged.change[~changed].mean() + 0.2
    most = np.argsort(-judged.change)[:200]
    right = np.array(head.verdicts(judged)) == labels
    beyond = np.array(other.verdicts(other.judge(dense))) == labels
    gain = beyond.astype(float) - right
    assert gain[most].sum() > 0.5 * gain.sum() > 0


def test_windows_of_one_tail_alone_make_a_head_without_a_change() -> None:
    teacher = HeadTeacher.of(DIM)
    own, _, labels = heard(1000)
    teacher.learn(own, None, labels)
    head = teacher.head()
    assert head is not None
    assert head.change is None
    assert teacher.learned == 1000


def test_without_labels_there_is_nothing_to_compare() -> None:
    teacher = HeadTeacher.of(DIM)
    own, dense, _ = heard(1000)
    teacher.learn(own, dense, [None] * 1000)
    assert teacher.head() is None
    assert teacher.learned == 0


def test_a_few_verdicts_are_not_believed() -> None:
    few = taught(CHANGE.fewest // 2)
    head = few.head()
    assert head is not None
    assert head.change is None


def test_its_parts_make_it_again(tmp_path: Path) -> None:
    teacher = taught(1000)
    for name, part in teacher.parts().items():
        (tmp_path / name).write_bytes(part.save())
    again = HeadTeacher(
        LabelTeacher.restore(tmp_path / "own"),
        LabelTeacher.restore(tmp_path / "dense"),
        DisagreementHead.restore(tmp_path / "change"),
    )
    assert again.learned == teacher.learned
    one, other = teacher.head(), again.head()
    assert one is not None
    assert other is not None
    assert one.pack() == other.pack()
