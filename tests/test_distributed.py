"""What ranks say to each other; the ranks are threads here, real processes are in the parity tests."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.group import ALONE, Ranks
from fabric_ppo.rollouts.buffer import Trail
from fabric_ppo.run.prepare import prepare_process, require_same_config, useful_threads
from fabric_ppo.run.resume import gather_trail


def on_ranks(size, function):
    """`[function(ranks) for each rank]` and how many collectives each took; the ranks are threads that meet."""
    slots, calls, meet = [None] * size, [0] * size, threading.Barrier(size, timeout=20)

    def ranks(rank):
        def all_gather(tensor):
            slots[rank] = tensor
            calls[rank] += 1
            meet.wait()
            gathered = torch.stack(slots)
            meet.wait()
            return gathered

        return Ranks(rank, size, all_gather)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: function(ranks(rank)), range(size))), calls


def mixed(rank):
    """One tensor of each type and of odd sizes, other values on every rank."""
    generator = torch.Generator().manual_seed(rank)
    return [
        torch.randint(0, 256, (5, 3), dtype=torch.uint8, generator=generator),
        torch.rand(7, generator=generator) < 0.5,
        torch.randint(-(2**62), 2**62, (3, 1, 2), generator=generator),
        torch.randn(11, generator=generator),
        torch.randn(4, 6, generator=generator).T,
        torch.tensor(rank),
        torch.zeros(0, 3),
        torch.tensor([torch.nan, torch.inf, -0.0, rank], dtype=torch.float64),
        torch.randn(13, generator=generator).to(torch.bfloat16),
        torch.randn(6, 5, generator=generator)[:, 1:4],
    ]


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("kept", [slice(None), slice(0, 1), slice(1, 2), slice(5, 7), slice(8, None)])
def test_gather_all_gives_everybody_everything(size, kept):
    """Bit for bit, in order of rank, in a single collective."""
    results, calls = on_ranks(size, lambda ranks: ranks.gather_all(mixed(ranks.rank)[kept]))
    expected = [torch.stack(each) for each in zip(*(mixed(rank)[kept] for rank in range(size)), strict=True)]
    for result in results:
        for got, want in zip(result, expected, strict=True):
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            assert torch.equal(bits(got), bits(want))
    assert calls == [0 if size == 1 else 1] * size


@pytest.mark.parametrize("size", [1, 2, 4])
def test_gather(size):
    results, _ = on_ranks(size, lambda ranks: ranks.gather(torch.tensor([ranks.rank, 10.0])))
    expected = torch.tensor([[rank, 10.0] for rank in range(size)])
    assert all(torch.equal(result, expected) for result in results)


def test_states_that_some_ranks_lack_are_left_out():
    """By all ranks alike: none waits for a collective that another does not take part in."""

    def trail(rank):
        zeros = np.zeros((1, 2))
        states = [b"a", b"b"] if rank == 0 else []
        return Trail(zeros, zeros > 0, zeros[0], zeros[0], zeros[0], zeros[0], zeros.T, states)

    results, calls = on_ranks(2, lambda ranks: gather_trail(trail(ranks.rank), [], ranks)[0].states)
    assert results == [(), ()]
    assert calls == [1, 1]
    results, calls = on_ranks(2, lambda ranks: gather_trail(trail(0), [], ranks)[0].states)
    assert results == [[b"a", b"b", b"a", b"b"]] * 2


def checked(size, configs):
    def check(ranks):
        try:
            require_same_config(configs[ranks.rank], ranks)
        except ConfigError as error:
            return str(error)
        return None

    return on_ranks(size, check)


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
