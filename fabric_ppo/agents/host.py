"""A copy of an agent in the host's memory, where its environments are."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.process.packets import copy_together


class HostCopy:
    """Copy of an agent on the CPU; of an agent that is there already, the agent itself.

    Between environments on the CPU and a small network on a GPU each step would cross the bus twice,
    which takes longer than the network's products. The weights cross it once a rollout.
    """

    def __init__(self, agent: Agent) -> None:
        """Make no copy yet: the agent may be moved to its device afterwards."""
        self._agent, self._copy = agent, agent

    @torch.no_grad()
    def latest(self) -> Agent:
        """Return the copy, with the agent's present weights and statistics."""
        if self._agent.device.type == "cpu":
            return self._agent
        if self._copy is self._agent:
            self._copy = copy.deepcopy(self._agent).to("cpu")
        else:
            copy_together(_state(self._agent), _state(self._copy))
        return self._copy


def _state(agent: Agent) -> list[Tensor]:
    """Return weights and buffers, also those that no checkpoint holds, as what is derived from sums."""
    return [*agent.parameters(), *agent.buffers()]
