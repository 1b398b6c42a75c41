"""Behaviour cloning: a policy that acts as demonstrations do, and their values, to begin PPO with.

The policy maximises the likelihood of the demonstrated actions (Pomerleau, 1988; the name is that of
arXiv 1805.01954, section 3), the value function regresses to discounted returns:

    L = -E[log pi(a | s)] + vf_coef * E[(V(s) - R)^2] / 2 - ent_coef * E[H(pi(. | s))]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fabric_ppo.agents.agent import NO_MEMORY, Agent
from fabric_ppo.config import Config
from fabric_ppo.envs.actions import ActionConverter
from fabric_ppo.ppo.batch import cut
from fabric_ppo.ppo.schedules import set_learning_rate
from fabric_ppo.process.errors import ConfigError, TrainingError
from fabric_ppo.rollouts.demonstrations import Demonstrations
from fabric_ppo.seeding import Stream, minibatch_order

_ROWS_AT_ONCE = 4096
"""Rows of a pass without gradient."""
_IMPOSSIBLE = -1e7
"""Log-probability below which an action has been excluded by a mask."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Episodes:
    """Demonstrations as an agent trains on them: an episode's T rows, and one of its final observation.

    Attributes:
        obs, actions: `[R, ...]`, raw observations and stored actions; R = S + E.
        returns: `[R]`, discounted sums of the demonstrated rewards from a row on.
        discounts: `[R]`, factors of the final observation's value in the row's return, 0 where the
            episode terminated.
        first, last: `[E]`, each episode's first row, and that of its final observation.
    """

    obs: Tensor
    actions: Tensor
    returns: Tensor
    discounts: Tensor
    first: Indices
    last: Indices


class EpochResult(NamedTuple):
    """Numbers of an epoch; NaN where there is no validation.

    Attributes:
        train_nll, value_loss: means over the epoch's minibatches: negative log-likelihood in nats,
            and half the squared error of the values, as they were trained on.
        validation_nll: the same of the episodes held out, after the epoch.
        match: in these, share of actions that the greedy policy takes, too, or for continuous
            actions the mean squared error of its actions, as they are stored.
    """

    train_nll: float
    value_loss: float
    validation_nll: float
    match: float


class Minibatch(NamedTuple):
    """Rows of a forward pass.

    Attributes:
        rows: `[n, L]`, numbers of rows: n single ones, or n whole episodes of a recurrent agent, the
            shorter ones filled up with their last row.
        weights: `[n * L]`, 0 for final observations; their sum is 1.
        sequences: as `Memory.along` takes them.
    """

    rows: Indices
    weights: Tensor
    sequences: Tensor


def discounted_returns(demonstrations: Demonstrations, rewards: NDArray[np.float64], gamma: float) -> Tensor:
    """Compute the returns of the demonstrated rewards, and the discounts of what came after them.

    An episode that was truncated would have gone on: its return from row t on is
    `R[t] + gamma^(T - t) * V(final observation)`, bootstrapped as in PPO. The discount is 0 where the
    episode terminated.

    Returns:
        R and the discounts, `[2, S]` float64.
    """
    ended, truncated = demonstrations.terminated | demonstrations.truncated, ~demonstrations.terminated
    columns, after, discount = np.zeros((2, len(rewards))), 0.0, 0.0
    for row in range(len(rewards) - 1, -1, -1):
        if ended[row]:
            after, discount = 0.0, float(truncated[row])
        after, discount = rewards[row] + gamma * after, gamma * discount
        columns[:, row] = after, discount
    return torch.from_numpy(columns)


def make_episodes(demonstrations: Demonstrations, agent: Agent, rewards: NDArray[np.float64], gamma: float) -> Episodes:
    """Lay out demonstrations for an agent, each episode followed by its final observation."""
    starts = np.flatnonzero(demonstrations.episode_starts)
    ends = np.append(starts[1:], len(rewards))
    # each episode before this one has a row more
    number = np.arange(len(starts))
    places = np.arange(len(rewards)) + np.cumsum(demonstrations.episode_starts) - 1
    total, first, last = len(rewards) + len(starts), starts + number, ends + number
    obs = np.empty((total, *demonstrations.obs.shape[1:]), demonstrations.obs.dtype)
    obs[places], obs[last] = demonstrations.obs, demonstrations.final_obs
    stored = ActionConverter(agent.spec.action).stored(demonstrations.actions)
    actions = np.zeros((total, *stored.shape[1:]), stored.dtype)
    # nobody looks at the action after the end: any will do that is one
    actions[places], actions[last] = stored, stored[ends - 1]
    columns = torch.zeros(2, total, dtype=torch.float64)
    columns[:, torch.from_numpy(places)] = discounted_returns(demonstrations, rewards, gamma)
    returns, discounts = columns.to(agent.dtype)
    dtype = agent.distribution.action_dtype
    return Episodes(torch.from_numpy(obs), torch.from_numpy(actions).to(dtype), returns, discounts, first, last)


def take_statistics(agent: Agent, demonstrations: Demonstrations, numbers: Indices) -> NDArray[np.float64]:
    """Add some episodes to the agent's running statistics; return the rewards to learn, `[S]`.

    These are signs in Atari games, and divided where the agent scales rewards, as in a rollout.
    """
    episode = np.cumsum(demonstrations.episode_starts) - 1
    taken = torch.from_numpy(np.flatnonzero(np.isin(episode, numbers)))
    rewards = torch.from_numpy(np.sign(demonstrations.rewards) if agent.spec.is_atari else demonstrations.rewards)
    sums = [torch.zeros(0, dtype=torch.float64)]
    if agent.obs_moments is not None:
        obs = torch.from_numpy(demonstrations.obs)
        parts = [agent.encoder.boxes(obs[rows], torch.float64) for rows in taken.split(_ROWS_AT_ONCE)]
        sums.append(torch.stack([agent.obs_moments.sums(part) for part in parts]).sum(0))
    if agent.reward_scale is not None:
        ended = torch.from_numpy(demonstrations.terminated | demonstrations.truncated)
        so_far, _ = agent.reward_scale.discounted(rewards[:, None], ended[:, None], torch.zeros(1).double())
        sums.append(agent.reward_scale.sums(so_far[taken]))
    agent.update_statistics(torch.cat(sums))
    scaled = rewards if agent.reward_scale is None else agent.reward_scale(rewards)
    to_learn: NDArray[np.float64] = scaled.numpy()
    return to_learn


def clone(
    agent: Agent,
    demonstrations: Demonstrations,
    config: Config,
    epochs: int,
    validation: float,
    report: Callable[[int, EpochResult], None] = lambda epoch, result: None,
) -> list[EpochResult]:
    """Train an agent on demonstrations; it ends with the weights that explained held-out ones best.

    Args:
        agent: gets the weights, and the running statistics of what it trains on.
        demonstrations: of its environment.
        config: optimizer, coefficients, rows of a minibatch, and the seed.
        epochs: passes over the demonstrations.
        validation: share of the episodes that is held out; 0: none, and the last weights are kept.
        report: called after each epoch with its number, from 0 up.

    Returns:
        The numbers of each epoch.

    Raises:
        ConfigError: there is no episode to hold out, or an action is excluded by its mask.
        TrainingError: the loss is not finite any more.
    """
    train, held_out = _split(demonstrations.num_episodes, validation, config.seed)
    rewards = take_statistics(agent, demonstrations, train)
    episodes = make_episodes(demonstrations, agent, rewards, config.gamma)
    _require_possible(agent, episodes)
    optimizer = torch.optim.Adam(agent.parameters(), config.learning_rate, eps=config.adam_eps)
    results: list[EpochResult] = []
    best, weights = np.inf, copy.deepcopy(agent.state_dict())
    for epoch in range(epochs):
        set_learning_rate(optimizer, config, epoch, epochs)
        # constant within an epoch, as value targets are within an update of PPO
        targets = _targets(agent, episodes)
        units = _units(agent, episodes, train)
        units = units[minibatch_order(config.seed, 0, epoch, len(units), Stream.CLONING)]
        minibatches = _minibatches(agent, episodes, units, config.per_rank_batch_size)
        losses = [_step(agent, episodes, each, targets, optimizer, config) for each in minibatches]
        nll, value_loss = torch.stack(losses).mean(0).tolist()
        if not np.isfinite(nll + value_loss):
            raise TrainingError(f"the loss is not finite in epoch {epoch + 1}; a smaller --learning-rate is expected")
        results.append(EpochResult(nll, value_loss, *score(agent, episodes, held_out)))
        report(epoch, results[-1])
        # early stopping: later weights may only remember
        if not len(held_out) or results[-1].validation_nll < best:
            best, weights = results[-1].validation_nll, copy.deepcopy(agent.state_dict())
    agent.load_state_dict(weights)
    return results


def _split(num_episodes: int, validation: float, seed: int) -> tuple[Indices, Indices]:
    """Return the numbers of the episodes to train on, and of those to hold out, both sorted."""
    held_out = max(1, round(validation * num_episodes)) if validation else 0
    if held_out >= num_episodes:
        raise ConfigError(
            f"--validation {validation:g}: of {num_episodes} demonstrated episodes one is needed to train on, and one "
            "to hold out; --validation 0 holds out none"
        )
    order = minibatch_order(seed, 1, 0, num_episodes, Stream.CLONING)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _units(agent: Agent, episodes: Episodes, numbers: Indices) -> Indices:
    """Return what is permuted: numbers of rows, or for a recurrent agent those of whole episodes."""
    if agent.memory is not None:
        return numbers
    rows = [np.arange(episodes.first[number], episodes.last[number]) for number in numbers]
    return np.concatenate([np.arange(0), *rows])


def _minibatches(agent: Agent, episodes: Episodes, units: Indices, size: int) -> Iterator[Minibatch]:
    """Cut units into minibatches of about `size` rows, whose numbers of units differ by at most one."""
    rows = len(units) if agent.memory is None else int((episodes.last - episodes.first)[units].sum())
    count = min(-(-rows // size), len(units))
    for chunk in range(count):
        start, stop = cut(len(units), chunk, count)
        yield _minibatch(agent, episodes, units[start:stop])


def _minibatch(agent: Agent, episodes: Episodes, units: Indices) -> Minibatch:
    """Return the rows of some units."""
    if agent.memory is None:
        weights = torch.full((len(units),), 1 / len(units), dtype=agent.dtype)
        return Minibatch(units[:, None], weights, NO_MEMORY)
    first, last = episodes.first[units], episodes.last[units]
    rows = np.minimum(first[:, None] + np.arange((last - first).max() + 1), last[:, None])
    weights = torch.from_numpy(rows < last[:, None]).flatten().to(agent.dtype)
    # episodes begin with a memory of zeros, and none begins within another
    sequences = torch.zeros(len(units), agent.memory_size + rows.shape[1], dtype=agent.dtype)
    return Minibatch(rows, weights / weights.sum(), sequences)


def _step(
    agent: Agent,
    episodes: Episodes,
    minibatch: Minibatch,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    config: Config,
) -> Tensor:
    """Take a gradient step; return the negative log-likelihood and the value loss, `[2]` float64."""
    rows, weights = torch.from_numpy(minibatch.rows).flatten(), minibatch.weights
    new = agent(episodes.obs[rows], episodes.actions[rows], minibatch.sequences)
    nll = -torch.dot(weights, new.log_probs)
    value_loss = 0.5 * torch.dot(weights, (new.values - targets[rows]).square())
    loss = nll + config.vf_coef * value_loss - config.ent_coef * torch.dot(weights, new.entropy)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(agent.parameters(), config.max_grad_norm)
    optimizer.step()
    agent.clamp_log_std()
    return torch.stack([nll, value_loss]).detach().double()


@torch.no_grad()
def _targets(agent: Agent, episodes: Episodes) -> Tensor:
    """Return the value targets of all rows, `[R]`, with the present values of final observations."""
    if not bool(episodes.discounts.any()):
        return episodes.returns
    if agent.memory is None:
        obs = episodes.obs[torch.from_numpy(episodes.last)]
        values = torch.cat([agent.values(part) for part in obs.split(_ROWS_AT_ONCE)])
    else:
        # with the memory that the agent has there: a pass along the whole episodes
        ends = []
        for each in _minibatches(agent, episodes, np.arange(len(episodes.last)), _ROWS_AT_ONCE):
            rows, lengths = torch.from_numpy(each.rows).flatten(), np.diff(each.rows).sum(1, keepdims=True)
            along = agent(episodes.obs[rows], episodes.actions[rows], each.sequences).values
            ends.append(along.view(each.rows.shape).gather(1, torch.from_numpy(lengths)).squeeze(1))
        values = torch.cat(ends)
    lengths = torch.from_numpy(episodes.last - episodes.first + 1)
    return episodes.returns + episodes.discounts * values.repeat_interleave(lengths)


@torch.no_grad()
def score(agent: Agent, episodes: Episodes, numbers: Indices) -> tuple[float, float]:
    """Return the last two numbers of an EpochResult, over some episodes; NaN for none."""
    sums, units = torch.zeros(3, dtype=torch.float64), _units(agent, episodes, numbers)
    for each in _minibatches(agent, episodes, units, _ROWS_AT_ONCE):
        rows, counts = torch.from_numpy(each.rows).flatten(), each.weights > 0
        obs, actions = episodes.obs[rows], episodes.actions[rows]
        log_probs = agent(obs, actions, each.sequences).log_probs
        played = _greedy(agent, obs.view(*each.rows.shape, *obs.shape[1:]))
        played, actions = (each.view(len(rows), -1)[counts] for each in (played, actions))
        if actions.is_floating_point():
            matches = (played - actions).square().mean(1)
        else:
            matches = (played == actions).all(1).double()
        sums += torch.stack([log_probs[counts].double().sum(), matches.double().sum(), counts.double().sum()])
    log_likelihood, match, count = sums
    return float(-log_likelihood / count), float(match / count)


def _greedy(agent: Agent, obs: Tensor) -> Tensor:
    """Return the most probable actions along episodes `[n, L, ...]`, `[n * L, ...]`."""
    memory = torch.zeros(len(obs), agent.memory_size, dtype=agent.dtype)
    actions = []
    for step in obs.unbind(1):
        action, memory = agent.act(step, None, memory)
        actions.append(action)
    return torch.stack(actions, 1).flatten(0, 1)


@torch.no_grad()
def _require_possible(agent: Agent, episodes: Episodes) -> None:
    """Raise a ConfigError for an action that the mask in its observation excludes."""
    if not agent.encoder.num_masks:
        return
    for number, (first, last) in enumerate(zip(episodes.first.tolist(), episodes.last.tolist(), strict=True)):
        for rows in torch.arange(first, last).split(_ROWS_AT_ONCE):
            memory = torch.zeros(len(rows), agent.memory_size)
            log_probs, _ = agent.log_probs_and_values(episodes.obs[rows], episodes.actions[rows], memory)
            if bool((log_probs < _IMPOSSIBLE).any()):
                place = f"in step {int(rows[int(log_probs.argmin())]) - first} of episode {number}"
                raise ConfigError(f"an action that its action_mask excludes, {place}; a possible one is expected")
