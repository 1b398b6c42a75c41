"""States of environments, gathered for a checkpoint."""

import numpy as np

from fabric_ppo.rollouts.buffer import EnvSnapshot
from fabric_ppo.run.metrics import gather_snapshot
from tests.fixtures.counting import on_counted_ranks


def test_states_that_some_ranks_lack_are_left_out():
    """By all ranks alike: none waits for a collective that another does not take part in."""

    def snapshot(rank):
        zeros = np.zeros((1, 2))
        states = [b"a", b"b"] if rank == 0 else []
        return EnvSnapshot(zeros, zeros > 0, zeros[0], zeros[0], zeros[0], zeros[0], zeros.T, states)

    results, calls = on_counted_ranks(2, lambda ranks: gather_snapshot(snapshot(ranks.rank), [], ranks)[0].states)
    assert results == [(), ()]
    assert calls == [1, 1]
    results, calls = on_counted_ranks(2, lambda ranks: gather_snapshot(snapshot(0), [], ranks)[0].states)
    assert results == [[b"a", b"b", b"a", b"b"]] * 2
