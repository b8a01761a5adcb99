"""What the windows of a version teach of both its embeddings, the device's own and the dense tail's: a head for each, and where they differ.

    own embeddings, labels ---> LabelTeacher -> own head   --+-> verdict -+
    dense embeddings, labels -> LabelTeacher -> dense head --|-> verdict -+-> another class? --> DisagreementHead -> LabelHead.change
                                                             +-> own embedding, margin, entropy ------^

Whether a window is worth sending is not how far its embedding moves: of the fifth that `1 - cosine` would send, as many verdicts are
spoilt as mended. Where labels make heads the server sees which verdicts change, with or without a label of that window, and a regression
on what the device knows of it tells beforehand. Deferring to another classifier where it is expected to differ is learning to defer
(Mozannar and Sontag 2020), with a change in the place of a mistake, which would take a label of every window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from streamsplit.learning.label_head import HORIZON_WINDOWS, LabelHead, LabelTeacher, change_inputs
from streamsplit.learning.uncertainty import DisagreementHead, HeadSettings

STALE: Final = 1.1
"""A head is made anew once its teacher has learned from so many times the windows it was made of."""
CHANGE: Final = HeadSettings(horizon_windows=HORIZON_WINDOWS // 5, refit_every=1024, fewest=256)
"""Shorter than the heads' horizon: verdicts of heads that knew little say little of those of today."""

Rows = npt.NDArray[np.float32]


class HeadTeacher:
    """Makes the head that is pushed.

    Args:
        own, dense: of the windows' own embeddings, and of those of the dense tail.
        change: of `change_inputs`, whether the two heads' verdicts differ.
    """

    def __init__(self, own: LabelTeacher, dense: LabelTeacher, change: DisagreementHead) -> None:
        self.own, self.dense, self.change = own, dense, change
        self._own_head, self._dense_head = _Fresh(own), _Fresh(dense)

    @classmethod
    def of(cls, dim: int) -> HeadTeacher:
        """One that knows nothing yet, of embeddings of D = `dim`."""
        return cls(LabelTeacher(dim), LabelTeacher(dim), DisagreementHead(dim + 2, CHANGE))

    @property
    def learned(self) -> int:
        """Windows learned from: those that have a label, and those that came by both tails."""
        return self.own.learned + self.change.learned

    def learn(self, own: Rows, dense: Rows | None, labels: Sequence[str | None]) -> None:
        """Takes windows in the order they came.

        Args:
            own: [B, D] as their device embeds them.
            dense: [B, D] as the dense tail does; None of windows that it never saw.
            labels: of each; None where it has none.
        """
        known = [row for row, label in enumerate(labels) if label]
        if known:
            told = [labels[row] or "" for row in known]
            self.own.learn(own[known], told)
            if dense is not None:
                self.dense.learn(dense[known], told)
        if dense is None:
            return
        here, there = self._own_head.head(), self._dense_head.head()
        if here is None or there is None:
            return
        judged = here.judge(own)
        verdicts = zip(here.verdicts(judged), there.verdicts(there.judge(dense)), strict=True)
        self.change.learn(change_inputs(own, judged), [float(one != other) for one, other in verdicts])

    def head(self) -> LabelHead | None:
        """What it has come to; None while fewer than two classes are known."""
        head = self.own.head()
        if head is None or not self.change.ready:
            return head
        return replace(head, change=self.change.solution().astype(np.float32))

    def parts(self) -> Mapping[str, LabelTeacher | DisagreementHead]:
        """What there is to keep, by name."""
        return {"own": self.own, "dense": self.dense, "change": self.change}


class _Fresh:
    """A teacher's head, made anew when it is stale."""

    def __init__(self, teacher: LabelTeacher) -> None:
        self._teacher = teacher
        self._of = 0
        self._head: LabelHead | None = None

    def head(self) -> LabelHead | None:
        if self._teacher.learned > STALE * self._of:
            self._of, self._head = self._teacher.learned, self._teacher.head()
        return self._head
