"""Nearest neighbours against scikit-learn, and by cases whose answer is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from streamsplit.learning.probe import nearest_neighbour_accuracy


def test_it_agrees_with_scikit_learn() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors", reason="needs the extra `train`")
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(120) % 4
    z = torch.randn(4, 16, generator=generator)[label] + 1.2 * torch.randn(120, 16, generator=generator)
    group = torch.arange(120) // 30
    centred = F.normalize(z - z.mean(0), dim=1).numpy()
    right = 0
    for fold in range(4):
        inside, outside = (group == fold).numpy(), (group != fold).numpy()
        voter = neighbors.KNeighborsClassifier(1).fit(centred[outside], label[outside].numpy())
        right += int((voter.predict(centred[inside]) == label[inside].numpy()).sum())
    ours = nearest_neighbour_accuracy(
        z, [str(n) for n in label.tolist()], [str(n) for n in group.tolist()], 1
    )
    assert ours == pytest.approx(right / 120)
    assert 0.3 < ours < 1.0


def test_an_items_own_group_is_not_asked() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    assert nearest_neighbour_accuracy(z, ["a", "a", "b", "b"], ["1", "2", "1", "2"], 1) == 1.0
    assert nearest_neighbour_accuracy(z, ["a", "a", "b", "b"], ["1", "1", "2", "2"], 1) == 0.0


def test_ties_fall_to_the_nearest() -> None:
    z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.2, 0.9], [-1.0, -1.0]])
    assert nearest_neighbour_accuracy(z, ["a", "a", "b", "b"], list("1234"), 2) >= 0.5


def test_what_cannot_be_asked_is_named() -> None:
    with pytest.raises(ValueError, match="two groups at least"):
        nearest_neighbour_accuracy(torch.eye(2), ["a", "b"], ["1", "1"])
