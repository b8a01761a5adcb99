"""Folders that results go to are tried before the work, not after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from streamsplit.errors import StorageError
from streamsplit.lab.processes import make_folder


def test_a_folder_is_made_with_those_above_it_and_left_empty(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(StorageError, match="a: cannot be made: File exists"):
        make_folder(tmp_path / "a")


def test_a_folder_that_nothing_can_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:  # whoever runs the tests may be allowed everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(StorageError, match=f"{tmp_path}: cannot be written to: Permission denied"):
        make_folder(tmp_path)
