"""Player and trainers on devices, and launches that cannot work."""

from __future__ import annotations

import pytest
import torch

from fabric_ppo.architectures.placement import Placement, place
from fabric_ppo.config import DecoupledConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.resolve import resolve

CPU = torch.device("cpu")


def placed(num_ranks, cuda, player_on_gpu, num_gpus):
    """The placement of each rank on one host."""
    return [place(rank, num_ranks, cuda, player_on_gpu, num_gpus) for rank in range(num_ranks)]


def test_placement():
    cpu = Placement("cpu", 0, "gloo", "gloo")
    assert placed(3, False, False, 8) == [cpu] * 3
    assert placed(3, True, False, 2) == [
        Placement("cpu", 0, "gloo", "nccl"),
        Placement("cuda", 0, "gloo", "nccl"),
        Placement("cuda", 1, "gloo", "nccl"),
    ]
    assert placed(3, True, True, 3) == [Placement("cuda", k, "nccl", "nccl") for k in range(3)]
    apart, together = placed(3, True, False, 2)[2], placed(3, True, True, 3)[2]
    assert (apart.devices, apart.packets_on, apart.trainers_gather_on) == ([1], CPU, torch.device("cuda", 1))
    assert together.packets_on == together.trainers_gather_on == torch.device("cuda", 2)
    assert (cpu.devices, cpu.packets_on, cpu.trainers_gather_on) == (1, CPU, CPU)


@pytest.mark.parametrize(
    ("num_ranks", "player_on_gpu", "num_gpus", "gpus"),
    [
        (2, True, 1, [0, 0]),  # player and trainer on the one GPU
        (3, False, 1, [None, 0, 0]),
        (4, True, 2, [0, 1, 0, 1]),
        (6, False, 2, [None, 0, 1, 0, 1, 0]),
    ],
)
def test_processes_share_the_gpus_that_are_there(num_ranks, player_on_gpu, num_gpus, gpus):
    """Over gloo, since nccl refuses two processes on one GPU; all groups agree on it."""
    found = placed(num_ranks, True, player_on_gpu, num_gpus)
    assert [each.device if each.accelerator == "cuda" else None for each in found] == gpus
    assert {(each.world_backend, each.trainers_backend) for each in found} == {("gloo", "gloo")}
    assert {each.packets_on for each in found} == {each.trainers_gather_on for each in found} == {CPU}


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
    assert resolve(DecoupledConfig(cuda=True), 4, 4).cuda  # they share the two
    with pytest.raises(ConfigError, match=r"--cuda: .* places its ranks on the GPUs of one host"):
        resolve(DecoupledConfig(cuda=True), 8, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="--cuda: 1 CUDA device is needed here, 0 found"):
        resolve(DecoupledConfig(cuda=True, player_on_gpu=True), 3, 3)
