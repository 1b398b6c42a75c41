"""Player and trainers on devices, and launches that cannot work."""

from __future__ import annotations

import pytest
import torch

from fabric_ppo.architectures.placement import Placement, place
from fabric_ppo.config import DecoupledConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.resolve import resolve


def test_placement():
    cpu = Placement("cpu", 0, "gloo", "gloo")
    assert [place(rank, False, False) for rank in range(3)] == [cpu] * 3
    assert [place(rank, True, False) for rank in range(3)] == [
        Placement("cpu", 0, "gloo", "nccl"),
        Placement("cuda", 0, "gloo", "nccl"),
        Placement("cuda", 1, "gloo", "nccl"),
    ]
    assert [place(rank, True, True) for rank in range(3)] == [Placement("cuda", k, "nccl", "nccl") for k in range(3)]
    assert place(2, True, False).packets_on == torch.device("cpu")
    assert place(2, True, True).packets_on == torch.device("cuda", 2)


def test_launches_that_cannot_work_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="a player and at least one trainer are needed"):
        DecoupledConfig().check_launch(1, 1)
    with pytest.raises(ConfigError, match="3 rows; at least 4, a row for each trainer"):
        DecoupledConfig(num_steps=3, num_envs=1).check_launch(5, 5)
    with pytest.raises(ConfigError, match="--player-on-gpu: --cuda is needed too"):
        DecoupledConfig(player_on_gpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve(DecoupledConfig(cuda=True), 3, 3).cuda
    with pytest.raises(ConfigError, match="--cuda: 3 CUDA devices are needed here, 2 found"):
        resolve(DecoupledConfig(cuda=True), 4, 4)
    with pytest.raises(ConfigError, match="--cuda: 3 CUDA devices are needed here, 2 found"):
        resolve(DecoupledConfig(cuda=True, player_on_gpu=True), 3, 3)
