"""Learning curves of runs, from their metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fabric_ppo.process.errors import ConfigError, first_line

_METRIC = "Rewards/rew_avg"


def plot_runs(run_dirs: list[Path], out: Path) -> None:
    """Draw the mean return of training episodes over transitions, one line for each run.

    Args:
        run_dirs: folders of runs.
        out: picture to write.

    Raises:
        ConfigError: matplotlib is missing, a folder holds no run, or `out` is no kind of picture.
    """
    figure, axes = _figure()
    for run_dir in run_dirs:
        axes.plot(*curve(run_dir), linewidth=1.2, label=run_dir.name)
    axes.legend(fontsize="small")
    _save(figure, out)


def draw(out: Path, curves: list[np.ndarray], title: str, goal: float | None) -> None:
    """Draw curves of several seeds, with their mean and the goal, if there is one.

    Args:
        out: picture to write.
        curves: `[2, points]` each, transitions and returns.
        title: text above the curves.
        goal: return at which a line is drawn.

    Raises:
        ConfigError: as `plot_runs`.
    """
    figure, axes = _figure()
    for steps, returns in curves:
        axes.plot(steps, returns, linewidth=0.6, alpha=0.5, color="tab:blue")
    # the mean only where all curves have points, interpolated at the same transitions
    shared = np.linspace(max(each[0][0] for each in curves), min(each[0][-1] for each in curves), 200)
    mean = np.mean([np.interp(shared, *each) for each in curves], axis=0)
    axes.plot(shared, mean, linewidth=2, color="tab:blue", label=f"mean of {len(curves)}")
    if goal is not None:
        axes.axhline(goal, linewidth=1, linestyle="--", color="tab:gray", label="goal")
    axes.set_title(title)
    axes.legend(fontsize="small")
    _save(figure, out)


def _figure() -> tuple[Any, Any]:
    """Return a figure for learning curves, and its axes."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plot needs matplotlib: pip install matplotlib") from None
    # otherwise ids in an SVG are random: the same curves are to give the same file
    matplotlib.rcParams["svg.hashsalt"] = "fabric-ppo"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="transitions", ylabel="mean return of the episodes that ended")
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, out: Path) -> None:
    try:
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--out {out}: {first_line(error)}") from None


def curve(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the learning curve of a run.

    Returns:
        Transitions and mean return of the training episodes that ended in an update, for each
        update with any.

    Raises:
        ConfigError: the folder holds no run.
    """
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise ConfigError(f"{run_dir}: no metrics.jsonl in it; the folder of a run is expected") from None
    points = [(line["step"], line[_METRIC]) for line in map(json.loads, lines) if _METRIC in line]
    steps, returns = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, returns
