"""Acting in compiled code, for small networks on the CPU; stands for `rollouts.actor.Actor`.

For a few environments PyTorch takes many times as long to start an action's products as to compute
them. Here an action is one function of `kernels.c`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent, declared_forms
from fabric_ppo.agents.distributions import Categorical
from fabric_ppo.envs.contract import Array
from fabric_ppo.fast.compiled_agent import CompiledAgent, has_small_layers
from fabric_ppo.fast.kernels import kernels
from fabric_ppo.fast.reasons import reasons_for_plain
from fabric_ppo.fast.twin import float64_twin, is_close, move_weights
from fabric_ppo.fast.written_for import ACTING
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.rollouts import actor
from fabric_ppo.rollouts.actor import Actor

_STEPS = 16
"""Steps that are compared: so many draws that also a single environment shows a difference."""


class ActorChoice:
    """Choice of the actor for each rollout of a run: a CompiledActor where it can act for the agent.

    The plain one acts, and a line is printed, where the code that the CompiledActor stands for has been
    edited, or where both differ by more than rounding on the run's first observations.
    """

    def __init__(self, agent: Agent) -> None:
        """Choose for an agent, without a comparison yet; compile what is missing."""
        self._can_compile = has_compiled_actor(agent)
        self._is_equal: bool | None = None

    def __call__(self, agent: Agent, noise: Tensor, obs: Array) -> Actor:
        """Make the actor of a rollout.

        Args:
            agent: what acts.
            noise: `[T, N, noise_size]`.
            obs: `[N, ...]`, the rollout's first observations.
        """
        if self._is_equal is None:
            self._is_equal = self._can_stand_for(agent, noise[:_STEPS], obs)
        return (CompiledActor if self._is_equal else actor.Actor)(agent, noise)

    def _can_stand_for(self, agent: Agent, noise: Tensor, obs: Array) -> bool:
        """Return True if the compiled actor equals the plain one; print a line where a change is why not."""
        reasons = reasons_for_plain(agent, "acting", ACTING)
        if not reasons and self._can_compile:
            if actors_agree(agent, noise, obs):
                return True
            reasons = ["edited: agents/"]
        if reasons and has_small_layers(agent):
            print_from_rank_zero(
                f"{'; '.join(reasons)}; acting follows this code, and not the faster fast/compiled_actor.py"
            )
        return False


def has_compiled_actor(agent: Agent) -> bool:
    """Return True if a CompiledActor can act for this agent; it compiles what is missing."""
    can = "acting" in declared_forms(agent) and has_small_layers(agent)
    # the first steps are compared in float64
    return can and all(kernels(dtype) is not None for dtype in (agent.dtype, torch.float64))


def actors_agree(agent: Agent, noise: Tensor, obs: Array) -> bool:
    """Return True if both actors do the same, but for rounding.

    They are compared on a copy of the agent in float64, where rounding is small.

    Args:
        agent: what acts.
        noise: `[T, N, noise_size]`.
        obs: `[N, ...]`, seen in all T steps.
    """
    twin, noise = float64_twin(agent), noise.double()
    if not _agree(Actor(twin, noise), CompiledActor(twin, noise), noise, obs):
        return False
    move_weights(twin)
    if not _agree(Actor(twin, noise), CompiledActor(twin, noise), noise, obs):
        return False
    # how it draws, from parameters that are further apart than those of a fresh policy
    fast = CompiledActor(twin, noise)
    width = twin.distribution.num_params - twin.distribution.num_free
    outputs = 3 * torch.arange(noise[..., 0].numel() * width).cos().double().view(-1, width)
    drawn = fast.draw(outputs.numpy(), (noise * fast.scale).flatten(0, 1).numpy())
    plain = twin.distribution.sample(twin.with_log_std(outputs), noise.flatten(0, 1))
    return is_close(plain.double(), torch.from_numpy(drawn).double())


def _agree(plain: Actor, fast: Actor, noise: Tensor, obs: Array) -> bool:
    """Return True if both choose the same actions, from the same parameters."""
    expected, actions = (torch.from_numpy(np.stack([each.act(obs) for _ in noise])).double() for each in (plain, fast))
    return is_close(plain.params(), fast.params()) and is_close(expected, actions)


class CompiledActor(Actor):
    """An Actor whose steps are compiled: actions are the most probable ones of perturbed parameters.

    Attributes:
        scale: factor of the noise: free standard deviations, else one.
    """

    row_multiple = 1  # a row gives the same bits in any batch

    def __init__(self, agent: Agent, noise: Tensor) -> None:
        """See `Actor`; `has_compiled_actor(agent)` must hold."""
        super().__init__(agent, noise)
        # mean + std * noise is the mode of a normal with that mean; free deviations do not change
        # during a rollout, so all noise is scaled here, once
        free = agent.log_std
        self.scale = torch.ones(()) if free is None else agent.bounded(free).exp()
        scaled = self._noise if free is None else self._noise * self.scale
        self._scaled_noise, self._step = scaled.contiguous().numpy(), 0
        self._outputs = np.empty_like(self._scaled_noise)
        self._is_raw = agent.obs_moments is None and agent.encoder.is_identity(agent.dtype)
        self._is_categorical = isinstance(agent.distribution, Categorical)
        self._compiled = CompiledAgent(agent, torch.cat([each.detach().flatten() for each in agent.parameters()]))
        library = kernels(agent.dtype)
        assert library is not None
        self._library = library
        library.transpose(self._compiled.pointer)
        # addresses of the first step's, and the bytes of a step
        self._noise_at, self._outputs_at = _address(self._scaled_noise), _address(self._outputs)
        self._stride = self._outputs.nbytes // len(self._outputs)

    def act(self, obs: Array) -> Array:
        """See `Actor.act`."""
        if self._step == len(self._outputs):
            raise IndexError("all steps of the rollout have been taken")
        if not self._is_raw:
            obs = self._agent.inputs(torch.from_numpy(obs)).numpy()
        obs, at = np.ascontiguousarray(obs), self._step * self._stride
        drawn, *places = self._to_draw(len(obs))
        self._library.act(
            self._compiled.pointer, _address(obs), len(obs), self._noise_at + at, self._outputs_at + at, *places
        )
        self._step += 1
        return self._as_stored(drawn)

    def draw(self, outputs: Array, scaled_noise: Array) -> Array:
        """Draw actions `[B, *action_shape]` from the policy network's outputs, `[B, n]`."""
        drawn, *places = self._to_draw(len(outputs))
        self._library.draw(_address(outputs), _address(scaled_noise), *outputs.shape, *places)
        return self._as_stored(drawn)

    def _to_draw(self, rows: int) -> tuple[Array, int | None, int | None]:
        """Return memory for draws, and its address as choices and as perturbed parameters."""
        if self._is_categorical:
            drawn = np.empty(rows, np.int64)
            return drawn, _address(drawn), None
        drawn = np.empty((rows, self._outputs.shape[-1]), self._outputs.dtype)
        return drawn, None, _address(drawn)

    def _as_stored(self, drawn: Array) -> Array:
        """Return draws as a rollout stores them."""
        # argmax(logits + gumbel), mode(logit + logistic) or mean + std * normal
        return drawn if self._is_categorical else self._agent.distribution.mode(torch.from_numpy(drawn)).numpy()

    def params(self) -> Tensor:
        """See `Actor.params`."""
        return self._agent.with_log_std(torch.from_numpy(self._outputs[: self._step]))


def _address(array: Array) -> int:
    # in a third of the time of `array.ctypes.data`
    address: int = array.__array_interface__["data"][0]
    return address
