"""What a device knows of its windows before it learns from them: signals for the journal, and for whoever decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from streamsplit.learning.label_head import ComponentClasses, LabelHead
from streamsplit.learning.memory import DistributionMemory
from streamsplit.learning.uncertainty import DisagreementHead

KEPT_TRUST = 0.5
"""Of the uncertainty's predictor, when the weights change a little."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Signals:
    """What a device knows of some of its windows, from before it learned from them. None: not yet.

    Attributes:
        sequences: the windows, in the order their embeddings came.
        disagreement: predicted 1 - cos(lite, dense) of each, 0..2.
        posterior_entropy: of the memory's components given each, tempered, 0..1.
        novelty: negative log-likelihood of each under the memory, nats.
        components: of the memory, in use.
        head_entropy, head_margin: of the label head's classes given each, 0..1.
        head_change: how likely the server's dense tail would make another class of each, 0..1.
        class_entropy: of the classes that the memory's components given each stand for, 0..1.
    """

    sequences: list[int]
    disagreement: list[float] | None
    posterior_entropy: list[float] | None
    novelty: list[float] | None
    components: float | None
    head_entropy: list[float] | None
    head_margin: list[float] | None
    head_change: list[float] | None
    class_entropy: list[float] | None


@dataclass(frozen=True, slots=True, eq=False)
class HeardWindow:
    """A window whose own embedding is known: what this device has made of it, or would have.

    Attributes:
        sequence: its number.
        embedding: [D] float32, unit norm.
        truth: 1 - cos(lite, dense) as the server found it; None where it could not.
    """

    sequence: int
    embedding: Array
    truth: float | None


class Insight:
    """Makes signals, and learns from each window after it has spoken of it.

    Args:
        disagreement: the uncertainty's predictor.

    Attributes:
        disagreement: the same.
    """

    def __init__(self, disagreement: DisagreementHead) -> None:
        self.disagreement = disagreement
        self._labels: LabelHead | None = None
        self._stand_for: ComponentClasses | None = None

    def of(self, heard: Sequence[HeardWindow], embeddings: Array, memory: DistributionMemory) -> Signals:
        """Signals of windows that neither the memory nor this has learned from yet.

        Args:
            heard: B windows.
            embeddings: [B, D] of them.
            memory: of the stream so far.
        """
        z, known = torch.from_numpy(embeddings), memory.count > 0
        predicted = self.disagreement.predict(embeddings)
        judged = self._labels.judge(embeddings) if self._labels else None
        class_entropy = None
        if self._stand_for is not None and known:
            posteriors = memory.posterior(z).numpy()
            class_entropy = self._stand_for.entropy(posteriors)
            if judged is not None:
                self._stand_for.learn(posteriors, judged.probabilities)
        truths = [(row, one.truth) for row, one in enumerate(heard) if one.truth is not None]
        if truths:
            self.disagreement.learn(embeddings[[row for row, _ in truths]], [truth for _, truth in truths])
        return Signals(
            [one.sequence for one in heard],
            _told(predicted, 5),
            _told(memory.uncertainty(z).numpy() if known else None, 5),
            _told(memory.novelty(z).numpy() if known else None, 3),
            round(memory.effective_components, 1) if known else None,
            _told(judged.entropy if judged else None, 5),
            _told(judged.margin if judged else None, 5),
            _told(judged.change if judged else None, 5),
            _told(class_entropy, 5),
        )

    def take_labels(self, head: LabelHead, components: int) -> None:
        """Judges by this head from here on; `components`: K of the memory."""
        if self._labels is None or self._labels.classes != head.classes:
            self._stand_for = ComponentClasses(components, len(head.classes))
        self._labels = head

    def changed_version(self) -> None:
        """Another version's embeddings from here on: the predictor is believed less, a head of the old one not at all."""
        self.disagreement.discount(KEPT_TRUST)
        self._labels = self._stand_for = None


def _told(values: Array | None, digits: int) -> list[float] | None:
    return None if values is None else [round(float(value), digits) for value in values]
