"""Callbacks: code of the user's own that is called during a run, and may ask it to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.policy import Policy
from fabric_ppo.config import Config
from fabric_ppo.rollouts.evaluate import TestResult
from fabric_ppo.run.counts import Counts
from fabric_ppo.run.summary import Summary


@dataclass(frozen=True)
class RunView:
    """A run, as callbacks get it.

    Attributes:
        config: flag -> value, as in `config.yaml`.
        run_dir: the run's folder.
        policy: the agent with its present weights, to act with; it cannot be changed through this.
        update, env_steps: updates and transitions over all ranks so far.
        num_updates: updates of the whole run.
    """

    config: Mapping[str, Any]
    run_dir: Path
    policy: Policy
    update: int
    env_steps: int
    num_updates: int


class Callback:
    """Code that is called on rank 0 while a run trains; a subclass overrides what it needs.

    It changes no weight, bit for bit. Other ranks wait for it, but not longer than `--timeout`. If
    a method returns True, the run ends after the next update, on all ranks. An error ends the run,
    which can be resumed.
    """

    def on_start(self, run: RunView) -> None:
        """React to a run before its first update, or before the first one after resuming."""

    def on_update(self, run: RunView, metrics: Mapping[str, float]) -> bool | None:
        """React to an update and its scalars, tag -> value; True asks to stop."""

    def on_evaluation(self, run: RunView, result: Mapping[str, Any]) -> bool | None:
        """React to an evaluation (`--eval-every`), as `evaluate --json` prints it; True: stop."""

    def on_end(self, run: RunView, summary: Mapping[str, Any]) -> None:
        """React to the summary of a run that is over, as in `summary.json`."""


class Callbacks:
    """The callbacks of a run; each call gets a RunView of its own."""

    def __init__(
        self, callbacks: Sequence[Callback], config: Config, run_dir: Path, agent: Agent, num_updates: int
    ) -> None:
        """Call `callbacks`, in order, with views of the run of `agent` in `run_dir`."""
        self._callbacks, self._config, self._run_dir = callbacks, config, run_dir
        self._agent, self._num_updates = agent, num_updates

    def _view(self, counts: Counts) -> RunView:
        return RunView(
            config=self._config.to_dict(),
            run_dir=self._run_dir,
            policy=Policy(self._agent),
            update=counts.updates,
            env_steps=counts.env_steps,
            num_updates=self._num_updates,
        )

    def on_start(self, counts: Counts) -> None:
        """See `Callback.on_start`."""
        for callback in self._callbacks:
            callback.on_start(self._view(counts))

    def on_update(self, counts: Counts, metrics: Mapping[str, float], evaluation: TestResult | None) -> bool:
        """Call `Callback.on_evaluation`, where there was one, and `Callback.on_update`.

        Returns:
            True if one asks to stop; all are called all the same.
        """
        asked = []
        for callback in self._callbacks:
            if evaluation is not None:
                asked.append(callback.on_evaluation(self._view(counts), evaluation.to_dict()))
            asked.append(callback.on_update(self._view(counts), dict(metrics)))
        return any(asked)

    def on_end(self, counts: Counts, summary: Summary) -> None:
        """See `Callback.on_end`."""
        for callback in self._callbacks:
            callback.on_end(self._view(counts), asdict(summary))
