"""Files that appear whole or not at all, whatever kills the writer.

The content goes to a hidden file in the same folder, is synced to the disk, and takes the name in one step: under the name stands what
was there before or the new content, after a power cut too. A kill may leave the hidden file behind; `left_behind` finds those.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from streamsplit.errors import StorageError


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, replacing one of the same name; waits for the disk.

    Raises:
        StorageError: the folder is missing, read-only or full. The file before, if there is one, is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def left_behind(path: Path) -> list[Path]:
    """What killed writers of this file have left; only for who knows that nobody writes it now."""
    return sorted(path.parent.glob(f".{path.name}.*"))
