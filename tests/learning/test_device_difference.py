"""What one device says that it has learned."""

from __future__ import annotations

import pytest
import torch

from streamsplit.encoders.version import Version
from streamsplit.errors import PayloadError
from streamsplit.learning.averaging import merge_differences
from streamsplit.learning.device_difference import device_difference, pack_device_difference


def learned(version: Version) -> dict[str, torch.Tensor]:
    name = next(name for name in version.state if name.startswith("blocks.") and name.endswith("weight"))
    return {name: torch.full_like(version.state[name], 0.01)}


def test_a_difference_arrives_with_who_learned_it_and_from_how_much(compact: Version) -> None:
    one = device_difference(pack_device_difference(learned(compact), compact, "pi", 90), compact)
    assert (one.device, one.base, one.windows) == ("pi", compact.id, 90)
    for name, part in learned(compact).items():
        assert torch.allclose(one.tensors[name], part, atol=1e-4)


@pytest.mark.parametrize("windows", [0, -1, 10**400, 1 << 41])
def test_a_count_that_nobody_can_have_heard_is_refused(compact: Version, windows: int) -> None:
    message = pack_device_difference(learned(compact), compact, "pi", windows)
    with pytest.raises(PayloadError, match="windows"):
        device_difference(message, compact)


def test_the_largest_count_can_still_be_merged(compact: Version) -> None:
    differences = [
        device_difference(pack_device_difference(learned(compact), compact, device, windows), compact)
        for device, windows in (("pi", 1), ("mac", 1 << 40))
    ]
    assert set(merge_differences(differences, compact.state).norms) == {"pi", "mac"}
