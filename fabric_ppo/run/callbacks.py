"""The door for callbacks: code of the user's own that looks on, and may ask to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric_ppo.agents.policy import Policy


@dataclass(frozen=True)
class RunView:
    """A run as callbacks see it.

    Attributes:
        config: flag -> value, as in `config.yaml`.
        run_dir: the run's folder.
        policy: the agent as it is, to act with; it cannot be changed through this.
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
    """Code that is called on rank 0 while a run trains; each method may be left as it is.

    It looks on: the weights stay the same, bit for bit. Other ranks wait for it, no longer than
    `--timeout`. Where a method returns True the run ends after the following update, on all ranks
    alike. An error ends the run, which can be resumed.
    """

    def on_start(self, run: RunView) -> None:
        """Look at a run before its first update, or before the one that it goes on with."""

    def on_update(self, run: RunView, metrics: Mapping[str, float]) -> bool | None:
        """Look at an update and its scalars, tag -> value; True asks to stop."""

    def on_evaluation(self, run: RunView, result: Mapping[str, Any]) -> bool | None:
        """Look at an evaluation (`--eval-every`), as `evaluate --json` prints it; True asks to stop."""

    def on_end(self, run: RunView, summary: Mapping[str, Any]) -> None:
        """Look at the summary of a run that is over, as in `summary.json`."""
