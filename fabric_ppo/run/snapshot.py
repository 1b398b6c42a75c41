"""Snapshot of a run after an update, in memory; a checkpoint can be written from it at any time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.envs.action_log import LogView
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.process.packets import move_together
from fabric_ppo.rollouts.buffer import EnvSnapshot
from fabric_ppo.run.optimizer_state import OptimizerState


@dataclass(frozen=True)
class Snapshot:
    """State of a run after an update, of all ranks; nothing in it changes afterwards.

    Attributes:
        weights: the agent's state, name -> tensor.
        optimizer: the optimizer's state.
        in_flight: weights with which the rollout in progress is collected, if rollouts and updates
            overlap; else empty.
        envs: the environments of all ranks.
        log: their actions since their resets.
        values: everything else, as JSON values.
    """

    weights: dict[str, Tensor]
    optimizer: OptimizerState
    in_flight: dict[str, Tensor]
    envs: EnvSnapshot
    log: LogView
    values: dict[str, Any]

    def to_checkpoint(self, more: dict[str, Any]) -> Checkpoint:
        """Return this as a checkpoint, with `more` values."""
        envs = self.envs
        arrays = {
            "obs": envs.obs,
            "returns": envs.returns,
            "lengths": envs.lengths,
            "discounted": envs.discounted,
            "memory": envs.memory,
            "actions": self.log.actions(),
            "numbers": self.log.numbers,
            "logged": self.log.lengths,
            "states": np.frombuffer(b"".join(envs.states), np.uint8),
        }
        tensors = {f"env.{name}": torch.from_numpy(np.array(each)) for name, each in arrays.items()}
        groups = {"weights": self.weights, "optimizer": self.optimizer.tensors, "in_flight": self.in_flight}
        for group, named in groups.items():
            tensors |= {f"{group}.{name}": value for name, value in named.items()}
        values = {"optimizer": self.optimizer.values, "state_sizes": [len(state) for state in envs.states]}
        return Checkpoint(tensors, self.values | values | more)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of each tensor, on the CPU; tensors on a GPU come in one transfer."""
    detached = [tensor.detach() for tensor in tensors.values()]
    brought = move_together(detached, torch.device("cpu"))
    return {
        name: each.clone() if each is own else each for name, own, each in zip(tensors, detached, brought, strict=True)
    }
