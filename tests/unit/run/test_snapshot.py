"""Copies of weights, and states of environments gathered, for a checkpoint."""

import numpy as np
import pytest
import torch

from fabric_ppo.rollouts.buffer import EnvSnapshot
from fabric_ppo.run import snapshot as snapshots
from fabric_ppo.run.metrics import gather_snapshot
from fabric_ppo.run.snapshot import Copies
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


@pytest.fixture
def transfers(monkeypatch):
    """Tensors as if they were on a GPU, whose packets arrive when they are waited for; returns how often."""
    waits = []

    def begin(packet):
        sent, host = packet.clone(), torch.zeros_like(packet)
        return host, lambda: (waits.append(len(host)), host.copy_(sent))

    monkeypatch.setattr(snapshots, "begin_copy", begin)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda each: each.dtype == torch.int32))
    return waits


def make_tensors():
    return {
        "a": torch.rand(3, 2),
        "here": torch.arange(4, dtype=torch.int32),
        "b": torch.arange(5),
        "c": torch.rand(()),
    }


def test_copies_stay_as_the_tensors_were():
    tensors = make_tensors()
    expected = {name: each.clone() for name, each in tensors.items()}
    copies = Copies(tensors)
    for each in tensors.values():
        each.zero_()
    assert list(copies) == list(expected)
    assert all(torch.equal(copies[name], each) for name, each in expected.items())


def test_copies_from_a_gpu_come_in_one_transfer_that_is_waited_for_once_and_late(transfers):
    tensors = make_tensors()
    expected = {name: each.clone() for name, each in tensors.items()}
    copies = Copies(tensors)
    for each in tensors.values():
        each.zero_()
    assert (list(copies), len(copies), transfers) == (list(expected), 4, [])
    found = dict(copies)
    assert all(torch.equal(found[name], each) and found[name].dtype == each.dtype for name, each in expected.items())
    assert len(transfers) == 1
    dict(copies)
    assert len(transfers) == 1
