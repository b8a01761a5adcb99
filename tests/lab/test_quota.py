"""A share of a core, by whatever this machine allows."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from streamsplit.errors import ConfigError, StorageError
from streamsplit.lab.emulation import used_s
from streamsplit.lab.load_process import read_load, write_load
from streamsplit.lab.quota import CgroupQuota, DutyCycle, NoQuota, Quota, make_quota, writable_version

BUSY = "while True: pass"


def used_share(quota: Quota) -> float:
    """Of a core, by a busy process under the quota, over a while."""
    with quota, subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        try:
            time.sleep(0.2)
            quota.add(process.pid)
            time.sleep(0.2)
            watched = psutil.Process(process.pid)
            began_s, before = time.monotonic(), watched.cpu_times()
            time.sleep(1.0)
            after, ended_s = watched.cpu_times(), time.monotonic()
        finally:
            process.kill()
    return (after.user + after.system - before.user - before.system) / (ended_s - began_s)


def test_a_control_group_holds_a_process_to_its_share_and_is_gone_afterwards() -> None:
    version = writable_version()
    if version is None:
        pytest.skip("no cgroup hierarchy of this machine is writable")
    quota = CgroupQuota(0.2, "streamsplit-test", version)
    assert used_share(quota) < 0.3
    with quota:  # the name is free again, and nothing of before counts
        assert quota.usage is not None
        assert used_s(quota.usage) < 0.01
    assert quota.method == f"cgroup-{version}"


def test_a_duty_cycle_holds_a_process_to_about_its_share() -> None:
    assert used_share(DutyCycle(0.2)) < 0.45


def test_without_rights_the_duty_cycle_stands_in_and_the_whole_core_needs_nothing(tmp_path: Path) -> None:
    assert make_quota(0.5, "streamsplit-test", tmp_path / "none").method == "duty-cycle"
    assert isinstance(make_quota(1.0, "streamsplit-test", tmp_path / "none"), NoQuota)
    with pytest.raises(StorageError, match="no quota can be set"):
        CgroupQuota(0.5, "x", 1, tmp_path).__enter__()


def test_a_load_is_read_as_it_was_written_but_hastened(tmp_path: Path) -> None:
    write_load(tmp_path / "load.csv", ((0.0, 10.0), (4.0, 95.0)), speed=2.0)
    assert read_load(tmp_path / "load.csv") == ((0.0, 10.0), (2.0, 95.0))
    (tmp_path / "load.csv").write_text("seconds,percent\n0,200\n")
    with pytest.raises(ConfigError, match="0 to 100"):
        read_load(tmp_path / "load.csv")


def test_a_load_process_is_busy_when_told_and_ends_with_its_input(tmp_path: Path) -> None:
    write_load(tmp_path / "load.csv", ((0.0, 90.0),), speed=1.0)
    command = [
        sys.executable,
        "-m",
        "streamsplit.lab.load_process",
        str(tmp_path / "load.csv"),
        "--processes",
        "1",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"begin\n")
        process.stdin.flush()
        watched, deadline_s = psutil.Process(process.pid), time.monotonic() + 30.0
        while not (children := watched.children()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        spinner = children[0]
        while spinner.cpu_times().user < 0.1 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert spinner.cpu_times().user >= 0.1
        process.stdin.close()
        assert process.wait(30) == 0
    assert not spinner.is_running()
