"""What the device can say of itself: load, memory, heat, power. Measured with psutil, at most twice a second."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

log = logging.getLogger(__name__)

# Names psutil gives a processor's own sensor, by kernel driver: Intel, AMD, Raspberry Pi and other boards, laptops' ACPI last.
_PROCESSOR_SENSORS = (
    "coretemp",
    "k10temp",
    "zenpower",
    "cpu_thermal",
    "cpu-thermal",
    "soc_thermal",
    "acpitz",
)
_SENSORS_EVERY_S = 2.0
_THROTTLE_EVERY_S = 10.0
_VCGENCMD_TIMEOUT_S = 5.0
_LEAST_LOAD_SPAN_S = 0.05

# Bits of the Raspberry Pi's get_throttled that are true now (bits 16-19: have been since boot).
_THROTTLED_NOW = 0b1111  # under-voltage, frequency capped, throttled, soft temperature limit


@dataclass(frozen=True, slots=True)
class MachineReading:
    """The machine and this process at one moment. None: this system does not tell.

    Attributes:
        cpu_percent: load of the whole machine since the reading before but for this process', 0..100: what a decision finds there,
            not what the last one has made of it.
        memory_percent: memory that programs cannot have, 0..100.
        temperature_c: hottest processor sensor.
        throttled: the processor is slowed down now, for heat or under-voltage.
        battery_percent: 0..100; None also without a battery.
        on_mains: charging, or without a battery.
        process_cpu_s: processor seconds of this process since it began, all threads.
        rss_bytes: its resident memory.
    """

    cpu_percent: float
    memory_percent: float
    temperature_c: float | None
    throttled: bool | None
    battery_percent: float | None
    on_mains: bool | None
    process_cpu_s: float
    rss_bytes: int


class System(Protocol):
    """What `MachineTelemetry` asks the operating system."""

    def cpu_seconds(self) -> tuple[float, float]:
        """(busy, all) processor seconds since boot, over all cores."""

    def memory_percent(self) -> float:
        """0..100."""

    def temperature_c(self) -> float | None:
        """Hottest processor sensor."""

    def battery(self) -> tuple[float | None, bool | None]:
        """(percent, on mains)."""

    def throttled(self) -> bool | None:
        """Slowed down now."""

    def process(self) -> tuple[float, int]:
        """(processor seconds, resident bytes) of this process."""


class MachineTelemetry:
    """Readings of the machine, each used for `cached_s` before another is made (one costs 0.3 ms).

    Whoever asks waits for it, unless `keep_fresh` runs: then readings are made between windows, not on a window's way.

    The first reading's load is the average since boot if it comes less than 50 ms of processor time after the start.

    Args:
        clock: monotonic seconds.
        system: whom to ask.
        cached_s: at least 0.5: a load over less is noise.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        system: System | None = None,
        cached_s: float = 0.5,
    ) -> None:
        self._clock = clock
        self._system = system or PsutilSystem(clock)
        self._cached_s = cached_s
        busy_s, all_s = self._system.cpu_seconds()
        self._cpu = busy_s - self._system.process()[0], all_s
        self._load_percent: float | None = None
        self._sensors: tuple[float | None, float | None, bool | None] = (None, None, None)
        self._sensors_at_s: float | None = None
        self._reading: MachineReading | None = None
        self._read_at_s = 0.0
        self._oldest_s = cached_s

    def read(self) -> MachineReading:
        """The machine now, or at most `cached_s` ago; twice that while `keep_fresh` runs."""
        now_s = self._clock()
        if self._reading is None or now_s - self._read_at_s >= self._oldest_s:
            self._reading, self._read_at_s = self._measure(now_s), now_s
        return self._reading

    async def keep_fresh(self) -> None:
        """Makes a reading every `cached_s`, until it is cancelled."""
        self._oldest_s = 2 * self._cached_s
        try:
            while True:
                now_s = self._clock()
                self._reading, self._read_at_s = self._measure(now_s), now_s
                await asyncio.sleep(self._cached_s)
        finally:
            self._oldest_s = self._cached_s

    def _measure(self, now_s: float) -> MachineReading:
        if self._sensors_at_s is None or now_s - self._sensors_at_s >= _SENSORS_EVERY_S:
            self._sensors = (self._system.temperature_c(), *self._system.battery())
            self._sensors_at_s = now_s
        temperature_c, battery_percent, on_mains = self._sensors
        process_cpu_s, rss_bytes = self._system.process()
        return MachineReading(
            cpu_percent=self._load(process_cpu_s),
            memory_percent=self._system.memory_percent(),
            temperature_c=temperature_c,
            throttled=self._system.throttled(),
            battery_percent=battery_percent,
            on_mains=on_mains,
            process_cpu_s=process_cpu_s,
            rss_bytes=rss_bytes,
        )

    def _load(self, own_s: float) -> float:
        busy_s, all_s = self._system.cpu_seconds()
        busy_s -= own_s
        span_s = all_s - self._cpu[1]
        if span_s >= _LEAST_LOAD_SPAN_S:
            self._load_percent = 100.0 * min(1.0, max(0.0, (busy_s - self._cpu[0]) / span_s))
            self._cpu = busy_s, all_s
        elif self._load_percent is None:
            self._load_percent = 100.0 * busy_s / all_s if all_s > 0 else 0.0
        return self._load_percent


class PsutilSystem:
    """The real machine."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._process = psutil.Process()
        self._throttle = RaspberryThrottle(clock)

    def cpu_seconds(self) -> tuple[float, float]:
        """Own sums rather than `psutil.cpu_percent`, which keeps one state per thread and answers 0.0 to each thread's first call."""
        times = psutil.cpu_times()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts guests' time in user and nice already.
        all_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return all_s - idle_s, all_s

    def memory_percent(self) -> float:
        """Of all physical memory."""
        return float(psutil.virtual_memory().percent)

    def temperature_c(self) -> float | None:
        """None on systems without sensors (macOS, most virtual machines)."""
        if not hasattr(psutil, "sensors_temperatures"):
            return None
        sensors = psutil.sensors_temperatures()
        for name in _PROCESSOR_SENSORS:
            known = [entry.current for entry in sensors.get(name, ()) if entry.current is not None]
            if known:
                return float(max(known))
        return None

    def battery(self) -> tuple[float | None, bool | None]:
        """A machine without a battery is on mains."""
        if not hasattr(psutil, "sensors_battery"):
            return None, None
        battery = psutil.sensors_battery()
        if battery is None:
            return None, True
        return float(battery.percent), None if battery.power_plugged is None else bool(battery.power_plugged)

    def throttled(self) -> bool | None:
        """Known on a Raspberry Pi only."""
        return self._throttle.read()

    def process(self) -> tuple[float, int]:
        """Processor seconds (user and system) and resident bytes."""
        with self._process.oneshot():
            times = self._process.cpu_times()
            return times.user + times.system, int(self._process.memory_info().rss)


class RaspberryThrottle:
    """Whether a Raspberry Pi is slowed down now, asked every 10 s and never waited for.

    The firmware's file in sysfs where the kernel has it; otherwise ``vcgencmd``, started at one reading and looked at in the next ones
    (killed after 5 s: a hanging firmware call must not hang the microphone).

    Args:
        clock: monotonic seconds.
        file: the firmware's file.
        command: the tool; None: as found on the path; "": none.
    """

    FILE = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")

    def __init__(self, clock: Callable[[], float], file: Path = FILE, command: str | None = None) -> None:
        self._clock = clock
        self._file = file if file.is_file() else None
        self._command = shutil.which("vcgencmd") if command is None else command
        self._asked_s: float | None = None
        self._running: subprocess.Popen[bytes] | None = None
        self._throttled: bool | None = None

    def read(self) -> bool | None:
        """The last answer; None where there is none (yet)."""
        now_s = self._clock()
        if self._running is not None:
            self._look(self._running, now_s)
        elif self._asked_s is None or now_s - self._asked_s >= _THROTTLE_EVERY_S:
            self._asked_s = now_s
            self._ask()
        return self._throttled

    def close(self) -> None:
        """Ends a tool that is still running."""
        if self._running is not None:
            self._running.kill()
            self._running.communicate()
            self._running = None

    def _ask(self) -> None:
        if self._file is not None:
            try:
                self._throttled = throttled_now(self._file.read_text(encoding="ascii"))
            except OSError as error:
                log.warning("%s: %s; asking vcgencmd instead", self._file, error.strerror)
                self._file = None
        elif self._command:
            try:
                self._running = subprocess.Popen(
                    [self._command, "get_throttled"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            except OSError as error:
                log.warning("%s cannot be run: %s; throttling is not known", self._command, error.strerror)
                self._command = ""

    def _look(self, running: subprocess.Popen[bytes], now_s: float) -> None:
        if running.poll() is not None:
            answer, _ = running.communicate()
            self._throttled = throttled_now(answer.decode("ascii", "replace"))
            self._running = None
        elif now_s - (self._asked_s or now_s) > _VCGENCMD_TIMEOUT_S:
            self.close()


def throttled_now(answer: str) -> bool | None:
    """Reads the firmware's answer; None when it is none.

    >>> throttled_now("throttled=0x50000"), throttled_now("throttled=0x50005"), throttled_now("4\\n"), throttled_now("error")
    (False, True, True, None)
    """
    try:
        return bool(int(answer.strip().removeprefix("throttled="), 16) & _THROTTLED_NOW)
    except ValueError:
        return None
