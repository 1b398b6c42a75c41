"""Collecting a rollout: the agent acts in its environments for T steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.acting import RecurrentActor, make_actor
from fabric_ppo.agent import Agent
from fabric_ppo.envs import FinalObs, VectorEnvs
from fabric_ppo.networks import ROWS_AT_A_TIME
from fabric_ppo.profile import timed
from fabric_ppo.replay import PastEpisode, Trail
from fabric_ppo.seeding import action_uniforms
from fabric_ppo.spaces import ActionConverter

_ROWS_PER_PASS = 2048
"""So few that malloc keeps the memory between layers of 64 units from pass to pass: values take two thirds as long."""


@dataclass(frozen=True, order=True)
class Episode:
    """An episode that ended: at step `t` of its rollout, in global environment `env`."""

    t: int
    env: int
    ret: float
    length: int


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments.

    Attributes:
        obs: `[T, N, ...]` in the environment's dtype, or normalised (`Agent.prepare`).
        actions: `[T, N, ...]` as drawn, before `spaces.ActionConverter`.
        log_probs, values: of the agent that acted (of a later one after `revalue`), `[T, N]`.
        importance: probability of the action under that agent over the one under the agent that acted, `[T, N]`.
        rewards: `[T, N]`, scaled where the agent does that; of Atari games their signs.
        terminated, truncated: `[T, N]` bool; a life lost in an Atari game counts as terminated.
        valid: `[T, N]` bool, false where a row is no transition.
        next_values: `[T, N]`, V of the true successor (of the final observation where the episode was truncated).
        episodes: those that ended, ordered by (t, env).
        env_steps: transitions among the T * N rows.
        seconds: what collecting took.
        memory: `[T, N, memory_size]`, what a recurrent agent remembered before each step.
        begins: `[T, N]` bool, where it had forgotten what was before, as an episode began in this rollout.
        moments: what these rows add to the agent's running statistics (`Agent.absorb`); empty where it has none.
        env_restarts: worker processes that had to be replaced since the run began.
        trail: what its environments' episodes can be rebuilt from.
    """

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    importance: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    next_values: Tensor
    episodes: list[Episode]
    env_steps: int
    seconds: float
    memory: Tensor
    begins: Tensor
    moments: Tensor
    env_restarts: int
    trail: Trail


class RolloutBuffer:
    """The memory of one rollout, written in place by each `collect`, and the episodes in progress.

    A Rollout refers to this memory: it is good until the next `collect`.
    """

    def __init__(self, envs: VectorEnvs, agent: Agent, num_steps: int, first_env: int) -> None:
        """Allocate for `num_steps` steps of `envs`.

        Args:
            envs: this rank's environments.
            agent: says what actions look like.
            num_steps: T.
            first_env: global id of the first environment.
        """
        t, n, spec, distribution = num_steps, envs.num_envs, envs.spec, agent.distribution
        self.envs = envs
        self.num_steps, self.num_envs, self.first_env = t, n, first_env
        self._started = False
        self.obs = np.zeros((t + 1, n, *spec.observation.shape), spec.observation.dtype)
        # the first matrix products of few rows round differently: N is padded, so that it does not matter
        padded = -(-n // ROWS_AT_A_TIME) * ROWS_AT_A_TIME
        self.staged_obs = np.zeros((padded, *spec.observation.shape), spec.observation.dtype)
        action = torch.zeros((), dtype=distribution.action_dtype).numpy()
        self.actions = np.zeros((t, n, *distribution.action_shape), action.dtype)
        self.rewards = np.zeros((t, n), np.float32)
        self.terminated, self.truncated, self.valid = (np.zeros((t, n), np.bool_) for _ in range(3))
        self.memory = np.zeros((t + 1, n, agent.memory_size), agent.memory_dtype)
        self.begins = np.zeros((t + 1, n), np.bool_)
        self.lost_life = np.zeros((t, n), np.bool_)
        self.finals: list[tuple[int, FinalObs]] = []
        self.returns = np.zeros(n, np.float64)
        self.discounted = np.zeros(n, np.float64)
        self.lengths = np.zeros(n, np.int64)
        largest = max((size - 1 for size in spec.action.sizes), default=0)
        self.log_dtype = action.dtype if action.dtype.kind == "f" else np.min_scalar_type(largest)

    def start(self, past: Sequence[PastEpisode] = ()) -> list[str]:
        """Start the environments' first episodes, or bring back those that were in progress.

        Returns:
            Why an episode in progress could not be brought back, for each environment; empty where it could.
        """
        self._started = True
        if not past:
            self.envs.reset(self.obs[-1])
            return []
        failed = self.envs.rebuild(past, self.obs[-1])
        for env, (episode, why) in enumerate(zip(past, failed, strict=True)):
            if not why:
                self.returns[env], self.lengths[env] = episode.ret, episode.length
                self.discounted[env], self.memory[-1, env] = episode.discounted, episode.memory
        return failed

    def ensure_started(self) -> None:
        """Start the first episodes, unless that has happened."""
        if not self._started:
            self.start()

    def rewards_to_learn(self) -> Tensor:
        """Rewards as the loss takes them, before scaling, `[T, N]`."""
        rewards = torch.from_numpy(self.rewards)
        return rewards.sign() if self.envs.spec.is_atari else rewards

    def trail(self) -> Trail:
        """What the rollout that has just been collected leaves behind."""
        actions, ended = self.actions.astype(self.log_dtype), self.terminated | self.truncated
        place = (self.obs[-1].copy(), self.returns.copy(), self.lengths.copy(), self.discounted.copy())
        return Trail(actions, ended, *place, self.memory[-1].copy(), self.envs.states())


@torch.no_grad()
def collect(
    envs: VectorEnvs, agent: Agent, buffer: RolloutBuffer, seed: int, update: int, with_values: bool = True
) -> Rollout:
    """Step the environments T times and value what was seen.

    Per step the agent only picks actions; values follow in one pass, as the weights do not change meanwhile, and
    log-probabilities from what the actions were drawn with.

    Args:
        envs: this rank's environments.
        agent: the plain module, not a wrapped one.
        buffer: where the rollout is kept; its last observation is where this rollout starts.
        seed: the run's seed.
        update: which rollout this is; with `seed` it names the action noise.
        with_values: if not, values are NaN, until `revalue`.
    """
    started = time.perf_counter()
    noise = _noise(agent, buffer, seed, update)
    with _one_thread():
        params = _step_environments(envs, agent, buffer, noise)
    log_probs = agent.distribution.log_prob(params, torch.from_numpy(buffer.actions).flatten(0, 1))
    return _rollout(agent, buffer, log_probs.view(buffer.num_steps, buffer.num_envs), with_values, started)


def _step_environments(envs: VectorEnvs, agent: Agent, buffer: RolloutBuffer, noise: Tensor) -> Tensor:
    """Fill the buffer; the parameters of the distributions that the actions were drawn from, `[T * N, num_params]`."""
    buffer.ensure_started()
    buffer.finals = []
    buffer.obs[0], buffer.memory[0] = buffer.obs[-1], buffer.memory[-1]
    to_env_actions, n = ActionConverter(envs.spec.action), buffer.num_envs
    is_recurrent = agent.memory is not None
    actor = RecurrentActor(agent, noise, buffer.memory[0]) if is_recurrent else make_actor(agent, noise)
    act, step = timed("policy")(actor.act), timed("environment")(envs.step)
    outputs = zip(buffer.obs[1:], buffer.rewards, buffer.terminated, buffer.truncated, buffer.valid, strict=True)
    staged, seen = buffer.staged_obs[:n], buffer.obs[0]
    for t, into in enumerate(outputs):
        staged[:] = seen
        actions = buffer.actions[t] = act(buffer.staged_obs)[:n].astype(buffer.actions.dtype, copy=False)
        finals = step(to_env_actions(actions), *into)
        buffer.finals += [(t, final) for final in finals]
        if envs.lost_life is not None:
            buffer.lost_life[t] = envs.lost_life
        seen = into[0]
        if isinstance(actor, RecurrentActor):
            _remember(buffer, actor, t, [final.env for final in finals])
    return actor.params()[:, :n].flatten(0, 1)


def _remember(buffer: RolloutBuffer, actor: RecurrentActor, t: int, ended: list[int]) -> None:
    """Keep what is remembered after step `t`; nothing where an episode has begun, as in the environments that `ended`.

    A row that is no transition lies between two episodes: until then, memory leads to the final observation.
    """
    begins = buffer.begins[t + 1]
    np.logical_not(buffer.valid[t], out=begins)
    begins[ended] = True
    actor.forget(begins)
    torch.from_numpy(buffer.memory[t + 1]).copy_(actor.memory[: buffer.num_envs])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep PyTorch to one thread: a few rows gain nothing from more, and environments may want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _noise(agent: Agent, buffer: RolloutBuffer, seed: int, update: int) -> Tensor:
    """The whole rollout's action noise, `[T, padded N, noise_size]`."""
    distribution, rows = agent.distribution, buffer.staged_obs.shape[0]
    drawn = action_uniforms(seed, update, buffer.first_env, buffer.num_envs, buffer.num_steps, distribution.noise_size)
    noise = torch.zeros(buffer.num_steps, rows, distribution.noise_size, dtype=agent.dtype)
    noise[:, : buffer.num_envs] = distribution.noise(torch.from_numpy(drawn))
    return noise


def _rollout(agent: Agent, buffer: RolloutBuffer, log_probs: Tensor, with_values: bool, started: float) -> Rollout:
    memory = torch.from_numpy(buffer.memory)
    values, next_values = _value(agent, buffer, memory) if with_values else 2 * (torch.full_like(log_probs, torch.nan),)
    episodes = _ended_episodes(buffer)
    moments = _moments(agent, buffer)
    rewards = buffer.rewards_to_learn()
    return Rollout(
        obs=_prepared(agent, buffer),
        actions=torch.from_numpy(buffer.actions),
        log_probs=log_probs,
        importance=torch.ones_like(log_probs),
        values=values,
        rewards=rewards if agent.reward_scale is None else agent.reward_scale.scaled(rewards),
        terminated=torch.from_numpy(buffer.terminated | buffer.lost_life),
        truncated=torch.from_numpy(buffer.truncated),
        valid=torch.from_numpy(buffer.valid),
        next_values=next_values,
        episodes=episodes,
        env_steps=int(buffer.valid.sum()),
        seconds=time.perf_counter() - started,
        memory=memory[: buffer.num_steps],
        begins=torch.from_numpy(buffer.begins[: buffer.num_steps]),
        moments=moments,
        env_restarts=buffer.envs.restarts,
        trail=buffer.trail(),
    )


@timed("values")
@torch.no_grad()
def revalue(agent: Agent, buffer: RolloutBuffer, rollout: Rollout) -> Rollout:
    """A rollout as a later policy sees it: its log-probabilities and values, and how it weighs the actions taken.

    The later policy is the proximal policy of the decoupled objective (arXiv 2110.00641, equation 5): what the
    surrogate is clipped against, while `importance`, proximal over behaviour probability, makes up for who acted.

    Args:
        agent: with the later weights.
        buffer: still holding the rollout.
        rollout: as collected.
    """
    memory, actions = _remembered(agent, buffer), torch.from_numpy(buffer.actions)
    actions = torch.cat([actions, actions[-1:]])  # of the observation after the last step only the value counts
    rows = (each.flatten(0, 1) for each in (torch.from_numpy(buffer.obs), actions, memory))
    both = _in_passes(lambda *rows: torch.stack(agent.log_probs_and_values(*rows), -1), *rows, agent=agent)
    log_probs, values = both.view(buffer.num_steps + 1, buffer.num_envs, 2).unbind(-1)
    log_probs = log_probs[:-1]
    return replace(
        rollout,
        obs=_prepared(agent, buffer),
        memory=memory[:-1],
        log_probs=log_probs,
        importance=(log_probs - rollout.log_probs).exp(),
        values=values[:-1],
        next_values=_next_values(agent, buffer, memory, values[1:].clone()),
    )


def _remembered(agent: Agent, buffer: RolloutBuffer) -> Tensor:
    """What the agent remembers before each step and after the last, `[T + 1, N, memory_size]`, as it is now.

    It goes on from what was remembered when the rollout began.
    """
    memory = torch.from_numpy(buffer.memory)
    if agent.memory is None:
        return memory
    now, device = [memory[0].to(agent.device)], agent.device
    encode = agent.obs_to_features() or (lambda obs: obs)
    steps = zip(torch.from_numpy(buffer.obs).to(device), torch.from_numpy(buffer.begins[1:]).to(device), strict=False)
    for obs, begins in steps:
        _, after = agent.remember(encode(obs), now[-1])
        now.append(after.masked_fill(begins.unsqueeze(-1), 0))
    return torch.stack(now).cpu()


def _prepared(agent: Agent, buffer: RolloutBuffer) -> Tensor:
    """The observations acted on, `[T, N, ...]`, as the loss takes them."""
    obs = torch.from_numpy(buffer.obs[: buffer.num_steps])
    if agent.obs_moments is None:
        return obs
    return _in_passes(agent.prepare, obs.flatten(0, 1), agent=agent).view(*obs.shape[:2], -1)


def _moments(agent: Agent, buffer: RolloutBuffer) -> Tensor:
    """See `Rollout.moments`; carries the discounted returns in progress over to the next rollout."""
    sums, valid = [torch.zeros(0, dtype=torch.float64)], torch.from_numpy(buffer.valid)
    if agent.obs_moments is not None:
        seen = torch.from_numpy(buffer.obs[: buffer.num_steps])[valid]
        sums.append(agent.obs_moments.sums(agent.encoder.boxes(seen, torch.float64)))
    if agent.reward_scale is not None:
        ended = torch.from_numpy(buffer.terminated | buffer.lost_life | buffer.truncated)
        carried = torch.from_numpy(buffer.discounted)
        so_far, carried = agent.reward_scale.discounted(buffer.rewards_to_learn(), ended, carried)
        buffer.discounted = carried.numpy()
        sums.append(agent.reward_scale.sums(so_far[valid].unsqueeze(-1)))
    return torch.cat(sums)


@timed("values")
def _value(agent: Agent, buffer: RolloutBuffer, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Values of the buffer's observations and of their true successors, each `[T, N]`; `memory` is from before each."""
    obs = torch.from_numpy(buffer.obs).flatten(0, 1)
    values = _in_passes(agent.values, obs, memory.flatten(0, 1), agent=agent).view(buffer.num_steps + 1, -1)
    return values[:-1], _next_values(agent, buffer, memory, values[1:].clone())


def _next_values(agent: Agent, buffer: RolloutBuffer, memory: Tensor, values: Tensor) -> Tensor:
    """`values [T, N]` of what came next, in place with that of the final observation where an episode was cut."""
    if cut := [(step, final) for step, final in buffer.finals if buffer.truncated[step, final.env]]:
        final_obs = torch.from_numpy(np.stack([final.obs for _, final in cut]).astype(buffer.obs.dtype, copy=False))
        at = torch.tensor([(step, final.env) for step, final in cut]).unbind(1)
        after = memory[at]
        if agent.memory is not None:
            obs = torch.from_numpy(buffer.obs)[at].to(agent.device)
            after = agent.remember(agent.encode(obs), after.to(agent.device))[1]
        values[at] = _in_passes(agent.values, final_obs, after, agent=agent)
    return values


def _in_passes(function: Callable[..., Tensor], *inputs: Tensor, agent: Agent) -> Tensor:
    """`function` of `inputs [B, ...]`, a few thousand rows at a time on the agent's device; `[B, ...]` on the CPU."""
    device = agent.device
    parts = zip(*(each.split(_ROWS_PER_PASS) for each in inputs), strict=True)
    return torch.cat([function(*(each.to(device) for each in part)).cpu() for part in parts])


def _ended_episodes(buffer: RolloutBuffer) -> list[Episode]:
    """The episodes that ended in this rollout; carries those in progress over to the next."""
    steps, num_envs = buffer.rewards.shape
    ended = (buffer.terminated | buffer.truncated).T
    # one column more than steps: what follows an environment's last step begins an episode too, maybe an empty one
    begins = np.ones((num_envs, steps + 1), np.bool_)
    begins[:, 1:] = ended
    rewards, valid = np.zeros((num_envs, steps + 1), np.float64), np.zeros((num_envs, steps + 1), np.int64)
    valid[:, :-1] = buffer.valid.T
    np.copyto(rewards[:, :-1], buffer.rewards.T, where=buffer.valid.T)
    at = np.flatnonzero(begins)
    returns, lengths = np.add.reduceat(rewards.ravel(), at), np.add.reduceat(valid.ravel(), at)
    last = begins.sum(1).cumsum() - 1  # of each environment: the episode in progress
    first = np.append(0, last[:-1] + 1)  # of each environment: goes on with what the last rollout left in progress
    returns[first] += buffer.returns
    lengths[first] += buffer.lengths
    buffer.returns, buffer.lengths = returns[last], lengths[last]
    env, t = np.nonzero(ended)
    columns = t, buffer.first_env + env, np.delete(returns, last), np.delete(lengths, last)
    in_order = np.lexsort((env, t))
    return [Episode(*row) for row in zip(*(column[in_order].tolist() for column in columns), strict=True)]
