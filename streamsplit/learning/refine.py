"""The refiner's step: windows that devices sent, of all of them together, back through the encoder that embedded them.

    pairs of neighbouring windows -> two views of each -+-> frozen blocks -> the rest -> global InfoNCE over all paths    = task
    windows in true time, as they are ------------------+                            -> spread and smoothness of each path = Hybrid

Payloads are features (split 0) or activations at a boundary up to `frozen`, the number of blocks that do not move: what came from
behind a moving block would have to be made again, and nobody has its sound any more. With `frozen` = 0 everything learns, from
features alone; with `frozen` = L - 1 what follows the last boundary learns (`SplitEncoder.learning_from`), from features and activations.

Everything random in step n follows from (seed, n) and the process' rank, so training goes on to the same bits after a kill, given the
same windows. In several processes (`across`) each embeds its part of the batch, and all compute the loss of the whole.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from streamsplit.encoders.calibrate import settle_norms
from streamsplit.encoders.split import SplitEncoder
from streamsplit.errors import ConfigError, PayloadError
from streamsplit.learning import across
from streamsplit.learning.boundary_views import BoundaryViewSettings, boundary_view
from streamsplit.learning.buffer import WINDOW, BufferedWindow, by_kind, places_in_time, unpacked
from streamsplit.learning.hybrid import HybridSettings, hybrid_loss
from streamsplit.learning.losses import joint_info_nce
from streamsplit.learning.pretrain import GENTLE_VIEWS
from streamsplit.learning.progress import Progress, optimiser_tensors, restore_optimiser
from streamsplit.learning.views import ViewSettings, view
from streamsplit.wire.codec import Ranges

Pairs = Sequence[tuple[BufferedWindow, BufferedWindow]]
RangesOf = Callable[[str, int], Ranges]
"""(version, split) -> the ranges that packed its payloads."""


@dataclass(frozen=True, slots=True)
class RefineSettings:
    """How an encoder is refined.

    Attributes:
        batch: pairs a step, over all processes.
        learning_rate: after the warm-up, for ever: the stream has no end.
        weight_decay: AdamW's.
        warm_up_steps: in which the rate rises.
        averaged_steps: what is published is a running mean of the weights over about so many steps: at a rate that never falls it takes
            the place of a fall; 0: the weights themselves.
        temperature: of InfoNCE.
        clip: the gradient's largest norm.
        neighbour_s: how far apart the two sides of a pair may begin.
        hybrid_windows: W, windows a step for the Hybrid terms, over all devices drawn; 0 leaves the terms out.
        hybrid: weights and reach of these terms; each is the mean over the encoder's paths.
        views: of features.
        boundary_views: of activations.
        seed: of views and draws.
    """

    batch: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    warm_up_steps: int = 20
    averaged_steps: int = 16
    temperature: float = 0.1
    clip: float = 1.0
    neighbour_s: float = 1.5
    hybrid_windows: int = WINDOW
    hybrid: HybridSettings = field(default_factory=HybridSettings)
    views: ViewSettings = GENTLE_VIEWS
    boundary_views: BoundaryViewSettings = field(default_factory=BoundaryViewSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, legal in (
            ("batch", self.batch >= 2, "at least 2"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warm_up_steps", self.warm_up_steps >= 0, "0 or more"),
            ("averaged_steps", self.averaged_steps >= 0, "0 or more"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("clip", self.clip > 0, "above 0"),
            ("neighbour_s", 0 <= self.neighbour_s < math.inf, "0 or more"),
            ("hybrid_windows", self.hybrid_windows >= 0, "0 or more"),
            ("seed", 0 <= self.seed < 2**31, "0 to 2^31 - 1"),
        ):
            if not holds:
                raise ConfigError(f"refiner {name}: expected {legal}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What one step learns from.

    Attributes:
        pairs: windows and a positive for each, of one stream and near in time (or itself); the whole batch, in every process.
        recent: windows in true time for the Hybrid terms.
    """

    pairs: Pairs
    recent: Sequence[BufferedWindow] = ()


class Refiner:
    """An encoder that learns from what the server has received, step by step.

    Args:
        encoder: trainable, as `Version.trainable` makes it; taken over.
        settings: how.
        ranges_of: asked for the ranges of every (version, split) of the payloads.
        frozen: how many blocks do not move, 0 to L - 1; their batch norms neither.
        device: "cpu" or "cuda".
        done: number of the first step.

    Attributes:
        done: steps.
        began: number of the first step; the rate rises from there.
        skipped: steps whose gradient was not finite.
        mean: running mean of `parameters`, one for one, over the last `averaged` steps or so.
    """

    def __init__(
        self,
        encoder: SplitEncoder,
        settings: RefineSettings,
        ranges_of: RangesOf,
        frozen: int = 0,
        device: str = "cpu",
        done: int = 0,
    ) -> None:
        if not 0 <= frozen < encoder.last_split:
            raise ConfigError(f"frozen blocks: expected 0..{encoder.last_split - 1}, got {frozen}")
        self.settings, self.frozen, self.device = settings, frozen, torch.device(device)
        self.encoder = encoder.to(self.device)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._ranges_of = ranges_of
        encoder.requires_grad_(False)
        for part in encoder.learning_from(frozen):
            part.requires_grad_(True)
        self.optimiser = self._fresh_optimiser()
        self.mean = [parameter.detach().clone() for parameter in self.parameters]
        self.averaged = 0
        self.done = self.began = done
        self.skipped = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns."""
        return [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]

    def step(self, lesson: Lesson) -> dict[str, float]:
        """One optimiser step; a gradient that is not finite is not taken, and counted in `skipped`.

        Args:
            lesson: windows at split 0 or at boundaries up to `frozen`; at least 2 pairs for every process.

        Returns:
            Losses by term: each pair of paths', "task" (their mean), "spread", "smoothness", "total", and "gradient" (its norm).

        Raises:
            PayloadError: a payload does not decode.
            ValueError: too few pairs, or windows behind a block that moves.
        """
        terms = self._losses(lesson)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.optimiser.zero_grad(set_to_none=True)
        terms["total"].backward()  # type: ignore[no-untyped-call]
        across.sum_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
            self._follow()
        else:
            self.skipped += 1
        across.average(buffer for buffer in self.encoder.buffers() if buffer.is_floating_point())
        self.done += 1
        return {**{name: float(term.detach()) for name, term in terms.items()}, "gradient": float(norm)}

    def add(self, difference: Mapping[str, Tensor]) -> None:
        """Takes what devices learned on top of what was learned here; what is frozen stays.

        Raises:
            ConfigError: a tensor that is not this encoder's.
        """
        own = dict(self.encoder.named_parameters())
        for name, change in difference.items():
            if name not in own or own[name].shape != change.shape:
                raise ConfigError(f"difference of {name}: not a parameter of {self.encoder.name}")
        with torch.no_grad():
            for (name, parameter), mean in zip(self._named(), self.mean, strict=True):
                if name in difference:
                    parameter.add_(difference[name].to(parameter))
                    mean.add_(difference[name].to(mean))

    def candidate(self, calm: Tensor) -> SplitEncoder:
        """The encoder as it would be published: a copy on the CPU with the mean weights, its batch norms settled on windows as they are.

        Args:
            calm: [N, ...] a few hundred windows at boundary `frozen`, from `boundary`.
        """
        twin = copy.deepcopy(self.encoder)
        if self.settings.averaged_steps:
            learned = [parameter for parameter in twin.parameters() if parameter.requires_grad]
            with torch.no_grad():
                for parameter, mean in zip(learned, self.mean, strict=True):
                    parameter.copy_(mean)
        twin.cpu()
        twin.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        settle_norms(twin, calm.cpu(), self.frozen)
        return twin.requires_grad_(False)

    @torch.no_grad()
    def boundary(self, windows: Sequence[BufferedWindow]) -> Tensor:
        """Windows as they are at boundary `frozen`: [n, *shape]."""
        self.encoder.eval()
        return self._at_boundary(windows, [], None)

    def progress(self, base: str, said: Mapping[str, object] | None = None) -> Progress:
        """Where it stands.

        Args:
            base: id of the version that it is to be published on top of.
            said: what else to keep, plain JSON types.
        """
        return Progress(
            step=self.done,
            settings={**self._said(), **(said or {})},
            pool=base,
            weights=self.encoder.state_dict(),
            optimiser=optimiser_tensors(self.encoder, self.optimiser),
            losses={},
            more={
                "averaged": torch.tensor(self.averaged),
                "began": torch.tensor(self.began),
                **{f"mean/{name}": mean for (name, _), mean in zip(self._named(), self.mean, strict=True)},
            },
        )

    def resume(self, saved: Progress) -> None:
        """Goes on from saved progress, to the same bits.

        Raises:
            ConfigError: it is of other settings or of another encoder.
        """
        for key, value in self._said().items():
            if saved.settings.get(key) != value:
                raise ConfigError(
                    f"refiner: was started with another {key}: {saved.settings.get(key)}, got {value}"
                )
        own = self.encoder.state_dict()
        if own.keys() != saved.weights.keys() or any(
            own[name].shape != saved.weights[name].shape for name in own
        ):
            raise ConfigError("refiner: the progress is of another encoder")
        self.encoder.load_state_dict(dict(saved.weights))
        with torch.no_grad():
            for (name, _), mean in zip(self._named(), self.mean, strict=True):
                mean.copy_(saved.more[f"mean/{name}"])
        self.averaged, self.began = int(saved.more["averaged"]), int(saved.more["began"])
        restore_optimiser(self.encoder, self.optimiser, saved.optimiser)
        self.done = saved.step

    # One step.

    def _losses(self, lesson: Lesson) -> dict[str, Tensor]:
        first, every = across.rank(), across.processes()
        count = len(lesson.pairs) // every * every
        if count < 2 * every:
            raise ValueError(f"refiner: expected {2 * every} pairs or more, got {len(lesson.pairs)}")
        pairs = lesson.pairs[first:count:every]
        recent = lesson.recent[: len(lesson.recent) // every * every]
        own = recent[first::every] if self.settings.hybrid_windows else []
        self._set_modes()
        activation = self._own_part(pairs, own)
        embedded = self.encoder.embeddings(
            activation.contiguous(memory_format=torch.channels_last), self.frozen
        )
        half = len(pairs)
        one = {path: across.gathered(z[:half]) for path, z in embedded.items()}
        other = {path: across.gathered(z[half : 2 * half]) for path, z in embedded.items()}
        terms = joint_info_nce(one, other, self.settings.temperature)
        task = torch.stack(list(terms.values())).mean()
        if not own:
            return {**terms, "task": task, "total": task}
        order = across.gathered_order(len(recent))
        start_s, stream = places_in_time([recent[place] for place in order.tolist()])
        spread, smooth = [], []
        for z in embedded.values():
            parts = hybrid_loss(
                task,
                across.gathered(z[2 * half :]),
                start_s,
                stream,
                self._drawing(2),
                self.settings.hybrid,
            )
            spread.append(parts["spread"])
            smooth.append(parts["smoothness"])
        weights = self.settings.hybrid
        terms |= {
            "task": task,
            "spread": torch.stack(spread).mean(),
            "smoothness": torch.stack(smooth).mean(),
        }
        terms["total"] = (
            task + weights.spread_weight * terms["spread"] + weights.smoothness_weight * terms["smoothness"]
        )
        return terms

    def _own_part(self, pairs: Pairs, recent: Sequence[BufferedWindow]) -> Tensor:
        """This process' windows at boundary `frozen`; a payload that does not decode is every process' error."""
        problem, activation = PayloadError("another process' payload does not decode"), None
        viewed = [window for window, _ in pairs] + [partner for _, partner in pairs]
        try:
            activation = self._at_boundary(viewed, recent, self._generator(1))
        except PayloadError as error:
            problem = error
        if not across.all_say(activation is not None) or activation is None:
            raise problem
        return activation

    @torch.no_grad()
    def _follow(self) -> None:
        """The mean takes the weights of the step just done."""
        self.averaged = min(self.averaged + 1, max(1, self.settings.averaged_steps))
        for parameter, mean in zip(self.parameters, self.mean, strict=True):
            mean.lerp_(parameter, 1 / self.averaged)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, value) for name, value in self.encoder.named_parameters() if value.requires_grad]

    def _set_modes(self) -> None:
        self.encoder.eval()
        for part in self.encoder.learning_from(self.frozen):
            part.train()

    def _at_boundary(
        self,
        viewed: Sequence[BufferedWindow],
        plain: Sequence[BufferedWindow],
        chance: torch.Generator | None,
    ) -> Tensor:
        """Windows at boundary `frozen`, views of the first ones if there is a generator: [viewed + plain, *shape]."""
        windows = [*viewed, *plain]
        at = torch.zeros(len(windows), *self.encoder.activation_spec(self.frozen).shape, device=self.device)
        for (version, split, _), places in sorted(by_kind(windows).items()):
            if split > self.frozen:
                raise ValueError(f"refiner: expected boundaries 0..{self.frozen}, got {split}")
            spec = self.encoder.activation_spec(split)
            some = unpacked([windows[place] for place in places], spec, self._ranges_of(version, split))
            some = some.to(self.device)
            changed = sum(place < len(viewed) for place in places)
            if split == 0 and chance is not None and changed:
                some = torch.cat([self._viewed(some[:changed], chance), some[changed:]])
            with torch.no_grad():
                for block in self.encoder.blocks[split : self.frozen]:
                    some = block(some)
                if split > 0 and chance is not None and changed:
                    moved = boundary_view(some[:changed], self.settings.boundary_views, chance)
                    some = torch.cat([moved, some[changed:]])
            at[torch.tensor(places, device=self.device)] = some
        return at

    def _viewed(self, mel: Tensor, chance: torch.Generator) -> Tensor:
        others = torch.randperm(len(mel), generator=chance, device=self.device)
        return view(mel, mel[others], self.encoder.front_end, self.settings.views, chance)

    def _generator(self, use: int) -> torch.Generator:
        """For views: on the device, another for every process."""
        seed = (self.settings.seed * 1_000_003 + self.done) * 4 + use
        return torch.Generator(self.device).manual_seed(seed * 1024 + across.rank())

    def _drawing(self, use: int) -> torch.Generator:
        """For what all processes must draw alike."""
        return torch.Generator().manual_seed((self.settings.seed * 1_000_003 + self.done) * 4 + use)

    def _rate(self) -> float:
        return self.settings.learning_rate * min(
            1.0, (self.done - self.began + 1) / max(1, self.settings.warm_up_steps)
        )

    def _fresh_optimiser(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self.parameters, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )

    def _said(self) -> dict[str, object]:
        said: dict[str, object] = json.loads(json.dumps(asdict(self.settings)))
        return {"refine": said, "encoder": self.encoder.name, "frozen": self.frozen}
