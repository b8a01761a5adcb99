"""Windows per second that one core serves, with 32 devices connected, and the latency at that.

The server has one core to itself, the devices (one process: 32 real connections that send windows packed beforehand) have another. First
every device keeps its windows in flight full: throughput. Then the devices together send at 80 % of that: latency under load.
Target: >= 500 windows/s at b2, reach for 1,000; p99 < 100 ms.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import torch

from benchmarks.runs import percentiles
from streamsplit.audio.features import LogMel
from streamsplit.audio.synth import EVENT_KINDS, make_clip
from streamsplit.encoders.registry import resolve
from streamsplit.encoders.version import Version
from streamsplit.lab.processes import server_process
from streamsplit.wire import messages, translate
from streamsplit.wire.codec import Codec, pack, pack_embedding
from streamsplit.wire.v1 import streamsplit_pb2 as pb
from streamsplit.wire.v1 import streamsplit_pb2_grpc as pb_grpc

DEVICES = 32
IN_FLIGHT = 16


@dataclass(slots=True)
class _Load:
    """What all devices together saw."""

    latencies_ms: list[float] = field(default_factory=list)
    tail_ms: list[float] = field(default_factory=list)


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """b2 and b1 at 4 bits, and embeddings."""
    torch.set_num_threads(1)
    version = resolve("compact")
    seconds = 3.0 if quick else 10.0
    figures = {}
    for split in (3, 2, 4):
        figures[str(split)] = asyncio.run(_serve(version, folder / f"split-{split}", split, seconds))
    rate = figures["3"]["windows_per_s"]
    return {
        "devices": DEVICES,
        "splits": figures,
        "windows_per_s": rate,
        "targets": {"windows_per_s": 500.0, "reach": 1000.0, "p99_ms": 100.0},
    }


async def _serve(version: Version, folder: Path, split: int, seconds: float) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("embeddings.db*"):
        stale.unlink()
    payloads = _payloads(version, split)
    arguments = [
        "--encoder",
        "compact",
        "--store",
        str(folder / "embeddings.db"),
        "--max-windows-per-second",
        "1000000",
    ]
    async with server_process(arguments, folder) as server:
        pinned = _pin(server.process.pid if server.process else 0)
        await _drive(server.port, version, split, payloads, 1.0, None, "warm-up")
        full, elapsed_s = await _drive(server.port, version, split, payloads, seconds, None, "full")
        rate = len(full.latencies_ms) / elapsed_s
        paced, _ = await _drive(server.port, version, split, payloads, seconds, 0.8 * rate, "paced")
    return {
        "windows_per_s": round(rate, 1),
        "latency_full_ms": percentiles(full.latencies_ms),
        "latency_at_80_percent_ms": percentiles(paced.latencies_ms),
        "batch_compute_ms": percentiles(full.tail_ms),
        "one_core": pinned,
    }


def _payloads(version: Version, split: int) -> list[bytes]:
    made = []
    for kind in EVENT_KINDS:
        clip = make_clip(kind, seed=1)
        for start in range(0, len(clip) - version.front_end.window_samples, version.front_end.window_samples):
            samples = torch.from_numpy(clip[start : start + version.front_end.window_samples])[None]
            with torch.inference_mode():
                activation = version.encoder.head(LogMel(version.front_end)(samples), split)[0].numpy()
            last = split == version.encoder.last_split
            made.append(
                pack_embedding(activation, Codec.INT8)
                if last
                else pack(activation, Codec.INT4, version.ranges[split])
            )
    return made


CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _pin(server_pid: int) -> bool:
    """Server on the first core, devices on the second, where the system lets us."""
    if len(CORES) < 2:
        return False
    for thread in os.listdir(f"/proc/{server_pid}/task"):
        os.sched_setaffinity(int(thread), {CORES[0]})
    os.sched_setaffinity(0, {CORES[1]})
    return True


async def _drive(
    port: int,
    version: Version,
    split: int,
    payloads: Sequence[bytes],
    seconds: float,
    rate: float | None,
    name: str,
) -> tuple[_Load, float]:
    load = _Load()
    began_s = time.perf_counter()
    await asyncio.gather(
        *(
            _device(
                port,
                version,
                split,
                payloads,
                began_s + seconds,
                rate and rate / DEVICES,
                f"{name}-{number}",
                load,
            )
            for number in range(DEVICES)
        )
    )
    return load, time.perf_counter() - began_s


async def _device(
    port: int,
    version: Version,
    split: int,
    payloads: Sequence[bytes],
    until_s: float,
    rate: float | None,
    device: str,
    load: _Load,
) -> None:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = pb_grpc.StreamSplitStub(channel).Connect()
        for said in (messages.Hello("1.0", device, (version.id,)), messages.OpenStream(0, "s", 0, 16_000)):
            await call.write(translate.device_message(said))
        await call.read()
        sent_s: dict[int, float] = {}
        room = asyncio.Semaphore(IN_FLIGHT)
        reader = asyncio.create_task(_read(call, sent_s, room, load))
        codec = Codec.INT8 if split == version.encoder.last_split else Codec.INT4
        sequence, due_s = 0, time.perf_counter()
        while time.perf_counter() < until_s:
            if rate:
                due_s += 1.0 / rate
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            await room.acquire()
            payload = payloads[sequence % len(payloads)]
            window = messages.WindowMessage(0, sequence, sequence * 15_360, 0, split, codec, payload, -30.0)
            wire = translate.device_message(window)
            sent_s[sequence] = time.perf_counter()
            await call.write(wire)
            sequence += 1
        await call.done_writing()
        await reader


async def _read(call: Any, sent_s: dict[int, float], room: asyncio.Semaphore, load: _Load) -> None:
    while (message := await call.read()) is not grpc.aio.EOF:
        acknowledgement: pb.Acknowledgement = message.acknowledgement
        load.latencies_ms.append((time.perf_counter() - sent_s.pop(acknowledgement.sequence)) * 1e3)
        load.tail_ms.append(acknowledgement.tail_us / 1e3)
        room.release()
