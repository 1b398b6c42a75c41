"""Messages of player and trainers: rows and statistics to the trainers, weights back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.fabric.plugins.collectives import TorchCollective
from torch import Tensor, nn

from fabric_ppo.agents.agent import Agent
from fabric_ppo.architectures.parcel import Parcel, Transmit, blank_bytes
from fabric_ppo.architectures.placement import FIRST_TRAINER, PLAYER
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.fast.flat_weights import require_all_held, untrained_state
from fabric_ppo.ppo.batch import Batch, Rows, blank_rows, cut, size_of, take
from fabric_ppo.ppo.schedules import put_learning_rate
from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.group import Ranks
from fabric_ppo.process.metrics import Metrics, metric
from fabric_ppo.process.packets import ALIGNMENT
from fabric_ppo.process.profile import timed
from fabric_ppo.process.signals import signals
from fabric_ppo.run.metrics import merge_stats
from fabric_ppo.run.optimizer_state import OptimizerState, load_optimizer, read_optimizer
from fabric_ppo.seeding import Stream, minibatch_order

_END, _TRAIN, _STOP = 0, 1, 2
"""Orders of the player: the run is over, train on these rows, a signal asked to stop."""
_UNTRAINED = "untrained:"
"""Beginning of the names under which frozen weights and buffers are sent."""


@dataclass(frozen=True)
class TrainerStats(Metrics):
    """Numbers of a trainer: its idle share of the time, and 1 if a signal asked it to stop."""

    idle: float = metric("mean", "Time/trainer_idle")
    stop: float = metric("max")


class Packet:
    """Named tensors in one buffer of bytes, so that one collective sends them all.

    Attributes:
        bytes: the buffer, uint8.
        fields: name -> tensor, a view of the buffer.
    """

    def __init__(self, fields: dict[str, tuple[torch.dtype, tuple[int, ...]]], device: torch.device) -> None:
        """Allocate a buffer for `fields`, name -> (dtype, shape), on `device`."""
        # each field begins at a multiple of ALIGNMENT, so that it can be viewed as its own type
        sizes = [torch.Size(shape).numel() * dtype.itemsize for dtype, shape in fields.values()]
        aligned = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        whole = blank_bytes(sum(aligned), device)
        self.bytes, parts = whole, whole.split(aligned)
        self.fields = {
            name: part[:size].view(dtype).view(shape)
            for (name, (dtype, shape)), part, size in zip(fields.items(), parts, sizes, strict=True)
        }


class Exchange:
    """Messages that player and trainers send each other, in buffers that stay.

    In each update the player sends every trainer a packet of rows, the same one with
    `--share-data`, else a part of the rows; the first trainer sends the weights and the optimizer's state back.
    """

    def __init__(
        self,
        world: TorchCollective,
        agent: Agent,
        weights: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Config,
        device: torch.device,
    ) -> None:
        """Allocate the packets; without shared data the player has one for each trainer.

        Args:
            world: all processes.
            agent: gives the rows' shapes, and has the running statistics.
            weights: module with the weights as its only parameter.
            optimizer: optimizer of `weights`; the player's gets the state of the trainers'.
            config: the run's configuration.
            device: device of the packets: the CPU with gloo, the process's GPU with nccl.

        Raises:
            ConfigError: the optimizer does not hold all that is trained.
        """
        require_all_held(optimizer, agent)
        self._world, self._agent, self._config = world, agent, config
        self._optimizer = optimizer
        self._failure: RuntimeError | None = None
        self._num_trainers = world.world_size - FIRST_TRAINER
        self._length = config.effective_sequence_length
        self._units = config.num_steps * config.num_envs // self._length
        # the one flat parameter of `fast.flat_weights`
        (self._weights,) = weights.parameters()
        # running statistics travel with the rows, for trainers normalise observations by those that
        # the player acted with
        statistics = agent.statistics()
        fields = {"order": (torch.uint8, (1,)), "statistics": (statistics.dtype, tuple(statistics.shape))}
        fields |= self._columns_of(agent)
        count = 1 if config.share_data or world.rank != PLAYER else self._num_trainers
        self._batches = [Packet(fields, device) for _ in range(count)]
        self._state = Parcel(device)

    def _columns_of(self, agent: Agent) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the fields of a packet of rows, large enough for the largest part."""
        units = self._units
        if not self._config.share_data:
            units = -(-units // self._num_trainers)
        blank = blank_rows(agent, 1)._asdict()
        del blank["sequences"]
        rows = units * self._length
        columns = {name: (each.dtype, (rows, *each.shape[1:])) for name, each in blank.items()}
        if agent.memory is not None:
            columns["sequences"] = (agent.dtype, (units, agent.memory_size + self._length))
        self._columns = list(columns)
        return columns

    def start(self, first_update: int) -> None:
        """Send the first update's number, weights and optimizer from the player to the trainers."""
        # what does not train, too: it may be that of a checkpoint, or of `--init-from`
        values = [first_update, float(self._optimizer.param_groups[0]["lr"])]
        self._send_state(values, self._broadcast, untrained_state(self._agent))

    def receive_start(self) -> int:
        """Receive on a trainer what `start` sent; return the number of the first update."""
        first_update, learning_rate = self._receive_state(self._broadcast)
        put_learning_rate(self._optimizer, learning_rate)
        return int(first_update)

    def _broadcast(self, content: Tensor) -> None:
        """Send bytes from the player to all trainers; a trainer receives them in place."""
        self._world.broadcast(content, PLAYER)

    @timed("transfer")
    def send(self, batch: Batch | None) -> None:
        """Send rows and running statistics from the player to the trainers; None: the end."""
        end = _STOP if signals.name else _END
        for trainer, packet in enumerate(self._batches):
            packet.fields["order"].fill_(_TRAIN if batch is not None else end)
            packet.fields["statistics"].copy_(self._agent.statistics())
            if batch is not None:
                self._pack_rows(batch, trainer, packet)
        try:
            self._transmit()
        except RuntimeError as error:
            # raised when the reply is awaited: until then the update before is logged and saved
            self._failure = error

    def _transmit(self) -> None:
        """Send the packets of rows, from the player."""
        if self._config.share_data:
            self._world.broadcast(self._batches[0].bytes, PLAYER)
        else:
            # a scatter has a part for the player too, which nobody reads
            nothing = self._batches[0].bytes
            parts = [nothing, *(packet.bytes for packet in self._batches)]
            self._world.scatter(nothing, parts, PLAYER)

    def _pack_rows(self, batch: Batch, trainer: int, packet: Packet) -> None:
        """Copy a trainer's rows into its packet."""
        rows = batch.rows
        if not self._config.share_data and self._num_trainers > 1:
            rows = take(rows, self._part(batch.update, trainer), self._length)
        for name in self._columns:
            column = getattr(rows, name)
            packet.fields[name][: len(column)].copy_(column)

    def _part(self, update: int, trainer: int) -> Tensor:
        """Return the indices of a trainer's sequences in an update, in canonical order."""
        # parts of a random permutation: in canonical order the parts would be stretches of time
        order = minibatch_order(self._config.seed, update, 0, self._units, Stream.SPLIT)
        start, stop = cut(self._units, trainer, self._num_trainers)
        return torch.from_numpy(order[start:stop]).sort().values

    @timed("wait")
    def receive(self, update: int, device: torch.device) -> Batch | None:
        """Receive rows on a trainer; None if the run is over.

        If a signal asked the player to stop, `signals` notes that.
        """
        packet, trainer = self._batches[0], self._world.rank - FIRST_TRAINER
        if self._config.share_data:
            self._world.broadcast(packet.bytes, PLAYER)
        else:
            self._world.scatter(packet.bytes, [], PLAYER)
        if (order := packet.fields["order"].item()) != _TRAIN:
            signals.note(order == _STOP)
            return None
        self._agent.load_statistics(packet.fields["statistics"])
        cuts = [cut(self._units, each, self._num_trainers) for each in range(self._num_trainers)]
        rows_per_rank = tuple(size_of(each) * self._length for each in cuts)
        shares = self._config.share_data
        count = self._units * self._length if shares else rows_per_rank[trainer]
        columns = {name: packet.fields[name][:count] for name in self._columns}
        if "sequences" in columns:
            columns["sequences"] = columns["sequences"][: count // self._length]
        # the copies need not be waited for: a device runs its work in order
        moved = {name: each.to(device, non_blocking=True) for name, each in columns.items()}
        share, num_shares = (trainer, self._num_trainers) if shares else (0, 1)
        uneven = () if shares else rows_per_rank
        named = (self._config.seed, update, self._length)
        return Batch(Rows(**moved), share, num_shares, *named, uneven)

    @timed("transfer")
    def reply(self, stats: UpdateStats, own: TrainerStats) -> None:
        """Send merged numbers, weights and optimizer state from the first trainer to the player."""
        # all trainers have the same weights after an update
        if self._world.rank == FIRST_TRAINER:
            numbers = torch.cat([stats.to_tensor(), own.to_tensor()]).tolist()
            self._send_state([numbers, dict(stats.own)], lambda content: self._world.send(content, PLAYER), {})

    @timed("wait")
    def receive_reply(self) -> tuple[UpdateStats, TrainerStats]:
        """Receive the trainers' numbers on the player; load their weights and optimizer state.

        Raises:
            RuntimeError: a trainer is gone, maybe since the rows were sent.
        """
        if self._failure is not None:
            raise self._failure
        numbers, added = self._receive_state(lambda content: self._world.recv(content, FIRST_TRAINER))
        sizes = [UpdateStats.width(), TrainerStats.width()]
        of_update, of_trainers = torch.tensor(numbers, dtype=torch.float64).split(sizes)
        own = TrainerStats.of(of_trainers)
        signals.note(own.stop > 0)
        return replace(UpdateStats.of(of_update), own=added), own

    def _send_state(self, values: Any, transmit: Transmit, untrained: Mapping[str, Tensor]) -> None:
        """Send weights and optimizer, with JSON values and what of the agent does not train."""
        optimizer = read_optimizer(self._optimizer)
        of_agent = {f"{_UNTRAINED}{name}": each.detach() for name, each in untrained.items()}
        tensors = {"weights": self._weights, **of_agent, **optimizer.tensors}
        self._state.send([values, optimizer.values], tensors, transmit)

    @torch.no_grad()
    def _receive_state(self, transmit: Transmit) -> Any:
        """Load weights and optimizer that were sent; return the values that came with them."""
        (values, of_optimizer), tensors = self._state.receive(transmit)
        # in place: the agent's parameters are views of this memory
        self._weights.copy_(tensors.pop("weights"))
        for name, each in untrained_state(self._agent).items():
            if f"{_UNTRAINED}{name}" in tensors:
                each.copy_(tensors.pop(f"{_UNTRAINED}{name}"))
        load_optimizer(self._optimizer, OptimizerState(tensors, of_optimizer))
        return values


def merge_trainers(stats: UpdateStats, own: TrainerStats, ranks: Ranks) -> tuple[UpdateStats, TrainerStats]:
    """Merge the numbers of all trainers (one collective, three with metrics of one's own).

    The arguments `stats` and `own` are this rank's.
    """
    has_own = torch.tensor([float(bool(stats.own))], dtype=torch.float64)
    numbers = ranks.gather(torch.cat([stats.to_tensor(), own.to_tensor(), has_own]))
    of_updates, of_trainers, have_own = numbers.split([UpdateStats.width(), TrainerStats.width(), 1], dim=1)
    merged = merge_stats(stats, of_updates, bool(have_own.any()), ranks)
    return merged, TrainerStats.merge(of_trainers)


def send_spec(world: TorchCollective, spec: EnvSpec, device: torch.device) -> None:
    """Send the environment's spaces from the player to the trainers, as JSON."""
    text = torch.frombuffer(bytearray(spec.to_json().encode()), dtype=torch.uint8).to(device)
    world.broadcast(torch.tensor([text.numel()], device=device), PLAYER)
    world.broadcast(text, PLAYER)


def receive_spec(world: TorchCollective, device: torch.device) -> EnvSpec:
    """Receive the environment's spaces on a trainer, which never opens an environment."""
    size = world.broadcast(torch.zeros(1, dtype=torch.int64, device=device), PLAYER)
    blank = torch.zeros(int(size.item()), dtype=torch.uint8, device=device)
    text = world.broadcast(blank, PLAYER)
    return EnvSpec.from_json(bytes(text.tolist()).decode())


class Stopwatch:
    """Clock of the time spent waiting: as a context manager it measures a wait."""

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
        """End the round; return the share of it, from 0 to 1, that was waited."""
        current = time.perf_counter()
        share = self._waited / (current - self._round_started)
        self._round_started, self._waited = current, 0.0
        return share
