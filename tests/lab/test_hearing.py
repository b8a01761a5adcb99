"""What is known of a sound before it is played: the windows a client will cut, their labels, a probe that tells them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplit.audio.synth import write_clips
from streamsplit.encoders.registry import resolve
from streamsplit.errors import ConfigError
from streamsplit.lab.hearing import hear, make_probe, prepare
from streamsplit.lab.scenario import SoundPart


def test_one_fold_of_recordings_is_played_and_a_probe_learns_from_the_others(tmp_path: Path) -> None:
    manifest, version = write_clips(tmp_path / "clips", per_kind=5, seed=0, seconds=2.0), resolve("compact")
    sound = SoundPart(kind="recordings", path=manifest, fold=2, seconds=10)
    played, scape = prepare(sound, 0, tmp_path / "sound", 16_000)
    heard = hear(played, scape, version)
    assert scape is None
    assert len(heard.start_s) == 10  # five clips of two windows: as many as fill ten seconds
    assert set(heard.labels) <= {path.name for path in (tmp_path / "clips").iterdir()}
    assert np.linalg.norm(heard.server, axis=1) == pytest.approx(np.ones(10), abs=1e-5)
    assert (heard.uncertainty > 0).all()

    probe = make_probe(sound, version, tmp_path / "probe")
    assert probe is not None
    right = probe.right(heard.server, heard.labels)
    assert sum(answer is True for answer in right) >= 4  # chance would be one in ten
    assert probe.right(heard.server[:1], [None]) == [None]


def test_without_other_labelled_sound_there_is_no_probe(tmp_path: Path) -> None:
    manifest, version = write_clips(tmp_path / "clips", per_kind=1, seed=0, seconds=1.0), resolve("compact")
    assert make_probe(SoundPart(kind="recordings", path=manifest), version, tmp_path) is None
    assert make_probe(SoundPart(probe_seconds=0), version, tmp_path) is None
    with pytest.raises(ConfigError, match="fold 9"):
        prepare(SoundPart(kind="recordings", path=manifest, fold=9), 0, tmp_path / "none", 16_000)


def test_windows_are_those_a_client_cuts(tmp_path: Path) -> None:
    version = resolve("compact")
    half, scape = prepare(SoundPart(seconds=4.32), 0, tmp_path / "half", 16_000)
    assert len(hear(half, scape, version).start_s) == 5  # the last one is half a window

    clips = write_clips(tmp_path / "clips", per_kind=1, seed=0, seconds=1.5)
    manifest, _ = prepare(SoundPart(kind="recordings", path=clips, seconds=4), 0, tmp_path / "few", 16_000)
    heard = hear(manifest, None, version)
    assert heard.start_s[:3] == pytest.approx(
        [0.0, 0.96, 1.92]
    )  # the stream's clock fills up what a recording lacks
