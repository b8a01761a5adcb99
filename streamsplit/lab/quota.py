"""A share of one processor core for some processes, so that a fast machine stands for a slow device.

Three ways, the first that works: a cgroup of version 2, one of version 1 (both need write access to the hierarchy, hence root
or a delegated subtree), and stopping and continuing the processes from outside (`duty-cycle`). `Quota.method` says which it was.

The kernel hands out time in slices: work that is shorter than about a slice (4 ms where the timer ticks at 250 Hz) is slowed
down less than its quota says, longer work as told. `calibrate` measures both, and reports carry it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Protocol, Self

import psutil

from streamsplit.errors import StorageError, StreamSplitError

Method = Literal["cgroup-2", "cgroup-1", "duty-cycle", "none"]

CGROUPS: Final = Path("/sys/fs/cgroup")
PERIOD_US: Final = 10_000
"""The shortest that leaves a tenth of a core its kernel's minimum of 1 ms."""

DUTY_PERIOD_S: Final = 0.02


class Quota(Protocol):
    """A share of a core. A context manager: leaving it lets the processes go unhindered.

    Attributes:
        method: how.
        usage: the kernel's file that counts the processor time of its processes, while it is entered; None: there is none.
    """

    method: Method
    usage: Path | None

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def add(self, pid: int) -> None:
        """Puts a process under the quota, with the children it will have."""


class NoQuota:
    """The whole core."""

    method: Method = "none"
    usage: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def add(self, pid: int) -> None:
        """Nothing to do."""


class CgroupQuota:
    """A cgroup with a bandwidth limit.

    Args:
        share: of one core, above 0; from 1 on there is no limit, and the group only counts.
        name: of the group, made on entry and removed on exit.
        version: 1 or 2.
        root: where the hierarchies are mounted.

    Raises:
        StorageError: on entry, when the group cannot be made.
    """

    def __init__(self, share: float, name: str, version: Literal[1, 2], root: Path = CGROUPS) -> None:
        self.method: Method = "cgroup-2" if version == 2 else "cgroup-1"
        self._quota_us = max(1000, round(share * PERIOD_US))
        self._period_us = round(self._quota_us / share)
        self._version, self._limited = version, share < 1.0
        self._folder = (root if version == 2 else root / "cpu") / name
        self._counting = self._folder if version == 2 else root / "cpuacct" / name
        self.usage: Path | None = self._counting / ("cpu.stat" if version == 2 else "cpuacct.usage")

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir()
            if self._counting != self._folder and not self._counting.exists():  # one mount may serve both
                self._counting.mkdir()
            if not self._limited:
                pass
            elif self._version == 2:
                _put(self._folder / "cpu.max", f"{self._quota_us} {self._period_us}")
            else:
                _put(self._folder / "cpu.cfs_period_us", str(self._period_us))
                _put(self._folder / "cpu.cfs_quota_us", str(self._quota_us))
        except OSError as error:
            self.__exit__()
            raise StorageError(f"{self._folder}: no quota can be set: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        for folder in {self._folder, self._counting}:
            with contextlib.suppress(OSError):
                for pid in (folder / "cgroup.procs").read_text().split():
                    with contextlib.suppress(OSError):
                        _put(folder.parent / "cgroup.procs", pid)
            with contextlib.suppress(OSError):
                folder.rmdir()

    def add(self, pid: int) -> None:
        """Moves a process into the group.

        Raises:
            StorageError: it is not allowed, or the process has ended.
        """
        try:
            for folder in {self._folder, self._counting}:
                _put(folder / "cgroup.procs", str(pid))
        except OSError as error:
            raise StorageError(
                f"{self._folder}: process {pid} cannot be limited: {error.strerror}"
            ) from error


def _put(file: Path, text: str) -> None:
    """Writes to a file that must be there already: where no hierarchy is mounted, a new one would limit nothing."""
    with file.open("r+") as opened:
        opened.write(text)


class DutyCycle:
    """Stops and continues processes in turn: coarse (20 ms), but it needs no rights beyond one's own processes.

    Args:
        share: of the time that they may run.
    """

    method: Method = "duty-cycle"
    usage: Path | None = None

    def __init__(self, share: float) -> None:
        self._share = share
        self._pids: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duty-cycle", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._tell(signal.SIGCONT)

    def add(self, pid: int) -> None:
        """From the next period on."""
        self._pids.append(pid)

    def _run(self) -> None:
        while not self._over.is_set():
            self._tell(signal.SIGCONT)
            self._over.wait(self._share * DUTY_PERIOD_S)
            self._tell(signal.SIGSTOP)
            self._over.wait((1.0 - self._share) * DUTY_PERIOD_S)

    def _tell(self, number: signal.Signals) -> None:
        for pid in list(self._pids):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                self._pids.remove(pid)


def make_quota(share: float, name: str, root: Path = CGROUPS) -> Quota:
    """The best way this machine offers, not entered yet; for a share of 1 the whole core, counted where that can be."""
    version = writable_version(root)
    if version is not None:
        return CgroupQuota(share, name, version, root)
    return NoQuota() if share >= 1.0 else DutyCycle(share)


def writable_version(root: Path = CGROUPS) -> Literal[1, 2] | None:
    """Which cgroup hierarchy lets us limit processors; None: none does."""
    probe = f"streamsplit-probe-{os.getpid()}"
    versions: tuple[Literal[1, 2], ...] = (2, 1)
    for version in versions:
        quota = CgroupQuota(0.5, probe, version, root)
        with contextlib.suppress(StorageError), quota:
            return version
    return None


def remove_stale(prefix: str, root: Path = CGROUPS) -> None:
    """Removes empty groups called PREFIX-PID whose process is gone: what a lab that was killed left behind."""
    for hierarchy in (root, root / "cpu", root / "cpuacct"):
        for folder in hierarchy.glob(f"{prefix}-*"):
            number = folder.name.rpartition("-")[2]
            if number.isdecimal() and not psutil.pid_exists(int(number)):
                with contextlib.suppress(OSError):
                    folder.rmdir()


# How much slower work becomes in truth.

_WORK = """
import json, sys, time
def work(seconds):
    began, end = time.perf_counter(), time.process_time() + seconds
    while time.process_time() < end:
        pass
    return time.perf_counter() - began
sys.stdin.readline()
walls = []
for seconds in (0.004, 0.040):
    for repeat in range(6):
        time.sleep(0.05)
        walls.append((seconds, work(seconds)))
print(json.dumps(walls))
"""


@contextlib.contextmanager
def _worker() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def calibrate(quota: Quota, core: int | None) -> dict[str, float]:
    """How many times longer work takes under an entered quota: ``{"4 ms": ..., "40 ms": ...}``, medians of six.

    Raises:
        StreamSplitError: the test's process failed.
    """
    with _worker() as process:
        if core is not None:
            psutil.Process(process.pid).cpu_affinity([core])
        quota.add(process.pid)
        answer, _ = process.communicate("go\n", timeout=120)
    try:
        walls: list[tuple[float, float]] = json.loads(answer)
    except ValueError:
        raise StreamSplitError("the quota's test process ended without an answer") from None
    found = {}
    for seconds in (0.004, 0.040):
        ratios = sorted(wall / seconds for work, wall in walls if work == seconds)
        found[f"{1e3 * seconds:.0f} ms"] = round(ratios[len(ratios) // 2], 2)
    return found
