"""Seeds and random numbers as tensors, for environments that step as tensors; pure functions, as in `seeding`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric_ppo.seeding import SEED_BITS, Stream, raw_words

_MASK = (1 << SEED_BITS) - 1
_WORDS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Constants of SplitMix64."""
_GOLDEN, _FIRST, _SECOND = (word - 2**64 for word in _WORDS)  # as int64 has them
_, _FIRST_WORD, _SECOND_WORD = map(np.uint64, _WORDS)
_30, _27, _31 = map(np.uint64, (30, 27, 31))


def episode_seeds(seed: int, envs: Tensor, episodes: Tensor, num_envs: int) -> Tensor:
    """Return `seeding.episode_seed` of each environment and episode, `[B]` int64.

    Args:
        seed: the run's.
        envs: `[B]` int64, global ids of environments.
        episodes: `[B]` int64, which of its environment's episodes each one is, from 0.
        num_envs: environments on all ranks.
    """
    index = episodes * num_envs + envs
    # for few numbers NumPy takes half the time of PyTorch
    values: Any = index.numpy() if index.is_cpu else index
    values = values & _MASK
    for word in _key(seed):
        values = values ^ (word & _MASK)
        values = values * (word >> 32 | 1) & _MASK
        values = values ^ (values >> (SEED_BITS // 2))
    mapped: Tensor = torch.from_numpy(values) if index.is_cpu else values
    return mapped


@functools.lru_cache
def _key(seed: int) -> list[int]:
    """Return the words that permute the numbers of episodes, as `seeding` does below 2**30."""
    words: list[int] = raw_words(seed, Stream.ENV, (0, 0), 0, 4).tolist()
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
    if seeds.is_cpu:  # there, for few numbers, NumPy takes half the time of PyTorch
        at = step.numpy() if isinstance(step, Tensor) else step
        words = torch.from_numpy(_words(_arrays, seeds.numpy(), at, np.arange(1, count + 1)))
    else:
        words = _words(_tensors, seeds, step, torch.arange(1, count + 1, device=seeds.device))
    return (words.double() + 0.5) * 2.0**-52


def _words(mixed: Callable[[Any], Any], seeds: Any, step: Any, places: Any) -> Any:
    """Return 52 random bits for each seed and place, of tensors or arrays, whose bits `mixed` mixes."""
    words = mixed((mixed(seeds) + step)[..., None] + places * _GOLDEN)
    return words >> 12 & (1 << 52) - 1  # `>>` has copies of the sign in front


def _tensors(words: Tensor) -> Tensor:
    """Mix the bits of 64-bit words; products wrap around, as those of int64 do."""
    words = (words ^ words >> 30 & (1 << 34) - 1) * _FIRST
    words = (words ^ words >> 27 & (1 << 37) - 1) * _SECOND
    return words ^ words >> 31 & (1 << 33) - 1


def _arrays(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """Do as `_tensors`; NumPy has words without a sign, whose `>>` brings zeros."""
    bits = words.view(np.uint64)
    bits = (bits ^ bits >> _30) * _FIRST_WORD
    bits = (bits ^ bits >> _27) * _SECOND_WORD
    return (bits ^ bits >> _31).view(np.int64)
