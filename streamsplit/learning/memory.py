"""The distribution memory: an endless stream of embeddings as a small mixture, at a constant cost a window.

Stepwise expectation-maximisation (Cappe and Moulines 2009) with one clock per component. A component's statistics are means over the
points it has explained; they forget at `step` per point of its *own*, so a stream that stays with one sound for an hour does not wear
down the others, and a point counts less where it resembles the one before (see `_independence`). Four things keep it alive:

- Variances are around the component's mean, begin at the scale of the sphere (1 / D) and rest on a prior of a few points.
- While everything heard fits the reservoir, the mixture is fitted to it anew at 1, 2, 4, 8, ... windows.
- Later, every `refit_every` windows, dead components (or the cheapest pair to merge) are tried where the reservoir is explained
  worst, and taken if the reservoir becomes likelier.
- Saved as half precision (34 KB), the working statistics are rounded to what is saved: the one who saved and the one who loads go on alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.learning.fitting import PRIOR_POINTS, Components, fit, moments
from streamsplit.learning.mixture import GaussianMixture, Mixture, VmfMixture, cdf, tempered_posterior
from streamsplit.learning.reservoir import Reservoir
from streamsplit.learning.revival import moved
from streamsplit.learning.sphere import sphere_quantile

_CHUNK = 64
"""Rows of one step of expectation-maximisation; more are taken in turn."""
_RECENT = 256
"""Windows over which neighbours are compared."""
_MOST_CORRELATED = 0.95
_STATE = ("weights", "points", "means", "variances", "centre", "radius", "previous", "correlation", "count")


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What a memory is.

    Attributes:
        kind: "gaussian" (diagonal) or "vmf" (von Mises-Fisher).
        components: K.
        dim: D, at least 8.
        centred: the mixture is over embeddings less their running mean, brought back to unit norm. Raw ones sit in a cone, in which
            posteriors tell little; transport and expected negatives need the raw ones: False.
        step: how fast a component forgets, per independent point of its own, in (0, 0.2].
        horizon_windows: how many windows weights, centre and reservoir look back.
        variance_floor: smallest variance as a share of the mean one.
        posterior_temperature: flattens densities in `posterior` and `uncertainty`; 1 is Bayes' rule.
        reservoir_windows: how many embeddings are kept for refits, D + 2 bytes each.
        refit_every: windows between refits once the reservoir is full.
        dead_share: a component whose weight is below this share of 1 / K may be moved.
        seed: of the reservoir and of refits.
    """

    kind: Literal["gaussian", "vmf"] = "gaussian"
    components: int = 64
    dim: int = 128
    centred: bool = True
    step: float = 0.01
    horizon_windows: int = 8192
    variance_floor: float = 0.02
    posterior_temperature: float = 32.0
    reservoir_windows: int = 512
    refit_every: int = 256
    dead_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        self._expect("kind", self.kind in ("gaussian", "vmf"), "gaussian or vmf")
        self._expect("components", 1 <= self.components <= 4096, "1..4096")
        self._expect("dim", 8 <= self.dim <= 4096, "8..4096")
        self._expect("step", 0 < self.step <= 0.2, "above 0, at most 0.2")
        self._expect("reservoir_windows", 16 <= self.reservoir_windows <= 8192, "16..8192")
        self._expect(
            "horizon_windows", self.horizon_windows >= self.reservoir_windows, "at least reservoir_windows"
        )
        self._expect("variance_floor", 0 < self.variance_floor < 1, "between 0 and 1")
        self._expect(
            "posterior_temperature", 1 <= self.posterior_temperature < math.inf, "at least 1, finite"
        )
        self._expect("refit_every", self.refit_every >= 1, "at least 1")
        self._expect("dead_share", 0 <= self.dead_share < 1, "0 or more, below 1")
        self._expect("seed", 0 <= self.seed < 1 << 63, "0 or more, below 2^63")

    def _expect(self, name: str, good: bool, legal: str) -> None:
        if not good:
            raise ConfigError(f"memory {name}: expected {legal}, got {getattr(self, name)!r}")


class DistributionMemory:
    """All that was heard, as a mixture: bounded, and nothing but what is saved.

    Attributes:
        settings: what it is.
        weights: [K], sum 1; 0 for a component not in use.
        points: [K] how many independent points a component's statistics stand for, at most 1 / step.
        means: [K, D]; for "vmf" the mean vector, its length decides the concentration.
        variances: [K, D] around the mean; [K, 0] for "vmf".
        centre, radius: mean of the raw embeddings [D], and their mean distance from it.
        previous: [D] the last embedding, centred.
        correlation: how alike neighbouring windows are, mean cosine of the centred embeddings.
        count: windows heard.
        reservoir: the embeddings kept for refits.
    """

    def __init__(self, settings: MemorySettings | None = None) -> None:
        self.settings = settings = settings or MemorySettings()
        K, D = settings.components, settings.dim
        self.weights, self.points, self.means = torch.zeros(K), torch.zeros(K), torch.zeros(K, D)
        self.variances = torch.zeros(K, D if settings.kind == "gaussian" else 0)
        self.centre, self.radius = torch.zeros(D), torch.ones(())
        self.previous, self.correlation = torch.zeros(D), torch.zeros(())
        self.count = torch.zeros((), dtype=torch.int64)
        self.reservoir = Reservoir(settings.reservoir_windows, D, settings.horizon_windows, settings.seed)
        self._forget()

    def tensors(self) -> dict[str, Tensor]:
        """Everything it is, by name, as it works with it: a memory whose tensors are given these goes on to the same bits."""
        own = {name: getattr(self, name) for name in _STATE}
        return own | {f"reservoir.{name}": tensor for name, tensor in self.reservoir.tensors().items()}

    # What it says of embeddings.

    @property
    def mixture(self) -> Mixture:
        """The mixture now, variances floored: of centred embeddings if the settings say so."""
        return self._mixture_of(self)

    @property
    def effective_components(self) -> float:
        """exp of the weights' entropy: 1..K."""
        return float(torch.exp(torch.special.entr(self.weights).sum()))

    def state_bytes(self) -> int:
        """Bytes of what is saved of the mixture (`memory_file.state`): 33,808 for 64 Gaussians in 128 dimensions."""
        K, D = self.settings.components, self.settings.dim
        matrices = 2 if self.settings.kind == "gaussian" else 1
        return 2 * matrices * K * D + 4 * 2 * K + 2 * 2 * D + 4 * 2 + 8

    def seen(self, z: Tensor) -> Tensor:
        """Embeddings as the mixture sees them: [B, D] raw to [B, D], centred and renormalised if the settings say so."""
        return F.normalize(z - self.centre, dim=1) if self.settings.centred else z

    def posterior(self, z: Tensor) -> Tensor:
        """Tempered shares of the components: [B, D] unit norm to [B, K], rows sum to 1."""
        return tempered_posterior(self.mixture, self.seen(z), self.settings.posterior_temperature)

    def uncertainty(self, z: Tensor) -> Tensor:
        """Entropy of the tempered posterior over log K: [B, D] to [B] in 0..1. Which sound is it?"""
        entropy: Tensor = torch.special.entr(self.posterior(z)).sum(1)
        return (entropy / math.log(max(2, self.settings.components))).clamp(0.0, 1.0)

    def novelty(self, z: Tensor) -> Tensor:
        """Negative log-likelihood: [B, D] to [B] nats, of any sign. Was anything like it heard before?"""
        return -torch.logsumexp(self.mixture.log_joint(self.seen(z)), dim=1)

    @torch.no_grad()
    def sample_negatives(
        self,
        z: Tensor,
        n: int,
        generator: torch.Generator,
        boundary_aware: bool = False,
        temperature: float = 0.1,
    ) -> Tensor:
        """Embeddings that could have been heard.

        Args:
            z: [B, D] anchors, unit norm.
            n: how many for each.
            generator: on the CPU.
            boundary_aware: near the anchor's boundaries, our reading of the published recipe, not checked against its equation: never from the anchor's own component, from the
                others by weight * exp(cosine of anchor and mean / temperature). Otherwise by weight.
            temperature: above 0.

        Returns:
            [B, n, D] unit norm, in the space of raw embeddings; no gradient.
        """
        if n < 1 or not temperature > 0:
            raise ValueError(
                f"sample_negatives: expected n >= 1 and temperature > 0, got {n} and {temperature}"
            )
        mixture, points = self.mixture, self.seen(z)
        chance = self.weights.expand(len(z), -1)
        if boundary_aware and int((self.weights > 0).sum()) > 1:
            near = torch.softmax(points @ F.normalize(self.means, dim=1).T / temperature, 1)
            chance = (chance * near.clamp(min=1e-20)).scatter(
                1, mixture.log_joint(points).argmax(1, keepdim=True), 0.0
            )
        component = torch.multinomial(chance, n, replacement=True, generator=generator)
        drawn = F.normalize(mixture.draw(component.flatten(), generator), dim=1)
        if self.settings.centred:
            drawn = F.normalize(self.centre + self.radius * drawn, dim=1)
        return drawn.view(len(z), n, -1)

    def cdf(self, projection: Tensor, directions: Tensor) -> Tensor:
        """Share of everything heard that lies below: x = z.theta [B, M] along [M, D] unit norm, to [B, M] in 0..1."""
        self._expect_raw("cdf")
        return cdf(self.mixture, projection, directions)

    def quantile(self, projection: Tensor, directions: Tensor) -> Tensor:
        """Where each projection should lie if embeddings were uniform on the sphere: Q(F(x)), transport's target, no gradient.

        Args:
            projection: [B, M], x = z.theta of live embeddings.
            directions: [M, D] unit norm.

        Returns:
            [B, M]; the squared distance to x is the sliced-Wasserstein term, in a batch of one as well.
        """
        return sphere_quantile(self.cdf(projection.detach(), directions), self.settings.dim)

    def expected_negative_mass(self, z: Tensor, temperature: float, own_weight: float = 1.0) -> Tensor:
        """E exp(z.x / T) over x from the memory, in closed form: what a batch's negatives estimate.

        Args:
            z: [B, D] unit norm; gradients reach it.
            temperature: T, above 0.
            own_weight: 0..1; each component counts less by the anchor's posterior of it, times 1 - own_weight: a component that holds
                the anchor holds its likes, which are no negatives. The mass stays a mean over what is left.

        Returns:
            [B]; times N, it stands for N negatives.
        """
        self._expect_raw("expected_negative_mass")
        if not temperature > 0 or not 0 <= own_weight <= 1:
            raise ValueError(
                "expected_negative_mass: expected temperature > 0 and own_weight in 0..1,"
                f" got {temperature} and {own_weight}"
            )
        share = self.weights.expand(len(z), -1)
        if own_weight < 1:
            share = share * (1 - (1 - own_weight) * self.posterior(z).detach())
            share = share / share.sum(1, keepdim=True).clamp(min=1e-12)
        return (share * torch.exp(self.mixture.log_exponential(z, temperature))).sum(1)

    # How it learns.

    @torch.inference_mode()
    def update(self, z: Tensor) -> None:
        """Takes windows of one stream, in their order: [B, D] unit norm; constant cost a window.

        Raises:
            ValueError: another shape, or rows that are not finite or not of unit norm. Nothing is taken then.
        """
        z = self._checked(z)
        for begin in range(0, len(z), _CHUNK):
            part, before = z[begin : begin + _CHUNK], int(self.count)
            after = before + len(part)
            seen = self._follow(part, after)
            self.reservoir.offer(part, before)
            if self.reservoir.kept == after:
                if after.bit_length() > before.bit_length():
                    self._fit(self.seen(self.reservoir.embeddings()))
                    continue
            elif after // self.settings.refit_every > before // self.settings.refit_every:
                self._refit()
            self._step(seen, after)

    @torch.no_grad()
    def rebuild(self, embeddings: Tensor) -> None:
        """Forgets everything and fits these: a memory consistent with the weights that made them, [N, D] unit norm."""
        z = self._checked(embeddings)
        self._forget()
        for part in torch.split(z, _CHUNK):
            before = int(self.count)
            self._follow(part, before + len(part))
            self.reservoir.offer(part, before)
        self.centre.copy_(z.mean(0))
        self.radius.copy_((z - self.centre).norm(dim=1).mean())
        self._fit(self.seen(z))

    def _follow(self, z: Tensor, after: int) -> Tensor:
        """Centre, radius and correlation: plain means at first, then over the horizon. Returns the embeddings as seen, [B, D]."""
        self.count.fill_(after)
        pace = len(z) / min(after, self.settings.horizon_windows)
        centre = self.centre.lerp_(z.mean(0), pace)
        apart = z - centre
        length = torch.linalg.vector_norm(apart, dim=1, keepdim=True)
        self.radius.lerp_(length.mean(), pace)
        apart = apart.div_(length.clamp_(min=1e-12))
        alike = torch.linalg.vecdot(apart, torch.cat([self.previous[None], apart])[:-1])
        self.previous.copy_(apart[-1])
        self.correlation.lerp_(alike.mean(), len(z) / min(after, _RECENT))
        return apart if self.settings.centred else z

    @property
    def _independence(self) -> float:
        """Independent points a window is worth: (1 - r) / (1 + r) for neighbours that are alike by r, as for a first-order process."""
        alike = min(max(float(self.correlation), 0.0), _MOST_CORRELATED)
        return (1 - alike) / (1 + alike)

    def _step(self, seen: Tensor, after: int) -> None:
        """One step of expectation-maximisation: every component at its own pace, around its own mean."""
        shares = torch.softmax(self.mixture.log_joint(seen), dim=1)
        count, means, spread = moments(shares, seen)
        self.weights.lerp_(count / len(seen), len(seen) / min(after, self.settings.horizon_windows))
        fresh = count * self._independence
        points = self.points.add_(fresh).clamp_(max=1 / self.settings.step)
        pace = (fresh / torch.maximum(points, fresh).clamp_(min=1e-12)).unsqueeze(1)
        apart = means - self.means
        self.means.addcmul_(pace, apart)
        if self.settings.kind == "gaussian":  # Welford 1962: from the mean before times from the mean after
            self.variances.lerp_(torch.addcmul(spread, apart, means - self.means), pace)

    def _refit(self) -> None:
        """Moves components to where the reservoir is explained worst, if that makes it likelier."""
        seen = self.seen(self.reservoir.embeddings())
        dead = self.settings.dead_share / self.settings.components
        better = moved(self.components(), seen, self._mixture_of, dead, self._generator())
        if better is not None:
            self.take(better)

    def _fit(self, seen: Tensor) -> None:
        settings = self.settings
        self.take(
            fit(seen, settings.components, 1 / settings.dim, settings.variance_floor, self._generator())
        )

    # Its components as moments, whatever the kind: for merging.

    def components(self) -> Components:
        """A copy, [K]; a von Mises-Fisher component has the same variance in every direction."""
        variances = self.variances
        if self.settings.kind == "vmf":
            inside = (1 - self.means.square().sum(1, keepdim=True)) / self.settings.dim
            variances = inside.clamp(min=1e-6).expand_as(self.means)
        return Components(self.weights.clone(), self.points.clone(), self.means.clone(), variances.clone())

    def _mixture_of(self, these: Components | DistributionMemory) -> Mixture:
        if self.settings.kind == "vmf":
            return VmfMixture(these.weights, these.means)
        floor = self.settings.variance_floor * float(these.weights @ these.variances.mean(1))
        return GaussianMixture(these.weights, these.means, these.variances.clamp(min=floor))

    def take(self, these: Components) -> None:
        """Makes these, K at most, the state."""
        used, most = len(these.weights), 1 / self.settings.step
        self.weights.zero_()[:used] = these.weights
        self.points.zero_()[:used] = these.points.clamp(max=most)
        self.means.zero_()[:used] = these.means
        if self.settings.kind == "gaussian":
            self.variances.fill_(1 / self.settings.dim)[:used] = these.variances

    def _forget(self) -> None:
        """One broad component and nothing heard: the first window explains itself."""
        for name in _STATE:
            getattr(self, name).zero_()
        self.weights[0], self.points[0] = 1.0, PRIOR_POINTS
        self.variances.fill_(1 / self.settings.dim)
        self.radius.fill_(1.0)
        self.reservoir.clear()

    def _generator(self) -> torch.Generator:
        """Chance of a refit: of the seed and the place in the stream, so nothing of it needs saving."""
        return torch.Generator().manual_seed((self.settings.seed * 1_000_003 + int(self.count)) % 2**63)

    def _checked(self, z: Tensor) -> Tensor:
        if z.ndim != 2 or len(z) < 1 or z.shape[1] != self.settings.dim:
            raise ValueError(f"memory: expected embeddings [B, {self.settings.dim}], got {list(z.shape)}")
        for row, length in enumerate(torch.linalg.vector_norm(z, dim=1).tolist()):
            if not abs(length - 1) < 0.01:
                raise ValueError(
                    f"memory: row {row}: expected a finite embedding of norm 1, got norm {length:.3g}"
                )
        return z.detach().float()

    def _expect_raw(self, what: str) -> None:
        if self.settings.centred:
            raise ValueError(
                f"{what}: expected a memory of raw embeddings (centred = False), got a centred one"
            )
