"""Collection of a rollout: the agent acts in its environments for T steps."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.rollouts.buffer import Episode, Rollout, RolloutBuffer, RolloutStats
from fabric_ppo.rollouts.episodes import ended_episodes
from fabric_ppo.rollouts.info_totals import InfoTotals
from fabric_ppo.rollouts.stepping import step_environments
from fabric_ppo.rollouts.values import value_rollout
from fabric_ppo.seeding import action_uniforms


@torch.no_grad()
def collect(agent: Agent, buffer: RolloutBuffer, seed: int, update: int, with_values: bool = True) -> Rollout:
    """Step the environments T times, and compute the values of all observations.

    In a step the agent only chooses actions. Values are computed in one pass at the end, because the
    weights do not change meanwhile; log-probabilities come from the distributions' parameters. If a
    network encodes the observations, values are computed from its outputs in the steps.

    Args:
        agent: the plain module, not a wrapped one.
        buffer: memory for the rollout, which starts from the last observations in it.
        seed: the run's seed.
        update: number of the rollout; with `seed` it determines the action noise.
        with_values: False: all values are NaN, until `revalue`.

    Raises:
        EnvironmentFault: an environment failed, or returned a value that is not finite.
    """
    started = time.perf_counter()
    buffer.start()
    noise, tensors = _noise(agent, buffer, seed, update), buffer.tensors
    actor = step_environments(agent, buffer, noise)
    params = actor.params().flatten(0, 1).to(tensors.actions.device)
    # of the parameters that the actions were drawn with: the ratio of the first minibatch is 1
    log_probs = agent.distribution.log_prob(params, tensors.actions.flatten(0, 1)).view(tensors.rewards.shape)
    unknown = torch.full_like(log_probs, torch.nan)
    values, next_values = value_rollout(agent, buffer, actor) if with_values else (unknown, unknown)
    moments, crossed = _moments(agent, buffer), actor.observations()
    rewards = buffer.rewards_to_learn()
    episodes = ended_episodes(buffer)
    stats = _stats(buffer, episodes, time.perf_counter() - started)
    return Rollout(
        obs=tensors.obs[:-1] if crossed is None else crossed,
        actions=tensors.actions,
        log_probs=log_probs,
        importance=torch.ones_like(log_probs),
        values=values,
        rewards=rewards if agent.reward_scale is None else agent.reward_scale(rewards),
        terminated=tensors.terminated | tensors.lost_life,
        truncated=tensors.truncated,
        valid=tensors.valid,
        next_values=next_values,
        memory=tensors.memory[:-1],
        begins=tensors.begins[:-1],
        moments=moments,
        episodes=episodes,
        stats=stats,
        snapshot=buffer.snapshot(),
        info=InfoTotals.of(buffer.envs.info_keys, (ending.readings for _, ending in buffer.endings)),
    )


def _stats(buffer: RolloutBuffer, episodes: list[Episode], seconds: float) -> RolloutStats:
    """Return the numbers of the rollout in `buffer`, which took `seconds`."""
    return RolloutStats(
        env_steps=int(buffer.valid.sum()),
        seconds=seconds,
        env_restarts=buffer.envs.restarts,
        num_episodes=len(episodes),
        return_sum=sum(each.ret for each in episodes),
        length_sum=sum(each.length for each in episodes),
    )


def _noise(agent: Agent, buffer: RolloutBuffer, seed: int, update: int) -> Tensor:
    """Draw the action noise of the whole rollout, `[T, N, noise_size]`."""
    distribution, steps, n = agent.distribution, buffer.num_steps, buffer.num_envs
    size = distribution.noise_size
    drawn = action_uniforms(seed, update, buffer.first_env, n, steps, size)
    return distribution.noise(torch.from_numpy(drawn)).to(agent.dtype)


def _moments(agent: Agent, buffer: RolloutBuffer) -> Tensor:
    """Compute `Rollout.moments`; store the discounted returns in progress in the buffer."""
    tensors = buffer.tensors
    # rows that are no transitions are left out: their number differs between backends
    sums, valid = [torch.zeros(0, dtype=torch.float64)], tensors.valid
    for statistics, encoder in ((agent.obs_moments, agent.encoder), (agent.critic_moments, agent.critic_encoder)):
        if statistics is not None and encoder is not None:
            seen = tensors.obs[:-1][valid]
            sums.append(statistics.sums(encoder.boxes(seen, torch.float64)))
    if agent.reward_scale is not None:
        ended = tensors.terminated | tensors.lost_life | tensors.truncated
        carried = torch.from_numpy(buffer.discounted).to(ended.device)
        so_far, carried = agent.reward_scale.discounted(buffer.rewards_to_learn(), ended, carried)
        buffer.discounted = carried.cpu().numpy()
        sums.append(agent.reward_scale.sums(so_far[valid].unsqueeze(-1)))
    return torch.cat([each.cpu() for each in sums])
