"""The task as reinforcement learning's libraries want it: gymnasium's environment and Stable-Baselines3's vector.

    SplitEnv    one device            observation [LENGTH] float32, actions = option slots, `action_masks()`
    FleetEnv    many, in one simulator

A step is a leg of up to ten windows (see `flight`). The reward is the leg's sum of alpha A - beta Lat / T_max -
eta E / E_budget, divided by ten. An empty battery terminates; the end of the timeline truncates, and what is
left of the state is still worth something: bootstrap it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import gymnasium
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

from streamsplit.policy.cost import Goals
from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.flight import EVERY, LENGTH, Flight
from streamsplit.policy.profile import Profile
from streamsplit.policy.scenarios import Scenario
from streamsplit.policy.training_worlds import FIRST_TRAINING_SEED, PolicySettings, training_worlds
from streamsplit.policy.worlds import MOST_OPTIONS, Device, Timeline, stack

BASELINE: Final = 7.0
"""Taken from every window's reward before it reaches PPO: values near 0 are learned sooner. An empty battery then
costs the baseline of the rest of the timeline, which is what it takes away."""

SCALE: Final = 0.1
"""Of rewards that reach PPO: returns of about 1, or the critic's gradients drown the actor's where both are clipped
together."""

Made = Callable[[int, int], tuple[Device, Timeline]]


class SplitEnv(gymnasium.Env[npt.NDArray[np.float32], np.int64]):  # type: ignore[misc]
    """A device to be flown.

    Args:
        scenario: a scenario, or any function of (seed, windows) that makes a device and its timeline.
        windows: length of an episode.
        goals: of the reward.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(self, scenario: Scenario | Made, windows: int = 600, goals: Goals | None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (LENGTH,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(MOST_OPTIONS)
        self._made: Made = scenario.world if isinstance(scenario, Scenario) else scenario
        self._windows = windows
        self._goals = goals or Goals()
        self._flight: Flight | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """A new world; equal seeds make equal ones."""
        super().reset(seed=seed)
        world = int(self.np_random.integers(2**31))
        device, timeline = self._made(world, self._windows)
        self._flight = Flight(Simulator(stack([device], [timeline], self._goals), np.zeros(1, np.int64)))
        return self._flight.features()[0], {"world": world}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Keeps to an option for a leg; an impossible one means embedding on the device."""
        if self._flight is None:
            raise ValueError("step before reset")
        leg = self._flight.fly(np.array([int(action)]))
        told = {
            name: float(getattr(leg, name)[0])
            for name in ("windows", "quality", "latency_ms", "energy_mj", "uplink_bytes", "lost")
        }
        return (
            self._flight.features()[0],
            float(leg.reward[0]),
            bool(leg.terminated[0]),
            bool(leg.truncated[0]),
            told,
        )

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """[MOST_OPTIONS] what is possible now, as sb3-contrib asks for it."""
        if self._flight is None:
            raise ValueError("action_masks before reset")
        return np.asarray(self._flight.possible[0])


class FleetEnv(VecEnv):  # type: ignore[misc]
    """Many simulated devices as Stable-Baselines3's vector of environments, stepped by one numpy simulator.

    A device whose world ends takes a random one of the worlds kept; these are made anew now and then.
    """

    def __init__(self, settings: PolicySettings, profiles: tuple[Profile, ...] = (), skip: int = 0) -> None:
        super().__init__(
            settings.devices,
            gymnasium.spaces.Box(-np.inf, np.inf, (LENGTH,), np.float32),
            gymnasium.spaces.Discrete(MOST_OPTIONS),
        )
        self._settings, self._profiles = settings, profiles
        self._generator = np.random.default_rng([settings.seed, 5, skip])
        self._next_seed = FIRST_TRAINING_SEED + settings.seed * 10_000_000 + skip
        self._renew_after = settings.worlds * max(1, settings.episode_windows // EVERY) * 4
        self._since = 0
        self._returns = np.zeros(settings.devices)
        self._lengths = np.zeros(settings.devices, np.int64)
        self.reset()

    def reset(self) -> npt.NDArray[np.float32]:
        """All devices into new worlds, each at a random place of its first episode."""
        settings = self._settings
        seeds = range(self._next_seed, self._next_seed + settings.worlds)
        self._next_seed = seeds.stop
        made = training_worlds(
            seeds, settings.episode_windows, settings.goals, settings.fleet, self._profiles
        )
        chosen = self._generator.integers(len(made), size=settings.devices)
        start = self._generator.integers(settings.episode_windows - EVERY, size=settings.devices)
        self._flight = Flight(Simulator(made, chosen, start))
        self._returns[:], self._lengths[:] = 0.0, 0
        self._since = 0
        return self._flight.features()

    def step_async(self, actions: npt.NDArray[np.int64]) -> None:
        """Keeps the actions for `step_wait`."""
        self._actions = np.asarray(actions, np.int64)

    def step_wait(self) -> Any:
        """One leg of every device."""
        flight = self._flight
        before = flight.simulator.window
        leg = flight.fly(self._actions)
        rewards = leg.reward - BASELINE * leg.windows / EVERY
        left = (flight.simulator.worlds.windows - flight.simulator.window) / EVERY
        rewards = rewards - np.where(leg.terminated, BASELINE * left, 0.0)
        self._returns += leg.reward * EVERY
        self._lengths += flight.simulator.window - before
        done = leg.terminated | leg.truncated
        features = flight.features()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            features = self._renewed(done, leg.truncated, features, infos)
        self._since += self.num_envs
        if self._since >= self._renew_after:
            for row in np.flatnonzero(~done):
                infos[row] = {"terminal_observation": features[row], "TimeLimit.truncated": True}
            features, done = self.reset(), np.ones(self.num_envs, bool)
        return features, (SCALE * rewards).astype(np.float32), done, infos

    def _renewed(
        self,
        done: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
        features: npt.NDArray[np.float32],
        infos: list[dict[str, Any]],
    ) -> npt.NDArray[np.float32]:
        rows = np.flatnonzero(done)
        for row in rows:
            infos[row] = {
                "terminal_observation": features[row],
                "TimeLimit.truncated": bool(truncated[row]),
                "episode": {
                    "r": float(self._returns[row] / max(self._lengths[row], 1)),
                    "l": int(self._lengths[row]),
                    "t": 0.0,
                },
            }
        self._returns[rows], self._lengths[rows] = 0.0, 0
        chosen = self._generator.integers(len(self._flight.simulator.worlds), size=len(rows))
        self._flight.simulator.restart(rows, chosen, np.zeros(len(rows), np.int64))
        self._flight.look()
        return self._flight.features()

    def close(self) -> None:
        """Nothing is open."""

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """[devices, options]."""
        return self._flight.possible

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """`action_masks` of the devices asked for."""
        if method_name != "action_masks":
            raise AttributeError(method_name)
        return list(self.action_masks()[self._get_indices(indices)])

    def has_attr(self, attr_name: str) -> bool:
        """As the vector itself has it."""
        return hasattr(self, attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The vector's own, once per device."""
        return [getattr(self, attr_name, None) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Devices have none to set."""
        raise AttributeError(attr_name)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """None is."""
        return [False for _ in self._get_indices(indices)]
