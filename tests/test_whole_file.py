from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from streamsplit.errors import StorageError
from streamsplit.whole_file import left_behind, make_folder, whole, write_whole
from tests.disks import fill, make_read_only, small_disk

WRITER = """
import sys
from pathlib import Path
from streamsplit.whole_file import write_whole
print("ready", flush=True)
number = 0
while True:
    number += 1
    write_whole(Path(sys.argv[1]), (b"%d " % (number % 10)) * 200_000)
"""


def test_the_new_content_stands_under_the_name_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_may_be_read_by_whom_other_files_may(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "whole", b"")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_secret_is_never_readable_by_others_not_even_while_it_is_written(tmp_path: Path) -> None:
    with whole(tmp_path / "secret", mode=0o600) as partial:
        partial.write_bytes(b"half")
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_what_must_not_be_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"one", replace=False)
    with pytest.raises(FileExistsError):
        write_whole(path, b"two", replace=False)
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"before")
    with pytest.raises(UnicodeEncodeError), whole(path) as partial:
        partial.write_text("half ✂", encoding="ascii")
    assert path.read_bytes() == b"before"
    assert left_behind(path) == []


def test_folders_are_made_and_one_that_cannot_be_is_told(tmp_path: Path) -> None:
    make_folder(tmp_path / "deep" / "down" / "a.bin")
    assert (tmp_path / "deep" / "down").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"a\.bin: cannot be written: "):
        make_folder(tmp_path / "file" / "a.bin")


def test_a_missing_folder_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a\.bin: cannot be written: No such file") as caught:
        write_whole(tmp_path / "nowhere" / "a.bin", b"")
    assert "\n" not in str(caught.value)


def test_a_full_or_read_only_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=256) as disk:
        path = disk / "a.bin"
        write_whole(path, b"before")
        filler = fill(disk)
        with pytest.raises(StorageError, match="No space left"):
            write_whole(path, bytes(100_000))
        assert path.read_bytes() == b"before"
        assert left_behind(path) == []
        filler.unlink()
        make_read_only(disk)
        with pytest.raises(StorageError, match="Read-only"):
            write_whole(path, b"after")
        assert path.read_bytes() == b"before"


def test_a_killed_writer_leaves_a_whole_file_and_what_it_left_beside_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            while not path.exists():
                assert writer.poll() is None
            writer.kill()
        content = path.read_bytes()
        assert len(content) == 400_000
        assert len(set(content.split())) == 1
        path.unlink()
        for left in left_behind(path):
            left.unlink()
        assert os.listdir(tmp_path) == []
