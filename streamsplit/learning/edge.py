"""The edge learner: learns from an endless stream on the device that hears it, in steps too small to hold up anything.

    hear(window) -> inbox -> the last windows, as bytes -> step(): a micro-batch of a few pairs -> every 16th moves the shadow weights

A step does one piece of work: a micro-batch forward and backward, or, for objectives that look at a fresh memory or at a whole optimiser
step, a forward-only micro-batch. `hear` may be called from another thread than all the rest: it only appends to a bounded inbox.

Everything random in a piece of work follows from (seed, optimiser step, piece), and everything else is saved, so a learner that was
killed goes on to the same bits as one that was not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.edge_file import moments, part, progress_of, take, take_moments, told
from streamsplit.learning.edge_settings import EdgeCounters, EdgeSettings
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.objectives import Surroundings, Terms, path_pairs
from streamsplit.learning.pairs import Pairs, Use, stored_windows
from streamsplit.learning.progress import load_progress, save_progress
from streamsplit.learning.recent import Codes, RecentWindows
from streamsplit.learning.shadow import Shadow, SlowCopy, norms_at

_SETTLED_WITH: Final = 16
"""Windows of a batch whose statistics the norms settle on."""
_NORMED_WITH: Final = 32
"""Windows of each forward-only pass that stored norms are made with."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one step did.

    Attributes:
        kind: "listened" forward only; "learned" with a gradient.
        terms: losses by name; empty while listening.
        updated: whether the weights were moved at its end.
    """

    kind: Literal["listened", "learned"]
    terms: dict[str, float]
    updated: bool


class EdgeLearner:
    """Learns from one device's stream.

    Args:
        version: the served version to begin from; it is never written to.
        settings: the defaults unless told.

    Attributes:
        shadow: the weights it trains.
        recent: the windows it draws from.
        memory: of raw embeddings, where the objective looks at one.
        slow: the momentum encoder, where there is one.
        counters: what it has seen and done.
        inbox: heard and not yet taken in.
        held: of the optimiser step at hand, what its forward-only pieces have made.
        sent: the difference that the server has taken, as `difference` returned it; empty if it has none from this version.
    """

    def __init__(self, version: Version, settings: EdgeSettings | None = None) -> None:
        self.settings = settings = settings or EdgeSettings()
        self._objective = settings.objective.objective
        self.shadow = Shadow(version, settings.paths, settings.train_front, settings.norms)
        self.counters = EdgeCounters()
        self.pairs = self._new_pairs()
        self.memory = self._new_memory()
        self.slow = (
            SlowCopy(self.shadow, settings.objective.momentum) if settings.objective.momentum else None
        )
        self.optimiser = self._new_optimiser()
        self.inbox: deque[tuple[Codes, float]] = deque()
        self.held: dict[str, Tensor] = {}
        self.sent: dict[str, Tensor] = {}

    @property
    def version(self) -> Version:
        """The served version that differences are from."""
        return self.shadow.version

    @property
    def recent(self) -> RecentWindows:
        """The windows it draws from."""
        return self.pairs.recent

    # What comes in.

    def hear(self, codes: Codes, start_s: float, silent: bool = False) -> bool:
        """Takes one window, from any one thread.

        Args:
            codes: [F, T] uint8 over the front end's feature range; copied.
            start_s: when it began, on a clock that does not repeat.
            silent: it was gated.

        Returns:
            Whether it will be learned from.

        Raises:
            ValueError: another shape or type.
        """
        expected = tuple(self.recent.codes.shape[1:])
        if codes.shape != expected or codes.dtype != np.uint8:
            raise ValueError(
                f"window at {start_s:g} s: expected uint8 {expected}, got {codes.dtype} {codes.shape}"
            )
        self.counters.heard += 1
        if silent:
            self.counters.silent += 1
            return False
        if len(self.inbox) >= self.settings.queue_windows:
            self.counters.overflowed += 1
            return False
        self.inbox.append((codes.copy(), start_s))
        return True

    @property
    def ready(self) -> bool:
        """Whether there is enough to learn from."""
        if self._objective.stores:
            return len(self.recent) >= self.settings.fewest_windows
        return self.recent.heard - self.counters.used >= self.settings.batch

    def _take_in(self) -> None:
        """From the inbox into the ring. What is learned from once is only taken as fast as it is learned from."""
        if self._objective.whole_step and self.counters.piece:
            return  # the ring must hold the optimiser step's windows until its end
        room = len(self.inbox)
        if not self._objective.stores:
            room = min(room, self.settings.batch - (self.recent.heard - self.counters.used))
        for _ in range(room):
            self.recent.add(*self.inbox.popleft())

    # How it learns.

    def step(self) -> Work | None:
        """One piece of work; None if there is nothing to learn from yet."""
        self._take_in()
        if not self.ready:
            return None
        self.shadow.to_train()
        piece = self.counters.piece - self._norm_pieces
        listening, terms = piece < self._listen_pieces, {}
        if piece < 0:
            self.shadow.store_norms(self.pairs.single_views(_NORMED_WITH, self.counters.piece))
        elif listening:
            self._listen(piece)
        else:
            terms = self._learn(piece - self._listen_pieces)
        self.counters.piece += 1
        updated = piece + 1 == self._listen_pieces + self.settings.accumulate and self._update()
        return Work("listened" if listening else "learned", terms, updated)

    @property
    def _norm_pieces(self) -> int:
        return 2 if self.settings.norms == "stored" else 0

    @property
    def _listen_pieces(self) -> int:
        if self._objective.whole_step:
            return self.settings.accumulate
        if self.settings.objective.memory == "fresh":
            return -(-self.settings.objective.fresh_windows // (2 * self.settings.batch))
        return 0

    @torch.no_grad()
    def _listen(self, piece: int) -> None:
        """Forward only, with batches as large as those that learn: batch norms then make the same of a window."""
        with norms_at(self.shadow.encoder, 0.0):
            if self._objective.whole_step:
                embeddings = self.shadow.embed(self.pairs.views(piece))
            else:
                embeddings = self.shadow.embed(
                    self.pairs.single_views(2 * self.settings.batch, self.counters.piece)
                )
        for path, z in embeddings.items():
            before = self.held.get(f"heard/{path}")
            self.held[f"heard/{path}"] = z if before is None else torch.cat([before, z])
        if piece == self._listen_pieces - 1:
            heard = part(self.held, "heard")
            self.held = {}
            if self._objective.whole_step:
                self._compare_all(heard)
            elif self.memory is not None:
                self.memory.rebuild(torch.cat(list(heard.values())))

    @torch.enable_grad()
    def _compare_all(self, heard: Mapping[str, Tensor]) -> None:
        """The whole step's loss and its gradient at every embedding; each micro-batch sends its own back (Gao et al. 2021)."""
        live = {path: z.requires_grad_() for path, z in heard.items()}
        paired = {path: self.pairs.in_order(z) for path, z in live.items()}
        terms = self._terms(
            {path: first for path, (first, _) in paired.items()},
            {path: second for path, (_, second) in paired.items()},
            self.pairs.chance(0, Use.OBJECTIVE),
        )
        pulls = torch.autograd.grad(terms["total"], list(live.values()))
        self.held |= {f"pull/{path}": pull for path, pull in zip(live, pulls, strict=True)}
        self.held |= {f"terms/{name}": term.detach().clone() for name, term in terms.items()}

    def _learn(self, number: int) -> dict[str, float]:
        views = self.pairs.views(number)
        embeddings, half = self.shadow.embed(views), self.settings.batch
        if self._objective.whole_step:
            rows = slice(number * 2 * half, (number + 1) * 2 * half)
            pulled = [(z * self.held[f"pull/{path}"][rows]).sum() for path, z in embeddings.items()]
            torch.stack(pulled).sum().backward()  # type: ignore[no-untyped-call]
            return {name: float(term) for name, term in part(self.held, "terms").items()}
        terms, heard = self._compared(
            {path: z[:half] for path, z in embeddings.items()},
            {path: z[half:] for path, z in embeddings.items()},
            views,
            self.pairs.chance(number, Use.OBJECTIVE),
        )
        (terms["total"] / self.settings.accumulate).backward()  # type: ignore[no-untyped-call]
        if self.memory is not None and self.settings.objective.memory == "stream":
            self.memory.update(heard)
        return {name: float(term.detach()) for name, term in terms.items()}

    def _compared(
        self,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        views: Tensor,
        chance: torch.Generator,
    ) -> tuple[Terms, Tensor]:
        """The objective of two views, with partners by the slow copy if there is one; and what a stream's memory is to hear."""
        if self.slow is None:
            terms, heard = self._terms(first, second, chance), first
        else:
            keys, half = self.slow.embed(views), self.settings.batch
            heard = {path: z[:half] for path, z in keys.items()}
            others = {path: z[half:] for path, z in keys.items()}
            one, other = self._terms(first, others, chance), self._terms(second, heard, chance)
            terms = {name: (term + other[name]) / 2 for name, term in one.items()}
        return terms, torch.cat([z.detach() for z in heard.values()])

    def _terms(
        self, first: Mapping[str, Tensor], second: Mapping[str, Tensor], chance: torch.Generator
    ) -> Terms:
        around = Surroundings(self.settings.objective, self.memory, chance)
        return path_pairs(first, second, lambda one, other: self._objective.terms(one, other, around))

    def _update(self) -> bool:
        """Moves the weights; a gradient that is not finite is thrown away, counted."""
        parameters = self.shadow.parameters().values()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        good = bool(torch.isfinite(norm))
        if good:
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.rate(self.counters.since_rebase)
            self.optimiser.step()
            if self.slow is not None:
                self.slow.follow(self.shadow)
            self.counters.updates += 1
            self.counters.since_rebase += 1
        else:
            self.counters.skipped += 1
        self._begin_cycle()
        return good

    def _begin_cycle(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.held = {}
        self.pairs.drawn = {}
        self.counters.cycle += 1
        self.counters.piece = 0

    # What it tells, and what it is told.

    def difference(self) -> dict[str, Tensor]:
        """Shadow less served weights by name, float32: what the device has learned and the server merges.

        Batch norms tell the statistics of the plain windows now stored (`Shadow.settle`), where there are enough.
        """
        if len(self.recent) >= _SETTLED_WITH and self.counters.updates:
            ages = torch.arange(len(self.recent) // _SETTLED_WITH * _SETTLED_WITH)
            self.shadow.settle(self.recent.mel(some) for some in torch.split(ages, _SETTLED_WITH))
        return self.shadow.difference()

    @property
    def learned(self) -> int:
        """Pairs of windows that it has learned from since the version served now: what its difference is worth."""
        return self.counters.since_rebase * self.settings.batch * self.settings.accumulate

    def rebase(self, version: Version) -> None:
        """Goes on from a newly served version: its weights, plus what was learned here and not `sent`.

        The optimiser keeps its second moments, which know the gradients' size; its direction is forgotten, and the warm-up comes
        again. An optimiser step half done is thrown away; a stream's memory is of other weights and begins anew.

        Args:
            version: of the same encoder. With another front end, the windows stored are forgotten.

        Raises:
            ConfigError: another encoder.
        """
        front_end = self.version.front_end
        known = moments(self)
        self.shadow.rebase(version, self.sent)
        self.sent = {}
        self.optimiser = self._new_optimiser()
        for key, value in known.items():
            if key.endswith("/exp_avg"):
                value.zero_()
        take_moments(self, known)
        self.memory = self._new_memory()
        if self.slow is not None:
            self.slow.follow_anew(self.shadow)
        if version.front_end != front_end:
            self.inbox.clear()
            self.counters.used = 0
            self.pairs = self._new_pairs()
        self._begin_cycle()
        self.counters.since_rebase = 0

    # What it holds.

    @property
    def held_bytes(self) -> int:
        """Bytes of every tensor it keeps between two steps; what it shares with the served version is not its own."""
        progress = progress_of(self)
        return sum(
            tensor.nbytes
            for tensors in (progress.weights, progress.optimiser, progress.more)
            for tensor in tensors.values()
        )

    @property
    def bound_bytes(self) -> int:
        """What `held_bytes` never exceeds, however long the stream."""
        settings, paths = self.settings, len(self.shadow.encoder.paths)
        weights = sum(tensor.nbytes for tensor in self.shadow.tensors().values())
        copies = 5 + (self.slow is not None)  # weights, gradients, two moments, what was sent
        counts = 4 * len(self.shadow.parameters()) + 1024
        windows = self.recent.nbytes + settings.queue_windows * (self.recent.codes[0].nbytes + 8)
        rows = 2 * settings.batch * self._listen_pieces * paths
        drawn = 32 * settings.batch * settings.accumulate
        memory = sum(tensor.nbytes for tensor in self.memory.tensors().values()) if self.memory else 0
        return (
            copies * weights
            + counts
            + windows
            + rows * 4 * self.shadow.encoder.embedding_dim
            + drawn
            + memory
        )

    def save(self, path: Path) -> None:
        """Writes all of it; the file appears whole or not at all. From the thread that steps.

        Raises:
            StorageError: the folder is missing, read-only or full.
        """
        save_progress(progress_of(self), path)

    def restore(self, path: Path) -> None:
        """Goes on where `save` was called, to the same bits.

        Raises:
            ConfigError: saved under other settings, or from another served version (restore on that one, then `rebase`).
            StorageError: missing or damaged.
        """
        saved = load_progress(path)
        own = told(self.settings)
        if saved.settings != own:
            other = sorted(key for key, value in own.items() if saved.settings.get(key) != value)
            raise ConfigError(f"{path}: learned with other settings ({', '.join(other)})")
        if saved.pool != self.version.id:
            raise ConfigError(f"{path}: learned from version {saved.pool}, expected {self.version.id}")
        try:
            take(self, saved)
        except (KeyError, RuntimeError) as error:
            raise StorageError(f"{path}: damaged: {error}") from error

    def _new_pairs(self) -> Pairs:
        stored = stored_windows(self.settings, self.version.front_end)
        return Pairs(self.settings, stored, self.counters)

    def _new_memory(self) -> DistributionMemory | None:
        if self.settings.objective.memory == "none":
            return None
        dim = self.shadow.encoder.embedding_dim
        return DistributionMemory(MemorySettings(dim=dim, centred=False, seed=self.settings.seed))

    def _new_optimiser(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self.shadow.parameters().values(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )
