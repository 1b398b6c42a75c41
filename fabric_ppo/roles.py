"""The decoupled architecture's two roles: where each runs, and what they send each other."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.collectives import TorchCollective
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import Tensor, nn

from fabric_ppo import profile
from fabric_ppo.agent import Agent
from fabric_ppo.batch import Batch, Rows, blank_rows, cut, size_of, take
from fabric_ppo.config import Config, DecoupledConfig
from fabric_ppo.distributed import ALIGNMENT, ALONE, Ranks
from fabric_ppo.profile import timed
from fabric_ppo.run_state import HasState, load_optimizer, optimizer_tensors
from fabric_ppo.seeding import Stream, minibatch_order
from fabric_ppo.signals import signals
from fabric_ppo.spaces import EnvSpec
from fabric_ppo.update import Stats, adapt_learning_rate

PLAYER = 0
FIRST_TRAINER = 1


@dataclass(frozen=True)
class Placement:
    """Where a process of the decoupled architecture computes, and over what its groups talk."""

    accelerator: str
    device: int
    world_backend: str
    trainers_backend: str

    @property
    def computes_on(self) -> torch.device:
        """Where its networks lie."""
        return torch.device("cuda", self.device) if self.accelerator == "cuda" else torch.device("cpu")

    @property
    def packets_on(self) -> torch.device:
        """Where what it sends lies: gloo takes tensors on the CPU, nccl those on its GPU."""
        return self.computes_on if self.world_backend == "nccl" else torch.device("cpu")


def place(rank: int, cuda: bool, player_on_gpu: bool) -> Placement:
    """Placement of a rank: without `cuda` on the CPU; with it trainer k is on GPU k-1 and the player on the CPU.

    With `player_on_gpu` the player takes GPU 0 and the trainers those after it; then everybody talks over nccl.
    """
    if not cuda:
        return Placement("cpu", 0, "gloo", "gloo")
    world_backend = "nccl" if player_on_gpu else "gloo"
    if rank == PLAYER and not player_on_gpu:
        return Placement("cpu", 0, world_backend, "nccl")
    return Placement("cuda", rank if player_on_gpu else rank - FIRST_TRAINER, world_backend, "nccl")


def trainer_devices(config: DecoupledConfig, num_trainers: int) -> int | list[int]:
    """What Fabric takes for the trainers' `devices`: a number of CPU processes, or the GPUs."""
    if not config.cuda:
        return num_trainers
    return [place(FIRST_TRAINER + each, True, config.player_on_gpu).device for each in range(num_trainers)]


def ranks_of(group: TorchCollective, device: torch.device) -> Ranks:
    """The members of a group as `Ranks`; what they gather passes through `device`, which the group's backend takes."""

    def all_gather(tensor: Tensor) -> Tensor:
        sent = tensor.to(device).contiguous()
        gathered = group.all_gather([torch.empty_like(sent) for _ in range(group.world_size)], sent)
        return torch.stack(gathered).to(tensor.device)

    return Ranks(group.rank, group.world_size, all_gather)


def forget_fabric_run() -> None:
    """Drop what `fabric run` left in the environment about devices: each role builds a Fabric of its own."""
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
        """Where rank 0 of the run is."""
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
        """Which trainer this is."""
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing to set: the launcher has."""

    def local_rank(self) -> int:
        """Which trainer this is, on one host; devices are handed in accordingly."""
        return self._rank

    def node_rank(self) -> int:
        """Trainers are counted through."""
        return 0


class Packet:
    """Named tensors side by side in one buffer of bytes, so that one collective sends them all."""

    def __init__(self, fields: dict[str, tuple[torch.dtype, tuple[int, ...]]], device: torch.device) -> None:
        """Allocate once; on the CPU in pinned memory where this process computes on a GPU."""
        sizes = [torch.Size(shape).numel() * dtype.itemsize for dtype, shape in fields.values()]
        aligned = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        pinned = device.type == "cpu" and torch.cuda.is_initialized()
        self.bytes = torch.zeros(sum(aligned), dtype=torch.uint8, device=device, pin_memory=pinned)
        parts = self.bytes.split(aligned)
        self.fields = {
            name: part[:size].view(dtype).view(shape)
            for (name, (dtype, shape)), part, size in zip(fields.items(), parts, sizes, strict=True)
        }


class Exchange:
    """What player and trainers send each other: rows one way, weights and statistics the other.

    The player sends one packet an update, to all the same (`--share-data`) or to each its part; trainer 1 sends one
    back. All memory is allocated here, once.

    Attributes:
        param_groups: on the player's side the learning rate of the trainers' optimizer.
    """

    def __init__(
        self, world: TorchCollective, agent: Agent, weights: nn.Module, config: Config, device: torch.device
    ) -> None:
        """Allocate; without shared data the player has a packet for each trainer.

        Args:
            world: all processes.
            agent: gives the rows' shapes.
            weights: what trains; its one parameter comes back flat.
            config: the run's configuration.
            device: where packets lie: the CPU with gloo, the process's GPU with nccl.
        """
        self._world, self._config = world, config
        self.param_groups: list[dict[str, Any]] = [{"lr": config.learning_rate}]
        self._num_trainers = world.world_size - FIRST_TRAINER
        self._together = config.rows_together
        self._units = config.num_steps * config.num_envs // self._together
        self._trainers = ALONE
        self._weights = list(weights.parameters())
        units = self._units if config.share_data else -(-self._units // self._num_trainers)
        most = units * self._together
        blank = blank_rows(agent, 1)._asdict()
        columns = {name: (each.dtype, (most, *each.shape[1:])) for name, each in blank.items() if name != "sequences"}
        if agent.memory is not None:
            columns["sequences"] = (agent.dtype, (units, agent.memory_size + self._together))
        self._columns = list(columns)
        fields = {"order": (torch.uint8, (1,))} | columns
        count = 1 if config.share_data or world.rank != PLAYER else self._num_trainers
        self._batches = [Packet(fields, device) for _ in range(count)]
        vector = (agent.dtype, (sum(tensor.numel() for tensor in self._weights),))
        self._reply = Packet(
            {"stats": (torch.float64, (_NUM_STATS,)), "weights": vector, "step": (torch.float32, ())}
            | dict.fromkeys(_MOMENTS, vector),
            device,
        )

    def state_dict(self) -> dict[str, Any]:
        """The trainers' optimizer as of their last reply, like its own `state_dict`."""
        return {"state": {0: {name: self._reply.fields[name] for name in ("step", *_MOMENTS)}}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put this into the packet that `start` or `reply` sends."""
        for name, value in state_dict["state"][0].items():
            self._reply.fields[name].copy_(value)

    def start(self, first_update: int) -> None:
        """The player's side: tell the trainers where a run begins: its update, weights and optimizer."""
        self._reply.fields["stats"][0] = first_update
        self._reply.fields["stats"][1] = self.param_groups[0]["lr"]
        self._pack_weights()
        self._world.broadcast(self._reply.bytes, PLAYER)

    def receive_start(self, optimizer: HasState) -> int:
        """A trainer's side of `start`; the first update."""
        self._world.broadcast(self._reply.bytes, PLAYER)
        first_update = int(self._reply.fields["stats"][0])
        if self._config.profile:
            profile.start()
        self._unpack_weights()
        if first_update > 0:
            load_optimizer(optimizer, optimizer_tensors(self))
        for group in optimizer.param_groups:
            group["lr"] = self._reply.fields["stats"][1].item()
        return first_update

    @timed("transfer")
    def send(self, batch: Batch | None) -> None:
        """The player's side: what to train on, or None for the end."""
        end = _STOP if signals.name else _END
        for trainer, packet in enumerate(self._batches):
            packet.fields["order"].fill_(_TRAIN if batch is not None else end)
            if batch is not None:
                rows = batch.rows
                if not self._config.share_data and self._num_trainers > 1:
                    rows = take(rows, self._part(batch.update, trainer), self._together)
                for name in self._columns:
                    column = getattr(rows, name)
                    packet.fields[name][: len(column)].copy_(column)
        if self._config.share_data:
            self._world.broadcast(self._batches[0].bytes, PLAYER)
        else:
            nothing = self._batches[0].bytes  # the player's own part, which it does not use
            self._world.scatter(nothing, [nothing, *(packet.bytes for packet in self._batches)], PLAYER)

    def _part(self, update: int, trainer: int) -> Tensor:
        """The rows (or sequences) that a trainer gets, in canonical order: its part of a permutation."""
        order = minibatch_order(self._config.seed, update, 0, self._units, Stream.SPLIT)
        start, stop = cut(self._units, trainer, self._num_trainers)
        return torch.from_numpy(order[start:stop]).sort().values

    @timed("wait")
    def receive(self, update: int, device: torch.device) -> Batch | None:
        """A trainer's side: what to train on, or None at the end, which `signals` note if it was asked for."""
        packet, trainer = self._batches[0], self._world.rank - FIRST_TRAINER
        if self._config.share_data:
            self._world.broadcast(packet.bytes, PLAYER)
        else:
            self._world.scatter(packet.bytes, [], PLAYER)
        if (order := packet.fields["order"].item()) != _TRAIN:
            signals.note(order == _STOP)
            profile.finish(self._trainers, None, "trainer")
            return None
        together, units = self._together, range(self._num_trainers)
        held = tuple(size_of(cut(self._units, each, self._num_trainers)) * together for each in units)
        count = self._units * together if self._config.share_data else held[trainer]
        columns = {name: packet.fields[name][:count] for name in self._columns}
        if "sequences" in columns:
            columns["sequences"] = columns["sequences"][: count // together]
        rows = Rows(**{name: column.to(device, non_blocking=True) for name, column in columns.items()})
        if self._config.share_data:
            return Batch(rows, trainer, self._num_trainers, self._config.seed, update, together)
        return Batch(rows, 0, 1, self._config.seed, update, together, held)

    @timed("transfer")
    def reply(self, ranks: Ranks, stats: Stats, optimizer: HasState, idle: float) -> None:
        """The trainers' side: agree on the statistics; trainer 1 sends them, the weights and the optimizer's state."""
        self._trainers = ranks
        own = [*(getattr(stats, name) for name in _MEANS), *stats.value_moments, stats.seconds, idle]
        own += [bool(signals.name)]
        gathered = ranks.gather(torch.tensor(own, dtype=torch.float64, device=self._weights[0].device))
        means = gathered.mean(0)
        adapt_learning_rate(optimizer, self._config, means[_MEANS.index("approx_kl")])
        if self._world.rank == FIRST_TRAINER:
            self._reply.fields["stats"][:-1].copy_(means)
            self._reply.fields["stats"][-1] = stats.gradient_steps
            self._pack_weights()
            self.load_state_dict(optimizer.state_dict())
            self._world.send(self._reply.bytes, PLAYER)

    @timed("wait")
    @torch.no_grad()
    def receive_reply(self) -> tuple[Stats, float]:
        """The player's side: takes over the weights; the statistics, and the share of time that trainers waited."""
        self._world.recv(self._reply.bytes, FIRST_TRAINER)
        self._unpack_weights()
        *values, seconds, idle, asked, gradient_steps = self._reply.fields["stats"].tolist()
        signals.note(asked > 0)
        means = dict(zip(_MEANS, values, strict=False))
        moments = tuple(value * self._num_trainers for value in values[len(_MEANS) :])
        stats = Stats(**means, value_moments=moments, gradient_steps=round(gradient_steps), seconds=seconds)
        return stats, idle

    def _pack_weights(self) -> None:
        self._reply.fields["weights"].copy_(torch.cat([tensor.detach().flatten() for tensor in self._weights]))

    @torch.no_grad()
    def _unpack_weights(self) -> None:
        sizes = [tensor.numel() for tensor in self._weights]
        for tensor, part in zip(self._weights, self._reply.fields["weights"].split(sizes), strict=True):
            tensor.copy_(part.view(tensor.shape))


_MOMENTS = ("exp_avg", "exp_avg_sq")
_MEANS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")
_NUM_STATS = len(_MEANS) + 5 + 4
_END, _TRAIN, _STOP = 0, 1, 2


def send_spec(world: TorchCollective, spec: EnvSpec, device: torch.device) -> None:
    """The player tells the trainers what the environment looks like, as JSON."""
    text = torch.frombuffer(bytearray(spec.to_json().encode()), dtype=torch.uint8).to(device)
    world.broadcast(torch.tensor([text.numel()], device=device), PLAYER)
    world.broadcast(text, PLAYER)


def receive_spec(world: TorchCollective, device: torch.device) -> EnvSpec:
    """A trainer learns what the environment looks like; it never opens one."""
    size = world.broadcast(torch.zeros(1, dtype=torch.int64, device=device), PLAYER)
    text = world.broadcast(torch.zeros(int(size.item()), dtype=torch.uint8, device=device), PLAYER)
    return EnvSpec.from_json(bytes(text.tolist()).decode())


class Stopwatch:
    """The share of each round that was spent waiting."""

    def __init__(self) -> None:
        """Start the first round."""
        self._round_started = time.perf_counter()
        self._waited = 0.0

    def __enter__(self) -> None:
        """Start to wait."""
        self._wait_started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        """Stop waiting."""
        self._waited += time.perf_counter() - self._wait_started

    def lap(self) -> float:
        """End the round; the share of it, from 0 to 1, that was waited."""
        now = time.perf_counter()
        share = self._waited / (now - self._round_started)
        self._round_started, self._waited = now, 0.0
        return share
