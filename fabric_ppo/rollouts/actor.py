"""Acting for a rollout: choosing actions, step after step, while the weights stay as they are.

Without gradients: an Actor is made and used under `torch.no_grad`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.mlp import ROW_MULTIPLE
from fabric_ppo.envs.contract import Array


class Actor:
    """Chooses the actions of one step after the other, on the agent's device.

    Attributes:
        row_multiple: its batches are padded to a multiple of this, so that an environment acts
            alike, bit for bit, among however many others.
        memory: `[rows, memory_size]`, a recurrent agent's, on its device; those of environments
            come first.
    """

    row_multiple = ROW_MULTIPLE

    def __init__(self, agent: Agent, noise: Tensor) -> None:
        """Act T times in N environments, with `noise [T, N, noise_size]`."""
        self._agent, self._num_envs = agent, noise.shape[1]
        padding = -self._num_envs % self.row_multiple
        rows = self._num_envs + padding
        self._noise = pad(noise, (0, 0, 0, padding)).to(agent.device)
        self._obs = np.zeros((rows, *agent.spec.observation.shape), agent.spec.observation.dtype)
        self._params: list[Tensor] = []
        self.memory = torch.zeros(rows, agent.memory_size, dtype=agent.dtype).to(agent.device)

    def act(self, obs: Array) -> Array:
        """Choose actions `[N, *action_shape]` for `obs [N, ...]`."""
        agent = self._agent
        self._obs[: self._num_envs] = obs
        features = agent.features(torch.from_numpy(self._obs).to(agent.device))
        features, self.memory = agent.remember(features, self.memory)
        params = agent.policy_params(features)
        actions = agent.distribution.sample(params, self._noise[len(self._params)])
        self._params.append(params)
        return actions[: self._num_envs].cpu().numpy()

    def params(self) -> Tensor:
        """Return the parameters that actions were drawn with, `[T, N, num_params]`, on the CPU."""
        return torch.stack(self._params)[:, : self._num_envs].cpu()


MakeActor = Callable[[Agent, Tensor, Array], Actor]
"""Makes the actor of a rollout: from the agent, noise `[T, N, noise_size]` and the first `obs`."""


def make_plain_actor(agent: Agent, noise: Tensor, obs: Array) -> Actor:
    """Make an Actor, whatever the agent."""
    return Actor(agent, noise)
