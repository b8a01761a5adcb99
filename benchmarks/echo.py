"""The least that gRPC itself takes between two processes: one message there and one back, at a window's sizes and pace.

`python -m benchmarks.echo PORT_FILE` is the other process.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from benchmarks.runs import percentiles

METHOD = "/benchmark.Echo/Echo"
THERE_BYTES, BACK_BYTES = 250, 170
WARM_UP = 5


async def measure(folder: Path, every_s: float, times: int) -> dict[str, float]:
    """Milliseconds of a round trip, each after a pause of `every_s` seconds, as between windows."""
    folder.mkdir(parents=True, exist_ok=True)
    port_file = folder / "echo.port"
    port_file.unlink(missing_ok=True)
    other = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.echo", str(port_file))
    try:
        while not port_file.exists():
            if other.returncode is not None:
                raise RuntimeError(f"benchmarks.echo ended with status {other.returncode}")
            await asyncio.sleep(0.05)
        taken_ms = []
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port_file.read_text()}") as channel:
            call: Any = channel.stream_stream(METHOD)()
            for _ in range(times + WARM_UP):
                await asyncio.sleep(every_s)
                began_s = time.perf_counter()
                await call.write(bytes(THERE_BYTES))
                await call.read()
                taken_ms.append((time.perf_counter() - began_s) * 1e3)
            await call.done_writing()
        return percentiles(taken_ms[WARM_UP:])
    finally:
        if other.returncode is None:
            other.terminate()
        await other.wait()


async def _serve(port_file: Path) -> None:
    async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield bytes(BACK_BYTES)

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("benchmark.Echo", {"Echo": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    whole = port_file.with_suffix(".part")
    whole.write_text(str(port))
    whole.rename(port_file)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
