"""The book of labels: one teacher per served version, kept over restarts."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.encoders.registry import make_untrained
from streamsplit.encoders.version import Version
from streamsplit.learning.label_head import LabelHead
from streamsplit.server.commit import Committed
from streamsplit.server.events import WindowJob
from streamsplit.server.labels import LabelBook
from streamsplit.server.versions import serve
from streamsplit.wire.codec import Codec, pack


def windows(
    version: Version, count: int, labels: tuple[str | None, ...], seed: int = 0, turned: bool | None = None
) -> list[Committed]:
    """Of as many sounds as labels, in turn; seen by the dense tail unless `turned` is None, which takes one of every sound's two halves for
    another sound if it is true."""
    generator = np.random.default_rng(seed)
    job = WindowJob("d", "s", 0, 0, 0, 16000, 0, version.id, 0, Codec.INT8, b"", -30.0, None, None)
    rows = generator.standard_normal((count, 128)).astype(np.float32)
    rows[np.arange(count), np.arange(count) % len(labels)] += 20.0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    dense = np.where(turned and (rows[:, -1:] > 0), np.roll(rows, 1, axis=1), rows)
    return [
        Committed(
            replace(job, sequence=place, label=labels[place % len(labels)]),
            row,
            None if turned is None else dense[place],
            None,
        )
        for place, row in enumerate(rows)
    ]


def test_labelled_windows_make_a_head_and_others_do_not(compact: Version, tmp_path: Path) -> None:
    book = LabelBook(tmp_path / "labels", serve([compact], "cpu"))
    book(windows(compact, 40, (None,)))
    assert book.head(compact.id) == b""
    book(windows(compact, 90, ("rain", None, "bark")))
    head = LabelHead.unpack(book.head(compact.id), 128)
    assert set(head.classes) == {"rain", "bark"}
    fresh = windows(compact, 60, ("rain", None, "bark"), seed=1)
    said = head.judge(np.stack([one.own for one in fresh])).probabilities.argmax(1)
    for one, place in zip(fresh, said, strict=True):
        assert one.job.label in (None, head.classes[place])


def test_a_head_stays_the_same_until_much_has_come(compact: Version, tmp_path: Path) -> None:
    book = LabelBook(tmp_path / "labels", serve([compact], "cpu"))
    book(windows(compact, 100, ("rain", "bark")))
    first = book.head(compact.id)
    book(windows(compact, 5, ("rain", "bark"), seed=2))
    assert book.head(compact.id) == first
    book(windows(compact, 20, ("rain", "bark"), seed=3))
    assert book.head(compact.id) != first


def test_no_head_of_a_version_that_is_not_served(compact: Version, tmp_path: Path) -> None:
    served = serve([compact], "cpu")
    book = LabelBook(tmp_path / "labels", served)
    book(windows(compact, 100, ("rain", "bark")))
    assert book.head("../other") == b""
    del served[compact.id]
    assert book.head(compact.id) == b""


def test_what_was_taught_outlives_the_server(compact: Version, tmp_path: Path) -> None:
    served = serve([compact], "cpu")
    first = LabelBook(tmp_path / "labels", served)
    first(windows(compact, 100, ("rain", "bark")))
    packed = first.head(compact.id)
    first(windows(compact, 4, ("rain", "bark"), seed=2))
    first.close()
    for gone in ("gone-1.labels", "gone-1.change"):
        (tmp_path / "labels" / gone).write_bytes(b"")
    again = LabelBook(tmp_path / "labels", served)
    assert LabelHead.unpack(again.head(compact.id), 128).classes == LabelHead.unpack(packed, 128).classes
    parts = {".labels", ".dense-labels", ".change"}
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {compact.id + part for part in parts}


def test_what_the_dense_tail_changes_is_learned_and_outlives_the_server(
    compact: Version, tmp_path: Path
) -> None:
    served = serve([compact], "cpu")
    first = LabelBook(tmp_path / "labels", served)
    first(windows(compact, 200, ("rain", "bark"), turned=False))
    assert LabelHead.unpack(first.head(compact.id), 128).change is None, "too few verdicts to compare"
    for seed in range(1, 9):
        first(windows(compact, 64, (None, None), seed, turned=False))
    same = LabelHead.unpack(first.head(compact.id), 128)
    assert same.change is not None
    fresh = np.stack([one.own for one in windows(compact, 40, (None, None), 99)])
    assert same.judge(fresh).change == pytest.approx(np.zeros(40), abs=0.01)
    for seed in range(10, 40):
        first(windows(compact, 64, (None, None), seed, turned=True))
    head = LabelHead.unpack(first.head(compact.id), 128)
    change = head.judge(fresh).change
    assert change is not None
    assert change[fresh[:, -1] > 0].mean() > 1.5 * change[fresh[:, -1] <= 0].mean() > 0
    first.close()
    again = LabelBook(tmp_path / "labels", served)
    assert LabelHead.unpack(again.head(compact.id), 128).change == pytest.approx(head.change)


def test_a_damaged_file_costs_what_was_taught_and_is_told(
    compact: Version, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for suffix in (".labels", ".dense-labels", ".change"):
        (tmp_path / f"{compact.id}{suffix}").write_bytes(b"nonsense")
    book = LabelBook(tmp_path, serve([compact], "cpu"))
    with caplog.at_level(logging.WARNING):
        book(windows(compact, 100, ("rain", "bark")))
    assert caplog.text.count("labels are learned anew") == 3
    assert book.head(compact.id) != b""


def test_a_full_disk_costs_the_file_and_not_the_head(
    compact: Version, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "labels").write_bytes(b"a file where a folder should be")
    book = LabelBook(tmp_path / "labels", serve([compact], "cpu"))
    book(windows(compact, 100, ("rain", "bark")))
    with caplog.at_level(logging.ERROR):
        assert book.head(compact.id) != b""
    assert "is not kept" in caplog.text


def test_a_window_whose_own_embedding_is_not_finite_is_refused_and_teaches_nothing() -> None:
    served = serve([make_untrained("compact", 5)], "cpu")
    version = next(iter(served))
    encoder = served[version].version.encoder
    with torch.no_grad():
        for parameter in encoder.blocks[-1].parameters():
            parameter.fill_(float("nan"))
    payload = pack(np.zeros((1, 64, 96), np.float32), Codec.INT8, served[version].version.ranges[0])
    embedded = served[version].embed(0, Codec.INT8, [payload])
    assert embedded.problems == {0: "the embedding is not finite"}
    assert np.isfinite(embedded.own).all()
