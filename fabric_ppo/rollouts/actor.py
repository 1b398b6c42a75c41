"""Acting for a rollout: choosing actions, step after step, while the weights stay as they are.

Without gradients: an Actor is made and used under `torch.no_grad`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.envs.contract import Array


class Actor:
    """Chooses the actions of one step after the other, on the agent's device.

    Attributes:
        memory: `[B, memory_size]`, what a recurrent agent remembers; on the agent's device.
    """

    def __init__(self, agent: Agent, noise: Tensor) -> None:
        """Act T times with `noise [T, B, noise_size]`; B is a multiple of `mlp.ROW_MULTIPLE`."""
        self._agent, self._noise = agent, noise.to(agent.device)
        self._params: list[Tensor] = []
        self.memory = torch.zeros(noise.shape[1], agent.memory_size, dtype=agent.dtype).to(agent.device)

    def act(self, obs: Array) -> Array:
        """Choose actions `[B, *action_shape]` for `obs [B, ...]`."""
        agent = self._agent
        features = agent.features(torch.from_numpy(obs).to(agent.device))
        features, self.memory = agent.remember(features, self.memory)
        params = agent.policy_params(features)
        actions = agent.distribution.sample(params, self._noise[len(self._params)])
        self._params.append(params)
        return actions.cpu().numpy()

    def params(self) -> Tensor:
        """Return the parameters that actions were drawn with, `[T, B, num_params]`, on the CPU."""
        return torch.stack(self._params).cpu()


MakeActor = Callable[[Agent, Tensor, Array], Actor]
"""Makes the actor of a rollout: from the agent, noise `[T, B, noise_size]` and the first `obs`."""


def make_plain_actor(agent: Agent, noise: Tensor, obs: Array) -> Actor:
    """Make an Actor, whatever the agent."""
    return Actor(agent, noise)
