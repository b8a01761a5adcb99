"""What labelled windows teach the server about the embeddings that devices make, and the heads it pushes of it.

    committed windows that have a label, or both embeddings -> one `HeadTeacher` per version
                                                            -> head, made anew when much has come since -> Synchronisation

What the teachers know is written when a device asks for a head and when the server stops: a kill costs what came since.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.head_teacher import STALE, HeadTeacher
from streamsplit.learning.label_head import LabelTeacher
from streamsplit.learning.uncertainty import DisagreementHead
from streamsplit.server.commit import Committed
from streamsplit.server.versions import ServedVersion
from streamsplit.whole_file import write_whole

logger = logging.getLogger(__name__)

SUFFIXES = {"own": ".labels", "dense": ".dense-labels", "change": ".change"}
"""Of the file that each part of a teacher is kept in."""


Part = TypeVar("Part", LabelTeacher, DisagreementHead)


class LabelBook:
    """Teachers of the served versions. Any thread may call; `head` and `close` may wait for the disk.

    Args:
        folder: for the teachers; made when there is something to keep.
        served: versions by name, a live view.
    """

    def __init__(self, folder: Path, served: Mapping[str, ServedVersion]) -> None:
        self._folder = folder
        self._served = served
        self._teachers: dict[str, HeadTeacher] = {}
        self._made: dict[str, tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def __call__(self, windows: Sequence[Committed]) -> None:
        """Learns from those that have a label or both embeddings; takes tens of microseconds a window."""
        for version in dict.fromkeys(window.job.version for window in windows):
            served = self._served.get(version)
            if served is None:
                continue
            own = [window for window in windows if window.job.version == version]
            with self._lock:
                teacher = self._teacher(version, served.version.encoder.embedding_dim)
                for seen in (True, False):
                    some = [window for window in own if (window.dense is not None) is seen]
                    if some:
                        dense = [window.dense for window in some if window.dense is not None]
                        teacher.learn(
                            np.stack([window.own for window in some]),
                            np.stack(dense) if seen else None,
                            [window.job.label for window in some],
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

    def _teacher(self, version: str, dim: int) -> HeadTeacher:
        teacher = self._teachers.get(version)
        if teacher is None:
            teacher = HeadTeacher(
                self._restored(LabelTeacher, version, "own", LabelTeacher(dim)),
                self._restored(LabelTeacher, version, "dense", LabelTeacher(dim)),
                self._restored(DisagreementHead, version, "change", HeadTeacher.of(dim).change),
            )
            for gone in set(self._teachers) - set(self._served):
                del self._teachers[gone]
                self._made.pop(gone, None)
            self._teachers[version] = teacher
        return teacher

    def _restored(self, kind: type[Part], version: str, part: str, fresh: Part) -> Part:
        """What was kept of a teacher, or a fresh one."""
        path = self._folder / f"{version}{SUFFIXES[part]}"
        if not path.exists():
            return fresh
        try:
            kept = kind.restore(path)
            if kept.dim != fresh.dim:
                raise ConfigError(f"{path}: expected {fresh.dim} dimensions, got {kept.dim}")
        except (StorageError, ConfigError) as error:
            logger.warning("labels are learned anew: %s", error)
            return fresh
        return kept

    def _keep(self, version: str, teacher: HeadTeacher) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name, part in teacher.parts().items():
                write_whole(self._folder / f"{version}{SUFFIXES[name]}", part.save())
            for path in self._folder.iterdir():
                if path.suffix in SUFFIXES.values() and path.stem not in self._served:
                    path.unlink(missing_ok=True)
        except (StorageError, OSError) as error:
            logger.error("what labels taught is not kept: %s", error)
