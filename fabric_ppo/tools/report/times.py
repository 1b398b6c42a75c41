"""Where the time of runs went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fabric_ppo.run.result import RunResult
from fabric_ppo.tools.curves import training_seconds
from fabric_ppo.tools.report.runs import ReportRun


@dataclass(frozen=True)
class Part:
    """Part of a run's time: its name, its mean over runs in seconds, and its share of all in 0 .. 1."""

    kind: str
    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Times:
    """Parts of the time of a group's runs; `is_overlapping` where rollouts and updates ran side by side."""

    total: float
    parts: list[Part]
    is_overlapping: bool


_NAMES = {
    "rollout": "rollouts: environments and policy",
    "update": "updates: gradient steps",
    "other": "between them: evaluations, logs, checkpoints",
    "around": "around the training: start, test, files",
}


def times_of(runs: Sequence[ReportRun]) -> Times | None:
    """Return the mean times of runs; None where none has logged any."""
    every = [each for each in map(_parts, runs) if each is not None]
    if not every:
        return None
    mean = {kind: float(np.mean([each[kind] for each in every])) for kind in (*_NAMES, "training")}
    is_overlapping = mean["rollout"] + mean["update"] > 1.001 * mean["training"]
    total = mean["training"] + mean["around"]
    kinds = [kind for kind in _NAMES if mean[kind] > 0 and not (is_overlapping and kind == "other")]
    parts = [Part(kind, _NAMES[kind], mean[kind], mean[kind] / total) for kind in kinds]
    return Times(total, parts, is_overlapping)


def _parts(run: ReportRun) -> dict[str, float] | None:
    training = training_seconds(run.result)
    if not len(training) or training[-1] <= 0:
        return None
    rollout, update = (_sum(run.result, f"Time/{name}_seconds") for name in ("rollout", "update"))
    found = {"training": float(training[-1]), "rollout": rollout, "update": update}
    wall = run.number("wall_seconds") or found["training"]
    found["other"] = max(0.0, found["training"] - rollout - update)
    return found | {"around": max(0.0, wall - found["training"])}


def _sum(run: RunResult, tag: str) -> float:
    return float(np.nansum(run.metrics.get(tag, 0.0)))
