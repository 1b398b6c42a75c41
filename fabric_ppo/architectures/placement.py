"""Placement of player and trainers on devices, and their groups."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from lightning.fabric.plugins.collectives import TorchCollective
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import Tensor

from fabric_ppo.config import DecoupledConfig
from fabric_ppo.process.group import Ranks

PLAYER = 0


FIRST_TRAINER = 1


@dataclass(frozen=True)
class Placement:
    """The device of a process of the decoupled architecture, and the backends of its groups."""

    accelerator: str
    device: int
    world_backend: str
    trainers_backend: str

    @property
    def computes_on(self) -> torch.device:
        """Device of its networks."""
        return torch.device("cuda", self.device) if self.accelerator == "cuda" else torch.device("cpu")

    @property
    def packets_on(self) -> torch.device:
        """Device of its packets: gloo takes tensors on the CPU, nccl those on its GPU."""
        return self.computes_on if self.world_backend == "nccl" else torch.device("cpu")


def place(rank: int, cuda: bool, player_on_gpu: bool) -> Placement:
    """Place a rank: without `cuda` on the CPU, with it trainer k on GPU k-1, the player on the CPU.

    With `player_on_gpu` the player takes GPU 0 and the trainers those after it; then all packets go
    over nccl.
    """
    if not cuda:
        return Placement("cpu", 0, "gloo", "gloo")
    world_backend = "nccl" if player_on_gpu else "gloo"
    if rank == PLAYER and not player_on_gpu:
        return Placement("cpu", 0, world_backend, "nccl")
    return Placement("cuda", rank if player_on_gpu else rank - FIRST_TRAINER, world_backend, "nccl")


def trainer_devices(config: DecoupledConfig, num_trainers: int) -> int | list[int]:
    """Return the trainers' `devices` as Fabric takes them: a number of CPU processes, or the GPUs."""
    if not config.cuda:
        return num_trainers
    return [place(FIRST_TRAINER + each, True, config.player_on_gpu).device for each in range(num_trainers)]


def ranks_of(group: TorchCollective, device: torch.device) -> Ranks:
    """Return the members of a group as `Ranks`, which gather by way of `device`, as its backend needs."""

    def all_gather(tensor: Tensor) -> Tensor:
        sent = tensor.to(device).contiguous()
        gathered = group.all_gather([torch.empty_like(sent) for _ in range(group.world_size)], sent)
        return torch.stack(gathered).to(tensor.device)

    return Ranks(group.rank, group.world_size, all_gather)


def forget_fabric_run() -> None:
    """Drop the variables of `fabric run` about devices: each role builds a Fabric of its own."""
    for name in ("CLI_USED", "ACCELERATOR", "STRATEGY", "DEVICES", "NUM_NODES"):
        os.environ.pop(f"LT_{name}", None)


class TrainerEnvironment(ClusterEnvironment):
    """The trainers as Fabric sees them: ranks 0 .. N-1 of a world that the player is no part of."""

    def __init__(self, trainers: Ranks) -> None:
        """Take this process's place among the trainers."""
        super().__init__()
        self._rank, self._size = trainers.rank, trainers.size

    creates_processes_externally = True

    @property
    def main_address(self) -> str:
        """Address of rank 0 of the run."""
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """The port there."""
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        """Never found by itself: it is handed in."""
        return False

    def world_size(self) -> int:
        """Number of trainers."""
        return self._size

    def set_world_size(self, size: int) -> None:
        """Nothing to set: the launcher has."""

    def global_rank(self) -> int:
        """Number of this trainer, from 0."""
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing to set: the launcher has."""

    def local_rank(self) -> int:
        """Number of this trainer, on one host; devices are handed in accordingly."""
        return self._rank

    def node_rank(self) -> int:
        """Trainers are counted through."""
        return 0
