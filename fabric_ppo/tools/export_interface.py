"""Inputs and outputs of an exported policy: their names, types and shapes, and the module itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fabric_ppo.agents.distributions import (
    Bernoulli,
    DiagonalGaussian,
    Distribution,
    Product,
    make_distribution,
)
from fabric_ppo.agents.policy import Policy
from fabric_ppo.envs.spaces import KeyPath, SpaceSpec, path_name
from fabric_ppo.process.extras import own_version

OBS, NOISE, MEMORY = "obs", "noise", "memory"
"""Names of inputs; the parts of a nested observation are `obs.` and their path."""
ACTION, NEXT_MEMORY = "action", "next_memory"
"""Names of outputs; the parts of a nested action are `action.` and their path."""


@dataclass(frozen=True)
class Port:
    """An input or output, `[B, *shape]`.

    Attributes:
        name: of it in the file.
        dtype: by NumPy's name.
        shape: without the batch.
        path: of a part of a nested observation or action: its keys and indices.
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
        outputs: the action's parts, `params`, `value` (unless the value network takes parts of its
            own), and `next_memory` of a recurrent agent.
        num_parts: number of inputs that are parts of the observation.
        num_actions: number of outputs that are parts of the action.
        noise_parts: standard distributions of the noise, `gumbel`, `logistic` or `normal`, one after
            the other, each with its number of entries.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    num_parts: int
    num_actions: int
    noise_parts: tuple[tuple[str, int], ...]

    @property
    def obs(self) -> tuple[Port, ...]:
        """Return the inputs that are parts of the observation."""
        return self.inputs[: self.num_parts]

    @property
    def actions(self) -> tuple[Port, ...]:
        """Return the outputs that are parts of the action."""
        return self.outputs[: self.num_actions]

    @property
    def noise(self) -> str:
        """Return the noise's distribution; where there are several, as in `gumbel 5, normal 2`."""
        if len(self.noise_parts) == 1:
            return self.noise_parts[0][0]
        return ", ".join(f"{kind} {count}" for kind, count in self.noise_parts)

    @property
    def has_memory(self) -> bool:
        """Return True for a recurrent agent."""
        return len(self.inputs) > self.num_parts + 1


def interface_of(policy: Policy) -> Interface:
    """Return the inputs and outputs of a policy."""
    obs, actions = _ports(OBS, policy.spec.observation), _ports(ACTION, policy.spec.action)
    actions = [replace(port, dtype=_as_output(port.dtype)) for port in actions]
    number, distribution = policy.new_memory().dtype.name, make_distribution(policy.spec.action)
    has_value = policy.module.agent.critic_encoder is None
    outputs = [*actions, Port("params", number, (distribution.num_params,)), *[Port("value", number, ())] * has_value]
    memory = [(policy.memory_size,)] * (policy.memory_size > 0)
    return Interface(
        (*obs, Port(NOISE, number, (policy.noise_size,)), *(Port(MEMORY, number, shape) for shape in memory)),
        (*outputs, *(Port(NEXT_MEMORY, number, shape) for shape in memory)),
        len(obs),
        len(actions),
        _noise_parts(distribution),
    )


def _ports(prefix: str, space: SpaceSpec) -> list[Port]:
    """Return the ports of a space's leaves."""
    names = _unique([".".join(filter(None, (prefix, path_name(path)))) for path, _ in space.leaves])
    return [Port(name, leaf.dtype, leaf.shape, path) for name, (path, leaf) in zip(names, space.leaves, strict=True)]


def _as_output(dtype: str) -> str:
    """Return the type in which numbers of a type leave the policy: PyTorch's own, else float64."""
    return str(getattr(torch, np.dtype(dtype).name, torch.float64)).removeprefix("torch.")


def _noise_parts(distribution: Distribution) -> tuple[tuple[str, int], ...]:
    """Return the standard distributions of the noise, each with its number of entries."""
    leaves = distribution.leaves if isinstance(distribution, Product) else [distribution]
    names = {Bernoulli: "logistic", DiagonalGaussian: "normal"}
    kinds = groupby(leaves, key=lambda leaf: names.get(type(leaf), "gumbel"))
    return tuple((kind, sum(leaf.noise_size for leaf in of_kind)) for kind, of_kind in kinds)


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
        self._actions = [port.name for port in interface.actions]
        self.eval()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs; see `PolicyModule.forward`."""
        memory = inputs[MEMORY] if self._has_memory else None
        actions, out = self.policy.compute([inputs[name] for name in self._obs], memory, inputs[NOISE])
        named = dict(zip(self._actions, actions, strict=True))
        return named | {NEXT_MEMORY if name == MEMORY else name: each for name, each in out.items()}


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
    return values | {"fabric_ppo_version": own_version()}
