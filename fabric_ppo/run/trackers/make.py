"""The trackers of the flags."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from typing import Any

from fabric_ppo.config import Config
from fabric_ppo.config_values import NO_TRACKER
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.extras import install
from fabric_ppo.run.trackers.json_lines import JsonLines
from fabric_ppo.run.trackers.own import OwnTracker
from fabric_ppo.run.trackers.tensorboard import TensorBoard
from fabric_ppo.run.trackers.tool_tracker import ToolTracker
from fabric_ppo.run.trackers.tracker import Tracker, TrackerError, make_part

_FILES: dict[str, type[Tracker]] = {"jsonl": JsonLines, "tensorboard": TensorBoard}
_TOOLS = {"wandb": "W&B", "mlflow": "MLflow", "trackio": "Trackio"}


def make_trackers(config: Config) -> dict[str, Tracker]:
    """Return the trackers of `--track`, name -> tracker.

    `metrics.jsonl` is written for the tools, too, and comes first, because they copy it.

    Raises:
        ConfigError: one of the user's own trackers cannot be made.
    """
    names = [] if config.track == NO_TRACKER else config.track.split(",")
    if any(name in _TOOLS for name in names):
        names = ["jsonl", *(name for name in names if name != "jsonl")]
    return {name: _make(name, config) for name in names}


def own_tracker(tracker: Tracker, config: Config) -> Tracker:
    """Return a tracker that a program has made, in a thread of its own."""
    return OwnTracker(lambda: tracker, config.track_timeout)


def require_packages(names: str) -> None:
    """Raise a ConfigError for a tool, among names with commas, whose package is missing."""
    for name in names.split(","):
        packages = [name] if name in _TOOLS else []
        if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
            packages += ["sqlalchemy", "alembic"]  # for the file that it then writes
        if missing := [package for package in packages if not _is_installed(package)]:
            needed = " and ".join(missing)
            raise ConfigError(f"--track {name}: needs {needed}: {install(name)}")


def _is_installed(package: str) -> bool:
    # a folder of that name, such as the one that W&B makes, is found as well, but has no origin
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _make(name: str, config: Config) -> Tracker:
    if name in _FILES:
        return _FILES[name]()
    if name in _TOOLS:
        return ToolTracker(name, _TOOLS[name], _of_flags(config), config.track_timeout, config.quiet)
    try:
        return OwnTracker(partial(make_part, name, "track", Tracker), config.track_timeout)
    except TrackerError as error:
        raise ConfigError(f"--track {name}: it cannot be made ({error})") from None


def _of_flags(config: Config) -> dict[str, Any]:
    """Return the values of a `TrackedRun` that come from flags."""
    return {
        "log_dir": os.path.abspath(config.log_dir),
        "project": config.track_project,
        "group": config.track_group or f"{config.env_id}_{config.exp_name}",
        "tags": [tag for tag in (config.track_tags or "").split(",") if tag],
    }
