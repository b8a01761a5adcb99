"""Streams are orders of a pool: each window in its time, as a device would have heard it."""

from __future__ import annotations

from itertools import groupby, islice, pairwise

import pytest

from streamsplit.errors import ConfigError
from streamsplit.learning.pool import WindowPool
from streamsplit.learning.streams import ORDERS, PAUSE_S, Heard, stream

QUIET = (0, 1)


def tracks(pool: WindowPool, heard: list[Heard]) -> list[int]:
    return [int(pool.track[item.window]) for item in heard]


@pytest.mark.parametrize("order", ORDERS)
def test_time_only_goes_forward_and_neighbours_are_as_recorded(pool: WindowPool, order: str) -> None:
    heard = list(stream(pool, order, 600, 3, QUIET))
    assert len(heard) == 600
    segment = {
        window: (number, int(pool.at_hop[window]))
        for number, (first, count) in enumerate(zip(pool.first.tolist(), pool.count.tolist(), strict=True))
        for window in range(first, first + count)
    }
    together = 0
    for one, other in pairwise(heard):
        gap_s = other.start_s - one.start_s
        (here, hop), (there, next_hop) = segment[one.window], segment[other.window]
        if here == there and next_hop > hop:
            assert gap_s == pytest.approx((next_hop - hop) * 0.48)
            together += 1
        else:
            assert gap_s == pytest.approx(0.96 + PAUSE_S)
    assert together > 300


@pytest.mark.parametrize("order", ORDERS)
def test_the_seed_decides_and_a_longer_stream_begins_as_the_shorter(pool: WindowPool, order: str) -> None:
    first, again, other = (list(stream(pool, order, 200, seed, QUIET)) for seed in (1, 1, 2))
    assert first == again != other
    assert list(islice(stream(pool, order, 500, 1, QUIET), 200)) == first


def test_a_pass_hears_every_clip_once_and_the_next_in_another_order_and_phase(pool: WindowPool) -> None:
    heard = list(stream(pool, "shuffled", 2_000, 0))
    clips = [track for track, _ in groupby(tracks(pool, heard))]
    count = len(set(pool.track.tolist()))
    one, other = clips[:count], clips[count : 2 * count]
    assert sorted(one) == sorted(other) == sorted(set(pool.track.tolist()))
    assert one != other
    assert len({item.window for item in heard}) > 0.9 * len(pool)


def test_windows_do_not_overlap(pool: WindowPool) -> None:
    heard = list(stream(pool, "shuffled", 500, 0))
    assert all(b.start_s - a.start_s >= 0.96 - 1e-9 for a, b in pairwise(heard))


def test_sorted_streams_hear_class_after_class(pool: WindowPool) -> None:
    labels = [pool.labels[track] for track in tracks(pool, list(stream(pool, "sorted", 200, 0)))]
    runs = [label for label, _ in groupby(labels)]
    assert len(runs) == len(set(runs))
    shuffled = [pool.labels[track] for track in tracks(pool, list(stream(pool, "shuffled", 200, 0)))]
    assert len(list(groupby(shuffled))) > 2 * len(runs)


def test_composed_streams_put_background_between_the_clips_of_a_scene(pool: WindowPool) -> None:
    heard = tracks(pool, list(stream(pool, "composed", 400, 0, QUIET)))
    runs = [track for track, _ in groupby(heard)]
    quiet = [track in QUIET for track in runs]
    assert 0.2 < sum(track in QUIET for track in heard) / len(heard) < 0.8
    assert all(not (a and b) for a, b in pairwise(quiet)) or len(QUIET) > 1
    clips = [track for track in runs if track not in QUIET]
    assert all(any(pair) for pair in pairwise(quiet))  # never clip after clip
    same = sum(pool.labels[a] == pool.labels[b] for a, b in pairwise(clips))
    assert same > 0.5 * len(clips)


def test_background_is_left_out_of_other_orders(pool: WindowPool) -> None:
    assert not set(tracks(pool, list(stream(pool, "shuffled", 800, 0, QUIET)))) & set(QUIET)


def test_what_cannot_be_streamed_is_told(pool: WindowPool) -> None:
    with pytest.raises(ConfigError, match="order: expected one of shuffled, sorted, composed, got 'random'"):
        stream(pool, "random", 10, 0)
    with pytest.raises(ConfigError, match="order composed: expected background tracks, got none"):
        stream(pool, "composed", 10, 0)
    with pytest.raises(ConfigError, match="order shuffled: expected windows of clips"):
        stream(pool, "shuffled", 10, 0, range(len(pool.labels)))
