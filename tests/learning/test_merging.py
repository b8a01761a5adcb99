"""Memories of several devices become one, and the whole keeps its moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.merging import merge
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


def test_what_does_not_belong_together_is_refused() -> None:
    gaussian, vmf = DistributionMemory(), DistributionMemory(MemorySettings(kind="vmf"))
    with pytest.raises(ValueError, match="at least one"):
        merge([])
    with pytest.raises(ValueError, match="one kind"):
        merge([gaussian, vmf], [1.0, 1.0])
    for shares in ([1.0], [1.0, -1.0], [0.0, 0.0], None):
        with pytest.raises(ValueError, match="a share >= 0 for each of 2"):
            merge([gaussian, gaussian], shares)
