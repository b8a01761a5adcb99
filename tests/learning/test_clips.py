"""Clips for judging: windows, folds, and what cannot be judged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from streamsplit.audio.features import COMPACT_FRONT_END, LogMel
from streamsplit.errors import ConfigError, RecordingError
from streamsplit.learning.clips import Clips, gather_clips
from streamsplit.learning.labelled import find_clips, grouped_folds, track_of
from streamsplit.learning.sources import Samples, Track

RATE = 16_000


def tone(hz: float, seconds: float) -> Samples:
    return (0.2 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def track(label: str | None, hz: float = 440.0, seconds: float = 2.0, group: str = "") -> Track:
    return Track(f"{label} {hz}", lambda: iter(np.array_split(tone(hz, seconds), 3)), label, group or f"{hz}")


def gathered(tracks: list[Track], folds: list[int] | None) -> Clips:
    return gather_clips(tracks, COMPACT_FRONT_END, folds)


def test_windows_are_half_a_second_apart_silence_and_short_clips_included() -> None:
    silent = Track("silent", lambda: iter([np.zeros(2 * RATE, np.float32)]), "b", "s")
    clips = gathered(
        [track("a"), track("b", 300.0, 0.1), silent, track("a", 500.0, 0.96)], folds=[1, 1, 2, 2]
    )
    assert torch.bincount(clips.clip).tolist() == [3, 1, 3, 1]
    whole = torch.from_numpy(tone(440.0, 2.0))
    expected = LogMel(COMPACT_FRONT_END)(torch.stack([whole[n : n + 15_360] for n in (0, 8_000, 16_000)]))
    step = (3.1 + 1.7) / 255
    torch.testing.assert_close(
        clips.mel(slice(0, 3)), expected.clamp(-1.7, 3.1), atol=step / 2 + 1e-5, rtol=0
    )
    first, second = clips.neighbours()
    assert (first.tolist(), second.tolist()) == ([0, 1, 4, 5], [1, 2, 5, 6])


def test_clip_means_and_deviations_are_over_their_own_windows() -> None:
    clips = gathered([track("a"), track("b"), track("a"), track("b")], folds=[1, 1, 2, 2])
    values = torch.randn(len(clips.clip), 5, generator=torch.Generator().manual_seed(0))
    own = values[clips.clip == 2]
    torch.testing.assert_close(clips.mean(values)[2], own.mean(0))
    torch.testing.assert_close(
        clips.mean_and_deviation(values)[2], torch.cat([own.mean(0), own.std(0, correction=0)])
    )
    assert clips.chance == 0.5


def test_made_folds_keep_originals_together_and_classes_apart() -> None:
    groups = [f"g{n // 3}" for n in range(60)]
    labels = [f"c{n // 15}" for n in range(60)]
    folds = grouped_folds(groups, labels, 4)
    for group in set(groups):
        assert len({fold for fold, own in zip(folds, groups, strict=True) if own == group}) == 1
    for label in set(labels):
        counts = [
            sum(own == label and at == fold for own, at in zip(labels, folds, strict=True))
            for fold in (1, 2, 3, 4)
        ]
        assert min(counts) >= 3
        assert max(counts) <= 6
    assert [folds.count(fold) for fold in (1, 2, 3, 4)] == [15] * 4
    assert gathered([track(label, hz) for label in "ab" for hz in (300.0, 400.0)], None).made_folds


@pytest.mark.parametrize(
    ("tracks", "folds", "told"),
    [
        ([track("a"), track(None)], [1, 2], "1 of 2 recordings have none"),
        ([track("a"), track("a", 300.0)], [1, 2], "2 classes at least, got a"),
        ([track("a"), track("b", 300.0)], [1, 1], "folds: expected 2 at least, got 1"),
        ([track("a"), track("b", 300.0), track("b")], [1, 2, 1], "class a: expected clips in 2 folds"),
    ],
)
def test_what_cannot_be_judged_is_named(tracks: list[Track], folds: list[int], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        gathered(tracks, folds)


def test_a_broken_recording_is_judged_by_what_was_heard_of_it() -> None:
    def broken() -> Iterator[Samples]:
        yield tone(440.0, 1.5)
        raise RecordingError("broken.wav: broken after 1.5 s")

    def missing() -> Iterator[Samples]:
        yield from ()
        raise RecordingError("missing.wav: no such file")

    tracks = [track("a"), track("b", 300.0), Track("broken", broken, "a"), track("b", 200.0)]
    clips = gathered([*tracks, Track("missing", missing, "b")], [1, 1, 2, 2, 2])
    assert clips.unreadable == 2
    assert clips.sources == tuple(each.source for each in tracks)
    assert torch.bincount(clips.clip).tolist() == [3, 3, 2, 3]


def test_labels_come_from_a_manifest_with_a_condition_or_from_folders(tmp_path: Path) -> None:
    for kind in ("dog", "rain"):
        (tmp_path / kind).mkdir()
        soundfile.write(tmp_path / kind / "x.wav", tone(300.0, 1.0), RATE)
    recordings, folds = find_clips(tmp_path)
    assert [each.label for each in recordings] == ["dog", "rain"]
    assert folds is None
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        "path,label,fold,source_id,small\ndog/x.wav,dog,1,s1,1\nrain/x.wav,rain,2,s2,0\ndog/x.wav,dog,2,s3,1\n"
    )
    recordings, folds = find_clips(manifest, "small=1")
    assert ([each.source_id for each in recordings], folds) == (["s1", "s3"], [1, 2])
    assert track_of(recordings[0], RATE).group == "s1"
    for where, told in (("small=2", "no row"), ("big=1", "no column big"), ("small", "COLUMN=VALUE")):
        with pytest.raises(ConfigError, match=told):
            find_clips(manifest, where)
    manifest.write_text("path,label,fold\ndog/x.wav,dog,1\nrain/x.wav,rain,\n")
    with pytest.raises(ConfigError, match=r"rain/x.wav: expected a fold"):
        find_clips(manifest)
