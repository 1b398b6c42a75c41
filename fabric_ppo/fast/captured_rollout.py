"""The steps of a rollout as one CUDA graph; stands for the same kernels, started one by one.

It is for environments that are tensors on the GPU that trains: a step of theirs is some hundred small
kernels, which a GPU computes in less time than the host takes to start them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.config import Config
from fabric_ppo.envs.tensor_contract import TensorEnvs
from fabric_ppo.fast.cuda_graphs import CudaGraphs, Record, put_back
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.rollouts.actor import Actor
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.stepping import step_tensors


class CapturedRollout:
    """Takes the steps of a buffer's rollouts: as one CUDA graph with `--compile`, else one by one.

    The second rollout is recorded, and the graph used from then on, if it gives the same bits as the
    kernels one by one. Where it cannot be recorded, these are started as ever, and a line says why.
    """

    def __init__(self, config: Config, record: Record | None = None) -> None:
        """Record nothing yet.

        Args:
            config: whether to `compile`.
            record: what records; None: a CUDA graph, if environments and agent are on one GPU.
        """
        self._is_on, self._record = config.compile, record
        self._has_warmed_up, self._recorded = False, _Recorded()

    def __call__(self, agent: Agent, buffer: RolloutBuffer, envs: TensorEnvs, actor: Actor) -> Actor:
        """Fill the buffer as `step_tensors` does, with its arguments; return the actor that has acted."""
        if not self._is_on or not self._can_record(agent, envs, actor):
            return step_tensors(agent, buffer, envs, actor)
        if self._recorded.replay is not None:
            return self._recorded.take(envs, actor.noise)
        if not self._has_warmed_up:
            self._has_warmed_up = True
            return step_tensors(agent, buffer, envs, actor)
        return self._record_steps(agent, buffer, envs, actor)

    def _can_record(self, agent: Agent, envs: TensorEnvs, actor: Actor) -> bool:
        """Return True if a step reads and writes nothing but tensors of one GPU."""
        is_on_gpu = self._record is not None or agent.device.type == "cuda"
        is_together = str(agent.device) == envs.device and type(actor) is Actor
        return is_on_gpu and is_together and agent.memory is None and bool(envs.carried())

    @torch.no_grad()
    def _record_steps(self, agent: Agent, buffer: RolloutBuffer, envs: TensorEnvs, actor: Actor) -> Actor:
        """Take the steps one by one, and again from a graph that is recorded; keep it if both are equal."""
        self._record = self._record or CudaGraphs()
        before = [each.clone() for each in envs.carried()]
        step_tensors(agent, buffer, envs, actor)
        written = [*buffer.tensors, *([] if buffer.final_obs is None else [buffer.final_obs])]
        expected, after = [each.clone() for each in written], [each.clone() for each in envs.carried()]
        why, recorded = "", _Recorded()
        try:
            recorded.record(self._record, agent, buffer, envs, before)
            put_back(recorded.carried, before)  # recording may itself take the steps, as with a stand-in for graphs
            again = recorded.take(envs, actor.noise)
            mine = [*written, *recorded.carried, again.params()]
            theirs = [*expected, *after, actor.params()]
            if not all(map(torch.equal, mine, theirs)):
                why = "their results differ from those of the kernels one by one"
        except (RuntimeError, ConfigError) as error:
            why = first_line(error)
        if why:
            self._is_on = False
            found = f"the steps of a rollout are not one CUDA graph ({why})"
            print_from_rank_zero(f"--compile: {found}; their kernels are started one by one")
            envs.carry(after)
            put_back(written, expected)
        else:
            self._recorded = recorded
        return actor


class _Recorded:
    """A graph of a rollout's steps, and the memory that it reads and writes beside the buffer's.

    Attributes:
        replay: starts the graph; None before it is recorded.
        carried: what the environments carry from one rollout to the next.
    """

    def __init__(self) -> None:
        self.replay: Callable[[], None] | None = None
        self.carried: list[Tensor] = []

    def record(
        self, record: Record, agent: Agent, buffer: RolloutBuffer, envs: TensorEnvs, carried: list[Tensor]
    ) -> None:
        """Record the steps of a rollout, before which environments carry tensors like `carried`."""
        noise = torch.zeros(buffer.num_steps, buffer.num_envs, agent.distribution.noise_size, dtype=agent.dtype)
        self._actor, self.carried = Actor(agent, noise), [each.clone() for each in carried]

        def run() -> None:
            envs.carry(self.carried)
            step_tensors(agent, buffer, envs, self._actor)
            put_back(self.carried, envs.carried())

        self.replay, _ = record(run)
        envs.carry(self.carried)

    def take(self, envs: TensorEnvs, noise: Tensor) -> Actor:
        """Take the steps of a rollout; return the actor that has acted.

        Args:
            envs: the environments, which may have begun anew since the last rollout.
            noise: an actor's, `[T, rows, noise_size]`.
        """
        assert self.replay is not None
        self._actor.noise.copy_(noise)
        put_back(self.carried, envs.carried())
        envs.carry(self.carried)
        self.replay()
        return self._actor
