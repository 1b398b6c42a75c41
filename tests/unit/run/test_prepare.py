"""A process before its run: threads, and flags that all ranks must share."""

import dataclasses

import pytest
import torch

from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.group import ALONE
from fabric_ppo.run.prepare import prepare_process, require_same_config, useful_threads
from tests.fixtures.counting import on_counted_ranks


def checked(size, configs):
    def check(ranks):
        try:
            require_same_config(configs[ranks.rank], ranks)
        except ConfigError as error:
            return str(error)
        return None

    return on_counted_ranks(size, check)


@pytest.mark.parametrize("size", [1, 3])
def test_equal_configs_pass_with_one_collective(size):
    """Where a run lies does not count: --run-dir may be another path on another host."""
    config = Config()
    messages, calls = checked(size, [dataclasses.replace(config, run_dir=f"host{rank}") for rank in range(size)])
    assert messages == [None] * size
    assert max(calls) <= 1


@pytest.mark.parametrize("different", [0, 1, 2])
def test_different_configs_are_refused_by_all_ranks_alike(different):
    configs = [Config(num_envs=16 if rank == different else 2, env_id="CartPole-v1") for rank in range(3)]
    messages, calls = checked(3, configs)
    assert len(set(messages)) == 1
    assert "--num-envs" in messages[0]
    assert "16" in messages[0]
    assert "--seed" not in messages[0]
    assert "rank 0 and rank " + {0: "1", 1: "1", 2: "2"}[different] in messages[0]
    assert "\n" not in messages[0]
    assert len(set(calls)) == 1


LARGE = {"per_rank_batch_size": 512, "hidden_sizes": (64, 256, 256)}


@pytest.mark.parametrize(("local_world_size", "cores"), [("1", 12), ("4", 3), ("5", 2), ("20", 1)])
def test_large_products_take_the_cores_over_the_ranks_of_the_host(monkeypatch, local_world_size, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    values = {"RANK": "0", "WORLD_SIZE": "40", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": local_world_size}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert useful_threads(Config(**LARGE)) == cores
    for small in ({}, LARGE | {"per_rank_batch_size": 511}, LARGE | {"hidden_sizes": (65536,)}):
        assert useful_threads(Config(**small)) == 1


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        for asked, expected in ((7, 7), (0, 1)):
            prepare_process(Config(num_threads=asked), ALONE)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)


def test_memory_is_not_filled_before_it_is_written():
    """With deterministic algorithms PyTorch fills each new tensor, also a minibatch of images."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.utils.deterministic.fill_uninitialized_memory = True
        prepare_process(Config(), ALONE)
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


def test_where_only_some_hosts_have_the_folder_of_a_resumed_run_the_line_says_so():
    """There `--resume` alone knows the run's flags on these hosts only."""
    alone = Config(run_dir="run", resume=True)
    messages, _ = checked(2, [dataclasses.replace(alone, gamma=0.9), alone])
    assert set(messages) == {
        "rank 0 and rank 1 were started with different flags: --gamma 0.9 and 0.99; the same are expected, "
        "or with --resume a folder that every host has"
    }
