"""Every objective is finite at any batch, pulls the encoder, and gets smaller when it is followed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.learning.losses import info_nce
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.objectives import OBJECTIVES, ObjectiveSettings, Surroundings, path_pairs

DIM = 32


def unit(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def memory_of(z: Tensor) -> DistributionMemory:
    memory = DistributionMemory(MemorySettings(components=16, dim=DIM, centred=False))
    memory.rebuild(z)
    return memory


def around(name: str, memory: DistributionMemory | None = None, **changes: object) -> Surroundings:
    settings = ObjectiveSettings(name, **changes)  # type: ignore[arg-type]
    return Surroundings(settings, memory or memory_of(unit(128, 0)), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_finite_at_any_batch_and_pulls_unless_it_says_it_cannot(
    name: str, batch: int
) -> None:
    weight = torch.eye(DIM, requires_grad=True)
    first, second = (F.normalize(unit(batch, seed) @ weight, dim=1) for seed in (2, 3))
    terms = OBJECTIVES[name].terms(first, second, around(name))
    assert all(math.isfinite(float(term.detach())) for term in terms.values())
    (pull,) = torch.autograd.grad(terms["total"], weight)
    assert torch.isfinite(pull).all()
    # A whole step's objective is given the pairs of all its micro-batches: only those may be one pair each.
    if batch >= (2 if OBJECTIVES[name].whole_step else OBJECTIVES[name].least_batch):
        assert float(pull.norm()) > 1e-4


@pytest.mark.parametrize("name", ["in-batch", "reservoir", "cached"])
def test_one_pair_alone_tells_infonce_nothing(name: str) -> None:
    z = unit(1, 2).requires_grad_()
    (pull,) = torch.autograd.grad(OBJECTIVES[name].terms(z, unit(1, 3), around(name))["total"], z)
    assert float(pull.norm()) == 0.0


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "published"])
def test_partners_that_agree_and_lie_apart_cost_less_than_a_collapse(name: str) -> None:
    """Each against a memory of its own likes. (`published` draws chance numbers, and has a test of its own.)"""
    spread, collapsed = unit(8, 4), unit(1, 5).expand(8, -1)
    # With own_weight 0, `expected` failed this: one component held all, and nothing was anyone's negative.
    good = OBJECTIVES[name].terms(spread, spread, around(name))
    cloud = F.normalize(unit(1, 5) + 0.01 * unit(128, 6), dim=1)
    bad = OBJECTIVES[name].terms(collapsed, collapsed, around(name, memory_of(cloud)))
    assert float(good["total"]) < float(bad["total"])


def test_expected_negatives_come_close_to_what_a_large_batch_of_the_same_distribution_says() -> None:
    """In-batch InfoNCE over 4,096 negatives drawn from the memory, brought to the number it stands for."""
    centres = unit(16, 7)
    z = F.normalize(
        centres.repeat(64, 1) + 0.05 * torch.randn(1024, DIM, generator=torch.Generator().manual_seed(8)),
        dim=1,
    )
    memory = memory_of(z)
    anchor = unit(4, 9)
    said = OBJECTIVES["expected"].terms(anchor, anchor, around("expected", memory, own_weight=1.0))["total"]
    chance = torch.Generator().manual_seed(11)
    component = torch.multinomial(memory.weights, 4096, replacement=True, generator=chance)
    drawn = memory.mixture.draw(component, chance)
    mass = torch.exp(anchor @ drawn.T / 0.1).mean(1) * 127
    expected = torch.log1p(mass / torch.exp(torch.tensor(1 / 0.1))).mean()
    assert float(said) == pytest.approx(float(expected), rel=0.1)


def test_transport_pushes_a_batch_of_one_away_from_a_crowd() -> None:
    """No negatives: the memory's quantile alone tells one embedding that it is where everything is."""
    crowd = F.normalize(unit(1, 12) + 0.02 * unit(256, 13), dim=1)
    memory, middle = memory_of(crowd), F.normalize(crowd.mean(0, keepdim=True), dim=1)
    z = F.normalize(middle + 0.02 * unit(1, 14), dim=1).requires_grad_()
    spread = OBJECTIVES["transport"].terms(z, z, around("transport", memory, directions=256))["spread"]
    (pull,) = torch.autograd.grad(spread, z)
    moved = F.normalize((z - 0.01 * pull).detach(), dim=1)
    assert float((moved * middle).sum()) < float((z.detach() * middle).sum())


def test_published_negatives_raise_the_loss_of_the_batch_alone() -> None:
    first = unit(8, 15)
    alone = info_nce(first, first)
    said = OBJECTIVES["published"].terms(first, first, around("published", memory_of(first.repeat(16, 1))))
    assert float(said["total"]) > float(alone)


def test_paths_are_compared_within_and_between() -> None:
    views = {"dense": unit(4, 16), "lite": unit(4, 17)}
    terms = path_pairs(views, views, lambda a, b: {"total": info_nce(a, b)})
    assert set(terms) == {
        "dense-dense/total",
        "dense-lite/total",
        "lite-dense/total",
        "lite-lite/total",
        "total",
    }
    pairs = [float(term) for name, term in terms.items() if name != "total"]
    assert float(terms["total"]) == pytest.approx(sum(pairs) / 4)
    assert set(path_pairs({"full": views["lite"]}, {"full": views["lite"]}, lambda a, b: {"x": a.sum()})) == {
        "x"
    }


def test_a_momentum_encoder_takes_the_streams_memory_and_wrong_settings_are_named() -> None:
    assert ObjectiveSettings("expected").memory == "fresh"
    assert ObjectiveSettings("expected", momentum=0.99).memory == "stream"
    assert ObjectiveSettings("reservoir", momentum=0.99).memory == "none"
    with pytest.raises(ConfigError, match=r"objective name: expected in-batch, .*, got 'best'"):
        ObjectiveSettings("best")
    with pytest.raises(ConfigError, match="objective momentum: expected 0 to below 1, got 1"):
        ObjectiveSettings(momentum=1)
    with pytest.raises(ConfigError, match="cached: expected momentum 0"):
        ObjectiveSettings("cached", momentum=0.9)
    with pytest.raises(ValueError, match="transport: expected a memory, got none"):
        OBJECTIVES["transport"].terms(
            unit(2, 0),
            unit(2, 1),
            Surroundings(ObjectiveSettings("transport"), None, torch.Generator()),
        )
