"""Quality tables from labelled windows: they find the loss that was put in, and say how sure they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.audio.features import COMPACT_FRONT_END
from streamsplit.encoders.registry import resolve
from streamsplit.errors import ConfigError
from streamsplit.learning.clips import Clips
from streamsplit.policy import measured
from streamsplit.policy.measured import Measured, coded, measure_quality
from streamsplit.policy.quality import load_quality
from streamsplit.wire.codec import Codec

pytest.importorskip("sklearn", reason="needs the extra `train`")

CLASSES, CLIPS, WINDOWS, DIM = 3, 48, 4, 128
VERSION = resolve("compact", "untrained:0")


def clips_of(silent_after: int | None = None) -> Clips:
    """Forty-eight clips of four windows of noise; from `silent_after` on each clip is silent."""
    shape = COMPACT_FRONT_END.spec.shape[1:]
    features = np.random.default_rng(0).integers(0, 256, (CLIPS * WINDOWS, *shape), np.uint8)
    if silent_after is not None:
        features.reshape(CLIPS, WINDOWS, *shape)[:, silent_after:] = 7
    return Clips(
        COMPACT_FRONT_END,
        features,
        torch.arange(CLIPS).repeat_interleave(WINDOWS),
        tuple(map(str, range(CLIPS))),
        tuple(f"c{n % CLASSES}" for n in range(CLIPS)),
        tuple(n // CLASSES % 4 for n in range(CLIPS)),
        False,
        0,
    )


def embeddings(clips: Clips, spoilt: Tensor) -> dict[str, Tensor]:
    """Dense ones that tell every class; lite ones equal to them, but for spoilt windows, which show another class."""
    generator = torch.Generator().manual_seed(1)
    centres = F.normalize(torch.randn(CLASSES, DIM, generator=generator), dim=1)
    label = clips.label_numbers[clips.clip]
    noise = 0.02 * torch.randn(len(label), DIM, generator=generator)
    dense = F.normalize(centres[label] + noise, dim=1)
    wrong = F.normalize(centres[(label + 1) % CLASSES] + noise, dim=1)
    return {"dense": dense, "lite": torch.where(spoilt[:, None], wrong, dense)}


@pytest.fixture(scope="module")
def found() -> Measured:
    clips = clips_of()
    spoilt = torch.arange(len(clips.clip)) % 4 == 0
    return measure_quality(VERSION, embeddings(clips, spoilt), clips, "made")


def test_where_paths_agree_they_are_equally_good_and_where_they_do_not_the_device_is_wrong(
    found: Measured,
) -> None:
    quality = found.quality
    assert quality.measured
    assert sum(found.windows) == CLIPS * WINDOWS
    assert min(quality.at(4, 4, 0.0), quality.at(0, 4, 0.0), quality.at(0, 4, 1.0)) > 0.9
    assert quality.at(4, 4, 1.0) < 0.2
    assert found.low[-1] > 0.7
    assert abs(found.gain[0]) < 0.1


def test_every_split_has_its_own_figures_and_intervals_hold_the_gain(found: Measured) -> None:
    assert set(found.quality.paths) == {"device", "server", "1", "2", "3", "skip"}
    assert all(low <= gain <= high for low, gain, high in zip(found.low, found.gain, found.high, strict=True))
    assert VERSION.id in found.quality.source


def test_a_difference_that_may_be_chance_is_none() -> None:
    clips = clips_of()
    generator = torch.Generator().manual_seed(2)
    noise = {name: torch.randn(len(clips.clip), DIM, generator=generator) for name in ("lite", "dense")}
    found = measure_quality(
        VERSION, {name: F.normalize(values, dim=1) for name, values in noise.items()}, clips, "made"
    )
    assert max(map(abs, found.gain)) > 0.02
    doubtful = [low <= 0 <= high for low, high in zip(found.low, found.high, strict=True)]
    assert any(doubtful)
    for doubt, device, server in zip(
        doubtful, found.quality.paths["device"], found.quality.paths["server"], strict=True
    ):
        assert (device == server) is doubt


def test_the_table_can_be_kept(found: Measured, tmp_path: Any) -> None:
    found.quality.save(tmp_path / "q.json")
    assert load_quality(tmp_path / "q.json").at(4, 4, 0.1) == found.quality.at(4, 4, 0.1)


def test_silent_windows_take_the_answer_of_the_window_before() -> None:
    clips = clips_of(silent_after=2)
    spoilt = torch.arange(len(clips.clip)) % 4 == 1  # what the first silent window would take over
    found = measure_quality(VERSION, embeddings(clips, spoilt), clips, "made")
    assert found.silent == CLIPS * 2
    assert found.quality.at(-2, 4, 0.3) == 0.5


def test_equal_uncertainties_share_a_bin() -> None:
    bins = measured._bins(np.array([0.1] * 50 + [0.2] * 50))
    assert bins.tolist() == [0] * 50 + [1] * 50


def test_what_the_server_makes_of_a_packed_boundary_is_near_what_it_makes_of_the_boundary() -> None:
    clips = clips_of()
    with torch.no_grad():
        exact = VERSION.encoder.tail(VERSION.encoder.head(clips.mel(slice(0, 8)), 2), 2)
    near = coded(VERSION, clips, 2, Codec.INT8)[:8]
    assert (exact * near).sum(1).min() > 0.95
    assert not torch.equal(exact, near)


def test_an_encoder_of_one_path_has_no_table() -> None:
    with pytest.raises(ConfigError, match="got resnet18, whose split does not change"):
        measured.require_paths(resolve("resnet18", "untrained:0"))
