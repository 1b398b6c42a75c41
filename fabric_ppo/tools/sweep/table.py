"""Trials of a sweep as people read them: the best ones, their parameters, what each parameter matters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fabric_ppo.process.console import format_number
from fabric_ppo.tools.scores import interquartile_mean, interval
from fabric_ppo.tools.sweep.space import Space
from fabric_ppo.tools.sweep.study import RETURNS, Sweep

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_FEWEST_FOR_IMPORTANCE = 20
"""Trials with values that importances are computed from, at least."""


@dataclass(frozen=True)
class Row:
    """A trial with a value, as the page has it.

    Attributes:
        number, value: of the trial.
        interval: 95 % interval of the value over its seeds; empty of one seed.
        returns: those of the seeds' tests.
        params: texts of the values, in the order of the space.
    """

    number: int
    value: str
    interval: str
    returns: str
    params: list[str]


def completed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that have a value, the best one first; of equal ones the earlier."""
    found = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return sorted(found, key=lambda trial: (-float(trial.value or 0), trial.number))


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial with the highest value; None where none has one."""
    return next(iter(completed(trials)), None)


def row_of(trial: FrozenTrial, sweep: Sweep) -> Row:
    """Return a trial with a value as a row of the page."""
    returns = [float(each) for each in trial.user_attrs.get(RETURNS, [])]
    return Row(
        number=trial.number,
        value=format_number(float(trial.value or 0)),
        interval=interval_text(returns, sweep.settings.objective),
        returns=", ".join(map(format_number, returns)),
        params=[format_param(each) for each in params_of(trial, sweep.space).values()],
    )


def interval_text(returns: Sequence[float], objective: str) -> str:
    """Return the 95 % percentile bootstrap interval of a trial's value over its seeds; empty of one seed."""
    if len(returns) < 2:
        return ""
    low, high = interval(returns, interquartile_mean if objective == "iqm" else lambda drawn: drawn.mean(-1))
    return f"[{format_number(low)}, {format_number(high)}]"


def params_of(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """Return the values of the flags that are searched, as the flags have them, in the order of the space."""
    flags = space.flags(trial.params)
    return {name: flags[name] for name in space.searched if name in trial.params}


def format_param(value: Any) -> str:
    """Return a flag's value in a few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def describe_params(trial: FrozenTrial, space: Space) -> str:
    """Return the values of the flags that are searched in a line."""
    return ", ".join(f"{name} {format_param(value)}" for name, value in params_of(trial, space).items())


def importances(sweep: Sweep) -> dict[str, float]:
    """Return the share of each flag in what makes trials good; empty where too few have values.

    PED-ANOVA (arXiv 2304.10255) compares where the best tenth of the trials lies with where all lie.
    Optuna's default, fANOVA, fits a forest, for which it needs scikit-learn.
    """
    import optuna

    study = sweep.study()
    values = [trial.value for trial in completed(sweep.trials())]
    if len(values) < _FEWEST_FOR_IMPORTANCE or np.ptp(np.asarray(values, np.float64)) == 0:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # as where only one value of each flag has been tried
            return {}
    return {name: share for name, share in found.items() if np.isfinite(share)}
