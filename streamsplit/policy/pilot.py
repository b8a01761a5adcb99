"""When a decider is asked: every few windows, and at once when something happens."""

from __future__ import annotations

from collections.abc import Sequence

from streamsplit.policy.decide import Choice, Decider, Learner, RandomShare, mask
from streamsplit.policy.observation import LOAD_JUMP, Observation, Option, piling_up


class Pilot:
    """Holds a decision for some windows: changing one's mind every second costs more than it brings.

    It decides anew every `every` windows, and at once when the server comes or goes, when the possible options change, when
    the processor begins or ends to be throttled, when others' load is LOAD_JUMP away from what was decided on, and when the link's
    rate, its round trip or the uncertainty becomes known, or is no longer; and at every window for as long as work piles up (see
    `piling_up`): what let it pile up is not to be kept to. `RandomShare`, which looks at nothing, is asked anew only when something
    comes, goes or changes. Its state is the choice in force, what it was made on and its age; a replay that shows it the same
    observations gets the same choices.

    Args:
        decider: who decides.
        every: windows per decision, at least 1.
        hop_s: see `mask`.

    Attributes:
        decisions: how often the decider was asked.
    """

    def __init__(self, decider: Decider, every: int = 10, hop_s: float = 0.96) -> None:
        if every < 1:
            raise ValueError(f"every: expected at least 1 window, got {every}")
        self.decider = decider
        self.decisions = 0
        self._looks = not isinstance(decider, RandomShare)
        self._every = every
        self._hop_s = hop_s
        self._age = 0
        self._choice: Choice | None = None
        self._situation: tuple[object, ...] = ()
        self._cpu_percent = 0.0

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """The choice for the next window; `options` unmasked, the last split among them."""
        possible = mask(options, observation, max(option.split for option in options), self._hop_s)
        situation: tuple[object, ...] = (
            observation.server_available,
            observation.throttled,
            tuple((option.split, option.codec) for option in possible),
        )
        urgent = False
        if self._looks:
            late = observation.lag_s is not None and piling_up(observation.lag_s, self._hop_s)
            urgent = late or abs(observation.cpu_percent - self._cpu_percent) >= LOAD_JUMP
            unknown = (observation.uplink_bps, observation.rtt_ms, observation.uncertainty)
            situation += (late, *(value is None for value in unknown))
        if self._choice is None or urgent or self._age >= self._every or situation != self._situation:
            self._choice = self.decider.choose(observation, possible)
            self._situation, self._cpu_percent, self._age = situation, observation.cpu_percent, 0
            self.decisions += 1
        self._age += 1
        return self._choice

    def learn(self, choice: Choice, observation: Observation, reward: float) -> None:
        """Passes what came of a choice on to the decider, if it learns.

        Args:
            choice: as `choose` returned it.
            observation: that it was decided on, the first of its windows.
            reward: mean of its windows, by `cost.reward`.
        """
        if isinstance(self.decider, Learner):
            self.decider.learn(choice, observation, reward)
