"""What labels teach: a head in closed form, what it is unsure of, and what must not get into a device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as to_bytes
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from streamsplit.errors import ConfigError, PayloadError, StorageError
from streamsplit.learning import label_head
from streamsplit.learning.label_head import (
    FEWEST,
    SHRINKAGE,
    ComponentClasses,
    LabelHead,
    LabelTeacher,
    entropy,
    most_bytes,
)

DIM, CLASSES = 16, ("bark", "horn", "rain")
Rows = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def labelled(windows: int = 600, spread: float = 0.25, seed: int = 0) -> tuple[Rows, list[str]]:
    """Points around one direction per class, brought to unit norm."""
    generator = np.random.default_rng(seed)
    places = generator.integers(0, len(CLASSES), windows)
    rows = np.eye(DIM)[places] + spread * generator.standard_normal((windows, DIM))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), [CLASSES[place] for place in places]


def taught(windows: int = 600, **how: float) -> LabelHead:
    teacher = LabelTeacher(DIM)
    rows, labels = labelled(windows, **how)  # type: ignore[arg-type]
    for start in range(0, windows, 7):
        teacher.learn(rows[start : start + 7], labels[start : start + 7])
    head = teacher.head()
    assert head is not None
    return head


def test_it_is_discriminant_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_head, "HORIZON_WINDOWS", 10**12)
    head = taught(spread=0.5)
    rows, labels = labelled(spread=0.5)
    within = np.zeros((DIM, DIM))
    for name in CLASSES:
        own = rows[np.array(labels) == name]
        within += (own - own.mean(0)).T @ (own - own.mean(0)) / len(rows)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(rows, labels)
    fresh, _ = labelled(200, spread=0.5, seed=1)
    order = [head.classes.index(name) for name in reference.classes_]
    # scikit-learn shrinks each class' covariance towards its own sphere; with equal spheres that is the same.
    np.testing.assert_allclose(
        head.judge(fresh).probabilities[:, order], reference.predict_proba(fresh), atol=0.02
    )


def test_it_knows_fresh_windows_and_is_least_sure_where_it_is_wrong() -> None:
    head = taught(spread=0.6)
    rows, labels = labelled(1000, spread=0.6, seed=1)
    judged = head.judge(rows)
    right = np.array([head.classes[place] for place in judged.probabilities.argmax(1)]) == labels
    assert 0.7 < right.mean() < 1.0
    assert judged.entropy[right].mean() < judged.entropy[~right].mean()
    assert judged.margin[right].mean() > judged.margin[~right].mean()
    for signal in (judged.entropy, judged.margin):
        assert ((signal >= 0) & (signal <= 1)).all()


def test_entropy_is_0_where_it_is_sure_and_1_where_it_knows_nothing() -> None:
    np.testing.assert_allclose(entropy([[1.0, 0.0, 0.0], [1 / 3] * 3]), [0.0, 1.0], atol=1e-9)


def test_there_is_no_head_before_two_classes_are_known() -> None:
    teacher = LabelTeacher(DIM)
    rows, _ = labelled(FEWEST + 1)
    teacher.learn(rows, ["rain"] * (FEWEST + 1))
    assert teacher.head() is None
    teacher.learn(rows[: FEWEST - 1], ["horn"] * (FEWEST - 1))
    assert teacher.head() is None
    teacher.learn(rows[:2], ["horn"] * 2)
    head = teacher.head()
    assert head is not None
    assert head.classes == ("rain", "horn")


def test_labels_without_end_cost_neither_memory_nor_what_is_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_head, "MOST_TAUGHT", 10)
    teacher = LabelTeacher(DIM)
    rows, labels = labelled(300)
    teacher.learn(rows, labels)
    teacher.learn(rows, [f"{place}" for place in range(300)])
    assert teacher._sums.shape == (10, DIM)
    head = teacher.head()
    assert head is not None
    assert set(head.classes) == set(CLASSES)


def test_a_head_has_room_for_the_most_frequent_classes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_head, "MOST_CLASSES", 2)
    teacher = LabelTeacher(DIM)
    rows, _ = labelled(100)
    teacher.learn(rows, ["rain"] * 50 + ["horn"] * 20 + ["bark"] * 30)
    head = teacher.head()
    assert head is not None
    assert head.classes == ("rain", "bark")


@pytest.mark.parametrize("shape", [(3, DIM), (2, DIM + 1)])
def test_what_does_not_fit_teaches_nothing(shape: tuple[int, int]) -> None:
    teacher = LabelTeacher(DIM)
    with pytest.raises(ValueError, match="expected 2 finite rows of 16"):
        teacher.learn(np.zeros(shape), ["rain", "horn"])
    with pytest.raises(ValueError, match="finite"):
        teacher.learn(np.full((2, DIM), np.nan), ["rain", "horn"])
    assert teacher.learned == 0


def test_a_teacher_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    rows, labels = labelled(200)
    teacher = LabelTeacher(DIM)
    teacher.learn(rows[:100], labels[:100])
    path = tmp_path / "v.labels"
    path.write_bytes(teacher.save())
    again = LabelTeacher.restore(path)
    for one in (teacher, again):
        one.learn(rows[100:], labels[100:])
    assert again.save() == teacher.save()


def test_a_damaged_teacher_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v.labels"
    path.write_bytes(b"nonsense")
    with pytest.raises(StorageError, match=r"v\.labels: not a readable label teacher"):
        LabelTeacher.restore(path)
    path.write_bytes(to_bytes({"a": np.zeros(1)}))
    with pytest.raises(ConfigError, match="expected a label teacher"):
        LabelTeacher.restore(path)


def test_a_head_travels_whole() -> None:
    head = taught()
    packed = head.pack()
    assert len(packed) <= most_bytes(DIM)
    again = LabelHead.unpack(packed, DIM)
    assert again.classes == head.classes
    np.testing.assert_array_equal(again.weights, head.weights)
    np.testing.assert_array_equal(again.bias, head.bias)
    assert again.change is None
    change = np.linspace(-1, 1, DIM + 3, dtype=np.float32)
    whole = LabelHead.unpack(replace(head, change=change).pack(), DIM)
    assert whole.change is not None
    np.testing.assert_array_equal(whole.change, change)


def test_a_change_is_a_line_through_embedding_margin_and_entropy_within_0_and_1() -> None:
    rows, _ = labelled(50)
    head = taught()
    weights = np.zeros(DIM + 3, np.float32)
    weights[DIM], weights[DIM + 1], weights[DIM + 2] = -1.5, 0.5, 1.0
    judged = replace(head, change=weights).judge(rows)
    assert judged.change is not None
    line = 1.0 - 1.5 * judged.margin + 0.5 * judged.entropy
    np.testing.assert_allclose(judged.change, np.clip(line, 0, 1), atol=1e-6)
    assert judged.change.min() == 0.0


def test_the_largest_head_is_not_larger_than_announced() -> None:
    names = tuple(f"{place:03d}" + "\N{SNOWMAN}" * 253 for place in range(label_head.MOST_CLASSES))
    weights = np.zeros((len(names), 128), np.float32)
    head = LabelHead(names, weights, np.zeros(len(names), np.float32), np.zeros(131, np.float32))
    assert len(head.pack()) <= most_bytes(128)


def damaged(**instead: object) -> bytes:
    said = {"format_version": 1, "classes": ["a", "b"]} | {
        name: value for name, value in instead.items() if name in ("format_version", "classes")
    }
    tensors = {"weights": np.zeros((2, DIM), np.float32), "bias": np.zeros(2, np.float32)} | {
        name: value for name, value in instead.items() if name in ("weights", "bias", "change")
    }
    told = json.dumps(said).encode()
    return to_bytes(tensors | {"settings": np.frombuffer(told, np.uint8)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected safetensors"),
        (b"\xff" * 100, "expected safetensors"),
        (to_bytes({"weights": np.zeros(2)}), "damaged"),
        (damaged(format_version=2), "expected format 1, got 2"),
        (damaged(classes=["a"]), "2 to 64 names"),
        (damaged(classes=["a", 3]), "2 to 64 names"),
        (damaged(classes=["a", "b" * 257]), "at most 256 characters"),
        (damaged(weights=np.zeros((2, DIM + 1), np.float32)), "weights: expected finite float32"),
        (damaged(weights=np.zeros((2, DIM))), "weights: expected finite float32"),
        (damaged(weights=np.full((2, DIM), np.inf, np.float32)), "weights: expected finite"),
        (damaged(bias=np.full(2, np.nan, np.float32)), "bias: expected finite"),
        (damaged(change=np.zeros(DIM, np.float32)), r"change: expected finite float32 \(19,\)"),
        (damaged(change=np.full(DIM + 3, np.nan, np.float32)), "change: expected finite"),
    ],
)
def test_no_damaged_head_is_taken(content: bytes, problem: str) -> None:
    with pytest.raises(PayloadError, match=problem):
        LabelHead.unpack(content, DIM)


def test_components_are_unsure_where_they_stand_for_several_classes() -> None:
    stand_for = ComponentClasses(3, 2)
    pure, mixed, unheard = np.eye(3)
    assert stand_for.entropy([pure]) == pytest.approx(1.0)
    for _ in range(100):
        stand_for.learn([pure, mixed, mixed], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    sure, unsure, unknown = stand_for.entropy([pure, mixed, unheard])
    assert sure < 0.1
    assert unsure > 0.99
    assert unknown > 0.99
