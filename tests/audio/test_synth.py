from __future__ import annotations

import csv
import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.files import find_recordings, read
from streamsplit.audio.synth import EVENT_KINDS, QUIET, Soundscape, SoundscapeSettings, make_clip, write_clips
from streamsplit.errors import ConfigError, StorageError

SETTINGS = SoundscapeSettings(seconds=75.3, seed=4, events_per_minute=20.0, quiet_share=0.2)


def sound(scape: Soundscape, block_s: float = 1.0) -> np.ndarray:
    return np.concatenate(list(scape.blocks(block_s)))


WHOLE = sound(Soundscape(SETTINGS))


@settings(max_examples=10, deadline=None)
@given(block_s=st.floats(0.02, 100.0))
def test_the_size_of_blocks_does_not_change_a_sample(block_s: float) -> None:
    blocks = list(Soundscape(SETTINGS).blocks(block_s))
    np.testing.assert_array_equal(np.concatenate(blocks), WHOLE)
    assert {len(block) for block in blocks[:-1]} <= {round(block_s * 16_000)}


def test_a_soundscape_is_as_long_as_asked_and_within_full_scale() -> None:
    assert WHOLE.dtype == np.float32
    assert len(WHOLE) == round(75.3 * 16_000)
    assert np.abs(WHOLE).max() <= 1.0


def test_another_seed_is_another_soundscape() -> None:
    assert not np.array_equal(WHOLE, sound(Soundscape(dataclasses.replace(SETTINGS, seed=5))))


def test_events_lie_within_the_soundscape_in_order_of_onset() -> None:
    events = Soundscape(SETTINGS).events
    assert len(events) > 5
    assert [event.onset_s for event in events] == sorted(event.onset_s for event in events)
    assert all(0 <= event.onset_s < event.offset_s <= 75.3 for event in events)


def test_sound_is_loud_where_the_labels_say_and_quiet_where_they_do_not() -> None:
    scape = Soundscape(SETTINGS)
    loud = np.zeros(len(WHOLE), bool)
    for event in scape.events:
        first, last = round(event.onset_s * 16_000), round(event.offset_s * 16_000)
        loud[first:last] = True
        if event.gain_db > -20:
            assert np.abs(WHOLE[first:last]).max() > 0.5 * 10 ** (event.gain_db / 20)
    assert np.sqrt(np.mean(WHOLE[~loud] ** 2)) < 10 ** (-28 / 20)


def test_windows_carry_the_label_of_what_dominates_them() -> None:
    scape = Soundscape(SETTINGS)
    first = scape.events[0]
    middle_s = (first.onset_s + first.offset_s) / 2
    alone = [
        event for event in scape.events if event.onset_s < middle_s + 0.1 and event.offset_s > middle_s - 0.1
    ]
    expected = max(alone, key=lambda event: event.gain_db).kind
    assert scape.label_at(middle_s - 0.1, middle_s + 0.1) == expected
    busy = np.zeros(76_000, bool)
    for event in scape.events:
        busy[int(event.onset_s * 1_000) : int(event.offset_s * 1_000) + 1] = True
    for start_ms in range(0, 74_000, 960):
        if not busy[start_ms : start_ms + 961].any():
            assert scape.label_at(start_ms / 1_000, (start_ms + 960) / 1_000) == QUIET


def test_a_window_that_only_touches_an_event_has_no_label() -> None:
    scape = Soundscape(dataclasses.replace(SETTINGS, events_per_minute=4.0))
    onset_s = scape.events[0].onset_s
    assert scape.label_at(onset_s - 0.95, onset_s + 0.01) is None


def test_long_stretches_are_quiet() -> None:
    scape = Soundscape(SoundscapeSettings(seconds=3_600, seed=2))
    pauses = np.diff([0.0, *(event.onset_s for event in scape.events), 3_600.0])
    assert pauses.max() > 30
    assert 100 < len(scape.events) < 700
    assert {event.kind for event in scape.events} == set(EVENT_KINDS)


def test_a_day_is_planned_at_once_and_rendered_as_it_is_asked_for() -> None:
    blocks = Soundscape(SoundscapeSettings(seconds=86_400, seed=2)).blocks(1.0)
    assert [len(block) for block in islice(blocks, 3)] == [16_000] * 3


def test_written_files_hold_the_sound_and_its_labels(tmp_path: Path) -> None:
    scape = Soundscape(SETTINGS)
    scape.write(tmp_path / "s.wav", tmp_path / "s.csv")
    written, rate = soundfile.read(tmp_path / "s.wav", dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(written, WHOLE, atol=1e-4)
    with (tmp_path / "s.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["kind"] for row in rows] == [event.kind for event in scape.events]
    assert float(rows[0]["onset_s"]) == pytest.approx(scape.events[0].onset_s, abs=1e-4)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        Soundscape(SETTINGS).write(tmp_path / "nowhere" / "s.wav", tmp_path / "s.csv")


@pytest.mark.parametrize("kind", EVENT_KINDS)
def test_a_clip_repeats_with_its_seed_and_differs_with_another(kind: str) -> None:
    one = make_clip(kind, 3, seconds=2.0)
    assert one.shape == (32_000,)
    assert np.abs(one).max() <= 1.0
    np.testing.assert_array_equal(one, make_clip(kind, 3, seconds=2.0))
    assert not np.array_equal(one, make_clip(kind, 4, seconds=2.0))


def test_written_clips_can_be_found_with_their_labels(tmp_path: Path) -> None:
    recordings = find_recordings(write_clips(tmp_path / "clips", per_kind=2, seed=7, seconds=1.0))
    assert [recording.label for recording in recordings] == [kind for kind in EVENT_KINDS for _ in range(2)]
    assert {recording.fold for recording in recordings} == {1, 2}
    np.testing.assert_allclose(read(recordings[0].path, 16_000), make_clip(EVENT_KINDS[0], 7, 1.0), atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seconds", 0), ("seed", -1), ("quiet_share", 1.5), ("kinds", ("unicorn",)), ("kinds", ())],
)
def test_a_setting_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(SETTINGS, **{field: value})  # type: ignore[arg-type]


def test_an_unknown_kind_of_clip_is_refused() -> None:
    with pytest.raises(ConfigError, match="unicorn"):
        make_clip("unicorn", 0)


@pytest.mark.parametrize("seed", range(8))
def test_a_minute_is_never_without_events(seed: int) -> None:
    assert len(Soundscape(SoundscapeSettings(seconds=60, seed=seed, quiet_share=1.0)).events) > 0
