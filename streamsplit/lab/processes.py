"""Child processes of experiments: a server of one's own, restarted when it dies, and others that are told what to do by lines; all gone
when their parent goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamsplit.errors import StorageError, StreamSplitError

logger = logging.getLogger(__name__)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it; fails now, not after an hour's work.

    Raises:
        StorageError: it cannot be made, is a file, or nothing can be written in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made: {error.strerror}") from None
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise StorageError(f"{path}: cannot be written to: {error.strerror}") from None


START_S = 60.0
STOP_S = 15.0
ANSWER_S = 180.0


@dataclass(slots=True)
class ServerProcess:
    """A ``streamsplit server`` child.

    Attributes:
        arguments: of ``streamsplit server``, without listen address and port file.
        folder: where its port file and log go.
        port: where it listens; a restart takes the same one.
        restarts: how often it had to be started again.
        cores: that it may use; None: any.
    """

    arguments: Sequence[str]
    folder: Path
    port: int = 0
    restarts: int = 0
    process: asyncio.subprocess.Process | None = None
    cores: Sequence[int] | None = None
    _stopping: bool = False

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Starts it and waits until it listens.

        Raises:
            StreamSplitError: it ended instead; the message is its own last line.
        """
        port_file = self.folder / "server.port"
        port_file.unlink(missing_ok=True)
        log = (self.folder / "server.log").open("ab")
        try:
            with on_cores(self.cores):
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "streamsplit",
                    "server",
                    *("--listen", f"127.0.0.1:{self.port}"),
                    *("--port-file", str(port_file)),
                    "--stop-with-parent",
                    *self.arguments,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                )
        finally:
            log.close()
        deadline_s = time.monotonic() + START_S
        while not port_file.exists() or not port_file.read_text():
            if self.process.returncode is not None:
                raise StreamSplitError(f"the embedded server did not start: {self._last_words()}")
            if time.monotonic() > deadline_s:
                raise StreamSplitError(
                    f"the embedded server did not listen within {START_S:.0f} s: {self._last_words()}"
                )
            await asyncio.sleep(0.02)
        self.port = int(port_file.read_text())

    async def keep_alive(self) -> None:
        """Starts it again, on the same port, whenever it dies."""
        while True:
            if self.process is None:
                raise StreamSplitError("the server was never started")
            code = await self.process.wait()
            if self._stopping:
                return
            self.restarts += 1
            logger.warning("the embedded server died (status %s); starting it again", code)
            await self.start()

    async def stop(self) -> None:
        """SIGTERM, and patience for its drain."""
        self._stopping = True
        if self.process is None or self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_S)
        except TimeoutError:
            logger.warning("the embedded server did not drain within %.0f s", STOP_S)
            self.process.kill()
            await self.process.wait()

    def _last_words(self) -> str:
        try:
            lines = (self.folder / "server.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"


@asynccontextmanager
async def server_process(
    arguments: Sequence[str], folder: Path, cores: Sequence[int] | None = None
) -> AsyncIterator[ServerProcess]:
    """A server for as long as the context is open."""
    server = ServerProcess(arguments, folder, cores=cores)
    await server.start()
    guard = asyncio.create_task(server.keep_alive(), name="server-guard")
    try:
        yield server
    finally:
        await server.stop()
        guard.cancel()
        await asyncio.gather(guard, return_exceptions=True)


@contextlib.contextmanager
def on_cores(cores: Sequence[int] | None) -> Iterator[None]:
    """Processes that are started within run on these cores only; None: on any."""
    before = os.sched_getaffinity(0) if cores is not None and hasattr(os, "sched_setaffinity") else None
    try:
        if before is not None and cores is not None:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


class ToldProcess:
    """A Python module as a child that obeys lines on its standard input and ends with it.

    Args:
        name: for messages.
        module, arguments: what to run.
        log: file that its error stream goes to.
        cores: that it may use; None: any.
    """

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], log: Path, cores: Sequence[int] | None = None
    ) -> None:
        self.name = name
        self._command = (sys.executable, "-m", module, *arguments)
        self._log, self._cores = log, cores
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        return self._running.pid

    async def start(self) -> None:
        """Starts it; does not wait for a word of it."""
        with self._log.open("ab") as log, on_cores(self._cores):
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log
            )

    async def hear(self) -> dict[str, Any]:
        """The next line it says, a JSON object.

        Raises:
            StreamSplitError: it ended, is silent, or says something else.
        """
        stdout = self._running.stdout
        try:
            line = b"" if stdout is None else await asyncio.wait_for(stdout.readline(), ANSWER_S)
            said = json.loads(line)
        except (TimeoutError, ValueError):
            raise StreamSplitError(f"the {self.name} process did not answer; see {self._log}") from None
        if not isinstance(said, dict) or "error" in said:
            raise StreamSplitError(f"the {self.name} process: {said}")
        return said

    def tell(self, line: str) -> None:
        """Says a line to it."""
        if self._running.stdin is not None:
            self._running.stdin.write(f"{line}\n".encode())

    async def stop(self) -> None:
        """Ends its standard input, and it with it."""
        if self._process is None or self._process.returncode is not None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    @property
    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise StreamSplitError(f"the {self.name} process was never started")
        return self._process
