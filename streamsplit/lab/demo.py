"""The demo: a made soundscape through a real client and a real server, two processes, over a link whose rate changes.

The soundscape is made, and so is the link's rate (a shaping proxy on loopback); everything else that the view, the table and the
picture show is measured. Sound runs at four times real time so that a minute shows four.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from streamsplit.audio.synth import Soundscape, SoundscapeSettings
from streamsplit.client.app import until_signalled
from streamsplit.client.journal import JournalFollower
from streamsplit.errors import StreamSplitError
from streamsplit.lab.links import LinkProxy, LinkSettings
from streamsplit.lab.plots import require_matplotlib, timeline_png
from streamsplit.lab.processes import make_folder, server_process
from streamsplit.lab.replay import STATE_FILE
from streamsplit.lab.summary import write_summary
from streamsplit.lab.traces import Trace
from streamsplit.lab.view import LiveView
from streamsplit.server.store import EmbeddingStore
from streamsplit.wire.codec import Array

SPEED = 4.0
LEAD_S = 4.0
"""The link is up before the client, which takes about so long to load its encoder."""
WINDOW_S = 0.96
NEAREST = 3


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """One demo.

    Attributes:
        out: its folder.
        seed: of soundscape and link.
        quick: a quarter of the length.
    """

    out: Path
    seed: int = 0
    quick: bool = False

    @property
    def seconds(self) -> float:
        """Of sound."""
        return 64.0 if self.quick else 256.0


def demo(settings: DemoSettings, console: Console) -> dict[str, Any]:
    """Runs it; returns the summary, which it also writes beside ``demo.png``."""
    return asyncio.run(_demo(settings, console))


async def _demo(settings: DemoSettings, console: Console) -> dict[str, Any]:
    require_matplotlib()  # before the show, not after it
    make_folder(settings.out)
    if (
        settings.out / "client" / STATE_FILE
    ).exists():  # a demo always begins anew, also after one that was stopped
        shutil.rmtree(settings.out / "client")
    soundscape = Soundscape(
        SoundscapeSettings(seconds=settings.seconds, seed=settings.seed, events_per_minute=16.0)
    )
    await asyncio.to_thread(
        soundscape.write, settings.out / "soundscape.wav", settings.out / "soundscape.csv"
    )
    server_folder = settings.out / "server"
    make_folder(server_folder)
    store_path = server_folder / "embeddings.db"
    for stale in server_folder.glob("embeddings.db*"):
        stale.unlink()
    run_s = settings.seconds / SPEED
    async with server_process(["--encoder", "compact", "--store", str(store_path)], server_folder) as server:
        link = LinkProxy(
            LinkSettings(
                server.address,
                uplink=_rates(run_s),
                delay_ms=15.0,
                jitter_ms=5.0,
                outages=[(LEAD_S + 0.62 * run_s, LEAD_S + 0.70 * run_s, "cut")],
                seed=settings.seed,
            )
        )
        async with link:
            watch = _Watch(settings, soundscape, link, store_path)
            if await until_signalled(_run_client(settings, link.port, watch, console)):
                raise StreamSplitError("the demo was stopped")
    summary: dict[str, Any] = json.loads((settings.out / "client" / "summary.json").read_text())
    _, embeddings, labels = await asyncio.to_thread(watch.known.load)
    summary |= {
        "soundscape": {"seconds": settings.seconds, "events": len(soundscape.events), "made": True},
        "link": {"made": True, "rate_bps": [min(r for _, r in watch.rates), max(r for _, r in watch.rates)]},
        "nearest_same_event": _nearest_agreement(embeddings, labels),
    }
    write_summary(settings.out, summary)
    await asyncio.to_thread(
        timeline_png,
        watch.records,
        settings.out / "demo.png",
        rates=watch.rates,
        rates_on_wall=True,
        title="StreamSplit demo",
        events=[(event.kind, event.onset_s, event.offset_s) for event in soundscape.events],
        embeddings=embeddings,
        labels=labels,
    )
    return summary


def _rates(run_s: float) -> Trace:
    """Good, poor, very poor, (an outage,) middling, good: in bits per second."""
    shares = [(0.22, 8e6), (0.2, 400e3), (0.2, 60e3), (0.18, 1.5e6), (0.2, 12e6)]
    pieces, start_s = [], 0.0
    for share, rate_bps in shares:
        pieces.append((start_s, rate_bps))
        start_s += share * run_s + (LEAD_S if start_s == 0.0 else 0.0)
    return Trace.steps(pieces)


async def _run_client(settings: DemoSettings, port: int, watch: _Watch, console: Console) -> None:
    log = (settings.out / "client.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamsplit", "replay", str(settings.out / "soundscape.wav")),
        *("--out", str(settings.out / "client"), "--server", f"127.0.0.1:{port}", "--encoder", "compact"),
        *(
            "--decider",
            "heuristic",
            "--speed",
            str(SPEED),
            "--conditions",
            "live",
            "--seed",
            str(settings.seed),
        ),
        stdout=log,
        stderr=log,
    )
    log.close()
    try:
        with watch.show(console):
            while process.returncode is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 0.1)
                await asyncio.to_thread(watch.look)
        if process.returncode:
            lines = (settings.out / "client.log").read_text(errors="replace").strip().splitlines()
            raise StreamSplitError(f"the demo's client failed: {lines[-1] if lines else 'it said nothing'}")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@dataclass(slots=True)
class _Known:
    """Embeddings in the store so far, with the true event of each window."""

    store_path: Path
    soundscape: Soundscape
    sequences: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    vectors: list[Array] = field(default_factory=list)
    _last_id: int = 0

    def load(self) -> tuple[list[int], Array, list[str]]:
        """Everything stored: window numbers, [N, D], true events."""
        with EmbeddingStore(self.store_path, read_only=True) as store:
            for row in store.iterate(after=self._last_id):
                self._last_id = row.id
                self.sequences.append(row.sequence)
                self.vectors.append(row.embedding)
                self.labels.append(self.soundscape.label_at(row.start_s, row.start_s + WINDOW_S) or "quiet")
        return self.sequences, np.array(self.vectors, np.float32).reshape(len(self.vectors), -1), self.labels

    def nearest(self, sequence: int) -> list[tuple[str, float]]:
        """The known sounds nearest to a window: other windows' true events and cosines."""
        sequences, vectors, labels = self.load()
        if sequence not in sequences or len(sequences) < 2:
            return []
        place = sequences.index(sequence)
        cosines = vectors @ vectors[place]
        cosines[place] = -2.0
        best: dict[str, float] = {}
        for other in np.argsort(-cosines):
            best.setdefault(labels[other], float(cosines[other]))
            if len(best) == NEAREST:
                break
        return list(best.items())


class _Watch:
    """Follows the client's journal and the link, and shows both."""

    def __init__(
        self, settings: DemoSettings, soundscape: Soundscape, link: LinkProxy, store_path: Path
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self.rates: list[tuple[float, float]] = []
        self.known = _Known(store_path, soundscape)
        journal = settings.out / "client" / "journal.jsonl"
        journal.unlink(missing_ok=True)
        self._journal = JournalFollower(journal)
        self._link = link
        self._view = LiveView(
            f"StreamSplit demo: made soundscape at {SPEED:g}x real time, made link",
            round(settings.seconds / WINDOW_S),
        )

    @contextmanager
    def show(self, console: Console) -> Iterator[None]:
        """The live view for as long as the context is open."""
        with closing(self._journal), self._view.live(console):
            yield

    def look(self) -> None:
        """Reads what is new and redraws."""
        stats = self._link.stats
        self.rates.append((time.time() * 1e3, stats.rate_up_bps))
        new = self._journal.new()
        for record in new:
            self.records.append(record)
            self._view.update(record)
        nearest = self.known.nearest(new[-1]["sequence"]) if new and new[-1]["kind"] == "window" else None
        self._view.status(
            link_bps=stats.rate_up_bps,
            server_up=stats.open_connections > 0,
            **({"nearest": nearest} if nearest else {}),
        )


def _nearest_agreement(embeddings: Array, labels: list[str]) -> float | None:
    """Share of event windows whose nearest other window has the same true event; quiet ones are left out as queries."""
    if len(labels) < 2:
        return None
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -2.0)
    names = np.array(labels)
    events = names != "quiet"
    if not events.any():
        return None
    return round(float(np.mean(names[cosines.argmax(axis=1)][events] == names[events])), 4)
