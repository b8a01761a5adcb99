"""Server, refiner and versions at a glance, read from their files: nothing needs to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamsplit.errors import StorageError
from streamsplit.learning.replay import ReplayReader
from streamsplit.server.inbox import Inbox
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import INBOX, PUBLISHED, REPLAY
from streamsplit.server.refiner_log import read_status
from streamsplit.server.store import EmbeddingStore


def overview(store: Path, state_dir: Path) -> dict[str, Any]:
    """What there is: plain JSON types, None for what is not there.

    Args:
        store: the server's embeddings.
        state_dir: the refiner's folder; looked at, never made.
    """
    seen: dict[str, Any] = {"store": str(store), "stored_windows": None, "stored_bytes": None}
    if store.is_file():
        try:
            with EmbeddingStore(store, read_only=True) as embeddings:
                seen["stored_windows"] = embeddings.count()
                seen["windows_by_version"] = embeddings.versions()
            seen["stored_bytes"] = store.stat().st_size
        except StorageError as error:
            seen["store"] = str(error)
    seen |= {"refiner": "has never run here", "refiner_folder": str(state_dir)}
    said = read_status(state_dir)
    if said is not None:
        seen["refiner"] = said["state"] if said["running"] else f"not running (was {said['state']})"
        for name in (
            "why",
            "round",
            "step",
            "base",
            "frozen",
            "published",
            "refused",
            "differences_lost",
            "doubted",
            "loss",
            "updated_unix_ms",
        ):
            seen[f"refiner_{name}"] = said.get(name)
    seen |= _replay(state_dir) | _published(state_dir)
    return seen


def _replay(state_dir: Path) -> dict[str, Any]:
    try:
        with ReplayReader(state_dir / REPLAY) as reader:
            return {
                "replay_windows": len(reader),
                "replay_bytes": reader.stored_bytes,
                "replay_dropped": reader.dropped,
            }
    except StorageError:
        return {"replay_windows": None}


def _published(state_dir: Path) -> dict[str, Any]:
    if not (state_dir / PUBLISHED).is_dir():
        return {"newest_version": None}
    current = Publications(state_dir / PUBLISHED).current()
    waiting = len(Inbox(state_dir / INBOX).waiting()) if (state_dir / INBOX).is_dir() else 0
    if current is None:
        return {"newest_version": None, "differences_waiting": waiting}
    return {
        "newest_version": current.newest,
        "previous_version": current.previous,
        "publications": current.history[-1].number + 1,
        "differences_waiting": waiting,
    }
