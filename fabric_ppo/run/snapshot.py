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
from fabric_ppo.rollouts.buffer import EnvSnapshot


@dataclass(frozen=True)
class Snapshot:
    """State of a run after an update, of all ranks; nothing in it changes afterwards.

    Attributes:
        weights, optimizer: the agent's and the optimizer's state, name -> tensor.
        in_flight: weights that the rollout in progress is collected with, where rollouts and
            updates overlap; else empty.
        envs: the environments of all ranks.
        log: their actions since their resets.
        values: everything else, as JSON values.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
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
        for group in ("weights", "optimizer", "in_flight"):
            tensors |= {f"{group}.{name}": value for name, value in getattr(self, group).items()}
        sizes = {"state_sizes": [len(state) for state in envs.states]}
        return Checkpoint(tensors, self.values | sizes | more)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of each tensor, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state, not copies, as `<parameter's index>.<name>`.

    The names are the optimizer's own: nothing else depends on them.
    """
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load into an optimizer the state that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        # a copy, for an optimizer changes the tensors that it loads in place
        state.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
