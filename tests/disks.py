"""Disks that are full or read-only, for tests of what is kept on them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of its own, `kib` KiB large; the test is skipped where mounting one is not allowed."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def make_read_only(folder: Path) -> None:
    """From now on nothing can be written to a mounted `small_disk`."""
    _mount("-o", "remount,ro", str(folder))


def fill(folder: Path) -> Path:
    """Writes until not a byte is left; returns the file to delete."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
    return path


def _mount(*arguments: str) -> None:
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
