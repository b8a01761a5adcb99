from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.audio.files import Recording, read
from streamsplit.audio.synth import Soundscape, SoundscapeSettings
from streamsplit.audio.window import Block, Gap
from streamsplit.client.recording import RecordingSource, Skip, SoundscapeSource
from streamsplit.errors import ConfigError, RecordingError


class FakeTime:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    rng = np.random.default_rng(0)
    made = []
    for name, rate, label in (("a.wav", 16_000, "dog"), ("b.flac", 44_100, None), ("c.wav", 8_000, "rain")):
        soundfile.write(tmp_path / name, rng.uniform(-0.5, 0.5, rate), rate)
        made.append(Recording(tmp_path / name, name, label))
    return made


async def all_items(source: RecordingSource | SoundscapeSource) -> list[Block | Gap | Skip]:
    async with source:
        return [item async for item in source.items()]


def blocks_of(items: list[Block | Gap | Skip], name: str) -> np.ndarray:
    return np.concatenate(
        [item.samples for item in items if isinstance(item, Block) and item.mark and item.mark.source == name]
    )


async def test_recordings_are_played_whole_in_order_with_their_marks(recordings: list[Recording]) -> None:
    source = RecordingSource(recordings, 16_000)
    items = await all_items(source)
    for recording in recordings:
        np.testing.assert_allclose(
            blocks_of(items, recording.source), read(recording.path, 16_000), atol=1e-5
        )
    marks = list(dict.fromkeys(item.mark for item in items if isinstance(item, Block)))
    assert [(mark.source, mark.label) for mark in marks if mark] == [
        ("a.wav", "dog"),
        ("b.flac", None),
        ("c.wav", "rain"),
    ]
    assert source.recordings_done == 3


async def test_the_speed_does_not_change_what_is_heard(recordings: list[Recording]) -> None:
    time = FakeTime()
    fast = await all_items(RecordingSource(recordings, 16_000, "max"))
    paced = await all_items(RecordingSource(recordings, 16_000, "real", clock=time.clock, sleep=time.sleep))
    assert len(fast) == len(paced)
    for one, other in zip(fast, paced, strict=True):
        assert isinstance(one, Block)
        assert isinstance(other, Block)
        assert one.mark == other.mark
        np.testing.assert_array_equal(one.samples, other.samples)


async def test_a_block_says_when_it_was_due_however_late_it_is_taken(recordings: list[Recording]) -> None:
    time, due_s = FakeTime(), []
    async with RecordingSource(recordings, 16_000, "real", clock=time.clock, sleep=time.sleep) as source:
        began_s, heard = time.clock(), 0
        async for item in source.items():
            if isinstance(item, Block):
                heard += len(item.samples)
                due_s.append((item.captured_s, began_s + heard / 16_000))
                await time.sleep(5.0)  # whoever takes it is busy
    assert [said for said, _ in due_s] == pytest.approx([due for _, due in due_s])
    fast = await all_items(RecordingSource(recordings, 16_000, "max"))
    assert {item.captured_s for item in fast if isinstance(item, Block)} == {None}


@pytest.mark.parametrize(("speed", "seconds"), [("real", 3.0), (4.0, 0.75)])
async def test_blocks_come_when_they_would_have_been_heard(
    recordings: list[Recording], speed: float, seconds: float
) -> None:
    time = FakeTime()
    await all_items(RecordingSource(recordings, 16_000, speed, clock=time.clock, sleep=time.sleep))
    assert time.now_s - 100.0 == pytest.approx(seconds, abs=0.01)


async def test_a_late_consumer_is_caught_up_with_not_waited_for_again(recordings: list[Recording]) -> None:
    time = FakeTime()
    async with RecordingSource(recordings, 16_000, "real", clock=time.clock, sleep=time.sleep) as source:
        async for _ in source.items():
            time.now_s += 0.1  # work, a third of a block long, for 13 blocks or more
    assert 3.0 <= time.now_s - 100.0 < 3.4


async def test_a_recording_that_cannot_be_read_is_skipped_and_said_once(
    recordings: list[Recording], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    missing = Recording(tmp_path / "gone.wav", "gone.wav")
    mixed = [Recording(tmp_path / "bad.wav", "bad.wav"), recordings[0], missing, recordings[2]]
    with caplog.at_level(logging.WARNING):
        items = await all_items(RecordingSource(mixed, 16_000))
    skips = [item for item in items if isinstance(item, Skip)]
    assert [skip.source for skip in skips] == ["bad.wav", "gone.wav"]
    assert "no such file" in skips[1].reason
    assert len(blocks_of(items, "a.wav")) == len(blocks_of(items, "c.wav")) == 16_000
    assert len(caplog.records) == 2


async def test_the_sound_before_a_break_is_played_and_then_the_break_recorded(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    soundfile.write(path, np.full(64_000, 0.1), 16_000)
    path.write_bytes(path.read_bytes()[:64_044])
    items = await all_items(RecordingSource([Recording(path, "cut.wav")], 16_000))
    assert len(blocks_of(items, "cut.wav")) == 32_000
    assert isinstance(items[-1], Skip)
    assert "cut short" in items[-1].reason


async def test_each_pass_of_a_loop_is_a_recording_of_its_own(recordings: list[Recording]) -> None:
    names: list[str] = []
    async with RecordingSource(recordings[:1], 16_000, loop=True) as source:
        async for item in source.items():
            assert isinstance(item, Block)
            assert item.mark is not None
            if item.mark.source not in names:
                names.append(item.mark.source)
            if len(names) == 3:
                break
    assert names == ["a.wav", "a.wav#2", "a.wav#3"]


async def test_a_loop_without_anything_to_hear_ends(tmp_path: Path) -> None:
    source = RecordingSource([Recording(tmp_path / "gone.wav", "gone.wav")], 16_000, loop=True)
    with pytest.raises(RecordingError, match="none of 1"):
        await all_items(source)


async def test_leaving_early_closes_the_file(recordings: list[Recording], tmp_path: Path) -> None:
    async with RecordingSource(recordings, 16_000) as source:
        async for _ in source.items():
            break
    open_files = (
        [Path(link).resolve() for link in Path("/proc/self/fd").glob("*")]
        if Path("/proc/self/fd").exists()
        else []
    )
    assert not any(path.is_relative_to(tmp_path) for path in open_files)


async def test_a_cancelled_listener_leaves_nothing_running(recordings: list[Recording]) -> None:
    source = RecordingSource(recordings, 16_000, "real")
    listener = asyncio.create_task(all_items(source))
    await asyncio.sleep(0.05)
    listener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listener
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_soundscape_is_played_as_it_was_made() -> None:
    scape = Soundscape(SoundscapeSettings(seconds=5.1, seed=1))
    time = FakeTime()
    items = await all_items(SoundscapeSource(scape, "real", clock=time.clock, sleep=time.sleep))
    assert all(isinstance(item, Block) and item.mark is None for item in items)
    played = np.concatenate([item.samples for item in items if isinstance(item, Block)])
    np.testing.assert_array_equal(played, np.concatenate(list(scape.blocks())))
    assert time.now_s - 100.0 == pytest.approx(5.1, abs=0.01)


@pytest.mark.parametrize("speed", ["slow", 0.0, -1.0, float("inf"), float("nan")])
def test_a_speed_that_is_none_is_refused(recordings: list[Recording], speed: float) -> None:
    with pytest.raises(ConfigError, match="speed"):
        RecordingSource(recordings, 16_000, speed)


def test_nothing_to_play_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        RecordingSource([], 16_000)
