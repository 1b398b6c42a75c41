"""Choice of a rollout's actions, step after step, while the weights do not change.

An Actor is made under `torch.no_grad`; between its actions environments may use gradients.
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
    """The agent as it acts in N environments for one rollout, on its own device.

    Attributes:
        row_multiple: multiple to which batches are padded, so that actions in an environment are
            the same bits however many other environments there are.
        noise: of all steps, `[T, rows, noise_size]` on the agent's device.
        memory: a recurrent agent's, `[rows, memory_size]` on its device; the first N rows are those
            of the environments, the others padding.
    """

    row_multiple = ROW_MULTIPLE

    def __init__(self, agent: Agent, noise: Tensor) -> None:
        """Prepare T steps in N environments, with `noise [T, N, noise_size]`."""
        self._agent, self._num_envs = agent, noise.shape[1]
        # padding rows act, too, on zeros; their actions are dropped
        padding = -self._num_envs % self.row_multiple
        rows = self._num_envs + padding
        self.noise = pad(noise, (0, 0, 0, padding)).to(agent.device)
        blank = np.zeros((rows, *agent.spec.observation.shape), agent.spec.observation.dtype)
        self._obs = torch.from_numpy(blank).to(agent.device)
        self._params: list[Tensor] = []
        self._inputs: list[Tensor] | None = [] if agent.encoder.has_weights else None
        self._crossed: list[Tensor] = []
        self.memory = torch.zeros(rows, agent.memory_size, dtype=agent.dtype).to(agent.device)

    def act(self, obs: Array) -> Array:
        """Choose the next step's actions `[N, *action_shape]` for `obs [N, ...]`."""
        return self.choose(torch.from_numpy(obs)).cpu().numpy()

    @torch.no_grad()
    def choose(self, obs: Tensor) -> Tensor:
        """Do as `act`, from a tensor on any device to one on the agent's."""
        agent = self._agent
        rows = self._obs[: self._num_envs]
        rows.copy_(obs, non_blocking=True)
        if obs.device != rows.device:
            self._crossed.append(rows.clone())
        features = agent.shared(self._encode(self._obs))
        features, self.memory = agent.remember(features, self.memory)
        params = agent.policy_params(features)
        actions = agent.distribution.sample(params, self.noise[len(self._params)])
        self._params.append(params)
        return actions[: self._num_envs]

    def _encode(self, obs: Tensor) -> Tensor:
        """Return `Agent.inputs` of `obs [B, ...]`, which are kept where a network computes them."""
        inputs = self._agent.inputs(obs)
        if self._inputs is not None:
            self._inputs.append(inputs[: self._num_envs])
        return inputs

    def observations(self) -> Tensor | None:
        """Return the observations of all steps, `[T, N, ...]`, if they have crossed to the agent's device; else None.

        So an update need not bring them there a second time.
        """
        return torch.stack(self._crossed) if self._crossed else None

    def inputs(self) -> Tensor | None:
        """Return `Agent.inputs` of all steps, `[T, N, n]`, where a network computes them; else None."""
        return None if self._inputs is None else torch.stack(self._inputs)

    def values(self, obs: Tensor) -> Tensor | None:
        """Return the values of `obs [B, ...]`, `[B]`, where what acts computes them as well; else None."""
        return None

    def params(self) -> Tensor:
        """Return the distributions' parameters of all steps, `[T, N, num_params]`, on the agent's device."""
        return torch.stack(self._params)[:, : self._num_envs]


MakeActor = Callable[[Agent, Tensor, Tensor], Actor]
"""Factory of a rollout's actor: from agent, noise `[T, N, noise_size]` and first `obs [N, ...]`."""


def make_plain_actor(agent: Agent, noise: Tensor, obs: Tensor) -> Actor:
    """Make an Actor, which can act for any agent; a `MakeActor`."""
    return Actor(agent, noise)
