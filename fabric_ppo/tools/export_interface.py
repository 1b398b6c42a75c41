"""Inputs and outputs of an exported policy: their names, types and shapes, and the module itself."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fabric_ppo.agents.distributions import Bernoulli, DiagonalGaussian, make_distribution
from fabric_ppo.agents.policy import Policy
from fabric_ppo.envs.actions import ActionConverter
from fabric_ppo.envs.spaces import KeyPath, SpaceSpec, path_name

OBS, NOISE, MEMORY, NEXT_MEMORY = "obs", "noise", "memory", "next_memory"
"""Names of inputs; the parts of a nested observation are `obs.` and their path. The last: an output."""


@dataclass(frozen=True)
class Port:
    """An input or output, `[B, *shape]`.

    Attributes:
        name: of it in the file.
        dtype: by NumPy's name.
        shape: without the batch.
        path: of a part of a nested observation: its keys and indices.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: KeyPath = ()

    def __str__(self) -> str:
        """Return name, shape and type."""
        return f"{self.name} [{', '.join(map(str, ('B', *self.shape)))}] {self.dtype}"


@dataclass(frozen=True)
class Interface:
    """All inputs and outputs of a policy, in order.

    Attributes:
        inputs: the observation's parts, `noise`, and `memory` of a recurrent agent.
        outputs: `action`, `params`, `value` (unless the value network takes parts of its own), and
            `next_memory` of a recurrent agent.
        num_parts: number of inputs that are parts of the observation.
        noise: standard distribution of the noise: `gumbel`, `logistic` or `normal`.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    num_parts: int
    noise: str

    @property
    def obs(self) -> tuple[Port, ...]:
        """Return the inputs that are parts of the observation."""
        return self.inputs[: self.num_parts]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Return the shape of the noise for one action."""
        return self.inputs[self.num_parts].shape

    @property
    def has_memory(self) -> bool:
        """Return True for a recurrent agent."""
        return len(self.inputs) > self.num_parts + 1


def interface_of(policy: Policy) -> Interface:
    """Return the inputs and outputs of a policy."""
    parts = policy.spec.observation.parts or (((), policy.spec.observation),)
    names = _unique([".".join(filter(None, (OBS, path_name(path)))) for path, _ in parts])
    obs = [Port(name, leaf.dtype, leaf.shape, path) for name, (path, leaf) in zip(names, parts, strict=True)]
    has_value = policy.module.agent.critic_encoder is None
    number, distribution = policy.new_memory().dtype.name, make_distribution(policy.spec.action)
    converter = ActionConverter(policy.spec.action)
    noise = {Bernoulli: "logistic", DiagonalGaussian: "normal"}.get(type(distribution), "gumbel")
    action = getattr(torch, converter.dtype.name, torch.float64)
    outputs = [
        Port("action", str(action).removeprefix("torch."), policy.spec.action.shape),
        Port("params", number, (distribution.num_params,)),
        *[Port("value", number, ())] * has_value,
    ]
    memory = [(policy.memory_size,)] * (policy.memory_size > 0)
    return Interface(
        (*obs, Port(NOISE, number, (policy.noise_size,)), *(Port(MEMORY, number, shape) for shape in memory)),
        (*outputs, *(Port(NEXT_MEMORY, number, shape) for shape in memory)),
        len(obs),
        noise,
    )


def _unique(names: list[str]) -> list[str]:
    """Return the names, with `_2`, `_3`, ... behind those that were there before.

    A key `a.b` beside a part `b` of `a` has the name of that.
    """
    taken: list[str] = []
    for name in names:
        tries: Iterator[str] = (f"{name}_{count}" if count > 1 else name for count in range(1, len(names) + 1))
        taken.append(next(each for each in tries if each not in taken and (each == name or each not in names)))
    return taken


class NamedPolicy(nn.Module):
    """A policy as a module from a dict of its inputs to a dict of its outputs."""

    def __init__(self, policy: Policy, interface: Interface) -> None:
        """Compute with a copy of the policy's weights, which are not trained."""
        super().__init__()
        self.policy = copy.deepcopy(policy.module).requires_grad_(False)
        self._obs, self._has_memory = [port.name for port in interface.obs], interface.has_memory
        self.eval()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs; see `PolicyModule.forward`."""
        memory = inputs[MEMORY] if self._has_memory else None
        out = self.policy.compute([inputs[name] for name in self._obs], memory, inputs[NOISE])
        return {NEXT_MEMORY if name == MEMORY else name: each for name, each in out.items()}


def split_rows(space: SpaceSpec, interface: Interface, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return observations as inputs by name.

    Args:
        space: the observations'.
        interface: the policy's.
        rows: `[B, ...]` as the agent takes them: of a nested space packed (`spaces.Packer`).
    """
    if not space.parts:
        return {interface.obs[0].name: rows}
    found, start = {}, 0
    for port in interface.obs:
        stop = start + int(np.prod(port.shape, dtype=int)) * np.dtype(port.dtype).itemsize
        # a copy: bytes of one row would count as contiguous, but have the strides of the whole row
        part = rows[:, start:stop].copy(order="C").view(port.dtype)
        found[port.name], start = part.reshape(len(rows), *port.shape), stop
    return found


def metadata_of(policy: Policy, interface: Interface, origin: Mapping[str, Any]) -> dict[str, str]:
    """Return what a file says of itself, as texts; those with a structure as JSON.

    Args:
        policy, interface: the policy's.
        origin: `seed`, `env_steps` and `updates` of the run; None where they are not known.
    """
    ports = {name: [asdict(port) for port in getattr(interface, name)] for name in ("inputs", "outputs")}
    values = {name: json.dumps(each) for name, each in ports.items()}
    values |= {"env_id": policy.spec.env_id, "env_spec": policy.spec.to_json(), "noise": interface.noise}
    values |= {name: "" if each is None else str(each) for name, each in origin.items()}
    # the package itself is above this room, and lists its public names; it is imported by now
    return values | {"fabric_ppo_version": str(sys.modules["fabric_ppo"].__version__)}
