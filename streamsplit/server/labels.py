"""What labelled windows teach the server about the embeddings that devices make, and the heads it pushes of it.

    committed windows that have a label -> one `LabelTeacher` per version -> head, made anew when much has come since -> Synchronisation

The teachers are written when a device asks for a head and when the server stops: a kill costs what came since.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.label_head import LabelTeacher
from streamsplit.server.commit import Committed
from streamsplit.server.versions import ServedVersion
from streamsplit.whole_file import write_whole

logger = logging.getLogger(__name__)

SUFFIX = ".labels"
STALE = 1.1
"""A head is made anew once its teacher has learned from so many times the windows it was made of."""


class LabelBook:
    """Teachers of the served versions. Any thread may call; `head` and `close` may wait for the disk.

    Args:
        folder: for the teachers; made when there is something to keep.
        served: versions by name, a live view.
    """

    def __init__(self, folder: Path, served: Mapping[str, ServedVersion]) -> None:
        self._folder = folder
        self._served = served
        self._teachers: dict[str, LabelTeacher] = {}
        self._made: dict[str, tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def __call__(self, windows: Sequence[Committed]) -> None:
        """Learns from those that have a label; takes microseconds."""
        labelled = [window for window in windows if window.job.label]
        for version in dict.fromkeys(window.job.version for window in labelled):
            served = self._served.get(version)
            if served is None:
                continue
            own = [window for window in labelled if window.job.version == version]
            with self._lock:
                teacher = self._teacher(version, served.version.encoder.embedding_dim)
                teacher.learn(
                    np.stack([window.own for window in own]), [window.job.label or "" for window in own]
                )

    def head(self, version: str) -> bytes:
        """The head of a version, packed; empty where its labels do not make one."""
        served = self._served.get(version)
        if served is None:
            return b""
        with self._lock:
            teacher = self._teacher(version, served.version.encoder.embedding_dim)
            of, packed = self._made.get(version, (0, b""))
            if teacher.learned > STALE * of:
                head = teacher.head()
                packed = head.pack() if head else b""
                self._made[version] = teacher.learned, packed
                self._keep(version, teacher)
            return packed

    def close(self) -> None:
        """Keeps what was learned, and forgets versions that are served no more."""
        with self._lock:
            for version, teacher in self._teachers.items():
                if version in self._served and teacher.learned:
                    self._keep(version, teacher)

    def _teacher(self, version: str, dim: int) -> LabelTeacher:
        teacher = self._teachers.get(version)
        if teacher is None:
            path = self._folder / f"{version}{SUFFIX}"
            try:
                teacher = LabelTeacher.restore(path) if path.exists() else LabelTeacher(dim)
            except (StorageError, ConfigError) as error:
                logger.warning("labels are learned anew: %s", error)
                teacher = LabelTeacher(dim)
            if teacher.dim != dim:
                logger.warning(
                    "labels are learned anew: %s: expected %d dimensions, got %d", path, dim, teacher.dim
                )
                teacher = LabelTeacher(dim)
            for gone in set(self._teachers) - set(self._served):
                del self._teachers[gone]
                self._made.pop(gone, None)
            self._teachers[version] = teacher
        return teacher

    def _keep(self, version: str, teacher: LabelTeacher) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / f"{version}{SUFFIX}", teacher.save())
            for path in self._folder.glob(f"*{SUFFIX}"):
                if path.stem not in self._served:
                    path.unlink(missing_ok=True)
        except (StorageError, OSError) as error:
            logger.error("what labels taught is not kept: %s", error)
