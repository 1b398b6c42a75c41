"""A trial at work: its seeds are trained one after the other, and each evaluation is shown to the pruner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fabric_ppo.tools.scores import interquartile_mean
from fabric_ppo.tools.sweep.runs import Report, Run, run_flags, test_return, write_flags
from fabric_ppo.tools.sweep.study import EVALUATIONS, FOLDER, RETURNS, STEPS, Sweep, step_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_MOST_STARTS = 4
"""Starts of a run that is killed each time, as for want of memory."""


class Job:
    """A trial of this worker.

    Attributes:
        number: of the trial.
        run: process of the present seed; None before the first `go_on`.
        is_pruned: true once the trial has been pruned, and only its process has to end.
    """

    def __init__(self, sweep: Sweep, trial: FrozenTrial, num_threads: int | None) -> None:
        """Take a trial up where it is.

        Args:
            sweep: where it is recorded.
            trial: with values for all flags.
            num_threads: of its runs; None: as the flags have it.
        """
        self.number, self.is_pruned = trial.number, False
        self._sweep, self._num_threads, self._trial = sweep, num_threads, trial
        self._returns: list[float] = list(trial.user_attrs.get(RETURNS, []))
        # seed -> step within its training -> mean return
        self._evaluations: dict[str, dict[str, float]] = dict(trial.user_attrs.get(EVALUATIONS, {}))
        self._folder = Path(trial.user_attrs[FOLDER])
        self._starts = 0
        self.run: Run | None = None

    @property
    def run_folder(self) -> Path:
        """Folder of the present seed's run."""
        return self._folder / f"seed_{len(self._returns) + 1}"

    def go_on(self) -> float | None:
        """Start the run that is next, or go on with it; return the trial's value where all seeds are done.

        Raises:
            ConfigError: no run can have the trial's flags.
        """
        settings = self._sweep.settings
        while len(self._returns) < settings.seeds:
            if (done := test_return(self.run_folder)) is None:
                flags = self._folder / "config.yaml"
                write_flags(flags, run_flags(self._sweep.space.flags(self._trial.params)))
                self._starts += 1
                self.run = Run(self.run_folder, flags, len(self._returns) + 1, self._num_threads)
                return None
            self._returns.append(done)
            self._starts = 0
            self._sweep.note(self.number, RETURNS, self._returns)
        return objective(settings.objective, self._returns)

    def may_start_again(self) -> bool:
        """Return True if a run that has been killed is to be started again."""
        return self._starts < _MOST_STARTS

    def take(self, report: Report) -> None:
        """Record an evaluation of the run and have the pruner look at it; it waits for its answer."""
        index = len(self._returns)
        step = step_of(index, report.update, report.num_updates)
        part = step - index * STEPS
        own = self._evaluations.setdefault(str(index), {})
        if part < 1 or self.is_pruned or str(part) in own:  # of several in one part the first counts
            return
        own[str(part)] = report.return_mean
        self._sweep.note(self.number, EVALUATIONS, self._evaluations)
        if self._sweep.should_prune(self.number, step, mean_at(self._evaluations, part)):
            # on record before its process knows: whatever is killed from here on, the trial has ended
            self._sweep.end(self.number, "PRUNED")
            self.is_pruned = True


def mean_at(evaluations: Mapping[str, Mapping[str, float]], part: int) -> float:
    """Return the mean over a trial's seeds of their returns when `part` tenths of the training were done.

    Of a seed without an evaluation there, such as one that has ended early, the last one before counts.

    >>> mean_at({"0": {"5": 1.0, "10": 7.0}, "1": {"5": 2.0}}, 5)
    1.5
    """
    found = []
    for own in evaluations.values():
        if before := [each for each in map(int, own) if each <= part]:
            found.append(own[str(max(before))])
    return float(np.mean(found))


def objective(name: str, returns: Sequence[float]) -> float:
    """Return the value of a trial: `mean` or `iqm` of the returns of its seeds' final tests."""
    return float(interquartile_mean(returns) if name == "iqm" else np.mean(returns))
