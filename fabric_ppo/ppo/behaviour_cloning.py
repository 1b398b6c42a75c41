"""Behaviour cloning: policy and value function from demonstrations, from which PPO can start.

The policy maximises the likelihood of the demonstrated actions (Pomerleau, 1988; the name is that of
arXiv 1805.01954, section 3), the value function regresses to discounted returns R:

    L = -E[log pi(a | s)] + vf_coef * E[(V(s) - R)^2] / 2 - ent_coef * E[H(pi(. | s))]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fabric_ppo.agents.agent import Agent
from fabric_ppo.config import Config
from fabric_ppo.ppo.demonstrated import ROWS_AT_ONCE, Episodes, Indices, Minibatch, make_episodes, take_statistics
from fabric_ppo.ppo.loss import Coefficients
from fabric_ppo.ppo.schedules import coefficients, set_learning_rate
from fabric_ppo.process.errors import ConfigError, TrainingError
from fabric_ppo.rollouts.demonstrations import Demonstrations
from fabric_ppo.seeding import Stream, minibatch_order

_IMPOSSIBLE = -1e7
"""Log-probability below which a mask has excluded an action."""


class EpochResult(NamedTuple):
    """Numbers of an epoch; NaN for those that it does not have.

    Attributes:
        train_nll, value_loss: means over the epoch's minibatches, as they were trained on: negative
            log-likelihood in nats, and half the squared error of the values.
        validation_nll: negative log-likelihood of the episodes held out, after the epoch.
        accuracy: for choices in these, share of the rows in which the greedy policy makes the same
            choices.
        squared_error: for Boxes in these, squared distance of the stored actions to the greedy
            policy's, mean over entries and rows. Nested actions may have both.
    """

    train_nll: float
    value_loss: float
    validation_nll: float
    accuracy: float
    squared_error: float


def clone(
    agent: Agent,
    demonstrations: Demonstrations,
    optimizer: torch.optim.Optimizer,
    config: Config,
    epochs: int,
    validation: float,
    report: Callable[[int, EpochResult], None] = lambda epoch, result: None,
) -> list[EpochResult]:
    """Train an agent on demonstrations; keep the weights with the best score on held-out episodes.

    Args:
        agent: gets the weights, and the running statistics of the episodes to train on.
        demonstrations: demonstrations in its environment.
        optimizer: optimizer of the agent's weights.
        config: learning rate, coefficients, rows of a minibatch, and the seed.
        epochs: passes over the demonstrations.
        validation: share of the episodes that is held out; 0: none, and the last weights are kept.
        report: called after each epoch with its number, from 0 up.

    Returns:
        The numbers of each epoch.

    Raises:
        ConfigError: there is no episode to hold out, or a mask excludes an action.
        TrainingError: the loss is not finite.
    """
    train, held_out = _split(demonstrations.num_episodes, validation, config.seed)
    rewards = take_statistics(agent, demonstrations, train)
    episodes = make_episodes(demonstrations, agent, rewards, config.gamma)
    _require_possible(agent, episodes)
    results: list[EpochResult] = []
    best, weights = np.inf, copy.deepcopy(agent.state_dict())
    for epoch in range(epochs):
        set_learning_rate(optimizer, config, epoch, epochs)
        coefs = coefficients(config, epoch, epochs)
        targets = value_targets(agent, episodes)
        units = episodes.units(train)
        units = units[minibatch_order(config.seed, 0, epoch, len(units), Stream.CLONING)]
        minibatches = episodes.minibatches(units, config.per_rank_batch_size)
        losses = [_step(agent, each, targets, optimizer, coefs, config.max_grad_norm) for each in minibatches]
        nll, value_loss = torch.stack(losses).mean(0).tolist()
        if not np.isfinite(nll + value_loss):
            raise TrainingError(f"the loss is not finite in epoch {epoch + 1}; a smaller --learning-rate is expected")
        results.append(EpochResult(nll, value_loss, *validate(agent, episodes, held_out)))
        report(epoch, results[-1])
        # early stopping: later weights fit the episodes that they are trained on, and no others
        if not validation or results[-1].validation_nll < best:
            best, weights = results[-1].validation_nll, copy.deepcopy(agent.state_dict())
    agent.load_state_dict(weights)
    return results


def _split(num_episodes: int, validation: float, seed: int) -> tuple[Indices, Indices]:
    """Return the numbers of the episodes to train on, and of those to hold out, both sorted."""
    held_out = max(1, round(validation * num_episodes)) if validation else 0
    if held_out >= num_episodes:
        raise ConfigError(
            f"--validation {validation:g}: it holds out {held_out} of {num_episodes} demonstrated episodes, "
            "and one is needed to train on; --validation 0 holds out none"
        )
    order = minibatch_order(seed, 1, 0, num_episodes, Stream.CLONING)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _step(
    agent: Agent,
    minibatch: Minibatch,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    coefs: Coefficients,
    max_grad_norm: float,
) -> Tensor:
    """Take a gradient step; return negative log-likelihood and value loss, `[2]` float64."""
    weights = minibatch.weights
    new = agent(minibatch.obs, minibatch.actions, minibatch.sequences)
    nll = -torch.dot(weights, new.log_probs)
    value_loss = 0.5 * torch.dot(weights, (new.values - targets[minibatch.rows.flatten()]).square())
    entropy = torch.dot(weights, new.entropy)
    optimizer.zero_grad()
    (nll + coefs.vf_coef * value_loss - coefs.ent_coef * entropy).backward()
    nn.utils.clip_grad_norm_(agent.parameters(), max_grad_norm)
    optimizer.step()
    agent.clamp_log_std()
    return torch.stack([nll, value_loss]).detach().double()


@torch.no_grad()
def value_targets(agent: Agent, episodes: Episodes) -> Tensor:
    """Return the returns of all rows, `[R]`, with present values of truncated episodes' final observations."""
    if not bool(episodes.discounts.any()):
        return episodes.returns
    if agent.memory is None:
        finals = episodes.obs[torch.from_numpy(episodes.last)]
        values = torch.cat([agent.values(part) for part in finals.split(ROWS_AT_ONCE)])
    else:
        # with what the agent remembers there: a pass along the whole episodes
        parts = []
        for each in episodes.minibatches(np.arange(len(episodes.last)), ROWS_AT_ONCE):
            along = agent(each.obs, each.actions, each.sequences).values.view(each.rows.shape)
            lengths = (each.rows[:, -1:] - each.rows[:, :1]).long()
            parts.append(along.gather(1, lengths).squeeze(1))
        values = torch.cat(parts)
    lengths = torch.from_numpy(episodes.last - episodes.first + 1)
    return episodes.returns + episodes.discounts * values.repeat_interleave(lengths)


@torch.no_grad()
def validate(agent: Agent, episodes: Episodes, numbers: Indices) -> tuple[float, float, float]:
    """Return the last three numbers of an EpochResult, over some episodes."""
    sums, is_box = torch.zeros(4, dtype=torch.float64), _is_box(agent).flatten()
    for each in episodes.minibatches(episodes.units(numbers), ROWS_AT_ONCE):
        counts = each.weights > 0
        log_probs = agent(each.obs, each.actions, each.sequences).log_probs
        played = _greedy(agent, each.obs.view(*each.rows.shape, *each.obs.shape[1:]))
        differences = (played - each.actions).reshape(len(counts), -1).double()
        matches, errors = (differences[:, ~is_box] == 0).all(1), differences[:, is_box].square().mean(1)
        sums += torch.stack([column[counts].double().sum() for column in (-log_probs, matches, errors, counts)])
    # of no episodes 0 / 0, which is NaN, as is the mean over no entry
    nll, accuracy, squared_error = (sums[:3] / sums[3]).tolist()
    return nll, np.nan if is_box.all() else accuracy, squared_error


def _is_box(agent: Agent) -> Tensor:
    """Return which entries of a stored action are numbers of a Box, `[*action_shape]` bool."""
    leaves = [torch.full((leaf.size,), leaf.kind == "box") for _, leaf in agent.spec.action.leaves]
    return torch.cat(leaves).view(agent.distribution.action_shape)


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
    is_box = _is_box(agent)
    for number, (first, last) in enumerate(zip(episodes.first.tolist(), episodes.last.tolist(), strict=True)):
        obs, memory = episodes.obs[first:last], torch.zeros(last - first, agent.memory_size)
        # numbers do not count: far from their mean their density may be as small as any
        actions = torch.where(is_box, agent.act(obs, None, memory)[0], episodes.actions[first:last])
        log_probs, _ = agent.log_probs_and_values(obs, actions, memory)
        if bool((log_probs < _IMPOSSIBLE).any()):
            place = f"in step {int(log_probs.argmin())} of episode {number}"
            raise ConfigError(f"an action that its action_mask excludes, {place}; a possible one is expected")
