"""Summing through shared memory: against the definition, with ranks that come late, with one that has died."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest
import torch

from fabric_ppo.fast import shared_memory
from fabric_ppo.fast.shared_memory import SharedMemorySum
from fabric_ppo.process.errors import LostContactError
from fabric_ppo.process.group import Ranks
from tests.fixtures.processes import PATIENCE


def connected(size):
    """Ranks whose all_gather goes through queues."""
    context = multiprocessing.get_context("fork")
    queues = [[context.Queue() for _ in range(size)] for _ in range(size)]

    def ranks(rank):
        def all_gather(tensor):
            for queue in queues[rank]:
                queue.put(tensor.tolist())
            return torch.stack([torch.tensor(queues[peer][rank].get(), dtype=tensor.dtype) for peer in range(size)])

        return Ranks(rank, size, all_gather)

    return context, ranks


def work(ranks, rank, turns, answers, dies_at):
    memory = SharedMemorySum.between(ranks(rank), 4 * 1000, timeout=PATIENCE)
    try:
        for turn in range(turns):
            if (rank, turn) == dies_at:
                os._exit(1)
            if (rank + turn) % 3 == 0:
                time.sleep(0.002)
            tensor = torch.arange(997, dtype=torch.float32).view(997, 1) * (rank + 1) + turn
            answers.put((rank, turn, memory.sum_(tensor).flatten().tolist()))
    except LostContactError as error:
        answers.put((rank, "lost", str(error)))


def run_all(size, turns, dies_at=None):
    context, ranks = connected(size)
    answers = context.Queue()
    workers = [context.Process(target=work, args=(ranks, rank, turns, answers, dies_at)) for rank in range(size)]
    for worker in workers:
        worker.start()
    return answers, workers


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_gets_the_sum_of_every_turn(size):
    turns = 50
    answers, workers = run_all(size, turns)
    got = [answers.get(timeout=PATIENCE) for _ in range(size * turns)]
    for _, turn, values in got:
        expected = torch.arange(997.0) * sum(range(1, size + 1)) + size * turn
        assert values == expected.tolist()
    assert len({(rank, turn) for rank, turn, _ in got}) == size * turns
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0


def test_a_dead_rank_is_noticed():
    answers, workers = run_all(2, 5, dies_at=(1, 3))
    while (said := answers.get(timeout=PATIENCE))[1] != "lost":  # what rank 1 said before may have died with it
        assert said[1] < 3
    assert said == (0, "lost", "rank 1 has died")
    for worker in workers:
        worker.join(PATIENCE)


def test_nothing_is_left_in_the_file_system(tmp_path):
    before = set(os.listdir("/dev/shm"))
    answers, workers = run_all(2, 1)
    for _ in range(2):
        answers.get(timeout=PATIENCE)
    for worker in workers:
        worker.join(PATIENCE)
    assert {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("fabric_ppo_")} == set()


def test_where_one_rank_cannot_open_it_nobody_uses_it(monkeypatch):
    """As on two hosts whose launcher calls them one: every rank must fall back alike."""
    context, ranks = connected(2)
    answers = context.Queue()

    def attempt(rank):
        if rank == 1:
            monkeypatch.setattr(shared_memory, "open", refuse, raising=False)
        answers.put((rank, SharedMemorySum.between(ranks(rank), 4000, timeout=PATIENCE) is None))

    def refuse(*_):
        raise FileNotFoundError

    workers = [context.Process(target=attempt, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    assert sorted(answers.get(timeout=PATIENCE) for _ in workers) == [(0, True), (1, True)]
    for worker in workers:
        worker.join(PATIENCE)
