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
from fabric_ppo.fast.twin import float64_twin, is_close, move_weights
from fabric_ppo.fast.written_for import ACTING, edited
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.rollouts.actor import Actor

_BLOCK_ROWS = 8
"""Rows of one product: always the same number, so that a row rounds alike in any batch."""
_SMALL = 2**15
"""Most weights of a layer with which OpenBLAS, NumPy's library, multiplies 8 rows in one thread."""
_STEPS = 16
"""Steps that are compared: so many draws that also a single environment shows a difference."""


class ActorChoice:
    """Choice of the actor for each rollout of a run: an ArrayActor where it can act for the agent.

    The plain one acts, and a line is printed, where the code that the ArrayActor stands for has been
    edited, or where both differ by more than rounding on the run's first observations.
    """

    def __init__(self) -> None:
        """Start without a comparison."""
        self._is_equal: bool | None = None

    def __call__(self, agent: Agent, noise: Tensor, obs: Array) -> Actor:
        """Make the actor of a rollout.

        Args:
            agent: what acts.
            noise: `[T, N, noise_size]`.
            obs: `[N, ...]`, the rollout's first observations.
        """
        if not can_act_in_arrays(agent):
            return Actor(agent, noise)
        if self._is_equal is None:
            reason = edited(ACTING) or ([] if actors_agree(agent, noise[:_STEPS], obs) else ["agents/"])
            self._is_equal = not reason
            if reason:
                print_from_rank_zero(
                    f"edited: {', '.join(reason)}; acting follows this code, and not the faster fast/array_actor.py"
                )
        return (ArrayActor if self._is_equal else Actor)(agent, noise)


def can_act_in_arrays(agent: Agent) -> bool:
    """Return True if an ArrayActor can act for this agent, and is faster than an Actor."""
    networks = [network for network in (agent.trunk, agent.policy) if network is not None]
    return "array" in declared_forms(agent) and all(map(_is_small, networks))


def actors_agree(agent: Agent, noise: Tensor, obs: Array) -> bool:
    """Return True if both actors do the same, but for rounding.

    They are compared on a copy of the agent in float64, where rounding is small.

    Args:
        agent: what acts.
        noise: `[T, N, noise_size]`.
        obs: `[N, ...]`, seen in all T steps.
    """
    twin, noise = float64_twin(agent), noise.double()
    if not _agree(Actor(twin, noise), ArrayActor(twin, noise), noise, obs):
        return False
    move_weights(twin)
    if not _agree(Actor(twin, noise), ArrayActor(twin, noise), noise, obs):
        return False
    # how it draws, from parameters that are further apart than those of a fresh policy
    fast = ArrayActor(twin, noise)
    width = twin.distribution.num_params - twin.distribution.num_free
    outputs = 3 * torch.arange(noise[..., 0].numel() * width).cos().double().view(-1, width)
    drawn = fast.draw(outputs.numpy(), (noise * fast.scale).flatten(0, 1).numpy())
    plain = twin.distribution.sample(twin.with_log_std(outputs), noise.flatten(0, 1))
    return is_close(plain.double(), torch.from_numpy(drawn).double())


def _agree(plain: Actor, fast: Actor, noise: Tensor, obs: Array) -> bool:
    """Return True if both choose the same actions, from the same parameters."""
    expected, actions = (torch.from_numpy(np.stack([each.act(obs) for _ in noise])).double() for each in (plain, fast))
    return is_close(plain.params(), fast.params()) and is_close(expected, actions)


class ArrayActor(Actor):
    """An Actor in NumPy: its actions are the most probable ones of perturbed parameters.

    Attributes:
        scale: factor of the noise: free standard deviations, else one.
    """

    row_multiple = _BLOCK_ROWS

    def __init__(self, agent: Agent, noise: Tensor) -> None:
        """See `Actor`; `can_act_in_arrays(agent)` must hold."""
        super().__init__(agent, noise)
        # mean + std * noise is the mode of a normal with that mean; free deviations do not change
        # during a rollout, so all noise is scaled here, once
        free = agent.log_std
        self.scale = torch.ones(()) if free is None else agent.bounded(free).exp()
        self._scaled_noise = (self._noise if free is None else self._noise * self.scale).numpy()
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
        actions = self.draw(out, self._scaled_noise[len(self._outputs)])
        self._outputs.append(out)
        return actions[:n]

    def draw(self, outputs: Array, scaled_noise: Array) -> Array:
        """Draw actions `[B, *action_shape]` from the policy network's outputs, `[B, n]`."""
        # argmax(logits + gumbel), mode(logit + logistic) or mean + std * normal
        perturbed = outputs + scaled_noise
        if self._is_categorical:
            return perturbed.argmax(-1)  # type: ignore[no-any-return]
        return self._agent.distribution.mode(torch.from_numpy(perturbed)).numpy()

    def params(self) -> Tensor:
        """See `Actor.params`."""
        outputs = torch.from_numpy(np.stack(self._outputs)[:, : self._num_envs])
        return self._agent.with_log_std(outputs)


def _is_small(network: MLP) -> bool:
    """Return True if starting the network's products takes longer than computing them."""
    weights = [layer.weight for layer in network.linear_layers]
    first = weights[0]
    is_on_cpu = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64)
    return is_on_cpu and all(weight.numel() <= _SMALL for weight in weights)


def array_forward(network: MLP) -> Callable[[Array], Array]:
    """Return `network.forward` as a function of arrays `[8 k, inputs]`.

    It is valid until the weights change.
    """
    # BLAS multiplies faster with the transposed weights in one piece
    layers = [
        (np.ascontiguousarray(layer.weight.detach().t().numpy()), layer.bias.detach().numpy())
        for layer in network.linear_layers
    ]
    is_tanh, num_hidden = network.activation == "tanh", network.num_hidden

    def forward(features: Array) -> Array:
        # a stack of products of 8 rows each: one product of all rows would round by their number
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
