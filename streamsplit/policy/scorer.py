"""The network of `learned` as torch trains it, with a critic beside it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.policy.cost import Goals
from streamsplit.policy.flight import LENGTH
from streamsplit.policy.layout import EXPECTED, MOMENT, PER_OPTION
from streamsplit.policy.learned import CLIP, Weights
from streamsplit.policy.worlds import MOST_OPTIONS

G, K = len(MOMENT), len(PER_OPTION)


class Scorer(nn.Module):
    """The network of `learned`, and a critic beside it.

    Args:
        hidden, middle: widths.
        moments: mean and scale of the moment's features [2, G] and of an option's [2, K].
    """

    def __init__(self, hidden: int, middle: int, moments: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = MOST_OPTIONS, 64
        self.moment_norm: Tensor
        self.option_norm: Tensor
        self.register_buffer("moment_norm", moments[0].clone())
        self.register_buffer("option_norm", moments[1].clone())
        self.moment_in, self.option_in = nn.Linear(G, hidden), nn.Linear(K, hidden, bias=False)
        self.middle, self.out = nn.Linear(hidden, middle), nn.Linear(middle, 1, bias=False)
        self.log_bias = nn.Parameter(torch.tensor(3.4))
        self.critic = nn.Sequential(nn.Linear(LENGTH, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, LENGTH] to normalised moment [B, G] and options [B, N, K], possible [B, N], expected [B, N]."""
        moment = features[:, :G]
        option = features[:, G : G + MOST_OPTIONS * K].reshape(-1, MOST_OPTIONS, K)
        possible = features[:, G + MOST_OPTIONS * K :]
        moment = ((moment - self.moment_norm[0]) / self.moment_norm[1]).clamp(-CLIP, CLIP)
        normal = ((option - self.option_norm[0]) / self.option_norm[1]).clamp(-CLIP, CLIP)
        return moment, normal, possible, option[..., EXPECTED]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, N], and what the critic reads [B, 64]."""
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        """[B, N]; impossible options far below all others."""
        moment, option, possible, expected = self.parts(features)
        hidden = torch.tanh(self.option_in(option) + self.moment_in(moment)[:, None])
        middle = torch.tanh(self.middle(hidden))
        scores: Tensor = self.out(middle)[..., 0] + self.log_bias.exp() * expected
        return torch.where(possible > 0, scores, torch.full_like(scores, -1e8))

    def forward_critic(self, features: Tensor) -> Tensor:
        """[B, 64]."""
        moment, option, possible, _ = self.parts(features)
        seen = torch.cat([moment, (option * possible[..., None]).flatten(1), possible], dim=1)
        return self.critic(seen)  # type: ignore[no-any-return]

    def export(self, goals: Goals, note: str) -> Weights:
        """For `learned`."""
        tensors = {
            "moment_mean": self.moment_norm[0],
            "moment_scale": self.moment_norm[1],
            "option_mean": self.option_norm[0],
            "option_scale": self.option_norm[1],
            "moment_in": self.moment_in.weight.T,
            "option_in": self.option_in.weight.T,
            "hidden_bias": self.moment_in.bias,
            "middle": self.middle.weight.T,
            "middle_bias": self.middle.bias,
            "out": self.out.weight[0],
            "expected_bias": self.log_bias.exp(),
        }
        arrays = {
            name: np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float32).reshape(tensor.shape)
            for name, tensor in tensors.items()
        }
        return Weights(arrays, goals, note)
