"""Action distributions as pure functions of the policy head's output and of noise.

A distribution has no state: `params [B, num_params]` come from the network, `noise [B, noise_size]`
from `seeding.action_uniforms` through `noise`. The same noise and the same params give the same
action, on any rank.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fabric_ppo.envs.spaces import SpaceSpec

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Distribution(ABC):
    """A family of distributions over one action space.

    Attributes:
        num_params: width of `params`.
        num_log_std: number of parameters, the last ones, that are log standard deviations.
        num_free: number of these if they do not depend on the observation, else 0.
        noise_size: number of draws for one action.
        action_shape, action_dtype: of one stored action.
        fast_forms: fast forms that it has (see `Agent.parts`). `acting` requires that
            `sample(params, noise)` is `mode(params + noise)`, with the noise multiplied by the
            standard deviation where there is one.
    """

    fast_forms: frozenset[str] = frozenset()

    num_params: int
    num_log_std: int = 0
    num_free: int = 0
    noise_size: int
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype = torch.int64

    @abstractmethod
    def noise(self, uniform: Tensor) -> Tensor:
        """Transform draws that are uniform in (0, 1) into the noise for `sample`, elementwise."""

    @abstractmethod
    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Return actions `[B, *action_shape]`, drawn with `noise [B, noise_size]`."""

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """Return the most probable actions `[B, *action_shape]`."""

    @abstractmethod
    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probability, or log-density, of `actions`, `[B]`."""

    @abstractmethod
    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of `actions` and the entropy in nats, each `[B]`."""


def gumbel(uniform: Tensor) -> Tensor:
    """Return standard Gumbel noise: `argmax(logits + gumbel)` is a draw from `softmax(logits)`.

    This is the Gumbel-max trick (arXiv 1611.01144, section 2).
    """
    return -torch.log(-torch.log(uniform))


def _chosen(log_p: Tensor, actions: Tensor) -> Tensor:
    """Return `log_p [B, n]` of the actions `[B]`, `[B]`."""
    if log_p.is_cpu:
        return log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    # a GPU sorts the gradients of gather, to add them up in one order
    is_chosen = torch.arange(log_p.shape[-1], device=log_p.device) == actions.unsqueeze(-1)
    return log_p.where(is_chosen, 0).sum(-1)


class Categorical(Distribution):
    """One choice among `n`, by the Gumbel-max trick."""

    fast_forms = frozenset({"acting", "loss"})

    def __init__(self, n: int) -> None:
        """Make a distribution over the choices 0 .. n-1."""
        self.num_params = self.noise_size = n
        self.action_shape = ()

    def noise(self, uniform: Tensor) -> Tensor:
        """Return Gumbel noise."""
        return gumbel(uniform)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Return `argmax(logits + gumbel)`."""
        return torch.argmax(params + noise, dim=-1)

    def mode(self, params: Tensor) -> Tensor:
        """Return the choice with the largest logit."""
        return torch.argmax(params, dim=-1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Return `log softmax(logits)[action]`."""
        return _chosen(torch.log_softmax(params, dim=-1), actions)

    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log p[action]` and `-sum p log p`."""
        # log p once for both; a masked action has p = 0 and a finite log p, so it adds 0, not NaN
        log_p = torch.log_softmax(params, dim=-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return _chosen(log_p, actions), entropy


class MultiCategorical(Distribution):
    """Independent choices, one of `sizes[k]` for entry k of the action."""

    fast_forms = frozenset({"acting"})

    def __init__(self, sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """Make a distribution over actions of `shape`, with `sizes` in flattened order."""
        self.sizes = sizes
        self.parts = [Categorical(n) for n in sizes]
        self.num_params = self.noise_size = sum(sizes)
        self.action_shape = shape

    def noise(self, uniform: Tensor) -> Tensor:
        """Return Gumbel noise."""
        return gumbel(uniform)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Return `argmax(logits + gumbel)` for each entry."""
        return self.mode(params + noise)

    def mode(self, params: Tensor) -> Tensor:
        """Return the choice with the largest logit, for each entry."""
        # sizes differ, so entries cannot be one tensor with an axis of choices
        chosen = [part.argmax(-1) for part in params.split(self.sizes, dim=-1)]
        return torch.stack(chosen, dim=-1).view(-1, *self.action_shape)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Return the sum over the entries."""
        return self.log_prob_and_entropy(params, actions)[0]

    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over the entries."""
        entries = zip(self.parts, params.split(self.sizes, dim=-1), actions.flatten(1).unbind(1), strict=True)
        pairs = [part.log_prob_and_entropy(logits, chosen) for part, logits, chosen in entries]
        # entries are independent: log-probabilities and entropies add up
        return torch.stack([a for a, _ in pairs]).sum(0), torch.stack([b for _, b in pairs]).sum(0)


class Bernoulli(Distribution):
    """Independent bits; one logit each."""

    fast_forms = frozenset({"acting"})

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Make a distribution over actions of `shape`."""
        self.num_params = self.noise_size = math.prod(shape)
        self.action_shape = shape

    def noise(self, uniform: Tensor) -> Tensor:
        """Return standard logistic noise: `logit + noise > 0` has probability `sigmoid(logit)`."""
        # the inverse of the distribution function, which is the sigmoid
        return torch.logit(uniform)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Return 1 where `logit + noise > 0`, else 0."""
        return self.mode(params + noise)

    def mode(self, params: Tensor) -> Tensor:
        """Return 1 where the logit is positive, else 0."""
        return (params > 0).long().view(-1, *self.action_shape)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Return `sum_k log sigmoid(+-logit_k)`, with + for a 1 and - for a 0."""
        # 1 - sigmoid(l) = sigmoid(-l), which does not cancel for large l
        sign = 2 * actions.flatten(1).to(params.dtype) - 1
        return torch.nn.functional.logsigmoid(sign * params).sum(-1)

    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over the bits; a bit's entropy is `softplus(l) - l sigmoid(l)`."""
        entropy = (torch.nn.functional.softplus(params) - params * torch.sigmoid(params)).sum(-1)
        return self.log_prob(params, actions), entropy


class DiagonalGaussian(Distribution):
    """Independent normals; `params` are the means, then the log standard deviations.

    The log standard deviations are free parameters: they do not depend on the observation.
    """

    fast_forms = frozenset({"acting", "loss"})
    action_dtype = torch.float32

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Make a distribution over actions of `shape`."""
        self.noise_size = self.num_log_std = self.num_free = math.prod(shape)
        self.num_params = 2 * self.noise_size
        self.action_shape = shape

    def noise(self, uniform: Tensor) -> Tensor:
        """Return standard normal noise, by the inverse of the distribution function."""
        # not torch.randn: a draw must be a function of its uniform number alone, on every device
        normal: Tensor = torch.special.ndtri(uniform)
        return normal

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Return `mean + std * noise`."""
        mean, log_std = params.chunk(2, dim=-1)
        return (mean + log_std.exp() * noise).view(-1, *self.action_shape)

    def mode(self, params: Tensor) -> Tensor:
        """Return the mean."""
        # works without the log standard deviations, too, which `fast.compiled_actor` leaves out
        return params[..., : self.noise_size].reshape(-1, *self.action_shape)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Return the sum of the entries' log-densities, `-z^2 / 2 - log std - log sqrt(2 pi)`."""
        mean, log_std = params.chunk(2, dim=-1)
        scaled = (actions.reshape(mean.shape) - mean) * torch.exp(-log_std)
        return -(0.5 * scaled.square() + log_std + _LOG_SQRT_2PI).sum(-1)

    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over the entries; an entry's entropy is `log std + 0.5 log(2 pi e)`."""
        log_std = params[..., self.noise_size :]
        return self.log_prob(params, actions), (log_std + (0.5 + _LOG_SQRT_2PI)).sum(-1)


class StateDependentGaussian(DiagonalGaussian):
    """Independent normals whose log standard deviations come from the network too."""

    # the fast forms add the same noise scale to every row
    fast_forms = frozenset()

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Make a distribution over actions of `shape`."""
        super().__init__(shape)
        self.num_free = 0


class Product(Distribution):
    """Independent distributions, one for each leaf of a nested action.

    `params` are the logits of all choices and bits, then the means of all Boxes, then their log
    standard deviations, each in the order of the leaves: so an action mask is for the first of them,
    and free parameters are the last. Noise has the order of logits and means. An action is a row, the
    entries of the leaves in their order.

    Attributes:
        leaves: the distributions in the order of `params`.
    """

    # one type for all: it holds choices exactly, which are 2**20 at most, and Boxes are drawn in it
    action_dtype = torch.float32

    def __init__(self, leaves: Sequence[Distribution]) -> None:
        """Combine the distributions of an action's leaves."""
        self._order = sorted(range(len(leaves)), key=lambda k: leaves[k].num_log_std > 0)
        self.leaves = [leaves[k] for k in self._order]
        self._entries = [math.prod(leaf.action_shape) for leaf in leaves]
        self.num_params, self.noise_size, self.num_log_std, self.num_free = (
            sum(getattr(leaf, name) for leaf in leaves)
            for name in ("num_params", "noise_size", "num_log_std", "num_free")
        )
        self.action_shape = (sum(self._entries),)

    @property
    def fast_forms(self) -> frozenset[str]:  # type: ignore[override]
        """Return `acting` if all leaves have it; see `Agent.parts`."""
        return frozenset.intersection(frozenset({"acting"}), *(leaf.fast_forms for leaf in self.leaves))

    def noise(self, uniform: Tensor) -> Tensor:
        """Return the noise of the leaves, side by side."""
        return torch.cat([leaf.noise(part) for leaf, part in zip(self.leaves, self._heads(uniform), strict=True)], -1)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Return the leaves' actions in one row."""
        parts = zip(self.leaves, self._params(params), self._heads(noise), strict=True)
        return self._row([leaf.sample(own, noise).to(params.dtype) for leaf, own, noise in parts])

    def mode(self, params: Tensor) -> Tensor:
        """Return the leaves' most probable actions in one row."""
        # works without the log standard deviations, too, as a DiagonalGaussian's
        parts = zip(self.leaves, self._heads(params), strict=True)
        return self._row([leaf.mode(own).to(params.dtype) for leaf, own in parts])

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Return the sum over the leaves."""
        parts = zip(self.leaves, self._params(params), self._columns(actions), strict=True)
        return torch.stack([leaf.log_prob(own, chosen) for leaf, own, chosen in parts]).sum(0)

    def log_prob_and_entropy(self, params: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over the leaves."""
        parts = zip(self.leaves, self._params(params), self._columns(actions), strict=True)
        pairs = [leaf.log_prob_and_entropy(own, chosen) for leaf, own, chosen in parts]
        # leaves are independent: log-probabilities and entropies add up
        return torch.stack([a for a, _ in pairs]).sum(0), torch.stack([b for _, b in pairs]).sum(0)

    def _heads(self, columns: Tensor) -> Sequence[Tensor]:
        """Split what begins with `[..., noise_size]`, noise or logits and means, by the leaves."""
        heads: Sequence[Tensor] = columns[..., : self.noise_size].split([leaf.noise_size for leaf in self.leaves], -1)
        return heads

    def _params(self, params: Tensor) -> list[Tensor]:
        """Split `params [B, num_params]` into those of the leaves."""
        log_std = iter(
            params[..., self.noise_size :].split([n for leaf in self.leaves if (n := leaf.num_log_std)], dim=-1)
        )
        heads = zip(self.leaves, self._heads(params), strict=True)
        return [torch.cat([head, next(log_std)], dim=-1) if leaf.num_log_std else head for leaf, head in heads]

    def _row(self, actions: Sequence[Tensor]) -> Tensor:
        """Return `[B, n]` for the leaves' actions in the order of `leaves`."""
        by_place = dict(zip(self._order, actions, strict=True))
        flat = [by_place[place].reshape(-1, count) for place, count in enumerate(self._entries)]
        return torch.cat(flat, dim=-1)

    def _columns(self, actions: Tensor) -> list[Tensor]:
        """Return the leaves' actions in the order of `leaves` for rows `[B, n]`."""
        columns = actions.split(self._entries, dim=-1)
        return [
            (columns[place] if leaf.num_log_std else columns[place].long()).reshape(-1, *leaf.action_shape)
            for place, leaf in zip(self._order, self.leaves, strict=True)
        ]


def make_distribution(space: SpaceSpec, state_dependent_std: bool = False) -> Distribution:
    """Make the distribution over an action space.

    Args:
        space: the actions'.
        state_dependent_std: take the log standard deviations of a Box from the network.
    """
    if space.parts:
        return Product([make_distribution(leaf, state_dependent_std) for _, leaf in space.parts])
    if space.kind == "discrete":
        return Categorical(space.sizes[0])
    if space.kind == "multi_discrete":
        return MultiCategorical(space.sizes, space.shape)
    if space.kind == "multi_binary":
        return Bernoulli(space.shape)
    return (StateDependentGaussian if state_dependent_std else DiagonalGaussian)(space.shape)
