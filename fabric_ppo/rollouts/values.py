"""Values of a rollout's observations, from the agent that acted or from a later one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.envs.tensor_contract import TensorEnvs
from fabric_ppo.process.profile import timed
from fabric_ppo.rollouts.actor import Actor
from fabric_ppo.rollouts.buffer import Rollout, RolloutBuffer

_ROWS_PER_PASS = {"cpu": 2048, "cuda": 2**16}
"""Device -> rows of a pass: on the CPU few enough that malloc reuses the memory between layers of 64 units.

Values then take two thirds of the time. A GPU takes as many as fit beside everything else.
"""


@timed("values")
@torch.no_grad()
def value_rollout(agent: Agent, buffer: RolloutBuffer, actor: Actor) -> tuple[Tensor, Tensor]:
    """Compute the values of the buffer's observations and of their successors, `[T, N]` each.

    Args:
        agent: with the weights that acted.
        buffer: holds the observations.
        actor: actor of the rollout, whose `inputs` are used again.
    """
    obs, memory = buffer.tensors.obs, buffer.tensors.memory
    values, inputs = actor.values(obs.flatten(0, 1)), actor.inputs()
    if values is None and inputs is not None:  # but for the last observations, on which nothing acted
        encoded = torch.cat([inputs, agent.inputs(obs[-1].to(agent.device)).unsqueeze(0)])
        seen = [] if agent.critic_encoder is None else [obs.flatten(0, 1)]
        values = _in_passes(agent, agent.values_of_inputs, encoded.flatten(0, 1), memory.flatten(0, 1), *seen)
    elif values is None:
        values = _in_passes(agent, agent.values, obs.flatten(0, 1), memory.flatten(0, 1))
    # the value of row t + 1 is that of the successor of row t, so that each is computed once
    values = values.to(obs.device).view(buffer.num_steps + 1, -1)
    return values[:-1], _next_values(agent, buffer, memory, values)


@timed("values")
@torch.no_grad()
def revalue(agent: Agent, buffer: RolloutBuffer, rollout: Rollout) -> Rollout:
    """Return a rollout with log-probabilities, values and importance of a later policy.

    The later policy is the proximal policy of the decoupled objective (arXiv 2110.00641, equation
    5). The surrogate is clipped around it, and multiplied by `importance`: the action's probability
    under the later policy, divided by that under the policy that acted.

    Args:
        agent: with the later weights.
        buffer: still holding the rollout.
        rollout: as collected.
    """
    memory, actions = _remembered(agent, buffer), buffer.tensors.actions
    # the last observations need a value only, but rows of one pass all have an action
    actions = torch.cat([actions, actions[-1:]])
    rows = (each.flatten(0, 1) for each in (buffer.tensors.obs, actions, memory))
    both = _in_passes(agent, lambda *rows: torch.stack(agent.log_probs_and_values(*rows), -1), *rows)
    log_probs, values = both.view(buffer.num_steps + 1, buffer.num_envs, 2).unbind(-1)
    log_probs = log_probs[:-1]
    return replace(
        rollout,
        memory=memory[:-1],
        log_probs=log_probs,
        importance=(log_probs - rollout.log_probs).exp(),
        values=values[:-1],
        next_values=_next_values(agent, buffer, memory, values),
    )


def _remembered(agent: Agent, buffer: RolloutBuffer) -> Tensor:
    """Return the agent's memory before each step and after the last, `[T + 1, N, memory_size]`."""
    memory = buffer.tensors.memory
    if agent.memory is None:
        return memory
    # recomputed with the agent's present weights, from the memory with which the rollout began
    before, device = [memory[0].to(agent.device)], agent.device
    all_obs, begins = buffer.tensors.obs, buffer.tensors.begins[1:]
    for obs, begin in zip(all_obs.to(device), begins.to(device), strict=False):
        _, after = agent.remember(agent.features(obs), before[-1])
        before.append(after.masked_fill(begin.unsqueeze(-1), 0))
    return torch.stack(before).to(memory.device)


def _next_values(agent: Agent, buffer: RolloutBuffer, memory: Tensor, values: Tensor) -> Tensor:
    """Return the values of the true successors, `[T, N]`.

    Args:
        agent: computes values.
        buffer: holds the final observations.
        memory: a recurrent agent's, `[T + 1, N, memory_size]`.
        values: those of all observations, `[T + 1, N]`.
    """
    # the successor of a row is the next row, but where a truncated episode would have gone on from
    # its final observation: there the next row is the first of another episode. After termination
    # the value does not count
    next_values = values[1:].clone()
    at, final_obs = _cut_off(buffer)
    if final_obs is None:
        # unknown observations: the values of those before them are the closest that is known
        next_values[at] = values[:-1][at]
    elif len(final_obs):
        after = memory[at]
        if agent.memory is not None:
            obs = buffer.tensors.obs[at].to(agent.device)
            after = agent.remember(agent.features(obs), after.to(agent.device))[1]
        next_values[at] = _in_passes(agent, agent.values, final_obs, after)
    return next_values


def _cut_off(buffer: RolloutBuffer) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Return the places `(t, env)` of truncated episodes and their final observations; None for hidden ones.

    Those whose final observation is the next row of the rollout are left out.
    """
    envs, tensors = buffer.envs, buffer.tensors
    if not isinstance(envs, TensorEnvs):
        cut = [(t, final) for t, final in buffer.finals if buffer.truncated[t, final.env]]
        at = torch.tensor([(t, final.env) for t, final in cut], dtype=torch.int64).view(-1, 2).unbind(1)
        stacked = np.stack([final.obs for _, final in cut]) if cut else buffer.obs[:0]
        return at, torch.from_numpy(stacked.astype(buffer.obs.dtype, copy=False))
    if envs.finals == "next row":
        return (), tensors.obs[:0]
    at = (tensors.truncated & ~tensors.terminated).nonzero(as_tuple=True)
    return at, None if buffer.final_obs is None or envs.finals == "hidden" else buffer.final_obs[at]


def _in_passes(agent: Agent, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return `function(*inputs)` for `inputs [B, ...]`, computed in passes of some rows.

    It is called on the agent's device; the result `[B, ...]` is on that of the inputs.
    """
    rows = _ROWS_PER_PASS.get(agent.device.type, 2048)
    parts = zip(*(each.split(rows) for each in inputs), strict=True)
    outputs = [function(*(each.to(agent.device) for each in part)).to(inputs[0].device) for part in parts]
    return torch.cat(outputs)
