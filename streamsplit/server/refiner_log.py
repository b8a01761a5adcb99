"""What the refiner tells people and programs: status.json, a line per round in log.jsonl, TensorBoard scalars."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamsplit.errors import StorageError
from streamsplit.whole_file import write_whole

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
LATEST_EVERY_S = 1.0


class RefinerLog:
    """Written by the refiner's process alone.

    Args:
        folder: the refiner's state folder.
        now_unix_ms: the wall clock, for people.
        clock: monotonic seconds.
    """

    def __init__(self, folder: Path, now_unix_ms: Callable[[], int], clock: Callable[[], float]) -> None:
        self._folder, self._now_unix_ms, self._clock = folder, now_unix_ms, clock
        self._status: dict[str, Any] = {"format_version": FORMAT_VERSION, "pid": os.getpid()}
        self._told_s = -LATEST_EVERY_S
        self._board: Any = None
        self._board_opened = False

    def status(self, state: str, **said: object) -> None:
        """Replaces status.json: at once where the state changes, else at most once a second."""
        changed = self._status.get("state") != state
        self._status.update(said, state=state)
        if not changed and self._clock() - self._told_s < LATEST_EVERY_S:
            return
        self._told_s = self._clock()
        self._status["updated_unix_ms"] = self._now_unix_ms()
        write_whole(self._folder / "status.json", json.dumps(self._status, indent=1).encode())

    def round(self, line: Mapping[str, object]) -> None:
        """One line for a finished round."""
        path = self._folder / "log.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps({"at_unix_ms": self._now_unix_ms(), **line}) + "\n")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from None

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """TensorBoard, where it is installed: what a process that was killed told of the first such step and later ones is taken back."""
        if not self._board_opened:
            self._board, self._board_opened = _board(self._folder / "tensorboard", step), True
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Scalars so far outlive a kill from here on; to be called before progress that goes on after them is kept."""
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Ends TensorBoard's thread."""
        if self._board is not None:
            self._board.close()


def read_status(folder: Path) -> dict[str, Any] | None:
    """status.json with "running" added: whether that process is alive; None where no refiner has ever run.

    Raises:
        StorageError: damaged.
    """
    path = folder / "status.json"
    try:
        said: dict[str, Any] = json.loads(path.read_text())
        os.kill(int(said["pid"]), 0)
        said["running"] = said.get("state") != "stopped"
    except FileNotFoundError:
        return None
    except ProcessLookupError:
        said["running"] = False
    except PermissionError:
        said["running"] = True
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None
    return said


def _board(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info("no TensorBoard scalars: tensorboard is not installed")
        return None
    return SummaryWriter(str(folder), purge_step=first_step)
