"""What a user names becomes tracks: files, folders, manifests, made sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplit.audio.synth import write_clips
from streamsplit.errors import ConfigError
from streamsplit.learning.sources import find_tracks, made_tracks


def test_a_manifest_gives_labels_and_folds(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path, per_kind=2, seed=0, seconds=1.0)
    tracks = find_tracks([str(manifest)], 16_000)
    assert len(tracks) == 24
    assert {track.group for track in tracks} == {"fold 1", "fold 2"}
    assert {track.label for track in tracks} >= {"siren", "knock"}
    assert len(np.concatenate(list(tracks[0].listen()))) == 16_000
    (folder,) = {track.label for track in find_tracks([str(tmp_path)], 16_000)}
    assert folder is None


def test_made_sound_has_about_the_hours_asked_for_and_every_kind() -> None:
    tracks = made_tracks(0.05, 16_000, seed=3)
    seconds = sum(len(block) for track in tracks for block in track.listen()) / 16_000
    assert 180 <= seconds <= 260
    assert {track.source.split()[0] for track in tracks} >= {"timbre", "soundscape", "engine"}


def test_the_seed_decides_and_two_made_sources_differ() -> None:
    def heard(seed: int) -> bytes:
        return next(iter(find_tracks(["synth:0.001"], 16_000, seed)[0].listen())).tobytes()

    assert heard(1) == heard(1) != heard(2)
    names = [track.source for track in find_tracks(["synth:0.01", "synth:0.01"], 16_000)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("synth:much", "synth:HOURS with hours above 0"),
        ("synth:-1", "synth:HOURS"),
        ("synth:nan", "synth:HOURS"),
        ("no/such/folder", "no such file or folder"),
    ],
)
def test_wrong_sources_are_named(source: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        find_tracks([source], 16_000)
