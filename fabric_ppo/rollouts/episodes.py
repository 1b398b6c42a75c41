"""Returns and lengths of the episodes that ended in a rollout."""

from __future__ import annotations

import numpy as np

from fabric_ppo.envs.episode_info import numbers_of
from fabric_ppo.rollouts.buffer import Episode, RolloutBuffer


def ended_episodes(buffer: RolloutBuffer) -> list[Episode]:
    """Return the episodes that ended in the rollout in `buffer`, ordered by (t, env).

    Sums of the episodes in progress stay in the buffer, for the next rollout.
    """
    steps, num_envs = buffer.rewards.shape
    ended = (buffer.terminated | buffer.truncated).T
    # one column more than steps: an episode begins after the last step too, maybe an empty one
    begins = np.ones((num_envs, steps + 1), np.bool_)
    begins[:, 1:] = ended
    rewards = np.zeros((num_envs, steps + 1), np.float64)
    valid = np.zeros((num_envs, steps + 1), np.int64)
    valid[:, :-1] = buffer.valid.T
    np.copyto(rewards[:, :-1], buffer.rewards.T, where=buffer.valid.T)
    # all environments one after the other in one vector, cut where an episode begins: reduceat sums
    # each piece, without a loop over steps
    at = np.flatnonzero(begins)
    returns, lengths = np.add.reduceat(rewards.ravel(), at), np.add.reduceat(valid.ravel(), at)
    # of each environment, the last piece is the episode in progress, and the first one goes on from
    # the rollout before
    last = begins.sum(1).cumsum() - 1
    first = np.append(0, last[:-1] + 1)
    returns[first] += buffer.returns
    lengths[first] += buffer.lengths
    buffer.returns, buffer.lengths = returns[last], lengths[last]
    env, t = np.nonzero(ended)
    columns = t, buffer.first_env + env, np.delete(returns, last), np.delete(lengths, last)
    in_order = np.lexsort((env, t))
    rows = zip(*(column[in_order].tolist() for column in columns), strict=True)
    if not buffer.endings:
        return [Episode(*row) for row in rows]
    infos = {(t, buffer.first_env + ending.env): numbers_of(ending.readings) for t, ending in buffer.endings}
    return [Episode(t, env, ret, length, infos.get((t, env), ())) for t, env, ret, length in rows]
