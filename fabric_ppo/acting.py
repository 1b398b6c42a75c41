"""Acting for a rollout: what an agent does, step after step, while its weights stay as they are.

Without gradients: an Actor is made and used under `torch.no_grad`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric_ppo.agent import Agent
from fabric_ppo.distributions import Categorical

Array = NDArray[Any]


class Actor:
    """Draws the actions of one step after the other, on the agent's device."""

    def __init__(self, agent: Agent, noise: Tensor) -> None:
        """Act T times with `noise [T, B, noise_size]`; B is a multiple of `networks.ROWS_AT_A_TIME`."""
        self._agent, self._noise = agent, noise.to(agent.device)
        self._encode = agent.obs_to_features()
        self._params: list[Tensor] = []

    def act(self, obs: Array) -> Array:
        """Actions `[B, *action_shape]` for `obs [B, ...]`."""
        agent = self._agent
        params = agent.policy_params(self._features(torch.from_numpy(obs).to(agent.device)))
        actions = agent.distribution.sample(params, self._noise[len(self._params)])
        self._params.append(params)
        return actions.cpu().numpy()

    def _features(self, obs: Tensor) -> Tensor:
        return obs if self._encode is None else self._encode(obs)

    def params(self) -> Tensor:
        """The parameters of the distributions that were drawn from, `[T, B, num_params]`, on the CPU."""
        return torch.stack(self._params).cpu()


class RecurrentActor(Actor):
    """Remembers what it has seen.

    Attributes:
        memory: `[B, memory_size]`.
    """

    def __init__(self, agent: Agent, noise: Tensor, memory: Array) -> None:
        """See `Actor`; `memory [n, memory_size]` is what it begins with in the first n rows."""
        super().__init__(agent, noise)
        self.memory = torch.zeros(noise.shape[1], agent.memory_size, dtype=agent.dtype)
        self.memory[: len(memory)] = torch.from_numpy(memory)
        self.memory = self.memory.to(agent.device)

    def _features(self, obs: Tensor) -> Tensor:
        features, self.memory = self._agent.remember(super()._features(obs), self.memory)
        return features

    def forget(self, rows: Array) -> None:
        """Begin anew where `rows [n]` of the first n rows is true."""
        self.memory[: len(rows)][torch.from_numpy(rows)] = 0


class ArrayActor(Actor):
    """In NumPy: for networks on the CPU that are so small that PyTorch takes longer to begin than to compute."""

    def __init__(self, agent: Agent, noise: Tensor) -> None:
        """See `Actor`."""
        super().__init__(agent, noise if agent.log_std is None else noise * agent.bounded(agent.log_std).exp())
        self._prepare, self._scaled_noise = agent.obs_to_inputs(), self._noise.numpy()
        self._layers = [network.frozen() for network in (agent.trunk, agent.policy) if network is not None]
        self._is_categorical = isinstance(agent.distribution, Categorical)
        self._outputs: list[Array] = []

    def act(self, obs: Array) -> Array:
        """See `Actor`."""
        out = obs if self._prepare is None else self._prepare(torch.from_numpy(obs)).numpy()
        for layers in self._layers:
            out = layers(out)
        perturbed = out + self._scaled_noise[len(self._outputs)]
        self._outputs.append(out)
        if self._is_categorical:
            return perturbed.argmax(-1)  # type: ignore[no-any-return]
        return self._agent.distribution.mode(torch.from_numpy(perturbed)).numpy()

    def params(self) -> Tensor:
        """See `Actor`."""
        return self._agent.with_log_std(torch.from_numpy(np.stack(self._outputs)))


def make_actor(agent: Agent, noise: Tensor) -> Actor:
    """The fastest one for this agent, which is not recurrent."""
    fits = agent.policy.is_small and (agent.trunk is None or agent.trunk.is_small)
    fits = fits and agent.distribution.sample_is_perturbed_mode and not agent.encoder.num_masks
    fits = fits and not agent.architecture.state_dependent_std  # whose noise is not scaled beforehand
    return (ArrayActor if fits else Actor)(agent, noise)
