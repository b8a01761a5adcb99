"""The server's side of refining: windows go to the replay, the refiner's process is kept alive, what it publishes is served.

committed windows --ReplayFeed--> replay.db, --LabelBook--> heads        current.json --every second--> served versions N and N - 1
the refiner's process: started, and started again after 1, 2, 4, ... 60 s when it dies
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from streamsplit.config import ServerSettings
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, StorageError
from streamsplit.server.commit import Committed
from streamsplit.server.labels import LabelBook
from streamsplit.server.publications import Current, Publications
from streamsplit.server.refiner import PUBLISHED, REPLAY
from streamsplit.server.replay_feed import ReplayFeed
from streamsplit.server.versions import ServedVersion, serve

logger = logging.getLogger(__name__)

POLL_S = 1.0
LABELS = "labels"
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0
"""A process that lived so long begins with short pauses again."""
STOP_S = 10.0


def begin(settings: ServerSettings, versions: list[Version]) -> tuple[Publications, list[Version]]:
    """What a refining server serves: the published versions of its first encoder, and its other encoders as they are.

    Args:
        settings: of the server.
        versions: that the settings name, in their order.
    """
    publications = Publications(settings.refiner.state_dir / PUBLISHED)
    first, *others = versions
    current = publications.start(first, int(time.time() * 1000))
    known = {first.id: first}
    own = [known.get(id) or publications.load(id) for id in ids(publications, current)]
    return publications, [*own, *others]


def ids(publications: Publications, current: Current) -> list[str]:
    """Ids of N and, where its file is still here, N - 1."""
    previous = current.previous
    return [current.newest, *([previous] if previous and publications.has(previous) else [])]


class Listeners:
    """Who learns from what was committed: the replay's writer, and the book of labels.

    Args:
        settings: of the server.
        served: versions by name, a live view.
    """

    def __init__(self, settings: ServerSettings, served: dict[str, ServedVersion]) -> None:
        refiner = settings.refiner
        most_bytes = int(refiner.replay_mb * 1e6)
        self.feed = ReplayFeed(refiner.state_dir / REPLAY, most_bytes, served, settings.encoders[0])
        self.labels = LabelBook(refiner.state_dir / LABELS, served)

    def start(self) -> None:
        """Before the first window."""
        self.feed.start()

    def __call__(self, windows: Sequence[Committed]) -> None:
        """Takes what `Tail` hands on; never waits."""
        self.feed(windows)
        self.labels(windows)

    def stop(self) -> None:
        """Keeps what they have."""
        self.feed.stop()
        self.labels.close()


@asynccontextmanager
async def refining(
    settings: ServerSettings,
    publications: Publications,
    served: dict[str, ServedVersion],
    looked: Callable[[], Awaitable[None]],
    supervise: bool = True,
) -> AsyncIterator[None]:
    """Keeps the refiner's process and the served versions up to date, for as long as the context is open.

    Args:
        settings: of the server.
        publications: from `begin`.
        served: what the server serves, by name; changed in place on the event loop, new versions before old ones go.
        looked: awaited after every look at what is published.
        supervise: False where somebody else runs `streamsplit refine`.
    """
    tasks = [asyncio.create_task(follow(settings, publications, served, looked), name="follow-publications")]
    if supervise:
        tasks.append(asyncio.create_task(keep_alive(settings), name="refiner-supervisor"))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def follow(
    settings: ServerSettings,
    publications: Publications,
    served: dict[str, ServedVersion],
    looked: Callable[[], Awaitable[None]],
) -> None:
    """Serves what is published, for ever."""
    while True:
        try:
            await refresh(settings, publications, served)
            await looked()
        except (StorageError, ConfigError) as error:
            logger.error("published versions cannot be read, serving what was: %s", error)
        await asyncio.sleep(POLL_S)


async def refresh(
    settings: ServerSettings, publications: Publications, served: dict[str, ServedVersion]
) -> None:
    """Makes N and N - 1 of the refined encoder what is served, if they are not yet."""
    current = await asyncio.to_thread(publications.current)
    if current is None:
        return
    wanted = ids(publications, current)
    for id in wanted:
        if id not in served:
            version = await asyncio.to_thread(publications.load, id)
            served.update(await asyncio.to_thread(serve, [version], settings.compute))
            logger.info("serving %s", id)
    name = settings.encoders[0]
    for id in [id for id, one in served.items() if one.version.name == name and id not in wanted]:
        del served[id]
        logger.info("no longer serving %s", id)


async def keep_alive(
    settings: ServerSettings,
    live: Callable[[ServerSettings], Awaitable[int | None]] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Runs the refiner's process, and again when it ends, after a pause that doubles while it keeps dying.

    Args:
        settings: of the server.
        live: runs it from start to end and returns its status; the real process unless told.
        sleep: waits.
    """
    loop = asyncio.get_running_loop()
    pause_s = 1.0
    while True:
        began_s = loop.time()
        status = await (live or _one_life)(settings)
        if loop.time() - began_s > STEADY_S:
            pause_s = 1.0
        logger.warning("the refiner ended with status %s: started again in %g s", status, pause_s)
        await sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _one_life(settings: ServerSettings) -> int | None:
    """One process from start to end; cancelled, it is asked to stop and waited for."""
    process = await asyncio.create_subprocess_exec(
        *command(settings), stdin=asyncio.subprocess.PIPE, start_new_session=True
    )
    logger.info("refiner started, process %d", process.pid)
    try:
        return await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        raise


def command(settings: ServerSettings) -> list[str]:
    """How the refiner's process is started: it stops when its standard input ends, as it does when the server dies."""
    said = settings.model_dump_json(include={"encoders", "weights", "refiner"})
    return [sys.executable, "-m", "streamsplit", "refine", "--settings-json", said, "--stop-with-parent"]
