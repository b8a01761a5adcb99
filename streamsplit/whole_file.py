"""Files that appear whole or not at all, whatever kills the writer.

The content goes to a hidden file in the same folder, is synced to the disk, and takes the name in one step: under the name stands what
was there before or the new content, after a power cut too. A kill may leave the hidden file behind; `left_behind` finds those.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamsplit.errors import StorageError


def write_whole(path: Path, content: bytes, mode: int = 0o666, replace: bool = True) -> None:
    """Writes a file and waits for the disk.

    Args:
        path: in a folder that is there.
        content: all of it.
        mode: permissions from the first byte on, less the process's umask; 0o600 for secrets.
        replace: whether it may take the place of a file of the same name.

    Raises:
        StorageError: the folder is missing, read-only or full. The file before, if there is one, is as it was.
        FileExistsError: there is one, and it is not to be replaced.
    """
    with whole(path, mode, replace) as partial:
        partial.write_bytes(content)


@contextmanager
def whole(path: Path, mode: int = 0o666, replace: bool = True) -> Iterator[Path]:
    """`write_whole` for what others write: gives the hidden file's path; what stands there at the end takes the name.

    Raises:
        StorageError, FileExistsError: as `write_whole`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            if replace:
                partial.replace(path)
            else:
                os.link(partial, path)  # fails where a replace would overwrite
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, FileExistsError) and not replace:
            raise
        raise _unwritten(path, error) from error


def make_folder(path: Path) -> None:
    """Makes the folder that this file will stand in, and those above it.

    Raises:
        StorageError: naming the file, which could not be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: cannot be written: {error.strerror or error}")


def left_behind(path: Path) -> list[Path]:
    """What killed writers of this file have left; only for who knows that nobody writes it now."""
    return sorted(path.parent.glob(f".{path.name}.*"))
