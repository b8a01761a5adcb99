"""One round of refining: steps, then a candidate, judged and published or not. It keeps nothing between rounds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from streamsplit.config import RefinerSettings
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, PayloadError, StorageError
from streamsplit.learning import across
from streamsplit.learning.averaging import DeviceDifference, Merged, merge_differences
from streamsplit.learning.buffer import BufferedWindow, TemporalBuffer
from streamsplit.learning.hybrid import HybridSettings
from streamsplit.learning.lessons import FROM_ONE_STRETCH, draw_judged, draw_lesson, held_out
from streamsplit.learning.memory_file import pack as pack_memory
from streamsplit.learning.refine import Lesson, Refiner, RefineSettings
from streamsplit.learning.replay import ReplayReader
from streamsplit.server.candidates import Candidate, make_candidate, remembered, said
from streamsplit.server.inbox import Inbox
from streamsplit.server.known_versions import KnownVersions
from streamsplit.server.publications import Current, Publications

logger = logging.getLogger(__name__)

BUFFERED = 4096
"""Windows of all devices that the Hybrid terms and the memory look at."""
CALM = 480
"""Windows that batch norms are settled and ranges calibrated on."""
FEWEST_PAIRS = 8
LEAST_STRETCHES = 6
LEAST_JUDGED = LEAST_STRETCHES * FROM_ONE_STRETCH
MOST_TRIED = 4
"""Doubted devices in a round: each takes some seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a round came to.

    Attributes:
        kind: "refused": the candidate is worse. "unjudged": too few held-out windows to tell; nothing was published, training goes on.
            "void": somebody else changed what is served meanwhile.
        published: the new version, if it is served now.
        line: for the log.
    """

    kind: Literal["published", "refused", "unjudged", "void"]
    published: Version | None = None
    line: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """What devices sent, at a round's begin.

    Attributes:
        difference: all of it together.
        merged: names of the files that are in it.
        left_out: name -> why, of those that are not.
    """

    difference: Merged
    merged: list[str]
    left_out: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Makes a candidate of what a refiner has come to, and asks the gate.

    Attributes:
        number: of the round, from 0; decides what is drawn to judge.
        settings: of the refiner.
        refiner: whose weights.
        known: which windows they can be judged by, relative to its base.
        reader: the replay.
    """

    number: int
    settings: RefinerSettings
    refiner: Refiner
    known: KnownVersions
    reader: ReplayReader

    def candidate(self) -> Candidate | str:
        """The candidate and the verdict on it; or why nothing can be said.

        Raises:
            ValueError: weights that are not finite.
        """
        judged = draw_judged(self.reader, self.settings.judged_windows, self.number, self.known.usable)
        stretches = len(set(judged.stretches))
        if len(judged.windows) < LEAST_JUDGED or stretches < LEAST_STRETCHES:
            return (
                f"too few held-out windows to judge by: {len(judged.windows)} of {stretches} stretches,"
                f" expected {LEAST_JUDGED} of {LEAST_STRETCHES}"
            )
        known, bits = self.known, self.settings.difference_bits
        try:
            return make_candidate(self.refiner, known.base, self._calm(), judged, known.ranges, bits)
        except PayloadError as error:  # the next round draws other windows
            return f"a held-out window cannot be read: {error}"

    def refusal(self) -> str | None:
        """Why the gate refuses what the refiner is now; empty where it does not, None where nothing can be said."""
        try:
            candidate = self.candidate()
        except ValueError as error:
            return str(error)
        if isinstance(candidate, str):
            return None
        return "; ".join(candidate.verdict.reasons)

    def _calm(self) -> list[BufferedWindow]:
        chance = torch.Generator().manual_seed(self.number)
        found = self.reader.sample(2 * CALM, chance)
        return [one for one in found if self.known.usable(one) and not held_out(one)][:CALM]


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """What a round works with.

    Attributes:
        judge: of the refiner that learns.
        step: takes a step of it, in every process (`refining_ranks.led`).
        buffer: the devices' last windows.
    """

    judge: Judge
    step: Callable[[Lesson], dict[str, float]]
    buffer: TemporalBuffer

    def train(self, to_step: int, stop: Callable[[], bool], told: Callable[[dict[str, float]], None]) -> bool:
        """Steps up to a number; False if it was stopped or found too few windows to learn from.

        Args:
            to_step: where the round ends.
            stop: asked before every step.
            told: called after every step with its losses.
        """
        refiner, known, reader = self.judge.refiner, self.judge.known, self.judge.reader
        least = max(min(refiner.settings.batch, FEWEST_PAIRS), 2 * across.processes())
        while refiner.done < to_step:
            if stop():
                return False
            lesson = draw_lesson(reader, self.buffer, refiner.settings, refiner.done, known.usable)
            if len(lesson.pairs) < least:
                return False
            try:
                told(self.step(lesson))
            except PayloadError as error:  # another step draws other windows
                logger.warning("step %d is left out: %s", refiner.done, error)
                refiner.done += 1
        return True

    def conclude(
        self, publications: Publications, at_unix_ms: int, announce: Callable[[str], None]
    ) -> Outcome:
        """Judges what was learned, and publishes it if it may be.

        Args:
            publications: where.
            at_unix_ms: the wall clock.
            announce: called with the candidate's id just before it is published; must remember it through a kill.
        """
        try:
            candidate = self.judge.candidate()
        except ValueError as error:
            return Outcome("refused", None, {"why": str(error)})
        if isinstance(candidate, str):
            return Outcome("unjudged", None, {"why": candidate})
        line = {
            "candidate": candidate.version.id,
            "why": str(candidate.verdict),
            "judged": max(one.windows for one in candidate.verdict.candidate.values()),
            "quality": said(candidate.verdict),
            "difference_bytes": len(candidate.difference),
        }
        if not candidate.verdict.publish:
            return Outcome("refused", None, line)
        announce(candidate.version.id)
        current = self._publish(publications, candidate, at_unix_ms)
        if current is None:
            return Outcome("void", None, {**line, "why": "another version is served meanwhile"})
        return Outcome("published", candidate.version, line)

    def _publish(self, publications: Publications, candidate: Candidate, at_unix_ms: int) -> Current | None:
        known = self.judge.known
        memory = remembered(candidate.version, self.buffer, known.ranges)
        packed = None if memory is None else pack_memory(memory, with_reservoir=False)
        return publications.publish(
            candidate.version, known.base.id, candidate.difference, packed, at_unix_ms
        )


def refiner_of(
    base: Version, publications: Publications, settings: RefinerSettings, frozen: int, done: int = 0
) -> Refiner:
    """A refiner of what is served.

    Args:
        base: what is served.
        publications: where versions are.
        settings: of the refiner.
        frozen: how many blocks do not move.
        done: steps before, counted on.
    """
    refine = RefineSettings(
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        hybrid=HybridSettings(settings.spread_weight, settings.smoothness_weight),
        seed=settings.seed,
    )
    known = KnownVersions(publications, base, frozen)
    return Refiner(base.trainable(), refine, known.ranges, frozen, settings.compute, done)


def frozen_blocks(
    front: str, publications: Publications, base: Version, reader: ReplayReader, number: int
) -> int:
    """How many blocks do not move in round `number`: none, or all before the last.

    Args:
        front: "train", "freeze" or "auto": all move where at least half of the usable windows are features.
        publications: where versions are.
        base: the version that is refined.
        reader: the replay.
        number: of the round.
    """
    last = base.encoder.last_split - 1
    if front != "auto":
        return 0 if front == "train" else last
    known = KnownVersions(publications, base, last)
    found = [one for one in reader.sample(256, torch.Generator().manual_seed(number)) if known.usable(one)]
    features = sum(one.split == 0 for one in found)
    return 0 if 2 * features >= max(1, len(found)) else last


def recent_windows(reader: ReplayReader, known: KnownVersions) -> TemporalBuffer:
    """The temporal buffer as it is now, of windows that can be embedded."""
    buffer = TemporalBuffer()
    for window in reader.newest(BUFFERED):
        if known.usable(window):
            buffer.insert(window)
    return buffer


def gather(
    inbox: Inbox,
    claimed: list[Path],
    publications: Publications,
    base: Version,
    most: float,
    doubted: Collection[str],
    refusal: Callable[[Mapping[str, Tensor]], str | None],
) -> Gathered:
    """What a round has claimed of the inbox as one difference.

    A device's difference may be of any version that is still kept and that what is served descends from: it is applied to the newest as it
    is, as one of the version before is. (A device that was away, or a round that published while its difference waited, would otherwise have
    learned in vain: it counts as taken what the server took.)

    Args:
        inbox: where.
        claimed: the files to merge.
        publications: where versions are.
        base: what is refined.
        most: clip of a device's difference, as a share of the weights' norm.
        doubted: devices whose differences are merged only if the gate lets pass what each alone makes of what is served. MOST_TRIED a round
            are tried; those of others stay claimed.
        refusal: why it does not; empty if it does, None if nothing can be said now: then the difference stays claimed, too.
    """
    bases = _Bases(publications, base)
    read: dict[str, DeviceDifference] = {}
    left_out: dict[str, str] = {}
    for path in claimed:
        try:
            read[path.name] = inbox.since(path, bases.find)
        except PayloadError as error:
            left_out[path.name] = str(error)
    waiting: set[str] = set()
    tried = 0
    for name, one in read.items():
        if one.device not in doubted:
            continue
        alone = merge_differences([one], base.state, most)
        if alone.refused:
            continue
        tried += 1
        why = refusal(alone.tensors) if tried <= MOST_TRIED else None
        if why is None:
            waiting.add(name)
        elif why:
            left_out[name] = (
                f"device {one.device}: it was in a refused candidate, and is refused by itself: {why}"
            )
    merging = {name: one for name, one in read.items() if name not in waiting and name not in left_out}
    outcome = merge_differences(list(merging.values()), base.state, most)
    for name, one in merging.items():
        if one.device in outcome.refused:
            left_out[name] = f"device {one.device}: {outcome.refused[one.device]}"
    for why in left_out.values():
        logger.warning("a difference is left out: %s", why)
    return Gathered(outcome, [name for name in merging if name not in left_out], left_out)


class _Bases:
    """The versions a device's difference may be of: kept, and of the line that began with the weights now refined."""

    def __init__(self, publications: Publications, base: Version) -> None:
        self._publications = publications
        self._loaded: dict[str, Version | None] = {base.id: base}
        self._line: set[str] = set()
        current = publications.current()
        for one in reversed(current.history if current else ()):
            self._line.add(one.id)
            if one.by == "start":
                break

    def find(self, id: str) -> Version | None:
        """The version; None if no difference may be of it."""
        if id not in self._loaded:
            self._loaded[id] = self._load(id) if id in self._line and self._publications.has(id) else None
        return self._loaded[id]

    def _load(self, id: str) -> Version | None:
        try:
            return self._publications.load(id)
        except (ConfigError, StorageError) as error:
            logger.warning("differences of %s cannot be read: %s", id, error)
            return None
