"""Seeds and random numbers as tensors, for environments that step as tensors; pure functions, as in `seeding`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fabric_ppo.seeding import SEED_BITS, TEST_BIT, Stream, raw_words

_MASK = (1 << SEED_BITS) - 1
_GOLDEN, _FIRST, _SECOND = (x - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Constants of SplitMix64, as int64 has them."""


def episode_seeds(seed: int, envs: Tensor, episodes: Tensor, num_envs: int) -> Tensor:
    """Return `seeding.episode_seed` of each environment and episode, `[B]` int64.

    Args:
        seed: the run's.
        envs: `[B]` int64, global ids of environments.
        episodes: `[B]` int64, which of its environment's episodes each one is, from 0.
        num_envs: environments on all ranks.
    """
    return _permuted(seed, Stream.ENV, episodes * num_envs + envs)


def evaluation_seeds(seed: int, episodes: Tensor) -> Tensor:
    """Return `seeding.evaluation_seed` of each of the test's `episodes [B]`, `[B]` int64."""
    return _permuted(seed, Stream.TEST_ENV, episodes) | TEST_BIT


def _permuted(seed: int, stream: Stream, index: Tensor) -> Tensor:
    """Map indices as `seeding` does, by a keyed permutation of the numbers below 2**30."""
    values = index & _MASK
    for word in _key(seed, stream):
        values = values ^ (word & _MASK)
        values = values * (word >> 32 | 1) & _MASK
        values = values ^ (values >> (SEED_BITS // 2))
    return values


@functools.lru_cache
def _key(seed: int, stream: Stream) -> list[int]:
    """Return the words that permute the indices of a stream."""
    words: list[int] = raw_words(seed, stream, (0, 0), 0, 4).tolist()
    return words


def seeded_uniforms(seeds: Tensor, count: int, step: Tensor | int = 0) -> Tensor:
    """Draw uniformly from inside (0, 1), `[B, count]` float64, as a function of seed and step.

    It is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014), started from a hash of both.

    Args:
        seeds: `[B]` int64.
        count: numbers for each seed.
        step: of an episode, `[B]` or one for all; another one gives other numbers.
    """
    start = _mixed(_mixed(seeds) + step)
    places = torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    words = _mixed(start.unsqueeze(-1) + places)
    return (_shifted(words, 12).double() + 0.5) * 2.0**-52


def _mixed(words: Tensor) -> Tensor:
    """Mix the bits of 64-bit words; products wrap around, as those of int64 do."""
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift to the right; zeros come from the left, where `>>` has copies of the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
