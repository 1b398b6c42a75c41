"""Running statistics against NumPy's of all rows at once and against Gymnasium's."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeReward

from fabric_ppo.agents.normalize import RewardScale, RunningMoments


@pytest.mark.parametrize("splits", [(60,), (1, 59), (20, 13, 27)])
def test_moments_are_those_of_all_rows_at_once(splits):
    rows = torch.randn(60, 5) * torch.tensor([1e-3, 1.0, 50.0, 7.0, 1.0]) + torch.tensor([0.0, 3.0, -100.0, 9.0, 0.0])
    moments = RunningMoments(5)
    for part in rows.split(splits):
        moments.update(moments.sums(part))
    data = rows.double().numpy()
    np.testing.assert_allclose(moments.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, np.sqrt(data.var(0) + 1e-8), rtol=1e-9)
    expected = ((data - data.mean(0)) / np.sqrt(data.var(0) + 1e-8)).clip(-10, 10)
    np.testing.assert_allclose(moments(rows.double()), expected, rtol=1e-8, atol=1e-9)


def test_without_statistics_nothing_changes():
    rows = torch.randn(4, 3)
    assert torch.equal(RunningMoments(3)(rows), rows)
    assert torch.equal(RewardScale(0.9)(rows), rows)


def test_outliers_are_bounded():
    moments = RunningMoments(1)
    moments.update(moments.sums(torch.tensor([[-1.0], [1.0]])))
    assert moments(torch.tensor([[1e6], [-1e6]])).tolist() == [[10.0], [-10.0]]


def test_rewards_are_scaled_like_gymnasium_scales_them():
    """Statistics of discounted returns as in NormalizeReward, all of whose steps were seen before."""
    env = NormalizeReward(gymnasium.make("Pendulum-v1"), gamma=0.9)
    raw = gymnasium.make("Pendulum-v1")
    env.reset(seed=3)
    raw.reset(seed=3)
    action, rewards = np.zeros(1, np.float32), []
    for _ in range(150):
        _, scaled, *_ = env.step(action)
        rewards.append(raw.step(action)[1])
    scale = RewardScale(0.9)
    so_far, carried = scale.discounted(
        torch.tensor(rewards).unsqueeze(1), torch.zeros(150, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.float64)
    )
    scale.update(scale.sums(so_far))
    assert float(carried) == pytest.approx(sum(0.9 ** (149 - t) * r for t, r in enumerate(rewards)))
    assert float(scale(torch.tensor(rewards[-1]))) == pytest.approx(float(scaled), rel=1e-2)  # its prior: 1e-4


def test_discounted_returns_end_with_their_episode():
    rewards = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    ended = torch.tensor([[False, True], [False, False], [True, False]])
    so_far, carried = RewardScale(0.5).discounted(rewards, ended, torch.tensor([8.0, 0.0], dtype=torch.float64))
    assert so_far.tolist() == [[5.0, 1.0], [4.5, 2.0], [6.25, 5.0]]
    assert carried.tolist() == [0.0, 5.0]
