"""Devices of player and trainers, and their process groups."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from lightning.fabric.plugins.collectives import TorchCollective
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import Tensor

from fabric_ppo.process.group import Ranks

PLAYER = 0
"""Rank of the player."""
FIRST_TRAINER = 1
"""Rank of the first trainer; the others follow."""


@dataclass(frozen=True)
class Placement:
    """Device of a process of the decoupled architecture, and backends of its process groups."""

    accelerator: str
    device: int
    world_backend: str
    trainers_backend: str

    @property
    def computes_on(self) -> torch.device:
        """Device of its networks."""
        return torch.device("cuda", self.device) if self.accelerator == "cuda" else torch.device("cpu")

    @property
    def devices(self) -> int | list[int]:
        """Fabric's argument of this name: the process's GPU, or one process on the CPU."""
        return [self.device] if self.accelerator == "cuda" else 1

    @property
    def packets_on(self) -> torch.device:
        """Device of its packets: gloo takes tensors on the CPU, nccl those on its GPU."""
        return self.computes_on if self.world_backend == "nccl" else torch.device("cpu")

    @property
    def trainers_gather_on(self) -> torch.device:
        """Device of the tensors that trainers gather."""
        return self.computes_on if self.trainers_backend == "nccl" else torch.device("cpu")


def place(rank: int, world_size: int, cuda: bool, player_on_gpu: bool, num_gpus: int) -> Placement:
    """Return the placement of a rank, of which all are on one host with `num_gpus` if they take some.

    Without `cuda` all are on the CPU. With it trainer k is on GPU k-1 and the player on the CPU;
    with `player_on_gpu` the player is on GPU 0, the trainers are on those after it, and packets go
    over nccl. Where there are fewer GPUs than processes that take one, these go round, and all
    exchange over gloo: nccl refuses two processes on one GPU.
    """
    if not cuda:
        return Placement("cpu", 0, "gloo", "gloo")
    first = PLAYER if player_on_gpu else FIRST_TRAINER
    trainers_backend = "nccl" if world_size - first <= num_gpus else "gloo"
    world_backend = trainers_backend if player_on_gpu else "gloo"
    if rank < first:
        return Placement("cpu", 0, world_backend, trainers_backend)
    return Placement("cuda", (rank - first) % num_gpus, world_backend, trainers_backend)


def ranks_of(group: TorchCollective, device: torch.device) -> Ranks:
    """Return the members of a group as `Ranks`; tensors are gathered on `device`.

    Gloo needs the CPU, nccl a GPU.
    """

    def all_gather(tensor: Tensor) -> Tensor:
        sent = tensor.to(device).contiguous()
        gathered = group.all_gather([torch.empty_like(sent) for _ in range(group.world_size)], sent)
        return torch.stack(gathered).to(tensor.device)

    return Ranks(group.rank, group.world_size, all_gather)


def forget_fabric_run() -> None:
    """Delete the environment variables of `fabric run` about devices."""
    # player and trainers each make a Fabric of their own, with other devices
    for name in ("CLI_USED", "ACCELERATOR", "STRATEGY", "DEVICES", "NUM_NODES"):
        os.environ.pop(f"LT_{name}", None)


class TrainerEnvironment(ClusterEnvironment):
    """The trainers as Fabric's cluster: ranks 0 .. N-1 of a world without the player."""

    def __init__(self, trainers: Ranks) -> None:
        """Make the environment of this process, one of the `trainers`."""
        super().__init__()
        self._rank, self._size = trainers.rank, trainers.size

    # the launcher has started all processes: Fabric must not start more
    creates_processes_externally = True

    @property
    def main_address(self) -> str:
        """Address of rank 0 of the run."""
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """Port of rank 0 of the run."""
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        """Return False: it is passed to the strategy, never detected."""
        return False

    def world_size(self) -> int:
        """Return the number of trainers."""
        return self._size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the launcher has set it."""

    def global_rank(self) -> int:
        """Return the number of this trainer, from 0."""
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the launcher has set it."""

    def local_rank(self) -> int:
        """Return 0: to Fabric each trainer has a host, and its own device, to itself."""
        return 0

    def node_rank(self) -> int:
        """Return the number of this trainer; see `local_rank`."""
        return self._rank
