"""The learned decider: a small network scores every possible option, in numpy; see docs/policy.md.

    moment [G] --+
                 +--> tanh [H] --> tanh [J] --> score, + bias x expected reward
    option [K] --+

The same weights for every option, so any number of them is served. The file is a safetensors file; its metadata
names the layout of the features, and a file of another layout is refused. Neither torch nor gymnasium is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from streamsplit.errors import ConfigError
from streamsplit.policy.cost import Goals, predict_energy_mj, predict_latency_ms
from streamsplit.policy.decide import Choice
from streamsplit.policy.layout import EXPECTED, LAYOUT, MOMENT, PER_OPTION, Describer
from streamsplit.policy.observation import Observation, Option
from streamsplit.policy.profile import Profile
from streamsplit.policy.quality import SHIPPED, Quality, shipped_quality
from streamsplit.whole_file import write_whole

FORMAT: Final = "streamsplit-policy"
FORMAT_VERSION: Final = 1
SHIPPED_POLICY: Final = SHIPPED / "policy.safetensors"
CLIP: Final = 8.0
"""Normalised features are cut here."""

Tensor = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A trained scorer.

    Attributes:
        tensors: by name: moment_mean, moment_scale [G], option_mean, option_scale [K], moment_in [G, H],
            option_in [K, H], hidden_bias [H], middle [H, J], middle_bias [J], out [J], expected_bias [].
        goals: the reward it was trained for.
        note: how it was made: the command.
    """

    tensors: Mapping[str, Tensor]
    goals: Goals
    note: str

    def save(self, path: Path) -> None:
        """Writes the file.

        Raises:
            StorageError: it cannot be written there.
        """
        goals = self.goals
        description = {
            "format_version": FORMAT_VERSION,
            "layout": LAYOUT,
            "moment": MOMENT,
            "option": PER_OPTION,
            "goals": [
                goals.alpha,
                goals.beta,
                goals.eta,
                goals.latency_ms,
                goals.energy_mj,
                goals.latest,
            ],
            "note": self.note,
        }
        write_whole(path, to_bytes(dict(self.tensors), {FORMAT: json.dumps(description)}))


def load_weights(path: Path) -> Weights:
    """Reads what `Weights.save` wrote.

    Raises:
        ConfigError: no such file, not a policy, of another layout, or with tensors of wrong shapes.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"policy {path}: cannot be read as safetensors: {error}") from error
    if text is None:
        raise ConfigError(f"policy {path}: expected a {FORMAT} file (`streamsplit train-policy` writes one)")
    try:
        described = json.loads(text)
        version, layout = described["format_version"], described["layout"]
        goals, note = _goals(described["goals"]), str(described["note"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"policy {path}: damaged description: {error}") from error
    if version != FORMAT_VERSION or layout != LAYOUT:
        raise ConfigError(
            f"policy {path}: expected format {FORMAT_VERSION} with features {LAYOUT}, got {version} with {layout}"
        )
    _check(path, tensors)
    return Weights(tensors, goals, note)


def _goals(figures: Any) -> Goals:
    if not isinstance(figures, list) or not all(
        isinstance(figure, int | float) or (figure is None and place in (3, 4))
        for place, figure in enumerate(figures)
    ):
        raise ValueError(f"goals: expected numbers, got {figures}")
    return Goals(*figures)


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    moment, option = len(MOMENT), len(PER_OPTION)
    hidden = tensors["hidden_bias"].shape if "hidden_bias" in tensors else (0,)
    middle = tensors["middle_bias"].shape if "middle_bias" in tensors else (0,)
    expected: dict[str, tuple[int, ...]] = {
        "moment_mean": (moment,),
        "moment_scale": (moment,),
        "option_mean": (option,),
        "option_scale": (option,),
        "moment_in": (moment, *hidden),
        "option_in": (option, *hidden),
        "hidden_bias": hidden,
        "middle": (*hidden, *middle),
        "middle_bias": middle,
        "out": middle,
        "expected_bias": (),
    }
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != expected or 0 in (*hidden, *middle):
        raise ConfigError(f"policy {path}: expected tensors {expected}, got {shapes}")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise ConfigError(f"policy {path}: {name}: expected finite float32, got {tensor.dtype}")
    if min(tensors["moment_scale"].min(), tensors["option_scale"].min()) <= 0:
        raise ConfigError(f"policy {path}: expected scales above 0")


class LearnedPolicy:
    """Takes the option with the highest score.

    Args:
        weights: trained.
        profile: of this device; the options it has not measured cannot be scored.
        quality: of its encoder; None: the shipped table.
        name: as `make_decider` takes it.
        hold_windows, predicts: see `worlds.Device`; the defaults are what clients do.
    """

    def __init__(
        self,
        weights: Weights,
        profile: Profile,
        quality: Quality | None = None,
        name: str = "learned",
        hold_windows: int = 0,
        predicts: bool = False,
    ) -> None:
        self.name = name
        self._profile = profile
        self._describer = Describer(
            profile, quality or encoder_quality(profile), weights.goals, hold_windows, predicts
        )
        tensors = {name: tensor.astype(np.float64) for name, tensor in weights.tensors.items()}
        # Normalisation is folded into bounds and first layer: four operations less in every decision.
        moment_mean, moment_scale = tensors["moment_mean"], tensors["moment_scale"]
        option_mean, option_scale = tensors["option_mean"], tensors["option_scale"]
        self._moment_bounds = moment_mean - CLIP * moment_scale, moment_mean + CLIP * moment_scale
        self._option_bounds = option_mean - CLIP * option_scale, option_mean + CLIP * option_scale
        self._moment_in = tensors["moment_in"] / moment_scale[:, None]
        self._option_in = tensors["option_in"] / option_scale[:, None]
        self._hidden_bias = (
            tensors["hidden_bias"] - moment_mean @ self._moment_in - option_mean @ self._option_in
        )
        self._middle, self._middle_bias = tensors["middle"], tensors["middle_bias"]
        self._out, self._expected_bias = tensors["out"], float(tensors["expected_bias"])

    def scores(self, observation: Observation, options: Sequence[Option]) -> npt.NDArray[np.float64]:
        """One per option; higher is better."""
        described_moment, described = self._describer.describe(observation, options)
        moment, features = np.array(described_moment), np.array(described)
        expected = self._expected_bias * features[:, EXPECTED]
        np.minimum(np.maximum(moment, self._moment_bounds[0], out=moment), self._moment_bounds[1], out=moment)
        np.minimum(
            np.maximum(features, self._option_bounds[0], out=features), self._option_bounds[1], out=features
        )
        hidden = np.tanh(features @ self._option_in + (moment @ self._moment_in + self._hidden_bias))
        middle = np.tanh(hidden @ self._middle + self._middle_bias)
        scores: npt.NDArray[np.float64] = middle @ self._out + expected
        return scores

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """The option with the highest score; of equal ones the first."""
        scores = self.scores(observation, options).tolist()
        ordered = sorted(scores)
        option = options[scores.index(ordered[-1])]
        lead = ordered[-1] - ordered[-2] if len(ordered) > 1 else 0.0
        uncertainty = "?" if observation.uncertainty is None else f"{observation.uncertainty:.2f}"
        return Choice(
            option.split,
            option.codec,
            f"highest score of {len(scores)} by {lead:.2f} at uncertainty {uncertainty}",
            {
                "payload_bytes": round(option.payload_bytes, 1),
                "latency_ms": round(predict_latency_ms(self._profile, option, observation).total, 3),
                "energy_mj": round(predict_energy_mj(self._profile, option, observation).total, 3),
            },
        )


def encoder_quality(profile: Profile) -> Quality:
    """The shipped table of the profile's encoder: a version's id is NAME-DIGEST."""
    return shipped_quality(profile.version.rpartition("-")[0])


def load_policy(path: Path, profile: Profile, name: str, **properties: Any) -> LearnedPolicy:
    """A decider from a file; raises as `load_weights`."""
    return LearnedPolicy(load_weights(path), profile, name=name, **properties)
