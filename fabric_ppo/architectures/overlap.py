"""The player's rollouts; with `--overlap` the next is collected while the trainers optimise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.config import DecoupledConfig
from fabric_ppo.process.metrics import Metrics, metric
from fabric_ppo.rollouts.buffer import Rollout, RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.rollouts.values import revalue
from fabric_ppo.run.snapshot import Copies


@dataclass(frozen=True)
class PlayerStats(Metrics):
    """Numbers of the player: age of the policy that acted, in updates, and its own idle share."""

    policy_lag: float = metric("max", "Info/policy_lag")
    idle: float = metric("mean", "Time/player_idle")


class RolloutAhead:
    """The rollout that is collected ahead of its update, if there is one.

    Attributes:
        policy_lag: age of the policy that collected the last rollout from `take`, in updates.
    """

    def __init__(self, agent: Agent, buffer: RolloutBuffer, config: DecoupledConfig) -> None:
        """Prepare to collect with `agent` into `buffer`."""
        self._agent, self._buffer, self._config = agent, buffer, config
        self._rollout: Rollout | None = None
        self._num_updates = config.num_updates(1)
        self.policy_lag = 0

    @property
    def is_there(self) -> bool:
        """True if a rollout has been collected, and not been taken yet."""
        return self._rollout is not None

    def collect(self, update: int) -> None:
        """Collect the rollout of a coming update with the present policy, with `--overlap`."""
        # without values: `take` computes them with the weights that the trainers send meanwhile
        if self._config.overlap and update < self._num_updates:
            seed = self._config.seed
            self._rollout = collect(self._agent, self._buffer, seed, update, with_values=False)

    def resume(self, in_flight: Mapping[str, Tensor], update: int) -> None:
        """Collect again the rollout that was in progress when a run was interrupted.

        Args:
            in_flight: weights that it was collected with; empty where there was none.
            update: number of its update.
        """
        if in_flight:
            # an interrupted run must go on with the same rollout, which newer weights would change
            newest = Copies(self._agent.state_dict())
            self._agent.load_state_dict(in_flight)
            self.collect(update)
            self._agent.load_state_dict(newest)

    def take(self, update: int) -> Rollout:
        """Return the rollout of an update: the one collected ahead, revalued, or else a new one."""
        ahead, self._rollout = self._rollout, None
        self.policy_lag = 0 if ahead is None else 1
        if ahead is None:
            return collect(self._agent, self._buffer, self._config.seed, update)
        return revalue(self._agent, self._buffer, ahead)
