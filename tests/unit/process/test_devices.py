"""GPUs of the ranks of one host."""

from __future__ import annotations

import pytest
import torch

from fabric_ppo.process import devices
from fabric_ppo.process.devices import RankDevice, count_gpus, rank_device
from fabric_ppo.process.launch import Launch


@pytest.mark.parametrize(
    ("num_ranks", "num_gpus", "gpus", "backend"),
    [
        (1, 1, [0], "cpu:gloo,cuda:nccl"),
        (2, 4, [0, 1], "cpu:gloo,cuda:nccl"),
        (2, 1, [0, 0], "gloo"),  # nccl refuses two ranks on one GPU
        (5, 2, [0, 1, 0, 1, 0], "gloo"),
    ],
)
def test_ranks_share_the_gpus_that_are_there(num_ranks, num_gpus, gpus, backend, monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: num_gpus)
    placed = [rank_device(Launch(rank, num_ranks, rank, num_ranks), cuda=True) for rank in range(num_ranks)]
    assert placed == [RankDevice(torch.device("cuda", gpu), backend) for gpu in gpus]


def test_without_cuda_ranks_are_on_the_cpu(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 4)
    assert rank_device(Launch(1, 2, 1, 2), cuda=False) == RankDevice(torch.device("cpu"), "gloo")


def test_gpus_are_counted_where_cuda_works(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert count_gpus() == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert count_gpus() == 3
