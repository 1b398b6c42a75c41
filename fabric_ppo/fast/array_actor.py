"""Acting in NumPy, for small networks on the CPU; stands for `rollouts.actor.Actor`.

PyTorch takes longer to start a product of eight rows with a small layer than to compute it; NumPy
starts one in half the time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent, declared_forms
from fabric_ppo.agents.distributions import Categorical
from fabric_ppo.agents.mlp import MLP
from fabric_ppo.envs.contract import Array
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.rollouts.actor import Actor

_BLOCK_ROWS = 8
"""Rows of one product. So many round the same way wherever they stand."""
_SMALL = 2**15
"""Weights of a layer up to which OpenBLAS, which NumPy calls, leaves eight rows to one thread."""
_TOLERANCE = 1e-4
"""Difference from the plain actor, relative to its largest entry, that is no rounding any more."""


class ActorChoice:
    """Chooses the actor of each rollout of a run: an ArrayActor where one can act for the agent.

    It is held against the plain actor once, on the run's first observations. Where they differ
    beyond rounding the plain one acts, and a line says so: whoever edits `Agent` or a distribution
    gets what was written.
    """

    def __init__(self) -> None:
        """Nothing has been compared yet."""
        self._is_equal: bool | None = None

    def __call__(self, agent: Agent, noise: Tensor, obs: Array) -> Actor:
        """Make the actor of a rollout with `noise [T, B, noise_size]` that begins with `obs`."""
        if not can_act_in_arrays(agent):
            return Actor(agent, noise)
        if self._is_equal is None:
            self._is_equal = acts_alike(Actor(agent, noise), ArrayActor(agent, noise), obs)
            if not self._is_equal:
                print_from_rank_zero("agents/ acts differently from fast/array_actor.py: the former, slower, is used")
        return (ArrayActor if self._is_equal else Actor)(agent, noise)


def can_act_in_arrays(agent: Agent) -> bool:
    """Return whether an ArrayActor can act for this agent, and is the faster one."""
    networks = [network for network in (agent.trunk, agent.policy) if network is not None]
    return "array" in declared_forms(agent) and all(map(_is_small, networks))


def acts_alike(plain: Actor, fast: Actor, obs: Array) -> bool:
    """Return whether both do the same in one step, but for rounding."""
    expected, actions = plain.act(obs), fast.act(obs)
    params = plain.params()
    bound = _TOLERANCE * params.abs().max()
    if not bool(((params - fast.params()).abs() <= bound).all()):
        return False
    if expected.dtype.kind == "f":
        return np.allclose(expected, actions, rtol=_TOLERANCE, atol=_TOLERANCE)
    # where two choices are as good as equal, rounding decides: one row may differ
    return int(np.sum(expected != actions)) <= 1


class ArrayActor(Actor):
    """Chooses actions in NumPy, as the most probable ones of perturbed parameters."""

    row_multiple = _BLOCK_ROWS

    def __init__(self, agent: Agent, noise: Tensor) -> None:
        """See `Actor`; `agent` is one that `can_act_in_arrays`."""
        super().__init__(agent, noise)
        scaled = self._noise
        if agent.log_std is not None:  # mean + std * noise is the mode of the shifted normal
            scaled = scaled * agent.bounded(agent.log_std).exp()
        self._scaled_noise = scaled.numpy()
        self._is_raw = agent.obs_moments is None and agent.encoder.is_identity(agent.dtype)
        networks = [network for network in (agent.trunk, agent.policy) if network is not None]
        self._forwards = [array_forward(network) for network in networks]
        self._is_categorical = isinstance(agent.distribution, Categorical)
        self._outputs: list[Array] = []

    def act(self, obs: Array) -> Array:
        """See `Actor.act`."""
        n, out = self._num_envs, self._obs
        out[:n] = obs
        if not self._is_raw:
            out = self._agent.inputs(torch.from_numpy(out)).numpy()
        for forward in self._forwards:
            out = forward(out)
        perturbed = out + self._scaled_noise[len(self._outputs)]
        self._outputs.append(out)
        if self._is_categorical:
            return perturbed.argmax(-1)[:n]  # type: ignore[no-any-return]
        return self._agent.distribution.mode(torch.from_numpy(perturbed)).numpy()[:n]

    def params(self) -> Tensor:
        """See `Actor.params`."""
        outputs = torch.from_numpy(np.stack(self._outputs)[:, : self._num_envs])
        return self._agent.with_log_std(outputs)


def _is_small(network: MLP) -> bool:
    """Return whether starting its products costs more than computing them."""
    weights = [layer.weight for layer in network.linear_layers]
    first = weights[0]
    is_on_cpu = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64)
    return is_on_cpu and all(weight.numel() <= _SMALL for weight in weights)


def array_forward(network: MLP) -> Callable[[Array], Array]:
    """Return `network.forward` for arrays `[8 k, inputs]`, while the weights stay as they are."""
    layers = [
        (np.ascontiguousarray(layer.weight.detach().t().numpy()), layer.bias.detach().numpy())
        for layer in network.linear_layers
    ]
    is_tanh, num_hidden = network.activation == "tanh", network.num_hidden

    def forward(features: Array) -> Array:
        values = features.reshape(-1, _BLOCK_ROWS, features.shape[-1])
        for index, (weight, bias) in enumerate(layers):
            values = np.matmul(values, weight)
            values += bias
            if index < num_hidden and is_tanh:
                np.tanh(values, out=values)
            elif index < num_hidden:
                np.maximum(values, 0, out=values)
        return values.reshape(len(features), -1)

    return forward
