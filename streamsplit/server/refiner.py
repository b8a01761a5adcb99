"""The refiner's process: it learns from what devices sent, in rounds, and publishes what is better.

    replay (written by the server) --draw--> steps --round over--> candidate --gate--> published, or refused
                                      ^                                                    |             |
      inbox of devices' differences --+ merged at a round's begin                 training goes on    back to what is served

Everything lives in one state folder: replay.db, inbox/, published/, progress.safetensors, status.json, log.jsonl, tensorboard/. Each
file is replaced as a whole, progress every `checkpoint_steps`, so a kill at any moment costs those steps and nothing else:

- killed while training: it goes on from the last progress, in the same round;
- killed while judging: the round's last step is in the progress, the candidate is made and judged again;
- killed after publishing: progress names the candidate before it is published, so it is found to be ours and training goes on from it;
- a device's difference is merged once: progress names the merged files, and those that cannot be merged, before they are removed.

After a refusal, and whenever somebody else has changed what is served (a rollback, other weights), training starts again from what is
served: weights that collapsed are not worth training on, and the replay still has the windows. Devices that were in a refused round are
doubted: what they send next is merged only if it passes the gate by itself, so one bad device cannot stop the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from streamsplit.config import RefinerSettings, ServerSettings
from streamsplit.encoders.registry import resolve
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.progress import load_progress, save_progress
from streamsplit.learning.refine import Refiner
from streamsplit.learning.replay import ReplayReader
from streamsplit.server.inbox import Inbox
from streamsplit.server.known_versions import KnownVersions
from streamsplit.server.publications import Publications
from streamsplit.server.refiner_log import RefinerLog
from streamsplit.server.refining_ranks import follow, leading, leads, led, together, wait
from streamsplit.server.refining_round import (
    Judge,
    Outcome,
    Round,
    frozen_blocks,
    gather,
    recent_windows,
    refiner_of,
)
from streamsplit.server.versions import torch_device

logger = logging.getLogger(__name__)

REPLAY, PUBLISHED, INBOX, PROGRESS = "replay.db", "published", "inbox", "progress.safetensors"
POLL_S = 1.0


@dataclass(slots=True)
class Standing:
    """Where the refiner stands, beside its weights: kept with them.

    Attributes:
        rounds, published, refused: so far.
        open: whether a round has begun and not ended.
        round_end: the step at which it ends.
        seen: windows that had ever come and that rounds were held for: the first uses up all there are, each later one `new_windows`. A
            refiner that is slower than the stream catches up, but not for windows that the replay has lost by then.
        merged: names of the devices' differences in it.
        left_out: name -> why, of the devices' differences that could not be merged in it: what those devices learned is lost.
        lost: differences left out so far.
        devices: device -> its difference's norm as a share of the weights' norm.
        candidate: id of the version that is being published.
        suspects: devices merged since training last began from what is served.
        doubted: devices that were in a candidate that was refused, until what they send passes the gate by itself.
    """

    rounds: int = 0
    published: int = 0
    refused: int = 0
    open: bool = False
    round_end: int = 0
    seen: int = 0
    merged: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    devices: dict[str, float] = field(default_factory=dict)
    candidate: str = ""
    suspects: list[str] = field(default_factory=list)
    doubted: list[str] = field(default_factory=list)


class RefinerProcess:
    """The whole of it, with time passed in.

    Args:
        settings: how.
        first: the server's own version: published if nothing is yet.
        stop: asked between steps and while waiting.
        now_unix_ms: the wall clock, for people.
        clock: monotonic seconds.
        sleep: waits.
    """

    def __init__(
        self,
        settings: RefinerSettings,
        first: Version,
        stop: Callable[[], bool],
        now_unix_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings, self._stop, self._sleep = settings, stop, sleep
        self._now_unix_ms, self._clock = now_unix_ms, clock
        folder = settings.state_dir
        self.publications = Publications(folder / PUBLISHED)
        self.publications.start(first, now_unix_ms())
        self.inbox = Inbox(folder / INBOX)
        self.log = RefinerLog(folder, now_unix_ms, clock)
        self.standing = Standing()
        self._progress_file = folder / PROGRESS
        self._base = self.publications.load(self._newest())
        self._refiner = self._made(0)
        self._figures: dict[str, float] = {}
        self._began_s = clock()
        self._resume()

    def run(self) -> None:
        """Rounds, until told to stop."""
        self.log.status("starting")
        while not self._stop():
            if not self.turn():
                self._sleep(POLL_S)
        if self.standing.open:
            self._save()
        self.log.status("stopped")
        self.log.close()

    def turn(self) -> bool:
        """One round, or what is left of one; False if it could not be finished now."""
        if self._newest() != self._base.id:
            logger.info("%s is served, not by the refiner's doing: starting again from it", self._newest())
            self._start_again()
        try:
            reader = ReplayReader(self.settings.state_dir / REPLAY)
        except StorageError:
            return self._waits("no windows have been kept yet")
        with reader:
            if not self.standing.open:
                if not self._ready(reader):
                    return False
                self._open_round(reader)
            return self._go_on(reader)

    # Between rounds.

    def _ready(self, reader: ReplayReader) -> bool:
        here, new = len(reader), len(reader) + reader.dropped - self.standing.seen
        if here < self.settings.least_windows:
            return self._waits(f"{here} windows of {self.settings.least_windows} that it takes to begin")
        if self.standing.rounds and new < self.settings.new_windows:
            return self._waits(f"{new} new windows of {self.settings.new_windows} that it takes for a round")
        return True

    def _waits(self, why: str) -> bool:
        self.log.status("waiting", **{**self._told(), "why": why})
        return False

    def _newest(self) -> str:
        current = self.publications.current()
        if current is None:
            raise StorageError(f"{self.publications.folder}: expected a published version, it is gone")
        return current.newest

    def _made(self, frozen: int, done: int = 0) -> Refiner:
        """A refiner of what is served; steps are counted on."""
        return refiner_of(self._base, self.publications, self.settings, frozen, done)

    def _start_again(self) -> None:
        """Trains from what is served; the round that was open is over."""
        self._base = self.publications.load(self._newest())
        self._refiner = self._made(self._refiner.frozen, self._refiner.done)
        self.inbox.forget()
        self.standing.open, self.standing.candidate, self.standing.suspects = False, "", []
        self._save()

    def _resume(self) -> None:
        """Goes on from saved progress, as far as it is of what is served."""
        try:
            saved = load_progress(self._progress_file)
            standing = Standing(**saved.settings["standing"])
            refiner = self._made(int(saved.settings["frozen"]))
            refiner.resume(saved)
        except StorageError as error:
            logger.debug("no progress to go on from: %s", error)
            return
        except (ConfigError, KeyError, TypeError) as error:
            logger.warning("progress is left behind: %s", error)
            return
        self.standing, self._refiner = standing, refiner
        self._clear_inbox()
        if self._base.id == standing.candidate:  # published just before a kill
            self._close_round(
                Outcome("published", self._base, {"base": saved.pool, "candidate": standing.candidate})
            )
        elif self._base.id != saved.pool:
            logger.info("progress is of %s, %s is served: starting again from it", saved.pool, self._base.id)
            self._start_again()
        logger.info("going on at step %d", self._refiner.done)

    # A round.

    def _open_round(self, reader: ReplayReader) -> None:
        """Decides what moves, merges what devices sent, and remembers that it did before their files go."""
        standing = self.standing
        frozen = frozen_blocks(self.settings.front, self.publications, self._base, reader, standing.rounds)
        if self._refiner.frozen != frozen:
            self._refiner = self._made(frozen, self._refiner.done)

        def refusal(difference: Mapping[str, Tensor]) -> str | None:
            if self._stop():
                return None
            self.log.status("judging devices", **self._told())
            alone = self._made(frozen)
            alone.add(difference)
            return self._judge(reader, alone).refusal()

        claimed, most = self.inbox.claim(), self.settings.most_difference
        came = gather(self.inbox, claimed, self.publications, self._base, most, standing.doubted, refusal)
        self._refiner.add(came.difference.tensors)
        standing.doubted = [one for one in standing.doubted if one not in came.difference.norms]
        standing.suspects = sorted({*standing.suspects, *came.difference.norms})
        standing.devices = {device: round(share, 6) for device, share in came.difference.norms.items()}
        standing.merged, standing.left_out = came.merged, came.left_out
        standing.lost += len(came.left_out)
        standing.open, standing.candidate = True, ""
        ever = len(reader) + reader.dropped
        used = standing.seen + self.settings.new_windows if standing.rounds else ever
        standing.seen = max(reader.dropped, min(ever, used))
        standing.round_end = self._refiner.done + self.settings.round_steps
        self._began_s = self._clock()
        self._save()
        self._clear_inbox()

    def _clear_inbox(self) -> None:
        """Only once progress says what became of each difference."""
        self.inbox.take(self.standing.merged)
        self.inbox.drop(self.standing.left_out)

    def _go_on(self, reader: ReplayReader) -> bool:
        judge = self._judge(reader, self._refiner)
        step = led(self._refiner, self._base.id)
        work = Round(judge, step, recent_windows(reader, judge.known))
        if not work.train(self.standing.round_end, self._stop, self._stepped):
            return self._stop() or self._waits("too few windows of a draw can be learned from")
        self.log.status("judging", **self._told())
        self._close_round(work.conclude(self.publications, self._now_unix_ms(), self._announce))
        return True

    def _judge(self, reader: ReplayReader, refiner: Refiner) -> Judge:
        known = KnownVersions(self.publications, self._base, refiner.frozen)
        return Judge(self.standing.rounds, self.settings, refiner, known, reader)

    def _stepped(self, figures: dict[str, float]) -> None:
        self._figures = figures
        done = self._refiner.done
        self.log.scalars({f"refiner/{name}": value for name, value in figures.items()}, done)
        self.log.status("training", **self._told())
        if done % self.settings.checkpoint_steps == 0 or done == self.standing.round_end:
            self.log.flush()
            self._save()

    def _announce(self, candidate: str) -> None:
        self.standing.candidate = candidate
        self._save()

    def _close_round(self, outcome: Outcome) -> None:
        standing, base = self.standing, self._base
        standing.rounds += 1
        standing.open, standing.candidate = False, ""
        self.log.round(
            {
                "round": standing.rounds,
                "outcome": outcome.kind,
                "base": base.id,
                "frozen": self._refiner.frozen,
                "steps": self._refiner.done,
                "skipped": self._refiner.skipped,
                "seconds": round(self._clock() - self._began_s, 2),
                "windows": standing.seen,
                "devices": standing.devices,
                "left_out": list(standing.left_out.values()),
                "loss": {name: round(value, 4) for name, value in self._figures.items()},
                **outcome.line,
            }
        )
        if outcome.kind == "published" and outcome.published is not None:
            self._base = outcome.published
            standing.published += 1
            standing.suspects = []
            logger.info("published %s: %s", self._base.id, outcome.line.get("why", ""))
        elif outcome.kind == "refused":
            standing.refused += 1
            standing.doubted = sorted({*standing.doubted, *standing.suspects})
            logger.warning("candidate refused: %s", outcome.line.get("why"))
            self._start_again()
        self._save()
        self.log.status(
            "between rounds", **{**self._told(), "last": outcome.kind, "why": outcome.line.get("why")}
        )

    def _told(self) -> dict[str, object]:
        return {
            "round": self.standing.rounds + 1,
            "step": self._refiner.done,
            "round_end": self.standing.round_end,
            "base": self._base.id,
            "frozen": self._refiner.frozen,
            "published": self.standing.published,
            "refused": self.standing.refused,
            "differences_lost": self.standing.lost,
            "doubted": self.standing.doubted,
            "loss": {name: round(value, 4) for name, value in self._figures.items()},
            "why": "",
        }

    def _save(self) -> None:
        progress = self._refiner.progress(self._base.id, {"standing": asdict(self.standing)})
        save_progress(progress, self._progress_file)


def run(settings: ServerSettings, stop: Callable[[], bool]) -> None:
    """Refines the first encoder of these settings until told to stop; of several processes (`refining_ranks`) the first is told.

    Raises:
        ConfigError: another refiner has the state folder, the settings do not suit so many processes, or it cannot compute where it is to.
        StreamSplitError: it cannot go on.
    """
    refiner = settings.refiner
    with contextlib.suppress(OSError):
        os.nice(refiner.nice)
    torch.set_num_threads(refiner.threads)
    with together(refiner):
        torch_device(refiner.compute)
        if not leads():
            follow(Publications(refiner.state_dir / PUBLISHED), refiner)
            return
        with leading(), _alone(refiner.state_dir):
            weights = settings.weights[0] if settings.weights else None
            first = resolve(settings.encoders[0], weights)
            RefinerProcess(refiner, first, stop, sleep=wait).run()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One refiner for a state folder: the operating system lets go of the lock whatever kills the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be used: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder}: another refiner is at work there") from None
        yield
