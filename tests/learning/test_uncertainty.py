"""The disagreement head learns online what it should, stays calibrated and bounded; its measures equal scikit-learn's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load
from safetensors.numpy import save as to_bytes
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.uncertainty import (
    FORMAT,
    Array,
    DisagreementHead,
    HeadSettings,
    auroc,
    recovered,
    recovered_by_chance,
    reliability,
)

DIM = 32


def world(windows: int, seed: int = 0, noise: float = 0.02) -> tuple[Array, Array]:
    """Unit embeddings in a cone, and a disagreement that leans on one direction of them."""
    chance, lean = np.random.default_rng(seed), np.random.default_rng(99).standard_normal(DIM)
    z = chance.standard_normal((windows, DIM)) + np.eye(DIM)[0] * 4
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    truth = 0.3 + 0.15 * z @ lean + noise * chance.standard_normal(windows)
    return z, np.clip(truth, 0, 2)


def predicted(head: DisagreementHead, z: Array) -> Array:
    guess = head.predict(z)
    assert guess is not None
    return guess


def test_it_finds_the_worst_windows_and_is_calibrated_after_a_few_hundred() -> None:
    head = DisagreementHead(DIM)
    head.learn(*world(300))
    z, truth = world(2000, seed=1)
    guess = predicted(head, z)
    assert auroc(guess, truth > np.quantile(truth, 0.8)) > 0.95
    assert reliability(guess, truth).error < 0.01
    assert recovered(guess, truth) > 0.95 * recovered(truth, truth)
    assert head.skill is not None
    assert 0.7 < head.skill <= 1


def test_without_forgetting_it_is_batch_ridge_regression() -> None:
    z, truth = world(400)
    head = DisagreementHead(DIM, HeadSettings(horizon_windows=10**12, refit_every=1, ridge=0.5))
    head.learn(z, truth)
    batch = Ridge(alpha=0.5).fit(z, truth)
    fresh = world(50, seed=2)[0]
    assert predicted(head, fresh) == pytest.approx(batch.predict(fresh), abs=1e-4)


def test_it_says_nothing_before_it_has_learned_enough() -> None:
    head = DisagreementHead(DIM, HeadSettings(fewest=10))
    z, truth = world(10)
    head.learn(z[:9], truth[:9])
    assert head.predict(z) is None
    assert head.skill is None
    head.learn(z[9:], truth[9:])
    assert predicted(head, z).shape == (10,)


def test_it_follows_a_change_of_the_world() -> None:
    z, truth = world(3000)
    head = DisagreementHead(DIM, HeadSettings(horizon_windows=300))
    head.learn(z[:1500], truth[:1500])
    head.learn(z[1500:], 1.0 - truth[1500:])
    fresh, old_truth = world(500, seed=3)
    assert auroc(predicted(head, fresh), old_truth < np.quantile(old_truth, 0.2)) > 0.9


def test_a_stream_that_stays_in_one_place_for_long_leaves_it_finite_and_in_range() -> None:
    head = DisagreementHead(DIM, HeadSettings(horizon_windows=50))
    z, truth = world(200)
    head.learn(z, truth)
    head.learn(np.repeat(z[:1], 5000, axis=0), np.full(5000, 0.4))
    everywhere = predicted(head, world(500, seed=4)[0])
    assert ((everywhere >= 0) & (everywhere <= 2)).all()
    assert predicted(head, z[:1]) == pytest.approx([0.4], abs=0.01)


def test_a_constant_disagreement_is_predicted_without_skill() -> None:
    head = DisagreementHead(DIM)
    z, _ = world(200)
    head.learn(z, np.full(200, 0.2))
    assert predicted(head, z) == pytest.approx(np.full(200, 0.2), abs=1e-3)
    assert head.skill is None


@pytest.mark.parametrize("size", [1, 7, 100])
def test_it_does_not_matter_how_answers_are_bundled(size: int) -> None:
    z, truth = world(100)
    one, other = DisagreementHead(DIM), DisagreementHead(DIM)
    one.learn(z, truth)
    for begin in range(0, 100, size):
        other.learn(z[begin : begin + size], truth[begin : begin + size])
    assert one.save() == other.save()


def test_saved_and_restored_it_goes_on_to_the_bit(tmp_path: Path) -> None:
    z, truth = world(150)
    head = DisagreementHead(DIM, HeadSettings(horizon_windows=77, ridge=0.25, refit_every=9, fewest=20))
    head.learn(z[:100], truth[:100])
    path = tmp_path / "head.safetensors"
    path.write_bytes(head.save())
    again = DisagreementHead.restore(path)
    assert again.settings == head.settings
    for one in (head, again):
        one.learn(z[100:], truth[100:])
    assert head.save() == again.save()
    assert (predicted(head, z) == predicted(again, z)).all()


def test_its_state_does_not_grow() -> None:
    head = DisagreementHead(128)
    z = np.eye(128)
    head.learn(z, np.full(128, 0.1))
    size = len(head.save())
    head.learn(np.tile(z, (8, 1)), np.full(1024, 0.1))
    assert len(head.save()) == size < 140_000


def test_discounted_it_learns_new_weights_faster() -> None:
    z, truth = world(600)
    fresh, now = world(300, seed=5)
    errors = []
    for keep in (1.0, 0.05):
        head = DisagreementHead(DIM)
        head.learn(z[:500], 1.0 - truth[:500])
        head.discount(keep)
        head.learn(z[500:], truth[500:])
        errors.append(float(np.square(predicted(head, fresh) - now).mean()))
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize(
    ("z", "truth", "says"),
    [
        (np.zeros((2, 3)), [0.1, 0.1], r"expected finite \[B, 32\], got shape \(2, 3\)"),
        (np.full((1, DIM), np.nan), [0.1], "expected finite"),
        (np.zeros((2, DIM)), [0.1], r"expected 2 numbers in 0\.\.2"),
        (np.zeros((2, DIM)), [0.1, 2.5], r"expected 2 numbers in 0\.\.2"),
        (np.zeros((1, DIM)), [np.nan], r"expected 1 numbers in 0\.\.2"),
    ],
)
def test_wrong_answers_are_refused_and_nothing_is_learned(z: Array, truth: list[float], says: str) -> None:
    head = DisagreementHead(DIM)
    before = head.save()
    with pytest.raises(ValueError, match=says):
        head.learn(z, truth)
    assert head.save() == before


def test_wrong_settings_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ridge: expected a number above 0"):
        HeadSettings(ridge=0)
    with pytest.raises(ConfigError, match="horizon_windows: expected 1 or more"):
        HeadSettings(horizon_windows=0)
    with pytest.raises(ConfigError, match="1 dimension or more"):
        DisagreementHead(0)
    with pytest.raises(ValueError, match="a share in"):
        DisagreementHead(3).discount(1.5)
    path = tmp_path / "other.safetensors"
    with pytest.raises(StorageError, match="not a readable disagreement head"):
        DisagreementHead.restore(path)
    path.write_bytes(to_bytes({"x": np.zeros(3)}))
    with pytest.raises(ConfigError, match="expected a disagreement head, got another"):
        DisagreementHead.restore(path)
    path.write_bytes(DisagreementHead(4).save()[:-8])
    with pytest.raises(StorageError, match="not a readable disagreement head"):
        DisagreementHead.restore(path)
    head = DisagreementHead(4)
    head._cross[2] = np.inf
    path.write_bytes(head.save())
    with pytest.raises(StorageError, match="cross: expected finite"):
        DisagreementHead.restore(path)
    arrays, said = load(DisagreementHead(4).save()), {"format_version": 1, "settings": {}}
    path.write_bytes(to_bytes(arrays | {"counts": np.zeros(3, np.int64)}, {FORMAT: json.dumps(said)}))
    with pytest.raises(StorageError, match="damaged: too many values"):
        DisagreementHead.restore(path)


# Measures.


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60))
def test_auroc_is_scikit_learns_ties_included(items: list[tuple[int, bool]]) -> None:
    scores, positive = [score for score, _ in items], [truth for _, truth in items]
    if len(set(positive)) < 2:
        with pytest.raises(ValueError, match="expected positives and negatives"):
            auroc(scores, positive)
    else:
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_reliability_is_zero_for_the_truth_and_the_shift_for_a_shifted_guess() -> None:
    truth = np.random.default_rng(0).uniform(size=95)
    exact = reliability(truth, truth)
    assert exact.error == pytest.approx(0, abs=1e-12)
    assert exact.windows.sum() == 95
    assert (np.diff(exact.predicted) > 0).all()
    assert reliability(truth + 0.1, truth).error == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"expected 1\.\.95 bins, got 96"):
        reliability(truth, truth, 96)


def test_what_chance_recovers_is_what_many_draws_recover() -> None:
    rng = np.random.default_rng(0)
    gains = rng.choice([1.0, 0.0, -1.0], size=300, p=[0.2, 0.7, 0.1])
    draws = [recovered(rng.random(300), gains, 0.2) for _ in range(4000)]
    mean, spread = recovered_by_chance(gains, 0.2)
    assert mean == pytest.approx(0.2)
    assert np.mean(draws) == pytest.approx(mean, abs=4 * spread / np.sqrt(4000))
    assert np.std(draws) == pytest.approx(spread, rel=0.05)
    with pytest.raises(ValueError, match="a gain above 0"):
        recovered_by_chance([-1.0, 1.0])


def test_recovered_is_the_share_of_the_gain_among_the_highest_scores() -> None:
    gains = [4.0, 3.0, 2.0, 1.0, 0.0]
    assert recovered([5, 4, 3, 2, 1], gains, 0.4) == pytest.approx(0.7)
    assert recovered([1, 2, 3, 4, 5], gains, 0.4) == pytest.approx(0.1)
    assert recovered(gains, gains, 1.0) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="a gain above 0"):
        recovered([1.0, 2.0], [0.0, 0.0])


def test_measures_refuse_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="two vectors of one length"):
        reliability([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="finite numbers"):
        recovered([np.nan, 1.0], [1.0, 1.0])
