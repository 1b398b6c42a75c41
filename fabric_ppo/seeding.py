"""Random draws as pure functions of (seed, stream, index): no generator carries state from one draw to the next.

The source is Philox4x64-10 ("Parallel random numbers: as easy as 1, 2, 3", Salmon et al., SC 2011): a keyed
bijection of a counter. The key is (seed, stream); the counter says which draw, so that any slice of a stream is
reached in time proportional to the slice. Raw words are transformed here, since NumPy's own normals reject and
therefore do not stay aligned.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_BLOCK = 4
_SEED_BITS = 30
_SEED_MASK = (1 << _SEED_BITS) - 1
_TEST_BIT = 1 << _SEED_BITS


class Stream(IntEnum):
    """What a draw is for; streams of one seed are independent of one another."""

    ENV = 1
    ACTION = 2
    ORDER = 3
    INIT = 4
    TEST_ENV = 5
    TEST_ACTION = 6
    SPLIT = 7


def raw_words(seed: int, stream: Stream, index: tuple[int, int], start: int, count: int) -> NDArray[np.uint64]:
    """Words `start .. start + count - 1` of the sequence that (seed, stream, index) names, 64 bits each."""
    philox = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array([0, 0, *index], np.uint64))
    philox.advance(start // _WORDS_PER_BLOCK)
    skip = start % _WORDS_PER_BLOCK
    words: NDArray[np.uint64] = philox.random_raw(skip + count)[skip:]
    return words


def uniforms(seed: int, stream: Stream, index: tuple[int, int], start: int, count: int) -> NDArray[np.float64]:
    """Uniform draws strictly inside (0, 1), `[count]`: the midpoints of 2**52 equal cells."""
    words = raw_words(seed, stream, index, start, count)
    result: NDArray[np.float64] = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return result


def action_uniforms(
    seed: int, update: int, first_env: int, num_envs: int, num_steps: int, size: int
) -> NDArray[np.float64]:
    """Noise of one rollout's actions, `[num_steps, num_envs, size]`, for global environments from `first_env` on.

    An environment's draws depend on its global id alone, not on the rank that it lives on.
    """
    per_env = num_steps * size
    flat = uniforms(seed, Stream.ACTION, (update, 0), first_env * per_env, num_envs * per_env)
    return np.ascontiguousarray(flat.reshape(num_envs, num_steps, size).swapaxes(0, 1))


def minibatch_order(seed: int, update: int, epoch: int, rows: int, stream: Stream = Stream.ORDER) -> NDArray[np.int64]:
    """A permutation of `rows` rows, `[rows]`."""
    key = np.array([seed, stream], np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, 0, update, epoch], np.uint64))
    return np.random.Generator(philox).permutation(rows)


def init_seed(seed: int) -> int:
    """Seed of PyTorch's generator for the initial weights."""
    return int(raw_words(seed, Stream.INIT, (0, 0), 0, 1)[0] >> np.uint64(1))


def episode_seed(seed: int, env: int, episode: int, num_envs: int) -> int:
    """What training environment `env` of `num_envs` (over all ranks) passes to `reset` for its `episode`-th episode.

    Distinct for distinct (env, episode) up to 2**30 episodes in all: a keyed permutation, not a hash. Below 2**30,
    which every random generator takes, and which no test episode draws.
    """
    assert 0 <= env < num_envs
    return _permute(seed, Stream.ENV, episode * num_envs + env)


def evaluation_seed(seed: int, episode: int) -> int:
    """What a test's `episode`-th episode passes to `reset`: from 2**30 up, which training cannot draw."""
    return _TEST_BIT | _permute(seed, Stream.TEST_ENV, episode)


def _permute(seed: int, stream: Stream, index: int) -> int:
    """Map `index` by a keyed permutation of the numbers below 2**30; each of the four rounds can be undone."""
    value = index & _SEED_MASK
    for word in raw_words(seed, stream, (0, 0), 0, 4).tolist():
        value ^= word & _SEED_MASK
        value = value * (word >> 32 | 1) & _SEED_MASK
        value ^= value >> (_SEED_BITS // 2)
    return value
