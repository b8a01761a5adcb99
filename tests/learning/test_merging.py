"""Memories of several devices become one, and the whole keeps its moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.merging import merge, shares_by_windows
from tests.learning.memories import found, stream


def heard(z: Tensor, **settings: Any) -> DistributionMemory:
    memory = DistributionMemory(MemorySettings(**settings))
    for part in z.split(4):
        memory.update(part)
    return memory


def moments(memories: Sequence[DistributionMemory], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    mean = sum(s * (m.weights @ m.means) for s, m in zip(shares, memories, strict=True))
    second = sum(
        s * (m.weights @ (m.variances + m.means.square())) for s, m in zip(shares, memories, strict=True)
    )
    assert isinstance(mean, Tensor)
    assert isinstance(second, Tensor)
    return mean, second


@pytest.mark.parametrize("components", [1, 7, 64])
def test_the_whole_keeps_mean_and_second_moment(components: int) -> None:
    memories = [heard(stream(20, 800, seed=seed).z, centred=False) for seed in (1, 2, 3)]
    shares = [0.5, 0.3, 0.2]
    merged = merge(memories, shares, MemorySettings(components=components, centred=False))
    for one, other in zip(moments(memories, shares), moments([merged], [1.0]), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert float(merged.weights.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "vmf"])
@pytest.mark.parametrize("centred", [True, False])
def test_two_devices_sounds_are_all_in_the_merged_memory(kind: str, centred: bool) -> None:
    made = [stream(25, 2000, seed=seed, cone=1.0) for seed in (1, 2)]
    memories = [heard(one.z, kind=kind, centred=centred) for one in made]
    merged = merge(memories)
    both = torch.cat([one.z for one in made])
    centres = torch.cat([one.centres for one in made])
    assert found(merged.means, merged.weights, centres - merged.centre * centred) >= 47
    alone = float(memories[0].novelty(both).mean())
    assert float(merged.novelty(both).mean()) < alone - 50
    assert int(merged.count) == 4000
    before = float(merged.novelty(both).mean())
    for part in both.split(8):  # it goes on
        merged.update(part)
    assert float(merged.novelty(both).mean()) < before + 2.0


def test_merging_one_memory_is_that_memory_and_order_does_not_matter() -> None:
    one, other = (heard(stream(20, 900, seed=seed).z) for seed in (1, 2))
    z = stream(20, 300, seed=1).z
    assert torch.allclose(merge([one]).novelty(z), one.novelty(z), atol=1e-2)
    assert torch.allclose(merge([one, other]).novelty(z), merge([other, one]).novelty(z), atol=0.5)


def test_a_share_of_nothing_counts_for_nothing() -> None:
    one, other = (heard(stream(20, 900, seed=seed).z, centred=False) for seed in (1, 2))
    z = stream(20, 300, seed=1).z
    assert torch.allclose(merge([one, other], [1.0, 0.0]).novelty(z), one.novelty(z), atol=1e-2)


@pytest.mark.parametrize("much", [3, 10])
def test_a_device_that_has_heard_much_leaves_half_to_the_others(much: int) -> None:
    """Two that have heard little keep their part against one that has heard `much` times as much as each."""
    long = heard(stream(30, 300 * much, seed=1).z, centred=False)
    brief = [heard(stream(10, 300, seed=seed).z, centred=False) for seed in (2, 3)]
    merged = merge([*brief, long])
    for one, other in zip(moments([*brief, long], [0.25, 0.25, 0.5]), moments([merged], [1.0]), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    for seed in (2, 3):
        own = stream(10, 300, seed=seed)
        assert found(merged.means, merged.weights, own.centres) >= 9


def test_a_device_that_has_just_begun_costs_the_others_little() -> None:
    made = stream(30, 3000, seed=1)
    long, begun = heard(made.z, centred=False), heard(stream(5, 8, seed=2).z, centred=False)
    alone, together = float(long.novelty(made.z).mean()), float(merge([long, begun]).novelty(made.z).mean())
    assert together - alone < 1.5


def test_a_memory_counts_for_no_more_windows_than_its_horizon() -> None:
    """The count of one that went on from a merged memory holds others' windows as well."""
    memories = [heard(stream(10, 300, seed=seed).z, centred=False) for seed in (1, 2, 3)]
    horizon = memories[0].settings.horizon_windows
    memories[0].count.fill_(2 * horizon)
    memories[1].count.fill_(2**62)
    memories[2].count.fill_(horizon // 2)
    merged = merge(memories)
    assert int(merged.count) == 5 * horizon // 2
    for one, other in zip(moments(memories, [0.4, 0.4, 0.2]), moments([merged], [1.0]), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20).filter(any))
def test_no_share_is_above_a_half_where_two_have_heard_anything(counts: list[int]) -> None:
    shares = shares_by_windows(counts)
    assert sum(shares) == pytest.approx(1.0)
    assert all((share > 0) == (count > 0) for share, count in zip(shares, counts, strict=True))
    if sum(count > 0 for count in counts) > 1:
        assert max(shares) <= 0.5 + 1e-12
    ranked = [share for _, share in sorted(zip(counts, shares, strict=True))]
    assert ranked == sorted(ranked)


def test_what_does_not_belong_together_is_refused() -> None:
    gaussian, vmf = DistributionMemory(), DistributionMemory(MemorySettings(kind="vmf"))
    with pytest.raises(ValueError, match="at least one"):
        merge([])
    with pytest.raises(ValueError, match="one kind"):
        merge([gaussian, vmf], [1.0, 1.0])
    for shares in ([1.0], [1.0, -1.0], [0.0, 0.0], None):
        with pytest.raises(ValueError, match="a share >= 0 for each of 2"):
            merge([gaussian, gaussian], shares)
