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
from fabric_ppo.agents.host import HostCopy
from fabric_ppo.envs.contract import Array
from fabric_ppo.fast.compiled_agent import CompiledAgent, has_small_layers, is_small
from fabric_ppo.fast.compiled_convolutions import compile_convolutions
from fabric_ppo.fast.kernels import kernels
from fabric_ppo.fast.reasons import reasons_for_plain
from fabric_ppo.fast.twin import float64_twin, is_close, move_weights
from fabric_ppo.fast.written_for import ACTING, edited
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.rollouts import actor
from fabric_ppo.rollouts.actor import Actor

_STEPS = 16
"""Steps that are compared: so many draws that also a single environment shows a difference."""


class ActorChoice:
    """Choice of the actor for each rollout of a run: a CompiledActor where it can act for the agent.

    The plain one acts, and a line is printed, where the code that the CompiledActor stands for has been
    edited, or where both differ by more than rounding on the run's first observations. For a small
    agent on a GPU, whose environments are on the CPU, a copy acts there.
    """

    def __init__(self, agent: Agent) -> None:
        """Choose for an agent, without a comparison yet; compile what is missing."""
        # convolutions take longer on the CPU than observations on the way to a GPU
        is_copied = agent.device.type == "cuda" and is_small(agent) and not agent.encoder.has_weights
        self._host = HostCopy(agent) if is_copied else None
        self._can_compile = has_compiled_actor(agent if self._host is None else self._host.latest())
        edited(ACTING)  # reads these files, once, before training is timed
        compile_convolutions(agent)
        self._is_equal: bool | None = None
        self._compiled: CompiledAgent | None = None

    def __call__(self, agent: Agent, noise: Tensor, obs: Tensor) -> Actor:
        """Make the actor of a rollout.

        Args:
            agent: what acts.
            noise: `[T, N, noise_size]`.
            obs: `[N, ...]`, the rollout's first observations, on the environments' device.
        """
        if not obs.is_cpu:  # neither they nor actions leave that device
            return actor.Actor(agent, noise)
        if self._host is not None:
            agent = self._host.latest()
        if self._is_equal is None:
            self._is_equal = self._can_stand_for(agent, noise[:_STEPS], obs.numpy())
        if not self._is_equal:
            return actor.Actor(agent, noise)
        self._compiled = self._compiled or _with_own_weights(agent)
        return CompiledActor(agent, noise, self._compiled)

    def _can_stand_for(self, agent: Agent, noise: Tensor, obs: Array) -> bool:
        """Return True if the compiled actor equals the plain one; print a line where a change is why not."""
        reasons = reasons_for_plain(agent, "acting", ACTING)
        if not reasons and self._can_compile:
            if actors_agree(agent, noise, obs):
                return True
            reasons = ["edited or replaced: agents/"]
        if reasons and has_small_layers(agent):
            print_from_rank_zero(
                f"{'; '.join(reasons)}; acting follows this code, and not the faster fast/compiled_actor.py"
            )
        return False


def _with_own_weights(agent: Agent) -> CompiledAgent:
    return CompiledAgent(agent, _flatten(agent))


def _flatten(agent: Agent, out: Tensor | None = None) -> Tensor:
    """Return an agent's weights as one vector."""
    return torch.cat([each.detach().view(-1) for each in agent.parameters()], out=out)


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
    if not _agree(twin, Actor(twin, noise), CompiledActor(twin, noise), noise, obs):
        return False
    move_weights(twin)
    if not _agree(twin, Actor(twin, noise), CompiledActor(twin, noise), noise, obs):
        return False
    # how it draws, from parameters that are further apart than those of a fresh policy
    fast = CompiledActor(twin, noise)
    width = twin.distribution.num_params - twin.distribution.num_free
    outputs = 3 * torch.arange(noise[..., 0].numel() * width).cos().double().view(-1, width)
    drawn = fast.draw(outputs.numpy(), (noise * fast.scale).flatten(0, 1).numpy())
    plain = twin.distribution.sample(twin.with_log_std(outputs), noise.flatten(0, 1))
    return is_close(plain.double(), torch.from_numpy(drawn).double())


@torch.no_grad()
def _agree(agent: Agent, plain: Actor, fast: Actor, noise: Tensor, obs: Array) -> bool:
    """Return True if both choose the same actions, from the same parameters, and compute the agent's values."""
    expected, actions = (torch.from_numpy(np.stack([each.act(obs) for _ in noise])).double() for each in (plain, fast))
    values = fast.values(torch.from_numpy(obs))
    has_values = values is None or is_close(agent.values(torch.from_numpy(obs)), values)
    return is_close(plain.params(), fast.params()) and is_close(expected, actions) and has_values


class CompiledActor(Actor):
    """An Actor whose steps are compiled: actions are the most probable ones of perturbed parameters.

    Attributes:
        scale: factors of the noise: free standard deviations for numbers, one for choices.
    """

    row_multiple = 1  # a row gives the same bits in any batch

    def __init__(self, agent: Agent, noise: Tensor, compiled: CompiledAgent | None = None) -> None:
        """See `Actor`; `has_compiled_actor(agent)` must hold.

        Args:
            agent: what acts, with its present weights.
            noise: `[T, N, noise_size]`.
            compiled: the agent's, with weights of its own, from an earlier rollout; None makes one.
        """
        super().__init__(agent, noise)
        # mean + std * noise is the mode of a normal with that mean; free deviations do not change
        # during a rollout, so all noise is scaled here, once
        free = agent.log_std
        self.scale = torch.ones(()) if free is None else agent.bounded(free).exp()
        if free is not None and (choices := noise.shape[-1] - len(free)):  # before the numbers
            self.scale = torch.cat([self.scale.new_ones(choices), self.scale])
        scaled = self.noise if free is None else self.noise * self.scale
        self._scaled_noise, self._step = scaled.contiguous().numpy(), 0
        self._outputs = np.empty_like(self._scaled_noise)
        # choices [T, N], or perturbed parameters [T, N, n]
        self._is_choice = isinstance(agent.distribution, Categorical)
        shape = self._outputs.shape[: 2 if self._is_choice else 3]
        self._drawn = np.empty(shape, np.int64 if self._is_choice else self._outputs.dtype)
        self._compiled = compiled or _with_own_weights(agent)
        _flatten(agent, self._compiled.weights)
        library = kernels(agent.dtype)
        assert library is not None
        self._library = library
        library.transpose(self._compiled.pointer)
        # where a step begins in them: an address is asked for once, which takes as long as a layer
        arrays = (self._scaled_noise, self._outputs, self._drawn)
        self._places = [(_address(each), each[0].nbytes) for each in arrays]
        self._seen, self._obs_at = self._obs.numpy(), self._obs.data_ptr()

    def act(self, obs: Array) -> Array:
        """See `Actor.act`."""
        step, num_envs = self._step, self._num_envs
        if step == len(self._outputs) or len(obs) != num_envs:
            raise IndexError(f"step {step} of {len(self._outputs)}, {len(obs)} of {num_envs} observations")
        if self._compiled.obs_dtype is None:
            with torch.no_grad():
                encoded = self._encode(torch.from_numpy(obs)).to(self._agent.dtype).contiguous()
            obs_at = encoded.data_ptr()
        else:
            self._seen[:], obs_at = obs, self._obs_at
        noise_at, outputs_at, drawn_at = [address + step * size for address, size in self._places]
        drawn = (drawn_at, None) if self._is_choice else (None, drawn_at)
        self._library.act(self._compiled.pointer, obs_at, num_envs, noise_at, outputs_at, *drawn)
        self._step += 1
        return self._as_stored(self._drawn[step])

    def choose(self, obs: Tensor) -> Tensor:
        """See `Actor.choose`."""
        return torch.from_numpy(self.act(obs.cpu().numpy()))

    def draw(self, outputs: Array, scaled_noise: Array) -> Array:
        """Draw actions `[B, *action_shape]` from the policy network's outputs, `[B, n]`."""
        chosen, perturbed = np.empty(len(outputs), np.int64), np.empty_like(outputs)
        drawn = (_address(chosen), None) if self._is_choice else (None, _address(perturbed))
        self._library.draw(_address(outputs), _address(scaled_noise), *outputs.shape, *drawn)
        return self._as_stored(chosen if self._is_choice else perturbed)

    def _as_stored(self, drawn: Array) -> Array:
        """Return draws as a rollout stores them."""
        # argmax(logits + gumbel), mode(logit + logistic) or mean + std * normal
        return drawn if self._is_choice else self._agent.distribution.mode(torch.from_numpy(drawn)).numpy()

    def values(self, obs: Tensor) -> Tensor | None:
        """See `Actor.values`."""
        dtype = self._compiled.obs_dtype
        if dtype is None:  # what acting made of the observations is there already
            return None
        obs, values = obs.to("cpu", dtype).contiguous(), torch.empty(len(obs), dtype=self._agent.dtype)
        self._library.values(self._compiled.pointer, obs.data_ptr(), len(obs), values.data_ptr())
        return values

    def params(self) -> Tensor:
        """See `Actor.params`."""
        return self._agent.with_log_std(torch.from_numpy(self._outputs[: self._step]))


def _address(array: Array) -> int:
    # in a third of the time of `array.ctypes.data`
    address: int = array.__array_interface__["data"][0]
    return address
