"""H7: no odd count of rows, NaN or branch of one rank can deadlock a collective."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.process.errors import TrainingError
from fabric_ppo.process.group import ALONE
from fabric_ppo.run.guard import Guard
from tests.fixtures.agents import build_agent
from tests.fixtures.minibatches import SIZES, numbered, numbers, shares
from tests.fixtures.recurrent import make_recurrent, recurrent_config
from tests.fixtures.rollouts import rollouts
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import ACTIONS
from tests.fixtures.toy_envs import toy_env
from tests.fixtures.updates import CONFIG, coefs_of, train_on

CPU = torch.device("cpu")


@pytest.mark.parametrize(("total", "per_rank_batch_size", "num_shares"), SIZES)
def test_every_row_once_an_epoch_in_parts_of_even_size(total, per_rank_batch_size, num_shares):
    chunks = shares(numbered(total), num_shares, per_rank_batch_size)
    used = [number for chunk in chunks for part in chunk for number in numbers(part)]
    assert sorted(used) == list(range(total))
    assert len(chunks) == int(np.ceil(total / (num_shares * per_rank_batch_size)))
    chunk_sizes = [sum(len(numbers(part)) for part in chunk) for chunk in chunks]
    assert max(chunk_sizes) - min(chunk_sizes) <= 1
    for chunk in chunks:
        part_sizes = [len(numbers(part)) for part in chunk]
        assert max(part_sizes) - min(part_sizes) <= 1
        assert max(part_sizes) <= per_rank_batch_size


def test_a_share_without_sequences_takes_part():
    """Four sequences in chunks of two for three ranks, the first of which never has one."""
    config = recurrent_config(env_id=toy_env(length=4), num_envs=1, num_steps=12, per_rank_batch_size=3)
    envs, agent = make_recurrent(config)
    (rollout,) = rollouts(envs, agent, config.num_steps, 1, seed=config.seed)
    envs.close()
    batch, loss = make_batch(rollout, config, ALONE, 0, CPU), PPOLoss(agent, config)
    shares = [list(replace(batch, share=share, num_shares=3).minibatches(range(2), 3)) for share in range(3)]
    assert [sum(len(rows.weights) for rows in share) for share in shares] == [0, 12, 12]
    for share in shares:
        assert len(share) == 4
        for rows in share:
            loss(rows, coefs_of(config)).loss.backward()


def test_a_diverging_update_is_caught():
    """A learning rate that nobody can train with ends in TrainingError with the weights that the update began with."""
    agent = build_agent(ACTIONS["box"])
    guard = Guard(agent)
    before = copy.deepcopy(agent.state_dict())
    stats = train_on(agent, make_rows(agent, 32), dataclasses.replace(CONFIG, learning_rate=1e30))
    with pytest.raises(TrainingError):
        guard.check(stats, 0)
    assert all(torch.equal(agent.state_dict()[key], kept) for key, kept in before.items())
