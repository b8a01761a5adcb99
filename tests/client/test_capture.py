from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.audio.synth import make_clip
from streamsplit.audio.window import Block, Gap
from streamsplit.client.audio_system import DeviceInfo, Hear, Inbox, find_device
from streamsplit.client.capture import MicrophoneSettings, MicrophoneSource, list_devices
from streamsplit.errors import CaptureError, ConfigError

BUILT_IN = DeviceInfo(0, "Built-in microphone", 2, 44_100, False)
USB = DeviceInfo(3, "USB Audio: hw:1,0", 1, 48_000, True)


@dataclass
class FakeDevice:
    hear: Hear
    alive: bool = True
    closed: bool = False

    def close(self) -> None:
        self.closed, self.alive = True, False


@dataclass
class FakeSystem:
    """An audio system whose devices hear what the test says."""

    plugged: list[DeviceInfo] = field(default_factory=lambda: [BUILT_IN, USB])
    opened: list[FakeDevice] = field(default_factory=list)
    chosen: list[DeviceInfo] = field(default_factory=list)
    on_open: Callable[[], None] = lambda: None
    rescans: int = 0
    block_samples: int = 0

    def devices(self) -> list[DeviceInfo]:
        return list(self.plugged)

    def rescan(self) -> None:
        self.rescans += 1

    def open(self, device: DeviceInfo, block_samples: int, hear: Hear) -> FakeDevice:
        if device not in self.plugged:
            raise CaptureError(f"microphone {device.name!r} cannot be opened: gone")
        self.block_samples = block_samples
        self.chosen.append(device)
        self.opened.append(FakeDevice(hear))
        self.on_open()
        return self.opened[-1]

    def hears(self, blocks: int, value: float = 0.1, at_s: float = 0.0, overflowed: bool = False) -> None:
        for _ in range(blocks):
            self.opened[-1].hear(np.full(self.block_samples, value, np.float32), at_s, overflowed)


class FakeTime:
    """A clock that stands still unless told, and goes on in `sleep`; used from two threads."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self.on_sleep: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.on_sleep()
        await asyncio.sleep(0)


def source_of(
    system: FakeSystem, time: FakeTime, settings: MicrophoneSettings | None = None
) -> MicrophoneSource:
    return MicrophoneSource(settings or MicrophoneSettings(), system, clock=time.clock, sleep=time.sleep)


async def take(items: AsyncIterator[Block | Gap], samples: int) -> list[Block | Gap]:
    """Items until `samples` samples have been heard or missed."""
    taken: list[Block | Gap] = []
    while sum(item.samples if isinstance(item, Gap) else len(item.samples) for item in taken) < samples:
        taken.append(await asyncio.wait_for(anext(items), 20))
    return taken


def gaps(items: list[Block | Gap]) -> list[Gap]:
    return [item for item in items if isinstance(item, Gap)]


def test_devices_are_listed_with_the_default_first() -> None:
    assert list_devices(FakeSystem()) == [USB, BUILT_IN]


@pytest.mark.parametrize(
    ("wanted", "found"), [(None, USB), (0, BUILT_IN), ("3", USB), ("built-IN", BUILT_IN), ("hw:1", USB)]
)
def test_a_device_is_found_by_index_part_of_its_name_or_default(
    wanted: str | int | None, found: DeviceInfo
) -> None:
    assert find_device([BUILT_IN, USB], wanted) == found


@pytest.mark.parametrize("wanted", [7, "7", "headset"])
def test_a_device_that_is_not_there_is_answered_with_those_that_are(wanted: str | int) -> None:
    with pytest.raises(CaptureError, match=r"0 'Built-in microphone', 3 'USB Audio: hw:1,0'"):
        find_device([BUILT_IN, USB], wanted)


async def test_a_machine_without_a_microphone_says_so() -> None:
    with pytest.raises(CaptureError, match="no microphone found"):
        async with source_of(FakeSystem(plugged=[]), FakeTime()):
            pass


async def test_sound_at_the_native_rate_comes_out_at_the_wanted_one() -> None:
    system = FakeSystem()
    async with source_of(system, FakeTime()) as source:
        system.hears(11, value=0.25)
        items = await take(source.items(), 16_000)
    assert system.block_samples == 4_800
    heard = np.concatenate([item.samples for item in items if isinstance(item, Block)])
    np.testing.assert_allclose(heard[100:16_000], 0.25, atol=0.01)
    assert not gaps(items)
    assert system.opened[0].closed


async def test_a_full_queue_is_a_gap_as_long_as_what_was_dropped() -> None:
    system, time = FakeSystem(), FakeTime()
    async with source_of(system, time, MicrophoneSettings(queue_s=0.5)) as source:
        items = source.items()
        system.hears(8)  # five find room, three do not
        first = await take(items, 7_990)
        system.hears(5)
        rest = await take(items, 4_800 + 7_900)
        assert source.overruns == 3
    assert gaps(first + rest) == [Gap(4_800, "overrun")]


async def test_samples_the_audio_system_dropped_are_measured_by_its_clock() -> None:
    system = FakeSystem()
    async with source_of(system, FakeTime()) as source:
        system.hears(1, at_s=10.0)
        system.hears(1, at_s=10.1 + 0.25, overflowed=True)
        system.hears(1, at_s=10.45)
        items = await take(source.items(), 3 * 1_600 + 4_000 - 10)
        assert source.overruns == 1
    assert gaps(items) == [Gap(4_000, "overrun")]


def test_without_a_clock_a_reported_loss_counts_as_one_block() -> None:
    inbox = Inbox(48_000, 4, lambda: 0.0)
    inbox.put(np.zeros(480, np.float32), 0.0, True)
    heard = inbox.get(0.0)
    assert heard is not None
    assert heard.lost == 480


async def test_a_lost_device_is_waited_for_and_the_time_is_a_gap() -> None:
    system, time = FakeSystem(), FakeTime()
    async with source_of(system, time, MicrophoneSettings("usb")) as source:
        items = source.items()
        time.now_s += 0.1
        system.hears(1)
        await take(items, 1_590)
        system.opened[-1].alive = False
        system.plugged = [BUILT_IN]
        seen: list[bool] = []

        def somebody_plugs_it_in_after_ten_seconds() -> None:
            seen.append(source.lost)
            if time.now_s >= 60.0:
                system.plugged = [BUILT_IN, USB]

        def first_block() -> None:
            time.now_s += 0.1
            system.hears(1)

        time.on_sleep, system.on_open = somebody_plugs_it_in_after_ten_seconds, first_block
        found = await take(items, 10 * 16_000 + 1_590)
        assert not source.lost
    assert all(seen)
    assert found[0] == Gap(round((time.now_s - 0.1 - 50.1) * 16_000), "device lost")
    assert system.chosen == [USB, USB]
    assert system.rescans == 10
    assert all(device.closed for device in system.opened)


async def test_a_device_that_falls_silent_is_opened_again() -> None:
    system, time = FakeSystem(), FakeTime()
    async with source_of(system, time) as source:
        items = source.items()
        system.hears(1)
        await take(items, 1_590)
        system.on_open = lambda: system.hears(1)
        waiting = asyncio.create_task(take(items, 4 * 16_000))
        await asyncio.sleep(0.05)
        time.now_s += 3.1  # nothing was heard
        found = await waiting
    assert [item.reason for item in gaps(found)] == ["device lost"]
    assert len(system.opened) == 2


async def test_a_long_loss_shows_before_it_ends() -> None:
    system, time = FakeSystem(), FakeTime()
    async with source_of(system, time) as source:
        items = source.items()
        system.hears(1)
        await take(items, 1_590)
        system.opened[-1].alive, system.plugged = False, []
        found = await take(items, 150 * 16_000)
        assert source.lost
    assert all(isinstance(item, Gap) for item in found)
    assert sum(gap.samples for gap in gaps(found)) == round((time.now_s - 50.0) * 16_000)
    assert max(gap.samples for gap in gaps(found)) <= 61 * 16_000


async def test_a_device_chosen_by_index_is_looked_for_by_name_when_lost() -> None:
    system, time = FakeSystem(), FakeTime()
    async with source_of(system, time, MicrophoneSettings(3)) as source:
        items = source.items()
        system.hears(1)
        await take(items, 1_590)
        system.opened[-1].alive = False
        moved = DeviceInfo(1, USB.name, 1, 48_000, True)
        system.plugged = [BUILT_IN, moved]
        system.on_open = lambda: system.hears(1)
        await take(items, 15_900)
    assert system.chosen == [USB, moved]


@pytest.mark.parametrize(("field_name", "value"), [("sample_rate_hz", 0), ("block_ms", 5), ("queue_s", 0.1)])
def test_a_setting_out_of_range_is_named(field_name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field_name):
        MicrophoneSettings(**{field_name: value})  # type: ignore[arg-type]


# --- a real sound server: what is played into a null sink is what its monitor, the default microphone, hears


class SoundServer:
    """A private pulseaudio whose microphone hears what is played."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "XDG_RUNTIME_DIR": str(folder),
            "HOME": str(folder),
            "PULSE_SERVER": f"unix:{folder}/native",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        modules = (
            f"module-native-protocol-unix socket={self.folder}/native auth-anonymous=1",
            "module-null-sink sink_name=speaker rate=48000",
        )
        arguments = [
            "pulseaudio",
            "-n",
            "--exit-idle-time=-1",
            "--disallow-exit",
            "--daemonize=no",
            "--use-pid-file=no",
        ]
        arguments += [part for module in modules for part in ("-L", module)]
        self._process = subprocess.Popen(
            arguments, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(100):
            if self.command("pactl", "set-default-source", "speaker.monitor").returncode == 0:
                return
            time.sleep(0.1)
        self.stop()
        pytest.skip("pulseaudio does not start here")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(arguments, env=self.environment, capture_output=True, check=False)


def why_no_microphone() -> str | None:
    if not all(shutil.which(tool) for tool in ("pulseaudio", "pactl", "paplay")):
        return "needs pulseaudio and pulseaudio-utils"
    # Asked in another process: without PortAudio the import of sounddevice raises.
    asked = subprocess.run([sys.executable, "-c", "import sounddevice"], capture_output=True, check=False)
    return None if asked.returncode == 0 else "needs sounddevice and PortAudio (libportaudio2)"


@pytest.fixture
def sound_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoundServer]:
    reason = why_no_microphone()
    if reason:
        pytest.skip(reason)
    server = SoundServer(tmp_path)
    for name in ("XDG_RUNTIME_DIR", "HOME", "PULSE_SERVER"):
        monkeypatch.setenv(name, server.environment[name])
    server.start()
    yield server
    server.stop()


@pytest.mark.microphone
async def test_what_is_played_to_the_microphone_is_what_is_heard(sound_server: SoundServer) -> None:
    if not any(device.name == "pulse" for device in list_devices()):
        pytest.skip("needs ALSA's pulse device (libasound2-plugins)")
    played = make_clip("speech_babble", 5, seconds=2.0)
    soundfile.write(sound_server.folder / "played.wav", np.pad(played, (16_000, 0)), 16_000)
    async with MicrophoneSource(MicrophoneSettings("pulse")) as source:
        items = source.items()
        playing = asyncio.create_task(
            asyncio.to_thread(
                sound_server.command, "paplay", "--device=speaker", str(sound_server.folder / "played.wav")
            )
        )
        found = await take(items, 5 * 16_000)
        assert (await playing).returncode == 0
        assert source.overruns == 0
    assert not gaps(found)
    heard = np.concatenate([item.samples for item in found if isinstance(item, Block)])
    assert similarity(played, heard) > 0.95


@pytest.mark.microphone
async def test_a_sound_server_that_dies_and_comes_back_is_listened_to_again(
    sound_server: SoundServer,
) -> None:
    if not any(device.name == "pulse" for device in list_devices()):
        pytest.skip("needs ALSA's pulse device (libasound2-plugins)")
    async with MicrophoneSource(MicrophoneSettings("pulse")) as source:
        items = source.items()
        await take(items, 8_000)
        sound_server.stop()
        sound_server.start()
        began_s = time.monotonic()
        after: list[Block | Gap] = []
        while not (gaps(after) and isinstance(after[-1], Block)):
            after.append(await asyncio.wait_for(anext(items), 30))
        waited_s = time.monotonic() - began_s
        await take(items, 8_000)
    assert {gap.reason for gap in gaps(after)} == {"device lost"}
    assert 0 < gaps(after)[0].samples / 16_000 < waited_s + 5


def similarity(played: np.ndarray, heard: np.ndarray) -> float:
    """Largest normalised correlation of `played` with a stretch of `heard`."""
    size = len(heard) + len(played)
    products = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played, size)), size)[
        : len(heard) - len(played) + 1
    ]
    sums = np.concatenate([[0.0], np.cumsum(heard.astype(np.float64) ** 2)])
    energy = sums[len(played) :] - sums[: -len(played)]
    return float(
        np.max(products / np.sqrt(np.maximum(energy, 1e-9) * np.sum(played.astype(np.float64) ** 2)))
    )
