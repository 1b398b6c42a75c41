"""Action distributions as pure functions of the policy head's output, sampled from noise that is handed in.

A distribution has no state: `params [B, num_params]` come from the network, `noise [B, noise_size]` from
`seeding.action_uniforms` through `noise`. The same noise and the same params give the same action, on any rank.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fabric_ppo.envs.spaces import SpaceSpec

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Distribution(ABC):
    """A family of distributions over one action space.

    Attributes:
        num_params: width of `params`.
        num_free: how many of them, the last ones, do not depend on the observation.
        noise_size: draws that one action needs.
        action_shape, action_dtype: of one stored action.
        fast_forms: fast parts that know it (see `Agent.parts`). `array` needs that `sample(params,
            noise)` is `mode(params + noise)`, the noise times any standard deviation.
    """

    fast_forms: frozenset[str] = frozenset()

    num_params: int
    num_free: int = 0
    noise_size: int
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype = torch.int64

    @abstractmethod
    def noise(self, uniform: Tensor) -> Tensor:
        """Turn draws that are uniform in (0, 1) into the noise that `sample` takes, elementwise."""

    @abstractmethod
    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Actions `[B, *action_shape]`."""

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """The most probable actions `[B, *action_shape]`."""

    @abstractmethod
    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Log-probability (or density) of `actions`, `[B]`."""

    @abstractmethod
    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of `actions` and entropy in nats, each `[B]`."""


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise: `argmax(logits + gumbel)` is a draw from `softmax(logits)`."""
    return -torch.log(-torch.log(uniform))


class Categorical(Distribution):
    """One choice among `n`, by the Gumbel-max trick."""

    fast_forms = frozenset({"array", "closed"})

    def __init__(self, n: int) -> None:
        """`n` choices."""
        self.num_params = self.noise_size = n
        self.action_shape = ()

    def noise(self, uniform: Tensor) -> Tensor:
        """Gumbel noise."""
        return gumbel(uniform)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """`argmax(logits + gumbel)`."""
        return torch.argmax(params + noise, dim=-1)

    def mode(self, params: Tensor) -> Tensor:
        """The choice with the largest logit."""
        return torch.argmax(params, dim=-1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """`log softmax(logits)[action]`."""
        return torch.log_softmax(params, dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """`log p[action]` and `-sum p log p`."""
        log_p = torch.log_softmax(params, dim=-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1), entropy


class MultiCategorical(Distribution):
    """Independent choices, `sizes[k]` of them for entry k."""

    fast_forms = frozenset({"array"})

    def __init__(self, sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """Entries in flattened order; `shape` is the action's."""
        self.sizes = sizes
        self.parts = [Categorical(n) for n in sizes]
        self.num_params = self.noise_size = sum(sizes)
        self.action_shape = shape

    def noise(self, uniform: Tensor) -> Tensor:
        """Gumbel noise."""
        return gumbel(uniform)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """`argmax(logits + gumbel)` for each entry."""
        return self.mode(params + noise)

    def mode(self, params: Tensor) -> Tensor:
        """The choice with the largest logit, for each entry."""
        chosen = [part.argmax(-1) for part in params.split(self.sizes, dim=-1)]
        return torch.stack(chosen, dim=-1).view(-1, *self.action_shape)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Sum over the entries."""
        return self.log_prob_and_entropy(params, actions)[0]

    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the entries."""
        logits, chosen = params.split(self.sizes, dim=-1), actions.flatten(1).unbind(1)
        pairs = [part.log_prob_and_entropy(*each) for part, *each in zip(self.parts, logits, chosen, strict=True)]
        return torch.stack([a for a, _ in pairs]).sum(0), torch.stack([b for _, b in pairs]).sum(0)


class Bernoulli(Distribution):
    """Independent bits; one logit each."""

    fast_forms = frozenset({"array"})

    def __init__(self, shape: tuple[int, ...]) -> None:
        """`shape` is the action's."""
        self.num_params = self.noise_size = math.prod(shape)
        self.action_shape = shape

    def noise(self, uniform: Tensor) -> Tensor:
        """Standard logistic noise: `logit + logistic > 0` has probability `sigmoid(logit)`."""
        return torch.logit(uniform)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """One where `logit + logistic > 0`."""
        return self.mode(params + noise)

    def mode(self, params: Tensor) -> Tensor:
        """One where the logit is positive."""
        return (params > 0).long().view(-1, *self.action_shape)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """`sum_k log sigmoid(+-logit_k)`."""
        sign = 2 * actions.flatten(1).to(params.dtype) - 1
        return torch.nn.functional.logsigmoid(sign * params).sum(-1)

    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the bits; a bit's entropy is `softplus(l) - l sigmoid(l)`."""
        entropy = (torch.nn.functional.softplus(params) - params * torch.sigmoid(params)).sum(-1)
        return self.log_prob(params, actions), entropy


class DiagonalGaussian(Distribution):
    """Independent normals; `params` are the means and then the log standard deviations.

    The latter are free parameters: they do not depend on the observation.
    """

    fast_forms = frozenset({"array", "closed"})
    action_dtype = torch.float32

    def __init__(self, shape: tuple[int, ...]) -> None:
        """`shape` is the action's."""
        self.noise_size = self.num_free = math.prod(shape)
        self.num_params = 2 * self.noise_size
        self.action_shape = shape

    def noise(self, uniform: Tensor) -> Tensor:
        """Standard normal noise, by the inverse of the distribution function."""
        normal: Tensor = torch.special.ndtri(uniform)
        return normal

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """`mean + std * noise`."""
        mean, log_std = params.chunk(2, dim=-1)
        return (mean + log_std.exp() * noise).view(-1, *self.action_shape)

    def mode(self, params: Tensor) -> Tensor:
        """The mean."""
        return params[..., : self.noise_size].reshape(-1, *self.action_shape)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Sum of the entries' log-densities."""
        mean, log_std = params.chunk(2, dim=-1)
        scaled = (actions.reshape(mean.shape) - mean) * torch.exp(-log_std)
        return -(0.5 * scaled.square() + log_std + _LOG_SQRT_2PI).sum(-1)

    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the entries; an entry's entropy is `log std + 0.5 log(2 pi e)`."""
        log_std = params[..., self.noise_size :]
        return self.log_prob(params, actions), (log_std + (0.5 + _LOG_SQRT_2PI)).sum(-1)


class StateDependentGaussian(DiagonalGaussian):
    """Independent normals whose log standard deviations come from the network too."""

    fast_forms = frozenset()

    def __init__(self, shape: tuple[int, ...]) -> None:
        """`shape` is the action's."""
        super().__init__(shape)
        self.num_free = 0


def make_distribution(space: SpaceSpec, state_dependent_std: bool = False) -> Distribution:
    """Make the distribution over an action space."""
    if space.kind == "discrete":
        return Categorical(space.sizes[0])
    if space.kind == "multi_discrete":
        return MultiCategorical(space.sizes, space.shape)
    if space.kind == "multi_binary":
        return Bernoulli(space.shape)
    return (StateDependentGaussian if state_dependent_std else DiagonalGaussian)(space.shape)
