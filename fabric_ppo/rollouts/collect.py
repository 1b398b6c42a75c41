"""Collection of a rollout: the agent acts in its environments for T steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.envs.actions import ActionConverter
from fabric_ppo.envs.torch_settings import torch_settings_kept
from fabric_ppo.process.profile import timed
from fabric_ppo.rollouts.actor import Actor
from fabric_ppo.rollouts.buffer import Episode, Rollout, RolloutBuffer, RolloutStats
from fabric_ppo.rollouts.episodes import ended_episodes
from fabric_ppo.rollouts.info_totals import InfoTotals
from fabric_ppo.rollouts.values import value_rollout
from fabric_ppo.seeding import action_uniforms


@torch.no_grad()
def collect(agent: Agent, buffer: RolloutBuffer, seed: int, update: int, with_values: bool = True) -> Rollout:
    """Step the environments T times, and compute the values of all observations.

    In a step the agent only chooses actions. Values follow in one pass at the end, as the weights
    do not change meanwhile, and log-probabilities from the distributions' parameters. Where a network
    encodes the observations, values are computed from what it made of them in the steps.

    Args:
        agent: the plain module, not a wrapped one.
        buffer: arrays to write into; the rollout starts from the last observations in it.
        seed: the run's seed.
        update: number of the rollout; with `seed` it determines the action noise.
        with_values: false leaves NaN for all values, until `revalue`.

    Raises:
        EnvironmentFault: an environment failed, or returned a value that is not finite.
    """
    started = time.perf_counter()
    buffer.start()
    noise = _noise(agent, buffer, seed, update)
    actor = _step_environments(agent, buffer, noise)
    params = actor.params().flatten(0, 1)
    actions = torch.from_numpy(buffer.actions)
    # of the parameters that the actions were drawn with: the ratio of the first minibatch is 1
    log_probs = agent.distribution.log_prob(params, actions.flatten(0, 1)).view(buffer.rewards.shape)
    unknown = torch.full_like(log_probs, torch.nan)
    values, next_values = value_rollout(agent, buffer, actor) if with_values else (unknown, unknown)
    moments = _moments(agent, buffer)
    rewards = buffer.rewards_to_learn()
    episodes = ended_episodes(buffer)
    stats = _stats(buffer, episodes, time.perf_counter() - started)
    return Rollout(
        obs=torch.from_numpy(buffer.obs[: buffer.num_steps]),
        actions=actions,
        log_probs=log_probs,
        importance=torch.ones_like(log_probs),
        values=values,
        rewards=rewards if agent.reward_scale is None else agent.reward_scale(rewards),
        terminated=torch.from_numpy(buffer.terminated | buffer.lost_life),
        truncated=torch.from_numpy(buffer.truncated),
        valid=torch.from_numpy(buffer.valid),
        next_values=next_values,
        memory=torch.from_numpy(buffer.memory[: buffer.num_steps]),
        begins=torch.from_numpy(buffer.begins[: buffer.num_steps]),
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


def _step_environments(agent: Agent, buffer: RolloutBuffer, noise: Tensor) -> Actor:
    """Fill the buffer; return what acted."""
    buffer.finals, buffer.endings = [], []
    # the observation after the last rollout is the first of this one
    buffer.obs[0], buffer.memory[0] = buffer.obs[-1], buffer.memory[-1]
    envs, n = buffer.envs, buffer.num_envs
    actor, obs = buffer.make_actor(agent, noise, buffer.obs[0]), buffer.obs[0]
    actor.memory[:n] = torch.from_numpy(buffer.memory[0]).to(agent.device)
    to_env_actions = ActionConverter(envs.spec.action)
    act, step = timed("policy")(actor.act), timed("environment")(envs.step)
    # environments write their results into the buffer, without a copy
    outputs = zip(buffer.obs[1:], buffer.rewards, buffer.terminated, buffer.truncated, buffer.valid, strict=True)
    with torch_settings_kept(), _one_thread():
        for t, into in enumerate(outputs):
            actions = buffer.actions[t] = act(obs).astype(buffer.actions.dtype, copy=False)
            finals = step(to_env_actions(actions), *into)
            buffer.finals += [(t, final) for final in finals]
            if envs.endings:
                buffer.endings += [(t, ending) for ending in envs.endings]
            if envs.lost_life is not None:
                buffer.lost_life[t] = envs.lost_life
            obs = into[0]
            if agent.memory is not None:
                _remember(buffer, actor, t, [final.env for final in finals])
    return actor


def _remember(buffer: RolloutBuffer, actor: Actor, t: int, ended: list[int]) -> None:
    """Store the memory after step `t`, cleared in the environments whose episode `ended`."""
    # a row that is no transition lies between two episodes: the next one begins after it
    begins = buffer.begins[t + 1]
    np.logical_not(buffer.valid[t], out=begins)
    begins[ended] = True
    memory = actor.memory[: buffer.num_envs]
    memory[torch.from_numpy(begins)] = 0
    torch.from_numpy(buffer.memory[t + 1]).copy_(memory)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread within the block."""
    # products of a few rows gain nothing from threads, and environments may need the cores
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _noise(agent: Agent, buffer: RolloutBuffer, seed: int, update: int) -> Tensor:
    """Draw the action noise of the whole rollout, `[T, N, noise_size]`."""
    distribution, steps, n = agent.distribution, buffer.num_steps, buffer.num_envs
    size = distribution.noise_size
    drawn = action_uniforms(seed, update, buffer.first_env, n, steps, size)
    return distribution.noise(torch.from_numpy(drawn)).to(agent.dtype)


def _moments(agent: Agent, buffer: RolloutBuffer) -> Tensor:
    """Compute `Rollout.moments`; store the discounted returns in progress in the buffer."""
    # rows that are no transitions are left out: their number differs between backends
    sums, valid = [torch.zeros(0, dtype=torch.float64)], torch.from_numpy(buffer.valid)
    if agent.obs_moments is not None:
        seen = torch.from_numpy(buffer.obs[: buffer.num_steps])[valid]
        sums.append(agent.obs_moments.sums(agent.encoder.boxes(seen, torch.float64)))
    if agent.reward_scale is not None:
        ended = torch.from_numpy(buffer.terminated | buffer.lost_life | buffer.truncated)
        carried = torch.from_numpy(buffer.discounted)
        rewards = buffer.rewards_to_learn()
        so_far, carried = agent.reward_scale.discounted(rewards, ended, carried)
        buffer.discounted = carried.numpy()
        sums.append(agent.reward_scale.sums(so_far[valid].unsqueeze(-1)))
    return torch.cat(sums)
