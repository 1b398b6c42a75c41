"""Attributes that a callback on rank 0 sets: when they reach the environments of all ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fabric_ppo.run.env_attributes import EnvAttributes
from tests.fixtures.ranks import on_ranks

SIZE, NUM_ENVS = 3, 2


class Environments:
    """Notes what it is handed, and how often its episodes are started."""

    num_envs = NUM_ENVS

    def __init__(self):
        self.envs, self.handed, self.starts = self, [], 0

    def check_attributes(self, names):
        pass

    def set_attributes(self, attributes):
        self.handed.append(attributes)

    def restart(self):
        self.starts += 1


def rollouts(ranks, overlaps, asked, updates, values=None):
    """What is in force in each rollout, with `asked` update -> values; and the checkpoint of each update."""
    envs, seen, saved = Environments(), [], []
    attributes = EnvAttributes(envs, ranks, overlaps)
    first = 0
    if values is not None:
        first, kept = values
        attributes.load_values(kept)
        attributes.hand_to_next_rollout()

    def in_force():
        return envs.handed[-1] if envs.handed else ""

    def ask(update):
        if ranks.rank == 0 and update in asked:
            attributes.set(asked[update])

    ahead = [in_force()] if overlaps and first else []
    attributes.start(lambda: ask(0))
    for update in range(first, updates):
        seen.append(ahead.pop() if ahead else in_force())
        if overlaps:
            ahead.append(in_force())
        requested = any(ranks.gather(torch.tensor([float(attributes.is_asked)])).flatten().tolist())
        attributes.merge(requested)
        attributes.finish_update(np.full((1, NUM_ENVS * SIZE), True))
        ask(update + 1)
        saved.append(attributes.to_values())
        attributes.apply()
    return seen, saved, envs.starts, attributes.of_episodes()


A, B = '{"a": 1}', '{"a": 2}'


@pytest.mark.parametrize(("overlaps", "expected"), [(False, ["", "", A, A, B, B]), (True, ["", "", "", A, A, B])])
def test_all_ranks_have_them_in_the_same_rollout(overlaps, expected):
    for seen, _, starts, of_episodes in on_ranks(
        SIZE, lambda ranks: rollouts(ranks, overlaps, {1: {"a": 1}, 3: {"a": 2}}, 6)
    ):
        assert (seen, starts) == (expected, 0)
        # each update ended all episodes: those in progress began in the last rollout
        assert of_episodes == [seen[-1]] * NUM_ENVS


@pytest.mark.parametrize("overlaps", [False, True])
def test_from_the_start_they_hold_in_the_first_episodes(overlaps):
    for seen, _, starts, _ in on_ranks(SIZE, lambda ranks: rollouts(ranks, overlaps, {0: {"a": 1}}, 3)):
        assert (seen, starts) == ([A, A, A], 1)


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("update", range(1, 7))
def test_a_resumed_run_goes_on_as_if_it_had_not_ended(overlaps, update):
    """From the checkpoint of any update; `on_start` asks again for what it did, and changes nothing."""
    asked = {0: {"a": 1, "b": 1}, 1: {"a": 3}, 3: {"a": 4}, 4: {"b": 5}}
    alone = on_ranks(SIZE, lambda ranks: rollouts(ranks, overlaps, asked, 7))
    kept = alone[0][1][update - 1]
    again = on_ranks(SIZE, lambda ranks: rollouts(ranks, overlaps, asked, 7, (update, kept)))
    for before, after in zip(alone, again, strict=True):
        assert after[0] == before[0][update:]
    assert again[0][1][-1] == alone[0][1][-1]
