"""Snapshot of a run after an update, in memory; a checkpoint can be written from it at any time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.envs.action_log import LogView
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.process.packets import begin_copy, pack, unpack
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

    weights: Mapping[str, Tensor]
    optimizer: OptimizerState
    in_flight: Mapping[str, Tensor]
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


class Copies(Mapping[str, Tensor]):
    """Copies of tensors on the CPU, by name; those of a GPU come in one transfer, beside what it does next.

    They are as the tensors were. Whoever reads the first one waits until the transfer has ended.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors, or begin to."""
        self._names = list(tensors)
        self._away = [name for name, each in tensors.items() if not each.is_cpu]
        self._like = [tensors[name].detach() for name in self._away]
        self._found = {name: each.detach().clone() for name, each in tensors.items() if each.is_cpu}
        self._packet, self._wait = begin_copy(pack(self._like)) if self._like else (torch.empty(0), lambda: None)

    def __getitem__(self, name: str) -> Tensor:
        """Return a copy."""
        if len(self._found) < len(self._names):
            self._wait()
            self._found |= zip(self._away, unpack(self._packet, self._like), strict=True)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names in their order."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._names)
