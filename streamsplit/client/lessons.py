"""What came of the decisions: rewards of windows, given back to a decider that learns.

choice in force, its first observation --windows done with--> mean reward --once all are--> pilot.learn
"""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.client.step import Step
from streamsplit.policy.cost import Goals, predict_energy_mj, reward
from streamsplit.policy.decide import Choice
from streamsplit.policy.observation import Observation, Option
from streamsplit.policy.pilot import Pilot
from streamsplit.policy.profile import Profile
from streamsplit.policy.quality import Quality

MOST_OPEN = 64
"""Choices whose windows are not all done with; of older ones (an outage) what is known then has to do."""


@dataclass(slots=True, eq=False)
class _Lesson:
    choice: Choice
    observation: Observation
    waiting: int = 0
    total: float = 0.0
    windows: int = 0


class Lessons:
    """Rewards by choice.

    Latency is measured; energy comes from the profile's stated power model and quality from the encoder's table: modelled.

    Args:
        pilot: who decides, and is taught.
        profile: this device's.
        quality: of each path by uncertainty.
        goals: what an outcome is worth.
    """

    def __init__(self, pilot: Pilot, profile: Profile, quality: Quality, goals: Goals | None = None) -> None:
        self._pilot = pilot
        self._profile = profile
        self._quality = quality
        self._goals = goals or Goals()
        self._lessons: list[_Lesson] = []
        self._of: dict[tuple[str, int], _Lesson] = {}

    def decided(self, key: tuple[str, int], choice: Choice, observation: Observation) -> None:
        """A window goes by a choice; the pilot returns the same one while it holds."""
        if not self._lessons or self._lessons[-1].choice is not choice:
            self._lessons.append(_Lesson(choice, observation))
            self._teach(force=len(self._lessons) > MOST_OPEN)
        lesson = self._lessons[-1]
        lesson.waiting += 1
        self._of[key] = lesson

    def done(self, step: Step, latency_ms: float | None, uncertainty: float | None) -> None:
        """A window is done with.

        Args:
            step: what was made of it.
            latency_ms: until its embedding was usable; None: it never was, or nobody knows.
            uncertainty: as far as it is known.
        """
        lesson = self._of.pop(step.key, None)
        if lesson is None:
            return
        lesson.waiting -= 1
        if latency_ms is not None:
            lesson.total += self._reward(step, lesson.observation, latency_ms, uncertainty)
            lesson.windows += 1
        self._teach()

    def _teach(self, force: bool = False) -> None:
        """Passes on the lessons that are complete; the last one may still grow."""
        while len(self._lessons) > 1 and (force or self._lessons[0].waiting == 0):
            lesson = self._lessons.pop(0)
            if force:
                self._of = {key: of for key, of in self._of.items() if of is not lesson}
            if lesson.windows:
                self._pilot.learn(lesson.choice, lesson.observation, lesson.total / lesson.windows)
            force = False

    def _reward(
        self, step: Step, observation: Observation, latency_ms: float, uncertainty: float | None
    ) -> float:
        profile, goals = self._profile, self._goals
        option = Option(step.split, str(step.codec), float(len(step.payload)))
        energy_mj = predict_energy_mj(profile, option, observation).total
        quality = float(self._quality.at(step.split, profile.last_split, uncertainty or 0.0))
        return reward(
            goals,
            quality,
            latency_ms / goals.latency_limit_ms(profile.window_s),
            energy_mj / goals.energy_budget_mj(profile.power, profile.window_s),
        )
