"""A rollout's part of a checkpoint, gathered over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fabric_ppo.rollouts.buffer import EnvSnapshot
from fabric_ppo.run.metrics import gather_snapshot
from tests.fixtures.ranks import on_ranks


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_the_snapshot_of_all_ranks_is_in_order_of_global_id(num_ranks, shape):
    """Environment j of rank r is number r * N + j, as everywhere."""
    steps, n = 4, 3
    rng = np.random.default_rng(1)
    actions, obs = rng.random((num_ranks, steps, n, *shape)), rng.random((num_ranks, n, 5))
    ended = rng.random((num_ranks, steps, n)) < 0.5
    returns, lengths = rng.random((num_ranks, n)), rng.integers(0, 99, (num_ranks, n))
    discounted, memory = rng.random((num_ranks, n)), rng.random((num_ranks, n, len(shape)))
    columns = (actions, ended, obs, returns, lengths, discounted, memory)

    def gathered(ranks):
        own = EnvSnapshot(*(column[ranks.rank] for column in columns))
        return gather_snapshot(own, [torch.tensor(ranks.rank)], ranks)

    on_every_rank = on_ranks(num_ranks, gathered)
    for snapshot, (more,) in on_every_rank:
        assert snapshot.actions.shape == (steps, num_ranks * n, *shape)
        assert more.tolist() == list(range(num_ranks))
        assert_in_order(snapshot, columns)


def assert_in_order(snapshot, columns):
    actions, ended, obs, returns, lengths, discounted, memory = columns
    num_ranks, steps, n = ended.shape
    for rank in range(num_ranks):
        for env in range(n):
            i = rank * n + env
            for t in range(steps):
                np.testing.assert_array_equal(snapshot.actions[t, i], actions[rank, t, env])
                assert snapshot.ended[t, i] == ended[rank, t, env]
            np.testing.assert_array_equal(snapshot.obs[i], obs[rank, env])
            assert (snapshot.returns[i], snapshot.lengths[i]) == (returns[rank, env], lengths[rank, env])
            assert snapshot.discounted[i] == discounted[rank, env]
            np.testing.assert_array_equal(snapshot.memory[i], memory[rank, env])
