"""Probes, nearest neighbours and retrieval against scikit-learn, and by cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from streamsplit.learning.probe import linear_probe, nearest_neighbour_accuracy, retrieve


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


def test_the_linear_probe_is_scikit_learns_pipeline() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="needs the extra `train`")
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = torch.Generator().manual_seed(1)
    label = torch.arange(120) % 4
    z = torch.randn(4, 16, generator=generator)[label] + 1.5 * torch.randn(120, 16, generator=generator)
    fold = torch.arange(120) // 30
    pipeline = make_pipeline(StandardScaler(), linear.LogisticRegression(C=0.1, max_iter=500))
    sure = cross_val_predict(
        pipeline,
        z.double().numpy(),
        label.numpy(),
        groups=fold.numpy(),
        cv=LeaveOneGroupOut(),
        method="predict_proba",
    )
    probed = linear_probe(z, label, fold)
    assert torch.equal(probed.right, torch.from_numpy(sure.argmax(1)) == label)
    assert probed.loss.numpy() == pytest.approx(-np.log(sure[np.arange(120), label.numpy()]), abs=1e-3)
    assert probed.entropy.numpy() == pytest.approx(-(sure * np.log(sure)).sum(1), abs=1e-3)
    first, second = np.sort(sure, axis=1)[:, :-3:-1].T
    assert probed.margin.numpy() == pytest.approx(first - second, abs=1e-3)
    assert torch.equal(probed.verdict, torch.from_numpy(sure.argmax(1)))
    assert 0.3 < float(probed.right.float().mean()) < 1.0


def test_a_class_the_other_folds_do_not_have_is_never_right() -> None:
    pytest.importorskip("sklearn", reason="needs the extra `train`")
    label = torch.tensor([0, 1, 0, 1, 2])
    probed = linear_probe(torch.randn(5, 3), label, torch.tensor([0, 0, 1, 1, 1]))
    assert not probed.right[4]
    assert probed.loss[4] == 100.0


def test_retrieval_agrees_with_scikit_learns_average_precision() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra `train`")
    generator = torch.Generator().manual_seed(2)
    label = torch.arange(60) % 3
    z = torch.randn(3, 8, generator=generator)[label] + torch.randn(60, 8, generator=generator)
    group = torch.arange(60) // 15
    found = retrieve(z, label, group)
    unit = F.normalize(z - z.mean(0), dim=1)
    for item in (0, 17, 59):
        others = group != group[item]
        similarity = unit[others] @ unit[item]
        relevant = label[others] == label[item]
        assert float(found.average_precision[item]) == pytest.approx(
            metrics.average_precision_score(relevant.numpy(), similarity.numpy())
        )
        first = relevant[similarity.topk(10).indices].float().mean()
        assert float(found.precision[item]) == pytest.approx(float(first))
    assert found.asked.all()


def test_a_search_for_what_no_other_group_has_is_not_asked() -> None:
    found = retrieve(torch.eye(4), torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 0, 1]))
    assert found.asked.tolist() == [True, True, False, True]
    # Two of the class are to be found at most: finding both is all that can be asked.
    assert float(retrieve(torch.ones(4, 2), torch.zeros(4).long(), torch.arange(4)).precision[0]) == 1.0
