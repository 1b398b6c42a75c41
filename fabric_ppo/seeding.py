"""Random draws as pure functions of (seed, stream, index): no generator carries state.

The source is Philox4x64-10 ("Parallel random numbers: as easy as 1, 2, 3", Salmon et al., SC 2011):
a keyed bijection of a counter. The key is (seed, stream); the counter says which draw, so that any
slice of a stream is reached in time proportional to the slice. Raw words are transformed here,
since NumPy's own normals reject and therefore do not stay aligned.
"""

from __future__ import annotations

import threading
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_BLOCK = 4  # Philox turns one counter into four words of 64 bits
SEED_BITS = 30
"""Bits of an episode's seed."""
_SEED_MASK = (1 << SEED_BITS) - 1
TEST_BIT = 1 << SEED_BITS
"""Set in the seeds of test episodes only."""


class Stream(IntEnum):
    """Purposes of draws; the streams of one seed are independent of one another."""

    ENV = 1
    ACTION = 2
    ORDER = 3
    INIT = 4
    TEST_ENV = 5
    TEST_ACTION = 6
    SPLIT = 7
    POLICY = 8
    CALLBACK = 9
    CLONING = 10


def raw_words(seed: int, stream: Stream, index: tuple[int, int], start: int, count: int) -> NDArray[np.uint64]:
    """Return words `start .. start + count - 1` of the sequence (seed, stream, index), `[count]`.

    Args:
        seed: the run's, below 2**64.
        stream: the draw's purpose.
        index: which of the stream's sequences, such as (update, 0).
        start: first word.
        count: how many, of 64 bits each.
    """
    philox = _sequence(seed, stream, index)
    philox.advance(start // _WORDS_PER_BLOCK)  # counts in blocks of four words
    skip = start % _WORDS_PER_BLOCK
    words: NDArray[np.uint64] = philox.random_raw(skip + count)[skip:]
    return words


class _OwnPhilox(threading.local):
    """A bit generator of each thread's own: making one takes ten times as long as moving it."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(0)


_own = _OwnPhilox()


def _sequence(seed: int, stream: Stream, index: tuple[int, int]) -> np.random.Philox:
    """Return a bit generator at the beginning of a sequence, until the thread's next call."""
    # the sequence is the high half of the counter, the place in it the low half
    _own.philox.state = {
        "bit_generator": "Philox",
        "state": {"key": np.array([seed, stream], np.uint64), "counter": np.array([0, 0, *index], np.uint64)},
        # no word is left of an earlier draw
        "buffer": np.zeros(_WORDS_PER_BLOCK, np.uint64),
        "buffer_pos": _WORDS_PER_BLOCK,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _own.philox


def uniforms(seed: int, stream: Stream, index: tuple[int, int], start: int, count: int) -> NDArray[np.float64]:
    """Draw uniformly from inside (0, 1), `[count]`: from the midpoints of 2**52 equal cells.

    Neither 0 nor 1 comes, so that a logarithm or an inverse normal distribution function is finite.
    The arguments are those of `raw_words`.
    """
    return uniform_of(raw_words(seed, stream, index, start, count))


def uniform_of(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the numbers in (0, 1) that random words `[...]` of 64 bits stand for, see `uniforms`."""
    result: NDArray[np.float64] = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return result


def action_uniforms(
    seed: int, update: int, first_env: int, num_envs: int, num_steps: int, size: int
) -> NDArray[np.float64]:
    """Draw the noise of one rollout's actions, uniform in (0, 1), `[num_steps, num_envs, size]`.

    An environment's draws depend on its global id alone, not on the rank that it lives on.

    Args:
        seed: the run's.
        update: number of the update that the rollout is for.
        first_env: global id of the first environment.
        num_envs: environments from there on.
        num_steps: of the rollout.
        size: draws for one action.
    """
    per_env = num_steps * size
    flat = uniforms(seed, Stream.ACTION, (update, 0), first_env * per_env, num_envs * per_env)
    return np.ascontiguousarray(flat.reshape(num_envs, num_steps, size).swapaxes(0, 1))


def minibatch_order(seed: int, update: int, epoch: int, rows: int, stream: Stream = Stream.ORDER) -> NDArray[np.int64]:
    """Return a permutation of `rows` rows, `[rows]`, another one for each (update, epoch)."""
    return np.random.Generator(_sequence(seed, stream, (update, epoch))).permutation(rows)


def init_seed(seed: int) -> int:
    """Return the seed of PyTorch's generator for the initial weights, below 2**63."""
    return int(raw_words(seed, Stream.INIT, (0, 0), 0, 1)[0] >> np.uint64(1))


def callback_seed(seed: int, update: int, call: int) -> int:
    """Return the seed of the global generators in the `call`-th call after an update, below 2**32."""
    return int(raw_words(seed, Stream.CALLBACK, (update, call), 0, 1)[0] >> np.uint64(32))


def episode_seed(seed: int, env: int, episode: int, num_envs: int) -> int:
    """Return the seed that a training environment passes to `reset` for an episode.

    Distinct for distinct (env, episode) up to 2**30 episodes in all: a keyed permutation, not a
    hash. Below 2**30, which every random generator takes, and which no test episode draws.

    Args:
        seed: the run's.
        env: global id of the environment.
        episode: number of its episode, from 0.
        num_envs: environments on all ranks.
    """
    assert 0 <= env < num_envs
    return _permute(seed, Stream.ENV, episode * num_envs + env)


def evaluation_seed(seed: int, episode: int) -> int:
    """Return the seed of a test's `episode`-th episode: from 2**30 up, out of training's reach."""
    return TEST_BIT | _permute(seed, Stream.TEST_ENV, episode)


def _permute(seed: int, stream: Stream, index: int) -> int:
    """Map `index` by a keyed permutation of the numbers below 2**30."""
    # four rounds, each of steps that can be undone: xor with a key, multiplication by an odd number
    # modulo 2**30, xor with one's own upper half
    value = index & _SEED_MASK
    for word in raw_words(seed, stream, (0, 0), 0, 4).tolist():
        value ^= word & _SEED_MASK
        value = value * (word >> 32 | 1) & _SEED_MASK
        value ^= value >> (SEED_BITS // 2)
    return value
