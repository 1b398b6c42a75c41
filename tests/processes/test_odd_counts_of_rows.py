"""H7 in whole runs: every rank takes the same number of minibatches, whatever does not divide."""

from __future__ import annotations

import pytest

from tests.fixtures.resuming import finish, metrics


@pytest.mark.parametrize("script", ["torch", "fabric"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("num_steps", "num_envs", "batch", "share"), [(1, 1, 64, True), (5, 3, 4, True), (7, 1, 2, False)]
)
def test_no_odd_count_of_rows_hangs(tmp_path, script, world_size, num_steps, num_envs, batch, share):
    flags = {"num_steps": num_steps, "num_envs": num_envs, "per_rank_batch_size": batch, "share_data": share}
    lines = metrics(finish(script, world_size, tmp_path / "run", 2, **flags))
    assert [line["step"] for line in lines] == [num_steps * num_envs * world_size * update for update in (1, 2)]


@pytest.mark.parametrize("num_trainers", [1, 2, 3])
@pytest.mark.parametrize(("num_steps", "num_envs", "batch"), [(1, 3, 1), (5, 1, 2), (13, 5, 32), (13, 5, 64)])
def test_no_count_of_rows_hangs(tmp_path, num_trainers, num_steps, num_envs, batch):
    """Parts of 65 rows over 2 trainers are 33 and 32: with 32 a minibatch, one of them would fill two."""
    for share_data in (False, True):
        flags = {"num_steps": num_steps, "num_envs": num_envs, "per_rank_batch_size": batch, "share_data": share_data}
        assert len(metrics(finish("decoupled", 1 + num_trainers, tmp_path / f"run{share_data}", 2, **flags))) == 2
