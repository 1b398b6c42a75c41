"""Learning curves of runs, from their metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fabric_ppo.launch import ConfigError

_METRIC = "Rewards/rew_avg"


def plot_runs(run_dirs: list[Path], out: Path) -> None:
    """Draw the mean return of the training episodes over the transitions, one line a run, into `out`.

    Raises:
        ConfigError: matplotlib is missing, a folder holds no run, or `out` is no kind of picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plot needs matplotlib: pip install fabric-ppo[plot]") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run_dir in run_dirs:
        steps, returns = _curve(run_dir)
        axes.plot(steps, returns, linewidth=1.2, label=run_dir.name)
    axes.set(xlabel="transitions", ylabel="mean return of the episodes that ended")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        figure.savefig(out)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--out {out}: {str(error).splitlines()[0]}") from None


def _curve(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise ConfigError(f"{run_dir}: no metrics.jsonl in it; the folder of a run is expected") from None
    points = [(line["step"], line[_METRIC]) for line in map(json.loads, lines) if _METRIC in line]
    steps, returns = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, returns
