"""The weights that come with the package: found without a word, small, healthy, and better than random ones on sound they never heard."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.audio.features import COMPACT_FRONT_END, LogMel
from streamsplit.audio.files import find_recordings, read
from streamsplit.audio.synth import EVENT_KINDS
from streamsplit.audio.window import Samples
from streamsplit.encoders.registry import SHIPPED, resolve
from streamsplit.encoders.version import Version
from streamsplit.learning.losses import effective_rank
from streamsplit.learning.pool import gather
from streamsplit.learning.pretrain import embed
from streamsplit.learning.probe import nearest_neighbour_accuracy
from streamsplit.learning.sources import Track, made_tracks
from streamsplit.wire.codec import TENSOR_CODECS, most_packed_bytes, pack
from tests.learning.conftest import clip

RECORDINGS = Path("../shared/data/esc50_dev/manifest.csv")


@pytest.fixture(scope="module")
def shipped() -> Version:
    return resolve("compact")


def test_they_are_found_without_a_warning_and_say_how_they_were_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        version = resolve("compact", cache=tmp_path)
    assert caplog.records == []
    assert list(tmp_path.iterdir()) == []
    assert version.trained
    assert version.front_end == COMPACT_FRONT_END
    assert version.note.startswith("streamsplit train synth:")
    assert (SHIPPED / "compact.safetensors").stat().st_size <= 4_000_000


def test_made_sounds_spread_and_both_tails_agree_on_them(shipped: Version) -> None:
    tracks = [
        Track(f"{kind} {seed}", partial(clip, kind, seed), kind, str(seed))
        for seed in range(500, 506)
        for kind in EVENT_KINDS
    ]
    pool = gather(tracks, COMPACT_FRONT_END, 10_000, seed=0)
    embeddings = embed(shipped.encoder, pool, torch.arange(len(pool)))
    for z in embeddings.values():
        assert effective_rank(z) > 20
    cosine = (embeddings["dense"] * embeddings["lite"]).sum(1)
    assert float(cosine.mean()) > 0.8
    labels = [str(pool.labels[track]) for track in pool.track.tolist()]
    groups = [pool.groups[track] for track in pool.track.tolist()]
    assert nearest_neighbour_accuracy(embeddings["lite"], labels, groups) > 0.7


@torch.inference_mode()
def test_a_window_is_known_again_ten_decibels_quieter(shipped: Version) -> None:
    samples = torch.cat([torch.from_numpy(next(clip(kind, 600))[None, :15_360]) for kind in EVENT_KINDS])
    log_mel = LogMel(shipped.front_end)
    for path in ("dense", "lite"):
        loud, quiet = (shipped.encoder.embeddings(log_mel(gain * samples))[path] for gain in (1.0, 0.316))
        assert torch.equal((quiet @ loud.T).argmax(1), torch.arange(len(samples)))


@torch.inference_mode()
def test_windows_it_never_heard_cost_the_bytes_that_are_expected(shipped: Version) -> None:
    """As `Version.packed_bytes` says, at every split by every codec."""
    pool = gather(made_tracks(0.15, 16_000, seed=88_000), COMPACT_FRONT_END, 10_000, seed=0)
    mel = pool.mel(torch.arange(0, len(pool), 2))
    for split in range(shipped.encoder.last_split):
        spec, bounds = shipped.encoder.activation_spec(split), shipped.ranges[split]
        windows = [part.numpy() for part in shipped.encoder.head(mel, split).contiguous()]
        for codec in TENSOR_CODECS:
            sizes = np.array([len(pack(window, codec, bounds)) for window in windows])
            share = sizes / shipped.packed_bytes(split, codec)
            assert abs(share.mean() - 1) < 0.04, (split, codec)
            assert ((share > 0.4) & (share < 1.5)).mean() > 0.9, (split, codec)
            assert sizes.max() <= most_packed_bytes(spec, codec)


@pytest.mark.data
def test_real_recordings_they_never_heard_are_told_apart_better_than_by_random_weights(
    shipped: Version,
) -> None:
    if not RECORDINGS.exists():
        pytest.skip("needs the development recordings beside the checkout (../shared/data)")
    recordings = find_recordings(RECORDINGS)[::8]
    mel = torch.cat([five_windows(read(each.path, 16_000)) for each in recordings])
    labels, groups = [str(each.label) for each in recordings], [str(each.fold) for each in recordings]

    def accuracy(version: Version) -> float:
        with torch.inference_mode():
            z = torch.cat([version.encoder.embeddings(part)["lite"] for part in torch.split(mel, 64)])
        means = F.normalize(z.view(len(recordings), 5, -1).mean(1), dim=1)
        return nearest_neighbour_accuracy(means, labels, groups)

    assert accuracy(shipped) > accuracy(resolve("compact", "untrained")) + 0.05


def five_windows(samples: Samples) -> Tensor:
    sound = torch.from_numpy(samples)[: 5 * 15_360]
    mel: Tensor = LogMel(COMPACT_FRONT_END)(F.pad(sound, (0, 5 * 15_360 - len(sound))).view(5, -1))
    return mel
