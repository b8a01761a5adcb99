from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from streamsplit.client.telemetry import MachineTelemetry, PsutilSystem, RaspberryThrottle, throttled_now
from streamsplit.learning.pacing import BudgetSettings, learn


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class MadeSystem:
    """A machine that says what it is told, and counts how often it is asked."""

    def __init__(self) -> None:
        self.busy_s, self.all_s, self.own_s = 13.5, 100.0, 3.5
        self.asked: dict[str, int] = {}

    def cpu_seconds(self) -> tuple[float, float]:
        self._count("cpu")
        return self.busy_s, self.all_s

    def memory_percent(self) -> float:
        return 42.0

    def temperature_c(self) -> float | None:
        self._count("temperature")
        return 61.5

    def battery(self) -> tuple[float | None, bool | None]:
        return 80.0, False

    def throttled(self) -> bool | None:
        return None

    def process(self) -> tuple[float, int]:
        return self.own_s, 1_000_000

    def work(self, busy_s: float, all_s: float) -> None:
        self.busy_s += busy_s
        self.all_s += all_s

    def _count(self, what: str) -> None:
        self.asked[what] = self.asked.get(what, 0) + 1


def test_the_load_is_that_since_the_reading_before() -> None:
    clock, system = Clock(), MadeSystem()
    telemetry = MachineTelemetry(clock, system)
    for busy_s, expected in ((1.0, 25.0), (4.0, 100.0), (0.0, 0.0)):
        system.work(busy_s, 4.0)
        clock.now_s += 1.0
        assert telemetry.read().cpu_percent == pytest.approx(expected)


def test_its_own_work_is_no_load() -> None:
    clock, system = Clock(), MadeSystem()
    telemetry = MachineTelemetry(clock, system)
    system.work(3.0, 4.0)
    system.own_s += 2.0
    clock.now_s += 1.0
    assert telemetry.read().cpu_percent == pytest.approx(25.0)


class Training(threading.Event):
    """A trainer that yields to all others on a machine of so many cores: its work takes time, and its waiting does, too.

    Others want a share of the machine: 20 % for the first 100 s, `foreign` after that.
    """

    def __init__(self, cores: int, foreign: float) -> None:
        super().__init__()
        self.clock, self.system = Clock(), MadeSystem()
        self.cores, self.foreign = cores, foreign
        self.busy_from_s = self.clock.now_s + 100.0
        self.worked_s: list[float] = []

    @property
    def others(self) -> float:
        return self.foreign if self.clock.now_s >= self.busy_from_s else 0.2

    def step(self) -> object:
        self.worked_s.append(self.clock.now_s)
        self.pass_time(0.05 / min(1.0, self.cores * (1.0 - self.others)), own_s=0.05)
        return self

    def wait(self, timeout: float | None = None) -> bool:
        self.pass_time(timeout or 0.0, own_s=0.0)
        return self.is_set()

    def is_set(self) -> bool:
        return self.clock.now_s >= self.busy_from_s + 100.0

    def pass_time(self, seconds: float, own_s: float) -> None:
        self.system.work(self.others * self.cores * seconds + own_s, self.cores * seconds)
        self.system.own_s += own_s
        self.clock.now_s += seconds


@pytest.mark.parametrize("cores", [1, 4])
@pytest.mark.parametrize("foreign", [0.81, 0.99])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_training_pauses_for_others_load_and_not_for_its_own(
    cores: int, foreign: float, share: float
) -> None:
    made = Training(cores, foreign)
    telemetry = MachineTelemetry(made.clock, made.system)
    learn(made, BudgetSettings(core_share=share, cpu_percent=80.0), telemetry.read, made, made.clock)
    calm = [at_s for at_s in made.worked_s if at_s < made.busy_from_s]
    busy = [at_s - made.busy_from_s for at_s in made.worked_s if at_s >= made.busy_from_s]
    assert len(calm) * 0.05 >= 100.0 * min(share, 0.8) - 5.0, "its own load is none"
    assert all(at_s < 6.0 for at_s in busy), "until a reading has seen it"


def test_a_first_reading_at_once_is_the_load_since_boot() -> None:
    assert MachineTelemetry(Clock(), MadeSystem()).read().cpu_percent == pytest.approx(10.0)


def test_readings_are_made_at_most_twice_a_second_and_sensors_every_two_seconds() -> None:
    clock, system = Clock(), MadeSystem()
    telemetry = MachineTelemetry(clock, system)
    first = telemetry.read()
    for _ in range(100):
        assert telemetry.read() is first
        clock.now_s += 0.004
    assert system.asked == {"cpu": 2, "temperature": 1}
    for _ in range(9):
        clock.now_s += 1.0
        telemetry.read()
    assert system.asked == {"cpu": 11, "temperature": 5}


async def test_whoever_asks_is_not_kept_waiting_while_readings_are_kept_fresh() -> None:
    clock, system = Clock(), MadeSystem()
    telemetry = MachineTelemetry(clock, system, cached_s=0.01)
    keeping = asyncio.create_task(telemetry.keep_fresh())
    await asyncio.sleep(0.05)
    made = system.asked["cpu"]
    assert made >= 3
    clock.now_s += 0.015
    telemetry.read()
    assert system.asked["cpu"] == made
    clock.now_s += 0.01  # its maker has been held up: the reading is too old
    telemetry.read()
    assert system.asked["cpu"] == made + 1
    keeping.cancel()
    await asyncio.wait([keeping])
    clock.now_s += 0.015
    telemetry.read()
    assert system.asked["cpu"] == made + 2


def test_everything_the_system_says_is_in_the_reading() -> None:
    reading = MachineTelemetry(Clock(), MadeSystem()).read()
    assert (reading.memory_percent, reading.temperature_c, reading.throttled) == (42.0, 61.5, None)
    assert (reading.battery_percent, reading.on_mains) == (80.0, False)
    assert (reading.process_cpu_s, reading.rss_bytes) == (3.5, 1_000_000)


def test_the_real_machine_answers_in_range() -> None:
    telemetry = MachineTelemetry(time.monotonic, PsutilSystem(), cached_s=0.0)
    spin_until_s = time.process_time() + 0.1
    while time.process_time() < spin_until_s:
        pass
    for _ in range(2):
        reading = telemetry.read()
        assert 0.0 <= reading.cpu_percent <= 100.0
        assert 0.0 < reading.memory_percent <= 100.0
        assert reading.process_cpu_s > 0.05
        assert reading.rss_bytes > 1_000_000
        assert reading.temperature_c is None or -20 < reading.temperature_c < 130
        assert reading.battery_percent is None or 0 <= reading.battery_percent <= 100


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("throttled=0x0\n", False),
        ("throttled=0x50000", False),
        ("throttled=0x1", True),
        ("throttled=0x2", True),
        ("throttled=0x4", True),
        ("throttled=0xe0008", True),
        ("50005\n", True),
        ("0\n", False),
        ("VCHI initialization failed", None),
        ("", None),
    ],
)
def test_the_firmware_s_answer_is_about_now_not_about_since_boot(answer: str, expected: bool | None) -> None:
    assert throttled_now(answer) is expected


def test_the_firmware_s_file_is_read_every_ten_seconds(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "get_throttled"
    file.write_text("0\n")
    throttle = RaspberryThrottle(clock, file, command="")
    assert throttle.read() is False
    file.write_text("4\n")
    clock.now_s += 9.0
    assert throttle.read() is False
    clock.now_s += 1.0
    assert throttle.read() is True


def tool(tmp_path: Path, body: str) -> str:
    path = tmp_path / "vcgencmd"
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return str(path)


def read_until_known(throttle: RaspberryThrottle) -> bool | None:
    for _ in range(500):
        known = throttle.read()
        if known is not None:
            return known
        time.sleep(0.02)
    return None


def test_the_tool_s_answer_is_picked_up_when_it_is_there(tmp_path: Path) -> None:
    command = tool(
        tmp_path, "import sys; print('throttled=0x' + ('4' if sys.argv[1:] == ['get_throttled'] else '0'))"
    )
    throttle = RaspberryThrottle(Clock(), tmp_path / "none", command)
    assert throttle.read() is None
    assert read_until_known(throttle) is True


def test_a_tool_that_hangs_is_ended_and_nothing_waits_for_it(tmp_path: Path) -> None:
    clock = Clock()
    throttle = RaspberryThrottle(clock, tmp_path / "none", tool(tmp_path, "import time; time.sleep(600)"))
    assert throttle.read() is None
    assert throttle._running is not None
    process = throttle._running
    clock.now_s += 6.0
    assert throttle.read() is None
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize("command", ["", "/nowhere/vcgencmd"])
def test_without_firmware_throttling_is_not_known(tmp_path: Path, command: str) -> None:
    clock = Clock()
    throttle = RaspberryThrottle(clock, tmp_path / "none", command)
    for _ in range(3):
        assert throttle.read() is None
        clock.now_s += 20.0
