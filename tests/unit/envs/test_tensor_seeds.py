"""Seeds and random numbers as tensors: those of `seeding`, and uniform."""

from __future__ import annotations

import numpy as np
import torch

from fabric_ppo.envs.tensor_seeds import episode_seeds, seeded_uniforms
from fabric_ppo.seeding import episode_seed


def test_seeds_are_those_of_one_environment_after_the_other():
    envs, episodes = torch.arange(40) % 7, torch.arange(40) * 12345
    expected = [episode_seed(9, env, number, 7) for env, number in zip(envs.tolist(), episodes.tolist(), strict=True)]
    assert episode_seeds(9, envs, episodes, 7).tolist() == expected


def test_splitmix64_gives_its_published_numbers():
    """The reference implementation (prng.di.unimi.it/splitmix64.c) gives these from 0 and from 1234567."""
    from fabric_ppo.envs.tensor_seeds import _GOLDEN, _arrays, _tensors

    starts = torch.cat([torch.tensor([_GOLDEN]), torch.tensor([1234567]) + torch.arange(1, 4) * _GOLDEN])
    expected = [0xE220A8397B1DCDAF, 6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [word % 2**64 for word in _tensors(starts).tolist()] == expected
    assert [word % 2**64 for word in _arrays(starts.numpy()).tolist()] == expected


def test_a_gpu_draws_the_same():
    """Its way, taken on the CPU."""
    from fabric_ppo.envs.tensor_seeds import _tensors, _words

    seeds, steps = torch.arange(500) * 2**21 + 7, torch.arange(500) % 9
    expected = (_words(_tensors, seeds, steps, torch.arange(1, 6)).double() + 0.5) * 2.0**-52
    assert torch.equal(seeded_uniforms(seeds, 5, steps), expected)


def test_numbers_are_uniform_and_independent():
    """Mean, variance and correlations over consecutive seeds and steps, within five standard errors."""
    draws = torch.cat([seeded_uniforms(torch.arange(20_000), 4, step) for step in (0, 1)], 1).numpy()
    error = 5 / np.sqrt(len(draws))
    assert abs(draws.mean(0) - 0.5).max() < error * np.sqrt(1 / 12)
    assert abs(draws.var(0) * 12 - 1).max() < error
    assert abs(np.corrcoef(draws.T) - np.eye(8)).max() < error
    assert draws.min() > 0
    assert draws.max() < 1


def test_each_row_depends_on_its_own_seed_and_step_alone():
    seeds, step = torch.tensor([5, 6, 7]), torch.tensor([0, 1, 2])
    together = seeded_uniforms(seeds, 3, step)
    alone = [seeded_uniforms(seeds[k : k + 1], 3, int(step[k])) for k in range(3)]
    assert torch.equal(together, torch.cat(alone))
