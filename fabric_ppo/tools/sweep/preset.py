"""Best flags of a sweep as a preset, which `--config` takes."""

from __future__ import annotations

import time

import yaml

from fabric_ppo.config import TorchConfig
from fabric_ppo.process.console import format_number
from fabric_ppo.process.errors import one_line
from fabric_ppo.process.files import write_atomically
from fabric_ppo.tools.sweep.folder import PRESET_FILE
from fabric_ppo.tools.sweep.space import plain_flags
from fabric_ppo.tools.sweep.study import RETURNS, Sweep
from fabric_ppo.tools.sweep.table import best_trial, interval_text


def write_preset(sweep: Sweep) -> None:
    """Write the flags of the best trial, where one has a value.

    Raises:
        OSError: the file cannot be written.
    """
    if text := preset(sweep):
        write_atomically(sweep.folder / PRESET_FILE, text.encode())


def preset(sweep: Sweep) -> str:
    """Return the flags of the best trial as YAML, with a comment about where they are from; empty for none."""
    trials, settings = sweep.trials(), sweep.settings
    if (best := best_trial(trials)) is None:
        return ""
    flags = sweep.space.flags(best.params)
    returns = [float(each) for each in best.user_attrs.get(RETURNS, [])]
    spread = interval_text(returns, settings.objective)
    ended = sum(trial.state.is_finished() for trial in trials)
    lines = [
        f"{flags.get('env_id', TorchConfig.env_id)}: the best of {ended} trials, number {best.number}, of fabric-ppo "
        f"sweep (study {settings.study}),",
        f"by TPE with --pruner {settings.pruner} --seed {settings.seed}, {time.strftime('%Y-%m-%d')}.",
        f"{settings.objective} of final tests over {len(returns)} seeds: {format_number(float(best.value or 0))}"
        f"{f', 95 % interval {spread}' if spread else ''}; chosen by these seeds, so others may score less.",
    ]
    return "".join(f"# {one_line(line)}\n" for line in lines) + yaml.safe_dump(plain_flags(flags), sort_keys=False)
